"""Contextual fusion: two frozen networks of different tasks, one linear classifier on both.

Akumalla, Haney, Bazhenov, "Contextual Fusion For Adversarial Robustness", arXiv 2011.09526.
Pooled features of a network of objects (foreground) and of one of scenes (background) are
concatenated, and a softmax layer is trained on them::

    a = V_f z_f + V_b z_b + c
    L = mean_i cross_entropy(a_i, t_i) + alpha_f ||V_f||² + alpha_b ||V_b||²

Pictures that were changed to fool the foreground network still show their background to the other
one; where it is known which stream is attacked, a penalty on its columns moves the decision to the
clean one. Both networks stay as they are, so features are computed once:

>>> import torch
>>> from torch import nn
>>> from repro.methods.contextual_fusion import FeatureFusion, HeadTraining, Stream
>>> from repro.toolbox.attacks import FGSM
>>> _ = torch.manual_seed(0)
>>> y = torch.arange(200) % 2
>>> x = 0.5 + 0.15 * (2 * y - 1)[:, None, None, None] + 0.1 * torch.randn(200, 1, 4, 4)
>>> x = x.clamp(0, 1)
>>> class Columns(nn.Module):  # sees some columns of a picture only
...     def __init__(self, *columns):
...         super().__init__()
...         self.columns = columns
...     def forward(self, x):
...         return x[..., self.columns].flatten(1)
>>> fg, bg = Stream(Columns(0, 1), 8), Stream(Columns(2, 3), 8)
>>> models = {"fg": FeatureFusion({"fg": fg}, 2), "joint": FeatureFusion({"fg": fg, "bg": bg}, 2)}
>>> for model in models.values():
...     z = model.features(x)
...     model.standardise(z)
...     training = HeadTraining(model, z, y, batch_size=50)
...     optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
...     for epoch in range(20):
...         _ = training.epoch(optimizer, epoch)
>>> attacked = FGSM(0.25)(models["fg"], x, y)   # against the foreground alone ...
>>> fg, joint = ((m(attacked).argmax(1) == y).float().mean() for m in models.values())
>>> bool(fg < 0.3 < 0.7 < joint)                # ... and shown to both
True

Shapes: N examples, B of a batch, D_s features of stream s, D of all streams, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from repro.data.base.iterators import BatchIterator
from repro.errors import UserError, did_you_mean
from repro.knobs import Count, NonNegative, checked


class Stream(nn.Module):
    """A feature extractor of pictures in [0, 1]; unless told otherwise, a frozen one.

    Resizing and normalisation are inside: an attack through it counts its budget in plain pixels.
    Maps pictures (B, C, H, W) to features (B, width).

    Args:
        network: maps normalised pictures to features.
        width: number of features.
        size: height and width that pictures are resized to (bilinear); None: as they come.
        mean: subtracted from each channel.
        std: what each channel is then divided by.
        frozen: False lets the network be trained: gradients, batch statistics and all.
    """

    mean: Tensor  # (C, 1, 1)
    std: Tensor

    @checked
    def __init__(
        self,
        network: nn.Module,
        width: Count,
        size: Count | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.width, self.size, self.frozen = network, width, size, frozen
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1))
        self.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Stream:
        """Switches to training mode, unless frozen: batch norm keeps its statistics."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width) of pictures (B, C, H, W)."""
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        return self.network((x - self.mean) / self.std)


