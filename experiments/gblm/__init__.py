"""Beyond Size: how gradients shape pruning decisions in LLMs (Das et al.; arXiv 2311.04902)."""
