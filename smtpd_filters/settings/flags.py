"""Settings from the command line, as Go's flag package, getopt_long(3) and smtpd.conf authors do.

1. `--flag VALUE`, `--flag=VALUE`, `-goFlag VALUE` and `-goFlag=VALUE` mean the same. A switch
   takes no word after it; `--switch=false` turns it off.
2. Only whole flags are known: no abbreviations, no clusters of letters. Words beside flags are
   errors, except for the operands of a command.
3. The word after a flag is its value even if it begins with a dash, unless it is a flag itself;
   after "=" anything is.
4. An option that is no list has one value: given twice with different values it is an error. In a
   command that is typed the last one counts, as with other tools.
5. What is wrong is a ConfigError of one line that opens with the program's name and the flag.

argparse isn't used: it takes `-junk` for `-junkBelow` whatever `allow_abbrev` says (cpython's
`_get_option_tuples` looks only at "--"), and costs a start 2 to 4 ms.
"""

from __future__ import annotations

import sys

from smtpd_filters.errors import ConfigError

from .declare import (
    RESERVED,
    Settings,
    absent,
    build,
    option,
    spellings,
    suggest,
)
from .kinds import SECONDS, SWITCH, choice, printable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn, TypeVar

    from .declare import Option

    S = TypeVar("S", bound=Settings)
    C = TypeVar("C", bound=Settings)

ON_ERROR = ("proceed", "junk", "tempfail")
_HELP = ("-h", "-help")  # ask for help as in Go, unless an option has that flag
DEADLINE = 30.0  # seconds
# An SMTP client waits 5 minutes for a reply (RFC 5321 section 4.5.3.2), and so does smtpd for one.
MAX_DEADLINE = 300.0


class ProcessSettings(Settings):
    """What a process has once, however many filters run in it."""

    verbose = option(
        SWITCH, default=False, flags=("-v",), help="Log every decision, those to proceed too."
    )
    long_lines = option(
        choice("split", "refuse"),
        default="split",
        help="What to do with a line of a message that is too long for smtpd: split it "
        "(a header field is folded, nothing is lost) or refuse the message.",
    )


class PolicySettings(Settings):
    """What every filter has for itself: the outcome when its policy can't decide."""

    on_error = option(
        choice(*ON_ERROR),
        default="proceed",
        help="What to do when the filter fails or its time is up.",
    )
    deadline = option(
        SECONDS(low=0.001, high=MAX_DEADLINE),
        default=DEADLINE,
        help="How long the filter may take for a decision: 5 minutes at most, for which smtpd and "
        "its clients wait.",
    )
    dry_run = option(
        SWITCH,
        default=False,
        help="Log what would be done with clients and mail, and let all of it pass unchanged.",
    )


class CommonSettings(PolicySettings, ProcessSettings):
    """What every executable has beside its filter's own settings."""


def policy_options(
    on_error_choices: Sequence[str] = ON_ERROR,
    on_error_default: str = "proceed",
    deadline_default: float = DEADLINE,
) -> type[PolicySettings]:
    """Make the `PolicySettings` of one filter, with the outcomes legal for it, and its defaults."""
    declared = PolicySettings.options

    class Policy(PolicySettings):
        on_error = option(
            choice(*on_error_choices),
            default=on_error_default,
            help=declared["on_error"].help,
        )
        deadline = option(
            declared["deadline"].kind,
            default=deadline_default,
            help=declared["deadline"].help,
        )

    return Policy


def common_options(
    on_error_choices: Sequence[str] = ON_ERROR,
    on_error_default: str = "proceed",
    deadline_default: float = DEADLINE,
) -> type[CommonSettings]:
    """Make the `CommonSettings` of an executable of one filter, as `policy_options` does."""
    policy = policy_options(on_error_choices, on_error_default, deadline_default)
    return type("CommonSettings", (policy, CommonSettings), {})


