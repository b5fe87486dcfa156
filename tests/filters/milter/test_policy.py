"""filter-milter, with milters that follow a script."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.filters.milter import Milter
from smtpd_filters.milter import (
    AddHeader,
    AddRecipient,
    Agreement,
    Answer,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    NewBody,
    Quarantine,
    ReplyCode,
    Verdict,
)
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.testing import Conversation, Delivery

from .stub import Stub, milter

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.milter import Edit, Event
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.testing import Client

    from .stub import Seen

CONTINUE, ACCEPT = Verdict(v.CONTINUE).encode(), Verdict(v.ACCEPT).encode()
MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nbody\r\n"
NO = ReplyCode(550, "5.7.1", (b"no 100%", b"never")).encode()
REFUSED = "550 5.7.1 no 100% never"
LATER = "451 4.3.0 Temporary failure, please try again later"
NOTHING = sum(bit for event, bit in v.OMITTED.items())
#: No event is answered but the end of the body.
SILENT = Agreement(6, 0x1FF, sum(v.UNANSWERED.values()) | v.LEADING_SPACE)


def greeted(smtpd: Conversation) -> Client:
    """Return a client that has greeted."""
    there = smtpd.connect()
    there.ehlo("mail.example.net")
    return there


def send(there: Client, content: bytes = MESSAGE) -> Delivery:
    """Send a message."""
    assert not there.mail_from("bob@example.net").reply
    assert not there.rcpt_to("alice@example.org").reply
    return there.message(content)


def deliver(stub: Stub, *flags: str, content: bytes = MESSAGE) -> Delivery:
    """Send a message through one milter."""
    with Conversation(Milter, "--milter", stub.address, *flags) as smtpd:
        return send(greeted(smtpd), content)


def at_end(*answers: Answer) -> dict[bytes, bytes | None]:
    """Return the answers of a milter to the end of a message."""
    return {v.END_OF_BODY: b"".join(answer.encode() for answer in answers)}


# -- what a milter gets -------------------------------------------------------------------


def test_everything_in_order_with_its_macros() -> None:
    with milter() as stub:
        mail = deliver(stub, content=b"A:x\r\nB: \r\n\ty\r\nC:\r\n\r\n.\r\n\r\n\xff")
        assert mail.unchanged
    seen = stub.seen
    assert seen.commands == b"CHMRTLLLNBEQ"
    assert seen.fields(v.CONNECT) == [(b"mail.example.com", b"4", b"33174", b"192.0.2.1")]
    assert seen.fields(v.HELO) == [(b"mail.example.net",)]
    assert seen.fields(v.MAIL) == [(b"<bob@example.net>",)]
    assert seen.fields(v.RCPT) == [(b"<alice@example.org>",)]
    assert seen.fields(v.HEADER) == [(b"A", b"x"), (b"B", b" \n\ty"), (b"C", b"")]
    assert seen.body == b".\r\n\r\n\xff\r\n"
    macros = {event.command: event.macros for event in seen.events}
    assert macros[v.CONNECT] == {
        b"j": b"mx.example.org",
        b"_": b"mail.example.com [192.0.2.1]",
        b"v": b"OpenSMTPD 7.8.0",
        b"{daemon_name}": b"mx.example.org",
        b"{daemon_addr}": b"198.51.100.25",
        b"{daemon_port}": b"25",
    }
    assert macros[v.HELO] == {}
    assert macros[v.MAIL] == {
        b"{mail_addr}": b"bob@example.net",
        b"{mail_host}": b"example.net",
        b"{mail_mailer}": b"smtp",
    }
    msgid = macros[v.RCPT].pop(b"i")
    assert macros[v.RCPT] == {
        b"{rcpt_addr}": b"alice@example.org",
        b"{rcpt_host}": b"example.org",
        b"{rcpt_mailer}": b"smtp",
    }
    for event in (v.DATA, v.END_OF_HEADER, v.END_OF_BODY):
        assert macros[event] == {b"i": msgid}
    assert macros[v.HEADER] == macros[v.BODY] == {}


def test_tls_login_and_the_parameters_of_mail() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        there = smtpd.connect(address="2001:db8::1", rdns="x.example", fcrdns="fail")
        there.ehlo()
        there.tls("TLSv1.3:TLS_AES_256_GCM_SHA384:256")
        there.ehlo()
        there.auth("joe")
        there.mail_from("", parameters="BODY=8BITMIME SIZE=10 AUTH=<>")
        there.rcpt_to("postmaster")
        there.message()
    macros = {event.command: event.macros for event in stub.seen.events}
    assert stub.seen.fields(v.CONNECT) == [(b"[2001:db8::1]", b"6", b"33174", b"2001:db8::1")]
    assert macros[v.CONNECT][b"_"] == b"x.example [IPv6:2001:db8::1] (may be forged)"
    assert macros[v.HELO] == {
        b"{tls_version}": b"TLSv1.3",
        b"{cipher}": b"TLS_AES_256_GCM_SHA384",
        b"{cipher_bits}": b"256",
    }
    assert stub.seen.fields(v.MAIL) == [(b"<>", b"BODY=8BITMIME", b"SIZE=10", b"AUTH=<>")]
    assert macros[v.MAIL][b"{auth_type}"] == b"PLAIN"
    assert macros[v.MAIL][b"{auth_authen}"] == b"joe"
    assert macros[v.MAIL][b"{mail_addr}"] == b""
    assert b"{mail_host}" not in macros[v.MAIL]
    assert stub.seen.fields(v.RCPT) == [(b"<postmaster>",)]


def test_who_submitted_a_message() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        there = greeted(smtpd)
        there.auth("joe", mechanism="LOGIN")
        there.mail_from("bob@example.net", parameters="AUTH=al+40example.net")
    [macros] = [event.macros for event in stub.seen.events if event.command == v.MAIL]
    assert macros[b"{auth_type}"] == b"LOGIN"
    assert macros[b"{auth_author}"] == b"al+40example.net"


def test_an_address_has_no_zone() -> None:
    """libmilter ends the connection if it can't parse an address."""
    with milter() as stub, _one(stub) as smtpd:
        there = smtpd.connect(None, "fe80::9%em0", dest="[fe80::1%em0]:25")
        there.ehlo()
        there.mail_from("bob@example.net")
    assert stub.seen.fields(v.CONNECT) == [(b"[fe80::9]", b"6", b"33174", b"fe80::9")]
    macros = stub.seen.events[1].macros
    assert macros[b"_"] == b"unknown [IPv6:fe80::9]"
    assert macros[b"{daemon_addr}"] == b"fe80::1"


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    with milter() as stub, _one(stub) as smtpd:
        there = smtpd.connect(None, "::ffff:192.0.2.9", dest="[::ffff:192.0.2.1]:25")
        there.ehlo()
        there.mail_from("bob@example.net")
    assert stub.seen.fields(v.CONNECT) == [(b"[192.0.2.9]", b"4", b"33174", b"192.0.2.9")]
    macros = stub.seen.events[1].macros
    assert macros[b"_"] == b"unknown [192.0.2.9]"
    assert macros[b"{daemon_addr}"] == b"192.0.2.1"


