"""A test that asserts only within loops and branches asserts that it enters one.

An assertion counts if it is reached on every run: outside of loops and branches, in a loop over a
display that isn't empty, in each of the branches, or in a function within, which the test calls.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
#: Calls that yield as many items as their first argument, or some at least.
AS_MANY = {"enumerate", "reversed", "sorted", "list", "tuple", "zip", "items", "values", "keys"}
EXPECTING = {"raises", "warns"}

Names = dict[str, ast.expr]


def called(node: ast.expr) -> tuple[str, list[ast.expr]]:
    """Return the name of what a call calls and its arguments, that of a method before them."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return name, arguments
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments):
            return name, [value, *arguments]
    return "", []


def filled(node: ast.expr, names: Names) -> bool:  # noqa: PLR0911  # a kind of expression each
    """Whether a loop over this is entered, as far as the source tells."""
    match node:
        case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
            return any(not isinstance(it, ast.Starred) or filled(it.value, names) for it in items)
        case ast.Dict(keys=keys):
            return bool(keys)
        case ast.Constant(value=value):
            return bool(value)
        case ast.Name(id=name):
            # Each name is looked up once: one assigned to itself would recur forever.
            others = {other: value for other, value in names.items() if other != name}
            return name in names and filled(names[name], others)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return filled(left, names) and filled(right, names)
        case ast.BinOp(left=left, op=ast.Add() | ast.BitOr(), right=right):
            return filled(left, names) or filled(right, names)
        case ast.ListComp(generators=[ast.comprehension(iter=over, ifs=[])]):
            return filled(over, names)
    name, arguments = called(node)
    if name in {"range", "len"}:
        return bool(arguments) and filled(arguments[-1], names)
    return name in AS_MANY and bool(arguments) and filled(arguments[0], names)


def asserts(body: list[ast.stmt], names: Names, *, anywhere: bool = False) -> bool:
    """Whether these statements assert something on every run; with `anywhere`, on some."""
    return any(_asserts(node, names, anywhere) for node in body)


def _asserts(node: ast.stmt, names: Names, anywhere: bool) -> bool:  # noqa: FBT001, PLR0911  # a case each
    def within(*bodies: list[ast.stmt]) -> bool:
        found = [asserts(body, names, anywhere=anywhere) for body in bodies]
        return any(found) if anywhere else all(found)

    match node:
        case ast.Assert():
            return True
        case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
            expecting = any(called(item.context_expr)[0] in EXPECTING for item in items)
            return expecting or within(body)
        case ast.For(iter=over, body=body) | ast.AsyncFor(iter=over, body=body):
            return (anywhere or filled(over, names)) and within(body)
        case ast.While(test=test, body=body):
            return (anywhere or filled(test, names)) and within(body)
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
            return within(body)
        case ast.If(body=body, orelse=orelse):
            return within(body, orelse)
        case ast.Match(cases=cases):
            return anywhere and within(*(case.body for case in cases))
        case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=finalbody):
            after = [handler.body for handler in handlers]
            return within(body) or within(finalbody) or within(orelse or body, *after)
    return False


def idle(source: str) -> list[tuple[int, str]]:
    """Return the tests, with their lines, whose assertions may all be passed by."""
    tree = ast.parse(source)

    def assigned(below: ast.AST) -> Names:
        names = {}
        for node in ast.walk(below):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    names[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    names[name] = value
        return names

    outside = {
        name: value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name, value in assigned(node).items()
    }
    return [
        (node.lineno, node.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and asserts(node.body, {}, anywhere=True)
        and not asserts(node.body, outside | assigned(node))
    ]


@pytest.mark.parametrize(
    "body",
    [
        "for x in f(): assert x",
        "def f():\n  for x in f(): assert x",
        "for x in (): assert x",
        "for x in [*y]: assert x",
        "xs = xs\n for x in xs: assert x",
        "for x in range(n): assert x",
        "for x in [y for y in (1, 2) if y]: assert x",
        "for x in (1, 2):\n  if x: assert x",
        "while f(): assert x",
        "if x: assert x",
        "if x: assert x\n else: f()",
        "if x:\n  with raises(E): f()",
        "with f():\n  for x in f(): assert x",
        "match x:\n  case 1: assert x\n  case 2: assert x",
        "try: f()\n except E: assert x",
        "async for x in f(): assert x",
    ],
)
def test_assertions_that_may_be_passed_by(body: str) -> None:
    assert idle(f"async def test_it():\n {body}\n") == [(1, "test_it")]


@pytest.mark.parametrize(
    "body",
    [
        "f()",
        "assert x",
        "for x in f(): assert x\n assert xs",
        "for x in (1, 2): assert x",
        "for x, y in {1: 2}.items(): assert x",
        "for x, y in zip([1], [2]): assert x",
        "for x in (*y, 1): assert x",
        "for x in NAMES: assert x",
        "xs = [1] + f()\n for x in xs: assert x",
        "for x in range(2 * N): assert x",
        "for x in range(len(NAMES)): assert x",
        "for x in [y for y in NAMES]: assert x",
        "while True: assert x",
        "if x: assert x\n elif y: assert y\n else: assert z",
        "with raises(E): f()",
        "with pytest.raises(E): f()",
        "with f(): assert x",
        "async def main(): assert x\n try: run(main())\n except E: assert y",
        "try: f()\n finally: assert x",
        "try: f()\n except E: assert x\n else: assert y",
    ],
)
def test_assertions_that_are_reached(body: str) -> None:
    assert idle(f"NAMES = {{1, 2}}\nN: int = 3\nasync def test_it():\n {body}\n") == []


def test_no_assertion_of_a_test_may_be_passed_by() -> None:
    modules = sorted(TESTS.rglob("test_*.py"))
    assert len(modules) > 100
    found = [
        f"{path.relative_to(TESTS.parent)}:{line}: {name} may assert nothing at all"
        for path in modules
        for line, name in idle(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)
