"""Programs that mark clients and programs that refuse them, by the words of their commands.

smtpd ends a phase at `junk`: the programs behind the one that answers it are not asked at that
phase, and can't refuse. A chain file is not considered; a filter-chain may refuse.
"""

from __future__ import annotations

from .commands import file_name, flags_in, words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_DNSBL, _MAILFROM, _RCPT = "filter-dnsbl", "filter-mailfrom", "filter-rcpt"
_SENDERSCORE = "filter-senderscore"
#: Programs with `--action`, which is junk unless it is given.
_MARK_BY_DEFAULT = frozenset({"filter-dyndns", "filter-fcrdns"})
#: Programs that refuse, whatever their flags are.
_REFUSE = frozenset(
    {
        "filter-chain", "filter-greylist", "filter-helo", "filter-limit", "filter-milter",
        "filter-policy", "filter-rcpt", "filter-sender", "filter-tls",
    }
)  # fmt: skip
#: Programs that answer `junk`; all others mark messages in the header, if at all.
_MARK = _MARK_BY_DEFAULT | {
    _DNSBL, _MAILFROM, _RCPT, _SENDERSCORE, "filter-helo", "filter-limit", "filter-sender",
    "filter-tls",
}  # fmt: skip
_MARKING = frozenset({"--junk-at", "--junk-below", "-junkBelow", "--mark", "-m"})
_BLOCKING = frozenset({"--block-below", "-blockBelow"})
_REFUSING = frozenset({"--reject-at", "--disconnect-at"})
#: The phases at which programs of this package answer `junk`. A mark of mail-from is made later.
_PHASES = ("connect", "helo", "ehlo", "rcpt-to", "data")


def phases_ended(command: str, phases: Collection[str]) -> list[str]:
    """Return the phases of those registered at which a command's program may answer `junk`."""
    name, flags = _read(command)
    if name not in _MARK or "--dry-run" in flags or not _marks(name, flags):
        return []
    marking = ("connect",) if name == _SENDERSCORE else _PHASES
    return [each for each in marking if each in phases]


def refuses(command: str) -> bool:
    """Return whether the program of a command may refuse clients or mail before the message."""
    name, flags = _read(command)
    if name in _MARK_BY_DEFAULT or name == _MAILFROM:
        return _action(name, flags) != "junk"
    if name == _SENDERSCORE:
        return not _BLOCKING.isdisjoint(flags)
    if name == _DNSBL:
        return _MARKING.isdisjoint(flags) or not _REFUSING.isdisjoint(flags)
    return name in _REFUSE


def _marks(name: str, flags: dict[str, list[str]]) -> bool:
    if name in _MARK_BY_DEFAULT:
        return _action(name, flags) == "junk"
    if not _MARKING.isdisjoint(flags):
        return True
    if name == _RCPT and "--traps" in flags and "--trapped" not in flags:
        return True
    return any(
        value == "junk" or "action=junk" in value.split()
        for flag, values in flags.items()
        if flag != "--on-error"
        for value in values
    )


def _action(name: str, flags: dict[str, list[str]]) -> str:
    default = "junk" if name in _MARK_BY_DEFAULT else "reject"
    return flags.get("--action", [default])[-1]


def _read(command: str) -> tuple[str, dict[str, list[str]]]:
    """Return the name of a command's program, also behind a supervisor, and the values of flags."""
    words = words_of(command)
    name = next((each for each in map(file_name, words) if each in _MARK | _REFUSE), "")
    flags: dict[str, list[str]] = {}
    for flag, value in flags_in(words):
        flags.setdefault(flag, []).append(value)
    return name, flags