def test_the_parameters_of_recipients() -> None:
    with milter() as stub, _one(stub) as smtpd:
        there = greeted(smtpd)
        there.mail_from("bob@example.net")
        there.rcpt_to("alice@example.org", parameters="NOTIFY=NEVER")
        there.rcpt_to("carol@example.org")
    expected = [(b"<alice@example.org>", b"NOTIFY=NEVER"), (b"<carol@example.org>",)]
    assert stub.seen.fields(v.RCPT) == expected


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"a\rb\r\n"], [b"a b"]),
        ([b"a\r", b"\n", b"b\r", b"c\n"], [b"a", b"b c"]),
        ([b"a\r.\r\n", b"\r\r\n"], [b"a .", b" "]),
        ([b"a\r"], [b"a "]),
        ([b"\r.\n"], [b" ."]),
        ([b"a\0b\r\0\n", b"\0.\n"], [b"ab ", b"."]),
    ],
)
def test_a_line_of_a_new_body_has_no_cr_and_no_nul(pieces: list[bytes], lines: list[bytes]) -> None:
    """Another server might take it for a line end, and `CR . CR` for the end of the message."""
    with milter(answers=at_end(*map(NewBody, pieces), Verdict(v.ACCEPT))) as stub:
        content = deliver(stub).content
        assert list(content[content.index(b"") + 1 :]) == lines


