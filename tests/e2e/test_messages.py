"""Messages through filters under a real server: nothing lost, nothing else changed."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import filter_command, scratch_path
from tests.e2e.sending import (
    ALICE,
    MESSAGE,
    SENDER,
    ZONE,
    Outcome,
    attempt,
    content_of,
    greeted,
    local,
    logged,
    policy,
    transact,
)

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

# smtpd adds what a message lacks of these.
HEAD = (
    b"From: someone@good.example\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\n"
    b"Message-ID: <1@good.example>\r\n"
)
EIGHT_BIT = bytes(range(1, 10)) + bytes(range(11, 13)) + bytes(range(14, 256))
MANY = b"".join(b"%d %s\r\n" % (number, b"x" * (number % 990)) for number in range(41_000))


def only(server: Smtpd, user: str = "alice") -> bytes:
    """Return the content of the one message that a user has got, without smtpd's own fields."""
    [mail] = server.maildir(user)
    return content_of(mail.content)


# -- what passes -----------------------------------------------------------------------------------

WAYS = {
    "trace": filter_command("trace", "--pass-data"),
    "trace-all": filter_command("trace", "--detail", "all"),
    "trace-headers": filter_command("trace", "--detail", "headers"),
    "holding": policy("holding"),
    "adding": policy("adding"),
    "adding-later": policy("adding-later"),
    "mailfrom": filter_command("mailfrom", "--domains", "local.example", "--check-header"),
}
BODIES = {
    "plain": b"hello\r\n",
    "none": b"",
    "empty lines": b"\r\n\r\n",
    "dots": b".\r\n..\r\n...\r\n.x\r\n..x\r\n. \r\n",
    "bars": b"|\r\n||x|\r\nfilter-dataline|a|b|.\r\nfilter|0.7|1|smtp-in|data-line|a|b|.\r\n",
    "8-bit": EIGHT_BIT + b"\r\n" + EIGHT_BIT[::-1] + b"\r\n",
    "lone CR": b"one\rtwo\r\r\n\r\rx\r\n",
    "white space": b" \r\n\t\r\n  x  \r\n",
    "long lines": b"x" * 998 + b"\r\n" + b"y" * 1996 + b"\r\n",
    "many lines": b"a\r\n" * 3000,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_body_passes_unchanged(start: Start, way: str) -> None:
    server = start(zone=ZONE, filters={"way": WAYS[way]})
    with greeted(server.connection()) as connection:
        for kind, body in BODIES.items():
            subject = f"Subject: {kind}\r\n".encode()
            assert transact(connection, message=HEAD + subject + b"\r\n" + body).code == 250
    delivered = {mail.message["Subject"]: mail.content for mail in server.maildir("alice")}
    assert delivered.keys() == BODIES.keys()
    for kind, body in BODIES.items():
        head = local(HEAD) + f"Subject: {kind}\n".encode()
        if way.startswith("adding"):
            # Above everything, smtpd's own trace field included.
            assert b"\nX-Top: first\nReceived: " in delivered[kind]
            head += b"X-Bottom: last\n"
            delivered[kind] = delivered[kind].replace(b"X-Top: first\n", b"")
        assert content_of(delivered[kind]) == head + b"\n" + local(body), kind


@pytest.mark.parametrize("way", ["trace", "adding", "holding"])
@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Subject:\r\n" + b" folded\r\n" * 300,
        HEAD + b"X-Long: " + b"x" * 990 + b"\r\n" + b"Subject: y\r\n " + b"y" * 997 + b"\r\n",
        HEAD + b"Subject: " + bytes(range(128, 256)) + b"\r\n",
        HEAD + b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(500)),
    ],
    ids=["folded", "998 bytes", "8-bit", "many"],
)
def test_a_header_passes_unchanged(start: Start, way: str, head: bytes) -> None:
    server = start(zone=ZONE, filters={"way": WAYS[way]})
    assert attempt(server, message=head + b"\r\nhello\r\n").code == 250
    delivered = server.maildir("alice")[0].content
    bottom = b"X-Bottom: last\n" if way == "adding" else b""
    delivered = delivered.replace(b"X-Top: first\n", b"")
    assert content_of(delivered) == local(head) + bottom + b"\nhello\n"


