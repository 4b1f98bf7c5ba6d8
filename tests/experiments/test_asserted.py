"""Every metric that a claim reads stands in an assertion of a test of its room or method.

It stands there by its name, or as an f-string in a loop over literals: see `names`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from names import asserted_in

from repro.claims.file import load_claims
from repro.records.papers import load_paper, paper_files

TESTS = Path(__file__).parents[1]


def asserted(slug: str) -> set[str]:
    """What the tests of a room and of its method assert."""
    methods = TESTS / "methods"
    files = [TESTS / "experiments" / f"test_{slug}.py", methods / f"test_{slug}.py"]
    found = [*(file for file in files if file.is_file()), *(methods / slug).rglob("*.py")]
    return {name for file in found for name in asserted_in(file)}


@pytest.mark.parametrize("slug", sorted(paper_files()))
def test_metrics_of_claims_are_asserted(slug: str) -> None:
    read = {
        metric
        for claim in load_claims(load_paper(slug).claims_file).claims
        for check in claim.all_checks()
        for metric in check.metric_names()
    }
    missing = sorted(read - asserted(slug))
    assert not missing, f"{len(missing)} of {len(read)} are asserted in no test: {missing}"


def test_names_are_those_that_assertions_read(tmp_path: Path) -> None:
    """Not those of docstrings, of inputs, or of loops over what only a run knows."""
    file = tmp_path / "test_x.py"
    file.write_text(
        """
SIZES = [16, 32]
SHARES = {"a": 0.1, "b": 0.2}

@pytest.mark.parametrize(("part", "other"), [("moons", 1), ("circles", 2)])
def test_x(part, other):
    'Not test/docstring.'
    room.table = {"test/input": 1}
    unread = found["test/unread"]
    before = found["test/before"]
    assert found["test/plain"] == before
    assert found[f"test/{part}/gain"] == 1
    for name in ("test/first", "test/second"):
        assert found[name] == 1
    for size in SIZES:
        assert all(found[f"test/b{size}/{k}"] == v for k, v in SHARES.items())
    for unknown in computed():
        assert found[f"test/{unknown}"] == found[f"test/{unknown + 1}"]
"""
    )
    assert {name for name in asserted_in(file) if name.startswith("test/")} == {
        "test/before", "test/plain", "test/first", "test/second",
        "test/moons/gain", "test/circles/gain",
        "test/b16/a", "test/b16/b", "test/b32/a", "test/b32/b",
    }  # fmt: skip
