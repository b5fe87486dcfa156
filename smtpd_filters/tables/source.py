"""The sources of a table's entries: an inline list, a file, or a single entry.

A source yields texts with their places; a table turns them into entries. Errors in either are
reported as `PATH:LINE: reason` or `inline table: entry N: reason`.

Invariants
----------
*All or nothing*: a source is read completely or raises ConfigError, so that a table can be replaced
in one assignment.
*Regular files only*: no path can make a filter hang.
*No accidental emptiness*: a file without an entry or a comment is an error, since it may have been
truncated, or not been written yet.
*Small steps*: reading yields None after at most `STEP` of work and one line more; a line has at
most `LINE_MAX` characters.
"""

from __future__ import annotations

import os
import re
import stat

from smtpd_filters.errors import ConfigError, unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

# smtpd's buffers for keys, in tables and in look-ups, have 1,024 bytes including the final NUL.
KEY_MAX = 1023
BLANKS = " \t\n\v\f\r"  # isspace(3) in the C locale

# Back-ends of smtpd and its table packages that are not supported: without this list,
# `db:/etc/mail/x.db` would be a table of one odd entry.
_FOREIGN = frozenset({
    "db", "getpwnam", "mysql", "passwd", "postgres", "proc-exec", "socketmap",
})  # fmt: skip
#: The schemes of remote sources (`remote.source`).
REMOTE = frozenset({"ldap", "proc", "redis", "sqlite"})
_SHOWN = 80
_SPLIT = " (put quotes around the braces, or the shell splits what is in them)"

#: Units of work in a step. Plain text takes one unit per byte, so this is about 1,000 lines, or a
#: few ms.
STEP = 1 << 16
#: Units of work per line, in addition to its bytes.
LINE = 50
#: Characters of a line, which is parsed in one step: enough for a user with a thousand addresses.
LINE_MAX = 1 << 15
_PIECE = 1 << 16
#: The byte order mark, U+FEFF, which some editors write at the start of a file.
MARK = b"\xef\xbb\xbf"
_UTF8_MAX = 4  # bytes of a character
# Bytes hashed per unit of work.
_HASHED = 16
_EMPTY = "no entries; if the file is empty on purpose, add a comment, such as # empty"


class Source:
    """The source of a table; `spec` is its specification, which is here its only entry.

    `texts()` and `pairs()` read it, for a list and for a mapping, and pass each entry to a
    callback, in steps. The callback returns the work it took, which counts towards the step. A
    ValueError that it raises becomes a ConfigError that names the place.
    """

    __slots__ = ("spec",)
    #: Whether the source is a file, and so may change.
    is_file = False
    #: Whether the source is kept elsewhere (`remote.source.RemoteSource`).
    is_remote = False
    #: The path of the file.
    path = ""

    def __init__(self, spec: str) -> None:
        self.spec = spec

    @property
    def size(self) -> int:
        """The approximate number of bytes to read; 0 if it is small or unknown."""
        return 0

    def texts(self, add: Callable[[str], int]) -> Iterator[None]:
        """Read a list, in steps.

        Raises ConfigError if the source can't be read or `add` rejects an entry.
        """
        return self._each(lambda text: add(_checked(text)))

    def pairs(self, add: Callable[[str, str], int]) -> Iterator[None]:
        """Read a mapping, in steps. Raises ConfigError as `texts` does."""
        return self._each(lambda text: add(*_pair(_checked(text))))

    def _each(self, add: Callable[[str], int]) -> Iterator[None]:
        left = STEP
        for number, length, text in self._entries():
            left -= LINE + length
            if text is not None:
                try:
                    left -= add(text)
                except ValueError as error:
                    raise _invalid(self._place(number), text, error) from None
            if left <= 0:
                left = STEP
                yield

    def changed(self) -> Generator[None, None, bool]:
        """Check, in steps, whether the entries differ from those loaded last.

        Raises ConfigError if the file can't be read.
        """
        yield from ()
        return False

    def loaded(self) -> None:
        """Record that the table now has what was read last."""

    def _entries(self) -> Iterator[tuple[int, int, str | None]]:
        """Yield each line: its number, its length, and its entry or None."""
        yield 1, 0, self.spec

    def _place(self, number: int) -> str:  # noqa: ARG002  # there is only one
        return ""


class BuiltIn(Source):
    """Entries that are part of a program, such as built-in patterns."""

    __slots__ = ("_texts",)

    def __init__(self, entries: Sequence[str], spec: str) -> None:
        super().__init__(spec)
        self._texts = entries

    def _entries(self) -> Iterator[tuple[int, int, str | None]]:
        for number, text in enumerate(self._texts, 1):
            yield number, 0, text

    def _place(self, number: int) -> str:
        return f"{self.spec} table: entry {number}"


