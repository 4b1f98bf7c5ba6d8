"""The shape of ``claims.yaml``: a paper's sentences, each with the checks that test it.

A claims file holds a list of claims. A claim says in our own words what the paper says, where it
says it and with which numbers; its *checks* say what a study must show for the claim to hold. All
checks of a claim have to hold. Each check names a *relation*; the classes below are the relations.

Importing this module is cheap (no torch, no SciPy), so that listing papers stays fast.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from repro.errors import UserError, did_you_mean

Scale = Annotated[str, Field(pattern=r"^(smoke|mini|full)(_[a-z0-9]+)*$")]
Text = Annotated[str, Field(min_length=1)]
SweptValue = bool | int | float | str


class Region(NamedTuple):
    """The values of an effect for which a check holds: an interval, perhaps without its ends."""

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False

    def contains(self, low: float, high: float) -> bool:
        """Whether the whole interval from ``low`` to ``high`` lies in the region."""
        if self.strict:
            return low > self.low and high < self.high
        return low >= self.low - _slack(self.low, low) and high <= self.high + _slack(
            self.high, high
        )

    def excludes(self, low: float, high: float) -> bool:
        """Whether the whole interval from ``low`` to ``high`` lies outside the region."""
        if self.strict:
            return high <= self.low or low >= self.high
        return high < self.low - _slack(self.low, high) or low > self.high + _slack(self.high, low)

    def text(self, percent: bool = False) -> str:
        """The region in words, its ends as percentages if so wanted."""
        # Adding zero turns the -0.0 of a margin of nothing into 0.0.
        low, high = ((100 if percent else 1) * end + 0.0 for end in (self.low, self.high))
        unit = " %" if percent else ""
        if math.isinf(low):
            return f"{'<' if self.strict else '≤'} {high:g}{unit}"
        if math.isinf(high):
            return f"{'>' if self.strict else '≥'} {low:g}{unit}"
        return f"between {low:g} and {high:g}{unit}"


def _slack(bound: float, value: float) -> float:
    """Rounding allowed at the closed end of a region: exactly 1 % is often 0.010000000000000009."""
    if math.isinf(bound) or math.isinf(value):
        return 0.0
    return 1e-9 * max(abs(bound), abs(value))


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CollapseRule(_Model):
    """When a finished run counts as collapsed; a diverged run always does."""

    metric: Text
    below: float | None = None
    above: float | None = None

    @model_validator(mode="after")
    def _one_side(self) -> CollapseRule:
        if (self.below is None) == (self.above is None):
            raise ValueError("say either below or above")
        return self

    def applies(self, value: float) -> bool:
        """Whether a run with this value of the metric has collapsed (NaN counts as collapsed)."""
        if self.below is not None:
            return not value >= self.below
        return self.above is not None and not value <= self.above


class Paper(_Model):
    """What the paper reports, and how we know it."""

    value: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
    setting: str = ""
    source: Literal["read", "recalled", "inferred"]


class Check(_Model):
    """What every check has.

    Attributes:
        scales: The scales this check is for, when they are fewer than the claim's.
        at: Looks only at runs with these swept values, e.g. ``{method.ratio: 0.01}``.
        level: Confidence level of the two-sided interval; ``supported`` is wrong at most half as
            often as the interval misses.
        min_seeds: Fewer seeds than this leave a statistical check inconclusive.
        unit: Shown behind the numbers.
        percent: Shows fractions as percentages.
    """

    scales: tuple[Scale, ...] | None = None
    at: dict[str, SweptValue] = {}
    level: float = Field(0.95, ge=0.5, lt=1)
    min_seeds: int = Field(2, ge=2)
    unit: str = ""
    percent: bool = False

    signed: ClassVar[bool] = False  # Whether the effect is a difference, to be shown with its sign.

    @property
    def compared(self) -> str:
        """What the effect is, in a few words."""
        raise NotImplementedError

    @property
    def claimed(self) -> str:
        """Where the effect has to lie, in a few words."""
        raise NotImplementedError

    def arm_names(self) -> tuple[str, ...]:
        """The arms this check reads."""
        raise NotImplementedError

    def seen_at(self, scale: str) -> bool:
        """Whether the check is for this scale, given that its claim is."""
        return self.scales is None or scale in self.scales


class MetricCheck(Check):
    """A check that reads one number per seed and asks where its mean lies.

    Attributes:
        metric: A name in the runs' ``summary.json``.
        interval: Student's t, or, where the noise is skewed, the same widened by a BCa bootstrap
            (from ten seeds on).
        on_collapse: The value credited to a collapsed run that has no (finite) value. Without it,
            such runs leave the check inconclusive.
        deterministic: The number depends on no random draw (counted bytes). One seed is enough
            when all seeds agree; when they do not, the usual statistics apply.
    """

    metric: Text
    interval: Literal["t", "bootstrap"] = "t"
    on_collapse: float | None = None
    deterministic: bool = False

    @property
    def region(self) -> Region:
        """The effects for which the check holds."""
        raise NotImplementedError

    @property
    def claimed(self) -> str:
        """The region."""
        return self.region.text(self.percent)


class Level(MetricCheck):
    """The mean of one arm's metric."""

    arm: Text

    @property
    def compared(self) -> str:
        """The arm and its metric."""
        return f"{self.arm}, {self.metric}"

    def arm_names(self) -> tuple[str, ...]:
        """The arm."""
        return (self.arm,)


