"""What a dictionary is worth: fidelity to the model when spliced in, dead latents, steering."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.methods.gsae.sites import Site


def cross_entropies(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each token: logits (…, classes), classes (…), to (tokens,)."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="none")


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """Mean over tokens of KL(softmax(clean) ‖ softmax(other)) in nats; logits (…, classes)."""
    p, q = (logits.flatten(0, -2).log_softmax(-1) for logits in (clean, other))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def recovery(features_FD: Tensor, W_dec_ND: Tensor) -> Tensor:
    """Best cosine of each true feature with a decoder direction: (F,)."""
    return (F.normalize(features_FD, dim=1) @ F.normalize(W_dec_ND, dim=1).T).amax(dim=1)


@dataclass
class Fidelity:
    """Running sums over tokens of what one way to reconstruct does to the model.

    ``loss recovered`` is 1 - ΔCE / ΔCE of replacing every activation by their mean.
    """

    tokens: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    fired: Tensor | None = None

    def update(
        self,
        x_BD: Tensor,
        x_hat_BD: Tensor,
        f_BN: Tensor,
        clean: Tensor,
        spliced: Tensor,
        target: Tensor,
    ) -> None:
        """Adds a batch.

        Args:
            x_BD: activations.
            x_hat_BD: their reconstructions.
            f_BN: latents; positive ones are active.
            clean: the model's logits.
            spliced: its logits with the reconstructions in place.
            target: classes.
        """
        B = len(x_BD)
        active_BN = f_BN > 0
        fired = active_BN.any(dim=0)
        self.fired = fired if self.fired is None else self.fired | fired
        self._add("x", x_BD.double().sum(dim=0))
        self._add("xx", x_BD.double().square().sum())
        self._add("ee", (x_BD - x_hat_BD).double().square().sum())
        self._add("l0", active_BN.sum().double())
        positions = target.numel()  # with skipped positions more than activations
        self._add("clean", cross_entropies(clean, target).double().sum() * B / positions)
        self._add("spliced", cross_entropies(spliced, target).double().sum() * B / positions)
        self._add("kl", kl_divergence(clean, spliced).double() * B)
        self.tokens += B

    def values(self) -> dict[str, float]:
        """Means: ``delta_ce`` and ``kl`` (nats a position), ``fvu``, ``l0``, ``dead``.

        ``fvu`` is the error over the variance around the mean of these tokens, ``dead`` the share
        of latents that no token made positive.
        """
        mean = {name: total / self.tokens for name, total in self.sums.items()}
        assert self.fired is not None
        variance = mean["xx"] - mean["x"].square().sum()
        return {
            "delta_ce": float(mean["spliced"] - mean["clean"]),
            "kl": float(mean["kl"]),
            "fvu": float(mean["ee"] / variance),
            "l0": float(mean["l0"]),
            "dead": 1 - float(self.fired.double().mean()),
        }

    @property
    def clean_loss(self) -> float:
        """The model's own mean cross-entropy."""
        return float(self.sums["clean"] / self.tokens)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value


@torch.no_grad()
def steering_effects(
    site: Site,
    inputs: Tensor,
    directions_MD: Tensor,
    length: float,
) -> Tensor:
    """How far each direction moves the model's output: (M,).

    The direction times ``length`` is added to every activation. The effect in one context (one
    position of one sequence, or one example) is the largest change of a log probability,
    max_v |Δ log p_v|; it is averaged over contexts.

    Args:
        site: where to add.
        inputs: of the model.
        directions_MD: unit vectors.
        length: how much of each.
    """
    clean = site.model(inputs).log_softmax(-1)
    effects = []
    for direction_D in directions_MD:
        push_D = length * direction_D

        def steered(x: Tensor, push_D: Tensor = push_D) -> Tensor:
            return x + push_D

        with site.replace(steered):
            moved = site.model(inputs).log_softmax(-1)
        effects.append((moved - clean).abs().amax(dim=-1).mean())
    return torch.stack(effects) if effects else clean.new_zeros(0)
