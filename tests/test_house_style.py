"""The forms of docstrings, comments, imports and prose that this project keeps.

`python tests/test_house_style.py PATH...` prints each departure from the forms in these files.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PLACES = ("smtpd_filters", "tests", "packaging", "docs", ".ci")
#: Suffixes of the files that hold prose; a manual page has the number of its section.
KINDS = {
    *(
        "",
        ".py",
        ".md",
        ".txt",
        ".toml",
        ".conf",
        ".c",
        ".sieve",
        ".Debian",
        ".postinst",
        ".postrm",
    ),
    *(f".{section}" for section in range(1, 10)),
}
#: Directories that tools make.
MADE = {"__pycache__", ".mypy_cache", "node_modules"}
#: This file quotes the phrases; the reference and the interface are made from docstrings and code.
APART = {"tests/test_house_style.py", "docs/reference.md", "packaging/api.txt"}
#: Between two words of a phrase: a blank, or a line break within a comment, a docstring or mdoc(7).
GAP = r"[ \t]*(?:[ \t]|\n[ \t]*(?:#:?[ \t]+)?)[ \t]*"

#: Phrases that are out, and what to write in their place.
PHRASES = {
    "who waits": "pending",
    "(?:that|which) (?:is|are) none": "invalid",
    "(?:that|which) (?:is|are) no(?! longer| more)": "invalid, not",
    "let(?:s|ting)? go": "release, drop",
    "(?:comes?|came) to": "is, results in, reaches",
    "(?:is|are|was|were|be|been) told": "receives, gets, is notified",
    "hears?": "receives, gets",
    "tells? who": "notify, resume",
    "nobody's": "an active verb with its agent",
    "anew": "again, reload",
    "spare[sd]": "exempt, avoid",
    "said yes": "accepted, answered",
    "who(?:m|so)?ever": "the client, the caller, the filter...",
    "taken for": "treated as",
    "(?:what|whatever) (?:is|was) due": "the reply, the decision",
    "done without": "optional, missing",
    "guilty?": "at fault",
}
#: A module's first sentence names what the module is, with a noun: no clause stands in its place.
CLAUSE = re.compile(r"(?:What|Who|Whom|Whose|Which|Where|When|Whether|How|Whatever)\b")
#: A rule of a linter that is off, up to its reason.
OFF = re.compile(
    r"# *(?:noqa(?:: *[A-Z]+\d+(?:, *[A-Z]+\d+)*)?|type: *ignore(?:\[[^]]*\])?"
    r"|pragma: no \w+|fmt: \w+|nosec)"
)


class Finding(NamedTuple):
    """A departure from a form: `file:line: rule: text`."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        """As compilers write it."""
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


def words(phrase: str) -> re.Pattern[str]:
    """Match a phrase across a line break, at the beginning of a sentence and within."""
    first, rest = phrase[0], phrase[1:].replace(" ", GAP)
    either = f"[{first.upper()}{first}]" if first.isalpha() else first
    return re.compile(rf"\b{either}{rest}\b")


def section(text: str) -> re.Pattern[str]:
    return re.compile(text.replace(" ", GAP))


OUT = [(words(phrase), instead) for phrase, instead in PHRASES.items()]
LAW = re.compile(r"\b[Ll]aws?\b")
#: Every way to cite a section but "RFC 5321 section 4.5.3".
CITED = [
    section(r"RFC \d+,(?: (?:section )?[\dA-Z]+\.[\d.]*\d| (?:section )?\d+\b| appendix)"),
    section(r"RFC \d+ (?:\d+\.[\d.]*\d|§|[Ss]ec\.|Section)"),
    section(r"[Ss]ections? [\d.]+ of RFC"),
    re.compile(r"\bRFC[-_]?\d+"),
]
#: A name in capitals that a test replaces: in a call, and by an assignment.
REPLACING = re.compile(
    r'(?:setattr|object|patch)\([^"()]*"[\w.]*\b_?[A-Z][A-Z\d_]*"|\w\._?[A-Z][A-Z\d_]* = '
)
CAPITALS = re.compile(r"_?[A-Z][A-Z\d_]*")
#: The constants of the package that tests replace all the same, and why.
REPLACED = {
    ("tests/cli/test_check.py", "USERS"): "the accounts of the machine",
    ("tests/cli/test_reload.py", "_PROC"): "a directory of the system",
    ("tests/cli/test_stores.py", "STATE"): "a directory of the system",
    ("tests/e2e/test_servers.py", "SYSTEM"): "a directory of the system",
    ("tests/runtime/policies.py", "ENDING"): "in a process that only its flags reach",
    ("tests/runtime/policies.py", "INTERVAL"): "in a process that only its flags reach",
}
#: What runs in a filter's process whatever the policy, also while memory is scarce.
SCARCE = tuple(
    f"smtpd_filters/{place}"
    for place in (
        *("runtime/", "protocol/", "message/", "supervise/", "lookups/", "stores/"),
        *("chain/", "guard.py", "session.py"),
    )
)
#: Any of the phrases: one search of a text is cheaper than one for each of them.
ANY_OUT = re.compile("|".join(pattern.pattern for pattern, _ in OUT))


def searched(path: str, text: str) -> Iterator[Finding]:
    """Look for what is out in any kind of text."""

    def found(rule: str, match: re.Match[str], hint: str) -> Finding:
        line = text.count("\n", 0, match.start()) + 1
        return Finding(path, line, rule, f'"{re.sub(GAP, " ", match[0])}"; write {hint}')

    for pattern, instead in OUT if ANY_OUT.search(text) else ():
        for match in pattern.finditer(text):
            yield found("phrase", match, instead)
    for pattern in CITED:
        for match in pattern.finditer(text):
            yield found("RFC", match, '"RFC 5321 section 4.5.3"')
    for match in LAW.finditer(text):
        yield found("law", match, "Invariants, and cite one by its name")


def header(path: str, docstring: str) -> Iterator[Finding]:
    """A module's docstring opens with one sentence on what the module is."""
    first, *_ = docstring.split("\n\n")
    if not first.endswith("."):
        yield Finding(path, 1, "header", f'"{first}" is no sentence of its own')
    if re.search(r"[.;!?]\s", re.sub(r"`[^`]*`", "", first)):
        yield Finding(path, 1, "header", f'"{first}" is more than one sentence')
    if CLAUSE.match(first):
        yield Finding(path, 1, "header", f'"{first}" opens with a clause; open with a noun')
    for number, line in enumerate(docstring.splitlines(), 1):
        if re.match(r"\s*\d+\.\s", line):
            yield Finding(
                path, number, "law", f'"{line.strip()}"; name an invariant, don\'t number it'
            )


