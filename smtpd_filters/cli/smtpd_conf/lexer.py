"""The lexer of smtpd.conf(5), equivalent to yylex() of smtpd's parse.y."""

from __future__ import annotations

import os
from typing import NamedTuple

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings.declare import nearest
from smtpd_filters.settings.files import open_file
from smtpd_filters.settings.quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: parse.y, keywords[]: words that aren't names unless in quotes.
_KEYWORDS = """
    action admd alias any auth auth-optional backup bounce bypass ca cert chain chroot
    ciphers commit compression connect data data-line dhe disconnect domain ehlo
    encryption expand-only fcrdns filter for forward-only from group helo helo-src host
    hostname hostnames include inet4 inet6 junk key limit listen lmtp local mail-from
    maildir mask-src masquerade match max-deferred max-message-size mbox mda mta mx
    no-dsn no-verify noop on phase pki port proc proc-exec protocols proxy-v2 queue quit
    rcpt-to rdns received-auth recipient regex reject relay report rewrite rset
    scheduler senders smtp smtp-in smtp-out smtps socket src srs sub-addr-delim table
    tag tagged tls tls-require ttl user userbase verify virtual warn-interval wrapper
"""
KEYWORDS = frozenset(_KEYWORDS.split())
#: The depth of nested includes; smtpd's own limit is its number of descriptors.
DEEPEST = 40
#: The number of includes: files that include each other several times would take time without end.
MOST = 500
#: Bytes of a file.
LARGEST = 16 << 20
_NO_STRING = frozenset("(){}<>!=#,")
# The kinds of tokens.
WORD, STRING, NUMBER, MARK = "word", "string", "number", "mark"


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Token(NamedTuple):
    """A keyword (WORD), a name or text (STRING), a NUMBER, or a MARK such as a brace."""

    kind: str
    text: str
    place: Place


