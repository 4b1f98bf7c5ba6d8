"""JLCM: codebooks and mappings of a trained network, learned jointly."""
