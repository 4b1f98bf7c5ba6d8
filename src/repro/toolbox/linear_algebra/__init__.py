"""Solvers that several papers use: batched conjugate gradients and batched L-BFGS."""
