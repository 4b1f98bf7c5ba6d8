"""What all arms of a seed look at: streams, classifiers to attack, pictures, and their features.

Pictures are perturbed once, shown to all streams, and forgotten; their features are kept on disk
under names that say all they depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from repro.experiments.contextual_fusion.streams import Source
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.files import cached_arrays
from repro.data.base.modules import TensorData, digest
from repro.errors import UserError, did_you_mean
from repro.knobs import Count, NonNegative, Positive, checked
from repro.methods.contextual_fusion import FeatureFusion, HeadTraining, Stream
from repro.records import files
from repro.toolbox.attacks import FGSM, PGD, Attack
from repro.toolbox.corruptions import GaussianBlur
from repro.toolbox.method import OptimizerFactory

LEVELS = 255  # budgets of attacks are in levels of a pixel


class View(NamedTuple):
    """A way in which pictures are shown.

    Attributes:
        name: ``clean``, ``<threat>/<attack>_<budget>`` or ``blur_<sigma>``.
        threat: the classifier that is differentiated, if one is.
        perturb: what is done to the pictures.
    """

    name: str
    threat: str | None
    perturb: Attack


CLEAN = View("clean", None, lambda _, x, __: x)


@checked
@dataclass(frozen=True)
class Perturbations:
    """What is done to pictures.

    Attributes:
        fgsm: by the classifier that is differentiated: budgets, in levels of a pixel.
        pgd: likewise, for projected gradient ascent.
        blur: standard deviations, in pixels of a picture of height `side`.
        side: see `blur`.
        steps: of projected gradient ascent.
        rel_step: length of such a step, in budgets.
        judged: budgets over which accuracies are averaged; blurs are over all.
    """

    fgsm: Mapping[str, Sequence[NonNegative]]
    pgd: Mapping[str, Sequence[NonNegative]]
    blur: Sequence[NonNegative]
    side: Count
    steps: Count
    rel_step: Positive
    judged: Sequence[NonNegative]

    def views(self) -> list[View]:
        """All of them, the pictures as they are first."""
        views = [CLEAN]
        for threat, budgets in self.fgsm.items():
            views += [View(f"{threat}/fgsm_{b:g}", threat, FGSM(b / LEVELS)) for b in budgets]
        for threat, budgets in self.pgd.items():
            views += [
                View(f"{threat}/pgd_{b:g}", threat, PGD(b / LEVELS, self.steps, self.rel_step))
                for b in budgets
            ]
        return views + [
            View(f"blur_{sigma:g}", None, GaussianBlur(sigma, self.side)) for sigma in self.blur
        ]


@dataclass
class HeadSettings:
    """How linear classifiers are trained, those of arms and those that are attacked.

    Attributes:
        streams: by classifier: whose features it reads.
        epochs: passes over the training features.
        batch_size: examples in an update.
        decay: penalty on all weights, of each square.
    """

    streams: Mapping[str, Sequence[str]]
    epochs: int
    batch_size: int
    decay: float


class Bench:
    """Streams, classifiers and features of one data set and one seed.

    Args:
        data: pictures in memory.
        device: where to compute.
        source: gives streams.
        names: of the streams whose features are computed together.
        heads: how classifiers are trained.
        optimizer: called with their parameters.
        perturbations: what is done to pictures.
        chunk: pictures that are perturbed at a time.
        size: height and width that pictures are resized to *before* they are perturbed; None: they
            are perturbed as they come, and streams resize them.
        seed: of heads, random starts and streams.
        cache: folder for features; None: `repro.data.base.files.cache_home`.

    Raises:
        UserError: the data are not plain pictures in memory.
    """

    @checked
    def __init__(
        self,
        data: TensorData,
        device: torch.device,
        *,
        source: Source,
        names: Sequence[str],
        heads: HeadSettings,
        optimizer: OptimizerFactory,
        perturbations: Perturbations,
        chunk: Count,
        size: Count | None = None,
        seed: Annotated[int, Ge(0)] = 0,
        cache: str | None = None,
    ) -> None:
        if not isinstance(data, TensorData) or data.splits["train"][0].dim() != 4:
            raise UserError("contextual_fusion takes pictures in memory, (N, C, H, W).")
        if data.augment is not None:
            raise UserError("contextual_fusion computes features once: say dataset.augment=null.")
        probe = torch.tensor([0, LEVELS], dtype=torch.uint8).view(1, 1, 1, 2)
        if data.normalise is not None:
            channels = data.splits["train"][0].shape[1]
            if data.normalise(probe.expand(1, channels, 1, 2)).unique().tolist() != [0, 1]:
                raise UserError(
                    "contextual_fusion attacks pictures in [0, 1]; streams normalise by themselves:"
                    f" say dataset.normalise={{mean:{[0] * channels},std:{[1] * channels}}}."
                )
        self.data, self.device, self.source, self.names = data, device, source, list(names)
        self.settings, self.optimizer, self.perturbations = heads, optimizer, perturbations
        self.chunk, self.size, self.seed = chunk, size, seed
        self.cache = None if cache is None else Path(cache).expanduser()
        self._streams: dict[str, Stream] = {}
        self._heads: dict[str, FeatureFusion] = {}

    # -- Networks ---------------------------------------------------------------------------------

    def stream(self, name: str) -> Stream:
        """The frozen network of that name."""
        if name not in self._streams:
            self._streams[name] = self.source(name, self.data, self.device, self.seed)
        return self._streams[name]

    def reads(self, head: str) -> list[str]:
        """The streams that a classifier reads.

        Raises:
            UserError: there is no such classifier, or it reads a stream that is not computed.
        """
        if head not in self.settings.streams:
            raise UserError(
                f"contextual_fusion: there is no classifier '{head}', only"
                f" {', '.join(self.settings.streams)}.{did_you_mean(head, self.settings.streams)}"
            )
        streams = list(self.settings.streams[head])
        if missing := [name for name in streams if name not in self.names]:
            raise UserError(
                f"contextual_fusion: the classifier '{head}' reads '{missing[0]}': list it in"
                " module.bench.names."
            )
        return streams

    def fusion(self, head: str, z_ND: Tensor, own: Mapping[str, Stream]) -> FeatureFusion:
        """An untrained classifier: all zero, which is as good as any start of a convex problem.

        Args:
            head: its name.
            z_ND: its training features.
            own: streams that take the place of those here.
        """
        streams = {name: own.get(name) or self.stream(name) for name in self.reads(head)}
        fusion = FeatureFusion(streams, self.data.classes or 0).to(self.device)
        for parameter in fusion.head.parameters():
            nn.init.zeros_(parameter)
        fusion.standardise(z_ND)
        return fusion

    def training(
        self, fusion: FeatureFusion, z_ND: Tensor, penalties: Mapping[str, float]
    ) -> HeadTraining:
        """The training of a classifier, with penalties besides its decay."""
        settings, alphas = self.settings, dict(penalties)
        for name in fusion.widths:
            alphas[name] = settings.decay + penalties.get(name, 0.0)
        y_N = self.labels("train")
        return HeadTraining(fusion, z_ND, y_N, settings.batch_size, alphas, self.seed)

    def head(self, name: str) -> FeatureFusion:
        """A trained classifier without penalties: what is attacked, or compared with."""
        if name not in self._heads:
            with torch.inference_mode(False), torch.enable_grad():
                features = self.features("train", CLEAN)
                z_ND = torch.cat([features[stream] for stream in self.reads(name)], 1)
                fusion = self.fusion(name, z_ND, {})
                training = self.training(fusion, z_ND, {})
                optimizer = self.optimizer(fusion.head.parameters())
                for epoch in range(self.settings.epochs):
                    training.epoch(optimizer, epoch)
            self._heads[name] = fusion.eval().requires_grad_(False)
        return self._heads[name]

    # -- Pictures and features --------------------------------------------------------------------

    def labels(self, split: str) -> Tensor:
        """Labels (N,) of a split, on the device."""
        return self.data.splits[split][1].to(self.device)

    def pictures(self, x: Tensor) -> Tensor:
        """Pictures of a split as they are attacked: floats in [0, 1], on the device."""
        x = x.to(self.device)
        x = x if x.is_floating_point() else x.float() / LEVELS
        if self.size is None:
            return x
        return F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def seen(self, split: str, view: View, models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """What models make of the pictures of a split, (N, …), as a view shows them."""
        attacked: Any = None if view.threat is None else self.head(view.threat)
        x, y = self.data.splits[split][:2]
        parts: dict[str, list[Tensor]] = {name: [] for name in models}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)  # of random starts
            for some, labels in zip(x.split(self.chunk), y.split(self.chunk), strict=True):
                shown = view.perturb(attacked, self.pictures(some), labels.to(self.device))
                for name, model in models.items():
                    parts[name].append(model(shown))
        return {name: torch.cat(part) for name, part in parts.items()}

    def features(self, split: str, view: View) -> dict[str, Tensor]:
        """Features (N, D_s) of all frozen streams, from disk when they were computed before."""

        def make() -> dict[str, Any]:
            seen = self.seen(split, view, {name: self.stream(name) for name in self.names})
            return {name: z_ND.cpu().numpy() for name, z_ND in seen.items()}

        attacked = "" if view.threat is None else self._sum(self.head(view.threat))
        words = f"{self._key} {split} {view.perturb!r} {attacked} {self.size} {self.chunk}"
        if view is CLEAN:
            words = f"{self._key} {split} clean {self.size} {self.chunk}"
        key = f"features-{hashlib.sha256(words.encode()).hexdigest()[:32]}"
        folder = self.cache
        if folder is None:
            arrays = make()
        else:
            files.make_folder(folder)
            with files.exclusive_lock(folder / f"{key}.lock", wait=True):
                arrays = cached_arrays(key, make, folder)
        return {name: torch.from_numpy(z_ND).to(self.device) for name, z_ND in arrays.items()}

    @cached_property
    def _key(self) -> str:
        """All that features depend on: pictures, labels and streams, random starts, arithmetic."""
        streams = " ".join(f"{name} {self._sum(self.stream(name))}" for name in self.names)
        splits = [tensor for split in self.data.splits.values() for tensor in split]
        where = f"{self.device.type} {torch.get_num_threads()} {torch.__version__}"
        return f"{digest(splits)} {streams} {self.seed} {where}"

    @staticmethod
    def _sum(model: nn.Module) -> str:
        return digest(list(model.state_dict().values()))
