"""The linear classifier at the end of a network: where it is, another one, none."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from repro.errors import UserError


def head_name(model: nn.Module) -> str:
    """The name of a model's last linear layer.

    Raises:
        UserError: it has none.
    """
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise UserError("This model has no linear classifier that could be replaced.")
    return names[-1]


def replace_head(model: nn.Module, classes: int) -> int:
    """Puts a freshly drawn linear layer in the place of the last one.

    Returns:
        The outputs that the replaced layer had.
    """
    old = _put(model, lambda old: nn.Linear(old.in_features, classes))
    return int(old.out_features)


def remove_head(model: nn.Module) -> int:
    """Makes a classifier a feature extractor: what its last linear layer read is its output.

    Returns:
        The number of features.
    """
    return int(_put(model, lambda _: nn.Identity()).in_features)


def _put(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Linear:
    parent_name, _, name = head_name(model).rpartition(".")
    parent = model.get_submodule(parent_name)
    old: nn.Linear = getattr(parent, name)
    setattr(parent, name, make(old))
    return old
