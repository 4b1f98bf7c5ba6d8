"""ScaleLong (Huang, Zhou, Yan, Lin; NeurIPS 2023; arXiv 2310.13545)."""
