"""The command line's parser: settings from flags, as in Go's flag package and getopt_long(3).

`--flag VALUE`, `--flag=VALUE`, `-goFlag VALUE` and `-goFlag=VALUE` are equivalent. A switch takes
no value from the next word; `--switch=false` turns it off.

argparse isn't used: it parses `-junk` as `-junkBelow` even with `allow_abbrev=False` (cpython's
`_get_option_tuples` handles only "--"), and adds 2 to 4 ms to a start.

Invariants
----------
*Whole flags*: there are no abbreviations, and no values in the word of a letter. Letters may share
a word if none but the last takes a value, as in `-tz` and `-tzd DOMAIN`. Other words are errors,
except for the operands of a command.
*Dashes in values*: the word after a flag is its value even if it begins with a dash, unless it is
a flag itself; after "=" any text is.
*One value*: an option that isn't a list has one value; two different ones are an error. In a
command typed by hand the last one counts, as in other tools.
*One line*: an error is a ConfigError of one line that starts with the program's name and the flag.
"""

from __future__ import annotations

import os
import sys

from smtpd_filters.errors import ConfigError

from .declare import RESERVED, Settings, absent, build, listed, spellings, suggest
from .quoting import printable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn, TypeVar

    from .declare import Option

    S = TypeVar("S", bound=Settings)
    C = TypeVar("C", bound=Settings)

_HELP = ("-h", "-help")  # Go's flags for help, unless an option has that flag
#: Set in the environment by `smtpd-filters check`. Then a program is run without supervision, so
#: that its failure at the start is seen, and logs a line with its `TRAITS`, if it has any; and with
#: `ONLINE` a filter asks its services and ends.
CHECKING = "SMTPD_FILTERS_CHECK"
ONLINE = "online"
#: The start of that line, which has the names of attributes that a filter of the process has set:
#: `signs`, `edits_signed`.
TRAITS = "smtpd-filters check: "
#: The variable that filter-supervise sets for its programs.
UNDER_SUPERVISOR = "SMTPD_FILTERS_SUPERVISED"


def parse_flags(
    own: type[S],
    argv: Sequence[str],
    *,
    common: type[C],
    prog: str,
    description: str = "",
) -> tuple[S, C]:
    """Parse a filter's own settings and the common ones from `argv` (without the program's name).

    `--help` and `--version` print and raise SystemExit(0). Raises ConfigError for an unknown or
    incomplete flag, an invalid value, a missing required flag or an unexpected argument; see `die`.
    Raises TypeError if the two classes share a flag.
    """
    known = spellings([common.options, own.options], own.__qualname__)
    try:
        values, requested = _parse(argv, known)
        for declared in [] if requested else absent(own, values) + absent(common, values):
            raise ConfigError(f"{declared.shown} is required")  # noqa: TRY301  # prog is added below
    except ConfigError as error:
        raise ConfigError(f"{prog}: {error}") from None
    if requested:
        if requested == "--version":
            text = f"{prog} ({package()})\n"
        else:
            from .manual import help_text

            text = help_text(own, common, prog=prog, description=description)
        sys.stdout.write(text)
        raise SystemExit(0)
    return build(own, values), build(common, values)


def _needed(declared: Option) -> str:
    """Return the name of a required setting for the error, with the choices of an operand."""
    kind = declared.kind
    if declared.positional and kind.literal and kind.metavar != declared.shown:
        return f"{declared.shown} ({kind.metavar})"
    return declared.shown


def parse_command(
    own: type[S], argv: Sequence[str], *, prog: str, shown: Callable[[], str], stray: str = ""
) -> S:
    """Parse the flags and operands of a command typed by hand; `shown` returns its `--help`.

    As `parse_flags`, except that the last value of a repeated flag counts, and that the error about
    an unexpected argument has the hint `stray`.
    """
    operands = [declared for declared in own.options.values() if declared.positional]
    known = spellings([own.options], own.__qualname__)
    try:
        values, requested = _parse(argv, known, operands, last_counts=True, stray=stray)
        for declared in [] if requested else absent(own, values):
            raise ConfigError(f"{_needed(declared)} is required")  # noqa: TRY301  # prog below
    except ConfigError as error:
        raise ConfigError(f"{prog}: {error}") from None
    if requested:
        sys.stdout.write(f"{prog} ({package()})\n" if requested == "--version" else shown())
        raise SystemExit(0)
    return build(own, values)


