r"""Possessive repeats of groups in the package's regular expressions, which greedy ones must equal.

`(?:\.[a-z]++)*+` is to be avoided. Where an iteration fails behind the beginning of a repeat in it,
Python before 3.11.5, such as Debian 12's, keeps what the iteration has consumed (gh-106052): with
that group behind `[a-z]++`, "a.]" begins with a match "a.". Write `(?:\.[a-z]++)*`: if the repeats
in it are possessive, and no text can be matched in two ways, the time is linear all the same. A
possessive group is safe if nothing in it fails behind a repeat: `(?:[^"\]++|\.)*+`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from random import Random
from time import process_time
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.authentication.dkim import field
from smtpd_filters.checks.author import addresses_in_text, from_field
from smtpd_filters.filters.auth import authors
from smtpd_filters.message import completion
from smtpd_filters.mime import comments, parameters
from tests.effort import part

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
#: Prints the expressions that are compiled when all modules are imported, and the strings in them
#: from which others are made. Modules whose library is missing are left out.
COLLECT = r"""
import json, pkgutil, re, sys
from importlib import import_module
import smtpd_filters

found = {}

def collect(pattern, flags=0):
    if isinstance(pattern, (str, bytes)):
        is_bytes = isinstance(pattern, bytes)
        text = pattern.decode("latin-1") if is_bytes else pattern
        found[sys._getframe(1).f_globals["__name__"], text, is_bytes, int(flags)] = None
    return compiled(pattern, flags)

compiled, re.compile = re.compile, collect
for module in pkgutil.walk_packages(smtpd_filters.__path__, "smtpd_filters."):
    if module.name.endswith("__main__"):
        continue
    try:
        names = vars(import_module(module.name))
    except ModuleNotFoundError as error:
        if error.name.startswith("smtpd_filters"):
            raise
        continue
    for name, value in names.items():
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        if isinstance(value, str) and "(" in value and not name.startswith("__"):
            try:
                compiled(value := value.replace("%b", "a"))
            except re.error:
                continue  # no expression
            found[module.name, value, False, 0] = None
print(json.dumps([each for each in found if each[0].startswith("smtpd_filters")]))
"""
#: An escape, a set, the possessive repeat of a group, and any other character of an expression.
PIECES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\)(?:[*+?]|\{[\d,]*\}))\+|.", re.DOTALL)
#: Expressions in which possession makes a difference that is meant, and why.
MEANT = {
    r'(?:"(?:[^"\\]|\\.)*+"|[^\s,"]|")++': "a quote is ordinary only if no string begins with it",
}


def greedy(pattern: str) -> str:
    """Return an expression with greedy groups in place of possessive ones."""
    return PIECES.sub(lambda piece: piece[1] or piece[0], pattern)


@lru_cache
def possessive() -> dict[tuple[str, bool, int], str]:
    """The package's expressions with possessive groups, with the module of each."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return {
        (pattern, is_bytes, flags): module
        for module, pattern, is_bytes, flags in json.loads(done.stdout)
        if greedy(pattern) != pattern
    }


def difference(pattern: str, *, is_bytes: bool = False, flags: int = 0) -> str | None:
    """Return a text for which possession of groups makes a difference, if one is found.

    The texts consist of the expression's own characters and words.
    """
    one, other = (
        re.compile(text.encode("latin-1") if is_bytes else text, flags)
        for text in (pattern, greedy(pattern))
    )
    pieces = [*sorted({*pattern, *'a \n"'}), *re.findall("[A-Za-z-]{3,}", pattern) * 3]
    random = Random(pattern)  # noqa: S311  # no secret
    for _ in range(part(10_000)):
        text = "".join(random.choices(pieces, k=random.randint(1, 12)))
        subject = text.encode("latin-1") if is_bytes else text
        for how in ("search", "match", "fullmatch"):
            found, expected = getattr(one, how)(subject), getattr(other, how)(subject)
            if (found and found.regs) != (expected and expected.regs):
                return text
    return None


