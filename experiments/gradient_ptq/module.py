"""Quantises a trained network on a few calibration examples, and compares it with the float one."""

from __future__ import annotations

import statistics
from typing import ClassVar

from torch import Tensor, nn

from repro.errors import UserError
from repro.methods.gradient_ptq import PostTrainingQuantization, Recipe
from repro.toolbox.reconstruction import Report
from repro.training.compression import Compression, Protocol


class Quantized(Compression):
    """One training step quantises one unit; evaluation compares with the float network.

    Args:
        model: the network.
        method: how to quantise it.
        protocol: what it is calibrated and compared on.
        task: ``classification`` or ``language``.

    Raises:
        UserError: a method that is no recipe for quantisation.
    """

    METRICS: ClassVar = {
        "bits/average": "per weight, scales included",
        "undecided": "share of roundings that hardening changed visibly",
        "exponent": "of the method's weighting of gradients",
    }
    KEPT: ClassVar = ("done",)  # everything else is in the weights

    def __init__(
        self,
        model: nn.Module,
        method: Recipe,
        protocol: Protocol,
        task: str = "classification",
    ) -> None:
        super().__init__(model, protocol, task)
        if not isinstance(method, Recipe):
            raise UserError(
                f"gradient_ptq quantises trained networks: {type(method).__name__} is a method of "
                "training; use method=adaround, or one of the arms."
            )
        self.recipe = method
        self.done: list[tuple[float, float]] = []  # error and undecided share of each unit so far

    def compressor(self, x: Tensor, y: Tensor | None) -> PostTrainingQuantization:
        """What quantises the model."""
        return PostTrainingQuantization(self.model, self.recipe, x, y, self.protocol.seed)

    def reported(self, report: Report) -> None:
        """Keeps a unit's error and undecided share."""
        self.done.append((report.error, report.undecided))

    def on_test_epoch_end(self) -> None:
        """Logs the test measures, and what is known of the quantisation itself."""
        ptq = self.units
        assert isinstance(ptq, PostTrainingQuantization)
        super().on_test_epoch_end()
        errors, undecided = zip(*self.done, strict=True)
        units = len(ptq.units)
        self.log_dict(
            {
                "bits/average": ptq.average_bits(),
                "error/relative": statistics.fmean(errors[:units]),
                "undecided": statistics.fmean(undecided[:units]),
                "exponent": ptq.exponent,
            }
        )
