"""The renderer of settings: `--help`, the option list and the synopsis of a manual page (mdoc).

Filters don't import this at start.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from .declare import RESERVED
from .quoting import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .declare import Option, Settings

_WIDTH = 79
_DEFAULT_MAX = 64  # a longer default, such as an inline table, is cut
_WHOLE_MAX = 400  # the same in a manual page, which can break a list
_UNBROKEN = 72  # the longest .Op that groff's mdoc doesn't break


class OptionHelp(NamedTuple):
    """The description of one option."""

    flags: tuple[str, ...]  # empty for an operand
    metavar: str  # empty for a switch
    literal: bool  # the metavar is a choice of words, not a placeholder
    default: str  # as on the command line, maybe cut; empty if there is none to show
    whole: str  # the same for a manual page
    required: bool
    repeats: bool
    help: str  # sentences with their full stops
    key: str  # in TOML


def describe(cls: type[Settings]) -> list[OptionHelp]:
    """Describe every option of a class, in the order of declaration."""
    return [_describe(declared) for declared in cls.options.values()]


def _describe(declared: Option) -> OptionHelp:
    text = " ".join(declared.help.split())
    default = _default(declared)
    return OptionHelp(
        flags=declared.flags,
        metavar=declared.metavar,
        literal=declared.kind.literal and declared.metavar == declared.kind.metavar,
        default=_cut(default),
        whole=default if _can_be_broken(default) else _cut(default),
        required=declared.required,
        repeats=declared.kind.repeats,
        help=text if text.endswith((".", "!", "?")) else f"{text}.",
        key=declared.key,
    )


def _default(declared: Option) -> str:
    value = declared.default
    if declared.required or declared.secret or value is None or value is False or value in ("", ()):
        return ""
    words = declared.kind.words(value)
    several = " ".join(f"{declared.shown} {word}" for word in words)
    return printable(several if len(words) > 1 else declared.kind.show(value))


def _fits(text: str) -> bool:
    return len(text) <= _DEFAULT_MAX


def _can_be_broken(text: str) -> bool:
    """Return whether a text has places for line ends: behind blanks and colons."""
    return len(text) <= _WHOLE_MAX and all(map(_fits, text.replace(":", " ").split()))


def _cut(text: str) -> str:
    return text if _fits(text) else f"{text[: _DEFAULT_MAX - 3]}..."


def _remarks(described: OptionHelp) -> list[str]:
    remarks = []
    if described.required and described.flags:
        remarks.append("Required.")
    if described.repeats and described.flags:
        remarks.append("May be given several times.")
    if not described.metavar and described.default:
        remarks.append(f"Turned off by {described.flags[-1]}=false.")
    return remarks


_RESERVED = [
    OptionHelp((flag,), "", False, "", "", False, False, text, "")  # noqa: FBT003  # by position, as all
    for flag, text in zip(
        RESERVED, ("Print this text and exit.", "Print the version and exit."), strict=True
    )
]


def help_text(
    own: type[Settings],
    common: type[Settings],
    *,
    prog: str,
    description: str = "",
) -> str:
    """Return the text of `--help`: the filter's own options, then those of every filter."""
    required = [d for cls in (own, common) for d in describe(cls) if d.required]
    usage = " ".join([prog, *(f"{d.flags[-1]} {d.metavar}" for d in required), "[option ...]"])
    parts = [f"usage: {usage}"]
    if description:
        parts.append(textwrap.fill(" ".join(description.split()), _WIDTH))
    if own.options:
        parts.append("Options:\n" + "\n".join(map(_help_entry, describe(own))))
    shared = [*describe(common), *_RESERVED]
    parts.append("Options of every filter:\n" + "\n".join(map(_help_entry, shared)))
    return "\n\n".join(parts) + "\n"


def command_text(
    own: type[Settings], *, prog: str, description: str, behind: str = "", ending: str = ""
) -> str:
    """Return the text of `--help` of a command typed by hand.

    `behind` is the placeholder of what may follow "--", `ending` the last paragraph.
    """
    described = describe(own)
    operands = [each for each in described if not each.flags]
    options = [each for each in described if each.flags]
    words = [prog, "[option ...]", *map(_operand, operands)]
    words += [f"{d.flags[-1]} {d.metavar}" for d in options if d.required]
    usage = " ".join([*words, f"[-- {behind}]"] if behind else words)
    parts = [
        textwrap.fill(f"usage: {usage}", _WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False),
        textwrap.fill(" ".join(description.split()), _WIDTH),
    ]
    if operands:
        parts.append("Operands:\n" + "\n".join(map(_help_entry, operands)))
    parts.append("Options:\n" + "\n".join(map(_help_entry, [*options, *_RESERVED])))
    if ending:
        parts.append(textwrap.fill(" ".join(ending.split()), _WIDTH))
    return "\n\n".join(parts) + "\n"


