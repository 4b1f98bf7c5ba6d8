"""Packed weights in a file of the safetensors layout: a length, a header, and nothing but payload.

The format needs no package to be written or read; the ``safetensors`` package opens it as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.errors import UserError
from repro.records import files
from repro.toolbox.codebooks.coded import CodedWeight, code_bits
from repro.toolbox.codebooks.packing import pack, packed_size, unpack

DTYPES = {torch.uint8: "U8", torch.float16: "F16"}
NUMPY = {"U8": np.uint8, "F16": np.float16}


def write_packed(file: str | Path, weights: Mapping[str, CodedWeight]) -> int:
    """Writes weights by name.

    Args:
        file: where to.
        weights: by name.

    Returns:
        Bits of the payload: `CodedWeight.bits` of each, its codes, and its list of groups, rounded
        up to whole bytes.
    """
    facts = {
        name: {
            "shape": list(coded.shape),
            "sizes": torch.bincount(coded.groups, minlength=coded.count).tolist(),
            "implied": coded.implied,
        }
        for name, coded in weights.items()
    }
    parts = {
        f"{name}:{part}": tensor
        for name, coded in weights.items()
        for part, tensor in _parts(coded).items()
    }
    header: dict[str, Any] = {}
    payload = bytearray()
    # Wide numbers first, so that each begins where a multiple of its size is.
    for name, tensor in sorted(parts.items(), key=lambda part: -part[1].dtype.itemsize):
        start = len(payload)
        payload += tensor.contiguous().cpu().numpy().tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, len(payload)],
        }
    header["__metadata__"] = {"weights": json.dumps(facts)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + bytes(payload)
    files.write_bytes(Path(file), whole)
    return 8 * len(payload)


def read_packed(file: str | Path) -> dict[str, CodedWeight]:
    """Weights by name, as they were written.

    Args:
        file: what `write_packed` wrote.

    Raises:
        UserError: the file is damaged, or of another kind.
    """
    raw = Path(file).read_bytes()
    try:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        facts = json.loads(header.pop("__metadata__")["weights"])
        parts = {
            name: _tensor(entry, memoryview(raw)[8 + length :]) for name, entry in header.items()
        }
        return {name: _coded(name, fact, parts) for name, fact in facts.items()}
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{file} holds no packed weights, or is damaged: write it anew.") from error


def _parts(coded: CodedWeight) -> dict[str, Tensor]:
    parts = {
        "codes": pack(coded.codes, code_bits(coded.codebooks.shape[1])),
        "codebooks": coded.codebooks.half(),
    }
    if coded.scales is not None:
        parts["scales"] = coded.scales.half()
    if not coded.implied and coded.count > 1:
        parts["groups"] = pack(coded.groups, code_bits(coded.count))
    return parts


def _tensor(entry: Mapping[str, Any], payload: memoryview) -> Tensor:
    start, end = entry["data_offsets"]
    array = np.frombuffer(payload[start:end], NUMPY[entry["dtype"]])
    return torch.from_numpy(array.copy()).view(entry["shape"])


def _coded(name: str, fact: Mapping[str, Any], parts: Mapping[str, Tensor]) -> CodedWeight:
    shape, sizes = tuple(fact["shape"]), torch.tensor(fact["sizes"])
    codebooks, rows = parts[f"{name}:codebooks"], shape[0]
    bits = code_bits(codebooks.shape[1])
    data = parts[f"{name}:codes"]
    if len(data) != packed_size(math.prod(shape), bits):
        raise ValueError(name)
    if f"{name}:groups" in parts:
        groups = unpack(parts[f"{name}:groups"], code_bits(len(sizes)), rows).long()
    else:
        groups = torch.arange(len(sizes)).repeat_interleave(sizes)
    return CodedWeight(
        unpack(data, bits, math.prod(shape)).view(rows, -1),
        codebooks,
        groups,
        parts.get(f"{name}:scales"),
        shape,
        fact["implied"],
    )