@pytest.mark.parametrize("way", WAYS)
def test_a_message_without_a_header(start: Start, way: str) -> None:
    """What smtpd makes of it without a filter it makes of it with one."""
    messages = (b"\r\nhello\r\n", b"hello\r\n", b"", b"no header\r\n\r\nhello\r\n")
    plain, server = start(zone=ZONE), start(zone=ZONE, filters={"way": WAYS[way]})
    for message in messages:
        expected, outcome = attempt(plain, message=message), attempt(server, message=message)
        assert (outcome.stage, outcome.code) == (expected.stage, expected.code), message
        plain.settle()
        server.settle()
    got = [_timeless(mail.content) for mail in server.maildir("alice")]
    got = [mail.replace(b"X-Top: first\n", b"").replace(b"X-Bottom: last\n", b"") for mail in got]
    assert got == [_timeless(mail.content) for mail in plain.maildir("alice")]


def _timeless(content: bytes) -> bytes:
    """Return a message without what is another in each of them."""
    return re.sub(rb"\b[0-9a-f]{8,16}\b|\d\d:\d\d:\d\d", b"", content)


def test_twenty_megabytes(start: Start) -> None:
    """Through filter-trace, byte for byte, while others are served."""
    message = HEAD + b"Subject: large\r\n\r\n" + MANY
    assert len(message) > 20_000_000
    server = start(
        zone=ZONE,
        filters={"trace": filter_command("trace", "--pass-data")},
        users=("alice", "bob"),
    )
    with greeted(server.connection(timeout=60)) as connection, ThreadPoolExecutor(1) as pool:
        large = pool.submit(transact, connection, message=message)
        small = 0
        while not large.done():
            assert attempt(server, recipients=("bob@local.example",)).code == 250
            small += 1
        assert large.result().code == 250
    assert only(server) == local(message)
    assert len(server.maildir("bob")) == small > 0


@pytest.mark.parametrize("way", ["holding", "adding"])
def test_a_large_message_that_is_held(start: Start, way: str) -> None:
    """Beyond what is kept in memory, whether its header is edited or all of it is looked at."""
    message = HEAD + b"Subject: large\r\n\r\n" + MANY[:3_000_000] + b"\r\n"
    server = start(zone=ZONE, filters={"way": WAYS[way]})
    assert attempt(server, message=message).code == 250
    content = server.maildir("alice")[0].content
    content = content.replace(b"X-Top: first\n", b"").replace(b"X-Bottom: last\n", b"")
    assert content_of(content) == local(message)


def test_a_message_beyond_the_limit(start: Start) -> None:
    """The server stops telling the lines; the filter is none the worse."""
    server = start(
        zone=ZONE,
        filters={name: WAYS[name] for name in ("holding", "adding")},
        declarations='smtp max-message-size "100K"',
    )
    assert attempt(server, message=HEAD + b"\r\n" + b"x" * 900 + b"\r\n" + MANY[:200_000]).said
    assert attempt(server).code == 250
    assert len(server.maildir("alice")) == 1


# -- lines that are too long -----------------------------------------------------------------------


def long_message(size: int) -> bytes:
    """Return a message with a line of this size, every part of which is another."""
    numbers = b"".join(b"%d," % number for number in range(size))[:size]
    return HEAD + b"Subject: long\r\n\r\nbefore\r\n" + numbers + b"\r\nafter\r\n"


def joined(content: bytes) -> bytes:
    """Undo the breaking of lines."""
    return content.replace(b"\n ", b"")


@pytest.mark.parametrize("way", ["trace", "holding", "adding", "trace-all"])
def test_a_line_that_would_hang_the_server(start: Start, way: str) -> None:
    """65,486 bytes become 65,536 on their way back: such a line is broken, and nothing is lost.

    One byte less would do. With its line end that makes 65,536, too, and is broken as well.
    """
    server = start(zone=ZONE, filters={"way": WAYS[way]})
    cuts = server.version == "6.8"
    with greeted(server.connection()) as other:
        for size in (65_484, 65_485, 65_486, 65_533):
            assert attempt(server, message=long_message(size)).code == 250
            # The server answers others meanwhile and afterwards.
            assert transact(other, recipients=("bob@local.example",)).code == 250
            content = server.maildir("alice")[-1].content.replace(b"X-Top: first\n", b"")
            content = content_of(content).replace(b"X-Bottom: last\n", b"")
            lines = content.split(b"\n")
            assert (max(map(len, lines)) == size) is (size == 65_484 and not cuts)
            assert joined(content) == local(long_message(size))
    assert len(server.maildir("bob")) == 4
    broken = logged(server, "long lines broken", 4 if cuts else 3)
    assert len(broken) == (4 if cuts else 3)
    assert all(line.endswith(" smtpd-filters long lines broken lines=1") for line in broken)


