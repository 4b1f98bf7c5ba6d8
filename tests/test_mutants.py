"""`make mutants`: what it turns, where, and when it fails."""

from __future__ import annotations

import ast

import mutants
import pytest

ROOM, METHOD = mutants.PARTS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a + b * c", ["a - b * c", "a + b / c"]),
        ("x if a < min(b) else y", ["x if a > min(b) else y", "x if a < max(b) else y"]),
        ("torch.minimum(a**2, b)", ["torch.maximum(a ** 2, b)", "torch.minimum(a * 2, b)"]),
        ("f'{a}' + 'b'", []),
        ("-a[-1]", ["+a[-1]"]),
        ("torch.argmax(a == b)", ["torch.argmin(a == b)", "torch.argmax(a != b)"]),
    ],
)
def test_each_place_is_turned_by_itself(before: str, after: list[str]) -> None:
    found = []
    for number in range(len(list(mutants.places(ast.parse(before))))):
        tree = ast.parse(before)
        mutants.turn(list(mutants.places(tree))[number])
        found.append(ast.unparse(tree))
    assert sorted(found) == sorted(after)


def test_every_paper_has_both_parts_and_their_tests() -> None:
    from repro.records.papers import paper_files

    for slug in paper_files():
        assert METHOD.modules(slug), slug
        for part in mutants.PARTS:
            assert part.test_places(slug), (slug, part.name)
            assert all(each.module.startswith("repro.") for each in part.mutants(slug)[:1])


@pytest.mark.parametrize(
    ("part", "killed", "tried", "holds"),
    [
        (ROOM, 9, 10, True),
        (ROOM, 8, 10, False),
        (METHOD, 9, 10, False),
        (METHOD, 19, 20, True),
        (METHOD, 0, 0, True),
    ],
)
def test_too_many_that_live_are_a_failure(
    part: mutants.Part, killed: int, tried: int, holds: bool
) -> None:
    assert mutants.Count(killed, tried).holds(part) is holds
    assert not mutants.Count(killed, tried, untested=1).holds(part)