def test_a_milter_is_probed() -> None:
    with milter() as stub, _one(stub) as smtpd:
        (filter_,) = smtpd.filters
        (probe,) = filter_.probes()
        assert asyncio.run(_asked(probe)) == ""
    assert asyncio.run(_asked(probe)) == "connection refused"


async def _asked(probe: Probe) -> str:
    return await probe.ask()


def test_a_client_on_the_socket_is_localhost() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        there = smtpd.connect(local=True)
        there.ehlo()
        send(there)
    assert stub.seen.fields(v.CONNECT) == [(b"localhost", b"4", b"0", b"127.0.0.1")]
    assert stub.seen.events[1].macros[b"_"] == b"localhost [127.0.0.1]"


def test_a_macro_of_one_letter_may_be_asked_for_with_braces() -> None:
    lists = {v.CONNECT: (b"{j}", b"{x}", b"{}a"), v.DATA: (b"{i}", b"i")}
    with milter(Agreement(6, 0x1FF, v.LEADING_SPACE | v.NO_UNKNOWN, lists)) as stub:
        deliver(stub)
    macros = {event.command: event.macros for event in stub.seen.events}
    assert macros[v.CONNECT] == {b"{j}": b"mx.example.org"}
    assert len(set(macros[v.DATA].values())) == 1
    assert macros[v.DATA].keys() == {b"{i}", b"i"}


def test_macros_that_the_milter_asks_for() -> None:
    lists = {
        v.CONNECT: (b"{client_addr}", b"{client_resolve}", b"{client_port}", b"{nothing}"),
        v.RCPT: (b"{client_name}", b"i"),
        v.END_OF_BODY: (b"{mail_addr}",),
    }
    with milter(Agreement(6, 0x1FF, v.LEADING_SPACE, lists)) as stub:
        deliver(stub, "--daemon-name", "inbound")
    macros = {event.command: event.macros for event in stub.seen.events}
    assert macros[v.CONNECT] == {
        b"{client_addr}": b"192.0.2.1",
        b"{client_resolve}": b"OK",
        b"{client_port}": b"33174",
    }
    assert macros[v.RCPT].keys() == {b"{client_name}", b"i"}
    assert macros[v.END_OF_BODY] == {b"{mail_addr}": b"bob@example.net"}
    assert macros[v.DATA].keys() == {b"i"}


def test_one_space_less_without_the_wish_and_one_more_in_what_is_added() -> None:
    answers = at_end(AddHeader(b"X", b"y"), AddHeader(b"Z", b" y"), Verdict(v.ACCEPT))
    with milter(Agreement(6, 0x1FF, 0), answers) as stub:
        mail = deliver(stub, content=b"A: x\r\nB:y\r\nC:\tz\r\n\r\n")
    assert stub.seen.fields(v.HEADER) == [(b"A", b"x"), (b"B", b"y"), (b"C", b"\tz")]
    assert mail.headers.lines()[-2:] == [b"X: y", b"Z:  y"]


def test_one_connection_for_all_messages_of_a_session() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        there = greeted(smtpd)
        send(there)
        send(there)
        there.mail_from("x@example.net")
        there.rset()
        there.tls()
        there.ehlo("other")
        send(there)
    assert stub.seen.commands == b"CHMRTLLNBEAMRTLLNBEAMAHMRTLLNBEQ"
    assert stub.seen.fields(v.HELO) == [(b"mail.example.net",), (b"other",)]


def test_the_greeting_is_repeated_after_starttls() -> None:
    with milter() as stub, _one(stub, "--first-phase", "helo") as smtpd:
        there = greeted(smtpd)
        there.tls()
        there.ehlo("mail.example.net")
        there.mail_from("bob@example.net")
    assert stub.seen.commands == b"CHHMQ"


@pytest.mark.parametrize("event", [v.MAIL, v.BODY, v.END_OF_BODY])
def test_a_refusal_of_a_message_is_not_one_of_the_greeting_after_starttls(event: bytes) -> None:
    """A milter may refuse a sender because the session isn't encrypted."""

    def script(at: Event, seen: Seen) -> bytes:
        again = len(seen.fields(v.HELO)) == 2
        return NO if at.command == event and not again else stub.usual(at)

    with milter(script=script) as stub, _one(stub, "--first-phase", "helo") as smtpd:
        there = greeted(smtpd)
        said = there.mail_from("bob@example.net").reply
        if not said:
            there.rcpt_to("alice@example.org")
            said = there.message().reply
        assert said == REFUSED
        there.tls()
        assert there.ehlo("mail.example.net").reply == ""
        assert send(there).unchanged


