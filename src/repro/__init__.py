"""Reproductions of papers about gradients: library and engine."""

__version__ = "0.1.0"
