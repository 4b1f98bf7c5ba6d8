"""How a run computes: the keys of ``hardware`` that change its speed and memory, not its results.

All but the last bits stay the same: of what is trained, of checkpoints, of what is measured.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from repro.errors import UserError
from repro.toolbox.method import Method
from repro.training.supervised import Supervised

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
# Keys that need the model and the step of supervised training, and what leaves all as it is.
OF_SUPERVISED: dict[str, Any] = {
    "accumulate": 1,
    "activation_checkpointing": False,
    "channels_last": False,
    "compile": False,
}


def set_arithmetic(tf32: bool | None) -> None:
    """Chooses how GPUs multiply matrices of float32.

    Args:
        tf32: with 10 bits behind the point, or with all; None is PyTorch's way, which convolves
            with 10 and multiplies matrices with all.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32 is not False


def speed_up(module: Any, hardware: Any) -> None:
    """Changes a module as ``hardware`` says, before it is trained.

    Args:
        module: what is going to be trained.
        hardware: the config, which may lack keys (older runs do).

    Raises:
        UserError: the paper does not train that way, or the model or the method cannot.
    """
    active = [key for key, off in OF_SUPERVISED.items() if (hardware.get(key) or off) != off]
    if not active:
        return
    if not isinstance(module, Supervised):
        raise UserError(
            f"hardware.{active[0]} is for papers that train on batches; this one has a procedure "
            "of its own: leave it out."
        )
    if "accumulate" in active:
        accumulate(module, hardware.accumulate)
    if "activation_checkpointing" in active:
        recompute_blocks(module.model)
    if "channels_last" in active:
        module.model.to(memory_format=torch.channels_last)
    if "compile" in active:
        module.model.compile(backend="inductor" if hardware.compile is True else hardware.compile)


def accumulate(module: Supervised, parts: int) -> None:
    """Lets every batch be trained on in parts whose gradients are summed.

    Raises:
        UserError: the method looks at whole batches, or the model carries a state between them.
    """
    method = module.method
    if not (method.accumulates or type(method).backward is Method.backward):
        raise UserError(
            f"hardware.accumulate={parts} does not go with {type(method).__name__}, which computes "
            "gradients in a way of its own: choose a smaller dataset.batch_size."
        )
    if hasattr(module.model, "reset_state"):
        raise UserError(
            f"hardware.accumulate={parts} does not go with {type(module.model).__name__}, whose "
            "state goes from batch to batch: choose a smaller dataset.batch_size."
        )
    module.parts = parts


def recompute_blocks(model: nn.Module) -> None:
    """Lets a model keep only what goes into its blocks, and compute the rest again on the way back.

    Blocks are the modules of one class that there are several of, the outermost of them: those of
    residual networks, of transformers, of U-Nets.

    Raises:
        UserError: the model has no such blocks.
    """
    blocks = _blocks(model)
    if not blocks:
        raise UserError(
            f"hardware.activation_checkpointing: {type(model).__name__} has no repeated blocks."
        )
    for block in blocks:
        again = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=again)


def _blocks(model: nn.Module) -> list[nn.Module]:
    parts = [each for each in model.modules() if _is_composed(each) and each is not model]
    several = {kind for kind, count in Counter(map(type, parts)).items() if count > 1}
    found = [each for each in parts if type(each) in several]
    inner = {id(part) for each in found for part in each.modules() if part is not each}
    return [each for each in found if id(each) not in inner]


def _is_composed(module: nn.Module) -> bool:
    is_container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return not is_container and any(True for _ in module.children())


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """What the first and the second pass of a block run in."""
    return _Statistics([]), _Statistics([m for m in block.modules() if isinstance(m, BatchNorm)])


class _Statistics:
    """A context in which batch norm's running statistics stay as they are."""

    def __init__(self, norms: list[BatchNorm]) -> None:
        self.norms = norms
        self.kept: list[list[Tensor]] = []

    def __enter__(self) -> None:
        self.kept = [[buffer.clone() for buffer in norm.buffers()] for norm in self.norms]

    def __exit__(self, *_: object) -> None:
        for norm, kept in zip(self.norms, self.kept, strict=True):
            for buffer, before in zip(norm.buffers(), kept, strict=True):
                buffer.copy_(before)
