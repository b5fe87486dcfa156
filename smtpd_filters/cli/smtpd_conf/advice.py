"""Warnings about a smtpd.conf(5) that smtpd accepts: declarations that are probably mistakes."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from smtpd_filters.settings.quoting import quote

from .commands import flags_of, name_in_journal, programs_named
from .listener_needs import for_users, required_tls
from .marks import phases_ended, refuses
from .model import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from .model import Configuration, Listener, Program


class _Order(NamedTuple):
    """A program that must not be ahead of another one on a listener, and why."""

    first: str
    second: str
    why: str


_SIGNS = "changes messages after they were signed, so the signature fails; put it ahead"
_NOT_COVERED = "edits what the signature should cover; put it ahead"
#: Programs that judge addresses of the envelope. smtpd ends a phase at `rewrite`.
_OF_ADDRESSES = (
    "filter-dnsbl", "filter-greylist", "filter-limit", "filter-mailfrom", "filter-policy",
    "filter-rcpt", "filter-sender", "filter-tls",
)  # fmt: skip
_NOT_ASKED = (
    "is not asked about addresses that are replaced there; put it ahead, or both into filter-chain"
)
#: Programs that must not be behind filter-rspamd, and why.
BEHIND_RSPAMD = {
    "filter-rewrite": "changes messages that Rspamd may have signed; put it ahead",
    "filter-auth": "writes Authentication-Results that Rspamd could use if it were ahead",
}
TWO_GREYLISTS = "delays the same mail a second time; one of them is enough"
_ORDERS = (
    _Order("filter-greylist", "filter-greylist", TWO_GREYLISTS),
    *(_Order("filter-rewrite", each, _NOT_ASKED) for each in _OF_ADDRESSES),
    _Order("filter-dkimsign", "filter-rewrite", _SIGNS),
    _Order("filter-dkimsign", "filter-content", _SIGNS),
    _Order("filter-dkimsign", "filter-milter", _SIGNS),
    *(_Order("filter-rspamd", each, why) for each, why in BEHIND_RSPAMD.items()),
)
#: The actions of smtpd's own filters after which no other filter is asked at that phase.
_LAST = frozenset({"bypass", "junk", "rewrite"})
_REFUSES = frozenset({"disconnect", "reject"})
#: Programs of other packages for which this package has one of the same name.
OURS = frozenset(
    {
        "filter-auth", "filter-clamav", "filter-dkimsign", "filter-dnsbl", "filter-fcrdns",
        "filter-greylist", "filter-rspamd", "filter-senderscore",
    }
)  # fmt: skip
#: Phases of messages' lines; smtpd sends each line to each filter that has registered for it.
_LINES = "data-line"


def advise(read: Configuration) -> Iterator[Problem]:
    """Yield the warnings about a file that has been read."""
    used = set(read.members(read.used)) | read.used
    yield from _of_users(read, used)
    if not read.errors:  # in a statement that may have named the filter
        yield from _unused(read, used)
        yield from _unfiltered(read)
    yield from _orders(read)
    yield from _without_tls(read)
    yield from _out_of_reach(read)
    yield from _namesakes(read)


def _namesakes(read: Configuration) -> Iterator[Problem]:
    """Yield warnings of filters that have one name in the journal."""
    known: dict[str, str] = {}
    for program in read.programs:
        name = name_in_journal(program.command)
        other = known.setdefault(name, program.name) if name else program.name
        if other != program.name:
            text = (
                f"{program.statement} {quote(program.name)}: has the name {quote(name)} in the "
                f"journal, as {quote(other)} has; distinguish it with --filter-name {program.name}"
            )
            yield Problem(program.place, text, warning=True)


def _out_of_reach(read: Configuration) -> Iterator[Problem]:
    """Yield warnings of programs in a chroot whose journal is probably outside of it."""
    for program in read.programs:
        if program.chroot and "--journal" in flags_of(program.command):
            text = (
                f"{program.statement} {quote(program.name)}: --journal is a path in the chroot "
                f"{program.chroot}; a socket outside of it can't be reached"
            )
            yield Problem(program.place, text, warning=True)


def crowded(
    read: Configuration, phases: Mapping[tuple[str, str], frozenset[str]]
) -> Iterator[Problem]:
    """Yield a warning for each listener on which several programs read the lines of messages.

    `phases` are what programs have registered for, by statement and name.
    """
    for listener in read.listeners:
        named = [
            name
            for name in read.members(listener.filters)
            if _LINES in _registered(read, name, phases)
        ]
        if len(named) > 1:
            yield _warning(
                listener,
                f"{_shown(named)} each read the lines of messages, which smtpd sends from one to "
                "the next; filter-chain runs them in one process",
            )


def unasked(
    read: Configuration, phases: Mapping[tuple[str, str], frozenset[str]]
) -> Iterator[Problem]:
    """Yield a warning for each program that can't refuse clients which one ahead of it marks.

    `phases` are as for `crowded`.
    """
    for listener, name, behind in _pairs(read):
        if not refuses(read.command(behind)):
            continue
        asked = _registered(read, behind, phases)
        ended = [each for each in _ended(read, name, phases) if each in asked]
        if ended:
            yield _warning(
                listener,
                f"filter {quote(behind)}, behind {quote(name)}, is not asked at {ended[0]} about "
                f"what {quote(name)} marks there, and so can't refuse it; put it ahead, or both "
                "into filter-chain",
            )


def behind_signers(
    read: Configuration, traits: Mapping[tuple[str, str], frozenset[str]]
) -> Iterator[Problem]:
    """Yield a warning for each program that edits what one ahead of it has signed.

    `traits` are what programs do, as by `starter.Result`. Those of which `advise` warns by their
    names are left out.
    """
    for listener, name, behind in _pairs(read):
        signs = "signs" in _registered(read, name, traits)
        edits = "edits_signed" in _registered(read, behind, traits)
        pair = f"filter {quote(behind)}, behind {quote(name)}, "
        if signs and edits and f"{pair}{_SIGNS}" not in _of_two(read, name, behind):
            yield _warning(listener, f"{pair}{_NOT_COVERED}")


def _ended(
    read: Configuration, name: str, phases: Mapping[tuple[str, str], frozenset[str]]
) -> Iterable[str]:
    """Return the phases at which a filter may answer `junk`, at which smtpd ends them."""
    declared = read.filters[name]
    if declared.action == "junk":
        return [declared.phase]
    return phases_ended(read.command(name), _registered(read, name, phases))


def _registered(
    read: Configuration, name: str, phases: Mapping[tuple[str, str], frozenset[str]]
) -> Collection[str]:
    """Return the phases, or traits, of a filter's program; none of smtpd's own filters."""
    program = read.program(name)
    return () if program is None else phases.get((program.statement, program.name), ())


def _pairs(read: Configuration) -> Iterator[tuple[Listener, str, str]]:
    """Yield each two filters of which one is behind the other, once, with the first listener."""
    known: set[tuple[str, str]] = set()
    for listener in read.listeners:
        for pair in combinations(read.members(listener.filters), 2):
            if pair not in known:
                known.add(pair)
                yield (listener, *pair)


def about_program(program: Program, *, foreign: bool) -> Iterator[Problem]:
    """Yield a warning about a program that isn't of this package and runs without a supervisor."""
    if not foreign:
        return
    where = f"{program.statement} {quote(program.name)}"
    named = sorted(programs_named(program.command) & OURS)
    instead = f", or use this package's {named[0]}" if named else ""
    text = f"{where}: smtpd ends if this program does; run it by filter-supervise{instead}"
    yield Problem(program.place, text, warning=True)


