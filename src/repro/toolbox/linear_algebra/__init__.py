"""Solvers that several papers use: batched conjugate gradients, Lanczos, curvature."""
