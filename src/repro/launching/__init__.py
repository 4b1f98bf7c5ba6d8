"""Executing a study: on this machine, or as jobs of a cluster."""
