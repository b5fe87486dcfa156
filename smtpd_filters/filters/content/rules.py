"""The rules of an operator: a TOML file of conditions, each with an action.

    [[rule]]
    name = "programs"
    extension = "dangerous"
    action = "reject"
    reply = "550 5.7.1 Programs are not accepted by mail"

A rule applies if all its conditions are met. Conditions on attachments have to be met by one and
the same attachment, of which a file in an archive counts as a further name and kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from smtpd_filters.errors import ConfigError
from smtpd_filters.message.folding import field_lines
from smtpd_filters.mime.signatures import GROUPS, KINDS
from smtpd_filters.parts.dangerous import DANGEROUS
from smtpd_filters.settings import NUMBER, REPLY, SIZE
from smtpd_filters.settings.declare import nearest
from smtpd_filters.settings.files import read_file
from smtpd_filters.settings.quoting import quote

from .patterns import Patterns, posix
from .scripts import SCRIPTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REJECT, JUNK, HEADER, SUBJECT, POINTS, REMOVE, RENAME, LOG = ACTIONS = (
    "reject",
    "junk",
    "header",
    "subject",
    "points",
    "remove",
    "rename",
    "log",
)
#: Actions that change an attachment.
ON_PARTS = frozenset({REMOVE, RENAME})
TRAITS = ("encrypted", "macros", "unreadable")
#: The name of the list of extensions, and of the kinds, that come with the filter.
BUILT_IN = "dangerous"
REPLY_TO_PART = "550 5.7.1 Attachments of this kind are not accepted"
REPLY_TO_MESSAGE = "550 5.7.1 Message content rejected"
NOTE = "The attachment {name} was removed by the mail server."
#: What a renamed attachment ends in.
SUFFIX = "_"
MOST_RULES = 1000
_FILE_MAX = 4 << 20
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/(?:\*|[a-z0-9!#$&^_.+-]+)")


@dataclass(slots=True)
class Rule:
    """One rule. Conditions that are None or empty are met by every message.

    `matches`, `raw` and `names` are numbers of patterns in `Rules`.
    """

    name: str
    action: str
    log_only: bool = False
    header: str = ""
    present: bool | None = None
    repeated: bool | None = None
    matches: frozenset[int] = frozenset()
    raw: frozenset[int] = frozenset()
    names: frozenset[int] = frozenset()
    extensions: frozenset[str] = frozenset()
    double: bool = False
    types: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    traits: frozenset[str] = frozenset()
    nested: bool = True
    larger: int | None = None
    parts: int | None = None
    charsets: frozenset[str] = frozenset()
    script: str = ""
    share: float = 0.3
    ambiguous: bool | None = None
    cut: bool = False
    reply: str = ""
    field: tuple[str, str] = ("", "")
    tag: str = ""
    points: float = 0.0
    note: str = NOTE
    suffix: str = SUFFIX

    @property
    def on_files(self) -> bool:
        """Whether it has conditions on attachments."""
        return bool(self.names or self.extensions or self.double or self.kinds or self.traits)

    @property
    def on_parts(self) -> bool:
        """Whether it has conditions that one part has to meet."""
        return self.on_files or bool(self.types or self.charsets or self.script)


@dataclass(slots=True)
class Rules:
    """All rules, and the patterns of their conditions."""

    rules: list[Rule] = field(default_factory=list)
    decoded: Patterns = field(default_factory=Patterns)
    raw: Patterns = field(default_factory=Patterns)
    names: Patterns = field(default_factory=Patterns)

    def finish(self) -> None:
        """Prepare the patterns."""
        for each in (self.decoded, self.raw, self.names):
            each.finish()

    def load(self, path: str) -> None:
        """Add the rules of a file. Raises ConfigError that names the file and the rule."""
        import tomllib  # needed with --rules only

        try:
            values = tomllib.loads(read_file(path, _FILE_MAX).decode())
        except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
            raise ConfigError(f"{path}: {error}") from None
        if stray := values.keys() - {"rule"}:
            raise ConfigError(f"{path}: unknown table {quote(min(stray))}: rules are [[rule]]")
        tables = values.get("rule", [])
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            raise ConfigError(f"{path}: rules are tables [[rule]]")
        if not tables:
            raise ConfigError(f"{path}: has no rule")
        if len(tables) > MOST_RULES:
            raise ConfigError(f"{path}: more than {MOST_RULES} rules")
        for number, table in enumerate(tables, 1):
            name = table.get("name", "")
            where = f"{path}: rule {number}" + (f" ({quote(str(name))})" if name else "")
            try:
                self.add(table, f"rule {number}")
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None

    def add(self, table: dict[str, Any], name: str = "") -> None:
        """Add a rule; raise ValueError with the reason if it is invalid."""
        rule = Rule(name, "")
        for key, value in table.items():
            parse = _KEYS.get(key)
            if parse is None:
                raise ValueError(f"unknown key {quote(key)}{nearest(key, _KEYS)}")
            try:
                parse(self, rule, value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        _check(rule, table.keys())
        self.rules.append(rule)


#: The keys that only one action uses, and those that it can't be without.
_OF_ACTIONS = {
    "reply": REJECT,
    "field": HEADER,
    "tag": SUBJECT,
    "points": POINTS,
    "note": REMOVE,
    "suffix": RENAME,
}
_REQUIRED = frozenset({"field", "tag", "points"})


def _check(rule: Rule, keys: Iterable[str]) -> None:
    """Raise ValueError for a rule without action, or with keys that don't fit one another."""
    keys = set(keys)
    if not rule.action:
        raise ValueError(f"requires an action: one of {', '.join(ACTIONS)}")
    _check_header(rule, keys)
    for key, action in _OF_ACTIONS.items():
        if rule.action == action and key in _REQUIRED - keys:
            raise ValueError(f'action "{action}" requires {key}')
        if key in keys and rule.action != action:
            raise ValueError(f'{key} has no effect with action "{rule.action}"')
    if rule.action in ON_PARTS and not rule.on_parts:
        raise ValueError(f'action "{rule.action}" requires a condition on attachments')
    if "share" in keys and not rule.script:
        raise ValueError("share requires script")
    conditions = rule.header or rule.on_parts or rule.ambiguous is not None or rule.cut
    if not conditions and rule.larger is None and rule.parts is None:
        raise ValueError("has no condition: it would apply to every message")
    if not rule.reply:
        rule.reply = REPLY_TO_PART if rule.on_files else REPLY_TO_MESSAGE


