"""Where a table's entries come from: an inline list, a file, or a single entry.

The law:

1. Reading is separate from meaning: a source yields texts with their places, a table makes
   entries of them, and whatever is wrong is reported as `PATH:LINE: reason` or
   `inline table: entry N: reason`.
2. A source is read whole or not at all, so that a table can be replaced in one assignment.
3. Nothing that a path may name can hang a filter: only regular files are read.
4. A file without an entry and without a comment is not taken for a table: it was truncated, or
   is about to be written.
5. Reading is cut in steps, by an iterator of None: between two of them at most `STEP` of work is
   done, and one line more; a line has at most `LINE_MAX` characters.
"""

from __future__ import annotations

import os
import stat

from smtpd_filters.errors import ConfigError, os_reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

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
_SPLIT = " (put quotes around the braces, or the shell splits what is in them)"

#: The work of a step: 65,536 units, of which an entry of plain text takes one a byte. About 1,000
#: lines, which take a few ms.
STEP = 1 << 16
#: What a line takes beside its bytes.
LINE = 50
#: Characters of a line, which is parsed in one step: a user with a thousand addresses has room.
LINE_MAX = 1 << 15
_PIECE = 1 << 16
#: U+FEFF, which editors put in front: a byte order mark.
MARK = b"\xef\xbb\xbf"
_UTF8_MAX = 4  # bytes of a character
# Bytes that are hashed for a unit of work.
_HASHED = 16
_EMPTY = "no entries; if it is meant to be empty, say so in a comment, such as # empty"


class Source:
    """A table as it was asked for; `spec` is that text.

    `texts()` and `pairs()` read it anew, for a list and for a mapping, and hand each entry to the
    function they are given, in steps. What that returns is added to the work of the step. A
    ValueError from there becomes a ConfigError that names the place.
    """

    __slots__ = ("spec",)
    #: Whether there is a file, which may change.
    is_file = False
    #: Its path.
    path = ""

    def __init__(self, spec: str) -> None:
        self.spec = spec

    @property
    def size(self) -> int:
        """How many bytes there are to be read; 0 if they are few, or it isn't known."""
        return 0

    def texts(self, add: Callable[[str], int]) -> Iterator[None]:
        """Read a list, in steps.

        Raises ConfigError for a source that can't be read, or an entry that `add` refuses.
        """
        return self._each(lambda text: add(_checked(text)))

    def pairs(self, add: Callable[[str, str], int]) -> Iterator[None]:
        """Read a mapping, in steps; raises ConfigError as `texts` does."""
        return self._each(lambda text: add(*_pair(_checked(text))))

    def _each(self, add: Callable[[str], int]) -> Iterator[None]:
        left = STEP
        for number, length, text in self._entries():
            left -= LINE + length
            if text is not None:
                try:
                    left -= add(text)
                except ValueError as error:
                    raise _wrong(self._place(number), text, error) from None
            if left <= 0:
                left = STEP
                yield

    def changed(self) -> Generator[None, None, bool]:
        """Look, in steps, whether the entries differ from what was loaded last.

        Raises ConfigError for a file that can't be read.
        """
        yield from ()
        return False

    def loaded(self) -> None:
        """Take note that what was read last is what the table has now."""

    def _entries(self) -> Iterator[tuple[int, int, str | None]]:
        """Give each line: its number, its length, and its entry or None."""
        yield 1, 0, self.spec

    def _place(self, number: int) -> str:  # noqa: ARG002  # there is one
        return ""


