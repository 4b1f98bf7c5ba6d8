"""The strings that tests write, f-strings of their loops included: read, not run."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Values = tuple[object, ...]  # of a loop's variable, in its order
Loop = Mapping[str, Values]  # variables that run together, as in ``for a, b in …``


def strings_of(file: Path) -> set[str]:
    """All strings in the functions of a file, without docstrings.

    An f-string gives one for each turn of the loops (``for``, comprehensions, parametrisations)
    around it, where these run over literals or the module's constants, and none otherwise.
    """
    tree = ast.parse(file.read_text())
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {text for node in functions for text in _strings(node, [], constants)}


def _strings(
    node: ast.AST, loops: Sequence[Loop], constants: Mapping[str, ast.expr]
) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from _formatted(node, loops)
    elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        inner = [*loops, *(loop for each in _loops(node, constants) if (loop := each))]
        for child in ast.iter_child_nodes(node):
            yield from _strings(child, inner, constants)


def _formatted(node: ast.JoinedStr, loops: Sequence[Loop]) -> Iterator[str]:
    """The string for every combination of turns; none where something else is put in."""
    parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
    wanted = {part.id for part in parts if isinstance(part, ast.Name)}
    if not all(isinstance(part, (ast.Name, ast.Constant)) for part in parts):
        return
    used = [loop for loop in loops if wanted & loop.keys()]
    turns = [
        [dict(zip(loop, turn, strict=True)) for turn in zip(*loop.values(), strict=True)]
        for loop in used
    ]
    for chosen in itertools.product(*turns):
        values = {name: value for turn in chosen for name, value in turn.items()}
        if wanted <= values.keys():
            yield "".join(
                str(values[part.id] if isinstance(part, ast.Name) else ast.literal_eval(part))
                for part in parts
            )


def _loops(node: ast.AST, constants: Mapping[str, ast.expr]) -> Iterator[Loop]:
    """What a node makes run: loops, or the parameters of a test."""
    if isinstance(node, ast.For):
        yield _loop(node.target, node.iter, constants)
    for each in getattr(node, "generators", ()):
        yield _loop(each.target, each.iter, constants)
    for call in getattr(node, "decorator_list", ()):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.parametrize":
            names = ast.literal_eval(call.args[0])
            names = names.split(",") if isinstance(names, str) else names
            targets = [ast.Name(name.strip()) for name in names]
            target = targets[0] if len(targets) == 1 else ast.Tuple(list(targets))
            yield _loop(target, call.args[1], constants)


def _loop(target: ast.expr, over: ast.expr, constants: Mapping[str, ast.expr]) -> Loop:
    """The variables of a loop; none where it runs over something that is not literal."""
    match target:
        case ast.Name(name):
            names = [name]
        case ast.Tuple(several):
            names = [each.id if isinstance(each, ast.Name) else "" for each in several]
        case _:
            return {}
    match over:
        case ast.Call(ast.Attribute(table, "items")):
            turns: list[ast.expr] = [
                ast.Tuple([key, value])
                for table in [_constant(table, constants)]
                if isinstance(table, ast.Dict)
                for key, value in zip(table.keys, table.values, strict=True)
                if key is not None
            ]
        case _:
            over = _constant(over, constants)
            turns = over.elts if isinstance(over, (ast.Tuple, ast.List)) else []
    columns: dict[str, Values] = {}
    for index, name in enumerate(names):
        cells = [
            turn.elts[index] if isinstance(turn, ast.Tuple) and len(names) > 1 else turn
            for turn in turns
        ]
        if turns and all(isinstance(cell, ast.Constant) for cell in cells):
            columns[name] = tuple(ast.literal_eval(cell) for cell in cells)
    return columns


def _constant(node: ast.expr, constants: Mapping[str, ast.expr]) -> ast.expr:
    """What a name of the module stands for."""
    return constants.get(node.id, node) if isinstance(node, ast.Name) else node