@pytest.mark.parametrize("way", ["trace", "holding"])
def test_a_line_beyond_what_the_server_takes(start: Start, way: str) -> None:
    server = start(zone=ZONE, filters={"way": WAYS[way]})
    for size in (65_534, 65_535):
        line, _, _ = long_message(size).partition(b"after")
        with greeted(server.connection()) as connection:
            for command in (f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{ALICE}>", "DATA"):
                assert connection.command(command) is not None
            connection.send(line)
            reply = connection.reply()
        assert reply is not None
        assert (reply.code, reply.text) == (500, "5.0.0 Line too long"), size
    assert attempt(server).code == 250
    assert len(server.maildir("alice")) == 1


@pytest.mark.parametrize("way", ["trace", "holding", "adding"])
def test_a_server_that_cuts(start: Start, way: str) -> None:
    """Before 7.4 it kept 1,997 bytes of what a filter gave back; the rest was lost silently."""
    server = start(zone=ZONE, filters={"way": WAYS[way]})
    cuts = server.version == "6.8"
    assert len(logged(server, "cuts lines over 1997 bytes", cuts)) == cuts
    sizes = (1_996, 1_997, 1_998, 5_000)
    with greeted(server.connection()) as connection:
        for size in sizes:
            assert transact(connection, message=long_message(size)).code == 250
            server.settle()
    for size, mail in zip(sizes, server.maildir("alice"), strict=True):
        content = mail.content.replace(b"X-Top: first\n", b"")
        content = content_of(content).replace(b"X-Bottom: last\n", b"")
        assert (max(map(len, content.split(b"\n"))) == size) is (size < 1998 or not cuts)
        assert joined(content) == local(long_message(size))
    assert len(logged(server, "long lines broken", 2 if cuts else 0)) == (2 if cuts else 0)


@pytest.mark.parametrize(
    "way",
    [
        "trace",
        "holding",
    ],
)
def test_a_header_line_that_the_server_would_cut(start: Start, way: str) -> None:
    """A field is folded where it has white space, and unfolds to what it was."""
    words = b" ".join(b"word%d" % number for number in range(700))
    head = HEAD + b"X-Words: " + words + b"\r\nX-Solid: " + b"s" * 3000 + b"\r\nSubject: x\r\n"
    server = start(zone=ZONE, filters={"way": WAYS[way]})
    assert attempt(server, message=head + b"\r\nhello\r\n").code == 250
    content = only(server)
    if server.version == "6.8":
        assert max(map(len, content.split(b"\n"))) <= 998
    unfolded = content.replace(b"\n ", b" ")
    assert b"X-Words: " + words + b"\n" in unfolded
    assert unfolded.replace(b"s s", b"ss").count(b"s" * 3000) == 1
    assert content.endswith(b"\nSubject: x\n\nhello\n")


@pytest.mark.parametrize("way", ["trace --pass-data", "holding"])
def test_long_lines_may_be_refused(start: Start, way: str) -> None:
    name, *flags = way.split()
    make = filter_command if name == "trace" else policy
    server = start(zone=ZONE, filters={"way": make(name, *flags, "--long-lines", "refuse")})
    too_long = 1_998 if server.version == "6.8" else 65_485
    with greeted(server.connection()) as connection:
        for _ in range(2):
            assert transact(connection, message=long_message(too_long)) == Outcome(
                ".", 554, "5.6.0 Message has a line that is too long", stayed=True
            )
            assert transact(connection, message=long_message(too_long - 1)).code == 250
    assert len(server.maildir("alice")) == 2
    assert len(logged(server, "long lines refused", 2)) == 2


# -- what policies do to messages and envelopes ----------------------------------------------------


def test_another_envelope(start: Start) -> None:
    server = start(zone=ZONE, filters={"way": policy("rewriting", "--into", scratch_path("seen"))})
    recipients = (ALICE, "robert@elsewhere.example")
    outcome = attempt(
        server, sender="old@good.example", recipients=recipients, helo="EHLO unknown.example"
    )
    assert outcome.code == 250
    assert attempt(server, sender="nobody@good.example", recipients=(ALICE,)).code == 250
    to_bob, *_ = server.maildir("bob")
    assert to_bob.message["Return-Path"] == "<new@good.example>"
    assert "from known.example" in to_bob.message["Received"]
    paths = {mail.message["Return-Path"] for mail in server.maildir("alice")}
    assert paths == {"<new@good.example>", None}  # the null sender: no field
    assert server.scratch("seen").decode().splitlines() == [
        f"commit sender=new@good.example recipients=['{ALICE}', 'bob@local.example']",
        f"commit sender= recipients=['{ALICE}']",
    ]


def test_a_closed_door(start: Start) -> None:
    """smtpd would go on after a reject at connect, without a greeting."""
    server = start(zone=ZONE, filters={"closed": policy("closed")})
    assert attempt(server) == Outcome("connect", 554, "5.7.1 Closed on Saturdays", stayed=False)


def test_junk_by_the_header(start: Start) -> None:
    server = start(zone=ZONE, filters={"marking": policy("marking")})
    with greeted(server.connection()) as connection:
        for head in (b"", b"X-Bad: yes\r\n", b""):
            assert transact(connection, message=head + MESSAGE).code == 250
            server.settle()
    mails = server.maildir("alice")
    assert sorted(mail.folder for mail in mails) == ["", "", "Junk"]
    assert [mail.message["X-Spam"] for mail in mails if mail.folder] == ["Yes"]


def test_a_refusal_of_a_message(start: Start) -> None:
    server = start(zone=ZONE, filters={"scanning": policy("scanning")})
    with greeted(server.connection()) as connection:
        assert transact(connection).code == 250
        assert transact(connection, message=MESSAGE + b"an EICAR\r\n") == Outcome(
            ".", 554, "5.7.1 Message has a virus", stayed=True
        )
        assert transact(connection).code == 250
    assert len(server.maildir("alice")) == 2


@pytest.mark.parametrize(
    ("on_error", "said"),
    [("proceed", "250"), ("tempfail", "451 4.3.0 Temporary failure, please try again later")],
)
def test_a_coroutine_has_a_deadline(start: Start, on_error: str, said: str) -> None:
    slow = policy("slow", "--deadline", "3s", "--on-error", on_error)
    server = start(zone=ZONE, filters={"slow": slow})
    with ThreadPoolExecutor(20) as pool:
        quick = [pool.submit(attempt, server) for _ in range(10)]
        late = [pool.submit(attempt, server, sender="after=60@good.example") for _ in range(5)]
        soon = [pool.submit(attempt, server, sender="after=0.01@good.example") for _ in range(5)]
    assert {future.result().code for future in quick} == {250}
    assert {future.result().said for future in soon} == {"550 5.7.1 After 0.01 s"}
    assert all(future.result().said.startswith(said) for future in late)
    server.wait_for(r"slow mail-from result=\S+ error=\"not done after 3 s\"")


def test_a_client_that_does_not_wait(start: Start) -> None:
    """Its coroutine is given up with it: the filter goes on, and ends with its server."""
    server = start(zone=ZONE, filters={"slow": policy("slow", "--deadline", "1s")})
    for _ in range(5):
        with greeted(server.connection()) as connection:
            connection.send(b"MAIL FROM:<after=50@good.example>\r\n")
    with greeted(server.connection()) as connection:
        connection.send(b"MAIL FROM:<x@good.example>\r\nRCPT TO:<alice@local.example>\r\nDATA\r\n")
        connection.send(b"Subject: half\r\n\r\nof a mess")
    assert attempt(server).code == 250
    assert len(server.maildir("alice")) == 1


def test_a_server_ends_though_a_filter_waits(start: Start) -> None:
    server = start(zone=ZONE, filters={"slow": policy("slow", "--deadline", "60s")})
    with greeted(server.connection()) as connection:
        connection.send(b"MAIL FROM:<after=50@good.example>\r\n")
        connection.send(b"NOOP\r\n")
        assert attempt(server).code == 250
        server.terminate(timeout=30)
    assert server.leftovers == []
