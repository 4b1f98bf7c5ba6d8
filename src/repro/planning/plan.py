"""From a command to the runs of a study: arms × seeds × grid points, in layers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from repro.errors import UserError, did_you_mean
from repro.planning import compose, extras
from repro.planning.compose import Layer, Point
from repro.records.layers import expand, flatten
from repro.records.papers import OF_STUDIES, WHICH_PAPER, Paper, is_group, load_paper
from repro.records.study import LOOK_KEYS, Looks

# Settings of a study rather than of a run.
STUDY_KEYS = ("scale", "arm", "seed", "seeds", *LOOK_KEYS)
OPTIONAL_COUNTS = (
    "training.steps_per_epoch",
    "training.max_steps",
    "training.checkpoint.every_steps",
)
COUNTS = (
    "training.epochs",
    "training.val_every",
    "training.log_every",
    "hardware.accumulate",
    "hardware.threads",
    "hardware.num_nodes",
    *OPTIONAL_COUNTS,
)
WORDS = {"training.mode": ("min", "max"), "training.test_with": ("last", "best", "none")}


@dataclass(frozen=True)
class PlannedRun:
    """One run to be: an arm, a seed and a grid point, with the config composed for them."""

    arm: str
    seed: int
    point: Point
    parent: str | None  # the arm whose checkpoint of the same seed and point it starts from
    overrides: list[str]
    content: dict[str, Any]  # of `config`, which takes far longer to make

    @cached_property
    def config(self) -> DictConfig:
        """The composed config."""
        return OmegaConf.create(self.content)

    @property
    def folder(self) -> str:
        """The run directory, relative to the study's."""
        point = ",".join(f"{key}={value}" for key, value in self.point.items())
        parts = [self.arm, _file_name(point), f"seed={self.seed}"]
        return "/".join(part for part in parts if part)


@dataclass(frozen=True)
class Plan:
    """All runs of a study, and what led to them."""

    paper: Paper
    scale: str
    typed: list[str]
    runs: list[PlannedRun]
    hydra_overrides: list[str]
    notes: list[str] = field(default_factory=list)
    twins: dict[str, str] = field(default_factory=dict)  # arm that is not run -> arm it equals
    looks: Looks | None = None  # with seeds=auto
    rehearsal: dict[str, Any] | None = None  # see `repro.planning.rehearse`

    @property
    def is_grid(self) -> bool:
        """Whether the study varies something beyond arms and seeds."""
        return any(run.point for run in self.runs)

    def layers(self) -> list[list[PlannedRun]]:
        """The runs in an order in which every parent is done before its children start."""
        depth: dict[str, int] = {}

        def depth_of(arm: str, seen: tuple[str, ...] = ()) -> int:
            if arm in seen:
                raise UserError(f"Arms start from each other in a circle: {' <- '.join(seen)}.")
            if arm not in depth:
                parent = parents.get(arm)
                depth[arm] = 0 if parent is None else depth_of(parent, (*seen, arm)) + 1
            return depth[arm]

        parents = {run.arm: run.parent for run in self.runs}
        deepest = max((depth_of(arm) for arm in parents), default=0)
        return [[r for r in self.runs if depth_of(r.arm) == d] for d in range(deepest + 1)]


def plan_study(typed: Sequence[str], grid: bool = False) -> Plan:
    """Plans the study that the user's overrides ask for.

    Args:
        typed: overrides from the command line, ``paper=<slug>`` among them.
        grid: whether ``a=1,2`` spans a grid (the ``-m`` flag).

    A `UserError` says so if something in ``typed`` or in the paper's config is wrong.
    """
    with compose.hydra_ready():
        return _plan(list(typed), grid)


@dataclass(frozen=True)
class _Declared:
    """What a paper's config declares at the scale that is asked for."""

    slug: str
    arms: dict[str, Layer]
    parent: str | None  # the arm that all arms start from unless a layer says otherwise
    scale: str
    scale_layer: Layer
    settings: dict[str, Any]  # of the study: the scale's over the paper's

    def compose(self, texts: Sequence[str]) -> DictConfig:
        """The config of a run of the paper."""
        return compose.compose_run([f"paper={self.slug}", *texts])