def _operand(described: OptionHelp) -> str:
    shown = f"{described.metavar} ..." if described.repeats else described.metavar
    return shown if described.required else f"[{shown}]"


def _help_entry(described: OptionHelp) -> str:
    remarks = _remarks(described)
    if described.default:
        remarks.append(f"Default: {described.default}.")
    signature = f"{', '.join(described.flags)} {described.metavar}".strip()
    return f"  {signature}\n{_indented([described.help, *remarks], 8)}"


def _indented(sentences: list[str], columns: int) -> str:
    return textwrap.fill(
        " ".join(sentences),
        _WIDTH,
        initial_indent=" " * columns,
        subsequent_indent=" " * columns,
        break_on_hyphens=False,
        break_long_words=False,
    )


def mdoc_options(cls: type[Settings]) -> str:
    r"""Render the options as the list of a manual page, in mdoc(7).

    A flag is an `Fl`, a placeholder an `Ar`, a choice of words a `Cm`; a dash to be typed is `\-`,
    so that it can be copied from any rendering.
    """
    return _mdoc_list(each for each in describe(cls) if each.flags)


def mdoc_synopsis(*classes: type[Settings]) -> str:
    """Render the flags of some classes for a synopsis: required flags first, operands last."""
    described = [each for cls in classes for each in describe(cls)]
    described.sort(key=lambda each: (not each.flags, bool(each.flags) and not each.required))
    lines = []
    for each in described:
        if not each.flags:
            words = f"{_mdoc_value(each)} ..." if each.repeats else _mdoc_value(each)
            lines.append(f".{words}" if each.required else f".Op {words}")
            continue
        flag = _mdoc_flag(each.flags[-1], each)
        if each.required:
            lines.append(f".{flag}")
        elif len(flag) <= _UNBROKEN:
            lines.append(f".Op {flag}")
        else:
            lines += [".Oo", f".{flag}", ".Oc"]
    return "\n".join([*lines, ""])


def _mdoc_list(options: Iterable[OptionHelp]) -> str:
    lines = [".Bl -tag -width Ds"]
    for described in options:
        lines.append(".It " + " , ".join(_mdoc_flag(flag, described) for flag in described.flags))
        lines += _mdoc_text(" ".join([described.help, *_remarks(described)]))
        if described.whole:
            default = _mdoc_word(described.whole)
            if described.default.startswith("--"):
                default = default.replace("-", "\\-")
            if not _fits(described.whole):
                default = default.replace(":", ":\\:")  # where it may be broken
            lines += ["The default is", f".Ql {default} ."]
    return "\n".join([*lines, ".El", ""])


def _mdoc_flag(flag: str, described: OptionHelp) -> str:
    name = "Fl " + flag[1:].replace("-", "\\-")
    return f"{name} {_mdoc_value(described)}" if described.metavar else name


def _mdoc_value(described: OptionHelp) -> str:
    if described.literal:
        return f"Cm {' | '.join(map(_mdoc_word, described.metavar.split('|')))}"
    return f"Ar {_mdoc_word(described.metavar)}"


def _mdoc_word(text: str) -> str:
    """Escape text as one argument of a macro, which must not be a macro or punctuation itself."""
    escaped = text.replace("\\", "\\e").replace('"', "\\(dq")
    if len(text) <= 3 and not text.isdigit():  # macros have two letters or three
        escaped = f"\\&{escaped}"
    if text.endswith(":"):  # mandoc would want a blank before it
        escaped = f"{escaped}\\&"
    return f'"{escaped}"' if " " in text else escaped


def _mdoc_text(text: str) -> list[str]:
    """Break text into lines, with a new one after each sentence; no line is a roff request."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        escaped = word.replace("\\", "\\e")
        if escaped.startswith("-"):
            escaped = escaped.replace("-", "\\-")
        if line and len(line) + 1 + len(escaped) > _WIDTH:
            lines.append(line)
            line = ""
        if not line and escaped.startswith((".", "'")):
            escaped = f"\\&{escaped}"
        line = f"{line} {escaped}" if line else escaped
        if word.rstrip("\"')]").endswith((".", "!", "?")):
            lines.append(line)
            line = ""
    return [*lines, line] if line else lines
