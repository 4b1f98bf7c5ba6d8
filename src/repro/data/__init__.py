"""Data sets and the batch iterators that feed them."""