class StatementError(Exception):
    """An invalid statement; it is skipped."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place = place


class _File:
    """A file that is being read, with the characters that were put back."""

    __slots__ = ("back", "data", "line", "name", "position")

    def __init__(self, name: str) -> None:
        try:
            with open_file(name) as file:
                data = file.read(LARGEST + 1)
        except OSError as error:
            link = os.path.islink(name) and not os.path.exists(name)  # noqa: PTH110, PTH114  # as named
            reason = f"dangling symbolic link to {os.readlink(name)}: " if link else ""  # noqa: PTH115  # as named
            raise ConfigError(f"{name}: {reason}{os_reason(error)}") from None
        except ValueError as error:  # a NUL in the name
            raise ConfigError(f"{name}: {error}") from None
        if len(data) > LARGEST:
            raise ConfigError(f"{name}: larger than {LARGEST >> 20} MiB")
        self.name = name
        self.data = data.decode("utf-8", "surrogateescape")
        # parse.y adds a line end to a last line without one.
        self.data += "\n"
        self.position = 0
        self.line = 1
        self.back: list[str] = []

    def next(self) -> str:
        """Return the next character; "" at the end."""
        if self.back:
            return self.back.pop()
        if self.position == len(self.data):
            return ""
        self.position += 1
        return self.data[self.position - 1]


#: Enclose the value of a macro that is put back, in which no macro is expanded; parse.y's
#: START_EXPAND and DONE_EXPAND, which it drops from a file as well.
_BEGIN, _END = "\x01", "\x02"


class Lexer:
    """The lexer, as yylex() of parse.y."""

    def __init__(self, path: str, macros: Mapping[str, str]) -> None:
        self.files = [_File(path)]
        #: The macros of the command line, which the file can't change.
        self.fixed = dict(macros)
        self.macros = dict(macros)
        #: Lines that are part of the comment on the line before.
        self.swallowed: list[Place] = []
        self._expanding = False
        self._included = 0

    @property
    def file(self) -> _File:
        """The current file."""
        return self.files[-1]

    def place(self) -> Place:
        """Return the current line."""
        return Place(self.file.name, self.file.line)

    def include(self, name: str) -> None:
        """Read this file next. Raises ConfigError; of too many files only once."""
        if self._included > MOST:
            return
        if any(name == file.name for file in self.files):
            raise ConfigError(f"{name}: includes itself")
        if len(self.files) >= DEEPEST:
            del self.files[1:]  # one error, not one for each file
            raise ConfigError(f"{name}: includes are nested more than {DEEPEST} deep")
        if self._included == MOST:
            self._included += 1
            del self.files[1:]
            raise ConfigError(f"{name}: more than {MOST} includes")
        self._included += 1
        self.files.append(_File(name))

    def _raw(self) -> str:
        while True:
            char = self.file.next()
            if char == _BEGIN:
                self._expanding = True
            elif char == _END:
                self._expanding = False
            else:
                return char

    def _char(self) -> str:
        """Return the next character, as lgetc(0).

        A backslash before a line end joins two lines; before another character it is dropped.
        """
        while (char := self._raw()) == "\\":
            char = self._raw()
            if char != "\n":
                break
            self.file.line += 1
        while not char and len(self.files) > 1:
            self.files.pop()
            char = self._raw()
        return char

    def _put_back(self, char: str) -> None:
        if char:
            self.file.back.append(char)

    def skip_line(self) -> None:
        """Skip the rest of the line, as findeol()."""
        while (char := self._char()) not in ("", "\n"):
            pass
        if char:
            self.file.line += 1

    def _begin(self) -> tuple[str, Place]:
        """Return the first character of the next token, after blanks, comments and macros."""
        while True:
            while (char := self._char()) in (" ", "\t"):
                pass
            place = self.place()
            if char == "#":
                char = self._comment()
            if char != "$" or self._expanding:
                return char, place
            self._expand(place)

    def _comment(self) -> str:
        """Skip a comment; return the character behind it. A backslash at its end continues it."""
        begun = self.file.line
        while (char := self._char()) not in ("", "\n"):
            if self.file.line == begun or char.isspace():
                continue
            begun = self.file.line
            if char != "#":
                self.swallowed.append(self.place())
        return char

    def token(self) -> Token | None:
        """Return the next token, with a line end as a MARK; None at the end of all files."""
        char, place = self._begin()
        if char in ("'", '"'):
            return Token(STRING, self._quoted(char, place), place)
        if (char == "-" or _is_digit(char)) and (number := self._number(char)):
            return Token(NUMBER, number, place)
        if char in {":", "_"} or _is_alnum(char):
            text = char
            while (char := self._char()) and _is_of_string(char):
                text += char
            self._put_back(char)
            return Token(WORD if text in KEYWORDS else STRING, text, place)
        if char == "\n":
            self.file.line += 1
        return Token(MARK, char, place) if char else None

    def _expand(self, place: Place) -> None:
        name = ""
        while _is_alnum(char := self._char()) or char == "_":
            name += char
        self._put_back(char)
        value = self.macros.get(name)
        if value is None:
            raise StatementError(
                place, f"macro {quote(name)} not defined{nearest(name, self.macros)}"
            )
        self.file.back += (_END, *reversed(value), _BEGIN)

    def _quoted(self, mark: str, place: Place) -> str:
        text: list[str] = []
        while char := self._raw():
            if char == mark:
                return "".join(text)
            if char == "\\":
                following = self._raw()
                if following == "\n":
                    self.file.line += 1
                elif following in (mark, " ", "\t"):
                    text.append(following)
                else:
                    text.append(char)
                    self._put_back(following)
            elif char == "\n":
                self.file.line += 1
            else:
                text.append(char)
        raise StatementError(place, f"the string that starts here has no closing {mark}")

    def _number(self, char: str) -> str:
        """Return the digits of a number; else put all but the first back and return ""."""
        text = char
        while _is_digit(char := self._char()):
            text += char
        self._put_back(char)
        if text != "-" and (not char or char.isspace() or char in "),/}="):
            return text
        for each in reversed(text[1:]):
            self._put_back(each)
        return ""


def _is_alnum(char: str) -> bool:
    return char.isascii() and char.isalnum()


def _is_digit(char: str) -> bool:
    return char.isascii() and char.isdigit()


def _is_of_string(char: str) -> bool:
    return char.isascii() and char.isprintable() and char != " " and char not in _NO_STRING