def _shown(names: Iterable[str]) -> str:
    *most, last = map(quote, names)
    return f"{', '.join(most)} and {last}" if most else last


def _warning(listener: Listener, text: str) -> Problem:
    return Problem(listener.place, f"listen on {listener.name}: {text}", warning=True)


def _of_users(read: Configuration, used: set[str]) -> Iterator[Problem]:
    """Yield warnings of filters with settings for users on listeners that have none."""
    fitting = {
        name for each in read.listeners if each.authenticates for name in read.members(each.filters)
    }
    somewhere = [read.program(name) for name in used]
    there = [read.program(name) for name in fitting]
    for program in read.programs:
        if program not in somewhere or program in there:
            continue
        if setting := for_users(program.command):
            text = (
                f"{program.statement} {quote(program.name)}: {setting} has no effect: it concerns "
                "authenticated users, and no listener with `auth` names the filter"
            )
            yield Problem(program.place, text, warning=True)


def _unused(read: Configuration, used: set[str]) -> Iterator[Problem]:
    """Yield warnings of declarations without effect."""
    for name, declared in read.filters.items():
        if name not in used:
            text = f"filter {quote(name)} is not used: no listener or action names it"
            yield Problem(declared.place, text, warning=True)
    procs = {read.filters[name].members for name in used if read.filters[name].kind == "proc"}
    for name, place in read.procs.items():
        if (name,) not in procs:
            text = f"proc {quote(name)} is not used: no filter names it"
            yield Problem(place, text, warning=True)


