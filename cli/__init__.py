"""The repro command: verbs and rendering."""

OUTPUT_LOST = "repro.output_lost"  # in click's notes: whether something could not be printed
