"""Momentum Auxiliary Network for Supervised Local Learning (Su et al. 2024; arXiv 2407.05623)."""
