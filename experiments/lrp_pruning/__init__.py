"""Pruning by explaining: what relevance removes, against what weights, gradients and chance do."""
