"""MENTOR (Huang et al.; ICML 2025; arXiv 2410.14972)."""
