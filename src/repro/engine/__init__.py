"""Composition, run directories, studies and execution."""
