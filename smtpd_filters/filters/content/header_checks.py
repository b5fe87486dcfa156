"""Postfix's header_checks: its files of patterns, and what they do to a field.

The files are those of regexp_table(5) and pcre_table(5), the actions those of header_checks(5). An
action or a feature of a pattern that has no counterpart here is an error that names file and line.

Invariants
----------
*As Postfix*: one field, with all its lines, is one key; the first pattern that matches decides; a
pattern ignores case unless it has the flag `i`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from smtpd_filters.errors import ConfigError
from smtpd_filters.message.folding import field_lines
from smtpd_filters.protocol.decisions import Reject, check_reply, reply
from smtpd_filters.settings import Kind
from smtpd_filters.settings.files import read_file
from smtpd_filters.settings.quoting import quote
from smtpd_filters.tables.captures import Captures
from smtpd_filters.tables.dialects import compiled
from smtpd_filters.tables.postfix import divided, filled, pieces
from smtpd_filters.tables.source import BLANKS

from .patterns import Patterns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from smtpd_filters.tables.ere import Node

REJECT, IGNORE, STRIP, PREPEND, REPLACE, WARN, INFO, PASS, DUNNO = ACTIONS = (
    "REJECT",
    "IGNORE",
    "STRIP",
    "PREPEND",
    "REPLACE",
    "WARN",
    "INFO",
    "PASS",
    "DUNNO",
)
#: The actions that change the header block.
EDITING = frozenset({IGNORE, STRIP, PREPEND, REPLACE})
#: What smtpd has no decision for, and what to use in its place.
_IMPOSSIBLE = {
    "BCC": "smtpd's filters can't add recipients",
    "DISCARD": "smtpd's filters can't discard a message: use REJECT",
    "FILTER": "smtpd's filters can't choose a transport: use match rules in smtpd.conf",
    "HOLD": "smtpd has no hold queue for filters",
    "REDIRECT": "smtpd's filters can't change recipients here",
    "DELAY": "smtpd's filters can't delay a message",
}
#: Bytes of a file.
_FILE_MAX = 4 << 20
# RFC 5322 section 2.2; section 4.5 for white space before the colon.
_FIELD = re.compile(rb"[!-9;-~]++[ \t]*+:")
_STATUS = re.compile(r"([245]\d\d)(?:\s+|$)|([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")
#: Parts of a pattern whose groups are used: the work for each byte.
PLACES = 500
# RFC 3463 section 3.8, X.7.1: "Delivery not authorized, message refused". Postfix's own text.
_REFUSED = "Message content rejected"


class Rule(NamedTuple):
    """A line of a file: the number of its pattern, whether it is negated, and its action.

    `pieces` are those of its text. `until` is the index of the rule behind the block that `if`
    begins; 0 for other lines.
    """

    pattern: int
    negated: bool
    action: str
    place: str
    captures: Captures | None = None
    pieces: tuple[str | int, ...] = ()
    until: int = 0


class Action(NamedTuple):
    """What a rule does to a field; `text` has its groups filled in."""

    name: str
    text: str
    place: str

    def refusal(self) -> Reject:
        """Return the decision of REJECT."""
        return Reject(refusal(self.text)).because(self.place)


def refusal(text: str) -> str:
    """Return the reply of REJECT with its optional text: `[CODE] [X.Y.Z] text`."""
    code, status, text = _divided(text)
    return reply(code, status, text or _REFUSED)


def _divided(text: str) -> tuple[int, str, str]:
    """Return the code, the status and the text of REJECT."""
    code, status = 0, ""
    while match := _STATUS.match(text):
        if match[1] and not code and not status:
            code = int(match[1])
        elif match[2] and not status:
            status = match[2]
        else:
            break
        text = text[match.end() :]
    if not code:
        code = 450 if status.startswith("4") else 550
    if not status or status[0] != str(code)[0]:
        status = f"{code // 100}.7.1"
    return code, status, text


class Checks:
    """The rules of one or more files, which are asked in order."""

    def __init__(self, files: tuple[str, ...]) -> None:
        """Load files, `regexp:PATH` or `pcre:PATH`. Raises ConfigError."""
        self.files = files
        self._patterns = Patterns()
        self._rules: list[Rule] = []
        for spec in files:
            self._load(spec)
        self._patterns.finish()

    def __bool__(self) -> bool:
        return bool(self._rules)

    @property
    def actions(self) -> set[str]:
        """The actions that occur."""
        return {rule.action for rule in self._rules}

    def actions_on(self, raw: bytes) -> Generator[int, None, Action | None]:
        """Return what the rules do to a field, which is its raw lines; None if nothing.

        Yields units of work.
        """
        found = yield from self._patterns.matches(raw)
        at = 0
        while at < len(self._rules):
            rule = self._rules[at]
            matched = (rule.pattern in found) is not rule.negated
            if rule.until:
                at = at + 1 if matched else rule.until
                continue
            at += 1
            if matched:
                if rule.action == DUNNO:
                    return None
                values = {}
                if rule.captures is not None:
                    places = (yield from rule.captures.search(raw)) or ()
                    values = {
                        n: raw[a:b].replace(b"\n", b"") for n, (a, b) in enumerate(places) if a >= 0
                    }
                return Action(rule.action, filled(rule.pieces, values), rule.place)
        return None

    # -- files ---------------------------------------------------------------------------

    def _load(self, spec: str) -> None:
        kind, _, path = spec.partition(":")
        self._perl = kind == "pcre"
        problems: list[tuple[int, str]] = []
        #: The open `if` lines: the index of each rule.
        blocks: list[tuple[int, int]] = []
        for number, line in _logical_lines(path):
            try:
                self._line(line, f"{path}:{number}", blocks, number)
            except ValueError as error:
                problems.append((number, str(error)))
        problems += [(number, "if without endif") for _, number in blocks]
        if problems:
            number, reason = problems[0]
            more = ", ".join(str(each) for each, _ in problems[1:10])
            others = f" (and {len(problems) - 1} more, lines {more})" if more else ""
            raise ConfigError(f"{path}:{number}: {reason}{others}")

    def _line(self, line: str, place: str, blocks: list[tuple[int, int]], number: int) -> None:
        word, *rest = line.split(maxsplit=1) or [line]  # blanks that aren't ASCII
        if word.lower() == "endif":
            if not blocks:
                raise ValueError("endif without if")
            index, _ = blocks.pop()
            self._rules[index] = self._rules[index]._replace(until=len(self._rules))
            return
        if word.lower() == "if" and rest:
            node, negated, text = self._pattern(rest[0])
            if text:
                raise ValueError(f"unexpected text behind the pattern of if: {quote(text)}")
            blocks.append((len(self._rules), number))
            # A block without lines is passed over as well.
            number_of_pattern = self._patterns.add(node)
            rule = Rule(number_of_pattern, negated, "", place, until=len(self._rules) + 1)
            self._rules.append(rule)
            return
        node, negated, text = self._pattern(line)
        action, _, argument = text.partition(" ")
        self._rules.append(
            self._rule(node, action.upper(), argument.strip(), place, negated=negated)
        )

    def _pattern(self, line: str) -> tuple[Node, bool, str]:
        """Parse a pattern with its flags; return it, whether it is negated, and what follows."""
        pattern, negated, flags, text = divided(line)
        text = text.replace("\t", " ")  # in the pattern a tab is one
        if "!" in flags:
            raise ValueError("two patterns in one line are not supported: use if and endif")
        ignore_case, dot_all = self._flags(flags)
        node = compiled(
            pattern.encode("utf-8", "surrogateescape"),
            perl=self._perl,
            ignore_case=ignore_case,
            dot_all=dot_all,
        )
        return node, negated, text

    def _flags(self, flags: str) -> tuple[bool, bool]:
        ignore_case = dot_all = True
        known = "isAEUX" if self._perl else "ix"
        for flag in flags:
            if flag == "i":
                ignore_case = not ignore_case
            elif flag == "s" and self._perl:
                dot_all = not dot_all
            elif flag not in known or flag in "xA":
                raise ValueError(f'flag "{flag}" is not supported')
        return ignore_case, dot_all

    def _rule(self, node: Node, action: str, text: str, place: str, *, negated: bool) -> Rule:
        if action in {"OK", "DUNNO"}:
            action = DUNNO
        if action in _IMPOSSIBLE:
            raise ValueError(f"{action}: {_IMPOSSIBLE[action]}")
        if action not in ACTIONS:
            raise ValueError(f"{quote(action)} is not one of {', '.join(ACTIONS)}")
        numbers = [each for each in pieces(text) if isinstance(each, int)]
        captures = None
        if numbers:
            if negated:
                raise ValueError("$ and a number have no meaning with a negated pattern")
            captures = Captures(node, limit=PLACES)
            if max(numbers) > captures.groups:
                raise ValueError(f"${max(numbers)}: the pattern has {captures.groups} groups")
        if action in {PREPEND, REPLACE}:
            self._check_field(action, text)
        if action == REJECT:
            check_reply(refusal(text))
            if captures is not None:
                # Its code is that of the file, not one from a group, which a client would choose.
                code, status, rest = _divided(text)
                text = f"{code} {status} {rest}"
        return Rule(self._patterns.add(node), negated, action, place, captures, tuple(pieces(text)))

    def _check_field(self, action: str, text: str) -> None:
        name, colon, _ = text.partition(":")
        if not text:
            raise ValueError(f"{action} requires a field")
        if "$" not in name:
            if not colon:
                raise ValueError(f'{action}: expected "Name: text", not {quote(text)}')
            field_lines(name.strip(), "")


def edited(
    lines: Iterable[bytes], actions: Mapping[int, Action]
) -> Generator[int, None, list[bytes]]:
    """Return the lines of a header block after actions on fields, by their places from the top.

    Yields units of work.
    """
    new: list[bytes] = []
    place, action, begun = -1, None, False
    for line in lines:
        if not (begun and line.startswith((b" ", b"\t"))):
            begun = True
            action = None
            if _FIELD.match(line):
                place += 1
                action = actions.get(place)
            if action is not None and action.name in {PREPEND, REPLACE}:
                new += _new_lines(action.text)
                yield 30
        if action is None or action.name not in {IGNORE, STRIP, REPLACE}:
            new.append(line)
    yield len(new)
    return new


def _new_lines(text: str) -> list[bytes]:
    name, _, value = text.partition(":")
    try:
        return field_lines(name.strip(), value.strip())
    except ValueError:  # a name from a group, which isn't one
        return field_lines("X-Invalid-Field", text)


def _logical_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with the numbers of their first ones, continuations joined."""
    data = read_file(path, _FILE_MAX)
    lines: list[tuple[int, str]] = []
    for number, raw in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        line = raw.rstrip(BLANKS)
        if not line or line.lstrip(BLANKS).startswith("#"):
            continue
        if line[0] in BLANKS and lines:
            first, before = lines[-1]
            lines[-1] = (first, f"{before} {line.strip(BLANKS)}")
        elif line[0] in BLANKS:
            raise ConfigError(f"{path}:{number}: a continuation without a line before it")
        else:
            lines.append((number, line))
    return iter(lines)


class _Spec(Kind[str]):
    metavar = "KIND:PATH"
    noun = "regexp:PATH or pcre:PATH"

    def parse(self, text: str) -> str:
        kind, colon, path = text.partition(":")
        if not colon or kind not in {"regexp", "pcre"} or not path or "\0" in path:
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return text


#: The kind of a file of checks.
CHECKS = _Spec()
