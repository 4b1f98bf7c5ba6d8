"""Compressing a large gradient must cost less than the plain top-k it replaces."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from repro.methods.dgc import ErrorFeedbackMemory, RandomKey, SampledSelector, TopKCompressor

NUMEL = 25_000_000
DENSITY = 0.001

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


def fastest(run, repeats=5):
    times = []
    for step in range(repeats):
        start = time.perf_counter()
        run(step)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.benchmark
def test_a_compressed_step_is_faster_than_one_top_k(record_property):
    """Memory update, selection, reset and decompression against torch.topk over the tensor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fresh = torch.randn(NUMEL)
        gradient = fresh.clone()
        memory = ErrorFeedbackMemory()
        compressor = TopKCompressor(DENSITY, SampledSelector(0.01))

        def compressed_step(step):
            (unsent,) = memory.accumulate(["w"], [fresh[None]])
            sparse = compressor.compress(unsent, RandomKey(step=step))
            memory.release("w", sparse.indices[None])
            compressor.decompress(sparse, out=gradient)

        compressed_step(0)
        ours = fastest(compressed_step)
        top_k = fastest(lambda step: torch.topk(fresh, int(NUMEL * DENSITY)))
    finally:
        torch.set_num_threads(threads)
    print(f"compressed step {ours:.3f} s, torch.topk {top_k:.3f} s: {top_k / ours:.1f} x faster")
    record_property("speed_up", top_k / ours)
    assert ours < top_k


@pytest.mark.benchmark
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_the_gradient_and_its_two_accumulators():
    """At most 1.5 gradients (the gradient itself included) beyond U and V."""
    probe = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE], capture_output=True, text=True, check=True
    )
    beyond_state = float(probe.stdout) - 2
    print(f"peak memory beyond the accumulators: {beyond_state:.2f} x the gradient")
    assert beyond_state <= 1.5
