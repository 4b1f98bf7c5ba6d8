"""A network into codebooks, layer by layer; and large decoders, one block on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.methods.jlcm.learners import (
    Layer,
    kmeans_start,
    learn_alternately,
    learn_jointly,
    learn_softly,
    learn_uniformly,
    product_quantised,
)
from repro.methods.jlcm.neurons import Link, find_links, neuron_groups, permute_neurons
from repro.methods.jlcm.recipe import Recipe
from repro.toolbox.codebooks import CodedWeight
from repro.toolbox.pruning import Decoder, run_blocks
from repro.toolbox.reconstruction import (
    Report,
    Unit,
    UnitByUnit,
    following_activation,
    weight_name,
)


@dataclass
class Mapped(Report):
    """What became of a layer's mapping besides.

    Attributes:
        flips: weights whose code is not that of the start.
        jumps: those of them that moved by more than one value, in the start's order.
        weights: of the layer.
        used: values that any weight has.
        values: there are.
    """

    flips: int = 0
    jumps: int = 0
    weights: int = 0
    used: int = 0
    values: int = 0


class CodebookCompression(UnitByUnit):
    """Puts a model's layers into codebooks, in place; iterating does it, one layer at a time.

    Every random draw of a layer is a function of the seed and the layer's number, so that a run
    that was interrupted may go on with `step` at any layer, given the model as it was. With
    ``permute`` the model's neurons (and those of the reference) are renumbered at once.

    Args:
        model: in evaluation mode, batch norms folded. Its weights are replaced.
        recipe: how.
        x: (N, …) calibration inputs.
        targets: their labels (N,) or next tokens (N, T), for importance; None takes the model's
            own predictions.
        seed: of everything random.
        reference: the float model; None copies `model`.
        x_reference: see `repro.toolbox.reconstruction.UnitByUnit`.

    Attributes:
        groups: group of each row, by layer.
        links: neurons that were renumbered.
        coded: weights in codebooks so far, by layer.
        stored: bits of layers so far.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        x: Tensor,
        targets: Tensor | None = None,
        seed: int = 0,
        reference: nn.Module | None = None,
        x_reference: Tensor | None = None,
    ) -> None:
        super().__init__(
            model,
            x,
            skip=recipe.skip,
            batch=max(recipe.batch_size, 64),
            targets=targets,
            seed=seed,
            reference=reference,
            x_reference=x_reference,
        )
        self.recipe = recipe
        self.groups = {layer: self._groups(number) for number, layer in enumerate(self.layers)}
        self.links: list[Link] = []
        if recipe.permute and any(int(groups.max()) for groups in self.groups.values()):
            self._renumber()
        self._importance: dict[str, Tensor] | None = None
        self.coded: dict[str, CodedWeight] = {}
        self.stored: dict[str, int] = {}

    def step(self, number: int) -> Mapped:
        """Puts one layer into codebooks."""
        unit, recipe = self.units[number], self.recipe
        layer = self.layer(unit)
        weight = self.model.get_parameter(weight_name(unit.name))
        if recipe.learner == "product":
            values, self.stored[unit.name] = product_quantised(layer, recipe)
            weight.copy_(values)
            return Mapped(**vars(self.report(unit)), weights=values.numel())
        start = kmeans_start(layer, recipe)
        coded = self._learned(layer, start, generator_for(self.seed, number))
        weight.copy_(coded.weight())
        self.keep(unit.name, coded)
        moved = (coded.codes.int() - start.codes.int()).abs()
        return Mapped(
            **vars(self.report(unit)),
            flips=int((moved > 0).sum()),
            jumps=int((moved > 1).sum()),
            weights=moved.numel(),
            used=coded.used(),
            values=coded.codebooks.numel(),
        )

    def layer(self, unit: Unit) -> Layer:
        """A layer with its inputs and targets."""
        name = unit.name
        x, flow = self.flows(unit)
        assert flow.output is not None
        groups = self.groups[name]
        return Layer(
            module=self.model.get_submodule(name),
            weight=self.float_weight(name),
            groups=groups,
            x=x,
            target=flow.output,
            activation=following_activation(self.reference, name, self.x_reference[:1]),
            importance=self.importance()[name] if self.recipe.importance != "none" else None,
            implied=bool((groups.diff() >= 0).all()),
        )

    def keep(self, layer: str, coded: CodedWeight) -> None:
        """Notes what a layer became."""
        self.coded[layer] = coded
        self.stored[layer] = coded.bits()

    def importance(self) -> dict[str, Tensor]:
        """Squared gradients of the task's loss, one example at a time, then summed, by layer."""
        if self._importance is None:
            weights = {
                name: self.reference.get_parameter(weight_name(name)) for name in self.layers
            }
            sums = {name: torch.zeros_like(w) for name, w in weights.items()}
            for weight in weights.values():
                weight.requires_grad_(True)
            for number in range(len(self.x_reference)):
                part = slice(number, number + 1)
                with torch.enable_grad():
                    loss = self.task_loss(self.reference(self.x_reference[part]), part)
                gradients = torch.autograd.grad(loss, list(weights.values()))
                for name, gradient in zip(weights, gradients, strict=True):
                    sums[name] += gradient.square()
            for weight in weights.values():
                weight.requires_grad_(False)
            self._importance = sums
        return self._importance

    def bits(self) -> tuple[int, int]:
        """Bits of the layers compressed so far, and of the whole model as it then is."""
        layers = sum(self.stored.values())
        coded = {weight_name(name) for name in self.stored}
        rest = sum(
            8 * tensor.numel() * tensor.dtype.itemsize
            for name, tensor in self.model.named_parameters()
            if name not in coded
        )
        return layers, layers + rest

    def _learned(self, layer: Layer, start: CodedWeight, generator: torch.Generator) -> CodedWeight:
        if self.recipe.learner == "joint":
            return learn_jointly(layer, start, self.recipe, generator)
        if self.recipe.learner == "alternate":
            return learn_alternately(layer, start, self.recipe, generator)
        if self.recipe.learner == "soft":
            return learn_softly(layer, start, self.recipe, generator)
        if self.recipe.learner == "uniform":
            return learn_uniformly(layer, self.recipe, generator)
        return start

    def _groups(self, number: int) -> Tensor:
        recipe, weight = self.recipe, self.float_weight(self.layers[number])
        if recipe.group_by == "rows":
            return torch.arange(len(weight), device=weight.device)
        is_edge = number in (0, len(self.layers) - 1)
        count = recipe.edge_groups if is_edge else recipe.groups
        generator = generator_for(self.seed, number, 1)
        return neuron_groups(weight, count, recipe.group_by, generator)

    def _renumber(self) -> None:
        """Makes groups contiguous where neurons are free; the first producer of several decides."""
        self.links = find_links(self.reference, self.x_reference[:4], self.layers)
        for link in self.links:
            order = self.groups[link.producers[0]].argsort(stable=True)
            for model in (self.model, self.reference):
                permute_neurons(model, link, order)
            for layer in (*link.producers, *link.between):
                if layer in self.groups:
                    self.groups[layer] = self.groups[layer][order]