def _plan(typed: list[str], grid: bool) -> Plan:
    layer = Layer.parse(typed, "command line")
    user, hydra = layer.where(lambda o: not _is_hydra(o)), layer.where(_is_hydra)
    for override in hydra.overrides:
        if override.key_or_group == "hydra/launcher":
            compose.check_launcher(str(override.value()))
    user, slug = _split_paper(_debugged(user))
    paper = load_paper(slug)
    if not grid:
        compose.refuse_grid(user)
    declared = _declare(slug, user)
    user = user.where(lambda o: _root(o) not in compose.STUDY_BLOCKS)  # `_declare` has read them
    compose.forget_study()
    notes: list[str] = []
    runs: list[PlannedRun] = []
    for layer, point in compose.expand_grid(user) if grid else [(user, {})]:
        runs += _plan_point(declared, layer, point, notes)
    runs, twins = _without_twins(runs)
    notes.extend(
        f"arm '{arm}' is not run: here it equals '{first}', whose runs count for both"
        for arm, first in twins.items()
    )
    typed_settings = user.pop(*STUDY_KEYS, "looks")[1]
    looks = _looks(declared.settings | typed_settings)
    _refuse_idle(typed_settings, looks)
    if looks is not None:
        _check_growing(grid, {run.arm for run in runs})
        after = ", ".join(map(str, looks.after))
        notes.append(f"claims are judged after {after} seeds; the arms of open ones get more")
    plan = Plan(
        paper=paper,
        scale=declared.scale,
        typed=typed,
        runs=runs,
        hydra_overrides=hydra.texts,
        notes=list(dict.fromkeys(notes)),
        twins=twins,
        looks=looks,
    )
    plan.layers()  # finds circles before anything is written
    _check_exclusive(runs)
    return plan


def _debugged(user: Layer) -> Layer:
    """Puts what ``debug=true`` stands for under what was typed."""
    if user.pop("debug")[1].get("debug") is not True:
        return user
    preset = Layer.parse(list(compose.compose_config([], "debug").overrides), "debug.yaml")
    typed = {override.key_or_group for override in user.overrides}
    under = preset.where(lambda o: o.key_or_group not in typed)
    return Layer((*under.overrides, *user.overrides))


def _split_paper(user: Layer) -> tuple[Layer, str]:
    for override in user.overrides:
        if override.key_or_group in ("paper", "scale") and override.is_sweep_override():
            raise UserError(f"{override.key_or_group} takes one name: start a study for each.")
    rest, chosen = user.pop("paper")
    if "paper" not in chosen:
        raise UserError(WHICH_PAPER)
    return rest, str(chosen["paper"])


def _declare(slug: str, user: Layer) -> _Declared:
    """Reads a paper's arms and scales, where the user may have put others.

    Raises:
        UserError: there is no such scale.
    """
    roots = ("scale", *compose.STUDY_BLOCKS)
    declaring = user.where(lambda o: _root(o) in roots and not o.is_sweep_override())
    config = compose.compose_run([f"paper={slug}", *declaring.texts])
    arms = _named_layers(config.arms, "arm")
    scales = _named_layers(config.scales, "scale")
    scale = str(config.scale)
    if scale not in scales:
        raise UserError(
            f"Paper '{slug}' has no scale '{scale}'.{did_you_mean(scale, scales)} "
            f"Known: {', '.join(scales)}."
        )
    scale_layer, settings = scales[scale].pop(*STUDY_KEYS)
    seeds = config.seeds if isinstance(config.seeds, str) else list(config.seeds)
    looks = {key: OmegaConf.select(config, key) for key in LOOK_KEYS}
    return _Declared(
        slug=slug,
        arms=arms,
        parent=config["from"],
        scale=scale,
        scale_layer=scale_layer,
        settings={"seeds": seeds, **looks, **settings},
    )


