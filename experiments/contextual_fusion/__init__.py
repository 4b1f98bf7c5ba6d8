"""Contextual Fusion For Adversarial Robustness (Akumalla, Haney, Bazhenov; arXiv 2011.09526)."""
