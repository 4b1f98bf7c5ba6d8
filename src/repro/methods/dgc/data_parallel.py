"""Synchronous data-parallel training over simulated or real workers, with counted bytes.

Shapes: N workers in all, K of them local, n entries of one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from repro.errors import UserError
from repro.internals import foreach_copy_
from repro.knobs import Count, Natural, checked
from repro.methods.dgc.cluster import Cluster, ProcessCluster, SimulatedCluster
from repro.methods.dgc.ddp_hook import BucketExchange, bucket_hook
from repro.methods.dgc.ledger import CommLedger
from repro.methods.dgc.random_key import RandomKey
from repro.toolbox.method import Batch, LossOf, Method


class DataParallel(Method):
    """Workers average their gradients exactly: the uncompressed baseline, and the base of others.

    Worker k contributes ``g_k = (1/N) *`` its mean gradient, so that a *sum* over workers is the
    mean gradient. Two back ends give the same numbers:

    * **Simulated** (default): `backward` splits the batch into N parts along its first dimension
      and runs them one after another. A batch that N does not divide gives parts that differ by
      one sample, weighted by their size: their sum is still the mean gradient of the batch.
      BatchNorm normalises each part by itself, as separate workers would; its running statistics
      see all parts in turn.
    * **Real**: after `register`, one process per worker. `backward` is then an ordinary backward
      pass over the process's own batch; DDP's communication hook does the exchange. BatchNorm's
      running statistics are rank 0's (DDP broadcasts buffers).

    Gradients must not carry a loss scale (fp16 with a gradient scaler): memories, thresholds and
    clipping would mix scales. Use fp32 or bf16.

    Args:
        workers: number of simulated workers; under DDP the processes are the workers.
        min_dims: tensors with at least this many dimensions count as compressible.
        seed: seed of everything random.
    """

    METRICS: ClassVar = {
        f"comm/{of_run}{name}": meaning
        for of_run in ("", "run_")  # of the last epoch, of the whole run
        for name, meaning in {
            "bytes_per_step": "bytes that a worker sends per step",
            "sparse_bytes_per_step": "of them those of compressed tensors",
            "dense_bytes_per_step": "of them those of dense tensors",
            "density": "part of the compressed entries that is sent",
            "ratio_by_count": "entries of the compressed tensors over those sent",
            "ratio_by_bytes": "their bytes in fp32 over those sent",
            "ratio_whole_model": "bytes of the whole dense gradient over those sent",
        }.items()
    }

    needs_whole_gradient = False
    """Whether `exchange` must see all tensors of a step in one call."""

    @checked
    def __init__(self, workers: Count = 4, min_dims: Natural = 2, seed: int = 0) -> None:
        self.workers = workers
        self.min_dims = min_dims
        self.seed = seed
        self.step = 0
        self.epoch = -1
        self.cluster: Cluster = SimulatedCluster(workers)
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self.position: dict[Tensor, int] = {}
        self._buffers_Kn: list[Tensor] = []
        self._registered = False

    # ---------------------------------------------------------------- joining model and loop

    def attach(self, model: nn.Module) -> None:
        """Learns the model's trainable tensors.

        Raises:
            UserError: the model has none.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise UserError("The model has no trainable parameters to exchange gradients of.")
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.position = {p: i for i, p in enumerate(self.parameters)}
        self._buffers_Kn = []
        self._open_ledger()

    def register(self, ddp_model: nn.Module) -> None:
        """Switches to real workers: one per process of the default process group.

        Call it after `attach`, on every rank, before the first step.

        Args:
            ddp_model: the attached model wrapped in ``DistributedDataParallel``.

        Raises:
            UserError: the model is not wrapped in DDP.
        """
        if not isinstance(ddp_model, nn.parallel.DistributedDataParallel):
            raise UserError(
                f"Gradient exchange needs DistributedDataParallel, not {type(ddp_model).__name__}: "
                "use a ddp strategy or a single process."
            )
        self.cluster = ProcessCluster()
        self._registered = True
        self._open_ledger()
        ddp_model.register_comm_hook(BucketExchange(self), bucket_hook)

    def _open_ledger(self) -> None:
        sizes = [p.numel() for p in self.parameters]
        compressible = sum(s for i, s in enumerate(sizes) if self.compressible(i))
        self.ledger = CommLedger(compressible, sum(sizes) - compressible, self.cluster.rows)

    def compressible(self, tensor: int) -> bool:
        """Whether the tensor at this position has enough dimensions to be compressed."""
        return self.parameters[tensor].dim() >= self.min_dims

    def start_epoch(self, epoch: int) -> None:
        """Starts the epoch's page of the ledger, unless the run was resumed within the epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.forget_epoch()

    def forget_epoch(self) -> None:
        """Clears what `metrics` reports about the current epoch."""
        self.ledger.start_epoch()

    # ---------------------------------------------------------------- one step

    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Runs every local worker and leaves the exchanged gradient in ``.grad``.

        See `Method.backward` for the arguments.

        Raises:
            UserError: several processes run, but `register` was not called.
        """
        if self._registered:
            return super().backward(loss_of, batch, backward)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError(
                "Several processes train this model, but method.register(ddp_model) was not called."
            )
        samples = batch[0].shape[0]
        buffers_Kn = self._rows_of_gradients()
        parts = zip(*(tensor.tensor_split(self.workers) for tensor in batch), strict=True)
        losses = []
        # A batch whose tensors have names keeps them.
        kind = getattr(type(batch), "_make", tuple)
        for worker, part in enumerate(map(kind, parts)):
            share = part[0].shape[0] / samples
            for parameter in self.parameters:
                parameter.grad = None
            if share > 0:
                loss = loss_of(part) * share
                backward(loss)
                losses.append(loss.detach())
            self._keep_gradients(buffers_Kn, worker)
        with torch.no_grad():
            self.exchange(range(len(self.parameters)), buffers_Kn)
        for parameter, buffer_Kn in zip(self.parameters, buffers_Kn, strict=True):
            parameter.grad = buffer_Kn[0].view_as(parameter)
        self.end_step()
        return torch.stack(losses).sum()

    def _rows_of_gradients(self) -> list[Tensor]:
        """Returns one buffer [K, n] per parameter; they are reused from step to step."""
        if not self._buffers_Kn or self._buffers_Kn[0].device != self.parameters[0].device:
            self._buffers_Kn = [p.new_empty(self.workers, p.numel()) for p in self.parameters]
        return self._buffers_Kn

    def _keep_gradients(self, buffers_Kn: Sequence[Tensor], worker: int) -> None:
        rows, gradients = [], []
        for parameter, buffer_Kn in zip(self.parameters, buffers_Kn, strict=True):
            row = buffer_Kn[worker].view_as(parameter)
            if parameter.grad is None:  # an unused parameter, or a worker without samples
                row.zero_()
            else:
                rows.append(row)
                gradients.append(parameter.grad)
        if rows:
            foreach_copy_(rows, gradients)

    def exchange(self, tensors: Sequence[int], grads_Kn: Sequence[Tensor]) -> None:
        """Turns the local workers' gradients into what the optimizer gets.

        Args:
            tensors: positions of the tensors in the model. A step may come in several calls, in
                any order of tensors.
            grads_Kn: their gradients, each of shape [K, n] and already divided by N. They are
                used up; row 0 receives the result.
        """
        self.cluster.sum_(grads_Kn)
        for i, grad_Kn in zip(tensors, grads_Kn, strict=True):
            self._book_dense(i, grad_Kn.numel(), value_bytes=4)

    def _book_dense(self, tensor: int, entries: int, value_bytes: int) -> None:
        if self.compressible(tensor):
            self.ledger.book(entries=entries, sparse_bytes=value_bytes * entries)
        else:
            self.ledger.book(dense_bytes=value_bytes * entries)

    def end_step(self) -> None:
        """Called once when all tensors of a step have been exchanged."""
        self.ledger.book(steps=1)
        self.step += 1

    def key(self, tensor: int) -> RandomKey:
        """Names this step's random draw for a tensor."""
        return RandomKey(self.seed, self.step, tensor, self.cluster.first)

    # ---------------------------------------------------------------- reporting and resuming

    def metrics(self) -> dict[str, float]:
        """Returns the ledger's summary as ``comm/...``; under DDP, this rank's own messages."""
        return {f"comm/{name}": value for name, value in self.ledger.summary().items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the step count and the ledger; randomness needs no more."""
        return {"step": self.step, "epoch": self.epoch, "ledger": self.ledger.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; call it after `attach`."""
        self.step = state["step"]
        self.epoch = state["epoch"]
        self.ledger.load_state_dict(state["ledger"])
