"""Where a study of a trained model gets it from: trained here once and kept, or given.

Papers that prune, quantise or dissect a language model take a trained one as given. Where none can
be had, `TrainedOnce` makes one, the same for every arm and every paper that asks for the same, and
keeps its weights on disk; `Given` leaves a model that came with its weights as it is.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.files import data_root
from repro.data.base.iterators import TokenIterator
from repro.data.base.modules import TextData, digest
from repro.errors import UserError
from repro.knobs import Count, Fraction, NonNegative, Positive, checked
from repro.records import files
from repro.toolbox.schedules import cosine

log = logging.getLogger("repro")


class Base(Protocol):
    """Gives a model the weights that a study starts from."""

    def __call__(self, model: nn.Module, data: TextData, device: torch.device) -> None:
        """Changes the weights in place; where it trains, it does so on `device`."""


class Given:
    """The model came with its weights (`repro.models.language.llama.load_hugging_face`)."""

    def __call__(self, model: nn.Module, data: TextData, device: torch.device) -> None:
        """Leaves the model as it is, and where it is."""


class TrainedOnce:
    """Trains a language model by AdamW on the training tokens of a data set, once.

    The result is a function of the model, the tokens, this recipe, and the device and number of
    threads. All of them name the file in which the weights are kept; whoever asks for the same
    later, or at the same time in another process, reads that file and gets the same numbers. The
    global random state is left as it was.

    In a plain loop::

        data = stdlib_text("stdlib", vocab_size=98)
        model = Llama(98)
        TrainedOnce(steps=900, cache="outputs/.cache")(model, data, torch.device("cpu"))

    Args:
        steps: updates.
        batch_size: windows of text in an update, at random places.
        sequence_length: tokens in a window.
        lr: largest learning rate of AdamW, which falls along a cosine to zero.
        warmup: fraction of the steps in which the rate rises to `lr`.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip_norm: largest global gradient norm.
        seed: of the first weights and of the windows.
        cache: folder for trained weights; None to train anew each time.
    """

    @checked
    def __init__(
        self,
        steps: Count = 900,
        batch_size: Count = 16,
        sequence_length: Count = 64,
        lr: Positive = 3e-3,
        warmup: Fraction = 0.033,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: NonNegative = 0.1,
        clip_norm: Positive = 1.0,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        self.steps = steps
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.lr = lr
        self.warmup = warmup
        self.betas = (betas[0], betas[1])
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.seed = seed
        self.cache = None if cache is None else Path(cache).expanduser()

    def __call__(self, model: nn.Module, data: TextData, device: torch.device) -> None:
        """Trains `model` in place, or reads what was trained before; `model` ends on `device`.

        Args:
            model: maps tokens (B, T) to logits (B, T, V) and has ``reset_parameters()``.
            data: its ``train`` stream is trained on.
            device: where to train.

        Raises:
            UserError: the model cannot draw its first weights anew, or the text is too short.
        """
        reset = getattr(model, "reset_parameters", None)
        if reset is None:
            raise UserError(
                f"base: {type(model).__name__} has no reset_parameters(), so it cannot be trained"
                " the same way twice; with published weights say base=given."
            )
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            reset()  # on the CPU, so that every device starts alike
        stream = data.streams["train"]

        def train() -> None:
            log.info("training the base model: %d steps", self.steps)
            self._train(model.to(device), stream)

        key = f"base-{self._key(model, stream, device)}"
        trained_once(model, train, None if self.cache is None else self.cache / f"{key}.pt")
        model.to(device)

    def _train(self, model: nn.Module, stream: Tensor) -> None:
        device = next(model.parameters()).device
        try:
            batches = TokenIterator(
                stream, self.batch_size, self.sequence_length, windows=True, seed=self.seed,
                rank=0, world_size=1,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"base: {error}") from error
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(self.seed)  # for models that draw while they train (dropout)
            model.train()
            optimizer = torch.optim.AdamW(
                model.parameters(),
                self.lr,
                self.betas,
                weight_decay=self.weight_decay,
            )
            schedule = cosine(optimizer, self.steps, warmup=self.warmup)
            step = 0
            while step < self.steps:
                for x_BT, y_BT in batches:
                    logits_BTV = model(x_BT.to(device))
                    loss = F.cross_entropy(logits_BTV.flatten(0, 1), y_BT.to(device).flatten())
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
                    optimizer.step()
                    schedule.step()
                    step += 1
                    if step == self.steps:
                        break
            optimizer.zero_grad()

    def _key(self, model: nn.Module, stream: Tensor, device: torch.device) -> str:
        """Names the result by all that it depends on; the first weights stand for the seed."""
        recipe = {name: value for name, value in vars(self).items() if name != "cache"}
        first = digest([stream, *model.state_dict().values()])
        where = device.type if device.type != "cpu" else f"cpu x {torch.get_num_threads()}"
        words = f"{model!r} {recipe} {first} {where} {torch.__version__}"
        return hashlib.sha256(words.encode()).hexdigest()[:32]


def trained_once(model: nn.Module, train: Callable[[], None], file: Path | None) -> None:
    """Trains a model, or reads from a file what it came to when it was trained before.

    Whoever asks for the same file at the same time, in another process, waits and reads it.

    Args:
        model: whose weights are wanted.
        train: trains it.
        file: where the weights are kept; its name must change whenever they would. None: train.
    """
    if file is None:
        train()
        return
    files.make_folder(file.parent)
    with files.exclusive_lock(file.with_suffix(".lock"), wait=True):
        weights = _read(file)
        if weights is None:
            train()
            weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
            files.write_sealed(file, lambda opened: torch.save(weights, opened))
    model.load_state_dict(weights)


def _read(file: Path) -> dict[str, Tensor] | None:
    """Kept weights; None where there are none, or where the file is damaged."""
    try:
        files.check_sealed(file)
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return weights
    except FileNotFoundError:
        return None
    except Exception as error:
        log.warning("%s is damaged and is made anew: %s", file, str(error).splitlines()[0])
        return None


class WeightsFile:
    """Published weights from a file, into a model with the same names.

    A checkpoint of a training script may hold them under ``state_dict``, and with a prefix
    ``module.`` where several devices trained: both are taken off.

    Args:
        file: a state dictionary, as ``.pth``, ``.pth.tar`` or ``.safetensors``; below `root`, or a
            path of its own.
        root: folder of all downloads, see `repro.data.base.files.data_root`.
        in_order: the model calls the same tensors otherwise: they are matched by their order.
        new_head: the model's last layer (weight and bias) keeps its own first weights, because it
            has other classes.
        trusted: the file may run code of its own when it is read, as old checkpoints that hold more
            than tensors have to; only for files from where you trust.
        knob: the setting that names the file, for the message where it is missing.
        info: what stands in for it, see `unloaded`; not used here.
    """

    def __init__(
        self,
        file: str | Path,
        root: str | Path | None = None,
        in_order: bool = False,
        new_head: bool = False,
        trusted: bool = False,
        knob: str = "base.file",
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ) -> None:
        self.file = data_root(root) / file  # an absolute path stays what it is
        self.in_order, self.new_head, self.trusted = in_order, new_head, trusted
        self.knob = knob

    def __call__(self, model: nn.Module, _data: object, _device: torch.device) -> None:
        """Loads the weights; the model stays where it is.

        Raises:
            UserError: the file is missing, unreadable, or of another model.
        """
        if not self.file.is_file():
            raise UserError(
                f"The model's weights are missing: no {self.file}.\nSave its published state"
                f" dictionary there, or name another one with {self.knob}=."
            )
        try:
            if self.file.suffix == ".safetensors":
                from safetensors.torch import load_file

                weights = load_file(self.file)
            else:
                # latin1 reads the strings of checkpoints from Python 2, which are no plain tensors.
                legacy: dict[str, Any] = {"encoding": "latin1"} if self.trusted else {}
                weights = torch.load(self.file, "cpu", weights_only=not self.trusted, **legacy)
            weights = _unwrapped(weights)
            model.load_state_dict(self._fitting(weights, model.state_dict()))
        except ImportError as error:
            raise UserError(
                "Reading .safetensors needs: pip install 'gradient-repro[hf]'"
            ) from error
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self.file} holds more than tensors, and reading it would run code from it: say"
                " trusted=true for it if you trust where it comes from."
            ) from error
        except Exception as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{self.file}: not the weights of this model: {reason}") from error

    def _fitting(self, weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights under the model's names, with its own head where that is asked for."""
        if self.in_order:
            weights = dict(zip(own, weights.values(), strict=True))
        if self.new_head:
            weights = weights | dict(list(own.items())[-2:])
        return weights


def _unwrapped(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint by their names in the model, whatever stands around them."""
    weights = weights.get("state_dict", weights)
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def unloaded(**_facts: Any) -> Given:
    """Stands in for `WeightsFile`: the model keeps its fresh weights.

    Args:
        **_facts: where the weights would be.
    """
    return Given()