def test_a_greeting_after_starttls_is_asked_about_whatever_the_message_before_was() -> None:
    def script(at: Event, seen: Seen) -> bytes:
        again = len(seen.fields(v.HELO)) == 2
        return NO if at.command == v.HELO and again else stub.usual(at)

    with milter(script=script) as stub, _one(stub, "--first-phase", "helo") as smtpd:
        there = greeted(smtpd)
        send(there)
        there.tls()
        assert there.ehlo("mail.example.net").reply == REFUSED


def test_a_new_name_after_starttls_is_asked_about_at_its_greeting() -> None:
    def script(at: Event, _seen: Seen) -> bytes:
        return NO if at.fields == (b"other.example.net",) else stub.usual(at)

    with milter(script=script) as stub, _one(stub, "--first-phase", "helo") as smtpd:
        there = greeted(smtpd)
        there.tls()
        assert there.ehlo("other.example.net").reply == REFUSED
    assert stub.seen.fields(v.HELO) == [(b"mail.example.net",), (b"other.example.net",)]


def test_sessions_without_mail_are_not_told() -> None:
    with milter() as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        greeted(smtpd).quit()
    assert not stub.connections


def test_a_large_body_in_pieces_and_skip() -> None:
    body = b"".join(b"%d\r\n" % number for number in range(60_000))
    with milter() as stub:
        deliver(stub, content=b"A: b\r\n\r\n" + body)
    pieces = stub.seen.fields(v.BODY)
    assert b"".join(piece for (piece,) in pieces) == body
    assert {len(piece) for (piece,) in pieces[:-1]} == {65535}
    with milter(answers={v.BODY: Verdict(v.SKIP).encode()}) as stub:
        deliver(stub, content=b"A: b\r\n\r\n" + body)
    assert len(stub.seen.fields(v.BODY)) == 1
    assert stub.seen.commands.endswith(b"NBEQ")


@pytest.mark.parametrize(
    ("content", "fields", "body"),
    [
        (b"A: b\r\n\r\n", [(b"A", b" b")], b""),
        (b"A: b\r\n", [(b"A", b" b")], b""),
        (b"A:\r\n b\r\nC:\t\r\n\td \r\n\r\n", [(b"A", b"\n b"), (b"C", b"\t\n\td ")], b""),
        (b"\r\nx\r\n", [], b"x\r\n"),
        (b"A: \xff\r\n\r\na\rb\r\n", [(b"A", b" \xff")], b"a\rb\r\n"),
        (b"From x\r\nA: b\r\n\r\nx\r\n", [(b"A", b" b")], b"x\r\n"),
    ],
)
def test_bytes_as_they_are(content: bytes, fields: list[object], body: bytes) -> None:
    with milter() as stub:
        assert deliver(stub, content=content).unchanged
    assert stub.seen.fields(v.HEADER) == fields
    assert stub.seen.body == body


def test_a_stray_cr_in_the_header_becomes_a_blank() -> None:
    with milter() as stub:
        delivery = deliver(stub, content=b"A: b\r\rc\r\r\n\td\r\n\r\na\rb\r\n")
    assert stub.seen.fields(v.HEADER) == [(b"A", b" b  c \n\td")]
    assert stub.seen.body == b"a\rb\r\n"
    assert delivery.bytes.endswith(b"\nA: b  c \n\td\n\na\rb\n")


BODIES = [b"", b"\r\n", b"\r\nbody\r\n.dot\r\na\rb\r\n", b"\r\n" + b"x\r\n" * 99_999]


