"""The arrows between rooms: every import in the sources is read, those inside functions too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx

PROJECT = Path(__file__).parents[1]
ROOTS = {"src/repro": "repro", "cli": "repro.cli", "experiments": "repro.experiments"}
# Every room may import from its own line and from those above it.
LAYERS = (
    ("errors", "knobs", "internals"),
    ("records",),
    ("planning",),
    ("data",),
    ("models",),
    ("toolbox",),
    ("methods", "claims"),
    ("training",),
    ("launching",),
    ("report",),
    ("search",),
    ("experiments",),
    ("cli",),
)
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# The only files that touch private parts of other packages: Lightning's, and PyTorch's.
PRIVATE_PARTS = ("repro.training.lightning", "repro.internals")
# Of `os` and of named tuples: public all the same.
DOCUMENTED = ("_exit", "_replace", "_fields", "_asdict")


@cache
def sources() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for root, package in ROOTS.items():
        for file in (PROJECT / root).rglob("*.py"):
            parts = file.relative_to(PROJECT / root).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text())


@cache
def imported(module: str) -> tuple[str, ...]:
    """The project's modules that a module imports, but for type checkers."""
    return tuple(_imported(module))


def _imported(module: str) -> Iterator[str]:
    ignored = {
        id(node)
        for branch in ast.walk(tree(module))
        if isinstance(branch, ast.If)
        and isinstance(branch.test, ast.Name)
        and branch.test.id == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    package = module if sources()[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree(module)):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in sources():
                name = name.rpartition(".")[0]
            if name not in ("", "repro", "repro.cli", "repro.experiments", module):
                yield name


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "errors"


def test_imports_follow_the_arrows() -> None:
    upwards = {
        (module, name)
        for module in sources()
        for name in imported(module)
        if RANKS[room(name)] > RANKS[room(module)]
    }
    assert not upwards


def test_there_is_no_circle() -> None:
    graph = networkx.DiGraph()
    for module in sources():
        # A package imports what it offers, and its parts import each other by their own names.
        graph.add_edges_from((module, name) for name in imported(module))
    circles = [sorted(c) for c in networkx.strongly_connected_components(graph) if len(c) > 1]
    assert not circles


def test_no_paper_imports_another() -> None:
    rooms = [module for module in sources() if module.startswith("repro.experiments.")]
    for module in rooms:
        slugs = {name.split(".")[2] for name in imported(module) if name in rooms}
        assert slugs <= {module.split(".")[2]}, module


def texts(module: str) -> Iterator[str]:
    """The strings of a module that are no documentation."""
    said = {id(node.value) for node in ast.walk(tree(module)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_only_what_belongs_to_a_paper_names_it() -> None:
    slugs = "|".join(file.stem for file in (PROJECT / "conf" / "paper").glob("*.yaml"))
    named = re.compile(rf"({slugs})|.*\bpaper=({slugs})\b.*", re.DOTALL)
    house = [module for module in sources() if room(module) not in ("methods", "experiments")]
    found = {(module, text) for module in house for text in texts(module) if named.fullmatch(text)}
    assert not found


def private_names(module: str) -> Iterator[str]:
    """Names with a leading underscore that belong to somebody else."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            base = node.module or ""
            if not base.startswith("repro"):
                names = [*base.split("."), *(alias.name for alias in node.names)]
                yield from (f"{base}: {name}" for name in names if is_private(name))
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if any(map(is_private, a.name.split("."))))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()"):
                yield f"{owner}.{node.attr}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_") and name not in DOCUMENTED


def test_private_parts_of_others_are_left_alone() -> None:
    touched = {
        module: list(private_names(module)) for module in sources() if module not in PRIVATE_PARTS
    }
    assert not {module: names for module, names in touched.items() if names}
