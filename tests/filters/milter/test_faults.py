"""Milters that are down, slow, out of step, or something else, none of which is passed over."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.filters.milter import Milter, gate, links, probe
from smtpd_filters.filters.milter.content import Draft, cut, fits
from smtpd_filters.filters.milter.dialogue import Dialogue
from smtpd_filters.filters.milter.dialogue import Milter as Configured
from smtpd_filters.filters.milter.endpoints import ENDPOINT
from smtpd_filters.filters.milter.facts import Facts
from smtpd_filters.lookups.retry import SILENCES
from smtpd_filters.lookups.stream import connection
from smtpd_filters.lookups.stream.connection import UnconnectedError
from smtpd_filters.message import Message
from smtpd_filters.milter import AddHeader, Agreement, ChangeHeader, NewBody, Offer, Verdict
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.runtime.counters import (
    COUNTERS,
    INVALID,
    PASSED_OVER,
    TIMEOUT,
    UNREACHABLE,
)
from smtpd_filters.runtime.pace import Pace
from smtpd_filters.session import Session
from smtpd_filters.testing import Conversation
from tests.effort import brief
from tests.filters.serving import PATIENCE
from tests.lookups.stream.peer import hang as stay_silent
from tests.lookups.stream.peer import served, until
from tests.lookups.stream.silent import names, silent_address
from tests.runtime.test_counters import Gained

from .stub import PLAIN, Stub, milter
from .test_policy import (
    ACCEPT,
    CONTINUE,
    LATER,
    NO,
    NOTHING,
    REFUSED,
    SILENT,
    at_end,
    deliver,
    greeted,
    send,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from smtpd_filters.lookups.stream import Address
    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.milter import Event

    from .stub import Seen

EVENTS = [v.CONNECT, v.HELO, v.MAIL, v.RCPT, v.DATA, v.HEADER, v.END_OF_HEADER, v.BODY]
ALL = [*EVENTS, v.END_OF_BODY]
EVERY = pytest.mark.parametrize("event", ALL)


def port_of(stub: Stub) -> int:
    """Return the port on which a milter listens."""
    return ENDPOINT.parse(stub.address).port


def label(stub: Stub) -> str:
    """Return the name of a milter in the log."""
    return ENDPOINT.parse(stub.address).label


def outcome(stub: Stub, *flags: str) -> tuple[str, str]:
    """Send a message as far as it gets; return the refusal and the log."""
    with Conversation(Milter, "--milter", stub.address, *flags) as smtpd:
        there = greeted(smtpd)
        said = there.mail_from("bob@example.net").reply
        said = said or there.rcpt_to("alice@example.org").reply
        said = said or there.message(b"A: b\r\n\r\nbody\r\n").reply
        return said, "\n".join(smtpd.log)


@EVERY
def test_hanging_up(event: bytes) -> None:
    with milter(answers={event: None}) as stub:
        said, log = outcome(stub)
        assert said == LATER
        assert "closed the connection" in log
        assert outcome(stub, "--on-error", "proceed")[0] == ""


def test_a_reset_has_the_same_cause_as_an_end() -> None:
    """Which of them it is depends on which side was faster; each cause has a line of its own."""

    def script(event: Event, seen: Seen) -> bytes | None:
        if event.command != v.MAIL:
            return stub.usual(event)
        seen.link.reset()
        return None

    with milter(script=script) as stub:
        said, log = outcome(stub)
    assert said == LATER
    assert f'cause="{label(stub)}: closed the connection"' in log


@pytest.mark.parametrize(
    ("flags", "result"), [((), " result=junk "), (("--dry-run",), " result=proceed would=junk ")]
)
def test_the_log_says_what_becomes_of_a_failure(flags: tuple[str, ...], result: str) -> None:
    with milter(answers={v.DATA: None}) as stub:
        said, log = outcome(stub, "--on-error", "junk", *flags)
    assert said == ""
    assert result in next(line for line in log.splitlines() if "closed the connection" in line)


@EVERY
def test_silence(event: bytes) -> None:
    flags = ("--command-timeout", "0.05", "--content-timeout", "0.05")
    with milter(answers={event: b""}) as stub:
        said, log = outcome(stub, *flags)
        assert said == LATER
        assert "no answer after 0.05 s" in log
        assert outcome(stub, *flags, "--on-error", "proceed")[0] == ""


def test_a_pause_between_commands_is_no_silence() -> None:
    """It lasts for as long as a milter may take for an answer, which another session waits for."""

    def script(event: Event, _seen: Seen) -> bytes:
        slow = event.command == v.MAIL and b"slow" in event.fields[0]
        return b"" if slow else stub.usual(event)

    with (
        milter(script=script) as stub,
        Conversation(Milter, "--milter", stub.address, *hasty()) as to,
    ):
        there = greeted(to)
        assert there.mail_from("bob@example.net").reply == ""
        assert greeted(to).mail_from("slow@example.net").reply == LATER
        assert there.rcpt_to("alice@example.org").reply == ""
        assert there.message(b"A: b\r\n\r\nbody\r\n").unchanged
        assert len(stub.connections) == 2


@EVERY
@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"UNKNOWN COMMAND\n", 'not a milter: it sends \\"UNKN\\"'),
        (b"\0\0\0\0", "a packet of 0 bytes"),
        (b"\xff\xff\xff\xff", "a packet of 4294967295 bytes"),
        (Verdict(b"c").encode() + Verdict(b"c").encode(), "a second answer"),
        (b"\0\0\0\1O", 'an unknown answer \\"O\\"'),
        (b"\0\0\0\6y250 \0", 'an invalid reply \\"250 \\"'),
        (b"\0\0\0\5y2\xff0\0", 'an invalid reply \\"2\\\\xff0\\"'),
    ],
)
def test_nonsense(event: bytes, answer: bytes, cause: str) -> None:
    with milter(answers={event: answer}) as stub:
        said, log = outcome(stub)
        assert said == LATER
        assert cause in log
        assert outcome(stub, "--on-error", "proceed")[0] == ""


@pytest.mark.parametrize("event", EVENTS)
def test_edits_before_the_end(event: bytes) -> None:
    with milter(answers={event: AddHeader(b"A", b"b").encode() + CONTINUE}) as stub:
        assert outcome(stub)[0] == LATER


@pytest.mark.parametrize("event", [v.CONNECT, v.MAIL, v.HEADER, v.BODY])
def test_an_answer_where_it_said_that_there_is_none(event: bytes) -> None:
    """At the latest the second message notices it, and the connection isn't used again."""

    def script(at: Event, _seen: Seen) -> bytes:
        return ACCEPT if at.command == event else stub.usual(at)

    with (
        milter(SILENT, script=script) as stub,
        Conversation(Milter, "--milter", stub.address) as smtpd,
    ):
        there = greeted(smtpd)
        first = send(there).reply
        assert first or stub.answered.wait(PATIENCE)
        assert LATER in {first, send(there).reply}
        assert any("an answer to nothing" in line or "a second" in line for line in smtpd.log)