class FeatureFusion(nn.Module):
    """Streams side by side and one linear classifier on their concatenated features.

    Features are standardised first, or a penalty would weigh on streams by the scale of their
    features; `folded` gives the classifier of the features as they are.

    Args:
        streams: by name; at least one.
        classes: K.

    Raises:
        UserError: no streams, or no classes.
    """

    mean: Tensor  # (D,)
    std: Tensor

    @checked
    def __init__(self, streams: Mapping[str, Stream], classes: Count) -> None:
        super().__init__()
        if not streams:
            raise UserError("contextual_fusion: at least one stream is needed.")
        self.streams = nn.ModuleDict(streams)
        self.widths = {name: stream.width for name, stream in streams.items()}
        width = sum(self.widths.values())
        self.head = nn.Linear(width, classes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of pictures (B, C, H, W) in [0, 1]."""
        return self.logits(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Concatenated features (B, D) of pictures, not standardised."""
        return torch.cat([stream(x) for stream in self.streams.values()], dim=1)

    def logits(self, z_BD: Tensor) -> Tensor:
        """Logits (B, K) of features that were computed before."""
        return self.head((z_BD - self.mean) / self.std)

    def standardise(self, z_ND: Tensor) -> None:
        """Takes mean and deviation from the features of the training set."""
        self.mean.copy_(z_ND.mean(0))
        std_D = z_ND.std(0)
        # What is constant in training says nothing: it is left alone rather than blown up.
        self.std.copy_(torch.where(std_D > 1e-6, std_D, torch.ones_like(std_D)))

    def columns(self, stream: str) -> slice:
        """Where the features of a stream are among all.

        Raises:
            UserError: there is no such stream.
        """
        if stream not in self.widths:
            raise UserError(
                f"contextual_fusion: there is no stream '{stream}' here, only"
                f" {', '.join(self.widths)}.{did_you_mean(stream, self.widths)}"
            )
        start = 0
        for name, width in self.widths.items():
            if name == stream:
                break
            start += width
        return slice(start, start + width)

    def block(self, stream: str) -> Tensor:
        """The weights of a stream's standardised features, (K, D_s)."""
        return self.head.weight[:, self.columns(stream)]

    def penalty(self, alphas: Mapping[str, float]) -> Tensor:
        """``sum_s alpha_s ||V_s||²``, sums of squares; neither the bias nor other streams count."""
        terms = [alpha * self.block(stream).square().sum() for stream, alpha in alphas.items()]
        return torch.stack(terms).sum() if terms else self.head.weight.new_zeros(())

    def share(self, stream: str) -> Tensor:
        """``||V_s|| / sum_r ||V_r||``: how much of the decision is a stream's."""
        norms = {name: self.block(name).norm() for name in self.widths}
        return norms[stream] / torch.stack(list(norms.values())).sum()

    def without(self, z_BD: Tensor, stream: str) -> Tensor:
        """Features (B, D) in which a stream's are at their training mean: it says nothing."""
        columns = self.columns(stream)
        z_BD = z_BD.clone()
        z_BD[:, columns] = self.mean[columns]
        return z_BD

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights (K, D) and bias (K,) of the same classifier, on features as they are."""
        weight_KD = self.head.weight / self.std
        return weight_KD, self.head.bias - weight_KD @ self.mean


class HeadTraining:
    """Mini-batch training of a fusion's classifier on features that were computed once.

    Batches are a function of (seed, epoch) alone: heads that are trained alike are equal.

    Args:
        model: its streams are not called.
        z_ND: features of the training set.
        y_N: their labels.
        batch_size: examples in an update.
        penalties: alpha by stream, see `FeatureFusion.penalty`; streams not named have none.
        seed: of the batches.

    Raises:
        UserError: a stream that the model has not, or a knob out of range.
    """

    @checked
    def __init__(
        self,
        model: FeatureFusion,
        z_ND: Tensor,
        y_N: Tensor,
        batch_size: Count = 128,
        penalties: Mapping[str, NonNegative] | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.z_ND, self.y_N = model, z_ND, y_N
        self.penalties = dict(penalties or {})
        model.penalty(self.penalties)  # refuses streams that there are not
        self.batches = BatchIterator((z_ND, y_N), batch_size, shuffle=True, seed=seed)

    def loss(self, z_BD: Tensor, y_B: Tensor) -> Tensor:
        """The mean cross-entropy with the penalty, a scalar."""
        loss = F.cross_entropy(self.model.logits(z_BD), y_B)
        return loss + self.model.penalty(self.penalties)

    def epoch(self, optimizer: Optimizer, number: int) -> Tensor:
        """Passes once over the training set; returns the detached mean loss.

        Args:
            optimizer: of the head's parameters.
            number: of the epoch, from 0.
        """
        losses = list(self._updates(optimizer, number))
        optimizer.zero_grad()
        return torch.stack(losses).mean()

    def _updates(self, optimizer: Optimizer, number: int) -> Iterator[Tensor]:
        for z_BD, y_B in self.batches.batches(number):
            optimizer.zero_grad()
            loss = self.loss(z_BD, y_B)
            loss.backward()
            optimizer.step()
            yield loss.detach()

    def gradient_norm(self) -> float:
        """Norm of the gradient on the whole training set: zero where training has converged."""
        parameters = list(self.model.head.parameters())
        gradients = torch.autograd.grad(self.loss(self.z_ND, self.y_N), parameters)
        return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def context_scores(z_ND: Tensor, y_N: Tensor, classes: int) -> dict[str, Tensor]:
    """How much each class's surroundings are its own, by the features of a background stream.

    The paper's own statistic was not to be had; these are two readings of its words.

    Args:
        z_ND: features of the background stream.
        y_N: labels; every class occurs.
        classes: K.

    Returns:
        ``between`` (K,): mean cosine distance of the class's mean to those of the others.
        ``within`` (K,): mean squared distance of the class's features to their mean.
    """
    means_KD = torch.stack([z_ND[y_N == k].mean(0) for k in range(classes)])
    directions_KD = F.normalize(means_KD)
    distances_KK = 1 - directions_KD @ directions_KD.T
    within_N = (z_ND - means_KD[y_N]).square().sum(1)
    return {
        "between": (distances_KK.sum(1) - distances_KK.diagonal()) / (classes - 1),
        "within": torch.stack([within_N[y_N == k].mean() for k in range(classes)]),
    }


def class_accuracies(logits_NK: Tensor, y_N: Tensor) -> Tensor:
    """Share of right answers for each class, (K,); not a number for classes that do not occur."""
    right_N = (logits_NK.argmax(1) == y_N).double()
    counts_K = torch.bincount(y_N, minlength=logits_NK.shape[1])
    return torch.bincount(y_N, right_N, minlength=logits_NK.shape[1]) / counts_K


def rank_correlation(gains_K: Tensor, scores_K: Tensor) -> float:
    """Spearman's correlation of two quantities over classes; 0 where one of them is constant.

    Classes for which either is not a number are left out.
    """
    from scipy.stats import spearmanr

    known_K = ~(gains_K.isnan() | scores_K.isnan())
    pairs = [values[known_K].cpu() for values in (gains_K, scores_K)]
    if any(len(values.unique()) < 2 for values in pairs):
        return 0.0
    return float(spearmanr(*(values.numpy() for values in pairs)).statistic)