def _plan_point(
    declared: _Declared, layer: Layer, point: Point, notes: list[str]
) -> list[PlannedRun]:
    """Plans the runs of one grid point.

    Raises:
        UserError: what was typed does not go with an arm.
    """
    user, settings = layer.pop(*STUDY_KEYS)
    settings = {**declared.settings, **settings}
    seeds = _seeds(settings)
    parents = _parents(declared.parent, declared.scale_layer, declared.arms, user)
    asked = _arm_names(settings.get("arm"), declared.arms, declared.slug)
    own_point = {key: value for key, value in point.items() if key not in STUDY_KEYS}
    runs: list[PlannedRun] = []
    for arm in _with_parents(asked, declared.arms, parents, notes):
        texts = _texts(declared, arm, user)
        try:
            config = declared.compose(texts)
        except UserError:
            _refuse_unknown_settings(declared, arm, user)
            raise
        if not runs:  # the same in every arm
            _check_types(declared, config, arm, user)
        config["from"] = parents[arm]
        config.scale, config.arm = declared.scale, arm
        _drop_study_settings(config)
        runs += [
            PlannedRun(
                arm=arm,
                seed=seed,
                point=own_point,
                parent=parents[arm],
                overrides=[
                    f"paper={declared.slug}",
                    f"scale={declared.scale}",
                    *texts,
                    f"seed={seed}",
                ],
                content=content,
            )
            for seed, content in zip(seeds, _resolved(config, seeds), strict=True)
        ]
        _check_values(runs[-1].content)
    return runs


def _refuse_unknown_settings(declared: _Declared, arm: str, user: Layer) -> None:
    """Says which of the paper's arms have a setting that one of those asked for lacks.

    Raises:
        UserError: the user set what this arm does not have.
    """
    groups = _group_choices(user)

    def settings_of(name: str) -> dict[str, Any]:
        with suppress(UserError):  # an arm may belong to another scale
            config = declared.compose(_texts(declared, name, groups))
            return flatten(OmegaConf.to_container(config, resolve=False))
        return {}

    own = settings_of(arm)
    typed = [each.key_or_group for each in user.overrides if compose.sets_a_value(each)]
    lacking = [key for key in typed if key not in own]
    if not own or not lacking:
        return
    known = {name: own if name == arm else settings_of(name) for name in declared.arms}
    for key in lacking:
        having = [name for name in known if key in known[name]]
        if having:
            raise UserError(
                f"Arm '{arm}' has no setting '{key}'. Choose from those that have it: "
                f"arm=[{','.join(having)}]."
            )
        every = [name for keys in known.values() for name in keys]
        if not any(name.startswith(f"{key}.") for name in every):  # that would be a mapping
            raise UserError(compose.no_setting(key, every))


def _texts(declared: _Declared, arm: str, user: Layer) -> list[str]:
    return compose.stack([declared.scale_layer, declared.arms[arm], user])


def _check_types(declared: _Declared, config: DictConfig, arm: str, user: Layer) -> None:
    """Compares what the user set with what the config holds without it, but for groups chosen."""
    groups = _group_choices(user)
    if groups == user:
        return
    base = declared.compose(_texts(declared, arm, groups))
    compose.check_types(config, base, user)


def _root(override: Override) -> str:
    return override.key_or_group.split(".")[0]


def _is_hydra(override: Override) -> bool:
    """Whether an override sets something of Hydra's own."""
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def _named_layers(node: DictConfig, kind: str) -> dict[str, Layer]:
    named = expand(OmegaConf.to_container(node, resolve=True), kind, is_group)
    return {name: Layer.parse(texts, f"{kind} '{name}'") for name, texts in named.items()}


def _arm_names(asked: Any, arms: dict[str, Layer], slug: str) -> list[str]:
    if asked is None:
        return list(arms)
    names = [str(name) for name in (asked if isinstance(asked, list) else [asked])]
    if not names:
        raise UserError(f"arm takes one arm or a list of some: {', '.join(arms)}.")
    for name in names:
        if name not in arms:
            raise UserError(
                f"Paper '{slug}' has no arm '{name}'.{did_you_mean(name, arms)} "
                f"Known: {', '.join(arms)}."
            )
    return names


def _parents(
    default: str | None, scale: Layer, arms: dict[str, Layer], user: Layer
) -> dict[str, str | None]:
    """The arm from whose checkpoint each arm starts, as the strongest layer says.

    Raises:
        UserError: it is no arm of the paper.
    """
    parents: dict[str, str | None] = {}
    for arm, layer in arms.items():
        own = {"from": default}
        for each in (scale, layer, user):
            own |= each.pop("from")[1]
        parent = None if own["from"] is None else str(own["from"])
        if parent is not None and parent not in arms:
            raise UserError(
                f"Arm '{arm}' starts from '{parent}', which is no arm of this paper."
                f"{did_you_mean(parent, arms)}"
            )
        # A wish for all arms, such as `from=sgd` on the command line, spares the arm it names.
        spared = parent == arm and "from" not in layer.pop("from")[1]
        parents[arm] = None if spared else parent
    return parents