def imports(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Relative inside a package, absolute across packages."""
    package = path.rpartition("/")[0].replace("/", ".")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level > 1:
                yield Finding(path, node.lineno, "import", "from another package; make it absolute")
            elif not node.level and f"{module}.".startswith(f"{package}."):
                yield Finding(
                    path, node.lineno, "import", f"{module} is this package's; make it relative"
                )


def pairs(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Values are looked up by key where memory may run out: `dict.items()` crashes CPython 3.11.

    Its iterator (`dictiter_new`) is released before it is tracked if there is no memory for a pair.
    """
    for node in ast.walk(tree) if path.startswith(SCARCE) else ():
        if isinstance(node, ast.Attribute) and node.attr == "items":
            yield Finding(path, node.lineno, "items", "without memory it crashes; look values up")


def replaced(path: str, tree: ast.Module) -> Iterator[Finding]:
    """A limit is an argument of what it limits: tests replace no constant of the package."""
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("smtpd_filters.")
        for alias in node.names
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Attribute(attr="setattr" | "patch"), [ast.Constant(str(name)), *_]):
                of_package = name.startswith("smtpd_filters.")
            case ast.Call(
                ast.Attribute(attr="setattr" | "object"), [owner, ast.Constant(str(name)), *_]
            ):
                of_package = ast.unparse(owner).partition(".")[0] in ours
            case ast.Assign([ast.Attribute(attr=name)]):
                of_package = True  # nothing else has attributes in capitals
            case _:
                continue
        name = name.rpartition(".")[2]
        if of_package and CAPITALS.fullmatch(name) and (path, name) not in REPLACED:
            yield Finding(path, node.lineno, "constant", f"{name} is replaced; make it a parameter")


