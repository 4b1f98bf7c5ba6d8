"""Compressing a large gradient must cost less than the plain top-k it replaces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timing import faster

from repro.methods.dgc import ErrorFeedbackMemory, RandomKey, SampledSelector, TopKCompressor

NUMEL, DENSITY = 25_000_000, 0.001
MEMORY_PROBE = f"""
import torch
from repro.methods.dgc import ErrorFeedbackMemory, RandomKey, SampledSelector, TopKCompressor

def resident(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))

torch.set_num_threads(1)
compressor = TopKCompressor({DENSITY}, SampledSelector(0.01))

def steps(numel, count):
    memory = ErrorFeedbackMemory()
    gradient = torch.zeros(numel)
    for step in range(count):
        gradient.normal_()
        (unsent,) = memory.accumulate(["w"], [gradient[None]])
        sparse = compressor.compress(unsent, RandomKey(step=step))
        memory.release("w", sparse.indices[None])
        compressor.decompress(sparse, out=gradient)

steps(300_000, 1)  # loads the libraries
before = resident("VmRSS")
steps({NUMEL}, 3)
print((resident("VmHWM") - before) / (4 * {NUMEL}))
"""


def test_a_compressed_step() -> None:
    """Memory update, selection, reset and decompression against torch.topk over the tensor."""
    fresh, gradient = torch.randn(2, NUMEL)
    memory, compressor = ErrorFeedbackMemory(), TopKCompressor(DENSITY, SampledSelector(0.01))

    def step() -> None:
        (unsent,) = memory.accumulate(["w"], [fresh[None]])
        sparse = compressor.compress(unsent, RandomKey(step=0))
        memory.release("w", sparse.indices[None])
        compressor.decompress(sparse, out=gradient)

    top_k = int(NUMEL * DENSITY)
    faster("a compressed step, against top-k", step, lambda: torch.topk(fresh, top_k))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_the_gradient_and_its_two_accumulators() -> None:
    """At most 1.5 gradients (the gradient itself included) beyond U and V."""
    probe = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE], capture_output=True, text=True, check=True
    )
    beyond_state = float(probe.stdout) - 2
    print(f"peak memory beyond the accumulators: {beyond_state:.2f} x the gradient")
    assert beyond_state <= 1.5