class Bound(Level):
    """The mean is at least, or at most, a value."""

    relation: Literal["at_least", "at_most"]
    value: float

    @property
    def region(self) -> Region:
        """One side of the value."""
        return Region(low=self.value) if self.relation == "at_least" else Region(high=self.value)


class Within(Level):
    """The mean lies within a range."""

    relation: Literal["within"]
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> Within:
        _check_order(self.low, self.high)
        return self

    @property
    def region(self) -> Region:
        """The range."""
        return Region(self.low, self.high)


class Paired(MetricCheck):
    """Two arms (or two metrics of one arm) compared seed by seed.

    Attributes:
        arm: The arm the claim is about.
        versus: The arm it is compared with; the same arm when only ``versus_metric`` is given.
        versus_metric: The metric on the other side, when it is not the same.
    """

    arm: Text
    versus: Text | None = None
    versus_metric: Text | None = None

    @model_validator(mode="after")
    def _two_sides(self) -> Paired:
        _check_sides(self)
        return self

    @property
    def compared(self) -> str:
        """Both sides and their metric."""
        return _sides(self, "/" if isinstance(self, Ratio) else "−")

    def arm_names(self) -> tuple[str, ...]:
        """Both arms."""
        return (self.arm, self.versus or self.arm)


class Comparison(Paired):
    """``arm`` is greater, or less, than ``versus`` by more than the margin."""

    signed: ClassVar[bool] = True
    relation: Literal["greater", "less"]
    margin: float = Field(0.0, ge=0)

    @property
    def region(self) -> Region:
        """Differences beyond the margin."""
        if self.relation == "greater":
            return Region(low=self.margin, strict=True)
        return Region(high=-self.margin, strict=True)


class NonInferior(Paired):
    """``arm`` is not worse than ``versus`` by more than the margin."""

    signed: ClassVar[bool] = True
    relation: Literal["non_inferior"]
    margin: float = Field(ge=0)
    better: Literal["higher", "lower"] = "higher"

    @property
    def region(self) -> Region:
        """Differences on the good side of the margin."""
        return Region(low=-self.margin) if self.better == "higher" else Region(high=self.margin)


class Equivalent(Paired):
    """``arm`` and ``versus`` differ by at most the margin (two one-sided tests)."""

    signed: ClassVar[bool] = True
    relation: Literal["equivalent"]
    margin: float = Field(gt=0)

    @property
    def region(self) -> Region:
        """Differences within the margin on both sides."""
        return Region(-self.margin, self.margin)