def _orders(read: Configuration) -> Iterator[Problem]:
    """Yield warnings of filters of a listener that are in the wrong order."""
    for listener, name, behind in _pairs(read):
        text = next(_of_two(read, name, behind), "")
        if text:
            yield _warning(listener, text)


def _of_two(read: Configuration, name: str, behind: str) -> Iterator[str]:
    """Yield what is wrong with the order of two filters."""
    first, second = read.filters[name], read.filters[behind]
    if first.action in _LAST and first.phase == second.phase:
        yield (
            f"filter {quote(behind)} is not asked about what {quote(name)} matches: smtpd ends "
            f"the phase {first.phase} at `{first.action}`"
        )
    if first.everybody and first.action in _REFUSES and second.phase in ("", first.phase):
        yield (
            f"filter {quote(behind)}, behind {quote(name)}, is not asked at {first.phase}: "
            f"{quote(name)} refuses everybody there"
        )
    ahead, after = (programs_named(read.command(each)) for each in (name, behind))
    for order in _ORDERS:
        if order.first in ahead and order.second in after:
            yield f"filter {quote(behind)}, behind {quote(name)}, {order.why}"


def _unfiltered(read: Configuration) -> Iterator[Problem]:
    """Yield warnings of listeners whose mail passes no filter, if any listener has one."""
    if not read.used:
        return
    sockets = [each for each in read.listeners if each.name == "socket"]
    for each in read.listeners:
        if not each.filters and each.name != "socket":
            yield _warning(each, "no filter: what arrives here passes none")
    if not sockets:
        yield Problem(
            read.start,
            "no `listen on socket filter ...`: mail that programs of this machine send "
            "through the socket passes no filter",
            warning=True,
        )


def _without_tls(read: Configuration) -> Iterator[Problem]:
    """Yield warnings of filters that require what no client of a listener can have."""
    verified = {
        name for each in read.listeners if each.verifies for name in read.members(each.filters)
    }
    for listener in read.listeners:
        for name in read.members(listener.filters) if listener.name != "socket" else ():
            required = required_tls(read.command(name))
            if required and not listener.encrypts:
                yield _warning(
                    listener,
                    f"filter {quote(name)} requires TLS ({required[0]}), which no client can start "
                    "here: the listener has none of tls, tls-require and smtps",
                )
            elif any("certificate" in each.split() for each in required) and name not in verified:
                yield _warning(
                    listener,
                    f"filter {quote(name)} requires certificates, which smtpd asks for only "
                    "on a listener with tls-require verify",
                )
