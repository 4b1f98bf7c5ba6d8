"""Knobs by type: an annotation says what an argument may be; `checked` refuses all else in a line.

>>> @checked
... def train(steps: Count, order: Literal["rising", "falling"] = "rising") -> None: ...
>>> train(0)
Traceback (most recent call last):
    ...
repro.knobs.KnobError: train.steps is a whole number of at least 1, not 0.
>>> train(3, order="risin")
Traceback (most recent call last):
    ...
repro.knobs.KnobError: train.order is rising or falling, not 'risin'. Did you mean 'rising'?
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from repro.errors import UserError, did_you_mean

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Ge(0), Le(1)]  # [0, 1]
Share = Annotated[float, Gt(0), Le(1)]  # (0, 1]: a part that may be the whole
Fraction = Annotated[float, Ge(0), Lt(1)]  # [0, 1): a part that may be nothing
Inside = Annotated[float, Gt(0), Lt(1)]  # (0, 1)

# Strict: 2.0 is no whole number, "0.1" no number, and NaN lies within no bounds.
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
Target = TypeVar("Target", bound=Callable[..., Any])


class KnobError(UserError):
    """An argument that its annotation does not allow.

    Args:
        owner: whose argument it is: a class, a function, or a group of the config.
        knob: the argument.
        rule: the rest of the sentence that begins with its name.
    """

    def __init__(self, owner: str, knob: str, rule: str) -> None:
        super().__init__(owner, knob, rule)  # as given, so that it can be pickled
        self.owner, self.knob, self.rule = owner, knob, rule

    def __str__(self) -> str:
        return f"{self.owner}.{self.knob} {self.rule}"


@dataclass(frozen=True)
class Known:
    """A name in a table: ``Annotated[str, Known(tuple(TABLE))]``, where no Literal can be typed."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """How pydantic checks it."""
        return core_schema.literal_schema(list(self.names))


def checked(target: Target) -> Target:
    """Checks the arguments of a function, or of a class's constructor, against their annotations.

    Only arguments with a bounded number, a `Known` or a Literal in their annotation are looked at,
    and they are passed on as they came: nothing is converted. A call with another argument than its
    annotation says is a `KnobError`. What ``*args`` and ``**kwargs`` collect is not looked at.
    """
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    kinds = {name: each.kind for name, each in inspect.signature(target).parameters.items()}
    names = [name for name, kind in kinds.items() if kind not in VARIADIC]
    positional = [name for name in names if kinds[name] is not inspect.Parameter.KEYWORD_ONLY]

    @functools.cache
    def rules() -> dict[str, tuple[Any, TypeAdapter[Any]]]:
        hints = get_type_hints(target, include_extras=True)
        return {
            name: (hints[name], TypeAdapter(hints[name], config=STRICT))
            for name in names
            if name in hints and _has_rule(hints[name])
        }

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(positional, args, strict=False)) | kwargs
        for name, (hint, adapter) in rules().items():
            if name in given and not _allows(adapter, given[name]):
                is_constructor = target.__name__ == "__init__"
                owner = type(args[0]).__name__ if is_constructor else target.__name__
                raise KnobError(owner, name, _complaint(given[name], hint))
        return target(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_choice(owner: str, name: str, value: object, known: Iterable[str]) -> None:
    """Checks a name against a table that is known only when the program runs.

    Args:
        owner: see `KnobError`.
        name: of the argument.
        value: what was given.
        known: what may be.

    Raises:
        KnobError: the value is not among the known.
    """
    known = tuple(known)
    if value not in known:
        raise KnobError(owner, name, _complaint(value, Annotated[str, Known(known)]))


def _has_rule(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return any(isinstance(rule, BaseMetadata | Known) for rule in hint.__metadata__)
    return get_origin(hint) is Literal or any(map(_has_rule, get_args(hint)))


def _allows(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(_plain(value))
    except ValidationError:
        return False
    return True


def _plain(value: Any) -> Any:
    """The same in plain lists and dictionaries: OmegaConf has containers of its own."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


def _complaint(value: object, hint: Any) -> str:
    suggestion = did_you_mean(value, _choices(hint)) if isinstance(value, str) else ""
    return f"{_rule(hint)}, not {value!r}.{suggestion}"


def _rule(hint: Any) -> str:
    """What an annotation demands, as the end of a sentence that begins with the knob's name."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if part is NoneType else _rule(part) for part in get_args(hint))
    if get_origin(hint) is Sequence:
        return f"is a list, and each item {_rule(get_args(hint)[0])}"
    if get_origin(hint) is Mapping:
        return f"is a mapping, and each value {_rule(get_args(hint)[1])}"
    if choices := _choices(hint):
        return f"is {_listed(choices)}"
    if get_origin(hint) is Annotated:
        return _range(*get_args(hint))
    return f"is of type {getattr(hint, '__name__', hint)}"


def _choices(hint: Any) -> list[str]:
    """The names that an annotation offers; empty if it is no choice."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    if get_origin(hint) is Annotated:
        return [
            name for rule in hint.__metadata__ if isinstance(rule, Known) for name in rule.names
        ]
    return [name for part in get_args(hint) for name in _choices(part)]


def _range(base: type, *rules: Any) -> str:
    low = next((rule for rule in rules if isinstance(rule, Ge | Gt)), None)
    high = next((rule for rule in rules if isinstance(rule, Le | Lt)), None)
    whole = "a whole number " if base is int else ""
    if low and high:
        ends = ("[" if isinstance(low, Ge) else "(") + f"{_bound(low)}, {_bound(high)}"
        lies = f"is {whole}in" if whole else "lies in"
        return f"{lies} {ends}{']' if isinstance(high, Le) else ')'}"
    if low == Gt(0):
        return "is positive"
    word = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}[type(low or high)]
    return f"is {whole}{'of ' if whole else ''}{word} {_bound(low or high)}"


def _bound(rule: Any) -> Any:
    return astuple(rule)[0]


def _listed(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
