"""Skeletonization for gradient-based optimization (Menten et al.; ICCV 2023; arXiv 2309.02527)."""
