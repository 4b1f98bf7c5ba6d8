"""Packages that only some features need, and how to get them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from repro.errors import UserError

EXTRAS = {  # importable package -> the extra that brings it
    "optuna": "sweep",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def require(packages: Iterable[str]) -> None:
    """Checks that optional packages are installed, without importing them.

    Raises:
        UserError: one is missing; the message holds the command that installs it.
    """
    for package in packages:
        if package in EXTRAS and find_spec(package) is None:
            command = f"pip install 'gradient-repro[{EXTRAS[package]}]'"
            raise UserError(f"{package} is not installed. Get it with: {command}")
