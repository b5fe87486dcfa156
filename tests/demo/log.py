"""A parser of smtpd's log: the sessions of the neighbours, and the outcome of each message."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tests.demo.configuration import CONF, chains
from tests.demo.neighbours import (
    NOWHERE,
    REFUSED,
    Answered,
    Neighbour,
    Outcome,
    Said,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_CONNECTED = re.compile(r"^(\w{16}) smtp connected address=(\S+) host=(\S+)$")
_VERDICT = re.compile(r"^([\w-]+): (\w{16}) [\w-]+ ([a-z-]+) result=([a-z]+)(.*)$")
_REASON = re.compile(r' reason=(?:"((?:[^"\\]|\\.)*)"|(\S+))')


class Seen(NamedTuple):
    """A session, as smtpd reports it."""

    id: str
    rdns: str


def read_log(lines: Iterable[str]) -> tuple[dict[str, Seen], dict[str, list[Said]]]:
    """Read smtpd's log: the sessions by client address, and the filters' lines by session."""
    sessions: dict[str, Seen] = {}
    said: dict[str, list[Said]] = {}
    for line in lines:
        if found := _CONNECTED.match(line):
            sessions[found[2]] = Seen(found[1], found[3])
        elif found := _VERDICT.match(line):
            name, session, phase, verb, rest = found.groups()
            why = _REASON.search(rest)
            reason = (why[1] or why[2] or "") if why else ""
            reason = re.sub(r"\\(.)", r"\1", reason)
            said.setdefault(session, []).append(Said(name, phase, verb, reason))
    return sessions, said


def outcome(
    neighbour: Neighbour,
    sessions: Mapping[str, Seen],
    said: Mapping[str, list[Said]],
    answered: Answered,
    folder: str,
) -> Outcome:
    """Combine all that is known of one message."""
    seen = sessions.get(neighbour.address, Seen("", "<unknown>"))
    heard = said.get(seen.id, [])
    asked = {each.filter for each in heard}
    chain = chains(CONF.read_text("utf-8"))[neighbour.port]
    silent = [name for name in chain if name not in asked]
    place = folder or (NOWHERE if answered.reply.startswith("2") else REFUSED)
    return Outcome(neighbour, seen.rdns, heard, silent, answered, place)
