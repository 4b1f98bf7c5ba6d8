"""Packages that only some features need, and how to get them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from repro.errors import UserError

EXTRAS = {  # importable package -> the extra that brings it
    "PIL": "data",
    "datasets": "data",
    "dm_control": "dmc",
    "gymnasium_robotics": "adroit",
    "huggingface_hub": "data",
    "pyarrow": "data",
    "skimage": "data",
    "safetensors": "hf",
    "sionna": "sionna",
    "tokenizers": "hf",
    "diffusers": "diffusers",
    "transformers": "diffusers",
    "mpe2": "mpe",
    "openmm": "molecules",
    "torch_geometric": "molecules",
    "optuna": "sweep",
    "tensorboard": "tensorboard",
    "metaworld": "metaworld",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def missing(packages: Iterable[str]) -> list[str]:
    """What to say of packages that are not installed; none of them is imported."""
    messages = []
    for package in packages:
        if find_spec(package) is None:
            name = f"'gradient-repro[{EXTRAS[package]}]'" if package in EXTRAS else package
            messages.append(f"{package} is not installed. Get it with: pip install {name}")
    return messages


def require(packages: Iterable[str]) -> None:
    """Checks that optional packages are installed, without importing them.

    Raises:
        UserError: one is missing; the message holds the command that installs it.
    """
    for message in missing(package for package in packages if package in EXTRAS):
        raise UserError(message)