@torch.no_grad()
def compress_blocks(
    decoder: Decoder,
    recipe: Recipe,
    tokens_NT: Tensor,
    seed: int = 0,
    device: torch.device | None = None,
    batch_size: int = 1,
    done: dict[str, CodedWeight] | None = None,
) -> Iterator[dict[str, Mapped]]:
    """Puts the linear layers of a decoder's blocks into codebooks, in place; each step is a block.

    Beyond the model, memory holds the inputs of one block, float and compressed, and what one block
    needs. Embedding, norms and head are left alone.

    Args:
        decoder: in three stages, as `repro.models.language.llama.Llama`.
        recipe: how; ``importance`` needs the whole model's loss and is not for here.
        tokens_NT: N calibration sequences of T tokens.
        seed: of everything random.
        device: blocks visit it one at a time and go back to where they were; None: they stay.
        batch_size: sequences at a time.
        done: weights by ``<block>.<layer>``: blocks that have all of theirs in it are taken from
            it, as they were, and new ones are added.

    Yields:
        Reports by name of layer; of a block that was taken from `done`, none.
    """
    done = {} if done is None else done
    home = tokens_NT.device
    x = torch.cat([decoder.embed(part) for part in tokens_NT.split(batch_size)])
    x_float = x.clone()
    for index, block in enumerate(decoder.blocks):
        place = next(block.parameters()).device
        block.to(device or place)
        reference = copy.deepcopy(block)
        work = CodebookCompression(
            block, recipe, x.to(device or home), None, seed + index, reference,
            x_float.to(device or home),
        )  # fmt: skip
        names = [f"{index}.{layer}" for layer in work.layers]
        reports: dict[str, Mapped] = {}
        if all(name in done for name in names):
            for name, layer in zip(names, work.layers, strict=True):
                block.get_parameter(weight_name(layer)).copy_(done[name].weight())
        else:
            for number, (name, layer) in enumerate(zip(names, work.layers, strict=True)):
                reports[name], done[name] = work.step(number), work.coded[layer]
        run_blocks([reference], x_float, batch_size)
        run_blocks([block], x, batch_size)
        block.to(place)
        yield reports
