"""The papers' methods, usable from a plain PyTorch loop."""
