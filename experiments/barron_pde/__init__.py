"""Barron norms of solutions of nonlinear PDEs (Marwah et al., arXiv 2210.12101)."""
