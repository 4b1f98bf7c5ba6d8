"""Adding Gradient Noise Improves Learning for Very Deep Networks (arXiv 1511.06807)."""
