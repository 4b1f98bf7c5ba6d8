"""The repro command: verbs and rendering."""
