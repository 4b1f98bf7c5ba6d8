"""Writing metrics.csv: whole at any time, without rows a resumed run repeats."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from repro.records import files
from repro.records.series import KEYS, read_series, rows_of
from repro.training.pace import pause_after

SECONDS_BETWEEN_WRITES = 1.0


class CsvLogger(Logger):
    """Keeps rows in memory and writes the file as a whole, which is atomic and costs little.

    Args:
        file: where to write.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self.written_at = -math.inf
        self.pause = SECONDS_BETWEEN_WRITES

    @property
    def name(self) -> str:
        """The logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one version: the run directory."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds values to the row of ``step``."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Writes all rows if that has not been done lately: Lightning asks after every row.

        The disk is not waited for, because checkpoints hold the rows as well.
        """
        now = time.monotonic()
        if now - self.written_at >= self.pause:
            self.write(durable=False)
            self.pause = pause_after(time.monotonic() - now, SECONDS_BETWEEN_WRITES)

    @rank_zero_only
    def write(self, durable: bool = True) -> None:
        """Writes all rows."""
        self.written_at = time.monotonic()
        files.write_text(self.file, self.text(), durable)

    def text(self) -> str:
        """All rows, as the file holds them."""
        columns = dict.fromkeys(KEYS) | dict.fromkeys(key for row in self.rows for key in row)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return buffer.getvalue()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes all rows at the end."""
        self.write()

    def continue_from(self, text: str | None, step: int) -> None:
        """Takes over the rows of an earlier part of the run, up to ``step``.

        Args:
            text: what `text` gave then; None, of an earlier version: the file's rows.
            step: updates done then.
        """
        rows = read_series(self.file) if text is None else list(rows_of(io.StringIO(text)))
        self.rows = [row for row in rows if row["step"] <= step]