def unexplained(text: str) -> bool:
    """Whether something else than a reason stands behind a rule that is off in a line's end."""
    *off, rest = OFF.split(text) if "#" in text else ("",)
    return bool(off and rest) and not re.match(r"  # \S", rest)


def comments(path: str, source: str) -> Iterator[Finding]:
    """A rule of a linter is off for a reason, which stands in a comment of its own behind it."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if "``" in token.string:
                yield Finding(path, token.start[0], "backticks", token.string)
            if unexplained(token.string):
                yield Finding(path, token.start[0], "reason", f'{token.string}; write "  # reason"')


def docstrings(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Single backticks, as in the field's other prose."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False) or ""
            begins = node.body[0].lineno if node.body else 1
            for number, line in enumerate(text.splitlines()):
                if "``" in line:
                    yield Finding(path, begins + number, "backticks", line.strip())


@cache
def findings(path: str, text: str) -> list[Finding]:
    found = [*searched(path, text)]
    if path.endswith(".py"):
        # Parsing and tokenizing all files takes seconds: it is done where it can find something.
        ours = path.startswith("smtpd_filters/")
        tree = ast.parse(text if ours or "``" in text else opening(text))
        if docstring := ast.get_docstring(tree):
            found += header(path, docstring)
        if ours:
            found += imports(path, tree)
            found += pairs(path, tree)
        if path.startswith("tests/") and REPLACING.search(text):
            found += replaced(path, ast.parse(text))
        if "``" in text:
            found += docstrings(path, tree)
        if "``" in text or any(map(unexplained, text.splitlines())):
            found += comments(path, text)
    return sorted(found, key=lambda finding: finding.line)


def opening(source: str) -> str:
    """Return the beginning of a module: its docstring, if it has one."""
    match = re.match(r'(?:#.*\n|\n)*(?:r?"""(?s:.*?)""")?', source)
    return match[0] if match else ""


def pages() -> dict[str, str]:
    """Return the text of each file that holds prose, by path."""
    paths = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    paths += (ROOT / "fixtures").rglob("*.md")
    for place in PLACES:
        paths += (
            path
            for path in (ROOT / place).rglob("*")
            if path.suffix in KINDS and path.is_file() and not MADE & set(path.parts)
        )
    named = {path.relative_to(ROOT).as_posix(): path for path in sorted(paths)}
    return {name: path.read_text("utf-8") for name, path in named.items() if name not in APART}


OURS = "from smtpd_filters import b\n"


@pytest.mark.parametrize(
    ("path", "text", "rules"),
    [
        ("a.py", '"""What is asked."""\n', ["header"]),
        ("a.py", '"""A resolver; one for all."""\n', ["header"]),
        ("a.py", '"""A resolver.  It asks."""\n', ["header"]),
        ("a.py", '"""A resolver"""\n', ["header"]),
        ("a.py", '"""A resolver for `a. b` by RFC 1035 section 4.2.\n\nIt asks."""\n', []),
        ("a.py", '"""A resolver.\n\n1. It asks."""\n', ["law"]),
        ("a.py", "# by law 2\n", ["law"]),
        ("a.md", "RFC 5321, 4.5.3.2.6 has it", ["RFC"]),
        ("a.md", "(RFC 3463, 3.4)", ["RFC"]),
        ("a.py", "# RFC 1112, section\n# 4 has it\n", ["RFC"]),
        ("a.md", "section 4.2 of RFC 5321", ["RFC"]),
        ("a.md", "RFC5321", ["RFC"]),
        ("a.md", "RFC 5321 (which has it), RFC 5321 section 4.2, 3", []),
        ("a.8", "each client that\nis none of ours", ["phrase"]),
        ("a.py", "# that\n    # is none\n", ["phrase"]),
        ("a.py", "#: that\n#: is none\n", ["phrase"]),
        ("a.py", "that = is_none = let_go", []),
        ("a.md", "Whoever asks comes to nobody's aid", ["phrase"] * 3),
        ("smtpd_filters/runtime/a.py", "from smtpd_filters.runtime.log import Log\n", ["import"]),
        ("smtpd_filters/runtime/a.py", "from ..message import Spool\n", ["import"]),
        ("smtpd_filters/runtime/a.py", "from .log import Log\nfrom smtpd_filters import x\n", []),
        ("smtpd_filters/runtime/a.py", "from smtpd_filters.runtimes.log import Log\n", []),
        ("smtpd_filters/a.py", "from smtpd_filters.message import Spool\n", ["import"]),
        ("tests/a.py", "from tests.b import c\n", []),
        ("smtpd_filters/runtime/a.py", "for key, value in table.items():\n    pass\n", ["items"]),
        ("smtpd_filters/chain/chain.py", "found = sorted(table.items())\n", ["items"]),
        ("smtpd_filters/chain/chain.py", "for key in table:\n    value = table[key]\n", []),
        ("smtpd_filters/cli/a.py", "found = sorted(table.items())\n", []),
        ("tests/a.py", f'{OURS}patch.setattr(b, "MAX_X", 1)\n', ["constant"]),
        ("tests/a.py", f'{OURS}patch.setattr(\n    b.C,\n    "_MAX",\n    1)\n', ["constant"]),
        ("tests/a.py", f'{OURS}with mock.patch.object(b, "MAX", 1):\n    pass\n', ["constant"]),
        ("tests/a.py", 'patch.setattr("smtpd_filters.b.MAX", 1)\n', ["constant"]),
        ("tests/a.py", 'patch.setattr("smtpd_filters.b.PATH", "x")\n', ["constant"]),
        ("tests/a.py", 'mock.patch("smtpd_filters.b.MAX", 1)\n', ["constant"]),
        ("tests/a.py", f"{OURS}b.MAX = 1\n", ["constant"]),
        ("tests/a.py", f'{OURS}patch.setattr(b, "max", 1)\nMAX = b.MAX\n', []),
        ("tests/a.py", 'from tests import b\npatch.setattr(b, "MAX", 1)\n', []),
        ("a.py", 'def f():\n    """Take ``a``."""\n', ["backticks"]),
        ("a.py", "x = 1  # ``y``\n", ["backticks"]),
        ("a.py", 'x = "``"\n', []),
        ("a.py", "x = y  # noqa: S101 - reason\n", ["reason"]),
        ("a.py", "x = y  # noqa: S101 (reason)\n", ["reason"]),
        ("a.py", "x = y  # pragma: no cover - reason\n", ["reason"]),
        ("a.py", "x = y  # type: ignore[misc] # reason\n", ["reason"]),
        ("a.py", "x = y  # type: ignore[misc]  # noqa: S101, S102  # reason - more\n", []),
        ("a.py", "x = y  # noqa: S101\n", []),
    ],
)
def test_forms(path: str, text: str, rules: list[str]) -> None:
    assert [finding.rule for finding in findings(path, text)] == rules


def test_each_file_keeps_the_forms() -> None:
    files = pages()
    assert len(files) > 400
    found = [str(it) for path, text in files.items() for it in findings(path, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("path", "name"), REPLACED)
def test_each_exception_is_used(path: str, name: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    assert re.search(rf"\b{name}\b", "\n".join(REPLACING.findall(text)))


def main(arguments: list[str]) -> int:
    """Print the departures in these files; the exit status is 1 if there is any."""
    found = [it for path in arguments for it in findings(path, (ROOT / path).read_text("utf-8"))]
    sys.stdout.writelines(f"{it}\n" for it in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
