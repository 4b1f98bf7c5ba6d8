"""`make mutants`: do tests notice a turned sign, comparison or extreme in a room or a method?

Each mutant is a module with one change, in memory alone: a forked process imports it in the place
of the module, and runs those tests of the room or the method that train nothing. Work that is none
of a metric's (`__init__`, checkpoints, …) is left as it is. The exit code is 1 if too many live.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TURNED: dict[type[ast.AST], Any] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Pow: ast.Mult,
}  # fmt: skip
EXTREMES = {"min": "max", "argmin": "argmax", "amin": "amax", "minimum": "maximum"}
EXTREMES |= {large: small for small, large in EXTREMES.items()}
SKIPPED = {
    "__init__", "__post_init__", "setup", "start_from", "training_step", "on_save_checkpoint",
    "on_load_checkpoint",
}  # fmt: skip
SLOW = {"study", "smoke", "tmp_path"}  # fixtures of tests that train


@dataclass(frozen=True)
class Part:
    """A part of every paper.

    Args:
        name: what it is called.
        sources: where its modules are: a folder, or a file of that name.
        tests: the files or folders that may be of its tests.
        least: the share of its mutants that must be killed.
    """

    name: str
    sources: str
    tests: tuple[str, ...]
    least: float

    def modules(self, slug: str) -> list[Path]:
        """The files that may be changed: pictures are looked at by people."""
        place = ROOT / self.sources.format(slug)
        found = [place.with_suffix(".py"), *sorted(place.rglob("*.py"))]
        skipped = ("figures.py", "__init__.py")
        return [file for file in found if file.is_file() and file.name not in skipped]

    def test_places(self, slug: str) -> list[Path]:
        """The files and folders of tests that should notice."""
        found = [ROOT / place.format(slug) for place in self.tests]
        return [place for place in found if place.exists()]

    def mutants(self, slug: str) -> list[Mutant]:
        """All of a paper."""
        return [
            Mutant(file, number, getattr(node, "lineno", 0))
            for file in self.modules(slug)
            for number, node in enumerate(places(ast.parse(file.read_text())))
        ]


PARTS = (
    Part("room", "experiments/{}", ("tests/experiments/test_{}.py",), least=0.90),
    Part("method", "src/repro/methods/{}", ("tests/methods/test_{}.py", "tests/methods/{}"), 0.95),
)


@dataclass(frozen=True)
class Mutant:
    """A change: the number of a place in a file that can be turned, and where that is."""

    file: Path
    number: int
    line: int

    @property
    def module(self) -> str:
        """What is imported."""
        parts = self.file.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[1:] if parts[0] == "src" else ("repro", *parts))

    def tree(self) -> ast.Module:
        """The changed module."""
        tree = ast.parse(self.file.read_text())
        turn(list(places(tree))[self.number])
        return tree


def places(node: ast.AST) -> Iterator[ast.AST]:
    """What can be turned, in its order; sums of strings cannot."""
    if isinstance(node, ast.FunctionDef) and node.name in SKIPPED:
        return
    match node:
        case ast.BinOp(left, op, right) if type(op) in TURNED:
            if not any(isinstance(each, ast.JoinedStr) or is_text(each) for each in (left, right)):
                yield node
        case ast.Compare(ops=[op]) if type(op) in TURNED:
            yield node
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield node  # and no axis or index, whose sign says from which end
        case ast.Name(name) | ast.Attribute(attr=name) if name in EXTREMES:
            yield node
    for child in ast.iter_child_nodes(node):
        yield from places(child)


def is_text(node: ast.AST) -> bool:
    """Whether it is a string."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def turn(node: Any) -> None:
    """Turns a place."""
    match node:
        case ast.BinOp():
            node.op = TURNED[type(node.op)]()
        case ast.Compare():
            node.ops = [TURNED[type(node.ops[0])]()]
        case ast.UnaryOp():
            node.op = ast.UAdd()
        case ast.Name():
            node.id = EXTREMES[node.id]
        case ast.Attribute():
            node.attr = EXTREMES[node.attr]


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a mutant in the place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Of the mutant alone."""
        if name != self.mutant.module:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self.mutant.file))

    def exec_module(self, module: ModuleType) -> None:
        """Runs it."""
        exec(compile(self.mutant.tree(), str(self.mutant.file), "exec"), module.__dict__)


class Quick:
    """Leaves out tests that train."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """See the class."""
        items[:] = [item for item in items if not SLOW & set(item.fixturenames)]


def passes(tests: Sequence[Path], mutant: Mutant | None, seconds: int) -> bool | None:
    """Whether tests pass, in a process of their own; None if time is up before."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return None if code == -signal.SIGALRM else code == 0
    signal.alarm(seconds)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    code = 1
    try:
        if mutant is not None:
            sys.meta_path.insert(0, Importer(mutant))
        options = ["-x", "-q", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, *map(str, tests)], [Quick()]))
    finally:
        os._exit(code)


@dataclass
class Count:
    """What became of mutants; those for which time ran out are not counted."""

    killed: int = 0
    tried: int = 0
    untested: int = 0  # papers whose tests fail as they are

    def holds(self, part: Part) -> bool:
        """Whether enough of a part's mutants were killed."""
        return not self.untested and self.killed >= part.least * self.tried


def try_part(part: Part, slug: str, count: Count, options: argparse.Namespace, end: float) -> None:
    """Tries some mutants of a part of a paper, says which lived, and counts."""
    name, tests = f"{slug}, {part.name}", part.test_places(slug)
    every = part.mutants(slug)
    if not every:
        return
    if not passes(tests, None, options.seconds):
        print(f"{name}: its tests fail as they are, or take more than {options.seconds} s")
        count.untested += 1
        return
    killed = tried = 0
    for mutant in random.Random(options.seed).sample(every, min(options.count, len(every))):
        if time.monotonic() > end:
            break
        passed = passes(tests, mutant, options.seconds)
        tried += passed is not None
        killed += passed is False
        if passed:
            print(f"  lived: {mutant.file.relative_to(ROOT)}:{mutant.line}", flush=True)
    print(f"{name}: {killed} of {tried} killed", flush=True)
    count.killed += killed
    count.tried += tried


def main() -> int:
    """Tries some mutants of every paper, and says which lived; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("papers", nargs="*", help="slugs; all by default")
    parser.add_argument("--count", type=int, default=10, help="mutants of each room and method")
    parser.add_argument("--minutes", type=float, default=60, help="of all together")
    parser.add_argument("--seconds", type=int, default=120, help="of the tests of one mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    options = parser.parse_args()

    from repro.records.papers import paper_files
    from repro.training.startup import import_lightning

    import_lightning()  # once, for all processes
    end = time.monotonic() + 60 * options.minutes
    counts = {part: Count() for part in PARTS}
    for slug in options.papers or sorted(paper_files()):
        if time.monotonic() > end:
            print(f"{slug} and what follows: no time left")
            break
        for part, count in counts.items():
            try_part(part, slug, count, options, end)
    for part, count in counts.items():
        least = f"at least {part.least:.0%} of them must be"
        print(f"all {part.name}s: {count.killed} of {count.tried} killed; {least}")
    return int(not all(count.holds(part) for part, count in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
