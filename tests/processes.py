"""The tests that start processes, found by reading the code that they reach.

`conftest` gives them the marker `processes`, which `make unit` leaves out, and fails any other test
in which a process ended. A test reaches its own code and that of its fixtures, and the functions
and classes that this code names: those of `tests` and of `smtpd_filters.testing` with everything
that they reach, others of the package alone. A command with the path of the interpreter counts too.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The names by which code starts processes; `executable` is that of `sys`.
STARTERS = frozenset(
    {
        "executable",
        *("subprocess", "Popen", "create_subprocess_exec", "create_subprocess_shell"),
        *("fork", "posix_spawn", "posix_spawnp", "multiprocessing", "ProcessPoolExecutor"),
    }
)
#: The modules whose code is read.
_OF_TESTS = ("tests.", "smtpd_filters.testing.")
_OURS = ("tests.", "smtpd_filters.")
#: The types of decorated functions.
_WRAPPERS = (FunctionType, type(cache(lambda: None)))
#: The result for each function and class that was read.
_read: dict[object, bool] = {}


def starts_processes(item: pytest.Function) -> bool:
    """Return whether a test, or a fixture that it uses, can start a process."""
    fixtures = item._fixtureinfo.name2fixturedefs  # pytest's only list of them
    functions = [definition.func for each in fixtures.values() for definition in each]
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(map(reaches, [item.function, *functions, *parameters]))


def reaches(thing: object) -> bool:
    """Return whether a function or a class reaches one of `STARTERS`."""
    thing = _plain(thing)
    if not isinstance(thing, (FunctionType, type)):
        return False
    if thing not in _read:
        _read[thing] = False  # while it is being read: it may reach itself
        _read[thing] = any(map(_starts, _functions(thing)))
    return _read[thing]


def _plain(thing: object) -> object:
    """Return the function that decorators, Hypothesis's included, have wrapped."""
    while True:
        if isinstance(thing, partial):
            thing = thing.func
        elif isinstance(thing, (MethodType, classmethod, staticmethod)):
            thing = thing.__func__
        elif isinstance(thing, property):
            thing = thing.fget
        elif isinstance(thing, FunctionType) and hasattr(thing, "hypothesis"):
            thing = thing.hypothesis.inner_test
        elif isinstance(thing, _WRAPPERS) and hasattr(thing, "__wrapped__"):
            thing = thing.__wrapped__
        else:
            return thing


def _functions(thing: FunctionType | type) -> Iterator[FunctionType]:
    """Yield a function, or all functions of a class and of its bases."""
    if isinstance(thing, FunctionType):
        yield thing
    elif isinstance(thing, type):
        for base in thing.__mro__:
            if _is_in(base, _OURS):
                members = map(_plain, vars(base).values())
                yield from (each for each in members if isinstance(each, FunctionType))


def _starts(function: FunctionType) -> bool:
    names = set(_names(function.__code__))
    if names & STARTERS:
        return True
    if not _is_in(function, _OF_TESTS):
        return False
    known, enclosed = function.__globals__, _enclosed(function)
    for name in names:
        value = enclosed[name] if name in enclosed else known.get(name)
        if isinstance(value, ModuleType):
            # Its members are among the names as well.
            if any(_uses(vars(value).get(other)) for other in names):
                return True
        elif _uses(value):
            return True
    return any(map(_uses, _imported(function.__code__)))


def _uses(value: object) -> bool:
    """Return whether using a value starts processes."""
    if isinstance(value, (list, tuple)):
        return any(map(_uses, value))
    if isinstance(value, str):
        return sys.executable in value
    return _is_in(value, _OURS) and reaches(value)


def _names(code: CodeType) -> Iterator[str]:
    """Yield all names that some code uses, and that of the functions defined in it."""
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _enclosed(function: FunctionType) -> dict[str, object]:
    """Return the variables that a function has from the one around it."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _imported(code: CodeType) -> Iterator[object]:
    """Yield what the code imports from the package and its tests while it runs."""
    names = list(_names(code))
    for name in names:
        module = sys.modules.get(name)
        if module is not None and f"{name}.".startswith(_OURS):
            yield from (vars(module)[other] for other in names if other in vars(module))


def _is_in(thing: object, packages: tuple[str, ...]) -> bool:
    """Return whether a function or a class is defined in one of these packages."""
    thing = _plain(thing)
    return isinstance(thing, (FunctionType, type)) and f"{thing.__module__}.".startswith(packages)