class _Inline(Source):
    """`{ a, b }` and `{ k = v, k2 = v2 }`."""

    __slots__ = ()

    def pairs(self, add: Callable[[str, str], int]) -> Iterator[None]:
        words = self._words("=")
        for number, (key, quoted) in enumerate(words, 1):
            sign = next(words, None)
            value, _ = next(words, ("", False))
            try:
                if (key == "=" and not quoted) or sign != ("=", False) or not value:
                    raise ValueError("expected key = value")  # noqa: TRY301  # the handler adds the place
                add(_checked(key), _checked(value))
            except ValueError as error:
                raise _invalid(self._place(number), key, error) from None
        yield from ()

    def _entries(self) -> Iterator[tuple[int, int, str | None]]:
        for number, (text, _) in enumerate(self._words(), 1):
            yield number, 0, text

    def _place(self, number: int) -> str:
        return f"inline table: entry {number}"

    def _words(self, breaks: str = "") -> Iterator[tuple[str, bool]]:
        """Split as smtpd.conf(5) does: at commas, line breaks and blanks outside quotes.

        Yields each word, and whether it was quoted. Unlike in smtpd.conf, a bare word may contain
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
    """Return a quoted word, and where it ends.

    A backslash is an ordinary character except before the quote itself, as in smtpd.conf.
    """
    quote, word, begin = text[at], "", at
    at += 1
    while (close := text.find(quote, at)) > 0 and text[close - 1] == "\\":
        word += text[at : close - 1] + quote
        at = close + 1
    if close < 0:
        raise ConfigError(f"inline table: no closing quote in {shown(text[begin:])}")
    return word + text[at:close], close + 1


def _bare(text: str, at: int, breaks: str) -> tuple[str, int]:
    """Return a word without quotes, and where it ends."""
    begin, depth = at, 0
    while at < len(text):
        char = text[at]
        if char in BLANKS or char in breaks or (char == "," and depth == 0):
            break
        depth += (char == "{") - (char == "}")
        at += 1
    if depth:
        word = shown(text[begin:at])
        raise ConfigError(f"inline table: an entry with unbalanced braces needs quotes: {word}")
    return text[begin:at], at


class _File(Source):
    """A file with one entry per line.

    It is reloaded only if its content has changed, which a digest of the content decides: time
    stamps miss an edit within their resolution, and change without an edit. A reload therefore
    reads a changed file twice; if the two readings differ, the file is being written and the reload
    fails.
    """

    __slots__ = ("_expected", "_loaded", "_read", "path")
    is_file = True

    def __init__(self, spec: str, path: str) -> None:
        super().__init__(spec)
        self.path = path
        # Digests of the content that the table has, that was read last, and that is expected.
        self._loaded: int | None = None
        self._read: int | None = None
        self._expected: int | None = None

    @property
    def size(self) -> int:
        try:
            return os.stat(self.path).st_size  # noqa: PTH116  # pathlib costs start-up
        except (OSError, ValueError):
            return 0  # reading it will report the error

    def changed(self) -> Generator[None, None, bool]:
        left, self._expected = STEP, None
        for piece in self._pieces():
            left -= len(piece) // _HASHED
            if left <= 0:
                left = STEP
                yield
        self._expected = self._read
        return self._read != self._loaded

    def loaded(self) -> None:
        self._loaded = self._read

    def _entries(self) -> Iterator[tuple[int, int, str | None]]:
        number = 0
        entries = comments = False
        for lines in self._lines():
            for line in lines.split("\n"):
                number += 1
                if len(line) > LINE_MAX:
                    raise self._too_long(number)
                text = _uncommented(line)
                if text:
                    if not text.isprintable() and _has_controls(text):
                        raise _invalid(self._place(number), text, ValueError("control character"))
                    entries = True
                    yield number, len(line), text
                else:
                    comments = comments or "#" in line
                    yield number, len(line), None
        if not (entries or comments):
            raise ConfigError(f"{self.path}: {_EMPTY}")

    def _place(self, number: int) -> str:
        return f"{self.path}:{number}"

    def _too_long(self, number: int) -> ConfigError:
        return ConfigError(f"{self._place(number)}: a line longer than {LINE_MAX} characters")

    def _lines(self) -> Iterator[str]:
        """Yield the text in pieces of whole lines."""
        rest = b""
        number = 1
        for at, piece in enumerate(self._pieces()):
            if not at:
                piece = piece.removeprefix(MARK)  # noqa: PLW2901  # the mark is ignored
            lines, newline, tail = (rest + piece).rpartition(b"\n")
            if newline:
                number += lines.count(b"\n") + 1
                yield lines.decode("utf-8", "surrogateescape")
            if len(tail) > _UTF8_MAX * LINE_MAX:
                raise self._too_long(number)
            rest = tail
        if rest:
            yield rest.decode("utf-8", "surrogateescape")

    def _pieces(self) -> Iterator[bytes]:
        """Read the file in pieces. Raises ConfigError if that fails or the file changes."""
        digest = size = 0
        try:
            # Buffered, so that every piece but the last is full and the digest is reproducible.
            with open(self.path, "rb", opener=_open) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise ConfigError(f"{self.path}: not a regular file")
                while piece := file.read(_PIECE):
                    # 64 bits, keyed per process, and available without an import.
                    digest = hash((digest, piece))
                    size += len(piece)
                    yield piece
                after = os.fstat(file.fileno())
        except OSError as error:
            raise ConfigError(f"{self.path}: {unreadable(error, self.path)}") from None
        except ValueError as error:  # a NUL in the path
            raise ConfigError(f"{shown(self.path)}: {error}") from None
        if (size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or (
            self._expected not in {None, digest}
        ):
            raise ConfigError(f"{self.path}: changed while it was read")
        self._read = digest


def _open(path: str, flags: int) -> int:
    # Opening a FIFO would otherwise block until there is a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def _uncommented(line: str) -> str:
    """Return a line without its comment and the blanks around it.

    table(5): "Comments can be put anywhere in the file using a hash mark". smtpd itself accepts
    them only at the start of a line. Here they may also follow a blank; within a word a hash mark
    is an ordinary character, since an address or a pattern may contain one.
    """
    line = line.strip(BLANKS)
    if "#" not in line:
        return line
    at = line.find("#")
    while at > 0 and line[at - 1] not in BLANKS:
        at = line.find("#", at + 1)
    return line if at < 0 else line[:at].rstrip(BLANKS)


def _invalid(place: str, text: str, error: ValueError) -> ConfigError:
    reason = str(error)
    if any("\udc80" <= char <= "\udcff" for char in text):
        reason = "not UTF-8"
    # "expected an address, not 'bob'", or "longer than 1023 bytes: 'xxx...'"
    wrong = f"{reason}{', not' if reason.startswith('expected') else ':'} {shown(text)}"
    if place:
        return ConfigError(f"{place}: {wrong}")
    if "," in text:
        wrong += "; write several entries in braces and quotes: '{ a, b }'"
    elif "=" in text and reason.startswith("expected a key"):
        wrong += "; write key = value in braces and quotes: '{ k = v }'"
    return ConfigError(wrong)


#: The escape of a byte that isn't UTF-8.
_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


def shown(text: str) -> str:
    """Return a text quoted for a log line; backslashes, frequent in patterns, aren't doubled."""
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    quote = '"' if "'" in text else "'"
    parts = (_BYTE.sub(r"\\x\1", ascii(part)[1:-1]) for part in text.split("\\"))
    return quote + "\\".join(parts) + quote


