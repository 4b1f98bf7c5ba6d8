"""What the rehearsal of a run measured, as rehearsal.json in its directory keeps it."""

from __future__ import annotations

from repro.records import names
from repro.records.run import Run
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
