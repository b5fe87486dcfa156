"""Log lines that the documentation shows are lines that the code can write.

What is fixed in such a line, between what stands for something, is looked for among the texts of
the package: operators search for it.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "smtpd_filters"
#: What stands for something else, or is so everywhere: NAME, FILE:LINE, ..., [filter.NAME],
#: 127.0.0.2, key=, the name of a program and a reason at the end.
STANDS_FOR = re.compile(
    r"\.\.\.|\[\w+\.[A-Z]+\]|\b(?!(?:MX|DNS|OK|SERVFAIL)\b)[A-Z]+\b|\b\d+(?:\.\w+)*|\b\w+="
    r"|\bfilter-\w+(?=:)|/\S+/|: reason\b"
)
#: What smtpd and the system say.
OTHERS = {
    *("lost processor", "exited abnormally", "exec", "not found"),
    *("permission denied", "cannot allocate memory", "too many open files"),
}
#: Lines that are all theirs: tests/e2e/test_troubleshooting.py holds them to real servers.
THEIRS = {
    "x.py: 2: from: not found",
    'Syntax error: "(" unexpected',
    "ModuleNotFoundError: No module named 'smtpd_filters'",
    "exec: .../x.py: Permission denied",
    "... Permission denied for user opensmtpd",
    "smtpd: getpwnam: Success",
    "io-error: error:0A080006:SSL routines::EVP lib",
    "error:0A0C0103:SSL routines::internal error",
}


@functools.cache
def texts() -> str:
    """The texts of the package, one behind the other; a NUL is where something is put in."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if "testing" not in path.parts:
            tree = ast.parse(path.read_text("utf-8"))
            documentation = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            for node in ast.walk(tree):
                if id(node) not in documentation:
                    found.add(written(node))
                if isinstance(node, ast.keyword) and node.arg:
                    found.add(f"{node.arg}=")
    return "\0\0".join(sorted(found))


def written(node: ast.AST) -> str:
    """The text that a node of the code's tree is; empty if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) or "\0" for part in node.values)
    return ""


def pieces(phrase: str) -> int:
    """How many texts of the code the phrase is made of; 0 if it can't be."""
    words = phrase.split(" ")
    for end in range(len(words), 0, -1):
        start = " ".join(words[:end])
        if re.search(rf"(?<!\w){re.escape(start)}(?!\w)", texts()):
            rest = " ".join(words[end:])
            if not rest:
                return 1
            more = pieces(rest)
            return more and more + 1
    return 0


def phrases(line: str) -> list[str]:
    """What is fixed in a line of the log."""
    line = line.replace("\\(dq", '"').replace("\\&", "").replace("\\-", "-")
    parts = re.split(r'[\0"()]', STANDS_FOR.sub("\0", line))
    return [text for part in parts if re.search("[a-z]{2}", text := part.strip(" ,:;?/|-"))]


def made_up(line: str) -> list[str]:
    """What the code can't write of a line of the log.

    A text is often made of two or three: who, what is wrong, and why.  But not word by word.
    """
    wrong = []
    for phrase in phrases(line):
        count = pieces(phrase)
        if not 0 < count <= max(2, (phrase.count(" ") + 1) / 2):
            wrong.append(phrase)
    return wrong


def diagnostics(page: str) -> list[str]:
    """The lines that a manual page explains."""
    [part] = re.findall(r"^\.Sh DIAGNOSTICS\n(.*?)(?=^\.Sh|\Z)", page, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\.(?:It|Dl) (?:Li )?(.*)$", part, re.MULTILINE)


PAGES = [
    page
    for page in sorted((ROOT / "docs" / "man").glob("*.8"))
    if ".Sh DIAGNOSTICS\n" in page.read_text("utf-8")
]


def test_most_pages_have_diagnostics() -> None:
    filters = {page.stem for page in (ROOT / "docs" / "man").glob("filter-*.8")}
    assert filters - {page.stem for page in PAGES} <= {"filter-trace"}  # all log lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_line_that_a_manual_page_explains_can_be_logged(page: Path) -> None:
    lines = diagnostics(page.read_text("utf-8"))
    assert len(lines) > 3
    assert {line: wrong for line in lines if (wrong := made_up(line))} == {}


def test_each_line_that_the_page_on_troubles_explains_can_be_logged() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    rows = [re.split(r" *\| ", row) for row in re.findall(r"^\| (.*) \|$", page, re.MULTILINE)]
    # The column of the log is the last but one.
    shown = {code for row in rows for code in re.findall(r"`([^`]+)`", row[-2])}
    assert len(shown) > 15
    assert shown >= THEIRS
    assert {code: rest for code in shown - THEIRS if (rest := set(made_up(code)) - OTHERS)} == {}


def test_what_nobody_logs_is_found() -> None:
    assert made_up('fcrdns PHASE result=VERB reason="rdns NAME is a lie"') == ["is a lie"]