@pytest.mark.parametrize(
    "flood",
    [
        [AddHeader(b"A", b"b")] * 1001,
        [AddHeader(b"A", b"b" * 60_000)] * 20,
        [NewBody(b"")] * 66_000,
        [NewBody(b"b" * 65_000)] * 1040,
        [Verdict(v.PROGRESS)] * 10_001,
    ],
)
def test_a_flood(flood: list[AddHeader]) -> None:
    with milter(answers=at_end(*flood, Verdict(v.ACCEPT))) as stub:
        said, log = outcome(stub)
        assert said == LATER
        assert "more than" in log


def test_progress_restarts_the_time_but_not_beyond_the_deadline() -> None:
    release = threading.Event()
    pause = brief(1) / 4
    deadline = f"{2.4 * pause:.2g}"
    flags = ("--content-timeout", f"{4 * pause}")

    def script(event: Event, seen: Seen) -> bytes:
        if event.command == v.END_OF_BODY:
            for _ in range(6):
                seen.link.sendall(Verdict(v.PROGRESS).encode())
                release.wait(pause)
        return stub.usual(event)

    with milter(script=script) as stub:
        assert outcome(stub, *flags)[0] == ""
        said, log = outcome(stub, *flags, "--deadline", deadline)
        assert said == LATER
        assert f"{label(stub)}: no answer within --deadline" in log


@pytest.mark.parametrize("event", [v.NEGOTIATE, v.MAIL, v.END_OF_BODY])
def test_a_milter_that_hangs_until_the_deadline_leaves_time_for_the_others(event: bytes) -> None:
    field = at_end(AddHeader(b"X-Scanned", b" yes"), Verdict(v.ACCEPT))
    with milter() as one, milter(answers=field) as two:
        flags = ("--milter", two.address, "--deadline", f"{brief(1)}", "--on-error", "proceed")
        with Conversation(Milter, "--milter", one.address, *flags) as smtpd:
            hang(one, event)
            mail = send(greeted(smtpd))
            assert mail.headers.get_all("X-Scanned") == ["yes"]
            what = "connection" if event == v.NEGOTIATE else "answer"
            cause = f'cause="{label(one)}: no {what} within --deadline"'
            assert lines_with(smtpd.log, cause) == 1


def test_a_deadline_that_passes_says_nothing_about_a_milter() -> None:
    """The one before it may have left it no time."""
    flags = ("--deadline", f"{brief(0.5)}")
    with milter() as stub, Conversation(Resting, "--milter", stub.address, *flags) as smtpd:
        hang(stub, v.MAIL)
        for _ in range(SILENCES):
            assert fails(smtpd)
        stub.answers = {}
        assert send(greeted(smtpd)).unchanged


