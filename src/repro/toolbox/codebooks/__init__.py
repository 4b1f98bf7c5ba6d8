"""Weights as short codes into small tables of values.

Modules: `kmeans` (tables by k-means in one dimension, for millions of entries), `coded` (codes,
codebooks and scales of a weight; what they cost in bits), `packing` (codes as a stream of bits, and
products straight from it), `storage` (packed weights in a file).
"""

from repro.toolbox.codebooks.coded import (
    CODEBOOK_BITS,
    CodedWeight,
    code_bits,
    memory_bits,
    nearest_codes,
    weight_bits,
)
from repro.toolbox.codebooks.kmeans import kmeans_1d
from repro.toolbox.codebooks.packing import pack, packed_product, unpack
from repro.toolbox.codebooks.storage import read_packed, write_packed

__all__ = [
    "CODEBOOK_BITS",
    "CodedWeight",
    "code_bits",
    "kmeans_1d",
    "memory_bits",
    "nearest_codes",
    "pack",
    "packed_product",
    "read_packed",
    "unpack",
    "weight_bits",
    "write_packed",
]
