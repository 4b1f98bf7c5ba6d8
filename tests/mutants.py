"""`make mutants`: whether tests of rooms notice that a sign, a comparison or an extreme is turned.

Each mutant is a room's module with one change, in memory alone: a forked process imports it in the
place of the module, and runs those tests of the room that train nothing. Work that is none of a
metric's (`__init__`, checkpoints, …) is left as it is.
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

ROOT = Path(__file__).parents[1]
TURNED: dict[type[ast.AST], Any] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
EXTREMES = {"min": "max", "argmin": "argmax", "amin": "amax"}
EXTREMES |= {large: small for small, large in EXTREMES.items()}
SKIPPED = {
    "__init__", "__post_init__", "setup", "start_from", "training_step", "on_save_checkpoint",
    "on_load_checkpoint",
}  # fmt: skip
SLOW = {"study", "smoke", "tmp_path"}  # fixtures of tests that train


@dataclass(frozen=True)
class Mutant:
    """A change: the number of a place in a file that can be turned, and where that is."""

    file: Path
    number: int
    line: int

    @property
    def module(self) -> str:
        """What is imported."""
        return f"repro.experiments.{self.file.parent.name}.{self.file.stem}"

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


def mutants(slug: str) -> list[Mutant]:
    """All of a room."""
    found = []
    for file in sorted((ROOT / "experiments" / slug).glob("*.py")):
        if file.stem != "figures":
            every = enumerate(places(ast.parse(file.read_text())))
            found += [Mutant(file, number, getattr(node, "lineno", 0)) for number, node in every]
    return found


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


def passes(slug: str, mutant: Mutant | None, seconds: int) -> bool | None:
    """Whether the tests of a room pass, in a process of their own; None if time is up before."""
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
        file = ROOT / "tests" / "experiments" / f"test_{slug}.py"
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", str(file)], [Quick()]))
    finally:
        os._exit(code)


def main() -> None:
    """Tries some mutants of every room, and says which lived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", help="slugs; all by default")
    parser.add_argument("--count", type=int, default=10, help="mutants of each room")
    parser.add_argument("--minutes", type=float, default=30, help="of all together")
    parser.add_argument("--seconds", type=int, default=120, help="of the tests of one mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    options = parser.parse_args()

    from repro.records.papers import paper_files
    from repro.training.startup import import_lightning

    import_lightning()  # once, for all processes
    end, killed, tried = time.monotonic() + 60 * options.minutes, 0, 0
    for slug in options.rooms or sorted(paper_files()):
        if time.monotonic() > end:
            print(f"{slug} and what follows: no time left")
            break
        if not passes(slug, None, options.seconds):
            print(f"{slug}: its tests fail as they are, or take more than {options.seconds} s")
            continue
        every = mutants(slug)
        chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
        lived, decided = [], 0
        for mutant in chosen:
            if time.monotonic() > end:
                break
            passed = passes(slug, mutant, options.seconds)
            decided += passed is not None
            lived += [mutant] if passed else []
        killed, tried = killed + decided - len(lived), tried + decided
        print(f"{slug}: {decided - len(lived)} of {decided} killed", flush=True)
        for mutant in lived:
            print(f"  lived: {mutant.file.relative_to(ROOT)}:{mutant.line}", flush=True)
    print(f"{killed} of {tried} killed")


if __name__ == "__main__":
    main()
