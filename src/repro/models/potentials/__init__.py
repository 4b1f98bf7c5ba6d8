"""Potential energies as networks: (B, …) states to (B,) energies, forces are their gradients."""
