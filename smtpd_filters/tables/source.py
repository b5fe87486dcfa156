"""Where a table's entries come from: an inline list, a file, or a single entry.

The law:

1. Reading is separate from meaning: a source yields texts with their places, a table makes
   entries of them, and whatever is wrong is reported as `PATH:LINE: reason` or
   `inline table: entry N: reason`.
2. A source is read whole or not at all, so that a table can be replaced in one assignment.
3. Nothing that a path may name can hang a filter: only regular files are read.
"""

from __future__ import annotations

import os
import stat

from smtpd_filters.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# smtpd keeps a key, in a table or looked up, in a buffer of 1,024 bytes with its final NUL.
KEY_MAX = 1023
BLANKS = " \t\n\v\f\r"  # isspace(3) in the C locale

# What smtpd, its database and its table packages call their back-ends: only `file:` is read here,
# and a table of one odd entry is not what `db:/etc/mail/x.db` means.
_FOREIGN = frozenset({
    "db", "getpwnam", "ldap", "mysql", "passwd", "postgres", "proc", "proc-exec", "redis",
    "socketmap", "sqlite",
})  # fmt: skip
_SHOWN = 80


class Source:
    """A table as it was asked for; `spec` is that text.

    `texts()` and `pairs()` read it anew, for a list and for a mapping, and hand each entry to the
    function they are given. A ValueError from there becomes a ConfigError that names the place.
    """

    __slots__ = ("spec",)

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def texts(self, add: Callable[[str], None]) -> None:
        """Read a list.

        Raises ConfigError for a source that can't be read, or an entry that `add` refuses.
        """
        for place, text in self._entries():
            try:
                add(_checked(text))
            except ValueError as error:
                raise _wrong(place, text, error) from None

    def pairs(self, add: Callable[[str, str], None]) -> None:
        """Read a mapping; raises ConfigError as `texts` does."""
        for place, text in self._entries():
            try:
                add(*_pair(_checked(text)))
            except ValueError as error:
                raise _wrong(place, text, error) from None

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Give each entry with its place."""
        yield "inline table: entry 1", self.spec


class Given(Source):
    """Entries that a program brings along, such as built-in patterns."""

    __slots__ = ("_given",)

    def __init__(self, entries: Sequence[str], spec: str) -> None:
        super().__init__(spec)
        self._given = entries

    def _entries(self) -> Iterator[tuple[str, str]]:
        for number, text in enumerate(self._given, 1):
            yield f"{self.spec} table: entry {number}", text


class _Inline(Source):
    """`{ a, b }` and `{ k = v, k2 = v2 }`."""

    __slots__ = ()

    def pairs(self, add: Callable[[str, str], None]) -> None:
        words = self._words("=")
        for number, (key, quoted) in enumerate(words, 1):
            sign = next(words, None)
            value, _ = next(words, ("", False))
            try:
                if (key == "=" and not quoted) or sign != ("=", False) or not value:
                    raise ValueError("expected key = value")  # noqa: TRY301 - has its place here
                add(_checked(key), _checked(value))
            except ValueError as error:
                raise _wrong(f"inline table: entry {number}", key, error) from None

    def _entries(self) -> Iterator[tuple[str, str]]:
        for number, (text, _) in enumerate(self._words(), 1):
            yield f"inline table: entry {number}", text

    def _words(self, breaks: str = "") -> Iterator[tuple[str, bool]]:
        """Split as smtpd.conf(5) does: at commas, line breaks and blanks, outside quotes.

        Gives each word, and whether it was quoted. Other than in smtpd.conf, a bare word may hold
        commas inside braces, so that `a{1,3}` needs no quotes.
        """
        text, at = self.spec[1:-1], 0
        while at < len(text):
            char = text[at]
            if char in BLANKS or char == ",":
                at += 1
            elif char in breaks:
                yield char, False
                at += 1
            elif char in "\"'":
                word, at = _quoted(text, at)
                yield word, True
            else:
                word, at = _bare(text, at, breaks)
                yield word, False


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Take a quoted word, and where it ends.

    A backslash stays as it is, except before the quote itself, as in smtpd.conf.
    """
    quote, word, begin = text[at], "", at
    at += 1
    while (close := text.find(quote, at)) > 0 and text[close - 1] == "\\":
        word += text[at : close - 1] + quote
        at = close + 1
    if close < 0:
        raise ConfigError(f"inline table: no closing quote in {_shown(text[begin:])}")
    return word + text[at:close], close + 1