class Ratio(Paired):
    """``arm`` is so many times ``versus``; both are positive. The mean ratio is geometric."""

    relation: Literal["ratio"]
    at_least: float | None = Field(None, gt=0)
    at_most: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _bounded(self) -> Ratio:
        if self.at_least is None and self.at_most is None:
            raise ValueError("say at_least, at_most or both")
        if self.region.low > self.region.high:
            raise ValueError("at_least is greater than at_most")
        return self

    @property
    def region(self) -> Region:
        """The ratios between the bounds."""
        return Region(
            -math.inf if self.at_least is None else self.at_least,
            math.inf if self.at_most is None else self.at_most,
        )


class Spread(MetricCheck):
    """The metric varies more over some arms than over others: which of two choices matters more.

    The spread of a group of arms is the standard deviation of log(metric) over them, so the metric
    has to be positive. The effect is the ratio of the two spreads; its mean is geometric.

    Attributes:
        arms: The arms that should differ more.
        versus: The arms that should differ less.
    """

    relation: Literal["spreads_more"]
    arms: tuple[Text, ...]
    versus: tuple[Text, ...]

    @model_validator(mode="after")
    def _groups(self) -> Spread:
        for name in ("arms", "versus"):
            group = getattr(self, name)
            if len(set(group)) < max(2, len(group)):
                raise ValueError(f"{name}: two or more different arms are needed")
        if set(self.arms) == set(self.versus):
            raise ValueError("the two groups are the same")
        return self

    @property
    def compared(self) -> str:
        """Both groups and the metric."""
        return (
            f"spread of {', '.join(self.arms)} / spread of {', '.join(self.versus)}, {self.metric}"
        )

    def arm_names(self) -> tuple[str, ...]:
        """The arms of both groups."""
        return tuple(dict.fromkeys((*self.arms, *self.versus)))

    @property
    def region(self) -> Region:
        """Ratios above one."""
        return Region(low=1.0, strict=True)


class Ordered(MetricCheck):
    """The metric rises (or falls) from each arm to the next by more than the margin."""

    signed: ClassVar[bool] = True
    relation: Literal["ordered"]
    arms: tuple[Text, ...]
    direction: Literal["increasing", "decreasing"]
    margin: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _distinct(self) -> Ordered:
        if len(self.arms) < 2:
            raise ValueError("arms: two or more are needed")
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("arms: one is listed twice")
        return self

    @property
    def compared(self) -> str:
        """The arms in the claimed order, and the metric."""
        sign = " < " if self.direction == "increasing" else " > "
        return f"{sign.join(self.arms)}, {self.metric}"

    def arm_names(self) -> tuple[str, ...]:
        """All arms, in the claimed order."""
        return self.arms

    @property
    def region(self) -> Region:
        """Where each step between neighbours has to lie."""
        return _beyond(self.direction, self.margin)

    @property
    def steps(self) -> tuple[Comparison, ...]:
        """The comparison of every arm with the one before it."""
        shared = {name: getattr(self, name) for name in MetricCheck.model_fields}
        relation: Any = "greater" if self.direction == "increasing" else "less"
        return tuple(
            Comparison(relation=relation, arm=arm, versus=before, margin=self.margin, **shared)
            for before, arm in itertools.pairwise(self.arms)
        )


