"""The strings that assertions of tests read, f-strings of their loops included."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Loop = Mapping[str, tuple[object, ...]]  # values of variables that change together, turn by turn


def asserted_in(file: Path) -> set[str]:
    """The strings in assertions, and in what gives an assertion's variables their values.

    What a helper returns counts as asserted. An f-string gives one string for each turn of the
    loops (``for``, comprehensions, parametrisations) around it, where these run over literals or
    constants of the module, and none where anything else is put in.
    """
    tree = ast.parse(file.read_text())
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: set[str] = set()
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        ends = [each for each in ast.walk(function) if isinstance(each, ast.Assert | ast.Return)]
        read = frozenset(name for end in ends for name in _names(end))
        found.update(_Reader(constants, read).strings(function, [], False))
    return found


@dataclass(frozen=True)
class _Reader:
    """Reads a function.

    Attributes:
        constants: of its module.
        read: variables of its assertions.
    """

    constants: Mapping[str, ast.expr]
    read: frozenset[str]

    def strings(self, node: ast.AST, loops: Sequence[Loop], counts: bool) -> Iterator[str]:
        """The strings in a part of it; ``counts`` says whether an assertion reads that part."""
        match node:
            case ast.Assert() | ast.Return():
                counts = True
            case ast.Assign(targets=[ast.Name(name)]):
                counts = name in self.read
            case ast.Constant(str(text)) if counts:
                yield text
            case ast.JoinedStr() if counts:
                yield from _turns_of(node, loops)
                return
        over = [*self.loops(node)]
        inner = [*loops, *(self.loop(target, values) for target, values in over)]
        for child in ast.iter_child_nodes(node):
            is_read = any(child is v and _names(target) & self.read for target, v in over)
            yield from self.strings(child, inner, counts or is_read)

    def loops(self, node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
        """What a node runs over: variables, and their values."""
        match node:
            case (
                ast.For(target=target, iter=values) | ast.comprehension(target=target, iter=values)
            ):
                yield target, values
            case ast.FunctionDef(decorator_list=calls):
                for call in calls:
                    match call:
                        case ast.Call(ast.Attribute(attr="parametrize"), [names, values]):
                            yield _variables(names), values
        for part in getattr(node, "generators", ()):  # whose element stands beside them
            yield part.target, part.iter

    def loop(self, target: ast.expr, values: ast.expr) -> Loop:
        """The variables of a loop that are literals at every turn."""
        turns = self.turns(values)
        several = target.elts if isinstance(target, ast.Tuple) else None
        columns: dict[str, tuple[object, ...]] = {}
        for index, variable in enumerate([target] if several is None else several):
            cells = [
                turn.elts[index] if several is not None and isinstance(turn, ast.Tuple) else turn
                for turn in turns
            ]
            if isinstance(variable, ast.Name) and all(isinstance(c, ast.Constant) for c in cells):
                columns[variable.id] = tuple(ast.literal_eval(cell) for cell in cells)
        return columns

    def turns(self, values: ast.expr) -> Sequence[ast.expr]:
        """The elements of a literal, or of a constant; none of anything else."""
        match values:
            case ast.Name(name) if name in self.constants:
                return self.turns(self.constants[name])
            case ast.Tuple(elements) | ast.List(elements):
                return elements
            case ast.Dict(keys):
                return [key for key in keys if key is not None]
            case ast.Call(ast.Attribute(table, "items")):
                table = (
                    self.constants.get(table.id, table) if isinstance(table, ast.Name) else table
                )
                if isinstance(table, ast.Dict):
                    return [
                        ast.Tuple([key, value])
                        for key, value in zip(table.keys, table.values, strict=True)
                        if key is not None
                    ]
        return []


def _turns_of(node: ast.JoinedStr, loops: Sequence[Loop]) -> Iterator[str]:
    """An f-string for every combination of its variables' values."""
    used = [loop for loop in loops if _names(node) & loop.keys()]
    turns = [
        [dict(zip(loop, turn, strict=True)) for turn in zip(*loop.values(), strict=True)]
        for loop in used
    ]
    code = compile(ast.Expression(node), "<f-string>", "eval")
    for chosen in itertools.product(*turns):
        values = {name: value for turn in chosen for name, value in turn.items()}
        if _names(node) <= values.keys():
            yield eval(code, values)


def _names(node: ast.AST) -> set[str]:
    """The variables in a part of a test."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _variables(names: ast.expr) -> ast.expr:
    """The parameters of a test, by their names in a string, a list or a tuple."""
    text = ast.literal_eval(names)
    listed = [each.strip() for each in text.split(",")] if isinstance(text, str) else text
    variables: list[ast.expr] = [ast.Name(each) for each in listed]
    return variables[0] if len(variables) == 1 else ast.Tuple(variables)
