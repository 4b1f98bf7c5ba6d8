"""Importing Lightning in half the time, which every process that runs something has to."""

from __future__ import annotations

import importlib
import sys
from typing import Any

# What torchmetrics imports as soon as it finds it, for metrics that nobody here uses.
UNUSED = ("matplotlib", "scipy", "transformers")


def import_lightning() -> None:
    """Imports Lightning and, with it, torchmetrics without the packages in `UNUSED`.

    While torchmetrics looks for them, they are not there; everybody else finds them as ever. Call
    this before the first import of Lightning: afterwards it changes nothing.
    """
    if "lightning" in sys.modules:
        return
    imports: Any = importlib.import_module("lightning_utilities.core.imports")
    is_available, version = imports.package_available, imports._version

    def is_used(package: str) -> bool:
        return package not in UNUSED and is_available(package)

    def version_of_used(package: str) -> str:
        if package in UNUSED:
            raise imports.PackageNotFoundError(package)
        return str(version(package))

    imports.package_available, imports._version = is_used, version_of_used
    try:
        import lightning.pytorch  # noqa: F401
    finally:
        imports.package_available, imports._version = is_available, version