def _with_parents(
    names: list[str], arms: dict[str, Layer], parents: dict[str, str | None], notes: list[str]
) -> list[str]:
    """Adds the arms that the chosen ones start from, in the paper's order."""
    chosen = set(names)
    todo = list(names)
    while todo:
        parent = parents[todo.pop()]
        if parent is not None and parent not in chosen:
            chosen.add(parent)
            todo.append(parent)
            notes.append(f"arm '{parent}' is run too: another arm starts from its checkpoint")
    return [arm for arm in arms if arm in chosen]


def _looks(settings: dict[str, Any]) -> Looks | None:
    """When a study with ``seeds=auto`` is judged; None where the seeds are given.

    Raises:
        UserError: its settings are wrong.
    """
    if settings.get("seed") is not None or settings["seeds"] != "auto":
        return None
    most, minutes, first, growth = (settings[key] for key in LOOK_KEYS)
    if not (_is_count(first) and _is_count(most) and 2 <= first <= most):
        raise UserError(f"looks.first lies between 2 and max_seeds={most}, not at {first!r}.")
    if not _is_number(growth) or growth <= 1:
        raise UserError(f"looks.growth is a number above 1, not {growth!r}.")
    if minutes is not None and (not _is_number(minutes) or minutes <= 0):
        raise UserError(f"max_minutes is a number above 0, or null, not {minutes!r}.")
    after = [first]
    while after[-1] < most:
        after.append(min(most, max(after[-1] + 1, round(growth * after[-1]))))
    return Looks(after=after, max_minutes=minutes)


def _refuse_idle(typed: Collection[str], looks: Looks | None) -> None:
    """Refuses settings of growing studies that would change nothing.

    Raises:
        UserError: there is one.
    """
    if "looks" in typed:
        raise UserError("looks takes its settings one by one: looks.first=4 looks.growth=1.5.")
    idle = [key for key in LOOK_KEYS if key in typed and looks is None]
    if idle:
        raise UserError(f"{idle[0]} is about seeds=auto, which is missing.")


def _check_growing(grid: bool, arms: set[str]) -> None:
    """Refuses ``seeds=auto`` where there is nothing to decide.

    Raises:
        UserError: that is so.
    """
    if grid or len(arms) < 2:
        raise UserError(
            "seeds=auto adds seeds until a paper's claims are decided; a grid or a single arm "
            "decides none. Give a list instead: seeds=[0,1,2]."
        )


def _seeds(settings: dict[str, Any]) -> list[int]:
    looks = _looks(settings)
    if looks is not None:
        return list(range(looks.after[0]))
    # `seed=3` is the narrower wish, so it beats any list of seeds.
    asked = settings["seed"] if settings.get("seed") is not None else settings["seeds"]
    seeds = asked if isinstance(asked, list) else [asked]
    if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise UserError(
            f"seeds takes a list of whole numbers such as [0,1,2], or auto, not {asked!r}."
        )
    if any(not 0 <= seed < 2**32 for seed in seeds):
        raise UserError("Seeds lie between 0 and 4294967295.")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise UserError(f"seeds names {', '.join(map(str, twice))} more than once.")
    return seeds


def _group_choices(layer: Layer) -> Layer:
    return layer.where(lambda o: is_group(o.key_or_group))


def _drop_study_settings(config: DictConfig) -> None:
    """Takes out of a config what concerns a study as a whole."""
    with open_dict(config):
        for key in (*compose.STUDY_BLOCKS, *OF_STUDIES):
            config.pop(key, None)