def test_a_restart_between_messages_of_a_session_and_between_commands() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        there = greeted(smtpd)
        send(there)
        stub.stop()
        stub.start()
        send(there)
        there.mail_from("bob@example.net")
        there.rcpt_to("alice@example.org")
        stub.stop()
        stub.start()
        there.rcpt_to("carol@example.org")
        stub.stop()
        stub.start()
        assert there.message().unchanged
    commands = [seen.commands for seen in stub.connections]
    assert commands == [b"CHMRTLLNBE", b"CHMRTLLNBEAMR", b"CHMRR", b"CHMRRTLNBEQ"]
    assert stub.connections[2].fields(v.RCPT) == [
        (b"<alice@example.org>",),
        (b"<carol@example.org>",),
    ]


def test_killed_in_the_middle_of_a_message_and_back_at_once() -> None:
    """The message is sent again once; a milter that dies of it is not asked for ever."""

    def script(event: Event, seen: Seen) -> bytes | None:
        if event.command == v.BODY and (always or seen is stub.connections[0]):
            return None
        if event.command == v.END_OF_BODY:
            return AddHeader(b"X", b" y").encode() + ACCEPT
        return stub.usual(event)

    always = False
    with milter(script=script) as stub:
        mail = deliver(stub)
        assert mail.headers.get_all("X") == ["y"]
    always = True
    with milter(script=script) as stub:
        assert outcome(stub)[0] == LATER
    assert len(stub.connections) == 2


def test_killed_in_the_first_event_that_it_answers() -> None:
    """It answers nothing before the end of the message, so the connection is a new one then."""

    def script(event: Event, seen: Seen) -> bytes | None:
        if event.command != v.END_OF_BODY:
            return b""
        return None if seen is stub.connections[0] else ACCEPT

    with milter(SILENT, script=script) as stub:
        assert outcome(stub)[0] == ""
    assert len(stub.connections) == 2


def test_down_and_up_again() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        stub.stop()
        there = greeted(smtpd)
        assert there.mail_from("bob@example.net").reply == LATER
        assert "cause=" in smtpd.log[-1]
        assert "connection refused" in smtpd.log[-1]
        stub.start()
        assert send(there).unchanged


def test_one_that_is_down_does_not_keep_others_from_refusing() -> None:
    with milter() as down:
        pass
    with milter(answers={v.BODY: NO}) as stub:
        flags = ("--milter", down.address, "--on-error", "proceed")
        assert outcome(stub, *flags)[0] == REFUSED
    edits = at_end(AddHeader(b"X", b" y"), Verdict(v.ACCEPT))
    with milter(answers=edits) as stub:
        assert (
            deliver(stub, "--milter", down.address, "--on-error", "proceed").headers.get("X") == "y"
        )
        mail = deliver(stub, "--milter", down.address, "--on-error", "junk")
        assert mail.headers.get("X") == "y"
        assert mail.headers.get("X-Spam") == "Yes"
        assert deliver_reply(stub, down) == LATER


def deliver_reply(stub: Stub, down: Stub) -> str:
    """Return the refusal with a second milter that is down."""
    return outcome(stub, "--milter", down.address)[0]


def test_a_milter_that_never_negotiates() -> None:
    with milter(b"") as stub:
        flags = ("--connect-timeout", "0.05")
        said, log = outcome(stub, *flags)
        assert said == LATER
        assert "no connection after 0.05 s" in log


@pytest.mark.parametrize(
    "agreement",
    [
        b"UNKNOWN COMMAND\n",
        b"HTTP/1.1 400 Bad\r\n",
        Agreement(7),
        Agreement(6, 0x8000),
        b"\0\0\0\1c",
    ],
)
def test_no_milter_at_all(agreement: bytes) -> None:
    with milter(agreement) as stub:
        assert outcome(stub)[0] == LATER
        assert outcome(stub, "--on-error", "proceed")[0] == ""


#: The longest field that fits: in a packet its name and its value have a null each.
LONGEST = v.MAX_PAYLOAD - 1
TOO_LONG = "552 5.3.4 A field of the header is too long"


