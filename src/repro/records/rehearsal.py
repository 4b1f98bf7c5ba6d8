"""What the rehearsal of a run measured, as rehearsal.json in its directory keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from repro.errors import ReproError
from repro.records import names
from repro.records.papers import Paper
from repro.records.run import Run
from repro.records.study import Study
from repro.records.typed import Record, read_record, write_record


class Rehearsal(Record):
    """The content of rehearsal.json; what could not be measured is null."""

    device: str  # its name, or that of the processor
    devices: int  # that trained together
    precision: str
    parameters: int  # numbers that are trained or kept with the model
    steps: int  # that were made
    resumed: bool  # whether the last of them went on from a checkpoint
    step_ms: float | None = None  # median of a step after warm-up
    wait_ms: float = 0.0  # median time that a step waited for its batch
    eval_ms: float | None = None  # median of a batch that is only measured
    samples: int | None = None  # of a step, on all devices together
    loader_samples_per_second: float | None = None  # of the loader alone, on one process
    flops_per_step: int | None = None  # of one device
    peak_flops: float | None = None  # operations a second that the device can do at most
    step_memory_mb: float | None = None  # peak of all tensors in a step, weights included
    device_memory_mb: float | None = None  # peak on the accelerator
    device_capacity_mb: float | None = None
    host_memory_mb: float | None = None
    checkpoint_bytes: int = 0  # the last and the best together
    total_steps: int | None = None  # of the whole run
    eval_batches: int = 0  # of all validations and the test of the whole run

    @property
    def is_cut(self) -> bool:
        """Whether the whole run has more steps than were made."""
        return self.total_steps is None or self.steps < self.total_steps

    @property
    def samples_per_second(self) -> float | None:
        """Of all devices together, the wait for batches included."""
        if self.step_ms is None or self.samples is None:
            return None
        return 1e3 * self.samples / (self.step_ms + self.wait_ms)

    @property
    def flops_per_second(self) -> float | None:
        """Of one device while it computes."""
        if not self.step_ms or self.flops_per_step is None:
            return None
        return 1e3 * self.flops_per_step / self.step_ms

    @property
    def share_of_peak(self) -> float | None:
        """What the device reaches of what it can do at most."""
        rate = self.flops_per_second
        return None if rate is None or self.peak_flops is None else rate / self.peak_flops

    @property
    def memory_mb(self) -> float | None:
        """Peak on the accelerator; on a CPU that of all tensors in a step."""
        return self.device_memory_mb or self.step_memory_mb

    @property
    def hours(self) -> float | None:
        """Of the whole run, as far as it consists of steps and measured batches."""
        if self.step_ms is None or self.total_steps is None:
            return None
        training = self.total_steps * (self.step_ms + self.wait_ms)
        return (training + self.eval_batches * (self.eval_ms or 0.0)) / 3.6e6


def rehearsal_of(run: Run) -> Rehearsal | None:
    """What was measured; None if the run did not come so far."""
    file = run.folder / names.REHEARSAL
    return read_record(Rehearsal, file) if file.is_file() else None


def keep_rehearsal(run: Run, measured: Rehearsal) -> None:
    """Writes rehearsal.json."""
    write_record(run.folder / names.REHEARSAL, measured)


@dataclass(frozen=True)
class Cost:
    """What a whole study would take, by the rehearsal of its arms.

    Attributes:
        arms: that were rehearsed.
        seeds: of each.
        hours: of all arms and seeds, one after the other.
        devices: that one run trains on.
        device: the name of one.
        memory_mb: peak of the largest arm on one device; None if no arm tells.
        host_mb: likewise of the process beside it.
        disk_bytes: of all checkpoints.
    """

    arms: int
    seeds: int
    hours: float
    devices: int
    device: str
    memory_mb: float | None
    host_mb: float | None
    disk_bytes: int

    @property
    def sentence(self) -> str:
        """All of it, to print."""
        sizes = {"of memory": self.memory_mb, "on the host": self.host_mb}
        peaks = [f"{mb / 1e3:.3g} GB {where}" for where, mb in sizes.items() if mb is not None]
        memory = f" with {' and '.join(peaks)}" if peaks else ""
        return (
            f"{self.seeds} seed{'s' * (self.seeds != 1)} of {self.arms} "
            f"arm{'s' * (self.arms != 1)}: {self.hours:.3g} hours on {self.devices} × "
            f"{self.device}{memory}, {self.disk_bytes / 1e9:.3g} GB of checkpoints."
        )


def cost(rehearsed: Study) -> Cost | None:
    """What the study would take of which this is the rehearsal; None if nothing was measured."""
    measured = [each for each in map(rehearsal_of, rehearsed.runs) if each is not None]
    if not measured:
        return None
    seeds = (rehearsed.about.rehearsal or {}).get("seeds", 1)
    return Cost(
        arms=len(rehearsed.runs),
        seeds=seeds,
        hours=seeds * sum(each.hours for each in measured if each.hours is not None),
        devices=max(each.devices for each in measured),
        device=measured[0].device,
        memory_mb=_largest(each.memory_mb for each in measured),
        host_mb=_largest(each.host_memory_mb for each in measured),
        disk_bytes=seeds * sum(each.checkpoint_bytes for each in measured),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def rehearsed_cost(paper: Paper, scale: str, outputs: Path) -> Cost | None:
    """What the newest rehearsal of a scale says; None if there is none."""
    for folder in sorted(outputs.glob(f"{paper.slug}/rehearsal/{scale}/*"), reverse=True):
        with suppress(ReproError):  # what is damaged says nothing
            found = cost(Study.open(folder))
            if found is not None:
                return found
    return None
