"""Learning with Local Gradients at the Edge: target-projection SGD (arXiv 2208.08503)."""
