"""Data sets and the batch iterators that feed them.

`iterators` hands out batches, `modules` joins them to Lightning, `bundled`, `simulated`, `images`,
`text` and `uci` are where data come from, `catalog` lists them. Nothing is imported here, so that
the catalogue stays cheap.
"""
