"""Simulated worlds: radio channels, games."""
