"""Checkpoints in Hugging Face layout: a folder with ``config.json`` and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.data.base.files import INSTALL_HF
from repro.errors import UserError


def read_config(path: Path, name: str, model_type: str) -> dict[str, Any]:
    """Reads ``config.json``.

    Args:
        path: the checkpoint's folder.
        name: of the checkpoint on the hub, for messages.
        model_type: the kind of model that it has to be.

    Raises:
        UserError: the file is missing, no JSON, or of another kind of model.
    """
    file = path / "config.json"
    if not file.is_file():
        raise UserError(
            f"Model '{name}' is missing: no {file}.\nPut its Hugging Face checkpoint there, e.g."
            f" `hf download {name} --local-dir {path}`, or point data.root= at a local copy."
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    if config.get("model_type") != model_type:
        raise UserError(
            f"{file}: model_type is {config.get('model_type')!r}, and not {model_type!r}."
        )
    return config


def check_sizes(
    path: Path, model: nn.Module, config: Mapping[str, Any], **stated: int | None
) -> None:
    """Compares ``parameters`` and ``vocab_size`` with what was stated; None states nothing.

    Raises:
        UserError: they differ.
    """
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocab_size": config["vocab_size"],
    }
    for name, size in stated.items():
        if size is not None and size != found[name]:
            raise UserError(f"{path}: {name} is {found[name]}, but the config says {size}.")


def check_room(model: nn.Module) -> None:
    """Makes sure that the weights of a model on the meta device fit into this machine's memory.

    Raises:
        UserError: they do not.
    """
    needed = sum(parameter.nbytes for parameter in model.parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"The model's weights take {needed / 1e9:.0f} GB of host memory, and there are"
            f" {there / 1e9:.0f}: choose a smaller model or another machine."
        )


def read_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files; those of the index where there is one.

    Raises:
        UserError: a file is missing or damaged, or safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"Reading {path} needs safetensors: {INSTALL_HF}") from error
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors = load_file(path / name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / name} is missing or damaged: {error}") from error
        weights |= {key: tensor.to(dtype) for key, tensor in tensors.items()}
    return weights


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path, kind: str) -> None:
    """Makes tensors the parameters of a model, which may have been built on the meta device.

    Args:
        model: gets the weights.
        weights: by name, all of them and no others.
        path: of the checkpoint, for messages.
        kind: what models of this sort are called, for messages.

    Raises:
        UserError: names or shapes differ.
    """
    try:
        missing, unknown = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: the weights do not fit its config.json: {last}") from error
    if missing or unknown:
        raise UserError(
            f"{path}: the weights lack {missing[:2]} and bring {unknown[:2]} beyond {kind}'s."
        )