@pytest.mark.processes
def test_possession_of_groups_makes_no_difference() -> None:
    found = {
        f"{module}: {pattern}": text
        for (pattern, is_bytes, flags), module in possessive().items()
        if pattern not in MEANT
        and (text := difference(pattern, is_bytes=is_bytes, flags=flags)) is not None
    }
    assert found == {}


@pytest.mark.processes
def test_the_expressions_are_found() -> None:
    patterns = {pattern for pattern, _, _ in possessive()}
    assert patterns >= {*MEANT}  # compiled at import
    assert parameters._VALUE in patterns  # a part of others
    assert r"\n(a)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)" in patterns  # compiled for a name


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"(?:a|b)*+c", r"(?:a|b)*c"),
        (r"(a)++(b)?+", r"(a)+(b)?"),
        (r"(?:a){2,}+", r"(?:a){2,}"),
        (r"a*+[b)*+]\)*+c{2}+", r"a*+[b)*+]\)*+c{2}+"),
        (r"[])*+](a)*+", r"[])*+](a)*"),
        (r"[^]\])*+]\[(a)*+", r"[^]\])*+]\[(a)*"),
    ],
)
def test_only_groups_become_greedy(pattern: str, expected: str) -> None:
    assert greedy(pattern) == expected


@pytest.mark.parametrize("pattern", ["(?:ab?)*+b", "(?:ab|a)?+b", *MEANT])
def test_a_difference_is_found(pattern: str) -> None:
    assert difference(pattern, flags=re.DOTALL) is not None


#: Methods of expressions with greedy groups, each with the beginning of a text that costs them
#: most, a piece that is repeated, and an end.
COSTLY: list[tuple[Callable[[str], object] | Callable[[bytes], object], str, str, str]] = [
    (field._NAMES.fullmatch, "", "a:", " "),
    (addresses_in_text._AFTER.match, "", "a . ", ""),
    (addresses_in_text._HOST.fullmatch, "", "a.", "-"),
    (from_field._ROUTE.search, "", "@a,", "x"),
    (from_field._ROUTE.search, "", "@a , ", "x"),
    (from_field._ROUTE.search, "", " ,", "x"),
    (from_field._ROUTE.search, "", ">@a,", ""),
    (from_field._FORM.fullmatch, "", "w,", "w"),
    (from_field._FORM.fullmatch, "", "<a>,w:", "<"),
    (completion._COMPLETE.match, "", '""', "("),
    (completion._COMPLETE.match, "@", '"a"b', '"'),
    (completion._COMPLETE.match, "@", "@", "("),
    (authors._DOMAIN.fullmatch, "", "a.", ""),
    (parameters._NAMES.search, "name", "(a) ", "x"),
    (parameters._BOUNDARIES.search, "boundary", "()", "x"),
    (parameters._CHARSETS.search, "charset", "(a) ", "("),
    (parameters._NAMES.search, "", "name(", "x"),
    (parameters._NAMES.search, "", "name(a)", "x"),
    (parameters._NAMES.search, "", "name", "()x"),
    (parameters._SIGN.search, "", "name(", "x"),
    (parameters._SIGN.search, "name", "(a) ", "x"),
    (parameters._TOGGLED.match, "", 'a"a"', '"'),
    (comments._BEFORE.match, "", 'a"b"', '"'),
    (comments._BEFORE.match, "", '"\\a', "\\"),
    (comments._WITHIN[1].match, "", "a\\a", "\\"),
    (parameters._TYPE.match, "", "(a) ", "("),
    (parameters._TOKEN.match, "", "()", "("),
]


@pytest.mark.parametrize(("method", "begin", "piece", "end"), COSTLY)
def test_the_time_is_linear(
    method: Callable[[str | bytes], object], begin: str, piece: str, end: str
) -> None:
    """Each takes some milliseconds."""
    text = begin + piece * (part(300_000) // len(piece)) + end
    begun = process_time()
    try:
        method(text)
    except TypeError:
        method(text.encode())
    assert process_time() - begun < 1, "quadratic: minutes"
