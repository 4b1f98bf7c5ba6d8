"""Context-aware Bayesian-network actor-critic (Chen & Zhang; ICML 2023; arXiv 2306.01920)."""