@pytest.mark.parametrize("line", [b": x", b"X\xff: y", b"X Y: z", b"X\x1f: y"])
@pytest.mark.parametrize("body", BODIES, ids=["none", "empty", "small", "large"])
def test_a_line_that_is_no_field_ends_the_header_for_all(line: bytes, body: bytes) -> None:
    """Programs that show mail read on, and show a From that OpenDMARC has not seen."""
    rest = line + b"\r\n\tfold\r\n.A: b\r\nFrom: boss@example.org\r\n"
    answers = at_end(AddHeader(b"X-Added", b" y"), Verdict(v.CONTINUE))
    with milter(answers=answers) as stub, Conversation(Milter, "--milter", stub.address) as smtpd:
        delivery = send(greeted(smtpd), b"A: b\r\n" + rest + body)
        assert "header ended before a line that is not a field" in smtpd.log[-1]
    assert stub.seen.fields(v.HEADER) == [(b"A", b" b")]
    assert stub.seen.body == rest + (body or b"\r\n")
    assert delivery.headers.names() == ["Received", "A", "X-Added"]
    assert delivery.body.replace(b"\n", b"\r\n") == rest + body


def test_a_line_that_is_no_field_of_a_message_whose_body_is_replaced() -> None:
    with milter(answers=at_end(NewBody(b"new\r\n"), Verdict(v.CONTINUE))) as stub:
        delivery = deliver(stub, content=b"A: b\r\n: x\r\nFrom: c\r\n\r\nbody\r\n")
    assert delivery.headers.names() == ["Received", "A"]
    assert delivery.body == b"new\n"


# -- phases ----------------------------------------------------------------------------------


def registered(*flags: str) -> set[str]:
    """Return the handlers that are registered."""
    with Conversation(Milter, *flags) as smtpd:
        there = smtpd.connect()
        asked = {"connect": there.greeting.asked, "ehlo": there.ehlo().asked}
        asked["mail_from"] = there.mail_from("a@b.example").asked
        asked["rcpt_to"] = there.rcpt_to("a@b.example").asked
        asked["data"] = there.data().asked
        return {name for name, each in asked.items() if each}


@pytest.mark.parametrize(
    ("protocol", "flags", "phases"),
    [
        (0, (), {"mail_from", "rcpt_to", "data"}),
        (SILENT.protocol, (), set()),
        (v.NO_CONNECT | v.NO_HELO | v.NR_MAIL | v.NR_DATA, (), {"rcpt_to"}),
        (v.NR_CONNECT | v.NO_HELO | v.NO_MAIL | v.NO_RCPT, (), {"data"}),
        (v.NO_DATA, ("--recipients", "accepted"), {"mail_from", "data"}),
        (v.NO_DATA, ("--first-phase", "helo"), {"ehlo", "mail_from", "rcpt_to"}),
        (v.NO_CONNECT | v.NO_HELO, ("--first-phase", "helo"), {"mail_from", "rcpt_to", "data"}),
    ],
)
def test_only_phases_at_which_it_can_refuse(
    protocol: int, flags: tuple[str, ...], phases: set[str]
) -> None:
    with milter(Agreement(6, 0x11, protocol)) as stub:
        assert registered("--milter", stub.address, *flags) == phases


def test_a_milter_that_is_down_at_start() -> None:
    with milter() as stub:
        address = stub.address
    with Conversation(Milter, "--milter", address, "--on-error", "proceed") as smtpd:
        assert greeted(smtpd).mail_from("a@b.example").asked
        assert "not reached at start: registering all phases" in smtpd.log[0]
        assert 'cause="Connection refused"' in smtpd.log[0]


def test_a_milter_that_wants_nothing_of_a_message_needs_no_lines() -> None:
    wishes = v.NO_HEADERS | v.NO_BODY | v.NO_END_OF_HEADER
    with milter(Agreement(6, 0, wishes), {v.END_OF_BODY: NO}) as stub:
        mail = deliver(stub)
        assert mail.reply == REFUSED
        assert mail.unchanged
    assert stub.seen.commands == b"CHMRTEQ"


# -- refusals --------------------------------------------------------------------------------

VERDICTS = [
    (Verdict(v.REJECT).encode(), "reject", "550 5.7.1 Command rejected"),
    (Verdict(v.TEMPFAIL).encode(), "reject", "451 4.7.1 Service unavailable - try again later"),
    (NO, "reject", REFUSED),
    (ReplyCode(421, "", (b"bye",)).encode(), "disconnect", "421 4.7.0 bye"),
    (ReplyCode(451, "4.7.1", (b"",)).encode(), "reject", "451 4.7.1 Service unavailable"),
    (ReplyCode(550, "", (b"\x1b[31m\xff",)).encode(), "reject", "550 5.7.1 ?[31m?"),
    (Verdict(v.SHUTDOWN).encode(), "disconnect", "421 4.7.0 "),
    (Verdict(v.CONNECTION_FAILURE).encode(), "disconnect", "421 4.7.0 "),
]


