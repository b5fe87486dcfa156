r"""Regular expressions of canonical addresses, in the form of Postfix's regexp_table(5).

    /^(.*)@(.*)\.lan$/       $1-${2}.lan@example.org

Invariants
----------
*Linear*: a look-up takes time linear in the address: which pattern matches is found by automata,
and the groups of that one by `tables.captures`.
*Anchored*: a pattern with neither `^` at its beginning nor `$` at its end has to match the whole
address: an address that goes on behind it is another one.
*Understood or refused*: what isn't possible here, or has another meaning, is an error at start.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.tables.automaton import Automaton
from smtpd_filters.tables.captures import Captures
from smtpd_filters.tables.dialects import compiled
from smtpd_filters.tables.postfix import divided, filled, pieces
from smtpd_filters.tables.source import BLANKS, KEY_MAX
from smtpd_filters.tables.table import Content, Table, checked_key

from .addresses import checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

#: Patterns of a table; each is tried after the other.
PATTERNS_MAX = 500
#: Cached sets of an automaton.
_MEMORY = 64
_WORK = 200
#: Work for a byte of an address in an automaton, about 0.06 us, and for a state of `Captures`.
BYTE, STATE = 1, 5
_ANY_CASE = b"(?i)"


class Pattern:
    """A regular expression; with `negated`, keys that it doesn't match are those it covers."""

    __slots__ = ("_automaton", "groups", "negated", "node", "text", "whole")

    def __init__(self, text: str, *, perl: bool, negated: bool, anchors: bool) -> None:
        self.text = text
        self.negated = negated
        #: Whether it has to match the whole key.
        self.whole = anchors and not negated and not _is_anchored(text)
        source = text.encode("utf-8", "surrogateescape")
        #: What is captured, without the anchors that are added.
        self.node = compiled(source, perl=perl, ignore_case=True)
        whole = b"^(" + source.removeprefix(_ANY_CASE) + b")$"
        self._automaton = Automaton()
        self._automaton.add(
            compiled(whole, perl=perl, ignore_case=True) if self.whole else self.node
        )
        self._automaton.finish(_MEMORY)

    def covers(self, key: bytes) -> bool:
        """Whether it is for a key, in lower case."""
        return (self._automaton.match(key) is None) is self.negated

    def release(self) -> None:
        """Free the cache."""
        self._automaton.release()


class Rule:
    """A pattern, the conditions around it, and the address for what it covers."""

    __slots__ = ("captures", "conditions", "pattern", "pieces", "text")

    def __init__(
        self, text: str, pattern: Pattern, conditions: Sequence[Pattern], replacement: str
    ) -> None:
        self.text = text
        self.pattern = pattern
        self.conditions = tuple(conditions)
        #: The texts and the numbers of groups that the address consists of.
        self.pieces = pieces(replacement)
        numbers = [each for each in self.pieces if isinstance(each, int)]
        self.captures: Captures | None = None
        if not numbers:
            joined = "".join(map(str, self.pieces))
            if not joined.startswith("@"):
                checked(joined)
        elif pattern.negated:
            raise ValueError("there is nothing to refer to behind !")
        else:
            self.captures = Captures(pattern.node, whole=pattern.whole)
            if max(numbers) > self.captures.groups:
                raise ValueError(f"${max(numbers)}: there are only {self.captures.groups} groups")

    def covers(self, key: bytes) -> bool:
        """Whether it is for a key, in lower case."""
        return all(each.covers(key) for each in self.conditions) and self.pattern.covers(key)

    def replaced(self, text: bytes, key: bytes) -> str | None:
        """Return the address for a text that it covers; `key` is the text in lower case."""
        if self.captures is None:
            return "".join(map(str, self.pieces))
        found = self.captures.match(key)
        if found is None:
            return None
        groups = {n: text[a:b] for n, (a, b) in enumerate(found) if a >= 0}
        return filled(self.pieces, groups)


