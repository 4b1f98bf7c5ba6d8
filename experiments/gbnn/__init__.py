"""Gradient-boosted neural networks (Emami, Martínez-Muñoz; IEEE Access 2023; arXiv 1909.12098)."""