def field_of(name: bytes, size: int) -> tuple[bytes, list[bytes]]:
    """Return a field whose lines have so many bytes with LF, and the lines of its value."""
    lines = [b" " + b"x" * 900] * (size // 902)
    value = b"\n".join(lines)
    rest = size - len(name) - len(value) - 2
    lines.append(b" " * min(rest, 1) + b"y" * (rest - 1))
    assert len(name) + len(b"\n".join(lines)) + 1 == size
    return b"%b:%b\r\n" % (name, b"\r\n".join(lines)), lines


@pytest.mark.parametrize("over", [0, 1, 5000])
def test_a_field_that_fits_into_no_packet(over: int) -> None:
    field, lines = field_of(b"To", LONGEST + over)
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        mail = send(greeted(smtpd), field + b"Subject: x\r\n\r\n")
        assert mail.unchanged
    (name, value), *_ = stub.seen.fields(v.HEADER)
    assert stub.seen.fields(v.HEADER)[1:] == [(b"Subject", b" x")]
    assert name == b"To"
    whole = b"\n".join(lines)
    if not over:
        assert value == whole
        return
    assert whole.startswith(value + b"\n ")
    # No further line would have fitted.
    assert len(name) + len(value) + 2 + 902 > v.MAX_PAYLOAD
    said = f"was sent {len(value)} bytes of {len(whole)} of To"
    assert lines_with(smtpd.log, said) == 1


def test_a_field_with_a_line_that_fits_into_no_packet() -> None:
    """Only another milter can make one, of two packets' length at most."""
    value = b"x" * v.MAX_PAYLOAD
    assert cut(b"A", value) == value[: v.MAX_PAYLOAD - 3]
    assert fits(b"A", cut(b"A", value))
    assert cut(b"A", b"\n " + value) == (b"\n " + value)[: v.MAX_PAYLOAD - 3]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        (b"To", ("--long-fields", "reject")),
        (b"fRom", ()),
        (b"Content-type", ()),  # its boundary separates the attachments
        (b"Content-Transfer-Encoding", ()),
        (b"MIME-Version", ()),
    ],
)
def test_a_field_that_is_not_cut(name: bytes, flags: tuple[str, ...]) -> None:
    field, _ = field_of(name, LONGEST + 1)
    with milter() as stub, Conversation(Milter, "--milter", stub.address, *flags) as smtpd:
        there = greeted(smtpd)
        assert send(there, field + b"\r\n").reply == TOO_LONG
        assert send(there).unchanged  # the next message, after an ABORT
        short, _ = field_of(name, LONGEST)
        assert send(there, short + b"\r\n").unchanged
    assert stub.seen.commands.startswith(b"CHMRTAMRTL")


