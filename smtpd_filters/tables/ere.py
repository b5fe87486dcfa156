"""A parser for POSIX extended regular expressions.

It implements IEEE Std 1003.1, "Regular Expressions", section 9.4, in the C locale: patterns and
keys are bytes. What the standard leaves undefined, and OpenBSD's and glibc's regcomp(3) interpret
differently, is an error that suggests what to write: an error at start is better than a pattern
with another meaning than intended.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# IEEE Std 1003.1 <limits.h>: _POSIX2_RE_DUP_MAX, which is also OpenBSD's limit.
DUP_MAX = 255
# A position is a character of the pattern with its repeats written out.
POSITIONS_MAX = 4096
_DEPTH_MAX = 32

_ANY = (1 << 256) - 1


def _span(first: int, last: int) -> int:
    """Return a set of bytes as an integer, in which bit n stands for byte n."""
    return (1 << last + 1) - (1 << first)


_LETTERS = _span(ord("a"), ord("z"))
_DIGITS = _span(ord("0"), ord("9"))
_GRAPHIC = _span(ord("!"), ord("~"))
_CLASSES = {
    b"alnum": _LETTERS | _DIGITS,
    b"alpha": _LETTERS,
    b"blank": 1 << ord(" ") | 1 << ord("\t"),
    b"cntrl": _span(0, 0x1F) | 1 << 0x7F,
    b"digit": _DIGITS,
    b"graph": _GRAPHIC,
    b"lower": _LETTERS,
    b"print": _GRAPHIC | 1 << ord(" "),
    b"punct": _GRAPHIC & ~(_LETTERS | _DIGITS | _span(ord("A"), ord("Z"))),
    b"space": _span(ord("\t"), ord("\r")) | 1 << ord(" "),
    # Any letter, as with REG_ICASE: keys are in lower case when they are matched.
    b"upper": _LETTERS,
    b"xdigit": _DIGITS | _span(ord("a"), ord("f")),
}
_HINTS = {
    b"d": "[[:digit:]] or [0-9]",
    b"s": "[[:space:]]",
    b"w": "[[:alnum:]_]",
}


class Bytes:
    """One byte of a set."""

    __slots__ = ("members", "size")
    __match_args__ = ("members",)
    size: int

    def __init__(self, members: int) -> None:
        self.members = members
        self.size = 1


class Anchor:
    """`^` or `$`: the empty string at the start or end of the key."""

    __slots__ = ("at_end", "size")
    __match_args__ = ("at_end",)
    size: int

    def __init__(self, *, at_end: bool) -> None:
        self.at_end = at_end
        self.size = 0


class Sequence:
    """Parts that follow one another."""

    __slots__ = ("parts", "size")
    __match_args__ = ("parts",)
    size: int

    def __init__(self, parts: list[Node]) -> None:
        self.parts = parts
        self.size = sum(part.size for part in parts)


class Group(Sequence):
    """A part in parentheses, with its number from 1 on."""

    __slots__ = ("number",)

    def __init__(self, body: Node, number: int) -> None:
        super().__init__([body])
        self.number = number


class Choice:
    """Alternatives."""

    __slots__ = ("parts", "size")
    __match_args__ = ("parts",)
    size: int

    def __init__(self, parts: list[Node]) -> None:
        self.parts = parts
        self.size = sum(part.size for part in parts)


class Repeat:
    """A part repeated `low` to `high` times; `high` is None if there is no limit."""

    __slots__ = ("body", "high", "low", "size")
    size: int
    #: Whether it prefers to be short; this decides what groups capture.
    lazy = False

    def __init__(self, body: Node, low: int, high: int | None) -> None:
        self.body = body
        self.low = low
        self.high = high
        self.size = body.size * (max(low, 1) if high is None else high)


if TYPE_CHECKING:
    Node = Bytes | Anchor | Sequence | Choice | Repeat


def parse(pattern: bytes) -> Node:
    """Parse a pattern, which must be in lower case: upper-case letters would never match.

    Raises ValueError if it is invalid, undefined in POSIX, or larger than `POSITIONS_MAX`.
    """
    return Parser(pattern).whole()


class Parser:
    """A parser of one pattern; subclasses read other dialects.

    `classes` are the named sets of characters. `hyphens` tells whether a hyphen behind a range in
    brackets is a character; if not, it is an error.
    """

    __slots__ = ("at", "groups", "text")
    classes = _CLASSES
    hyphens = False

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0
        #: The number of groups so far.
        self.groups = 0

    def fail(self, reason: str) -> NoReturn:
        """Raise ValueError with a reason."""
        raise ValueError(f"{reason} (at character {self.at + 1})")

    def peek(self) -> bytes:
        """Return the next character, or nothing at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, text: bytes) -> bool:
        """Pass over a text if it is next; return whether it is."""
        if not self.text.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def whole(self) -> Node:
        """Parse the whole pattern. Raises ValueError."""
        node = self.choice(0)
        if self.at < len(self.text):
            self.fail("unmatched ), write \\)")
        if node.size > POSITIONS_MAX:
            raise ValueError(f"pattern needs {node.size} positions, more than {POSITIONS_MAX}")
        return node

    def choice(self, depth: int) -> Node:
        """Parse alternatives."""
        if depth > _DEPTH_MAX:
            self.fail(f"more than {_DEPTH_MAX} levels of nested groups")
        parts = [self.sequence(depth)]
        while self.take(b"|"):
            parts.append(self.sequence(depth))
        return parts[0] if len(parts) == 1 else Choice(parts)

    def sequence(self, depth: int) -> Node:
        """Parse one alternative."""
        parts: list[Node] = []
        while self.peek() not in (b"", b"|", b")"):
            parts.append(self.repeated(self.atom(depth)))
        if not parts:
            self.fail("empty alternative or group")
        return parts[0] if len(parts) == 1 else Sequence(parts)

    def atom(self, depth: int) -> Node:
        """Parse what a repeat can follow."""
        char = self.peek()
        if char in (b"*", b"+", b"?", b"{"):
            self.fail(f"nothing to repeat before {char.decode()}")
        self.at += 1
        match char:
            case b"(":
                return self.group(depth + 1)
            case b"[":
                return Bytes(self.bracket())
            case b".":
                return Bytes(_ANY)
            case b"^" | b"$":
                return Anchor(at_end=char == b"$")
            case b"\\":
                return Bytes(1 << self.escaped())
            case _:
                return Bytes(1 << char[0])

    def group(self, depth: int) -> Node:
        """Parse what follows an opening parenthesis."""
        self.groups += 1
        number = self.groups
        return Group(self.closed(depth), number)

    def closed(self, depth: int) -> Node:
        """Parse alternatives up to the closing parenthesis."""
        node = self.choice(depth)
        if not self.take(b")"):
            self.fail("unmatched (")
        return node

    def escaped(self) -> int:
        """Parse what follows a backslash; return the character."""
        char = self.peek()
        if not char:
            self.fail("nothing after \\")
        if char.isalnum() or char in b"<>`'":
            hint = f", write {_HINTS[char]}" if char in _HINTS else ""
            self.fail(f"\\{chr(char[0])} is not defined in POSIX{hint}")
        self.at += 1
        return char[0]

    def repeated(self, node: Node) -> Node:
        """Parse the repeat that may follow."""
        found = self.repeated_once(node)
        if found is not node and self.peek() in (b"*", b"+", b"?", b"{"):
            self.fail("a repeat of a repeat needs parentheses")
        return found

    def repeated_once(self, node: Node) -> Node:
        """Parse a repeat without what may follow it; return the node itself if there is none."""
        match self.peek():
            case b"*":
                low, high = 0, None
            case b"+":
                low, high = 1, None
            case b"?":
                low, high = 0, 1
            case b"{":
                low, high = self.interval()
            case _:
                return node
        if isinstance(node, Anchor):
            self.fail("an anchor can't be repeated")
        self.at += 1
        return Repeat(node, low, high)

    def interval(self) -> tuple[int, int | None]:
        """Parse a repeat in braces; stop at the closing one."""
        close = self.text.find(b"}", self.at)
        first, comma, second = self.text[self.at + 1 : max(close, 0)].partition(b",")
        if not first.isdigit() or not (second or b"0").isdigit():
            self.fail("{ must begin {n}, {n,} or {n,m}; write \\{ for a brace")
        low = int(first)
        high = int(second) if second else None if comma else low
        if low > DUP_MAX or (high or 0) > DUP_MAX or (high is not None and high < low):
            self.fail(f"a repeat goes from 0 to {DUP_MAX}, the smaller number first")
        self.at = close
        return low, high

    def bracket(self) -> int:
        """Parse a set of characters in brackets."""
        inverted = self.take(b"^")
        members = 0
        start = self.at
        while self.at == start or self.peek() != b"]":
            if (named := self.named()) is not None:
                members |= named
                continue
            if self.take(b"[="):
                members |= 1 << self.single(b"=]")
                continue
            first = last = self.member()
            if self.peek() == b"-" and self.text[self.at + 1 : self.at + 2] != b"]":
                self.at += 1
                last = self.member()
                if last < first:
                    self.fail("a range whose end is before its start")
                behind = self.peek() == b"-" and self.text[self.at + 1 : self.at + 2] != b"]"
                if behind and not self.hyphens:
                    self.fail("a range can't start at the end of another")
            members |= _span(first, last)
        self.at += 1
        return _ANY & ~members if inverted else members

    def named(self) -> int | None:
        """Parse a named set in brackets; return it, or None if there is none."""
        if not self.take(b"[:"):
            return None
        name = self.until(b":]")
        if name not in self.classes:
            self.fail("unknown character class")
        return self.classes[name]

    def member(self) -> int:
        """Parse a character in brackets."""
        if self.take(b"[."):
            return self.single(b".]")
        char = self.peek()
        if not char:
            self.fail("no closing ]")
        if self.text.startswith((b"[:", b"[="), self.at):
            self.fail("a class can't end a range")
        self.at += 1
        return char[0]

    def until(self, close: bytes) -> bytes:
        """Parse a text up to its end mark."""
        end = self.text.find(close, self.at)
        if end < 0:
            self.fail(f"no closing {close.decode()}")
        name, self.at = self.text[self.at : end], end + len(close)
        return name

    def single(self, close: bytes) -> int:
        """Parse a single character up to its end mark."""
        name = self.until(close)
        if len(name) != 1:
            self.fail("not a single character")
        return name[0]