@pytest.mark.parametrize(("answer", "verb", "reply"), VERDICTS)
@pytest.mark.parametrize("event", [v.MAIL, v.RCPT, v.DATA])
def test_refusals_of_commands(event: bytes, answer: bytes, verb: str, reply: str) -> None:
    with milter(answers={event: answer}) as stub, _one(stub) as smtpd:
        there = greeted(smtpd)
        verdict = there.mail_from("bob@example.net")
        if event != v.MAIL:
            assert verdict.verb == "proceed"
            verdict = there.rcpt_to("alice@example.org")
        if event == v.DATA:
            assert verdict.verb == "proceed"
            verdict = there.data()
        assert verdict.verb == verb
        assert verdict.reply.startswith(reply)


@pytest.mark.parametrize(("answer", "_verb", "reply"), VERDICTS[:5])
@pytest.mark.parametrize("event", [v.HEADER, v.END_OF_HEADER, v.BODY, v.END_OF_BODY])
def test_refusals_of_content_give_the_lines_back(
    event: bytes, answer: bytes, _verb: str, reply: str
) -> None:
    edits = AddHeader(b"X", b"y").encode() if event == v.END_OF_BODY else b""
    with milter(answers={event: edits + answer}) as stub:
        mail = deliver(stub)
    assert mail.reply.startswith(reply)
    assert mail.unchanged


@pytest.mark.parametrize("event", [v.CONNECT, v.HELO])
def test_a_refused_session(event: bytes) -> None:
    with milter(answers={event: NO}) as stub, _one(stub) as smtpd:
        there = greeted(smtpd)
        verdict = there.mail_from("bob@example.net")
        assert verdict.reply == REFUSED
        assert verdict.verb == ("disconnect" if event == v.CONNECT else "reject")
        if event == v.HELO:
            assert there.mail_from("joe@example.net").reply == REFUSED
            assert stub.seen.commands == b"CH"


def test_a_session_refused_at_connect_itself() -> None:
    with milter(answers={v.CONNECT: NO}) as stub, _one(stub, "--first-phase", "connect") as smtpd:
        there = smtpd.connect()
        assert there.greeting.reply == REFUSED


def test_a_recipient_alone_is_refused() -> None:
    def script(event: Event, _seen: Seen) -> bytes:
        if event.fields == (b"<bad@example.org>",):
            return NO
        return stub.usual(event)

    with milter(script=script) as stub, _one(stub) as smtpd:
        there = greeted(smtpd)
        there.mail_from("bob@example.net")
        assert there.rcpt_to("bad@example.org").reply == REFUSED
        assert there.rcpt_to("good@example.org").verb == "proceed"
        assert there.message().unchanged
    assert stub.seen.fields(v.RCPT) == [(b"<bad@example.org>",), (b"<good@example.org>",)]


def test_only_accepted_recipients() -> None:
    with milter() as stub, _one(stub, "--recipients", "accepted") as smtpd:
        there = greeted(smtpd)
        there.mail_from("bob@example.net")
        there.rcpt_to("bad@example.org", accepted=False)
        there.rcpt_to("good@example.org")
        there.rcpt_to("fine@example.org")
        there.message()
    assert stub.seen.fields(v.RCPT) == [(b"<good@example.org>",), (b"<fine@example.org>",)]
    with milter(answers={v.RCPT: NO}) as stub, _one(stub, "--recipients", "accepted") as smtpd:
        there = greeted(smtpd)
        there.mail_from("bob@example.net")
        there.rcpt_to("good@example.org")
        assert there.data().reply == REFUSED


def test_an_accepted_message_and_an_accepted_session() -> None:
    with milter(answers={v.MAIL: ACCEPT}) as stub, _one(stub) as smtpd:
        there = greeted(smtpd)
        send(there)
        send(there)
    assert stub.seen.commands == b"CHMAMQ"
    with milter(answers={v.HELO: ACCEPT}) as stub, _one(stub) as smtpd:
        there = greeted(smtpd)
        send(there)
        send(there)
    assert stub.seen.commands == b"CHQ"


