r"""The two dialects of regular expressions in Postfix's files, for keys in their own case.

`regexp:` is POSIX extended, `pcre:` is Perl's. A feature of Perl's that needs backtracking
(look-around, back-references, possessive repeats, word boundaries) is an error. Groups have
numbers, for `captures`.
"""

from __future__ import annotations

from .ere import Anchor, Bytes, Parser, Repeat, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .ere import Node

_ALL = (1 << 256) - 1


def _set(*ranges: str) -> int:
    members = 0
    for each in ranges:
        members |= (1 << ord(each[-1]) + 1) - (1 << ord(each[0]))
    return members


_UPPER, _LOWER, _DIGITS = _set("AZ"), _set("az"), _set("09")
_SPACE = _set("\t\r", " ")
_CLASSES = {
    b"alnum": _UPPER | _LOWER | _DIGITS,
    b"alpha": _UPPER | _LOWER,
    b"blank": _set(" ", "\t"),
    b"cntrl": _set("\0\x1f", "\x7f"),
    b"digit": _DIGITS,
    b"graph": _set("!~"),
    b"lower": _LOWER,
    b"print": _set(" ~"),
    b"punct": _set("!~") & ~(_UPPER | _LOWER | _DIGITS),
    b"space": _SPACE,
    b"upper": _UPPER,
    b"word": _UPPER | _LOWER | _DIGITS | _set("_"),
    b"xdigit": _DIGITS | _set("af", "AF"),
}
_SHORT = {
    b"d": _DIGITS,
    b"D": _ALL & ~_DIGITS,
    b"w": _CLASSES[b"word"],
    b"W": _ALL & ~_CLASSES[b"word"],
    b"s": _SPACE,
    b"S": _ALL & ~_SPACE,
    b"h": _CLASSES[b"blank"],
    b"H": _ALL & ~_CLASSES[b"blank"],
    b"N": _ALL & ~_set("\n"),
}
_CONTROLS = {b"t": 9, b"n": 10, b"r": 13, b"f": 12, b"e": 27, b"a": 7}
_UNSUPPORTED = {
    b"b": "word boundary \\b",
    b"B": "\\B",
    b"G": "\\G",
    b"K": "\\K",
    b"Q": "\\Q",
    b"p": "property \\p",
    b"P": "property \\P",
    b"R": "\\R",
    b"X": "\\X",
    b"k": "back-reference \\k",
    b"g": "back-reference \\g",
}


class Lazy(Repeat):
    """A repeat that prefers to be short."""

    __slots__ = ()
    lazy = True


def compiled(pattern: bytes, *, perl: bool, ignore_case: bool, dot_all: bool = True) -> Node:
    """Parse a pattern of one of the dialects; raise ValueError with the reason."""
    parser = (_Perl if perl else _Posix)(pattern)
    parser.ignore_case, parser.dot_all = ignore_case, dot_all
    return parser.whole()


class _Posix(Parser):
    """POSIX extended, as regcomp(3) parses it, with numbered groups."""

    classes = _CLASSES
    ignore_case = True
    dot_all = True

    def atom(self, depth: int) -> Node:
        node = super().atom(depth)
        return self.fold(node) if isinstance(node, Bytes) else node

    def fold(self, node: Bytes) -> Node:
        """Return a set with both cases of its letters, if case is ignored."""
        members = node.members
        if self.ignore_case and not isinstance(node, _Exact):
            members |= (members & _UPPER) << 32 | (members & _LOWER) >> 32
        return Bytes(members)

    def bracket(self) -> int:
        inverted = self.text.startswith(b"^", self.at)
        members = super().bracket()
        if inverted and self.ignore_case:
            # What is excluded is excluded in both cases.
            out = _ALL & ~members
            members = _ALL & ~(out | (out & _UPPER) << 32 | (out & _LOWER) >> 32)
        return members


class _Exact(Bytes):
    """A set whose case is not folded."""

    __slots__ = ()


class _Perl(_Posix):
    """Perl's dialect, as far as it needs no backtracking."""

    hyphens = True

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.peek() not in (b"", b"|", b")"):
            parts.append(self.repeated(self.atom(depth)))
        if not parts:
            return Repeat(Bytes(1), 0, 0)  # an empty alternative
        return parts[0] if len(parts) == 1 else Sequence(parts)

    def atom(self, depth: int) -> Node:
        if self.take(b"(?i)"):
            if self.at != 4:
                self.fail("(?i) is supported at the beginning only")
            self.ignore_case = True
            return Repeat(Bytes(1), 0, 0)
        if self.take(b"."):
            return Bytes(_ALL if self.dot_all else _ALL & ~_set("\n"))
        if self.peek() == b"\\":
            return self.escape()
        if self.peek() in (b"{", b"}") and not self.is_interval():
            self.at += 1
            return Bytes(1 << self.text[self.at - 1])
        return super().atom(depth)

    def group(self, depth: int) -> Node:
        if self.take(b"?:"):
            return self.closed(depth)
        if self.peek() in (b"?", b"*"):
            end = self.text[self.at : self.at + 2].decode("latin-1")
            self.fail(f"({end} is not supported: the matcher doesn't backtrack")
        return super().group(depth)

    def escape(self) -> Node:
        self.at += 1
        char = self.peek()
        if char in _SHORT:
            self.at += 1
            return _Exact(_SHORT[char])
        if char in (b"A", b"z", b"Z"):
            self.at += 1
            return Anchor(at_end=char != b"A")
        node = self.fold(Bytes(1 << self.escaped()))
        assert isinstance(node, Bytes)  # noqa: S101  # as made
        return node

    def escaped(self) -> int:
        char = self.peek()
        if char in _UNSUPPORTED:
            self.fail(f"{_UNSUPPORTED[char]} is not supported: the matcher doesn't backtrack")
        if char.isdigit() and char != b"0":
            self.fail(f"back-reference \\{char.decode()} is not supported")
        if char in _CONTROLS:
            self.at += 1
            return _CONTROLS[char]
        if self.take(b"x"):
            digits = self.text[self.at : self.at + 2]
            try:
                value = int(digits, 16)
            except ValueError:
                self.fail("\\x needs two hexadecimal digits")
            self.at += 2
            return value
        if not char or char.isalnum():
            self.fail(f"\\{char.decode('latin-1')} is not supported")
        self.at += 1
        return char[0]

    def repeated(self, node: Node) -> Node:
        if self.peek() == b"{" and not self.is_interval():
            return node
        lazy = Parser.repeated_once(self, node)
        if lazy is node:
            return node
        assert isinstance(lazy, Repeat)  # noqa: S101  # as made
        if self.peek() == b"+":
            self.fail("a possessive repeat is not supported")
        if self.take(b"?"):
            lazy = Lazy(lazy.body, lazy.low, lazy.high)
        return lazy

    def is_interval(self) -> bool:
        """Return whether a repeat in braces is next; any other brace is a character."""
        text, _, _ = self.text[self.at + 1 :].partition(b"}")
        first, _, second = text.partition(b",")
        digits = first.isdigit() and (second or b"0").isdigit()
        return self.peek() == b"{" and b"}" in self.text[self.at :] and digits

    def short(self) -> int | None:
        r"""Return the set whose short name is next, such as `\d`; None if there is none."""
        if self.peek() != b"\\":
            return None
        return _SHORT.get(self.text[self.at + 1 : self.at + 2])

    def named(self) -> int | None:
        members = self.short()
        if members is None:
            return super().named()
        self.at += 2
        return members

    def member(self) -> int:
        if self.short() is not None:
            self.fail("a class can't end a range")
        if self.take(b"\\"):
            return self.escaped()
        return super().member()