class Given(Source):
    """Entries that a program brings along, such as built-in patterns."""

    __slots__ = ("_given",)

    def __init__(self, entries: Sequence[str], spec: str) -> None:
        super().__init__(spec)
        self._given = entries

    def _entries(self) -> Iterator[tuple[int, int, str | None]]:
        for number, text in enumerate(self._given, 1):
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
                    raise ValueError("expected key = value")  # noqa: TRY301  # has its place here
                add(_checked(key), _checked(value))
            except ValueError as error:
                raise _wrong(self._place(number), key, error) from None
        yield from ()

    def _entries(self) -> Iterator[tuple[int, int, str | None]]:
        for number, (text, _) in enumerate(self._words(), 1):
            yield number, 0, text

    def _place(self, number: int) -> str:
        return f"inline table: entry {number}"

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
        raise ConfigError(f"inline table: no closing quote in {shown(text[begin:])}")
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
        word = shown(text[begin:at])
        raise ConfigError(f"inline table: an entry with unbalanced braces needs quotes: {word}")
    return text[begin:at], at


class _File(Source):
    """A file with an entry on each line.

    It is reloaded only if its content has changed. That is decided by a digest of the content: the
    time stamps of a file say nothing of an edit within their resolution, and change without one.
    A reload therefore reads a changed file twice, and both must be the same: one that is being
    written meanwhile is not believed.
    """

    __slots__ = ("_expected", "_loaded", "_read", "path")
    is_file = True

    def __init__(self, spec: str, path: str) -> None:
        super().__init__(spec)
        self.path = path
        # Digests: of the content that the table has, that was read last, and that is to be read.
        self._loaded: int | None = None
        self._read: int | None = None
        self._expected: int | None = None

    @property
    def size(self) -> int:
        try:
            return os.stat(self.path).st_size  # noqa: PTH116  # pathlib costs start-up
        except (OSError, ValueError):
            return 0  # to read it says why

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
                        raise _wrong(self._place(number), text, ValueError("control character"))
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
        """Give the text in pieces that end where a line ends."""
        rest = b""
        number = 1
        for at, piece in enumerate(self._pieces()):
            if not at:
                piece = piece.removeprefix(MARK)  # noqa: PLW2901  # as if it weren't there
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
        """Read the file in pieces; ConfigError if that fails, or it changes meanwhile."""
        digest = size = 0
        try:
            # Buffered, so that every piece but the last is full, and the digest always the same.
            with open(self.path, "rb", opener=_open) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise ConfigError(f"{self.path}: not a regular file")
                while piece := file.read(_PIECE):
                    # Keyed in each process, of 64 bits, and there without an import.
                    digest = hash((digest, piece))
                    size += len(piece)
                    yield piece
                after = os.fstat(file.fileno())
        except OSError as error:
            raise ConfigError(f"{self.path}: {os_reason(error)}") from None
        except ValueError as error:  # a NUL in the path
            raise ConfigError(f"{shown(self.path)}: {error}") from None
        if (size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or (
            self._expected not in {None, digest}
        ):
            raise ConfigError(f"{self.path}: changed while it was read")
        self._read = digest


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
    reason: object = error
    if any("\udc80" <= char <= "\udcff" for char in text):
        reason = "not UTF-8"
    if place:
        return ConfigError(f"{place}: {reason} in {shown(text)}")
    several = "; several entries stand in braces and quotes: '{ a, b }'" if "," in text else ""
    return ConfigError(f"{reason} in {shown(text)}{several}")


def shown(text: str) -> str:
    """Make any text fit for a line of a log; a backslash, as patterns have them, stays one."""
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    quote = '"' if "'" in text else "'"
    return quote + "\\".join(ascii(part)[1:-1] for part in text.split("\\")) + quote


def _has_controls(text: str) -> bool:
    return any(("\0" < char < " " and char not in BLANKS) or char == "\x7f" for char in text)


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
        raise ConfigError(f"{shown(text)}: tables of smtpd.conf are not known here; give file:PATH")
    scheme, colon, path = text.partition(":")
    if colon and scheme == "file":
        if not path:
            raise ConfigError('a table given as "file:" needs a path')
        return _File(text, path)
    if colon and scheme in _FOREIGN:
        raise ConfigError(f'{shown(text)}: tables of type "{scheme}" are not supported')
    return Source(text)
