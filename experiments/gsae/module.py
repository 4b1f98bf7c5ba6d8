"""Trains a sparse autoencoder on what passes a place in a frozen model, and judges it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.tables.simulated import PlantedDictionary
from repro.errors import UserError
from repro.knobs import Count, checked
from repro.methods.gsae import (
    MEASURES,
    MODES,
    Site,
    SparseAutoencoder,
    Splicing,
    gradient_of,
    read,
    recovery,
    sampled_labels,
    steering_effects,
    trace,
)
from repro.toolbox.method import Batch, Method
from repro.toolbox.pretrained import Base
from repro.training.procedure import Evaluated, model_weights, refuse_methods

TASKS = ("classification", "language")


@checked
@dataclass
class Dictionary:
    """What is trained, where, and how it is judged; the keys of ``module.dictionary``."""

    autoencoder: Callable[[int], SparseAutoencoder]  # called with the width of the activations
    base: Base  # gives the model its weights, unless the arm starts from one that trained it
    site: str = ""  # name of the module at whose side the activations are (see `Site`)
    side: Literal["input", "output"] = "output"
    skip: int = 0  # leading positions of a sequence that are neither trained on nor replaced
    labels: Literal["true", "sampled"] = "true"  # of the gradients in training
    mode: Literal["label", "sampled", "topk"] = "sampled"  # what measures without a mode mean
    sample: Count = 4096  # activations that the start and the mean are computed from, at least
    evaluated: Count = 16384  # tokens (or examples) that validation and test look at, at most
    steered: Count = 64  # latents that are steered with, at most
    contexts: Count = 4  # sequences (or examples) in which they are, the first of the test split
    push: float = 0.3  # what is added for steering, in mean norms of the activations
    seed: int = 0  # of labels that are sampled at evaluation, and of the choice of steered latents


class DictionaryLearning(Evaluated):
    """Trains a sparse autoencoder on what passes a place in a model that is given, and frozen.

    One step is one batch of the model's inputs: activations, their gradient, one update.

    Args:
        model: the model to dissect. It is frozen.
        dictionary: what to learn, and how to judge it.
        task: ``classification`` or ``language``.
        method: must be the plain one: there is no supervised training to change.
        **settings: see `Procedure`.

    Raises:
        UserError: a method, or a task without classes.
    """

    METRICS: ClassVar = {
        f"{split}/{name}{mode}": meaning
        for split in ("val", "test")
        for mode in ("", *(f"/{mode}" for mode in MODES))  # without one: the config's
        for name, meaning in MEASURES.items()
    } | {
        "train/loss": "mean loss of the autoencoder in the epoch",
        "*/clean_loss": "the model's own loss, nats",
        "*/ablation_delta_ce": "rise of its loss when the mean activation is spliced in, nats",
        "*/recovery/influential": "mean best cosine with planted features that matter",
        "*/recovery/inert": "likewise with those that do not",
        "test/steering": "mean effect of pushing along a living latent",
    }
    mean: Tensor  # of the activations
    norm: Tensor  # mean one

    def __init__(
        self,
        model: nn.Module,
        dictionary: Dictionary,
        task: str,
        method: Method,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        refuse_methods(
            method, "gsae trains autoencoders, which {method} cannot change: choose autoencoder=…."
        )
        if task not in TASKS:
            raise UserError(f"gsae needs a loss over classes; this data set's task: {task}.")
        self.model = model  # frozen in `setup`, once it has its weights
        self.site = Site(model, dictionary.site, dictionary.side, dictionary.skip)
        self.dictionary = dictionary
        self.has_weights = False
        self.sae: Any = None  # made in `setup`, once the width of the activations is known

    # -- The start --------------------------------------------------------------------------------

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes the model over from an arm that trained it with `Supervised`."""
        self.has_weights = True
        self.model.load_state_dict(model_weights(checkpoint))

    @override
    def setup(self, stage: str) -> None:
        """Gives the model its weights, and makes an autoencoder for what passes the site.

        Raises:
            UserError: there are several devices.
        """
        if self.sae is not None:
            return
        if self.trainer.world_size > 1:
            raise UserError("gsae trains an autoencoder on one device: set hardware.devices=1.")
        device = self.trainer.strategy.root_device
        if not self.has_weights:
            self.dictionary.base(self.model, self.data, device)
        self.model.requires_grad_(False).to(device).eval()
        x_BD = self._sample(device)
        self.sae = self.dictionary.autoencoder(x_BD.shape[1]).to(device)
        self.sae.initialise(x_BD)
        self.register_buffer("mean", x_BD.mean(dim=0))
        self.register_buffer("norm", x_BD.norm(dim=1).mean())

    def _sample(self, device: torch.device) -> Tensor:
        """Activations of the first training batches."""
        parts: list[Tensor] = []
        for inputs, _ in self.data.train_dataloader():
            parts.append(read(self.site, inputs.to(device)).float())
            if sum(map(len, parts)) >= self.dictionary.sample:
                break
        return torch.cat(parts)

    # -- Training ---------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Keeps dropout out of the model."""
        self.model.eval()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update of the autoencoder."""
        loss = self.sae.loss(*self._activations(batch))
        self.descend(loss, self.sae.before_step)
        self.sae.after_step()
        self.note_loss(loss.detach())
        return {"loss": loss.detach()}

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean loss."""
        self.log("train/loss", self.running_loss.take())

    def _activations(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What passes the site, and its gradient if the autoencoder chooses by it."""
        inputs, target = batch
        if not self.sae.needs_gradient:
            return read(self.site, inputs).float(), None
        output, x_BD = trace(self.site, inputs)
        if self.dictionary.labels == "sampled":
            target = sampled_labels(output.detach())
        g_BD = gradient_of(output, target, x_BD)
        return x_BD.detach().float(), g_BD.float()

    # -- Evaluation -------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Starts new sums, and the same sampled labels each time."""
        super().on_validation_start()
        self.splicing = Splicing(self.site, self.sae, self.mean, self.dictionary.seed)
        self.contexts: Tensor | None = None

    def on_test_epoch_end(self) -> None:
        """Logs what was measured, and steers with the latents."""
        super().on_test_epoch_end()
        self.log("test/steering", self._steering())

    @override
    @torch.inference_mode(False)  # gradients at the site are wanted
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Splices reconstructions into the model."""
        if self.splicing.tokens >= self.dictionary.evaluated:
            return
        inputs, target = (tensor.clone() for tensor in batch)
        if self.contexts is None:
            self.contexts = inputs[: self.dictionary.contexts]
        self.splicing.update(inputs, target)

    def measured(self) -> dict[str, Any]:
        """All that was measured, by mode; without one in the config's."""
        logged = self.splicing.values()
        own = f"/{self.dictionary.mode}"
        for name in [name for name in logged if name.endswith(own)]:
            logged[name.removesuffix(own)] = logged[name]
        data = self.data
        if isinstance(data, PlantedDictionary) and self.dictionary.site == "":
            best_F = recovery(data.features.to(self.device), self.sae.W_dec.detach()).cpu()
            logged["recovery/influential"] = float(best_F[data.is_influential].mean())
            logged["recovery/inert"] = float(best_F[~data.is_influential].mean())
        return logged

    @torch.inference_mode(False)
    def _steering(self) -> float:
        """The mean effect of living latents, those that fired in the test."""
        assert self.contexts is not None
        alive = self.splicing.fired(self.dictionary.mode).nonzero().squeeze(1).cpu()
        order = torch.randperm(len(alive), generator=generator_for(self.dictionary.seed))
        chosen = alive[order[: self.dictionary.steered]]
        length = self.dictionary.push * float(self.norm)
        directions_MD = self.sae.W_dec.detach()[chosen]
        effects = steering_effects(self.site, self.contexts, directions_MD, length)
        return float(effects.mean())