@pytest.mark.parametrize("event", [v.MAIL, v.RCPT, v.HEADER, v.END_OF_BODY])
def test_discard(event: bytes) -> None:
    discard = {event: Verdict(v.DISCARD).encode()}
    with milter(answers=discard) as stub, _one(stub) as smtpd:
        there = greeted(smtpd)
        replies = [there.mail_from("bob@example.net").reply]
        if event != v.MAIL:
            replies.append(there.rcpt_to("alice@example.org").reply)
        if event not in {v.MAIL, v.RCPT}:
            replies.append(there.message().reply)
        assert replies[-1] == "550 5.7.1 Message rejected"
    with milter(answers=discard) as stub:
        assert deliver(stub, "--discard", "accept").unchanged


# -- edits -----------------------------------------------------------------------------------


def test_edits_of_the_header_and_the_body() -> None:
    answers = at_end(
        Verdict(v.PROGRESS),
        InsertHeader(0, b"DKIM-Signature", b" v=1;\n\tb=x"),
        InsertHeader(0, b"DKIM-Filter", b" f"),
        ChangeHeader(1, b"Subject", b" [tag] hello"),
        ChangeHeader(1, b"X-None", b""),
        AddHeader(b"X-Last", b"y"),
        NewBody(b"new\r"),
        AddHeader(b"X-Later", b" z"),
        NewBody(b"\nbody"),
        Verdict(v.CONTINUE),
    )
    with milter(answers=answers) as stub:
        mail = deliver(stub)
    lines = mail.headers.lines()
    assert lines[:3] == [b"DKIM-Filter: f", b"DKIM-Signature: v=1;", b"\tb=x"]
    assert lines[3].startswith(b"Received: ")
    assert lines[-4:] == [
        b"From: bob@example.net",
        b"Subject: [tag] hello",
        b"X-Last:y",
        b"X-Later: z",
    ]
    assert mail.body == b"new\nbody\n"


def test_each_milter_sees_the_edits_of_those_before_it() -> None:
    first = at_end(InsertHeader(0, b"A", b" 1"), NewBody(b"new\r\n"), Verdict(v.ACCEPT))
    second = at_end(ChangeHeader(1, b"A", b" 2"), ChangeHeader(1, b"From", b""), Verdict(v.ACCEPT))
    with milter(answers=first) as one, milter(answers=second) as two, milter() as three:
        flags = ("--milter", two.address, "--milter", three.address)
        mail = deliver(one, *flags)
    assert two.seen.fields(v.HEADER)[0] == (b"A", b" 1")
    assert two.seen.body == b"new\r\n"
    assert three.seen.fields(v.HEADER) == [(b"A", b" 2"), (b"Subject", b" hello")]
    assert mail.headers.lines()[0] == b"A: 2"
    assert mail.body == b"new\n"


def test_the_first_refusal_ends_it() -> None:
    with milter(answers={v.BODY: NO}) as one, milter() as two:
        assert deliver(one, "--milter", two.address).reply == REFUSED
    assert two.seen.commands == b"CHMRTQ"


def test_quarantine() -> None:
    answers = at_end(Quarantine(b"virus \xff\n"), Verdict(v.ACCEPT))
    with milter(answers=answers) as stub:
        mail = deliver(stub)
        assert mail.headers.get("X-Spam") == "Yes"
        assert mail.headers.get("X-Milter-Quarantine") == "virus ?"
        assert deliver(stub, "--quarantine", "accept").headers.get("X-Spam") is None
        assert deliver(stub, "--quarantine", "reject").reply == "550 5.7.1 Message rejected"
        assert deliver(stub, "--quarantine", "tempfail").reply.startswith("451 4.7.1 ")


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (ReplyCode(550, "5.7.1", (b"virus",)), "550 5.7.1 virus"),
        (Verdict(v.REJECT), "550 5.7.1 Command rejected"),
        (Verdict(v.TEMPFAIL), "451 4.7.1 Service unavailable"),
    ],
)
def test_a_refusal_after_a_quarantine_is_one(verdict: Answer, reply: str) -> None:
    with milter(answers=at_end(Quarantine(b"virus"), verdict)) as stub:
        assert deliver(stub).reply.startswith(reply)
        assert deliver(stub, "--quarantine", "accept").reply.startswith(reply)


