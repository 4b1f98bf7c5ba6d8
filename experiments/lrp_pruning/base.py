"""What the room's procedures share: seeds of what is random, drawn examples, accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.iterators import Batch, generator_for
from repro.errors import UserError
from repro.methods.lrp_pruning import FilterPruning


def refuse_others(method: object) -> None:
    """Refuses a method that prunes nothing.

    Raises:
        UserError: it is one.
    """
    if not isinstance(method, FilterPruning):
        raise UserError(
            f"lrp_pruning prunes trained networks: {type(method).__name__} is a method of training;"
            " use method=lrp_pruning."
        )


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Global random numbers are a function of a key meanwhile, and as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(generator_for(*key).initial_seed())
        yield


def draw_classes(classes: int, count: int | None, generator: torch.Generator) -> Tensor:
    """So many of all classes at random, rising; all of them for None."""
    return torch.randperm(classes, generator=generator)[:count].sort().values


def draw_examples(
    labels_N: Tensor, classes: Tensor, per_class: int, generator: torch.Generator
) -> Tensor:
    """Indices of so many examples of each class at random; all where there are fewer."""
    members = [(labels_N == each).nonzero().flatten() for each in classes.tolist()]
    orders = [torch.randperm(len(each), generator=generator)[:per_class] for each in members]
    return torch.cat([each[order] for each, order in zip(members, orders, strict=True)])


@torch.no_grad()
def measure(
    model: nn.Module, batches: Iterable[Batch], classes: Tensor, device: torch.device
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy in eval mode, both with the logits of some classes alone.

    Examples of other classes do not count.
    """
    was_training = model.training
    model.eval()
    right = loss = count = 0.0
    classes_K = classes.to(device)
    for x, y in batches:
        is_class_NK = y.to(device)[:, None] == classes_K
        known_N = is_class_NK.any(1)
        target_N = is_class_NK[known_N].int().argmax(1)
        logits_NK = model(x.to(device))[known_N][:, classes_K]
        right += float((logits_NK.argmax(1) == target_N).sum())
        loss += float(F.cross_entropy(logits_NK, target_N, reduction="sum"))
        count += len(target_N)
    model.train(was_training)
    return right / count, loss / count