class _Rules(Content):
    __slots__ = ("_conditions", "_rules", "work")
    perl = False

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._rules: list[Rule] = []
        #: The conditions that are open while the table is read.
        self._conditions: list[Pattern] = []
        #: The work of all look-ups, in units of about 0.06 us.
        self.work = 0

    def add(self, text: str) -> int:
        checked_key(text)
        # A line of blanks that aren't ASCII has no word.
        word = (text.split(maxsplit=1) or [text])[0].lower()
        if word == "endif":
            if not self._conditions or text.split()[1:]:
                raise ValueError("endif without if" if not self._conditions else "text after endif")
            self._conditions.pop()
            return 0
        if word == "if":
            pattern, rest = self._pattern(text[2:].strip(BLANKS), anchors=False)
            if rest:
                raise ValueError(f"text after the pattern of if: {rest!r}")
            self._conditions.append(pattern)
            return _WORK * len(text)
        if len(self._rules) >= PATTERNS_MAX:
            raise ValueError(f"more than {PATTERNS_MAX} patterns")
        pattern, replacement = self._pattern(text, anchors=True)
        if not replacement:
            raise ValueError("no address behind the pattern")
        self._rules.append(Rule(text, pattern, self._conditions, replacement))
        return _WORK * len(text)

    def _pattern(self, text: str, *, anchors: bool) -> tuple[Pattern, str]:
        """Parse `/pattern/flags text`; return the pattern and the text behind it."""
        pattern, negated, flags, rest = divided(text)
        if flags:
            raise ValueError(
                f"flags ({flags[:20]}) are not possible: letter case is always ignored"
            )
        return Pattern(pattern, perl=self.perl, negated=negated, anchors=anchors), rest

    def finish(self) -> Iterator[None]:
        if self._conditions:
            raise ConfigError(f"if /{self._conditions[-1].text}/ without endif")
        yield from ()

    def rule(self, key: bytes) -> Rule | None:
        """Return the first rule for a key in lower case."""
        for rule in self._rules:
            self.work += BYTE * len(key) * (1 + len(rule.conditions))
            if rule.covers(key):
                return rule
        return None

    def find(self, key: str) -> str | None:
        encoded = _encoded(key)
        rule = None if encoded is None else self.rule(encoded.lower())
        return None if rule is None else rule.text

    def replaced(self, key: str) -> str | None:
        """Return the address for a key."""
        text = _encoded(key)
        if text is None:
            return None
        small = text.lower()
        rule = self.rule(small)
        if rule is None:
            return None
        found = rule.replaced(text, small)
        self.work += 0 if rule.captures is None else STATE * rule.captures.steps
        return found

    def anchored(self) -> list[str]:
        """Return the patterns that match whole addresses only, since they have no anchors."""
        return [rule.pattern.text for rule in self._rules if rule.pattern.whole]

    def release(self) -> Iterator[None]:
        while self._rules:
            self._rules.pop().pattern.release()
            yield

    def __len__(self) -> int:
        return len(self._rules)


class _PerlRules(_Rules):
    __slots__ = ()
    perl = True


class PatternTable(Table):
    """A mapping by regular expressions, `regexp:PATH`; the first one that matches counts."""

    __slots__ = ()
    _content: _Rules
    contents = _Rules
    prefix = "regexp:"

    @classmethod
    def load(cls, spec: str) -> Self:
        """Create a table from a path, or a table in braces, with or without the prefix."""
        return cls(spec.removeprefix(cls.prefix))

    @property
    def source(self) -> str:
        return f"{self.prefix}{super().source}"

    def get(self, key: str) -> str | None:
        """Return the address for another one, or None."""
        return self._content.replaced(key)

    @property
    def work(self) -> int:
        """The work of all look-ups so far, in units of about 0.06 us."""
        return self._content.work

    @property
    def anchored(self) -> list[str]:
        """The patterns that match whole addresses only (*Anchored*)."""
        return self._content.anchored()


class PerlTable(PatternTable):
    """The same with the usual abbreviations of Perl's expressions, `pcre:PATH`."""

    __slots__ = ()
    contents = _PerlRules
    prefix = "pcre:"


def _encoded(key: str) -> bytes | None:
    try:
        text = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that isn't an escaped byte
        return None
    return text if len(text) <= KEY_MAX else None


def _is_anchored(text: str) -> bool:
    """Whether a pattern has an anchor of its own at one end."""
    text = text.removeprefix(_ANY_CASE.decode())
    body = text.removesuffix("$")
    escaped = (len(body) - len(body.rstrip("\\"))) % 2
    return text.startswith(("^", "\\A")) or (text.endswith("$") and not escaped)