def _has_controls(text: str) -> bool:
    return any(("\0" < char < " " and char not in BLANKS) or char == "\x7f" for char in text)


def _checked(text: str) -> str:
    if not text:
        raise ValueError("empty entry")
    if "\0" in text:
        raise ValueError("NUL byte")
    return text


def _pair(line: str) -> tuple[str, str]:
    """Split a line as smtpd does: at a blank or a colon, or after `[...]`.

    Raises ValueError for `key = value` as well, the form of an inline table, which smtpd reads as
    the value `= value`: no use of a mapping has such a value.
    """
    if line[0] == "[":
        end = line.find("]") + 1
    else:
        end = next((i for i, char in enumerate(line) if char in " \t:"), 0)
    value = line[end + 1 :].lstrip(" \t")
    if not end or not value or f"{value} ".startswith(("= ", "=\t")):
        raise ValueError('expected a key and a value, such as "alice 5"')
    return line[:end], value


def parse(spec: str, service: str = "string") -> Source:
    """Return the source that a specification names, without reading it.

    `{ a, b }` and `{ k = v }` are inline tables, `file:PATH` and an absolute path are files, and
    anything else is a table of that single entry. `service` is smtpd's word for the kind of the
    table, for remote sources. Raises ConfigError for an inline table without
    its closing brace, an empty text, and unsupported back-ends of smtpd.
    """
    text = spec.strip(BLANKS)
    if not text:
        raise ConfigError("an empty text is not a table")
    if text[0] == "{":
        if text[-1] != "}":
            split = "" if set(text) & set(BLANKS) else _SPLIT
            raise ConfigError(f"inline table: no closing brace in {shown(text)}{split}")
        return _Inline(text)
    if text[0] == "/":
        return _File(text, text)
    if (
        text[0] == "<"
        and text[-1] == ">"
        and text[1:-1].replace("-", "").replace("_", "").isalnum()
    ):
        raise ConfigError(f"{shown(text)}: tables of smtpd.conf can't be used here; use file:PATH")
    scheme, colon, path = text.partition(":")
    if colon and scheme == "file":
        if not path:
            raise ConfigError("file: needs a path")
        return _File(text, path)
    if colon and scheme in REMOTE:
        from .remote.source import RemoteSource  # start-up time

        return RemoteSource(text, service)
    if colon:
        _refuse_scheme(text, scheme, path)
    return Source(text)


def _refuse_scheme(text: str, scheme: str, path: str) -> None:
    """Raise ConfigError for a type of smtpd's tables, and for a misspelt one before a path."""
    if scheme in _FOREIGN:
        raise ConfigError(f'{shown(text)}: tables of type "{scheme}" are not supported')
    if path[:1] != "/":
        return
    from smtpd_filters.settings.declare import suggest  # start-up time

    if known := suggest(scheme, ("file", *sorted(REMOTE))):
        raise ConfigError(f'{shown(text)}: there are no tables of type "{scheme}"{known}')
