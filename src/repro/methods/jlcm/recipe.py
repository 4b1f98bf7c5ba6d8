"""The recipe: every choice of joint learning and of its rivals, as one flat list of settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le
from torch import nn

from repro.errors import UserError
from repro.knobs import Count, Fraction, Natural, Positive, checked
from repro.methods.jlcm.mapping import Kernel
from repro.methods.jlcm.neurons import Criterion

Learner = Literal["joint", "alternate", "soft", "start", "uniform", "product"]


@checked
@dataclass
class Recipe:
    """How the weights of a network are put into codebooks. Defaults are JLCM's, as far as known.

    Attributes:
        k: values of a codebook.
        groups: G, of rows, in each layer.
        edge_groups: G of the first and the last layer, which are small.
        group_by: see `repro.methods.jlcm.neurons.neuron_groups`; ``rows`` is a group for each row.
        permute: renumber neurons, where they are free, so that groups are contiguous.
        variant: a codebook for each group, or one codebook for all and ``scales``.
        importance: what k-means weighs a weight with: nothing, or its squared ``gradients``, summed
            over calibration examples.
        kmeans_iterations: of the start.
        learner: ``joint`` (gradients of codebook and mapping); ``start`` (k-means and no more);
            ``alternate`` (codebook by gradients, mapping by coordinate descent on the layer's
            quadratic error); ``soft`` (weights attracted to values by a softmax whose temperature
            falls, as in DKM); ``uniform`` (equidistant values, the weight's position learned);
            ``product`` (k-means of vectors).
        kernel: of the mapping's gradient, see `repro.methods.jlcm.mapping`.
        mapping_start: ``onehot`` or ``distance``.
        mapping_size: δ of onehot, τ of distance.
        train_codebook: learn the values.
        train_mapping: learn the mapping.
        mapping_optimizer: ``sgd`` or ``adam``.
        mapping_lr: its rate; for ``soft`` and ``uniform`` Adam's rate of the weights, in units of
            the mean gap between values.
        momentum: of SGD.
        codebook_lr: Adam's, for values and scales.
        iterations: updates for each layer.
        batch_size: calibration examples in an update.
        rounds: of ``alternate``.
        temperature: of ``soft``, first value, in units of the mean gap; the last is a hundredth.
        vector: length of the vectors of ``product``.
        skip: patterns of layer names to leave alone.
    """

    k: Annotated[int, Ge(2), Le(256)] = 4
    groups: Count = 1
    edge_groups: Count = 1
    group_by: Criterion | Literal["rows"] = "std"
    permute: bool = True
    variant: Literal["codebooks", "scales"] = "codebooks"
    importance: Literal["none", "gradients"] = "none"
    kmeans_iterations: Natural = 25
    learner: Learner = "joint"
    kernel: Kernel = "inv"
    mapping_start: Literal["onehot", "distance"] = "onehot"
    mapping_size: Positive = 1.0
    train_codebook: bool = True
    train_mapping: bool = True
    mapping_optimizer: Literal["sgd", "adam"] = "sgd"
    mapping_lr: Positive = 1.0
    momentum: Fraction = 0.9
    codebook_lr: Positive = 1e-3
    iterations: Natural = 20000
    batch_size: Count = 32
    rounds: Count = 5
    temperature: Positive = 0.1
    vector: Count = 4
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.learner in ("uniform", "product") and self.variant == "scales":
            raise UserError(f"method.learner={self.learner} has no method.variant=scales.")
        if self.learner == "uniform" and self.k not in (4, 8, 16, 32, 64, 128, 256):
            raise UserError("method.learner=uniform takes a power of two from 4 on as method.k.")

    def attach(self, _model: nn.Module) -> None:
        """What `repro.training.supervised.Supervised` calls first of a method: refuses.

        Raises:
            UserError: always; there is nothing here that changes an update of training.
        """
        raise UserError(
            "Codebooks are learned where training ends: use this method with paper=jlcm."
        )
