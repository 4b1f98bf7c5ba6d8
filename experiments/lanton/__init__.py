"""LANTON: noise-adaptive layerwise learning rates for optimizers with norm balls."""
