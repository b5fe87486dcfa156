"""The log lines of the documentation are those that the code writes.

The fixed parts of each line in the documentation are searched for among the texts of the package,
and each event that the package logs is searched for in the documentation.
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
    *("permission denied", "cannot allocate memory", "too many open files", "PermissionError"),
}
#: Lines that are all theirs: test_troubleshooting.py and test_check.py of tests/e2e hold them to
#: real servers; the last four are systemd's and Python's.
THEIRS = {
    "x.py: 2: from: not found",
    'Syntax error: "(" unexpected',
    "ModuleNotFoundError: No module named 'smtpd_filters'",
    "exec: .../x.py: Permission denied",
    "... Permission denied for user opensmtpd",
    "execl: /usr/libexec/.../table-x: Permission denied",
    "smtpd: getpwnam: Success",
    "io-error: error:0A080006:SSL routines::EVP lib",
    "error:0A0C0103:SSL routines::internal error",
    "rspamc stat",  # a command
    "A process of this unit has been killed by the OOM killer",
    "can't open file '.../bin/filter-x'",
    "No module named 'smtpd_filters...'",
    "cannot import name ...",
}


@functools.cache
def texts() -> str:
    """The texts of the package, one behind the other; a NUL is where something is put in."""
    found = {""}
    for path in PACKAGE.rglob("*.py"):
        if "testing" not in path.parts:
            documentation = set()
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):  # what is below comes later
                match node:
                    case (
                        ast.Module(body=[ast.Expr(value=first), *_])
                        | ast.ClassDef(body=[ast.Expr(value=first), *_])
                        | ast.FunctionDef(body=[ast.Expr(value=first), *_])
                    ):
                        documentation.add(id(first))
                    case ast.Constant() | ast.JoinedStr() if id(node) not in documentation:
                        found.add(written(node))
                    case ast.keyword(arg=str(name)):
                        found.add(f"{name}=")
    return "\0\0".join(sorted(found))


def written(node: ast.AST) -> str:
    """The text that a node of the code's tree is; empty if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) or "\0" for part in node.values)
    return ""


def stands_in(words: str, text: str) -> bool:
    """Whether the text has these words, and not as a part of longer ones."""
    at = -1
    while (at := text.find(words, at + 1)) >= 0:
        end = at + len(words)
        if not re.search(r"\w", text[at - 1 : at] + text[end : end + 1]):
            return True
    return False


def pieces(phrase: str) -> int:
    """How many texts of the code the phrase is made of; 0 if it can't be."""
    words = phrase.split(" ")
    for end in range(len(words), 0, -1):
        start = " ".join(words[:end])
        if stands_in(start, texts()):
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


#: The calls of the log and of `Remarks` whose event is not a text, with the events that they log;
#: None for the name of a phase or a report, whose lines the page explains by their `key=value`.
COMPUTED: dict[str, tuple[str, ...] | None] = {
    "chain/lifecycle.py: event": ("link_disconnect",),
    "chain/lifecycle.py: what": ("refresh", "close"),
    "checks/client_filter.py: REPLY_UNUSED": ("--reply has no effect",),
    "filters/content/inspection.py: event": ("check", "not done in a part"),
    "filters/dkimsign/policy.py: event": ("not signed", "not sealed"),
    "filters/dnsbl/score.py: text": ("cannot be reached, the weights of the lists add up to",),
    "filters/mailfrom/policy.py: REPLY_UNUSED": ("--reply has no effect",),
    "filters/milter/dialogues.py: phase": None,
    "filters/policy/policy.py: phase.replace('_', '-')": None,
    "filters/trace.py: DATA_LINE": None,
    "filters/trace.py: report.name": None,
    "guard.py: self.phase": None,
    "protocol/filter_side.py: event.kind": ("smtpd-filters unexpected: ",),
    "protocol/filter_side.py: kind": ("smtpd-filters unexpected: ",),
    "supervise/engine.py: phase.name": None,
    "scoring/chain.py: each.phase": None,
    "scoring/chain.py: phase": None,
    "runtime/engine.py: remark.kind": None,  # those of `Remarks.mail`
    "runtime/engine.py: f'{remark.sort}: {remark.kind}'": None,  # those of the others
}
#: What stands for the name of a filter or of the process in a call of `Log`.
NAMES = {"'smtpd-filters'", "filter_.name", "owner", "NAME", "self._name"}
LOG = re.compile(r"(?:[\w.]+\.)?_?(?:log|remarks)")
METHODS = {"event", "limited", "failure", "unexpected", "bug", "mail"}
CALLS = re.compile(rf"(?:log|remarks)\.(?:{'|'.join(METHODS)})\(")


def logged() -> dict[str, str]:
    """Return the event of each call that logs one, by file and source; NUL where values go."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if "testing" in path.parts or path.name == "log.py":
            continue
        source = path.read_text("utf-8")
        if not CALLS.search(source):
            continue
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            method = node.func.attr
            if method not in METHODS or not LOG.fullmatch(ast.unparse(node.func.value)):
                continue
            # The kind of line, the name, the event: only `Log` is given a name.
            skipped = 1 if method in {"limited", "failure"} else 0
            if ast.unparse(node.args[skipped]) in NAMES:
                skipped += 1
            event = node.args[skipped]
            sort = {"unexpected": "unexpected: ", "bug": "bug: "}.get(method, "")
            name = f"{path.relative_to(PACKAGE).as_posix()}: {ast.unparse(event)}"
            found[name] = sort + written(event)
    return found


def explained(event: str) -> bool:
    """Whether the page on troubles, or the manual page of a filter, shows this event."""
    if event.startswith(("unexpected: ", "bug: ")):  # the page explains their sorts
        event = event.partition(" ")[0] + " "
    pattern = r"[^\n`]+?".join(map(re.escape, event.strip().split("\0")))
    return re.search(rf"(?<![\w-]){pattern}", PROSE) is not None


PROSE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8") + "".join(
    page.read_text("utf-8").replace("\\-", "-").replace("\\&", "")
    for page in sorted((ROOT / "docs" / "man").glob("*.8"))
)


def test_each_event_that_is_logged_is_explained() -> None:
    events = logged()
    computed = {name for name, event in events.items() if not event.rpartition(": ")[2].strip("\0")}
    assert computed == set(COMPUTED)
    texts = [event for name, event in events.items() if name not in COMPUTED]
    texts += [text for more in COMPUTED.values() for text in more or ()]
    assert len(texts) > 40
    assert [event for event in texts if not explained(event)] == []


def test_an_event_without_explanation_is_found() -> None:
    assert explained("held up all sessions for \0 s")
    assert not explained("held up every session for \0 s")
    assert not explained("odd: \0 again")


def test_what_nobody_logs_is_found() -> None:
    assert made_up('fcrdns PHASE result=VERB reason="rdns NAME is a lie"') == ["is a lie"]
