"""The shape of ``claims.yaml``: a paper's sentences, each with the checks that test it.

A claims file holds a list of claims. A claim says in our own words what the paper says, where it
says it and with which numbers; its *checks* say what a study must show for the claim to hold. All
checks of a claim have to hold. Each check names a *relation*: `repro.claims.relations`.

Importing this module is cheap (no torch, no SciPy), so that listing papers stays fast.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from repro.claims.evidence import CollapseRule, Strict, Text
from repro.claims.relations import RELATIONS, Check
from repro.claims.relations.base import Scale
from repro.claims.verdicts import Paper
from repro.errors import UserError, did_you_mean
from repro.records.files import YamlLoader, read_yaml


def _as_relation(raw: Any) -> Check:
    """A check, by the class of its relation.

    Raises:
        ValueError: it is no mapping, or there is no such relation.
    """
    if isinstance(raw, Check):
        return raw
    if not isinstance(raw, dict):
        raise ValueError("should be a mapping")
    if "relation" not in raw:
        raise ValueError(f"relation is missing: one of {', '.join(RELATIONS)}")
    relation = str(raw["relation"])
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation '{relation}'.{_hint(relation, list(RELATIONS))}")
    return RELATIONS[relation].model_validate(raw)


AnyCheck = Annotated[SerializeAsAny[Check], BeforeValidator(_as_relation)]


class Claim(Strict):
    """A sentence of the paper and the checks over a study's runs that test it.

    Attributes:
        id: Its name in the tables, e.g. ``C3``.
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

    def all_checks(self) -> list[Check]:
        """The checks of all scales, one for each name in an ``each``."""
        return [one for check in self.checks for one in check.expanded()]

    def checks_at(self, scale: str) -> list[Check]:
        """The checks to do at a scale; empty when the claim cannot be tested there."""
        if scale not in self.scales:
            return []
        return [check for check in self.all_checks() if check.seen_at(scale)]


class ClaimsFile(Strict):
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


def load_claims(path: Path) -> ClaimsFile:
    """Reads and checks a claims file.

    A `UserError` says so if the file is missing, is not YAML, or has fields that are wrong.
    """
    claims = parse_claims(read_yaml(path, _Loader), str(path))
    refuse_foregone(claims, str(path))
    return claims


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
        for arm in dict.fromkeys(arm for one in check.expanded() for arm in one.arm_names())
        if arm not in arms
    ]
    if lines:
        raise UserError(_first_three(lines))


def refuse_foregone(claims: ClaimsFile, source: str = "claims.yaml") -> None:
    """Refuses checks whose outcome is known before anything is measured.

    Raises:
        UserError: A check cannot fail or cannot hold, or two of a claim contradict each other.
    """
    lines = [
        f"{source}, claim {claim.id}: {problem}"
        for claim in claims.claims
        for problem in dict.fromkeys(_foregone(claim))
    ]
    if lines:
        raise UserError(_first_three(lines))


def _foregone(claim: Claim) -> Iterator[str]:
    yield from (check.foregone for check in claim.all_checks() if check.foregone)
    for scale in claim.scales:
        for one, other in itertools.combinations(claim.checks_at(scale), 2):
            same = one.effect_name == other.effect_name and one.is_factor == other.is_factor
            if same and one.region.excludes(other.region.low, other.region.high):
                yield f"{one.effect_name} cannot be {one.claimed} and {other.claimed}"


class _Loader(YamlLoader):
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
        place, known = parents, list(_model(parents, raw).model_fields)
        message = f"unknown field '{last}'.{_hint(str(last), known)}"
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
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return ", ".join(part for part in (claim, path) if part)


def _model(location: Sequence[str | int], raw: Any) -> type[BaseModel]:
    """The model at a location."""
    model: type[BaseModel] = ClaimsFile
    for before, part in itertools.pairwise(("", *location)):
        raw = raw[part]
        if before == "claims":
            model = Claim
        elif before == "checks":
            model = RELATIONS[raw["relation"]]
        elif part in ("paper", "collapse"):
            model = Paper if part == "paper" else CollapseRule
    return model


def _claim_name(raw: dict[Any, Any], index: int) -> str:
    """The claim's id where it has one, otherwise its place in the list."""
    claim = raw["claims"][index]
    name = claim.get("id") if isinstance(claim, dict) else None
    return name if isinstance(name, str) and name else f"number {index + 1}"


def _first_three(lines: list[str]) -> str:
    more = [f"and {len(lines) - 3} more"] if len(lines) > 3 else []
    return "\n".join(lines[:3] + more)