def test_a_milter_that_wants_nothing_but_the_envelope() -> None:
    """Such as one that adds a recipient to all mail."""
    agreement = Agreement(6, v.ENVELOPE, NOTHING)
    added = at_end(AddRecipient(b"<copies@example.org>"), Verdict(v.CONTINUE))
    with milter(agreement, added) as stub:
        with Conversation(Milter, "--milter", stub.address) as smtpd:
            assert send(greeted(smtpd)).unchanged
            assert "not possible: add recipient <copies@example.org>" in smtpd.log[-1]
        reply = deliver(stub, "--envelope-changes", "tempfail").reply
        assert reply == "451 4.3.5 The envelope of this message cannot be changed"
    deleted = at_end(DeleteRecipient(b"<alice@example.org>"), Verdict(v.CONTINUE))
    with milter(agreement, deleted) as stub:
        assert deliver(stub).reply == "550 5.7.1 Message rejected"


def test_changes_of_the_envelope() -> None:
    changes = at_end(
        ChangeSender(b"<x@example.net>"),
        AddRecipient(b"<y@example.org>"),
        DeleteRecipient(b"<alice@example.org>"),
        Verdict(v.ACCEPT),
    )
    with milter(answers=changes) as stub:
        with _one(stub) as smtpd:
            assert send(greeted(smtpd)).unchanged
            assert "not possible: change sender to <x@example.net>; not possible" in smtpd.log[-1]
        reply = deliver(stub, "--envelope-changes", "tempfail").reply
        assert reply == "451 4.3.5 The envelope of this message cannot be changed"


@pytest.mark.parametrize(
    "address",
    [
        b"<alice@example.org>", b"alice@example.org", b" <Alice@Example.ORG.>\t",
        b"<@relay.example,@b.example:alice@example.org>", b'<"alice"@example.org>',
        b"Alice <alice@example.org>", b'"Alice >" <alice@example.org>',
    ],
)  # fmt: skip
def test_all_recipients_are_deleted(address: bytes) -> None:
    with milter(answers=at_end(DeleteRecipient(address), Verdict(v.ACCEPT))) as stub:
        assert deliver(stub).reply == "550 5.7.1 Message rejected"
        assert not deliver(stub, "--discard", "accept").reply


@pytest.mark.parametrize(
    ("edits", "reply"),
    [
        ([DeleteRecipient(b"bob@example.org")], ""),
        ([DeleteRecipient(b"alice@example.org"), AddRecipient(b"bob@example.org")], ""),
        ([DeleteRecipient(b"alice@example.org"), AddRecipient(b"<Alice@example.org>")], ""),
        (
            [
                AddRecipient(b"bob@example.org"),
                DeleteRecipient(b"<Bob@example.org>"),
                DeleteRecipient(b"alice@example.org"),
            ],
            "550 5.7.1 Message rejected",
        ),
        ([AddRecipient(b"x"), DeleteRecipient(b"x@mx.example.org")], ""),
    ],
)
def test_some_recipients_are_left(edits: list[Edit], reply: str) -> None:
    with milter(answers=at_end(*edits, Verdict(v.ACCEPT))) as stub:
        assert deliver(stub).reply == reply


def test_an_invalid_name_is_left_out() -> None:
    answers = at_end(AddHeader(b"a b", b"x"), AddHeader(b"X", b"y\nBcc: z"), Verdict(v.ACCEPT))
    with milter(answers=answers) as stub, _one(stub) as smtpd:
        mail = send(greeted(smtpd))
        assert mail.headers.lines()[-1] == b"X: y Bcc: z"
        assert "not a header's name: 'a b'" in smtpd.log[-1]


def _one(stub: Stub, *flags: str) -> Conversation:
    return Conversation(Milter, "--milter", stub.address, *flags)


# -- settings --------------------------------------------------------------------------------


def test_a_unix_socket(tmp_path: Path) -> None:
    with milter(path=tmp_path / "m") as stub:
        assert deliver(stub).unchanged
    assert stub.seen.commands.startswith(b"CHM")


def test_exempt_clients() -> None:
    with milter() as stub:
        assert deliver(stub, "--exempt", "192.0.2.0/24").unchanged
    assert not stub.connections


def test_an_older_version_is_offered() -> None:
    with milter(Agreement(2, 0x3F, 0)) as stub:
        deliver(stub, "--protocol-version", "2")
    assert stub.seen.commands == b"CHMRLLNBEQ"
