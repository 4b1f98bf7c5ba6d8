"""Gradient-based post-training quantisation (Yvinec, Dapogny, Bailly; 2023; arXiv 2308.07662)."""
