"""Quantising a network unit by unit: capture what flows, learn the rounding, move on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repro.data.base.iterators import generator_for
from repro.methods.gradient_ptq.activations import ActivationQuantizer
from repro.methods.gradient_ptq.allocation import allocate_bits, importance, order_scores
from repro.methods.gradient_ptq.hessian import hessian_rounding, layer_hessian
from repro.methods.gradient_ptq.recipe import Mixed, Recipe, scheduler
from repro.toolbox.reconstruction import (
    Flow,
    Grid,
    Report,
    Unit,
    UnitByUnit,
    batches,
    best_exponent,
    capture,
    fit_grid,
    following_activation,
    on_device,
    output_gradients,
    precise,
    weight_name,
)
from repro.toolbox.reconstruction.losses import WITH_GRADIENTS, loss_for, lp, scaled_gradients
from repro.toolbox.reconstruction.variables import Variable, variable_for

SCALE_BITS = 32
NEAR_HALF = 0.5  # the fractional part that rounding is least sure about


class PostTrainingQuantization(UnitByUnit):
    """Quantises a model in place; iterating does it, one unit at a time.

    Every random draw of a unit is a function of the seed and the unit's number, so that a run that
    was interrupted may go on with `step` at any unit, given the model as it was.

    Args:
        model: in evaluation mode, batch norms folded. Its weights are replaced by weights on the
            grid; with activations, quantisers hook into it and are its ``activation_quantizers``.
        recipe: how.
        x: (N, …) calibration inputs.
        targets: their labels (N,) or next tokens (N, T), for importance and Fisher losses; None
            takes the model's own predictions.
        seed: of everything random.
        reference: the float model; None copies `model`.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        x: Tensor,
        targets: Tensor | None = None,
        seed: int = 0,
        reference: nn.Module | None = None,
    ) -> None:
        super().__init__(
            model,
            x,
            recipe.unit,
            recipe.skip,
            max(recipe.batch_size, 64),
            targets,
            seed,
            reference,
        )
        self.recipe = recipe
        self._importance: dict[int, dict[str, Tensor]] = {}
        self.bits = self._bits()
        self.exponent = self._exponent()
        self.quantizers = self._attach_quantizers()

    # -- Doing it --

    @property
    def passes(self) -> list[tuple[Unit, bool]]:
        """The steps in order: every unit's weights, then perhaps every unit's activation steps."""
        second = self.recipe.activations is not None and not self.recipe.activations.together
        weights = [(unit, False) for unit in self.units]
        return weights + [(unit, True) for unit in self.units if second]

    @property
    def steps(self) -> int:
        """One for each of the `passes`."""
        return len(self.passes)

    def step(self, number: int) -> Report:
        """Quantises the weights, or learns the activation steps, of one unit."""
        unit, activations = self.passes[number]
        generator = generator_for(self.seed, number)
        if activations:
            return self._learn_activations(unit, generator)
        if self.recipe.activations is not None and self.recipe.activations.together:
            self._find_ranges(unit)
        if self.recipe.rounding != "gradient":
            return self._round(unit)
        return self._learn_weights(unit, generator)

    def _round(self, unit: Unit) -> Report:
        """Rounds to nearest, or by the Hessian; layer after layer."""
        for layer in unit.layers:
            module, grid = self.model.get_submodule(layer), self.grid(layer)
            weight = self.model.get_parameter(weight_name(layer))
            if self.recipe.rounding == "hessian":
                x_hat = capture(self.model, layer, self.x, self.batch).x
                hessian = layer_hessian(module, precise(x_hat))
                weight.copy_(hessian_rounding(precise(weight), hessian, grid))
            else:
                weight.copy_(grid.nearest(precise(weight)))
        return self.report(unit)

    def _learn_weights(self, unit: Unit, generator: torch.Generator) -> Report:
        recipe, module = self.recipe, self.model.get_submodule(unit.name)
        quantised, flow = self.flows(unit)
        activation = self._following(unit)
        variables = {
            unit.inside(layer): variable_for(recipe.variable)(
                self.float_weight(layer),
                self.grid(layer),
                self._selected(layer, generator),
            )
            for layer in unit.layers
        }
        dtype = module.get_parameter(weight_name(next(iter(variables)))).dtype
        biases = self._biases(module, variables)
        optimizers = [recipe.make_optimizer([v.moved for v in variables.values()])]
        scales = self._scale_groups(variables, biases)
        if scales:
            optimizers.append(torch.optim.Adam(scales))
        schedulers = [scheduler(o, recipe.schedule, recipe.iterations) for o in optimizers]
        inside = self._inside(unit)
        if recipe.activations is not None and recipe.activations.together and inside:
            steps = torch.optim.Adam([q.step for q in inside], lr=recipe.activations.lr)
            optimizers.append(steps)
            schedulers.append(scheduler(steps, "cosine", recipe.iterations))
        loss_of = self._loss(unit, activation)
        order = batches(len(self.x), recipe.batch_size, recipe.iterations, generator)
        device_generator = on_device(generator, self.x.device)
        with self._dropping(inside, device_generator), _learnable(inside):
            for iteration, index in enumerate(order):
                x, target = self._augmented(unit, quantised, flow, index, device_generator)
                weights = {weight_name(name): v.soft().to(dtype) for name, v in variables.items()}
                out = functional_call(
                    module, {**weights, **biases}, (x, *flow.rest), flow.named, strict=False
                )
                loss = loss_of(out, target, index)
                beta = recipe.beta_at(iteration / recipe.iterations)
                pushes = (v.regulariser(beta) for v in variables.values() if beta is not None)
                push = sum(p for p in pushes if p is not None)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                (loss + recipe.regularisation * push).backward()
                for optimizer, schedule in zip(optimizers, schedulers, strict=True):
                    optimizer.step()
                    schedule.step()
                for variable in variables.values():
                    variable.project()
        for name, variable in variables.items():
            module.get_parameter(weight_name(name)).copy_(variable.hard())
        for name, bias in biases.items():
            module.get_parameter(name).copy_(bias.detach())
        undecided = statistics.fmean(v.undecided() for v in variables.values())
        return self.report(unit, undecided, float(loss.detach()))

    def _learn_activations(self, unit: Unit, generator: torch.Generator) -> Report:
        """The second pass: LSQ on the steps, with the weights fixed; loss to the power 2.4."""
        how = self.recipe.activations
        assert how is not None
        self._find_ranges(unit)
        inside = self._inside(unit)
        if not inside:
            return self.report(unit)
        quantised, flow = self.flows(unit)
        behind = self._following(unit) or nn.Identity()
        module, optimizer = (
            self.model.get_submodule(unit.name),
            torch.optim.Adam([q.step for q in inside], lr=how.lr),
        )
        schedule = scheduler(optimizer, "cosine", how.iterations)
        assert flow.output is not None
        with _learnable(inside):
            for index in batches(len(self.x), self.recipe.batch_size, how.iterations, generator):
                out = module(quantised[index], *flow.rest, **flow.named)
                loss = lp(precise(behind(out)), precise(behind(flow.output[index])))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return self.report(unit, loss=float(loss.detach()))

    # -- Its parts --

    def grid(self, layer: str) -> Grid:
        """The grid of a layer, fitted to its float weight."""
        return fit_grid(
            self.float_weight(layer),
            self.bits[layer],
            exponent=self.exponent,
            **self.recipe.grid_settings(),
        )

    def average_bits(self) -> float:
        """Bits per weight over all quantised layers, scales included."""
        bits = weights = 0
        for layer in self.layers:
            weight = self.reference.get_parameter(weight_name(layer))
            of_layer = torch.as_tensor(self.bits[layer])
            bits += int(of_layer.sum()) * (weight.numel() // of_layer.numel())
            scales = len(weight) if self.recipe.per_channel else 1
            bits += SCALE_BITS * scales * (1 if self.recipe.symmetric else 2)
            weights += weight.numel()
        return bits / weights

    def importance(self, steps: int = 0) -> dict[str, Tensor]:
        """Importance of every weight, by `repro.methods.gradient_ptq.allocation.importance`."""
        if steps not in self._importance:
            parts = [slice(i, i + self.batch) for i in range(0, len(self.x), self.batch)]

            def loss() -> Tensor:
                """The mean loss; all parts but the last have run backward already."""
                for part in parts[:-1]:
                    of_part(part).backward()
                return of_part(parts[-1])

            def of_part(part: slice) -> Tensor:
                return self.task_loss(self.reference(self.x[part]), part) / len(self.x)

            self._importance[steps] = importance(self.reference, self.layers, loss, steps)
        return self._importance[steps]

    def _bits(self) -> dict[str, int | Tensor]:
        recipe = self.recipe
        bits: dict[str, int | Tensor] = dict.fromkeys(self.layers, recipe.bits)
        edges: dict[str, int | Tensor] = {}
        if recipe.edge_bits is not None:
            edges = dict.fromkeys((self.layers[0], self.layers[-1]), recipe.edge_bits)
        if recipe.mixed is not None:
            bits |= self._mixed_bits(recipe.mixed, [k for k in self.layers if k not in edges])
        return bits | edges

    def _mixed_bits(self, mixed: Mixed, layers: list[str]) -> dict[str, int | Tensor]:
        """Bits by importance, for each layer or for each of its output channels."""
        by_channel = mixed.unit == "channel"
        weights = {layer: self.reference.get_parameter(weight_name(layer)) for layer in layers}

        def per_unit(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            start = 1 if by_channel else 0
            return {k: values[k].flatten(start).mean(-1).view(-1).cpu() for k in layers}

        magnitude = per_unit({layer: weight.abs() for layer, weight in weights.items()})
        informed = mixed.order in ("importance", "reversed")
        scores = per_unit(self.importance(mixed.steps)) if informed else magnitude
        sizes = {k: torch.full_like(v, weights[k].numel() / len(v)) for k, v in magnitude.items()}
        chosen = allocate_bits(
            order_scores(mixed.order, scores, magnitude, self.seed),
            sizes,
            low=mixed.low,
            high=mixed.high,
            budget=mixed.budget,
        )
        return {layer: bits if by_channel else int(bits) for layer, bits in chosen.items()}

    def _exponent(self) -> float:
        """The power grid's exponent, given or found."""
        if self.recipe.quantizer != "power":
            return 1.0
        if self.recipe.exponent is not None:
            return self.recipe.exponent
        weights = [self.float_weight(layer) for layer in self.layers]
        return best_exponent(weights, list(self.bits.values()), **self.recipe.grid_settings())

    def _attach_quantizers(self) -> dict[str, ActivationQuantizer]:
        """Activation quantisers by the name of the module they belong to."""
        how = self.recipe.activations
        if how is None:
            return {}
        found: dict[str, ActivationQuantizer] = {}

        def make(name: str, bits: int) -> ActivationQuantizer:
            quantizer = found[name] = ActivationQuantizer(bits).to(self.x.device)
            quantizer.step.requires_grad_(False)
            return quantizer

        for layer in self.layers[1:]:  # the network's input stays as it is
            edge = layer == self.layers[-1] and self.recipe.edge_bits is not None
            quantizer = make(layer, self.recipe.edge_bits if edge else how.bits)  # type: ignore[arg-type]
            self.model.get_submodule(layer).register_forward_pre_hook(
                lambda _, args, q=quantizer: (q(args[0]), *args[1:])
            )
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Softmax) and any(_within(name, unit) for unit in self.units):
                quantizer = make(name, how.bits)
                module.register_forward_hook(lambda _, _args, out, q=quantizer: q(out))
        named = {name.replace(".", "/"): quantizer for name, quantizer in found.items()}
        self.model.activation_quantizers = nn.ModuleDict(named)
        return found

    def _inside(self, unit: Unit) -> list[ActivationQuantizer]:
        return [q for name, q in self.quantizers.items() if _within(name, unit)]

    def _find_ranges(self, unit: Unit) -> None:
        """Ranges of a unit's activations, as the quantised prefix delivers them."""
        inside = [q for q in self._inside(unit) if not q.is_ready]
        if not inside:
            return
        for quantizer in inside:
            quantizer.seen = []
        capture(self.model, unit.name, self.x, self.batch, output=True)
        for quantizer in inside:
            quantizer.find_range()

    @contextmanager
    def _dropping(
        self, quantizers: list[ActivationQuantizer], generator: torch.Generator
    ) -> Iterator[None]:
        """While weights are learned: activations at random (QDrop), or not at all quantised."""
        how = self.recipe.activations
        for quantizer in quantizers:
            assert how is not None
            quantizer.enabled, quantizer.keep = how.together, how.keep
            quantizer.generator = generator
        try:
            yield
        finally:
            for quantizer in quantizers:
                quantizer.enabled, quantizer.keep, quantizer.generator = True, 1.0, None

    def _following(self, unit: Unit) -> nn.Module | None:
        """The activation behind which a layer's outputs are compared; None where there is none."""
        if not self.recipe.include_activation or unit.layers != [unit.name]:
            return None
        return following_activation(self.reference, unit.name, self.x_reference[:1])

    def _loss(
        self, unit: Unit, activation: nn.Module | None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The loss of a unit's outputs, their targets, and the indices of their examples."""
        behind = activation or nn.Identity()
        name = self.recipe.loss
        if name == "kl" and unit is not self.units[-1]:
            name = "l2"  # a softmax means something only for logits
        loss, gradients = loss_for(name), None
        if name in WITH_GRADIENTS:
            gradients = scaled_gradients(
                precise(
                    output_gradients(
                        self.reference, unit.name, self.x, self.task_loss, self.batch, activation
                    )
                )
            )
        return lambda o, t, index: loss(
            precise(behind(o)),
            precise(behind(t)),
            None if gradients is None else gradients[index],
        )

    def _selected(self, layer: str, generator: torch.Generator) -> Tensor | None:
        """The weights that may move (factor F1)."""
        how, share = self.recipe.subset, self.recipe.subset_share
        weight = self.reference.get_parameter(weight_name(layer))
        if how == "all":
            return None
        if how == "near_half":
            position = self.grid(layer).position(precise(weight))
            return (position - position.floor() - NEAR_HALF).abs() < share / 2
        if how == "random":
            score = torch.rand(weight.shape, generator=generator).to(weight.device)
        else:
            score = self.importance()[layer]
        count = max(1, round(share * weight.numel()))
        return score >= score.flatten().topk(count).values[-1]

    def _augmented(
        self, unit: Unit, quantised: Tensor, flow: Flow, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A batch of inputs, changed as factor F2 says, and the targets that belong to it."""
        how, strength = self.recipe.augment, self.recipe.augment_strength
        assert flow.output is not None
        x = quantised[index]
        if how == "none":
            return x, flow.output[index]
        x_float = flow.x[index]
        if how == "drop":  # the target is that of the float input, which this comes nearer to
            floats = torch.rand(x.shape, device=x.device, generator=generator) < strength
            return torch.where(floats, x_float, x), flow.output[index]
        # Both inputs are changed alike, and the float unit says what should come out.
        if how == "noise":
            noise = torch.randn(x.shape, device=x.device, generator=generator, dtype=x.dtype)
            noise = noise * strength * x_float.std()
            x, x_float = x + noise, x_float + noise
        else:
            other = torch.randperm(len(x), device=x.device, generator=generator)
            shape = (len(x), *[1] * (x.dim() - 1))
            share = strength * torch.rand(shape, device=x.device, generator=generator)
            x = torch.lerp(x, x[other], share)
            x_float = torch.lerp(x_float, x_float[other], share)
        with torch.no_grad():
            module = self.reference.get_submodule(unit.name)
            return x, module(x_float, *flow.rest, **flow.named)

    def _biases(self, module: nn.Module, variables: dict[str, Variable]) -> dict[str, Tensor]:
        """Learnable copies of the unit's biases, by their name in the unit."""
        names = [f"{name}.bias" if name else "bias" for name in variables]
        known = dict(module.named_parameters())
        return {
            name: known[name].clone().requires_grad_()
            for name in names
            if self.recipe.learn_bias and name in known
        }

    def _scale_groups(
        self, variables: dict[str, Variable], biases: dict[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Parameter groups of what is learned besides the rounding."""
        groups: list[dict[str, Any]] = []
        if self.recipe.learn_scale:
            for variable in variables.values():
                scale = variable.grid.scale.clone()
                variable.grid.scale = nn.Parameter(scale)
                rate = self.recipe.scale_lr * float(scale.mean())
                groups.append({"params": [variable.grid.scale], "lr": rate})
        if biases:
            groups.append({"params": list(biases.values()), "lr": self.recipe.scale_lr})
        return groups


@contextmanager
def _learnable(quantizers: list[ActivationQuantizer]) -> Iterator[None]:
    """Steps take gradients inside, and nowhere else."""
    for quantizer in quantizers:
        quantizer.step.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for quantizer in quantizers:
            quantizer.step.requires_grad_(False)


def _within(name: str, unit: Unit) -> bool:
    return name == unit.name or name.startswith(f"{unit.name}.")
