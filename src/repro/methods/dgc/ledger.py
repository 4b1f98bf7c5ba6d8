"""Counted bytes, the ratios that follow from them, and a model of what they cost in time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_COUNTS = ("steps", "entries", "sparse_bytes", "dense_bytes")


class CommLedger:
    """What the workers sent, per step and over the run.

    Two kinds of tensors are counted apart: *compressible* ones (which a dense exchange would send
    whole at 4 bytes per entry) and those that always go dense (biases, normalisation). Amounts
    may be tensors: they are added up on their device and read only by `summary` and `state_dict`.

    Args:
        compressible: number of entries of the compressible tensors, per worker.
        always_dense: number of entries of the other tensors.
        workers: how many workers' messages are booked here; results are means over them.
    """

    def __init__(self, compressible: int, always_dense: int, workers: int) -> None:
        self.compressible = compressible
        self.always_dense = always_dense
        self.workers = workers
        self._epoch: dict[str, int | Tensor] = dict.fromkeys(_COUNTS, 0)
        self._run: dict[str, int | Tensor] = dict.fromkeys(_COUNTS, 0)

    def book(
        self,
        *,
        entries: int = 0,
        sparse_bytes: int | Tensor = 0,
        dense_bytes: int = 0,
        steps: int = 0,
    ) -> None:
        """Adds what all workers sent together.

        Args:
            entries: entries sent of compressible tensors.
            sparse_bytes: bytes sent of compressible tensors.
            dense_bytes: bytes sent of always-dense tensors.
            steps: finished steps.
        """
        amounts = (steps, entries, sparse_bytes, dense_bytes)
        for book in (self._epoch, self._run):
            for name, amount in zip(_COUNTS, amounts, strict=True):
                book[name] = book[name] + amount

    def start_epoch(self) -> None:
        """Opens a new page; the run's totals go on."""
        self._epoch = dict.fromkeys(_COUNTS, 0)

    def summary(self) -> dict[str, float]:
        """Returns bytes per step and worker, densities and compression ratios.

        Ratios compare with sending the same tensors dense in fp32: ``ratio_by_count`` and
        ``ratio_by_bytes`` look at the compressible tensors, ``ratio_whole_model`` at everything.
        Names starting with ``run_`` average over the run, the others over the epoch. Empty before
        the first step.
        """
        return {
            **self._page(self._epoch, prefix=""),
            **self._page(self._run, prefix="run_"),
        }

    def _page(self, book: dict[str, int | Tensor], prefix: str) -> dict[str, float]:
        steps, entries, sparse, dense = (float(book[name]) for name in _COUNTS)
        if steps == 0:
            return {}
        messages = steps * self.workers
        total = self.compressible + self.always_dense
        page = {
            "bytes_per_step": (sparse + dense) / messages,
            "sparse_bytes_per_step": sparse / messages,
            "dense_bytes_per_step": dense / messages,
            "ratio_whole_model": 4 * total * messages / (sparse + dense),
        }
        if entries:
            sendable = self.compressible * messages
            page["ratio_by_count"] = sendable / entries
            page["ratio_by_bytes"] = 4 * sendable / sparse
            page["density"] = entries / sendable
        return {prefix + name: value for name, value in page.items()}

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Returns all counts as integers."""
        return {
            "epoch": {name: int(count) for name, count in self._epoch.items()},
            "run": {name: int(count) for name, count in self._run.items()},
        }

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        """Restores what `state_dict` returned."""
        self._epoch = dict(state["epoch"])
        self._run = dict(state["run"])


@dataclass(frozen=True)
class NetworkModel:
    """A latency and bandwidth model of the network. What it yields is *modelled*, not measured.

    Both collectives run over a ring of N workers:

    * all-gather of B bytes each: ``(N-1) (latency + B / bandwidth)``;
    * all-reduce of B bytes: ``2 (N-1) (latency + B / (N bandwidth))``.

    Attributes:
        latency: seconds per message, >= 0.
        bandwidth: bytes per second and link, > 0.
    """

    latency: float = 50e-6
    bandwidth: float = 125e6

    def all_gather_seconds(self, workers: int, nbytes: float) -> float:
        """Returns the time in which every worker gets every other worker's message."""
        return (workers - 1) * (self.latency + nbytes / self.bandwidth)

    def all_reduce_seconds(self, workers: int, nbytes: float) -> float:
        """Returns the time in which every worker gets the sum of all workers' tensors."""
        return 2 * (workers - 1) * (self.latency + nbytes / (workers * self.bandwidth))

    def speed_up(
        self, workers: int, compute_seconds: float, sparse_bytes: float, dense_bytes: float
    ) -> float:
        """Returns the modelled speed-up of N workers over one at the same batch per worker.

        ``N c / (c + all_gather(sparse_bytes) + all_reduce(dense_bytes))``, where a part without
        bytes sends no message, and nothing is hidden behind the computation.

        Args:
            workers: N, at least 1.
            compute_seconds: c, the time of one worker's forward and backward pass.
            sparse_bytes: bytes per worker and step that are gathered.
            dense_bytes: bytes per worker and step that are reduced.
        """
        seconds = compute_seconds
        if sparse_bytes:
            seconds += self.all_gather_seconds(workers, sparse_bytes)
        if dense_bytes:
            seconds += self.all_reduce_seconds(workers, dense_bytes)
        return workers * compute_seconds / seconds
