"""Trains a sparse autoencoder on what passes a place in a frozen model, and judges it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

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
from repro.training.supervised import RunningLoss, step_plainly

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


class DictionaryLearning(pl.LightningModule):
    """Trains a sparse autoencoder on what passes a place in a model that is given, and frozen.

    One step is one batch of the model's inputs: activations, their gradient, one update.

    Logged for validation and test, per mode (`MODES`; the same three times where an autoencoder
    has no use for gradients): ``delta_ce``, ``kl``, ``loss_recovered``, ``fvu``, ``l0`` and
    ``dead``; without a mode those of ``dictionary.mode``. Besides, ``clean_loss`` and
    ``ablation_delta_ce`` of the model, ``steering``, and on a `PlantedDictionary`
    ``recovery/influential`` and ``recovery/inert``.

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

    resumes_mid_epoch = True
    mean: Tensor  # of the activations
    norm: Tensor  # mean one

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        schedule: Callable[..., LRScheduler],
        dictionary: Dictionary,
        task: str,
        method: Method | None = None,
        clip_norm: float | None = None,
        log_every: int = 50,
    ) -> None:
        super().__init__()
        if type(method) not in (Method, type(None)):
            raise UserError(
                f"gsae trains autoencoders, which {type(method).__name__} cannot change: choose"
                " autoencoder=… instead of method=…"
            )
        if task not in TASKS:
            raise UserError(f"gsae needs a loss over classes; this data set's task: {task}.")
        self.automatic_optimization = False
        self.model = model  # frozen in `setup`, once it has its weights
        self.site = Site(model, dictionary.site, dictionary.side, dictionary.skip)
        self.dictionary = dictionary
        self.optimizer_factory, self.schedule = optimizer, schedule
        self.clip_norm, self.log_every = clip_norm, log_every
        self.has_weights = False
        self.sae: Any = None  # made in `setup`, once the width of the activations is known
        self.running_loss = RunningLoss()

    # -- The start --------------------------------------------------------------------------------

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes the model over from an arm that trained it with `Supervised`."""
        self.has_weights = True
        prefix = "model."
        self.model.load_state_dict(
            {
                key.removeprefix(prefix): value
                for key, value in checkpoint["state_dict"].items()
                if key.startswith(prefix)
            }
        )

    def setup(self, stage: str) -> None:
        """Gives the model its weights, and makes an autoencoder for what passes the site."""
        if self.sae is not None:
            return
        if self.trainer.world_size > 1:
            raise UserError("gsae trains an autoencoder on one device: set hardware.devices=1.")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        device = self.trainer.strategy.root_device
        if not self.has_weights:
            self.dictionary.base(self.model, data, device)
        self.model.requires_grad_(False).to(device).eval()
        x_BD = self._sample(data, device)
        self.sae = self.dictionary.autoencoder(x_BD.shape[1]).to(device)
        self.sae.initialise(x_BD)
        self.register_buffer("mean", x_BD.mean(dim=0))
        self.register_buffer("norm", x_BD.norm(dim=1).mean())

    def _sample(self, data: Any, device: torch.device) -> Tensor:
        """Activations of the first training batches."""
        parts: list[Tensor] = []
        for inputs, _ in data.train_dataloader():
            parts.append(read(self.site, inputs.to(device)).float())
            if sum(map(len, parts)) >= self.dictionary.sample:
                break
        return torch.cat(parts)

    def configure_optimizers(self) -> Any:
        """The optimizer of the autoencoder alone, and its schedule."""
        optimizer = self.optimizer_factory(self.sae.parameters())
        scheduler = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    # -- Training ---------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Keeps dropout out of the model."""
        self.model.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update of the autoencoder."""
        sae: SparseAutoencoder = self.sae
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
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
        step_plainly(optimizer)
        sae.after_step()
        scheduler.step()
        loss = loss.detach()
        self.running_loss.add(loss)
        if self.global_step % self.log_every == 0:
            for logger in self.loggers:
                logger.log_metrics({"train/step_loss": float(loss)}, step=self.global_step - 1)
        return {"loss": loss}

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean loss."""
        self.log("train/loss", self.running_loss.take())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the running mean of the loss."""
        checkpoint["loss_so_far"] = self.running_loss.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        self.running_loss.restore(checkpoint["loss_so_far"])

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
        modes = MODES if self._needs_gradient else ("topk",)
        self.fidelity = {mode: Fidelity() for mode in (*modes, "ablation")}
        self.contexts: Tensor | None = None
        self.generator = torch.Generator(self.device).manual_seed(self.dictionary.seed)

    on_test_start = on_validation_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Splices reconstructions into the model."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Splices reconstructions into the model."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs what was measured."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Logs what was measured, and steers with the latents."""
        self._log("test")
        self.log("test/steering", self._steering())

    @torch.inference_mode(False)  # gradients at the site are wanted
    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> None:
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

    def _log(self, split: str) -> None:
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
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PlantedDictionary) and self.dictionary.site == "":
            best_F = recovery(data.features.to(self.device), self.sae.W_dec.detach()).cpu()
            logged["recovery/influential"] = float(best_F[data.is_influential].mean())
            logged["recovery/inert"] = float(best_F[~data.is_influential].mean())
        self.log_dict({f"{split}/{name}": value for name, value in logged.items()})

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