def _resolved(config: DictConfig, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The contents of runs' configs that differ in their seed only.

    Resolving takes long. What the first two configs have in common all have, and where they have
    their seeds, all have theirs; where they differ otherwise, each is resolved by itself.
    """

    def resolved(seed: int) -> dict[str, Any]:
        config.seed = seed
        return compose.resolve(config)

    first = [resolved(seed) for seed in seeds[:2]]
    yield from first
    if len(seeds) <= 2:
        return
    one, other = first
    is_simple = _differ_in_seed_only(one, other, seeds) and not _names_seed_within(config)
    for seed in seeds[2:]:
        yield _with_seed(one, other, seed) if is_simple else resolved(seed)


def _names_seed_within(config: DictConfig) -> bool:
    """Whether the seed is part of a larger value somewhere, such as ``${table.${seed}}``."""
    texts = flatten(OmegaConf.to_container(config, resolve=False)).values()
    return any("seed}" in str(text) and text != "${seed}" for text in texts)


def _differ_in_seed_only(one: Any, other: Any, seeds: list[int]) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        same = list(one) == list(other)
        return same and all(_differ_in_seed_only(one[key], other[key], seeds) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _differ_in_seed_only(*pair, seeds) for pair in zip(one, other, strict=True)
        )
    return repr(one) == repr(other) or (one, other) == tuple(seeds[:2])


def _with_seed(one: Any, other: Any, seed: int) -> Any:
    """A content like two others, with a third seed where they have theirs."""
    if isinstance(one, dict):
        return {key: _with_seed(value, other[key], seed) for key, value in one.items()}
    if isinstance(one, list):
        return [_with_seed(*pair, seed) for pair in zip(one, other, strict=True)]
    return one if repr(one) == repr(other) else seed


def _check_values(content: dict[str, Any]) -> None:
    """Refuses what would fail, or run for ever, only once training has begun.

    Raises:
        UserError: there is such a value; the message says what it may be.
    """
    training, launcher = content["training"], content["hardware"]["launcher"]
    values = flatten({key: content[key] for key in ("training", "hardware")})
    for key in COUNTS:
        value = values.get(key)
        if value is not None or key not in OPTIONAL_COUNTS:
            check_count(key, value)
    for key, allowed in WORDS.items():
        if values.get(key) not in allowed:
            raise UserError(f"{key} is {' or '.join(allowed)}, not {values.get(key)!r}.")
    if str(training.get("monitor")).startswith("test/"):
        raise UserError("training.monitor chooses best.ckpt: a val/ metric, never a test metric.")
    extras.require(content["logger"]["loggers"])
    compose.check_launcher(str(launcher["name"]))
    n_jobs, outputs = content["n_jobs"], content["outputs"]
    if n_jobs != "auto" and not _is_count(n_jobs):
        raise UserError(f"n_jobs is auto or a whole number from 1 on, not {n_jobs!r}.")
    if not isinstance(outputs, str) or not outputs:
        raise UserError(f"outputs is a folder, not {outputs!r}.")


def _check_exclusive(runs: Sequence[PlannedRun]) -> None:
    """Refuses runs that would start before the exclusive run that they start from.

    Raises:
        UserError: there is such a run.
    """
    alone = {run.arm for run in runs if run.content["exclusive"]}
    for run in runs:
        if run.parent in alone and run.arm not in alone:
            raise UserError(
                f"Arm '{run.arm}' starts from '{run.parent}', whose runs are exclusive and come "
                f"last. Say exclusive=true for '{run.arm}', too."
            )


def check_count(name: str, value: Any) -> int:
    """Makes sure that a setting is a whole number from 1 on, and returns it.

    Raises:
        UserError: it is not.
    """
    if not _is_count(value):
        raise UserError(f"{name} takes a whole number from 1 on, not {value!r}.")
    return int(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _file_name(text: str) -> str:
    """A text as part of a path: without what a file name must not hold, and not too long."""
    name = re.sub(r"[/%\x00-\x1f]", lambda found: f"%{ord(found[0]):02x}", text)
    if len(name.encode()) <= 200:
        return name
    return f"{name[:40]}~{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _without_twins(runs: list[PlannedRun]) -> tuple[list[PlannedRun], dict[str, str]]:
    """Drops repeated runs, and arms that an override made identical to an earlier one.

    Returns:
        The runs, and by arm that has none the one that it equals.
    """
    seen: dict[str, str] = {}
    kept: list[PlannedRun] = []
    twins: dict[str, str] = {}
    for run in {run.folder: run for run in runs}.values():
        first = seen.setdefault(repr(({**run.content, "arm": None}, run.point)), run.arm)
        if first == run.arm:
            kept.append(run)
        else:
            twins[run.arm] = first
    kept = [replace(run, parent=twins.get(run.parent or "", run.parent)) for run in kept]
    ran = {run.arm for run in kept}
    return kept, {arm: first for arm, first in twins.items() if arm not in ran}