def test_the_price_of_an_edit_counts_the_bytes_of_the_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few fields may have a megabyte, through which each of a thousand edits walks."""
    admitted: list[int] = []

    async def counted(_: Pace, work: int) -> None:
        admitted.append(work)

    monkeypatch.setattr(Pace, "admit", counted)
    message = Message()
    message.feed([b"X: " + b"x" * 60_000] * 16 + [b"", b"body"])
    message.close()
    edit = Draft(message, None).edit(ChangeHeader(1, b"X", b""), leading_space=False)
    asyncio.run(edit)
    message.discard()
    assert 500 < sum(admitted) < 2000  # microseconds, about


def test_a_milter_that_wants_messages_since_its_restart() -> None:
    """Nothing passes unscanned: smtpd was asked for no messages at start."""
    with (
        milter(Agreement(6, 0, NOTHING)) as stub,
        Conversation(Milter, "--milter", stub.address) as smtpd,
    ):
        there = greeted(smtpd)
        assert send(there).unchanged
        stub.agreement = PLAIN
        assert send(greeted(smtpd)).reply == LATER
        assert "it wants messages, unlike at start" in smtpd.log[-1]
        assert send(there).unchanged  # over its connection


OPENED, CLOSED = "no longer waited for", "answers again"


def hasty(event: bytes = v.MAIL) -> tuple[str, str]:
    """Return the flag with a short time for this event."""
    flag = "--connect-timeout" if event == v.NEGOTIATE else "--command-timeout"
    return flag, f"{brief(0.2)}"


def lines_with(log: list[str], words: str) -> int:
    """Return how many lines have these words."""
    return sum(words in each for each in log)


class Resting(Milter):
    """A milter that is no longer waited for is not tried again."""

    name = "milter"
    rest = 3600.0


class Restless(Milter):
    """A milter that is no longer waited for is tried again at once."""

    name = "milter"
    rest = 0.0


HANGING = pytest.mark.parametrize("event", [v.NEGOTIATE, v.CONNECT, v.HELO, v.MAIL])
FIRST = pytest.mark.parametrize("first", ["connect", "mail-from"])


def hang(stub: Stub, event: bytes) -> None:
    """Let a milter not answer this event."""
    if event == v.NEGOTIATE:
        stub.agreement = b""
    else:
        stub.answers = {event: b""}


@FIRST
@HANGING
def test_a_milter_that_hangs_costs_a_few_sessions_their_time(event: bytes, first: str) -> None:
    flags = (*hasty(event), "--first-phase", first)
    with milter() as stub, Conversation(Resting, "--milter", stub.address, *flags) as smtpd:
        hang(stub, event)
        for _ in range(SILENCES):
            assert lines_with(smtpd.log, OPENED) == 0
            assert fails(smtpd)
        asked = len(stub.connections)
        assert lines_with(smtpd.log, OPENED) == 1
        for _ in range(5):
            assert fails(smtpd)
        assert len(stub.connections) == asked
        assert lines_with(smtpd.log, "not asked again for now") > 0
        assert (lines_with(smtpd.log, OPENED), lines_with(smtpd.log, CLOSED)) == (1, 0)


def test_exchanges_are_counted() -> None:
    gained = Gained("milter")
    with milter() as stub:
        assert outcome(stub)[0] == ""
        assert len(EVENTS) > gained.count > 3  # one for each stage of smtpd's
        assert gained.failures == {}
    # A milter that has nothing more to say is not asked.
    with milter(answers={v.CONNECT: ACCEPT}) as stub:
        gained = Gained("milter")
        assert outcome(stub)[0] == ""
        assert (gained.count, gained.failures) == (1, {})


@pytest.mark.parametrize(
    ("event", "answer", "cause"),
    [(v.MAIL, None, UNREACHABLE), (v.BODY, b"", TIMEOUT), (v.RCPT, b"\0\0\0\1?", INVALID)],
)
def test_failed_exchanges_are_counted(event: bytes, answer: bytes | None, cause: str) -> None:
    gained = Gained("milter")
    with milter(answers={event: answer}) as stub:
        assert outcome(stub, "--content-timeout", f"{brief(0.2)}")[0] == LATER
    assert gained.failures == {cause: 1}


def test_a_milter_that_is_not_waited_for_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COUNTERS, "_watched", [])  # those of earlier tests, until they are freed
    gained = Gained("milter")
    with milter() as stub, Conversation(Resting, "--milter", stub.address, *hasty()) as smtpd:
        hang(stub, v.CONNECT)
        label = ENDPOINT.parse(stub.address).label
        assert ("milter", label, False) in COUNTERS.circuits()
        for _ in range(SILENCES + 1):
            assert fails(smtpd)
        assert ("milter", label, True) in COUNTERS.circuits()
    assert gained.failures[TIMEOUT] == SILENCES
    assert gained.failures[PASSED_OVER] > 0


def test_a_milter_that_is_down_is_counted() -> None:
    gained = Gained("milter")
    with milter() as stub:
        address = stub.address
    with Conversation(Milter, "--milter", address) as smtpd:
        assert fails(smtpd)
    assert set(gained.failures) == {UNREACHABLE}


@FIRST
@HANGING
def test_a_milter_that_no_longer_hangs_is_used_again(event: bytes, first: str) -> None:
    flags = (*hasty(event), "--first-phase", first)
    with milter() as stub, Conversation(Restless, "--milter", stub.address, *flags) as smtpd:
        hang(stub, event)
        for _ in range(SILENCES + 2):  # some are trials
            assert fails(smtpd)
        assert (lines_with(smtpd.log, OPENED), lines_with(smtpd.log, CLOSED)) == (1, 0)
        stub.agreement, stub.answers = PLAIN, {}
        # A machine that is busy may take longer than that.
        assert not all(fails(smtpd) for _ in range(100))
        assert (lines_with(smtpd.log, OPENED), lines_with(smtpd.log, CLOSED)) == (1, 1)


def fails(smtpd: Conversation) -> bool:
    """Return whether a session fails, at the first commands or when it has just begun."""
    there = smtpd.connect()
    if there.greeting.refused or there.ehlo("mail.example.net").refused:
        return True
    return there.mail_from("bob@example.net").reply == LATER


@pytest.mark.parametrize("event", [v.HEADER, v.BODY, v.END_OF_BODY])
def test_messages_that_take_a_milter_too_long_keep_no_others_from_it(event: bytes) -> None:
    """Any client can send some."""
    soon = ("--content-timeout", "0.05")
    with milter() as stub, Conversation(Milter, "--milter", stub.address, *soon) as smtpd:
        stub.answers = {event: b""}
        for _ in range(2 * SILENCES):
            assert send(greeted(smtpd)).reply == LATER
        stub.answers = {}
        assert not greeted(smtpd).mail_from("bob@example.net").reply
        assert lines_with(smtpd.log, OPENED) == 0


def dialogue(milter: Configured, sender: str, client: bytes = b"192.0.2.1") -> Dialogue:
    """Return the dialogue of a session of its own at MAIL."""
    session = Session(b"7641df9771b4ed00")
    session.apply("link-connect", (b"", b"unknown", client + b":25", b"192.0.2.2:25"))
    session.server_name = session.mail_command = session.tls = session.username = session.tx = None
    facts = Facts(session, host="mx", daemon="", version="")
    facts.begin(sender)
    return Dialogue(milter, facts)


async def go_unanswered(milter: Configured) -> None:
    """Send commands of a slow sender until the milter is suspected."""
    for _ in range(SILENCES):
        with pytest.raises(gate.FailedError, match="no answer after"):
            await dialogue(milter, "slow@example.net").at(v.MAIL)


@contextmanager
def slow_milter(
    slow: Collection[bytes] = (b"<slow@example.net>",),
) -> Iterator[tuple[Address, threading.Semaphore]]:
    """Run a milter that never answers MAIL from these senders.

    Yield its address, and a semaphore that each such command releases.
    """
    held = threading.Semaphore(0)

    def script(event: Event, _seen: Seen) -> bytes:
        if event.command == v.MAIL and event.fields[0] in slow:
            held.release()
            return b""
        return stub.usual(event)

    with milter(script=script) as stub:
        yield ENDPOINT.parse(stub.address), held


def test_slow_commands_at_once_keep_no_others_from_a_milter_that_answers_meanwhile() -> None:
    """Any client can send some, over several connections."""

    async def run(address: Address, held: threading.Semaphore) -> None:
        connections = links.Links(address, Offer.of(6), limit=10, seconds=PATIENCE)
        one = Configured(address, connections, command=brief(1.0), content=PATIENCE, discarded=None)
        slow = [
            asyncio.ensure_future(dialogue(one, "slow@example.net").at(v.MAIL))
            for _ in range(SILENCES)
        ]
        for _ in slow:
            assert await asyncio.to_thread(held.acquire, timeout=PATIENCE)
        assert await dialogue(one, "bob@example.net").at(v.MAIL) is None
        for each in await asyncio.gather(*slow, return_exceptions=True):
            assert isinstance(each, gate.FailedError)
        assert await dialogue(one, "bob@example.net").at(v.MAIL) is None
        assert not one.links.commands.is_open
        await connections.aclose()

    with slow_milter() as (address, held):
        asyncio.run(run(address, held))


def test_slow_commands_of_one_client_keep_no_other_client_from_a_milter() -> None:
    async def run(address: Address, held: threading.Semaphore) -> None:
        connections = links.Links(address, Offer.of(6), limit=4, seconds=PATIENCE)
        one = Configured(address, connections, command=PATIENCE, content=PATIENCE, discarded=None)
        slow = [
            asyncio.ensure_future(dialogue(one, "slow@example.net").at(v.MAIL)) for _ in range(9)
        ]
        for _ in range(2):
            assert await asyncio.to_thread(held.acquire, timeout=PATIENCE)
        other = dialogue(one, "bob@example.net", b"198.51.100.1")
        assert await other.at(v.MAIL) is None
        assert not any(each.done() for each in slow)
        # A client that has its share opens no further connection: it ends an idle one of its own.
        third = dialogue(one, "bob@example.net", b"203.0.113.1")
        again = dialogue(one, "bob@example.net", b"203.0.113.2")
        assert await third.at(v.MAIL) is None
        assert await again.at(v.MAIL) is None
        assert [each.link is None or each.link.closed for each in (other, third, again)] == [
            False, True, False,
        ]  # fmt: skip
        # It has no use for one of others'.
        more = asyncio.ensure_future(dialogue(one, "slow@example.net").at(v.MAIL))
        fourth = dialogue(one, "bob@example.net", b"203.0.114.1")
        assert await fourth.at(v.MAIL) is None
        assert [each.link is None or each.link.closed for each in (again, fourth)] == [False, False]
        slow.append(more)
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await connections.aclose()

    with slow_milter() as (address, held):
        asyncio.run(run(address, held))


def test_a_session_gets_the_connection_of_another_one_of_its_client() -> None:
    """The other one was asking when this one began to wait, and is idle now."""

    async def run(address: Address) -> None:
        connections = links.Links(address, Offer.of(6), limit=4, seconds=PATIENCE)
        one = Configured(address, connections, command=PATIENCE, content=PATIENCE, discarded=None)
        other = dialogue(one, "bob@example.net", b"198.51.100.1")
        assert await other.at(v.MAIL) is None
        every = [dialogue(one, "bob@example.net", b"203.0.113.%d" % at) for at in range(1, 4)]
        async with asyncio.timeout(PATIENCE / 2):
            assert await asyncio.gather(*(each.at(v.MAIL) for each in every)) == [None] * 3
        closed = [each.link is None or each.link.closed for each in (other, *every)]
        assert (closed[0], sum(closed)) == (False, 1)
        await connections.aclose()

    with slow_milter() as (address, _):
        asyncio.run(run(address))


def test_a_slow_trial_keeps_no_others_from_a_milter() -> None:
    """The milter has answered nothing; now it does, but a command of one client takes its time."""

    async def run(address: Address, held: threading.Semaphore, slow: set[bytes]) -> None:
        connections = links.Links(address, Offer.of(6), limit=10, seconds=PATIENCE, rest=0.0)
        one = Configured(address, connections, command=brief(0.2), content=PATIENCE, discarded=None)
        await go_unanswered(one)
        for _ in range(SILENCES + 1):
            assert await asyncio.to_thread(held.acquire, timeout=PATIENCE)
        commands = one.links.commands
        assert [commands.is_open] == [True]
        slow.discard(b"<>")
        one.command = PATIENCE
        trial = asyncio.ensure_future(dialogue(one, "slow@example.net").at(v.MAIL))
        assert await asyncio.to_thread(held.acquire, timeout=PATIENCE)
        assert [commands.is_open] == [False]
        assert await dialogue(one, "bob@example.net").at(v.MAIL) is None
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        await connections.aclose()

    slow = {b"<slow@example.net>", b"<>"}
    with slow_milter(slow) as (address, held):
        asyncio.run(run(address, held, slow))


@pytest.mark.parametrize("event", [v.MAIL, v.RCPT, v.DATA])
def test_commands_that_take_a_milter_too_long_keep_no_others_from_it(event: bytes) -> None:
    """Any client can send some, with a domain whose name servers are slow."""
    with milter() as stub, Conversation(Resting, "--milter", stub.address, *hasty()) as smtpd:

        def script(sent: Event, seen: Seen) -> bytes:
            senders = seen.fields(v.MAIL)
            if sent.command == event and b"slow" in senders[-1][0]:
                return b""
            return stub.usual(sent)

        stub.script = script
        for _ in range(2 * SILENCES):
            assert LATER in replies(smtpd, "bob@slow.example")
        assert set(replies(smtpd, "bob@example.net")) == {""}
        assert lines_with(smtpd.log, OPENED) == 0
        pings = [each for each in stub.connections if each.fields(v.MAIL) == [(b"<>",)]]
        assert len(pings) == 2
        expected = b"CHMRT"[: b"CHMRT".index(event) + 1] + b"Q"
        assert {each.commands for each in pings} == {expected}


def replies(smtpd: Conversation, sender: str) -> list[str]:
    """Return the replies to the commands of a message, up to the first refusal."""
    there = greeted(smtpd)
    found = [there.mail_from(sender).reply]
    if not found[-1]:
        found.append(there.rcpt_to("alice@example.org").reply)
    if not found[-1]:
        found.append(there.message().reply)
    there.disconnect()
    return found


def test_a_milter_that_refuses_a_session_of_this_machine_answers() -> None:
    def script(sent: Event, seen: Seen) -> bytes:
        if sent.command == v.MAIL and b"slow" in sent.fields[0]:
            return b""
        is_here = seen.fields(v.CONNECT)[0][0] == b"localhost"
        return NO if is_here and sent.command == v.CONNECT else stub.usual(sent)

    with milter() as stub, Conversation(Resting, "--milter", stub.address, *hasty()) as smtpd:
        stub.script = script
        for _ in range(SILENCES + 1):
            assert LATER in replies(smtpd, "bob@slow.example")
        assert lines_with(smtpd.log, OPENED) == 0


def test_a_ping_that_finds_no_milter_leaves_it_to_the_sessions() -> None:
    """A refused connection costs no time, and so is tried each time."""

    async def run(stub: Stub) -> None:
        notes: list[str] = []
        address = ENDPOINT.parse(stub.address)
        note = lambda event, **_: notes.append(event)  # noqa: E731  # one word
        connections = links.Links(
            address, Offer.of(6), limit=10, seconds=PATIENCE, note=note, rest=0.0
        )
        one = Configured(address, connections, command=brief(0.2), content=PATIENCE, discarded=None)
        await go_unanswered(one)
        assert notes == [OPENED]
        await asyncio.to_thread(stub.stop)
        for _ in range(SILENCES):
            with pytest.raises(gate.FailedError, match="refused"):
                await dialogue(one, "bob@example.net").at(v.MAIL)
        assert await one.ping() is None
        assert notes == [OPENED]
        await connections.aclose()

    with milter(answers={v.MAIL: b""}) as stub:
        asyncio.run(run(stub))


def test_a_ping_needs_no_place_among_the_connections() -> None:
    async def run(stub: Stub) -> None:
        address = ENDPOINT.parse(stub.address)
        connections = links.Links(address, Offer.of(6), limit=1, seconds=PATIENCE)
        first = Configured(
            address, connections, command=brief(0.2), content=PATIENCE, discarded=None
        )
        last = Configured(address, connections, command=PATIENCE, content=PATIENCE, discarded=None)
        each_in_turn = [first] * SILENCES + [last]
        tasks = [
            asyncio.ensure_future(dialogue(one, "bob@example.net", b"192.0.%d.1" % at).at(v.MAIL))
            for at, one in enumerate(each_in_turn)
        ]
        for task in tasks[:-1]:
            with pytest.raises(gate.FailedError, match="no answer after"):
                await task
        assert first.links.commands.is_open
        assert not tasks[-1].done()
        tasks[-1].cancel()
        await asyncio.gather(tasks[-1], return_exceptions=True)
        await connections.aclose()

    with milter(answers={v.MAIL: b""}) as stub:
        asyncio.run(run(stub))


def test_a_trial_that_is_cancelled_at_its_ping_ends() -> None:
    async def run(address: Address, held: threading.Semaphore) -> None:
        connections = links.Links(address, Offer.of(6), limit=10, seconds=PATIENCE, rest=3600.0)
        one = Configured(address, connections, command=brief(0.2), content=PATIENCE, discarded=None)
        await go_unanswered(one)
        for _ in range(SILENCES + 1):
            assert await asyncio.to_thread(held.acquire, timeout=PATIENCE)
        one.command = PATIENCE
        one.links.commands._until = 0.0
        trial = asyncio.ensure_future(dialogue(one, "bob@example.net").at(v.MAIL))
        assert await asyncio.to_thread(held.acquire, timeout=PATIENCE)
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        assert one.links.commands.admits(0.0)
        await connections.aclose()

    with slow_milter({b"<slow@example.net>", b"<>"}) as (address, held):
        asyncio.run(run(address, held))


def test_a_milter_that_refuses_connections_is_asked_each_time() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        stub.stop()
        for _ in range(2 * SILENCES):
            assert greeted(smtpd).mail_from("bob@example.net").reply == LATER
        stub.start()
        assert send(greeted(smtpd)).unchanged
        assert lines_with(smtpd.log, OPENED) == 0


def test_a_milter_that_hangs_while_sessions_wait_for_their_turn() -> None:
    async def run() -> None:
        async with served(stay_silent) as peer:
            one = links.Links(peer.address, Offer.of(6), limit=SILENCES, seconds=brief(0.5))
            first = [asyncio.ensure_future(one.open("")) for _ in range(SILENCES)]
            await until(lambda: peer.accepted == SILENCES)
            waiting = [asyncio.ensure_future(one.open("")) for _ in range(SILENCES)]
            await asyncio.gather(*first, return_exceptions=True)
            with pytest.raises(gate.FailedError, match="not asked again for now"):
                await one.open("")
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())


def test_being_short_of_descriptors_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    async def connect(address: Address, seconds: float) -> Connection:
        tries.append(address)
        if len(tries) < 3:
            raise UnconnectedError(OSError(errno.EMFILE, "Too many open files"))
        return await connection.connect(address, seconds)

    monkeypatch.setattr(links, "connect", connect)
    with milter() as stub:
        assert deliver(stub).unchanged
        assert len(tries) == 3


def test_a_lack_of_descriptors_that_goes_on_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def short(_: Address, _seconds: float) -> Connection:
        raise UnconnectedError(OSError(errno.EMFILE, "Too many open files"))

    monkeypatch.setattr(links, "connect", short)

    async def run() -> None:
        one = links.Links(ENDPOINT.parse("inet:1@127.0.0.1"), Offer.of(6), limit=1, seconds=0.05)
        for _ in range(SILENCES + 1):
            with pytest.raises(gate.FailedError, match=r"no connection after 0\.05 s$"):
                await one.open("")

    asyncio.run(run())


def test_a_trial_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "monotonic", itertools.count(0.0, 0.3).__next__)
    with milter(b"\0\0\1\0O") as stub, pytest.raises(probe.NoAgreementError, match="timed out"):
        probe.probe(ENDPOINT.parse(stub.address), Offer(), 1.0)


def test_a_trial_at_a_host_with_a_silent_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with milter() as stub, silent_address(port_of(stub)) as silent:
        names(monkeypatch, silent, "127.0.0.1", port=port_of(stub))
        endpoint = ENDPOINT.parse(f"inet:{port_of(stub)}@mail.example")
        assert probe.probe(endpoint, Offer(), PATIENCE).version == PLAIN.version


def test_a_host_with_silent_addresses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_address() as silent:
        names(monkeypatch, silent, port=silent[1])
        with pytest.raises(probe.NoAgreementError, match="timed out"):
            probe.probe(ENDPOINT.parse(f"inet:{silent[1]}@mail.example"), Offer(), 0.05)


def test_few_connections_for_many_sessions() -> None:
    few = ("--connections", "2")
    with milter() as stub, Conversation(Milter, "--milter", stub.address, *few) as smtpd:
        clients = [greeted(smtpd) for _ in range(5)]
        for there in clients:
            there.mail_from("bob@example.net")
        for there in clients:
            there.rcpt_to("alice@example.org")
        for there in clients:
            assert there.message().unchanged
    assert len(stub.connections) > 5
    assert sum(seen.commands.count(v.END_OF_BODY) for seen in stub.connections) == 5


def test_a_client_that_goes_away_ends_the_connection() -> None:
    ended = threading.Event()

    def script(event: Event, _seen: Seen) -> bytes:
        if event.command == v.QUIT:
            ended.set()
        return stub.usual(event)

    with milter(script=script) as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        there = greeted(smtpd)
        there.mail_from("bob@example.net")
        there.disconnect()
        assert ended.wait(PATIENCE), "not at the end of the filter only"
    assert stub.seen.commands == b"CHMQ"


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket at which nobody accepts."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener


def test_nobody_accepts(tmp_path: Path) -> None:
    with listening(tmp_path / "m"):
        stub = Stub()
        stub.address = str(tmp_path / "m")
        said, _ = outcome(stub, "--connect-timeout", "0.05")
        assert said == LATER


def test_a_packet_a_byte_at_a_time() -> None:
    def script(event: Event, seen: Seen) -> bytes:
        if event.command == v.END_OF_BODY:
            data = AddHeader(b"X", b" y").encode() + ACCEPT
            for at in range(len(data)):
                seen.link.sendall(data[at : at + 1])
            return b""
        return stub.usual(event)

    with milter(script=script) as stub:
        assert deliver(stub).headers.get("X") == "y"
