"""Deep Gradient Compression (Lin, Han, Mao, Wang, Dally, ICLR 2018, arXiv 1712.01887).

Shapes: N workers in all, K of them local, n entries of one tensor, M picks per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from repro.errors import UserError
from repro.internals import foreach_add_, foreach_mul, foreach_mul_, foreach_norm
from repro.knobs import Count, Fraction, Known, Natural, NonNegative, Positive, Share, checked
from repro.methods.dgc.data_parallel import DataParallel
from repro.methods.dgc.encoding import ENCODINGS, make_encoding
from repro.methods.dgc.memory import ErrorFeedbackMemory, MemoryMode, MomentumBuffer
from repro.methods.dgc.schedule import Densities, density_schedule
from repro.methods.dgc.selection import make_selector
from repro.toolbox.method import OptimizerFactory


class DeepGradientCompression(DataParallel):
    """Sends the largest accumulated velocities, keeps the rest (Lin et al., algorithm 4).

    Every worker k, for every compressed tensor:

    1. ``g`` is the worker's share of the mean gradient. With clipping,
       ``g *= min(1, N^-1/2 clip_norm / ||g||)``, before anything is accumulated.
    2. Momentum correction: ``U = m U + g ; V = V + U`` (Nesterov: ``U = m (U + g) ;
       V = V + U + g``).
    3. The ``ceil(n * density)`` largest entries of V are sent.
    4. They are reset in V and, by momentum factor masking, in U.

    The receiver adds all messages up and takes a *plain* SGD step: the momentum lives in U.
    `optimizer` sees to that, so `momentum`, `nesterov` and `weight_decay` are knobs of this class.

    What stays dense: tensors of fewer than `min_dims` dimensions (biases, normalisation), and
    everything while the density is 1. Their gradients are averaged and then go through an
    ordinary momentum buffer shared by all workers. (Sending everything through the masked path
    would wipe U at every step, which is SGD without momentum.) When the density falls below 1,
    each worker's U starts as its N-th part of that buffer.

    Weight decay is added outside the compression, through a dense momentum buffer of its own, as
    in the authors' code: ``B = m B + wd w``.

    With ``velocity_correction=False`` the gradient itself is accumulated and the receiver has the
    momentum: gradient dropping (Aji & Heafield 2017).

    Clipping by the norm of the worker's whole gradient makes DDP wait for the last bucket before
    it exchanges the first.

    Args:
        ratio: target density r, in (0, 1]; 1 switches compression off.
        momentum: m, in [0, 1).
        nesterov: Nesterov momentum instead of heavy ball.
        weight_decay: L2 coefficient.
        masking: momentum factor masking.
        velocity_correction: momentum correction; False is gradient dropping.
        clip_norm: global threshold of the gradient norm, or None. The factor ``N^-1/2`` is applied
            inside.
        selector: exact, sampled, sampled_official or random.
        sample_ratio: part of a tensor that sampling selectors look at.
        warmup_epochs: see `density_schedule`.
        warmup_densities: see `density_schedule`.
        min_dims: least number of dimensions of a compressed tensor.
        encoding: paper_6B, fp32_int64 or fp16_int32.
        workers: number of simulated workers; under DDP the processes are the workers.
        seed: seed of sampling.

    Raises:
        UserError: a knob is out of range.
    """

    METRICS: ClassVar = {
        "comm/waiting_steps": "steps that gradient mass waits before it is sent",
        "comm/unsent_over_gradient": "norm of what is unsent over that of the gradient",
    }

    @checked
    def __init__(
        self,
        ratio: Share = 0.001,
        momentum: Fraction = 0.9,
        nesterov: bool = False,
        weight_decay: NonNegative = 0.0,
        masking: bool = True,
        velocity_correction: bool = True,
        clip_norm: Positive | None = None,
        selector: Literal["exact", "sampled", "sampled_official", "random"] = "exact",
        sample_ratio: Share = 0.01,
        warmup_epochs: Natural = 4,
        warmup_densities: Densities = "paper",
        min_dims: Natural = 2,
        encoding: Annotated[str, Known(tuple(ENCODINGS))] = "paper_6B",
        workers: Count = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(workers, min_dims, seed)
        if nesterov and momentum == 0:
            raise UserError("method.nesterov needs a momentum above 0.")
        self.densities = density_schedule(ratio, warmup_epochs, warmup_densities)
        self.density = self.densities[0]
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.velocity_correction = velocity_correction
        self.clip_norm = clip_norm
        self.needs_whole_gradient = clip_norm is not None
        self.selector = make_selector(selector, sample_ratio)
        self.encoding = make_encoding(encoding)

        # The momentum is either in these memories or at the receiver, never in both.
        local_momentum = momentum if velocity_correction else 0.0
        mode: MemoryMode = "gradient"  # without momentum U = g: nothing to remember
        if local_momentum > 0:
            mode = "nesterov" if nesterov else "velocity"
        self.memory = ErrorFeedbackMemory(mode, local_momentum, masking)
        self.dense_momentum = MomentumBuffer(local_momentum, nesterov)
        self.decay_momentum = MomentumBuffer(local_momentum, nesterov)

        self._loaded_memory: dict[str, dict[str, Tensor]] | None = None
        self._loaded_workers = workers
        self._start_sums()

    # ---------------------------------------------------------------- joining model and loop

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """Builds the receiver: plain SGD, or SGD with momentum without velocity correction.

        Raises:
            UserError: the factory takes no momentum, so it does not build SGD.
        """
        receiver: dict[str, float | bool] = {"momentum": 0, "nesterov": False, "weight_decay": 0}
        if not self.velocity_correction:
            receiver = {
                "momentum": self.momentum,
                "nesterov": self.nesterov,
                "weight_decay": self.weight_decay,
            }
        try:
            return factory(model.parameters(), **receiver)
        except TypeError as error:
            raise UserError(
                f"Gradient compression corrects the momentum of SGD; use optimizer=sgd ({error})."
            ) from error

    def start_epoch(self, epoch: int) -> None:
        """Sets the density of the epoch."""
        super().start_epoch(epoch)
        self.density = self.densities[min(epoch, len(self.densities) - 1)]

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
        """Does nothing: workers clip before accumulation, by the knob ``clip_norm``."""

    # ---------------------------------------------------------------- one step

    def exchange(self, tensors: Sequence[int], grads_Kn: Sequence[Tensor]) -> None:
        """See `DataParallel.exchange`."""
        self._place_loaded_memory()
        if self.clip_norm is not None:
            self._clip_locally(grads_Kn)
        sparse: list[tuple[int, Tensor]] = []
        dense: list[tuple[int, Tensor]] = []
        for tensor, grad_Kn in zip(tensors, grads_Kn, strict=True):
            compress = self.density < 1 and self.compressible(tensor)
            (sparse if compress else dense).append((tensor, grad_Kn))
        if dense:
            self._exchange_dense([i for i, _ in dense], [grad_Kn for _, grad_Kn in dense])
        if sparse:
            self._exchange_sparse([i for i, _ in sparse], [grad_Kn for _, grad_Kn in sparse])

    def _clip_locally(self, grads_Kn: Sequence[Tensor]) -> None:
        """Clips each worker's gradient to ``N^-1/2 clip_norm`` (section 3.2)."""
        assert self.clip_norm is not None
        norms_TK = torch.stack([torch.linalg.vector_norm(grad, dim=1) for grad in grads_Kn])
        threshold = self.clip_norm / self.cluster.size**0.5
        scale_K = (threshold / torch.linalg.vector_norm(norms_TK, dim=0)).clamp_(max=1)
        foreach_mul_(list(grads_Kn), [scale_K[:, None]] * len(grads_Kn))

    def _exchange_dense(self, tensors: list[int], grads_Kn: list[Tensor]) -> None:
        for grad_Kn in grads_Kn if self.encoding.value_bytes == 2 else ():
            grad_Kn.copy_(self.encoding.rounded(grad_Kn))
        self.cluster.sum_(grads_Kn)
        self.dense_momentum.apply_(
            [self.names[i] for i in tensors], [grad_Kn[0] for grad_Kn in grads_Kn]
        )
        for i, grad_Kn in zip(tensors, grads_Kn, strict=True):
            self._book_dense(i, grad_Kn.numel(), self.encoding.value_bytes)

    def _exchange_sparse(self, tensors: list[int], grads_Kn: list[Tensor]) -> None:
        names = [self.names[i] for i in tensors]
        for name in names:
            if (velocity_n := self.dense_momentum.pop(name)) is not None:
                share_n = velocity_n / self.cluster.size
                self.memory.start_from(name, share_n.repeat(self.cluster.rows, 1))
        self._gradient_square += torch.stack(foreach_norm(grads_Kn)).square_().sum()

        picks, values_KM = [], []
        unsent_Kn = self.memory.accumulate(names, grads_Kn)
        for i, name, v_Kn in zip(tensors, names, unsent_Kn, strict=True):
            pick = self.selector(v_Kn, self.density, self.key(i))
            picks.append(pick)
            values_KM.append(pick.values(v_Kn))
            self.memory.release(name, pick.index)
            self.ledger.book(
                entries=sum(pick.counts),
                sparse_bytes=self.encoding.sparse_bytes(pick, v_Kn.shape[1]),
            )
        self._sent_magnitude += torch.stack(foreach_norm(values_KM, 1)).sum()

        values_KM = [self.encoding.rounded(values) for values in values_KM]
        messages = self.cluster.gather(picks, values_KM, self.selector.even)
        for grad_Kn, (index_NM, values_NM) in zip(grads_Kn, messages, strict=True):
            grad_Kn[0].zero_().scatter_add_(0, index_NM.reshape(-1), values_NM.reshape(-1))

    @override
    def before_step(self, model: nn.Module) -> None:
        """Adds weight decay, with its own momentum; the receiver does it in gradient dropping."""
        if self.weight_decay == 0 or not self.velocity_correction:
            return
        moving = [
            (name, p, p.grad)
            for name, p in zip(self.names, self.parameters, strict=True)
            if p.grad is not None
        ]
        names, weights, grads = zip(*moving, strict=True)
        with torch.no_grad():
            decay = foreach_mul(weights, self.weight_decay)
            self.decay_momentum.apply_(names, decay)
            foreach_add_(grads, decay)

    def end_step(self) -> None:
        """See `DataParallel.end_step`."""
        super().end_step()
        self._epoch_steps += 1

    # ---------------------------------------------------------------- reporting and resuming

    def forget_epoch(self) -> None:
        """See `DataParallel.forget_epoch`."""
        super().forget_epoch()
        self._start_sums()

    def _start_sums(self) -> None:
        device = self.parameters[0].device if self.parameters else None
        self._epoch_steps = 0
        self._gradient_square = torch.zeros((), device=device)
        self._sent_magnitude = torch.zeros((), device=device)

    def metrics(self) -> dict[str, float]:
        """Returns the ledger's summary and two signs of staleness.

        * ``comm/waiting_steps``: how long gradient mass waits before it is sent, by Little's law:
          ``||V||_1`` divided by the mean L1 norm sent per step.
        * ``comm/unsent_over_gradient``: ``||V||_2`` divided by the epoch's root mean square of
          ``||g||_2``. Growth without bound is the early sign of collapse.

        Both look at the compressed tensors of the local workers and are missing while there are
        none.
        """
        metrics = super().metrics()
        unsent = list(self.memory.unsent.values())
        if unsent and self._epoch_steps:
            v1 = torch.stack(foreach_norm(unsent, 1)).sum()
            v2 = torch.stack(foreach_norm(unsent)).square().sum().sqrt()
            g2 = (self._gradient_square / self._epoch_steps).sqrt()
            metrics["comm/waiting_steps"] = float(v1 * self._epoch_steps / self._sent_magnitude)
            metrics["comm/unsent_over_gradient"] = float(v2 / g2)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs to continue bit for bit.

        The memories hold one row per worker, whichever back end wrote them: a run of four
        simulated workers can continue on four processes. Under DDP this is a collective call, to
        be made by all ranks; rank 0 gets the rows of all of them, the others an empty memory, so
        the state to keep is rank 0's. The epoch's sums behind `metrics` are rank 0's own.
        """
        return {
            **super().state_dict(),
            "workers": self.cluster.size,
            "density": self.density,
            "memory": self._loaded_memory or self._memory_of_all_workers(),
            "dense_momentum": self.dense_momentum.state_dict(),
            "decay_momentum": self.decay_momentum.state_dict(),
            "epoch_steps": self._epoch_steps,
            "gradient_square": self._gradient_square.clone(),
            "sent_magnitude": self._sent_magnitude.clone(),
        }

    def _memory_of_all_workers(self) -> dict[str, dict[str, Tensor]]:
        # Sorted: every rank must meet in the same collective call.
        collected = {
            kind: {name: self.cluster.collect(rows[name]) for name in sorted(rows)}
            for kind, rows in (
                ("velocity", self.memory.velocity),
                ("unsent", self.memory.unsent),
            )
        }
        return {
            kind: {name: rows for name, rows in of_kind.items() if rows is not None}
            for kind, of_kind in collected.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; call it after `attach`."""
        super().load_state_dict(state)
        device = self.parameters[0].device
        self.density = state["density"]
        self.dense_momentum.load_state_dict(state["dense_momentum"], device)
        self.decay_momentum.load_state_dict(state["decay_momentum"], device)
        self._epoch_steps = state["epoch_steps"]
        self._gradient_square = state["gradient_square"].to(device, copy=True)
        self._sent_magnitude = state["sent_magnitude"].to(device, copy=True)
        # Which rows are ours is known for sure at the first step: `register` may come later.
        self._loaded_memory = state["memory"]
        self._loaded_workers = state["workers"]

    def _place_loaded_memory(self) -> None:
        if self._loaded_memory is None:
            return
        cluster = self.cluster
        if self._loaded_workers != cluster.size:
            raise UserError(
                f"The checkpoint holds the memories of {self._loaded_workers} workers; "
                f"this run has {cluster.size}. Resume with the same number."
            )
        mine = slice(cluster.first, cluster.first + cluster.rows)
        self.memory.load_state_dict(
            {
                kind: {name: rows[mine] for name, rows in of_kind.items()}
                for kind, of_kind in self._loaded_memory.items()
            },
            self.parameters[0].device,
        )
        self._loaded_memory = None
