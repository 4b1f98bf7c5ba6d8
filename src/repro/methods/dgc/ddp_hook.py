"""Joins a method that exchanges gradients to PyTorch's DistributedDataParallel."""

# No `from __future__ import annotations`: DDP inspects the annotations of a hook.

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from repro.methods.dgc.cluster import Cluster


class Exchange(Protocol):
    """What the hook asks of a method; see `repro.methods.dgc.DataParallel`."""

    cluster: Cluster
    position: dict[Tensor, int]
    needs_whole_gradient: bool

    def exchange(self, tensors: Sequence[int], grads_Kn: Sequence[Tensor]) -> None:
        """Turns the gradients of some tensors into what the optimizer gets."""

    def end_step(self) -> None:
        """Called once when all tensors of a step have been exchanged."""


class BucketExchange:
    """Hands DDP's gradient buckets to a method, and the method's result back.

    DDP fills buckets while the backward pass still runs. A method that needs the worker's whole
    gradient first (clipping by its norm) gets all buckets together with the last one.

    Args:
        method: performs the exchange.
    """

    def __init__(self, method: Exchange) -> None:
        self.method = method
        self._parameters: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._promises: list[tuple[Future[Tensor], Tensor]] = []

    def receive(self, bucket: dist.GradBucket) -> "Future[Tensor]":
        """Takes a bucket; the future yields its buffer, holding what belongs in ``.grad``."""
        buffer = bucket.buffer()
        future: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else None)
        # A worker's share of the mean gradient: g_k = (1/N) * its local mean gradient.
        buffer.div_(self.method.cluster.size)
        self._parameters += bucket.parameters()
        self._gradients += map(_shaped_like, bucket.gradients(), bucket.parameters())
        self._promises.append((future, buffer))
        last = bucket.is_last()
        if last or not self.method.needs_whole_gradient:
            self._exchange()
        if last:
            self.method.end_step()
        return future

    @torch.no_grad()
    def _exchange(self) -> None:
        positions = [self.method.position[parameter] for parameter in self._parameters]
        rows = [gradient.reshape(1, -1) for gradient in self._gradients]
        self.method.exchange(positions, rows)
        for gradient, row in zip(self._gradients, rows, strict=True):
            if gradient.data_ptr() != row.data_ptr():  # channels last: the row is a copy
                gradient.copy_(row.view_as(gradient))
        for future, buffer in self._promises:
            future.set_result(buffer)
        self._parameters, self._gradients, self._promises = [], [], []


def _shaped_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Returns the gradient with its entries where they belong in the parameter.

    DDP lays a bucket out in the *memory* order of its parameters but reads it back in index order,
    which for channels-last parameters is another one.
    """
    if parameter.is_contiguous() or torch.empty_like(parameter).stride() != parameter.stride():
        return gradient
    return gradient.as_strided(parameter.size(), parameter.stride(), gradient.storage_offset())


def bucket_hook(state: BucketExchange, bucket: dist.GradBucket) -> Future[Tensor]:
    """The communication hook that is registered with DDP."""
    return state.receive(bucket)
