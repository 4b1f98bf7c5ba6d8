"""Which parameters are layers of which kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, Literal, get_args

from torch import Tensor, nn

Role = Literal["hidden", "embedding", "positions", "vector"]
ROLES: tuple[Role, ...] = get_args(Role)


def layer_groups(
    model: nn.Module, transposed: Sequence[str] = (), fused: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Sorts a model's parameters by the kind of layer, as parameter groups of an optimizer.

    * ``embedding``: the embedding with the most rows, and the head: the last `torch.nn.Linear`;
    * ``positions``: other embeddings;
    * ``vector``: everything with at most one dimension (gains, biases);
    * ``hidden``: all other matrices; kernels of convolutions count as (out, in x height x width).

    Args:
        model: whose parameters; those that are shared count once.
        transposed: patterns of names (``*.c_fc.weight``) of matrices that are kept as (in, out).
        fused: patterns of names of matrices that keep queries, keys and values in one, along their
            outputs: three layers.

    Returns:
        Groups with ``params``, their ``names``, ``role``, ``transposed`` and ``parts``.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    heads = [module.weight for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    rows = max((len(table) for table in tables), default=0)

    def role(parameter: Tensor) -> Role:
        if parameter.dim() < 2:
            return "vector"
        if any(parameter is table for table in tables):
            return "embedding" if len(parameter) == rows else "positions"
        return "embedding" if any(parameter is head for head in heads) else "hidden"

    groups: dict[tuple[Role, bool, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        flipped = any(fnmatch(name, pattern) for pattern in transposed)
        parts = 3 if any(fnmatch(name, pattern) for pattern in fused) else 1
        key = role(parameter), flipped, parts
        empty: dict[str, Any] = {"role": key[0], "transposed": flipped, "parts": parts}
        group = groups.setdefault(key, {"params": [], "names": [], **empty})
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(groups.values(), key=lambda group: ROLES.index(group["role"]))


def views(tensor: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The layers (out, in), or vectors, that a parameter of a group holds: views of its memory."""
    if tensor.dim() < 2:
        return (tensor.view(-1),)
    matrix = tensor.flatten(1)
    matrix = matrix.T if group.get("transposed", False) else matrix
    return matrix.chunk(group.get("parts", 1))
