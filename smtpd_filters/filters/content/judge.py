"""The judgement of a message by rules: which of them apply, and to which of its parts.

It is a generator that yields units of work (`runtime.pace`).
"""

from __future__ import annotations

from dataclasses import dataclass

from smtpd_filters.checks.author.encoded_words import readings
from smtpd_filters.mime.names import extension, inner_extension
from smtpd_filters.parts.dangerous import DANGEROUS, HARMLESS

from .patterns import folded, folding
from .scripts import shares

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from smtpd_filters.message import Headers
    from smtpd_filters.mime.content import Content, Part

    from .patterns import Patterns
    from .rules import Rule, Rules

#: Units of work for a rule and part, and for the scripts of a text.
_PART, _SCRIPTS = 5, 800


@dataclass(slots=True)
class Hit:
    """A rule that applies: to which parts, and why, for the log."""

    rule: Rule
    parts: list[Part]
    reason: str


class Judge:
    """The judgement of one message; `size` is its bytes."""

    def __init__(self, rules: Rules, headers: Headers, content: Content, size: int) -> None:
        self._rules = rules
        self._headers = headers
        self._content = content
        self._size = size
        #: The patterns that match, by field and dialect, by name, and the scripts of texts.
        self._fields: dict[tuple[str, str], set[int]] = {}
        self._names: dict[str, set[int]] = {}
        self._shares: dict[int, dict[str, float]] = {}

    def hits(self) -> Generator[int, None, list[Hit]]:
        """Return the rules that apply, in their order."""
        found = []
        for rule in self._rules.rules:
            hit = yield from self._hit(rule)
            if hit is not None:
                found.append(hit)
        return found

    def _hit(self, rule: Rule) -> Generator[int, None, Hit | None]:
        yield _PART
        content = self._content
        if not self._is_such(rule):
            return None
        if rule.header and not (yield from self._header(rule)):
            return None
        parts: list[Part] = []
        reason = ""
        if rule.on_parts:
            for part in content.parts:
                if why := (yield from self._part(rule, part)):
                    reason = reason or why
                    parts.append(part)
            if not parts:
                return None
        if not reason and content.oddities and (rule.ambiguous or rule.cut):
            reason = next(iter(content.oddities))
        return Hit(rule, parts, reason or rule.header)

    def _is_such(self, rule: Rule) -> bool:
        """Return whether the message as a whole meets the conditions on it."""
        content = self._content
        return (
            (rule.larger is None or self._size > rule.larger)
            and (rule.parts is None or len(content.parts) > rule.parts)
            and rule.ambiguous in {None, content.ambiguous}
            and (content.cut or not rule.cut)
        )

    # -- fields --------------------------------------------------------------------------

    def _header(self, rule: Rule) -> Generator[int, None, bool]:
        fields = sum(1 for _ in self._headers.each(rule.header))
        yield 10 + fields
        if rule.present is not None and bool(fields) is not rule.present:
            return False
        if rule.repeated is not None and (fields > 1) is not rule.repeated:
            return False
        for numbers, dialect, patterns in (
            (rule.matches, "decoded", self._rules.decoded),
            (rule.raw, "raw", self._rules.raw),
        ):
            if numbers:
                found = yield from self._matched(rule.header, dialect, patterns)
                if numbers.isdisjoint(found):
                    return False
        return True

    def _matched(
        self, name: str, dialect: str, patterns: Patterns
    ) -> Generator[int, None, set[int]]:
        """Return the patterns that match in a field of this name."""
        key = (name.lower(), dialect)
        if key in self._fields:
            return self._fields[key]
        found: set[int] = set()
        for field in self._headers.each(name):
            if dialect == "raw":
                found |= yield from patterns.matches(b"\n".join(field.lines).lower())
                continue
            for text in (yield from readings(field.value)):
                found |= yield from patterns.matches((yield from folding(text)))
        self._fields[key] = found
        return found

    # -- parts ---------------------------------------------------------------------------

    def _part(self, rule: Rule, part: Part) -> Generator[int, None, str]:
        """Return why a part meets the conditions, or ""."""
        yield _PART
        if not _fits(rule, part) or (rule.script and not (yield from self._in_script(rule, part))):
            return ""
        shown = part.names[0] if part.names else part.type or "a part"
        if not (rule.names or rule.extensions or rule.double or rule.kinds):
            return shown
        for names, kind, inside in self._files(rule, part):
            name = yield from self._file(rule, names, kind)
            if name:
                return f"{name} in {shown}" if inside else name
        return ""

    def _files(self, rule: Rule, part: Part) -> Iterator[tuple[tuple[str, ...], str, bool]]:
        yield part.names, part.kind, False
        if rule.nested:
            for member in part.members:
                yield member.names, member.kind, True

    def _file(self, rule: Rule, names: tuple[str, ...], kind: str) -> Generator[int, None, str]:
        """Return the name of a file that meets the conditions on files, or ""."""
        if rule.kinds and kind not in rule.kinds:
            return ""
        if not (rule.names or rule.extensions or rule.double):
            return names[0] if names else kind
        for name in names:
            yield 2
            last = extension(name)
            if rule.extensions and last not in rule.extensions:
                continue
            if rule.double and not _is_double(name, last, rule.extensions or DANGEROUS):
                continue
            if rule.names:
                if name not in self._names:
                    self._names[name] = yield from self._rules.names.matches(folded(name))
                if rule.names.isdisjoint(self._names[name]):
                    continue
            return name
        return ""

    def _in_script(self, rule: Rule, part: Part) -> Generator[int, None, bool]:
        if not part.head:
            return False
        if part.number not in self._shares:
            found: dict[str, float] = {}
            for charset in part.charsets or ("",):
                yield _SCRIPTS
                for name, share in shares(part.head, charset).items():
                    found[name] = max(share, found.get(name, 0.0))
            self._shares[part.number] = found
        return self._shares[part.number].get(rule.script, 0.0) >= rule.share > 0


def _fits(rule: Rule, part: Part) -> bool:
    """Return whether a part meets the conditions that its description decides."""
    declared = part.types or ("text/plain",)
    return (
        (part.attached or not rule.on_files)
        and (not rule.types or any(_is_type(each, rule.types) for each in declared))
        and (not rule.charsets or not rule.charsets.isdisjoint(part.charsets))
        and rule.traits <= part.traits
    )


def _is_type(declared: str, types: tuple[str, ...]) -> bool:
    main = declared.partition("/")[0] + "/*"
    return declared in types or main in types


def _is_double(name: str, last: str, dangerous: frozenset[str]) -> bool:
    """Return whether a dangerous extension is disguised by a harmless one before it."""
    return last in dangerous and inner_extension(name) in HARMLESS