def _check_header(rule: Rule, keys: set[str]) -> None:
    needs_header = {"present", "repeated", "matches", "raw-matches"} & keys
    if needs_header and not rule.header:
        raise ValueError(f"{min(needs_header)} requires header")
    if rule.header and not needs_header:
        rule.present = True
    if rule.present is False and (rule.matches or rule.raw or rule.repeated):
        raise ValueError("a field that is absent can't match or be repeated")


# -- values --------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a text in quotes")
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")  # noqa: TRY004  # one kind of error
    return value


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("expected at least one text")
    return [_text(each) for each in values]


def _words(
    value: object, known: frozenset[str], groups: dict[str, frozenset[str]]
) -> frozenset[str]:
    found: set[str] = set()
    for word in _texts(value):
        if word in groups:
            found |= groups[word]
        elif word in known:
            found.add(word)
        else:
            raise ValueError(
                f"{quote(word)} is not one of {', '.join(sorted(known | groups.keys()))}"
            )
    return frozenset(found)


def _extensions(value: object) -> frozenset[str]:
    found: set[str] = set()
    for word in _texts(value):
        if word == BUILT_IN:
            found |= DANGEROUS
        elif word.startswith("*") or " " in word or "/" in word:
            raise ValueError(f"{quote(word)} is not an extension, such as exe")
        else:
            # Without a dot, as names are compared; `tar.gz` would never match.
            plain = word.removeprefix(".").lower()
            if "." in plain:
                raise ValueError(f"{quote(word)}: only the last extension counts; use name")
            found.add(plain)
    return frozenset(found)