class Curve(MetricCheck):
    """The metric as a function of x, one curve per seed.

    Attributes:
        arms: The arms along the curve, each with its x; or else
        arm: one arm whose runs differ
        over: in this swept config value.
    """

    arms: dict[str, float] | None = None
    arm: Text | None = None
    over: Text | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Curve:
        swept = self.arm is not None and self.over is not None
        mixed = self.arms is not None and (self.arm is not None or self.over is not None)
        if mixed or (self.arms is None and not swept):
            raise ValueError("say either arms (name: x) or arm with over")
        if self.arms is not None and len(self.arms) < 2:
            raise ValueError("arms: two or more are needed")
        if self.arms is not None and len(set(self.arms.values())) < len(self.arms):
            raise ValueError("arms: two have the same x")
        return self

    @property
    def along(self) -> str:
        """What the curve runs along, in a few words."""
        return f"{self.arm} along {self.over}" if self.arms is None else ", ".join(self.arms)

    def arm_names(self) -> tuple[str, ...]:
        """The arms along the curve."""
        return tuple(self.arms) if self.arms is not None else (self.arm or "",)


class Trend(Curve):
    """The metric tends to rise (or fall) with x.

    The effect is the least-squares change per step from one x to the next larger one, whatever the
    distance between them. A trend allows a dent on the way; ``ordered`` does not.
    """

    signed: ClassVar[bool] = True
    relation: Literal["trend"]
    direction: Literal["increasing", "decreasing"]
    margin: float = Field(0.0, ge=0)

    @property
    def compared(self) -> str:
        """What runs along what."""
        return f"change per step, {self.along}, {self.metric}"

    @property
    def region(self) -> Region:
        """Where the change per step has to lie."""
        return _beyond(self.direction, self.margin)


class Slope(Curve):
    """The slope of log(metric) against log(x), i.e. the exponent of a power law, is in a range."""

    relation: Literal["slope"]
    low: float
    high: float

    @model_validator(mode="after")
    def _usable(self) -> Slope:
        if self.arms is not None and min(self.arms.values()) <= 0:
            raise ValueError("arms: every x has to be positive for a log-log fit")
        _check_order(self.low, self.high)
        return self

    @property
    def compared(self) -> str:
        """What runs along what."""
        return f"log-log slope, {self.along}, {self.metric}"

    @property
    def region(self) -> Region:
        """The range of exponents."""
        return Region(self.low, self.high)


class Collapse(Check):
    """``arm`` collapses on more (or fewer) seeds than ``versus``, by Barnard's exact test.

    Attributes:
        collapse: A rule for this check alone, in place of the file's.
    """

    signed: ClassVar[bool] = True
    relation: Literal["collapses_more", "collapses_less"]
    arm: Text
    versus: Text
    collapse: CollapseRule | None = None

    @property
    def compared(self) -> str:
        """The difference of the fractions that collapsed."""
        return f"{self.arm} − {self.versus}, collapsed fraction"

    @property
    def claimed(self) -> str:
        """The sign of the difference."""
        return "> 0" if self.relation == "collapses_more" else "< 0"

    def arm_names(self) -> tuple[str, ...]:
        """Both arms."""
        return (self.arm, self.versus)


class Identity(Check):
    """A number equals a value, or another arm's or metric's number, on every seed.

    For what holds by construction, so a single seed can support it and a single seed refutes it.
    """

    relation: Literal["identity"]
    metric: Text
    arm: Text
    versus: Text | None = None
    versus_metric: Text | None = None
    value: float | None = None
    tolerance: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _one_other_side(self) -> Identity:
        compared = self.versus is not None or self.versus_metric is not None
        if compared == (self.value is not None):
            raise ValueError("say either value, or versus and/or versus_metric")
        if compared:
            _check_sides(self)
        return self

    @property
    def compared(self) -> str:
        """Both sides and their metric."""
        if self.value is not None:
            return f"|{self.arm} − {self.value:g}|, {self.metric}"
        return f"|{_sides(self, '−')}|"

    @property
    def claimed(self) -> str:
        """The tolerance."""
        return f"≤ {self.tolerance:g}"

    def arm_names(self) -> tuple[str, ...]:
        """The arm, and the other one if there is one."""
        return (self.arm, self.versus or self.arm)


