"""Room of the paper on Bayesian uncertainty of neural-network potentials."""