def _bare(text: str, at: int, breaks: str) -> tuple[str, int]:
    """Take a word without quotes, and where it ends."""
    begin, depth = at, 0
    while at < len(text):
        char = text[at]
        if char in BLANKS or char in breaks or (char == "," and depth == 0):
            break
        depth += (char == "{") - (char == "}")
        at += 1
    if depth:
        shown = _shown(text[begin:at])
        raise ConfigError(f"inline table: an entry with unbalanced braces needs quotes: {shown}")
    return text[begin:at], at


class _File(Source):
    """A file with an entry on each line."""

    __slots__ = ("_path",)

    def __init__(self, spec: str, path: str) -> None:
        super().__init__(spec)
        self._path = path

    def _entries(self) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(self._read().split("\n"), 1):
            if text := _uncommented(line):
                yield f"{self._path}:{number}", text

    def _read(self) -> str:
        try:
            with open(self._path, "rb", opener=_open) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConfigError(f"{self._path}: not a regular file")
                return file.read().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from None
        except ValueError as error:  # a NUL in the path
            raise ConfigError(f"{_shown(self._path)}: {error}") from None


def _open(path: str, flags: int) -> int:
    # To open a FIFO without a writer would wait for one.
    return os.open(path, flags | os.O_NONBLOCK)


def _uncommented(line: str) -> str:
    """A line without its comment and the blanks around it.

    table(5): "Comments can be put anywhere in the file using a hash mark". smtpd itself takes
    them at the start of a line only; in the middle they follow a blank here, since an address
    or a pattern may hold a hash mark.
    """
    line = line.strip(BLANKS)
    if "#" not in line:
        return line
    at = line.find("#")
    while at > 0 and line[at - 1] not in BLANKS:
        at = line.find("#", at + 1)
    return line if at < 0 else line[:at].rstrip(BLANKS)


def _wrong(place: str, text: str, error: ValueError) -> ConfigError:
    return ConfigError(f"{place}: {error} in {_shown(text)}")


def _shown(text: str) -> str:
    """Make any text fit for a line of a log."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _checked(text: str) -> str:
    if not text:
        raise ValueError("empty entry")
    if "\0" in text:
        raise ValueError("NUL byte")
    return text


def _pair(line: str) -> tuple[str, str]:
    """Part a line as smtpd does: at a blank or a colon, or behind `[...]`."""
    if line[0] == "[":
        end = line.find("]") + 1
    else:
        end = next((i for i, char in enumerate(line) if char in " \t:"), 0)
    value = line[end + 1 :].lstrip(" \t")
    if not end or not value:
        raise ValueError("expected a key and a value")
    return line[:end], value


def parse(spec: str) -> Source:
    """Understand how a table is given; nothing is read yet.

    `{ a, b }` and `{ k = v }` are inline tables, `file:PATH` and an absolute path are files, and
    anything else is a table of that single entry. Raises ConfigError for an inline table without
    its closing brace, an empty text, and the back-ends of smtpd that aren't supported.
    """
    text = spec.strip(BLANKS)
    if not text:
        raise ConfigError("a table can't be given as an empty text")
    if text[0] == "{":
        if text[-1] != "}":
            raise ConfigError(f"inline table: no closing brace in {_shown(text)}")
        return _Inline(text)
    if text[0] == "/":
        return _File(text, text)
    scheme, colon, path = text.partition(":")
    if colon and scheme == "file":
        if not path:
            raise ConfigError('a table given as "file:" needs a path')
        return _File(text, path)
    if colon and scheme in _FOREIGN:
        raise ConfigError(f'{_shown(text)}: tables of type "{scheme}" are not supported')
    return Source(text)
