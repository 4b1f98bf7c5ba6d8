"""ICGNN: a graph network for precoding and power allocation (Sun et al., arXiv 2408.17252)."""
