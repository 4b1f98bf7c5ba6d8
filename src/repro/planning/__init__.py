"""From what somebody typed to the runs of a study, and from a config to objects."""
