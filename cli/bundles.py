"""`repro publish STUDY --to DIR|hub:OWNER/NAME`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from repro.planning.extras import require
from repro.records.study import Study
from repro.report import publish as publishing

HUB = "hub:"


def publish(folder: Path, target: str, checkpoints: bool) -> str:
    """Bundles a study, in a folder or on the hub.

    Returns:
        Where the bundle is.
    """
    study = Study.open(folder.absolute())
    if not target.startswith(HUB):
        return str(publishing.bundle(study, Path(target), checkpoints))
    require(["huggingface_hub"])
    with tempfile.TemporaryDirectory() as scratch:
        bundle = publishing.bundle(study, Path(scratch) / study.folder.name, checkpoints)
        return publishing.upload(bundle, target.removeprefix(HUB))