AnyCheck = Annotated[
    Bound
    | Within
    | Comparison
    | NonInferior
    | Equivalent
    | Ratio
    | Spread
    | Ordered
    | Trend
    | Slope
    | Collapse
    | Identity,
    Field(discriminator="relation"),
]

RELATIONS: dict[str, type[Check]] = {
    name: model
    for model in get_args(get_args(AnyCheck)[0])
    for name in get_args(model.model_fields["relation"].annotation)
}


class Claim(_Model):
    """A sentence of the paper and the checks over a study's runs that test it.

    Attributes:
        id: Its name in the dossier and the tables, e.g. ``C3``.
        statement: The claim in our own words.
        where: Table, figure or section of the paper.
        paper: The paper's own numbers.
        scales: The scales the claim can be tested at.
        why_not: What testing it would take; required when it cannot be tested at mini.
        checks: What has to hold; all of it.
    """

    id: Text
    statement: Text
    where: Text
    paper: Paper
    scales: tuple[Scale, ...]
    why_not: str | None = Field(None, min_length=1)
    checks: tuple[AnyCheck, ...]

    @model_validator(mode="after")
    def _testable(self) -> Claim:
        if "mini" not in self.scales and self.why_not is None:
            raise ValueError("why_not: is required, since mini is not among the scales")
        for index, check in enumerate(self.checks):
            for scale in check.scales or ():
                if scale not in self.scales:
                    raise ValueError(
                        f"checks[{index}].scales: '{scale}' is not among the claim's scales"
                    )
        for scale in self.scales:
            if not self.checks_at(scale):
                raise ValueError(f"checks: none is for scale '{scale}'")
        return self

    def checks_at(self, scale: str) -> list[Any]:
        """The checks to do at a scale; empty when the claim cannot be tested there."""
        if scale not in self.scales:
            return []
        return [check for check in self.checks if check.seen_at(scale)]


class ClaimsFile(_Model):
    """All claims of a paper.

    Attributes:
        claims: The claims.
        collapse: When a finished run counts as collapsed.
    """

    claims: tuple[Claim, ...]
    collapse: CollapseRule | None = None

    @model_validator(mode="after")
    def _unique_ids(self) -> ClaimsFile:
        if not self.claims:
            raise ValueError("claims: the list is empty")
        seen: set[str] = set()
        for claim in self.claims:
            if claim.id in seen:
                raise ValueError(f"claims: id '{claim.id}' is used twice")
            seen.add(claim.id)
        return self


def load_claims(path: str | Path) -> ClaimsFile:
    """Reads and checks a claims file.

    Raises:
        UserError: The file is missing, is not YAML, or has fields that are wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from error
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # e.g. a date that does not exist
        raise UserError(f"{path}: not valid YAML: {error}") from error
    return parse_claims(raw, str(path))


def parse_claims(raw: object, source: str) -> ClaimsFile:
    """Checks what a claims file holds; ``source`` names the file in messages.

    Raises:
        UserError: Something is wrong with a field.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{source}: should be a mapping with the key 'claims'")
    try:
        return ClaimsFile.model_validate(raw)
    except ValidationError as error:
        # A misspelt field comes first: it explains the one that is missing.
        details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        lines = [f"{source}, {_explain(detail, raw)}" for detail in details]
    raise UserError(_first_three(lines))


