"""Data sets and the batch iterators that feed them.

`base` hands out batches and joins them to Lightning; `tables`, `images`, `text` and `worlds` are
where data come from, and `base.catalog` lists them. Nothing is imported here, so that the catalogue
stays cheap.
"""
