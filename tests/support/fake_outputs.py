"""Writes run directories as studies leave them, without running anything: thousands in a moment."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from repro.claims.outcomes import Verdict
from repro.claims.verdicts import CheckVerdict, ClaimVerdict, Paper
from repro.records.run import Run

EPOCHS = 30
COLUMNS = (
    "step",
    "epoch",
    "val/loss",
    "val/accuracy",
    "train/loss",
    "train/step_loss",
    "test/loss",
)
PADDING = {f"comm/count_{number}": 1000.0 + number for number in range(15)}  # papers log plenty
VERSIONS = {"python": "3.11.7", "repro": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6"}
CODE = {"sha256": "0123456789abcdef", "commit": "0123456789ab"}


def make_study(
    outputs: Path,
    paper: str = "dgc",
    scale: str = "mini",
    created: datetime = datetime(2026, 3, 1, 12),
    arms: Sequence[str] = ("dense", "dgc"),
    seeds: int = 3,
    verdicts: Sequence[ClaimVerdict] | None = None,
    **about: Any,
) -> Path:
    """Writes a finished study and returns its folder; ``about`` goes into study.json."""
    folder = outputs / paper / scale / created.strftime("%Y-%m-%d_%H-%M-%S")
    runs = [f"{arm}/seed={seed}" for arm in arms for seed in range(seeds)]
    for number, arm in enumerate(arms):
        for seed in range(seeds):
            _make_run(folder / arm / f"seed={seed}", paper, scale, arm, number, seed, created)
    study = {
        "paper": paper,
        "scale": scale,
        "typed": [f"paper={paper}", f"scale={scale}"],
        "is_grid": False,
        "notes": [],
        "created": created.astimezone().isoformat(timespec="seconds"),
        "code": CODE,
        "hydra": [],
        "layers": [runs],
    }
    (folder / "study.json").write_text(json.dumps({**study, **about}))
    given = verdicts if verdicts is not None else [claim("C1", Verdict.SUPPORTED)]
    (folder / "verdicts.json").write_text(json.dumps([each.to_dict() for each in given]))
    return folder


def claim(name: str, verdict: Verdict, statement: str = "It costs no accuracy.") -> ClaimVerdict:
    """A claim with one check and the verdict asked for."""
    check = CheckVerdict(
        relation="non_inferior",
        compared="dgc − dense, test/accuracy",
        claimed="≥ -1 %",
        verdict=verdict,
        effect=0.0083,
        low=-0.0021,
        high=0.0188,
        seeds=3,
        signed=True,
        percent=True,
        margin_because=None,
    )
    return ClaimVerdict(
        id=name,
        statement=statement,
        where="table 2",
        paper=Paper(value="93.87 against 93.75 %", setting="CIFAR-10", source="recalled"),
        verdict=verdict,
        checks=(check,),
    )


def update_json(file: Path, **changes: Any) -> None:
    """Merges changes into a JSON file, as somebody does who knows of its checksum."""
    content = {**json.loads(file.read_text()), **changes}
    content.pop("checksum", None)
    file.write_text(json.dumps(content))


def rewrite_config(run: Run, text: str) -> None:
    """Replaces a run's config.yaml, as somebody does who knows of its checksum."""
    run.config_file.write_text(text)
    update_json(run.record_file, checksums={})


def _make_run(
    folder: Path, paper: str, scale: str, arm: str, number: int, seed: int, created: datetime
) -> None:
    folder.mkdir(parents=True)
    noise = random.Random(f"{arm} {seed}")
    record = {
        "paper": paper,
        "scale": scale,
        "arm": arm,
        "seed": seed,
        "point": {},
        "parent": None,
        "code": CODE,
        "status": "finished",
        "created": created.astimezone().isoformat(timespec="seconds"),
        "ended": (created + timedelta(seconds=90)).astimezone().isoformat(timespec="seconds"),
        "error": None,
        "attempts": 1,
        "host": "machine",
        "pid": 1,
        "versions": VERSIONS,
        "hardware": {"cpu": "x86_64", "cores": 2, "threads": 1},
        "progress": 1.0,
        "data": {"name": "digits", "sha256": "3e7ea640a0e9f4bf", "sizes": {"train": 1293}},
        "seconds": 2.5,
        "peak_memory_mb": 500.0,
    }
    (folder / "run.json").write_text(json.dumps(record, indent=1))
    final = 0.97 - 0.01 * number + 0.005 * noise.gauss(0, 1)
    summary = {"test/accuracy": final, "val/accuracy": final, "train/loss": 0.01, **PADDING}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    rows = [",".join([*COLUMNS, *PADDING])]
    for epoch in range(EPOCHS):
        loss = math.exp(-epoch / 8) * (1 + 0.1 * number) + 0.03 * noise.random()
        values = [20 * epoch + 19, epoch, loss + 0.05, final - loss / 3, loss, "", ""]
        rows.append(",".join(map(str, [*values, *PADDING.values()])))
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "overrides.yaml").write_text(f"- paper={paper}\n- seed={seed}\n")
    settings = "\n".join(f"  setting_{key}: {key}.5" for key in range(90))
    (folder / "config.yaml").write_text(
        f"scale: {scale}\narm: {arm}\nseed: {seed}\n"
        f"training:\n  monitor: val/accuracy\n  epochs: {EPOCHS}\n"
        f"optimizer:\n  _target_: torch.optim.SGD\n  lr: {0.1 * (number + 1):g}\n"
        f"method:\n  name: {arm}\n  seed: {seed}\n"
        f"module:\n  model: ${{model}}\nsettings:\n{settings}\n"
        f"paper:\n  slug: {paper}\n  title: The paper {paper}\n"
    )
