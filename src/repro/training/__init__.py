"""Executing one run: modules, checkpoints, loggers, and Lightning around them."""