def _types(value: object) -> tuple[str, ...]:
    found = tuple(each.lower() for each in _texts(value))
    for each in found:
        if not _TYPE.fullmatch(each):
            raise ValueError(f"{quote(each)} is not a type such as image/png or image/*")
    return found


def _patterns(patterns: Patterns, value: object) -> frozenset[int]:
    found = []
    for each in _texts(value):
        try:
            found.append(patterns.add(posix(each)))
        except ValueError as error:
            raise ValueError(f"{quote(each)}: {error}") from None
    return frozenset(found)


def _field(value: object) -> tuple[str, str]:
    name, colon, text = _text(value).partition(":")
    if not colon:
        raise ValueError('expected "Name: text"')
    field_lines(name.strip(), text.strip())
    return name.strip(), text.strip()


def _name(value: object) -> str:
    text = _text(value)
    field_lines(text, "")
    return text


def _choice(value: object) -> str:
    text = _text(value)
    if text not in ACTIONS:
        raise ValueError(f"{quote(text)} is not one of {', '.join(ACTIONS)}")
    return text


def _script(value: object) -> str:
    text = _text(value).lower()
    if text not in SCRIPTS:
        raise ValueError(f"{quote(text)} is not one of {', '.join(sorted(SCRIPTS))}")
    return text


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("expected a number")
    return value


def _line(value: object) -> str:
    text = _text(value)
    if "\n" in text or len(text) > 200:
        raise ValueError("expected one line of at most 200 characters")
    return text


def _suffix(value: object) -> str:
    text = _line(value)
    if not text.isascii() or set(text) & set("\"\\/:;%*'") or not text.isprintable():
        raise ValueError(f"{quote(text)} can't be a part of a name")
    return text


def _set(attribute: str, parse: Callable[[Any], object]) -> Callable[[Rules, Rule, object], None]:
    def apply(_rules: Rules, rule: Rule, value: object) -> None:
        setattr(rule, attribute, parse(value))

    return apply


def _true(value: object) -> bool:
    if not _bool(value):
        raise ValueError("expected true: leave it out if it doesn't matter")
    return True


def _trait(name: str) -> Callable[[Rules, Rule, object], None]:
    def apply(_rules: Rules, rule: Rule, value: object) -> None:
        if _true(value):
            rule.traits |= {name}

    return apply


def _double(_rules: Rules, rule: Rule, value: object) -> None:
    rule.double = _bool(value)


def _matched(
    attribute: str, of: Callable[[Rules], Patterns]
) -> Callable[[Rules, Rule, object], None]:
    def apply(rules: Rules, rule: Rule, value: object) -> None:
        setattr(rule, attribute, _patterns(of(rules), value))

    return apply


_KEYS: dict[str, Callable[[Rules, Rule, Any], None]] = {
    "name": _set("name", _line),
    "action": _set("action", _choice),
    "log-only": _set("log_only", _bool),
    "header": _set("header", _name),
    "present": _set("present", _bool),
    "repeated": _set("repeated", _bool),
    "matches": _matched("matches", lambda rules: rules.decoded),
    "raw-matches": _matched("raw", lambda rules: rules.raw),
    "filename": _matched("names", lambda rules: rules.names),
    "extension": _set("extensions", _extensions),
    "double-extension": _double,
    "type": _set("types", _types),
    "content": _set("kinds", lambda value: _words(value, KINDS, GROUPS)),
    **{name: _trait(name) for name in TRAITS},
    "nested": _set("nested", _bool),
    "larger": _set("larger", SIZE.from_toml),
    "parts-over": _set("parts", _count),
    "charset": _set("charsets", lambda value: frozenset(map(str.lower, _texts(value)))),
    "script": _set("script", _script),
    "share": _set("share", NUMBER(low=0.0, high=1.0).from_toml),
    "ambiguous": _set("ambiguous", _bool),
    "beyond-limits": _set("cut", _true),
    "reply": _set("reply", REPLY.from_toml),
    "field": _set("field", _field),
    "tag": _set("tag", _line),
    "points": _set("points", NUMBER(low=-1000.0, high=1000.0).from_toml),
    "note": _set("note", _text),
    "suffix": _set("suffix", _suffix),
}