def check_arms(claims: ClaimsFile, arms: Collection[str], source: str = "claims.yaml") -> None:
    """Checks that the claims speak only of arms that the paper has.

    Raises:
        UserError: A check names an unknown arm.
    """
    lines = [
        f"{source}, claim {claim.id}, checks[{index}]: unknown arm '{arm}'."
        + _hint(arm, sorted(arms))
        for claim in claims.claims
        for index, check in enumerate(claim.checks)
        for arm in dict.fromkeys(check.arm_names())
        if arm not in arms
    ]
    if lines:
        raise UserError(_first_three(lines))


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Safe YAML in which a repeated key is an error: it would silently drop a check."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in getattr(node, "value", ()):
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key.value}' is used twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _explain(detail: Any, raw: dict[Any, Any]) -> str:
    """One line for one of pydantic's errors: which claim, which field, what is wrong."""
    kind, message, context = detail["type"], detail["msg"], detail.get("ctx", {})
    *parents, last = detail["loc"] or ("",)
    place = [*parents, last]
    if kind == "extra_forbidden":
        place, known = parents, _fields(parents)
        message = f"unknown field '{last}'.{_hint(str(last), known)}"
    elif kind == "union_tag_invalid":
        tag = str(context["tag"])
        message = f"unknown relation '{tag}'.{_hint(tag, list(RELATIONS))}"
    elif kind == "union_tag_not_found":
        message = f"relation is missing: one of {', '.join(RELATIONS)}"
    elif kind == "missing":
        message = "is missing"
    elif kind == "literal_error":
        message = f"'{detail['input']}' is not one of {context['expected']}"
    elif kind == "string_pattern_mismatch":  # only scales have a pattern
        message = (
            f"'{detail['input']}' is no scale: smoke, mini, full, or one such as full_imagenet"
        )
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "should be a mapping"
    elif kind == "tuple_type":
        message = "should be a list"
    message = " ".join(re.sub("^(Value error, |Input )", "", message).split())
    return ": ".join(part for part in (_place(place, raw), message) if part)


def _hint(name: str, known: Sequence[str]) -> str:
    return did_you_mean(name, known) or f" Known: {', '.join(known)}"


def _place(location: Sequence[str | int], raw: dict[Any, Any]) -> str:
    """Writes a location as people do: ``claim C3, checks[0].margin``."""
    claim = ""
    if len(location) > 1 and location[0] == "claims":
        claim, location = f"claim {_claim_name(raw, int(location[1]))}", location[2:]
    path = ""
    for before, part in itertools.pairwise(("", *location)):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (isinstance(before, int) and part in RELATIONS):
            # pydantic puts the relation behind a check's number; the reader knows it already.
            path += f".{part}" if path else part
    return ", ".join(part for part in (claim, path) if part)


def _fields(location: Sequence[str | int]) -> list[str]:
    """The fields of the model at a location."""
    model: type[BaseModel] = ClaimsFile
    for before, part in itertools.pairwise(("", *location)):
        if before == "claims":
            model = Claim
        elif part in ("paper", "collapse"):
            model = Paper if part == "paper" else CollapseRule
        elif isinstance(before, int) and part in RELATIONS:
            model = RELATIONS[str(part)]
    return list(model.model_fields)


def _claim_name(raw: dict[Any, Any], index: int) -> str:
    """The claim's id where it has one, otherwise its place in the list."""
    claim = raw["claims"][index]
    name = claim.get("id") if isinstance(claim, dict) else None
    return name if isinstance(name, str) and name else f"number {index + 1}"


def _first_three(lines: list[str]) -> str:
    more = [f"and {len(lines) - 3} more"] if len(lines) > 3 else []
    return "\n".join(lines[:3] + more)


def _beyond(direction: str, margin: float) -> Region:
    if direction == "increasing":
        return Region(low=margin, strict=True)
    return Region(high=-margin, strict=True)


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError("low is greater than high")


def _check_sides(check: Paired | Identity) -> None:
    if check.versus in (None, check.arm) and check.versus_metric in (None, check.metric):
        raise ValueError("the two sides are the same: say versus, versus_metric or both")


def _sides(check: Paired | Identity, sign: str) -> str:
    """Both sides of a comparison, naming what they share only once."""
    arm, other = check.arm, check.versus or check.arm
    metric, other_metric = check.metric, check.versus_metric or check.metric
    if metric == other_metric:
        return f"{arm} {sign} {other}, {metric}"
    if arm == other:
        return f"{arm}, {metric} {sign} {other_metric}"
    return f"{arm}, {metric} {sign} {other}, {other_metric}"