def parse_flags(
    own: type[S],
    argv: Sequence[str],
    *,
    common: type[C],
    prog: str,
    description: str = "",
) -> tuple[S, C]:
    """Read a filter's own settings and the common ones from `argv` (without the program's name).

    `--help` and `--version` print and raise SystemExit(0). Raises ConfigError for an unknown or
    incomplete flag, a bad value, a missing required flag or a stray argument; see `die`. Raises
    TypeError if the two classes want the same flag.
    """
    known = spellings([common.options, own.options], own.__qualname__)
    try:
        values, asked = _read(argv, known)
        for declared in [] if asked else absent(own, values) + absent(common, values):
            raise ConfigError(f"{declared.shown} is required")  # noqa: TRY301 (prog is added below)
    except ConfigError as error:
        raise ConfigError(f"{prog}: {error}") from None
    if asked:
        if asked == "--version":
            text = f"{prog} ({package()})\n"
        else:
            from .manual import help_text

            text = help_text(own, common, prog=prog, description=description)
        sys.stdout.write(text)
        raise SystemExit(0)
    return build(own, values), build(common, values)


def parse_command(own: type[S], argv: Sequence[str], *, prog: str, shown: Callable[[], str]) -> S:
    """Read the flags and operands of a command that is typed; `shown` makes the text of `--help`.

    As `parse_flags`, but of a flag that is given twice the last value counts.
    """
    operands = [declared for declared in own.options.values() if declared.positional]
    known = spellings([own.options], own.__qualname__)
    try:
        values, asked = _read(argv, known, operands, last_counts=True)
        for declared in [] if asked else absent(own, values):
            raise ConfigError(f"{declared.shown} is required")  # noqa: TRY301 (prog is added below)
    except ConfigError as error:
        raise ConfigError(f"{prog}: {error}") from None
    if asked:
        sys.stdout.write(f"{prog} ({package()})\n" if asked == "--version" else shown())
        raise SystemExit(0)
    return build(own, values)


def _read(
    argv: Sequence[str],
    known: Mapping[str, Option],
    operands: Sequence[Option] = (),
    *,
    last_counts: bool = False,
) -> tuple[dict[str, Any], str]:
    """Give values by the names of their options, and the first `RESERVED` flag or ""."""
    values: dict[str, Any] = {}
    free = list(operands)
    given: dict[str, str] = {}
    words = iter(argv)
    before = ""  # the flag whose value has just been read
    for word in words:
        if word in RESERVED:
            return values, word
        flag, equals, text = word.partition("=")
        declared = known.get(flag)
        if declared is None:
            if word in _HELP:
                return values, "--help"
            if not (free and _take(free, word, values)):
                raise _unknown(word, flag, known, before)
            before = ""
            continue
        before = ""
        if not equals:
            text = _following(words, flag, known)
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


def _take(free: list[Option], word: str, values: dict[str, Any]) -> bool:
    """Read the next operand; False if the word looks like a flag, ConfigError if it is invalid."""
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


def _following(words: Iterator[str], flag: str, known: Mapping[str, Option]) -> str:
    """Take the value that isn't joined to its flag; that of a switch is implied."""
    metavar = known[flag].kind.metavar
    if not metavar:
        return "true"
    text = next(words, None)
    if text is None or text.partition("=")[0] in (*known, *RESERVED):
        raise ConfigError(f"{flag} needs a value ({metavar})")
    return text


def _unknown(word: str, flag: str, known: Mapping[str, Option], before: str) -> ConfigError:
    if not word.startswith("-") or word in ("-", "--"):
        hint = f" (put quotes around the value of {before} if this is part of it)" if before else ""
        return ConfigError(f"unexpected argument {quote(word)}{hint}")
    near = suggest(flag, (*known, *RESERVED))
    return ConfigError(f"unknown flag {printable(flag)}{near}")


def package() -> str:
    """The distribution's name and version."""
    from importlib.metadata import PackageNotFoundError, version  # not at every start

    try:
        return f"smtpd-filters {version('smtpd-filters')}"
    except PackageNotFoundError:  # run from a checkout
        return "smtpd-filters, not installed"


def die(error: ConfigError | str, prog: str, status: int = 2) -> NoReturn:
    """Write the error to stderr as one line that opens with the program's name, and exit."""
    line = printable(str(error))
    if not line.startswith(f"{prog}: "):
        line = f"{prog}: {line}"
    if sys.stderr is not None:  # closed
        sys.stderr.write(f"{line}\n")
    raise SystemExit(status)