def _parse(
    argv: Sequence[str],
    known: Mapping[str, Option],
    operands: Sequence[Option] = (),
    *,
    last_counts: bool = False,
    stray: str = "",
) -> tuple[dict[str, Any], str]:
    """Return the values by the names of their options, and the first `RESERVED` flag or ""."""
    values: dict[str, Any] = {}
    free = list(operands)
    given: dict[str, str] = {}
    words = list(reversed(argv))
    before = ""  # the flag whose value was the previous word
    while words:
        word = words.pop()
        if word in RESERVED:
            return values, word
        flag, equals, text = word.partition("=")
        declared = known.get(flag)
        if declared is None:
            if word in _HELP:
                return values, "--help"
            if not (_ungroup(word, words, known) or (free and _parse_operand(free, word, values))):
                raise _unknown(word, flag, known, before, stray)
            before = ""
            continue
        before = ""
        if not equals:
            text = _value_of(words, flag, known)
            before = flag if declared.kind.metavar else ""
        try:
            value = declared.kind.parse(text)
        except (ValueError, ConfigError) as error:
            raise ConfigError(f"{flag}: {declared.reason(error)}") from None
        name = declared.name
        if declared.kind.repeats:
            values[name] = values[name] + value if name in values else value
            continue
        if given.setdefault(name, text) != text and not last_counts:
            both = "" if declared.secret else f", {quote(given[name])} and {quote(text)}"
            raise ConfigError(f"{flag}: given twice with different values{both}; it takes one")
        values[name] = value
    return values, ""


def _parse_operand(free: list[Option], word: str, values: dict[str, Any]) -> bool:
    """Parse the next operand; return False for a flag, raise ConfigError for an invalid value."""
    operand = free[0]
    if word.startswith("-") and word != "-":
        return False
    try:
        value = operand.kind.parse(word)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{operand.shown}: {operand.reason(error)}") from None
    if operand.kind.repeats:
        values[operand.name] = values.get(operand.name, ()) + value
    else:
        values[free.pop(0).name] = value
    return True


def _ungroup(word: str, words: list[str], known: Mapping[str, Option]) -> bool:
    """Put the flags of one letter that share a word back onto `words`, as getopt(3) reads them.

    Returns False if the word is no such group.
    """
    letters = [f"-{letter}" for letter in word[1:]]
    if not word.startswith("-") or len(letters) < 2 or not all(each in known for each in letters):
        return False
    if any(known[each].kind.metavar for each in letters[:-1]):
        return False
    words.extend(reversed(letters))
    return True


def _value_of(words: list[str], flag: str, known: Mapping[str, Option]) -> str:
    """Return the value of a flag without "=": the next word, or "true" for a switch.

    The next word is the last one of `words`.
    """
    metavar = known[flag].kind.metavar
    if not metavar:
        return "true"
    text = words.pop() if words else None
    if text is None or text.partition("=")[0] in (*known, *RESERVED):
        raise ConfigError(f"{flag} needs a value ({metavar})")
    return text


def _unknown(
    word: str, flag: str, known: Mapping[str, Option], before: str, stray: str
) -> ConfigError:
    if not word.startswith("-") or word in ("-", "--"):
        hint = f" (put quotes around the value of {before} if this is part of it)" if before else ""
        hint = hint or (f" ({stray})" if stray else "")
        return ConfigError(f"unexpected argument {quote(word)}{hint}")
    near = suggest(flag, (*known, *RESERVED))
    letters = [f"-{letter}" for letter in flag[1:]]
    if len(letters) > 1 and all(each in known for each in letters):  # a value within the group
        near = f": write {' '.join(letters)}"
    near = near or listed(dict.fromkeys([o.shown for o in known.values() if o.flags] + [*RESERVED]))
    return ConfigError(f"unknown flag {printable(flag)}{near}")


def is_check() -> bool:
    """Return whether this process only checks its settings, and so must not write to any file."""
    return bool(os.environ.get(CHECKING))


class Checking:
    """A context in which `is_check` returns true."""

    def __enter__(self) -> None:
        self._before = os.environ.get(CHECKING)
        os.environ.setdefault(CHECKING, "1")

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ[CHECKING]


def package() -> str:
    """Return the distribution's name and version."""
    from importlib.metadata import PackageNotFoundError, version  # start-up time

    try:
        return f"smtpd-filters {version('smtpd-filters')}"
    except PackageNotFoundError:  # run from a checkout
        return "smtpd-filters, not installed"


def start_status(error: ConfigError) -> int:
    """Return the exit status of a filter that can't start because of this error."""
    return error.status if os.environ.get(UNDER_SUPERVISOR) else 2


def die(error: ConfigError | str, prog: str, status: int = 2) -> NoReturn:
    """Write the error to stderr as one line that starts with the program's name, and exit."""
    line = printable(str(error))
    if not line.startswith(f"{prog}: "):
        line = f"{prog}: {line}"
    if sys.stderr is not None:  # closed
        try:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except OSError:  # a full disk
            pass
    raise SystemExit(status)
