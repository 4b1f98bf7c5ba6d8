"""Networks, each readable from top to bottom."""
