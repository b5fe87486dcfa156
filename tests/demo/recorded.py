"""The demonstration without a server: recorded sessions, replayed to the filters."""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import TYPE_CHECKING

from smtpd_filters.protocol.codec import decode
from smtpd_filters.protocol.events import Report
from smtpd_filters.protocol.versions import NEWEST, dialect, version
from smtpd_filters.recording import Recording
from smtpd_filters.recording.replay import Replay
from smtpd_filters.recording.verdict import REFUSALS
from smtpd_filters.testing.in_process import Served
from tests.demo.configuration import CONF, SESSIONS, chains, commands
from tests.demo.log import Seen, outcome, read_log
from tests.demo.neighbours import (
    END_OF_DATA,
    INBOX,
    JUNK,
    NEIGHBOURS,
    Answered,
    Outcome,
    Said,
)

if TYPE_CHECKING:
    from smtpd_filters.filter import Filter

OTHERS = ("filter-senderscore", "filter-rspamd")


def left_out(conf: str) -> list[str]:
    """Return the filters that ask somebody else, whose answers are in no recording."""
    return [name for name, command in commands(conf).items() if command.startswith(OTHERS)]


def replay() -> list[Outcome]:
    """Replay the recorded sessions to each filter of the configuration, in this process."""
    recording = Recording.read(SESSIONS)
    conf = CONF.read_text("utf-8")
    sessions, replies = read_recording(recording)
    said: dict[tuple[str, str], list[Said]] = {}
    refusals: dict[tuple[str, str], str] = {}
    absent = left_out(conf)
    for name, command in commands(conf).items():
        if name in absent:
            continue
        log, refused = play(recording, command)
        refusals |= {(session, name): text for session, text in refused.items()}
        for session, verdicts in read_log([f"{name}: {line}" for line in log])[1].items():
            said[session, name] = verdicts
    outcomes = []
    for neighbour in NEIGHBOURS:
        if neighbour.judge:
            continue
        session = sessions[neighbour.address].id
        chain = chains(conf)[neighbour.port]
        heard, refuser = in_order([v for name in chain for v in said.get((session, name), ())])
        junk = any(each.verb == "junk" for each in heard)
        if refuser is None:
            answered = Answered(END_OF_DATA, replies[session])
            folder = JUNK if junk else INBOX
        else:
            command = refuser.phase.replace("-", " ").upper()
            command = "connect" if refuser.phase == "connect" else command
            answered, folder = Answered(command, refusals[session, refuser.filter]), ""
        done = outcome(neighbour, sessions, {session: heard}, answered, folder)
        silent = [name for name in done.silent if name not in absent]
        outcomes.append(done._replace(silent=silent))
    return outcomes


def in_order(verdicts: list[Said]) -> tuple[list[Said], Said | None]:
    """Return the verdicts of a chain's filters as smtpd asks for them, and the one that refuses.

    smtpd asks one filter after the other as long as they proceed; the first that says something
    else ends the phase, and a refusal the rest as well.
    """
    phases = ["connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data"]
    known = {phase: number for number, phase in enumerate(phases)}
    heard: list[Said] = []
    settled = ""
    for each in sorted(verdicts, key=lambda said: known.get(said.phase, len(known))):
        if each.phase == settled:
            continue
        heard.append(each)
        if each.verb in REFUSALS:
            return heard, each
        settled = each.phase if each.verb != "proceed" else ""
    return heard, None


def read_recording(recording: Recording) -> tuple[dict[str, Seen], dict[str, str]]:
    """Return the sessions by the client's address, and the reply to the message of each."""
    spoken = dialect(version(recording.protocol or "") or NEWEST)
    sessions: dict[str, Seen] = {}
    replies: dict[str, str] = {}
    for line in recording.to_filter():
        event = decode(line, spoken)
        if not isinstance(event, Report):
            continue
        session = event.session.decode()
        if event.name == "link-connect":
            rdns, _, source, _ = (value.decode() for value in event.values)
            sessions[source.rpartition(":")[0]] = Seen(session, rdns)
        elif event.name == "protocol-server" and event.values[0].startswith(b"250 2.0.0 "):
            replies[session] = event.values[0].decode()
    return sessions, replies


def play(recording: Recording, command: str) -> tuple[list[str], dict[str, str]]:
    """Play a recording to a filter; return its log and its refusals, by session."""
    program, *flags = shlex.split(command)
    module = import_module(f"smtpd_filters.filters.{program.removeprefix('filter-')}")
    policy: type[Filter] = getattr(module, program.removeprefix("filter-").capitalize())
    played = Replay(recording)
    served = Served(policy, [*flags, "-v"], None)
    served.play(played)
    refused = {
        step.session.decode(): step.verdict.reply
        for step in played.outcomes
        if step.verdict is not None and step.verdict.refused
    }
    return served.log.lines, refused
