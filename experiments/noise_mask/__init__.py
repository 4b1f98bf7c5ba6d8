"""Policy Gradient-Driven Noise Mask (arXiv 2406.14568)."""
