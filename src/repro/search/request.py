"""What a `repro sweep` command asks for, checked before anything is written or trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from repro.errors import UserError, did_you_mean
from repro.planning import compose, extras
from repro.planning.compose import Layer
from repro.planning.plan import Plan, check_count, plan_study
from repro.records.papers import WHICH_PAPER, load_paper
from repro.records.study import Study
from repro.search.space import Parameter, read_space

MODES = ("min", "max")
OWN_KEYS = ("trials", "metric", "mode")  # settings of the search rather than of its runs
UNTESTED = "training.test_with=none"
STUDY_KEYS = ("paper", "scale", "arm", "seed", "seeds")
SMALLER_IS_BETTER = ("loss", "error", "perplexity", "mse", "rmse", "mae", "nll", "ece", "regret")
LARGER_IS_BETTER = ("accuracy", "auc", "auroc", "f1", "return", "reward", "iou", "map", "r2")


@dataclass(frozen=True)
class Request:
    """A search as the user typed it, with every default filled in.

    Attributes:
        typed: the whole command.
        fixed: the overrides that every trial shares.
        parameters: what is searched.
        arm: the arm whose runs are the trials.
        trials: how many there are to be.
        metric: the validation metric to optimise: its mean over seeds at the end of training.
        mode: ``min`` or ``max``.
        settings: the ``sweep`` config: sampler, pruner and so on.
    """

    typed: list[str]
    fixed: list[str]
    parameters: list[Parameter]
    arm: str
    trials: int
    metric: str
    mode: str
    settings: dict[str, Any]

    def plan(self, values: dict[str, Any]) -> Plan:
        """The runs of one trial: those of a grid that has one point."""
        point = [each.override(values[each.key]) for each in self.parameters]
        return replace(plan_study([*self.fixed, *point], grid=True), typed=self.typed)

    def to_dict(self) -> dict[str, Any]:
        """What study.json keeps: all that is not in the typed command."""
        kept = ("fixed", "arm", "trials", "metric", "mode", "settings")
        return {key: getattr(self, key) for key in kept}

    @classmethod
    def from_dict(cls, typed: list[str], kept: dict[str, Any]) -> Request:
        """The inverse of `to_dict`, whatever the defaults are by now."""
        searched = Layer.parse(typed, "study.json").where(_varies)
        return cls(typed=typed, parameters=read_space(searched.overrides), **kept)


def request_of(study: Study) -> Request:
    """What the search in a study's folder is about.

    Raises:
        UserError: the study is no search.
    """
    if study.about.search is None:
        raise UserError(f"{study.folder} is not a search.")
    return Request.from_dict(study.about.typed, study.about.search)


def read_request(typed: Sequence[str]) -> tuple[Request, Plan]:
    """Reads and checks a search; the plan is that of a first trial.

    If something in it cannot be, a `UserError` says what to write instead.
    """
    extras.require(["optuna"])
    layer = Layer.parse(typed, "command line")
    own, rest = layer.where(_is_own), layer.where(lambda o: not _is_own(o))
    searched = rest.where(_varies)
    _check_varied(own, searched)
    with compose.hydra_ready():
        config = compose.compose_config(own.texts, "sweep")
    for key in ("parallel", "failures", "table_rows"):
        if config.sweep[key] != "auto":
            check_count(f"sweep.{key}", config.sweep[key])
    parameters = read_space(searched.overrides)
    given = {each.key_or_group: each.value() for each in rest.overrides}
    arm = _arm(given)
    fixed = rest.where(lambda o: not _varies(o)).texts
    fixed = _with_defaults(fixed, given, arm, list(config.sweep.seeds))
    request = Request(
        typed=list(typed),
        fixed=fixed,
        parameters=parameters,
        arm=arm,
        trials=check_count("trials", config.trials),
        metric="",
        mode="",
        settings=OmegaConf.to_container(config.sweep, resolve=True),  # type: ignore[arg-type]
    )
    plan = _check_space(request)
    training = plan.runs[0].config.training
    metric = _metric(config, training)
    return replace(request, metric=metric, mode=_mode(config.mode, metric, training)), plan


def _is_own(override: Override) -> bool:
    name = override.key_or_group
    return name in OWN_KEYS or name == "sweep" or name.startswith(("sweep.", "sweep/"))


def _varies(override: Override) -> bool:
    return override.is_sweep_override() and not _is_own(override)


def _check_varied(own: Layer, searched: Layer) -> None:
    for override in own.overrides:
        if override.is_sweep_override():
            raise UserError(f"'{override.input_line}': {override.key_or_group} takes one value.")
    for override in searched.overrides:
        if override.key_or_group in STUDY_KEYS or override.key_or_group.startswith("hydra"):
            raise UserError(f"'{override.input_line}': {override.key_or_group} is not searched.")
    if not searched.overrides:
        raise UserError(
            "Nothing to search: give a key a range, such as 'optimizer.lr=interval(0.01,0.5)' or "
            "'optimizer.momentum=choice(0.8,0.9)'."
        )


def _arm(given: dict[str, Any]) -> str:
    """The arm that is searched: the one asked for, or the one that is the paper's plain config.

    Raises:
        UserError: no paper is named, or not one arm.
    """
    if "paper" not in given:
        raise UserError(WHICH_PAPER)
    asked = given.get("arm")
    arms = load_paper(str(given["paper"])).arms
    plain = [arm for arm, overrides in arms.items() if not overrides]
    if asked is None and len(arms) > 1 and len(plain) != 1:
        raise UserError(f"Which arm is searched? Write arm=<name>: {', '.join(arms)}.")
    if isinstance(asked, list) and len(asked) != 1:
        raise UserError("A search is about one arm: write arm=<name>, and sweep again for others.")
    if asked is None:
        return plain[0] if plain else next(iter(arms))
    return str(asked[0] if isinstance(asked, list) else asked)


def _with_defaults(
    fixed: list[str], given: dict[str, Any], arm: str, seeds: list[int]
) -> list[str]:
    """Adds what a search decides unless the user did: the arm, the seeds, and not to test."""
    added = [] if "arm" in given else [f"arm={arm}"]
    if given.get("seed") is None and "seeds" not in given:
        added.append(f"seeds={seeds}".replace(" ", ""))
    if "training.test_with" not in given:
        added.append(UNTESTED)
    return [*fixed, *added]


def _metric(config: DictConfig, training: DictConfig) -> str:
    metric = str(training.monitor if config.metric is None else config.metric)
    if metric.startswith("test/"):
        raise UserError(
            f"metric={metric}: a search must not see test metrics. Choose a validation metric, "
            f"such as val/{metric.removeprefix('test/')}."
        )
    if not metric.startswith("val/"):
        raise UserError(f"metric={metric}: choose a validation metric, such as {training.monitor}.")
    return metric


def _mode(asked: Any, metric: str, training: DictConfig) -> str:
    if asked is not None:
        if asked not in MODES:
            raise UserError(f"mode is min or max, not {asked!r}.{did_you_mean(str(asked), MODES)}")
        return str(asked)
    if metric == training.monitor:
        return str(training.mode)
    words = set(metric.lower().replace("/", "_").replace("-", "_").split("_"))
    if words & set(SMALLER_IS_BETTER):
        return "min"
    if words & set(LARGER_IS_BETTER):
        return "max"
    raise UserError(f"Is a larger {metric} better? Write mode=max or mode=min.")


def _check_space(request: Request) -> Plan:
    """Composes the config at the ends of every parameter, one at a time."""
    start = {each.key: each.examples()[0] for each in request.parameters}
    plan = request.plan(start)
    for parameter in request.parameters:
        for value in parameter.examples()[1:]:
            request.plan(start | {parameter.key: value})
    return plan
