"""Trains a sparse autoencoder on what passes a place in a frozen model, and judges it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.tables.simulated import PlantedDictionary
from repro.errors import UserError, did_you_mean
from repro.methods.gsae import (
    Fidelity,
    Magnitude,
    Site,
    SparseAutoencoder,
    gradient_of,
    read,
    recovery,
    steering_effects,
    trace,
)
from repro.toolbox.method import Batch, Method, OptimizerFactory
from repro.toolbox.pretrained import Base
from repro.training.procedure import (
    Evaluated,
    ScheduleFactory,
    model_weights,
    refuse_methods,
)

TASKS = ("classification", "language")
LABELS = ("true", "sampled")
# How latents are chosen at evaluation: by the gradient of the true label's loss, which lets the
# label leak into the reconstruction; by that of a label drawn from the clean model; by size alone.
MODES = ("label", "sampled", "topk")


@dataclass
class Dictionary:
    """What is trained, where, and how it is judged; the keys of ``module.dictionary``.

    Attributes:
        autoencoder: called with the width of the activations, returns an autoencoder.
        base: gives the model its weights, unless the arm starts from one that trained it.
        site: name of the module at whose side the activations are (see `Site`).
        side: ``input`` or ``output`` of that module.
        skip: leading positions of a sequence that are neither trained on nor replaced.
        labels: of the gradients in training: ``true``, or ``sampled`` from the model.
        mode: one of `MODES`; what ``val/kl`` and the like without a mode mean.
        sample: activations that the start and the mean are computed from, at least.
        evaluated: tokens (or examples) that validation and test look at, at most.
        steered: latents that are steered with, at most.
        contexts: sequences (or examples) in which they are, at most; the first of the test split.
        push: what is added for steering, in mean norms of the activations.
        resample_every: steps between resamplings of dead latents in the first half of training.
        seed: of labels that are sampled at evaluation and of the choice of steered latents.
    """

    autoencoder: Callable[[int], SparseAutoencoder]
    base: Base
    site: str = ""
    side: Any = "output"
    skip: int = 0
    labels: str = "true"
    mode: str = "sampled"
    sample: int = 4096
    evaluated: int = 16384
    steered: int = 64
    contexts: int = 4
    push: float = 0.3
    resample_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for knob, value, known in (("labels", self.labels, LABELS), ("mode", self.mode, MODES)):
            if value not in known:
                raise UserError(
                    f"gsae: {knob}={value} is none of {', '.join(known)}."
                    + did_you_mean(value, known)
                )
        for knob in ("sample", "evaluated", "steered", "contexts"):
            if getattr(self, knob) < 1:
                raise UserError(f"gsae: {knob} is at least 1, not {getattr(self, knob)}.")


class DictionaryLearning(Evaluated):
    """Trains a sparse autoencoder on what passes a place in a model that is given, and frozen.

    One step is one batch of the model's inputs: activations, their gradient, one update.

    Args:
        model: the model to dissect. It is frozen.
        optimizer: called with parameters, returns an optimizer.
        schedule: called with the optimizer and the number of steps, returns a scheduler.
        dictionary: what to learn, and how to judge it.
        task: ``classification`` or ``language``.
        method: must be the plain one: there is no supervised training to change.
        clip_norm: largest gradient norm, or None.
        log_every: steps between rows of the training loss.

    Raises:
        UserError: a method, or a task without classes.
    """

    METRICS: ClassVar = (
        {"train/loss": "mean loss of the autoencoder in the epoch"}
        | {
            f"{split}/{name}": meaning
            for split in ("val", "test")
            for base, meaning in {
                "delta_ce": "rise of the model's loss when the reconstruction is spliced in, nats",
                "kl": "divergence of the spliced from the clean model, nats",
                "loss_recovered": "1 - delta_ce / ablation_delta_ce",
                "fvu": "share of the activations' variance that is not explained",
                "l0": "latents that are active, per token",
                "dead": "share of latents that never fire",
            }.items()
            for name in (
                base,
                *(f"{base}/{mode}" for mode in MODES),
            )  # without a mode: the config's
        }
        | {
            "*/clean_loss": "the model's own loss, nats",
            "*/ablation_delta_ce": "rise of its loss when the mean activation is spliced in, nats",
            "*/recovery/influential": "mean best cosine with planted features that matter",
            "*/recovery/inert": "likewise with those that do not",
            "test/steering": "mean effect of pushing along a living latent",
        }
    )
    mean: Tensor  # of the activations
    norm: Tensor  # mean one

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        dictionary: Dictionary,
        task: str,
        method: Method,
        clip_norm: float | None = None,
        log_every: int = 50,
    ) -> None:
        super().__init__(optimizer, schedule, clip_norm, log_every)
        refuse_methods(
            method,
            "gsae trains autoencoders, which {method} cannot change: choose autoencoder=… instead"
            " of method=…",
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

    def trained(self) -> list[nn.Parameter]:
        """The autoencoder's parameters."""
        return list(self.sae.parameters())

    # -- Training ---------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Keeps dropout out of the model."""
        self.model.eval()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update of the autoencoder."""
        sae: SparseAutoencoder = self.sae
        optimizer: Any = self.optimizers()
        x_BD, g_BD = self._activations(batch)
        every = self.dictionary.resample_every
        first_half = 2 * self.global_step < self.trainer.estimated_stepping_batches
        if every and self.global_step and self.global_step % every == 0 and first_half:
            sae.resample(x_BD, optimizer.optimizer)
        optimizer.zero_grad()
        loss = sae.loss(x_BD, g_BD)
        self.manual_backward(loss)
        sae.before_step()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(sae.parameters(), self.clip_norm)
        self.tick()
        sae.after_step()
        loss = loss.detach()
        self.note_loss(loss)
        return {"loss": loss}

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean loss."""
        self.log("train/loss", self.running_loss.take())

    def _activations(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What passes the site, and its gradient if the autoencoder chooses by it."""
        inputs, target = batch
        if not self._needs_gradient:
            return read(self.site, inputs).float(), None
        output, x_BD = trace(self.site, inputs)
        if self.dictionary.labels == "sampled":
            target = _sampled(output.detach())
        g_BD = gradient_of(output, target, x_BD)
        return x_BD.detach().float(), g_BD.float()

    @property
    def _needs_gradient(self) -> bool:
        selector = getattr(self.sae, "selector", Magnitude())
        return bool(selector.needs_gradient)

    # -- Evaluation -------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Starts new sums, and the same sampled labels each time."""
        super().on_validation_start()
        modes = MODES if self._needs_gradient else ("topk",)
        self.fidelity = {mode: Fidelity() for mode in (*modes, "ablation")}
        self.contexts: Tensor | None = None
        self.generator = torch.Generator(self.device).manual_seed(self.dictionary.seed)

    def on_test_epoch_end(self) -> None:
        """Logs what was measured, and steers with the latents."""
        super().on_test_epoch_end()
        self.log("test/steering", self._steering())

    @override
    @torch.inference_mode(False)  # gradients at the site are wanted
    @torch.no_grad()
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Splices reconstructions into the model."""
        if self.fidelity["topk"].tokens >= self.dictionary.evaluated:
            return
        inputs, target = (tensor.clone() for tensor in batch)
        if self.contexts is None:
            self.contexts = inputs[: self.dictionary.contexts]
        clean, leaf_BD = trace(self.site, inputs)
        gradients: dict[str, Tensor | None] = {"topk": None}
        if self._needs_gradient:
            sampled = _sampled(clean.detach(), self.generator)
            gradients["label"] = gradient_of(clean, target, leaf_BD, keep_graph=True).float()
            gradients["sampled"] = gradient_of(clean, sampled, leaf_BD).float()
        clean, x_BD = clean.detach().float(), leaf_BD.detach().float()
        for mode, g_BD in gradients.items():
            f_BN = self.sae.encode(x_BD, g_BD, Magnitude() if mode == "topk" else None)
            self._splice(mode, inputs, target, clean, x_BD, self.sae.decode(f_BN), f_BN)
        mean_BD = self.mean.expand_as(x_BD)
        self._splice("ablation", inputs, target, clean, x_BD, mean_BD, mean_BD)

    def _splice(
        self,
        name: str,
        inputs: Tensor,
        target: Tensor,
        clean: Tensor,
        x_BD: Tensor,
        x_hat_BD: Tensor,
        f_BN: Tensor,
    ) -> None:
        with self.site.replace(lambda x: x_hat_BD.to(x.dtype)):
            spliced = self.model(inputs).float()
        self.fidelity[name].update(x_BD, x_hat_BD, f_BN, clean, spliced, target)

    def measured(self) -> dict[str, Any]:
        """All that was measured, by mode."""
        values = {name: fidelity.values() for name, fidelity in self.fidelity.items()}
        ablation = values.pop("ablation")["delta_ce"]
        logged = {
            "clean_loss": self.fidelity["topk"].clean_loss,
            "ablation_delta_ce": ablation,
        }
        for mode in MODES:
            measured = values.get(mode, values["topk"])
            measured["loss_recovered"] = 1 - measured["delta_ce"] / ablation
            logged |= {f"{name}/{mode}": value for name, value in measured.items()}
            if mode == self.dictionary.mode:
                logged |= measured
        data = self.data
        if isinstance(data, PlantedDictionary) and self.dictionary.site == "":
            best_F = recovery(data.features.to(self.device), self.sae.W_dec.detach()).cpu()
            logged["recovery/influential"] = float(best_F[data.is_influential].mean())
            logged["recovery/inert"] = float(best_F[~data.is_influential].mean())
        return logged

    @torch.inference_mode(False)
    def _steering(self) -> float:
        """The mean effect of living latents, those that fired in the test."""
        fired = self.fidelity.get(self.dictionary.mode, self.fidelity["topk"]).fired
        assert fired is not None
        assert self.contexts is not None
        alive = fired.nonzero().squeeze(1).cpu()
        order = torch.randperm(len(alive), generator=generator_for(self.dictionary.seed))
        chosen = alive[order[: self.dictionary.steered]]
        length = self.dictionary.push * float(self.norm)
        directions_MD = self.sae.W_dec.detach()[chosen]
        effects = steering_effects(self.site, self.contexts, directions_MD, length)
        return float(effects.mean())


def _sampled(output: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Labels drawn from the model's own prediction: logits (…, classes) to classes (…)."""
    probabilities = output.float().flatten(0, -2).softmax(dim=-1)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return drawn.view(output.shape[:-1])
