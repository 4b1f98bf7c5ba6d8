"""A step of the default, exact top-k, against the published code's, whose top-k is sampled."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timing import faster
from torch import Tensor

from repro.methods.dgc import (
    ErrorFeedbackMemory,
    RandomKey,
    SampledSelector,
    Selector,
    TopKCompressor,
)
from repro.models.vision.resnet_imagenet import ResNetImageNet

NUMEL, DENSITY, MOMENTUM = 25_000_000, 0.001, 0.9
MEMORY_PROBE = f"""
import torch
from repro.methods.dgc import ErrorFeedbackMemory, RandomKey, TopKCompressor

def resident(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))

torch.set_num_threads(1)
compressor = TopKCompressor({DENSITY})

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


class Published:
    """The rules of the authors' released code at its defaults, one tensor after another."""

    def __init__(self, sizes: list[int]) -> None:
        self.velocity = [torch.zeros(size) for size in sizes]
        self.unsent = [torch.zeros(size) for size in sizes]

    def step(self, gradients: list[Tensor]) -> None:
        for u, v, gradient in zip(self.velocity, self.unsent, gradients, strict=True):
            u.mul_(MOMENTUM).add_(gradient)
            v.add_(u)
            index = self.selected(v)
            values = v[index]
            for state in (u, v):
                state.index_fill_(0, index, 0)
            gradient.zero_().index_put_([index], values, accumulate=True)

    @staticmethod
    def selected(v: Tensor) -> Tensor:
        magnitude, wanted, stride = v.abs(), math.ceil(len(v) * DENSITY), 1
        if len(v) > 2 / DENSITY:
            samples = max(math.ceil(len(v) / 100), math.ceil(2 / DENSITY))
            stride = math.ceil(len(v) / samples / 32) * 32 + 1
            while len(v) // stride < samples:
                stride -= 8
        sample = magnitude[random.randrange(stride) :: stride]
        hits = math.ceil(len(v) // stride * DENSITY)
        threshold = sample.topk(hits, sorted=False).values.min()
        index = (magnitude >= threshold).nonzero().view(-1)
        for _ in range(10 if stride > 1 else 0):
            if len(index) > 1.3 * wanted:
                return index[magnitude[index].topk(wanted, sorted=False).indices]
            if len(index) >= 0.8 * wanted:
                break
            threshold = threshold * 0.8
            index = (magnitude >= threshold).nonzero().view(-1)
        return index[:wanted]


class Ours:
    """Memory update, selection, reset and decompression."""

    def __init__(self, sizes: list[int], selector: Selector | None = None) -> None:
        self.names = [str(position) for position in range(len(sizes))]
        self.memory = ErrorFeedbackMemory(momentum=MOMENTUM)
        self.compressor = TopKCompressor(DENSITY, selector)

    def step(self, gradients: list[Tensor]) -> None:
        unsent = self.memory.accumulate(self.names, [gradient[None] for gradient in gradients])
        for name, v, gradient in zip(self.names, unsent, gradients, strict=True):
            sparse = self.compressor.compress(v, RandomKey(step=0))
            self.memory.release(name, sparse.indices[None])
            self.compressor.decompress(sparse, out=gradient)


def resnet50() -> list[int]:
    with torch.device("meta"):
        model = ResNetImageNet((3, 224, 224), 1000, depth=50)
    return [p.numel() for p in model.parameters()]


@pytest.mark.parametrize(
    ("of", "threads", "factor"),
    [
        ("one tensor", 1, 1.3),
        ("one tensor", 2, 1.3),
        ("ResNet-50", 1, 1.1),
        ("ResNet-50", 2, 0.85),
    ],
)
def test_a_step_of_the_default_against_the_published_one(
    of: str, threads: int, factor: float
) -> None:
    """Measured on two cores: 2.12 and 1.77 times over one tensor, 1.19 and 0.94 over ResNet-50.

    Adding to U and V (45 of our 95 ms on ResNet-50) and writing the gradient (14 ms) wait for
    memory in both. What differs is the search, 35 ms of ours: the published one takes several
    passes over |V|, which cost it 167 ms a step over one tensor but 116 over ResNet-50, whose
    tensors are small enough for caches; and it uses both threads, where ours, NumPy's, uses one.
    Adding to and searching one tensor after another made ours 13 % slower.
    """
    sizes = [NUMEL] if of == "one tensor" else resnet50()
    fresh = [torch.randn(size) for size in sizes]
    gradients = [torch.empty(size) for size in sizes]
    ours, published = Ours(sizes), Published(sizes)

    def step(method: Ours | Published) -> None:
        for gradient, values in zip(gradients, fresh, strict=True):
            gradient.copy_(values)
        method.step(gradients)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        name = f"{of}, exact on {threads} threads, against the published step"
        faster(name, lambda: step(ours), lambda: step(published), factor)
    finally:
        torch.set_num_threads(before)


def test_a_sampled_step() -> None:
    """By the paper's selector, against torch.topk over the tensor."""
    fresh = torch.randn(NUMEL)
    gradient, sampled = fresh.clone(), Ours([NUMEL], SampledSelector(0.01))
    wanted = int(NUMEL * DENSITY)
    faster(
        "a sampled step, against top-k",
        lambda: sampled.step([gradient]),
        lambda: torch.topk(fresh, wanted),
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_the_gradient_and_its_two_accumulators() -> None:
    """At most 3.1 gradients: the gradient itself, U, V and little else."""
    probe = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE], capture_output=True, text=True, check=True
    )
    print(f"peak memory: {float(probe.stdout):.2f} x the gradient")
    assert float(probe.stdout) <= 3.1
