"""What an autoencoder's reconstructions do to the model, by how latents are chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from repro.methods.gsae.autoencoders import SparseAutoencoder
from repro.methods.gsae.measures import Fidelity
from repro.methods.gsae.selection import Magnitude
from repro.methods.gsae.sites import Site, gradient_of, trace

MODES = ("label", "sampled", "topk")
MEASURES = {
    "delta_ce": "rise of the model's loss when the reconstruction is spliced in, nats",
    "kl": "divergence of the spliced from the clean model, nats",
    "loss_recovered": "1 - delta_ce / ablation_delta_ce",
    "fvu": "share of the activations' variance that is not explained",
    "l0": "latents that are active, per token",
    "dead": "share of latents that never fire",
}


class Splicing:
    """Splices reconstructions into a model, a batch at a time, and measures what that changes.

    Latents are chosen in three modes: ``label``, by the gradient of the true label's loss, which
    lets the label leak into the reconstruction; ``sampled``, by that of a label drawn from the
    clean model; ``topk``, by size alone. An autoencoder that needs no gradient has the last only.

    Args:
        site: where reconstructions are spliced in.
        sae: what reconstructs.
        mean_D: of the activations, to compare with: it replaces all of them in turn.
        seed: of labels that are sampled.

    Attributes:
        fidelity: what was measured, by mode; under ``ablation`` that of the mean.
    """

    def __init__(self, site: Site, sae: SparseAutoencoder, mean_D: Tensor, seed: int = 0) -> None:
        self.site, self.sae, self.mean_D = site, sae, mean_D
        modes = MODES if sae.needs_gradient else ("topk",)
        self.fidelity = {mode: Fidelity() for mode in (*modes, "ablation")}
        self.generator = torch.Generator(mean_D.device).manual_seed(seed)

    @property
    def tokens(self) -> int:
        """How many activations were looked at."""
        return self.fidelity["topk"].tokens

    def fired(self, mode: str) -> Tensor:
        """Which latents were active for some token: (N,) bool; see `values` on modes."""
        fired = self.fidelity.get(mode, self.fidelity["topk"]).fired
        assert fired is not None
        return fired

    @torch.no_grad()
    def update(self, inputs: Tensor, target: Tensor) -> None:
        """Adds a batch of the model's inputs and their labels (…)."""
        clean, leaf_BD = trace(self.site, inputs)
        gradients: dict[str, Tensor | None] = {"topk": None}
        if self.sae.needs_gradient:
            sampled = sampled_labels(clean.detach(), self.generator)
            gradients["label"] = gradient_of(clean, target, leaf_BD, keep_graph=True).float()
            gradients["sampled"] = gradient_of(clean, sampled, leaf_BD).float()
        clean, x_BD = clean.detach().float(), leaf_BD.detach().float()
        for mode, g_BD in gradients.items():
            f_BN = self.sae.encode(x_BD, g_BD, Magnitude() if mode == "topk" else None)
            x_hat_BD = self.sae.decode(f_BN)
            spliced = self._spliced(inputs, x_hat_BD)
            self.fidelity[mode].update(x_BD, x_hat_BD, f_BN, clean, spliced, target)
        mean_BD = self.mean_D.expand_as(x_BD)
        spliced = self._spliced(inputs, mean_BD)
        self.fidelity["ablation"].update(x_BD, mean_BD, mean_BD, clean, spliced, target)

    def _spliced(self, inputs: Tensor, x_hat_BD: Tensor) -> Tensor:
        """The model's logits with other activations."""
        with self.site.replace(lambda x: x_hat_BD.to(x.dtype)):
            logits: Tensor = self.site.model(inputs)
        return logits.float()

    def values(self) -> dict[str, float]:
        """The `MEASURES` in each mode (``kl/topk``), and losses.

        ``ablation_delta_ce`` is the rise of the loss when the mean is spliced in, ``clean_loss``
        the model's own. A mode that the autoencoder does not have equals ``topk``.
        """
        values = {name: fidelity.values() for name, fidelity in self.fidelity.items()}
        ablation = values.pop("ablation")["delta_ce"]
        found = {"clean_loss": self.fidelity["topk"].clean_loss, "ablation_delta_ce": ablation}
        for mode in MODES:
            of_mode = values.get(mode, values["topk"])
            of_mode["loss_recovered"] = 1 - of_mode["delta_ce"] / ablation
            found |= {f"{name}/{mode}": value for name, value in of_mode.items()}
        return found


def sampled_labels(output: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Labels drawn from the model's own prediction: logits (…, classes) to classes (…)."""
    probabilities = output.float().flatten(0, -2).softmax(dim=-1)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return drawn.view(output.shape[:-1])
