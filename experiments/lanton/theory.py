"""Matrices with a known optimum and known noise: the setting of the paper's bound, block C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import Count, NonNegative, Positive, checked
from repro.methods.lanton import Lanton
from repro.toolbox.lmo import Spectral
from repro.toolbox.method import Method
from repro.training.procedure import Procedure, ScheduleFactory


class NoisyMatrices(Procedure):
    """Minimises ``sum_l 0.5 ||X_l - X*_l||_F^2`` by gradients with noise ``sigma_l N(0, 1) / d``.

    The entries of X* are N(0, 1) / sqrt(d), and X starts at zero.

    Args:
        optimizer: called with parameter groups, returns a `repro.methods.lanton.Lanton`.
        schedule: called with the optimizer and the number of steps, returns a scheduler.
        method: must be the plain one: the optimizer is the method here.
        noise: sigma of each layer.
        width: d, rows and columns of a layer.
        loud_rate: what the rates of layers with more than the least noise are multiplied by.
        seed: of the optimum and the noise.

    Raises:
        UserError: another method or optimizer is chosen, or a knob is out of range.
    """

    METRICS: ClassVar = {
        "val/dual_norm": "mean over all steps of the sum of the layers' nuclear norms of the true"
        " gradient",
        "test/dual_norm": "the same",
        "test/objective": "the objective after the last step",
    }
    targets: Tensor
    KEPT = ("total", "done", "generator_state")

    @checked
    def __init__(
        self,
        optimizer: Any,
        schedule: ScheduleFactory,
        method: Method,
        noise: Sequence[NonNegative],
        width: Count = 12,
        loud_rate: Positive = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, schedule)
        if type(method) is not Method:
            raise UserError(
                "lanton's theory arms have an optimizer for a method: drop method=, set optimizer.…"
            )
        self.sigma = torch.tensor(list(noise))
        self.loud_rate = loud_rate
        generator = generator_for(seed)
        targets_LDD = torch.randn(len(noise), width, width, generator=generator)
        # Singular values of order 1, whatever the width.
        self.register_buffer("targets", targets_LDD / width**0.5)
        self.generator_state = generator.get_state()
        self.weights = nn.ParameterList(torch.zeros(width, width) for _ in noise)
        self.ball = Spectral("none", dual_method="exact")
        self.total, self.done = 0.0, 0

    def configure_optimizers(self) -> Any:
        """One group for each layer, so that it can have a rate of its own.

        Raises:
            UserError: the optimizer has no linear minimisation oracle.
        """
        assert self.optimizer_factory is not None
        loud = (self.sigma > self.sigma.min()).tolist()
        optimizer = self.optimizer_factory(
            [
                {"params": [x], "role": "hidden", "scale": self.loud_rate if is_loud else 1.0}
                for x, is_loud in zip(self.weights, loud, strict=True)
            ]
        )
        if not isinstance(optimizer, Lanton):
            raise UserError("lanton's theory arms need optimizer=lanton.")
        return self.scheduled(optimizer)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One update by the noisy gradient."""
        optimizer: Any = self.optimizers()
        lanton: Lanton = optimizer.optimizer
        generator = torch.Generator()
        generator.set_state(self.generator_state.cpu())
        gradient_LDD = torch.stack(list(self.weights)).detach() - self.targets
        self.total += float(self.ball.dual(gradient_LDD).sum())
        self.done += 1
        if lanton.noise == "independent":
            self._set(gradient_LDD + self._noise(generator))
            lanton.keep_reference()
        self._set(gradient_LDD + self._noise(generator))
        self.generator_state = generator.get_state()
        self.tick()
        return {"loss": 0.5 * gradient_LDD.square().sum()}

    def _noise(self, generator: torch.Generator) -> Tensor:
        draws = torch.randn(self.targets.shape, generator=generator).to(self.device)
        return draws * (self.sigma.to(self.device) / draws.shape[-1]).view(-1, 1, 1)

    def _set(self, gradient_LDD: Tensor) -> None:
        for weight, gradient in zip(self.weights, gradient_LDD, strict=True):
            weight.grad = gradient

    def on_validation_epoch_end(self) -> None:
        """Logs the mean so far."""
        self.log("val/dual_norm", self.total / max(1, self.done))

    def on_test_epoch_end(self) -> None:
        """Logs the mean over training, and where it ended."""
        self.log("test/dual_norm", self.total / max(1, self.done))
        gap_LDD = torch.stack(list(self.weights)) - self.targets
        self.log("test/objective", 0.5 * gap_LDD.square().sum())
