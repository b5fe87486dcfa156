"""filter-spamd between a simulated smtpd and a scripted spamd."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import PROCEED, Filter, Message, Proceed, Session
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.spamd import Spamd
from smtpd_filters.filters.spamd.thresholds import THRESHOLD, Threshold
from smtpd_filters.lookups.stream.connection import Connection
from smtpd_filters.scoring.rules import FilterRules, Rules, RuleSettings
from smtpd_filters.settings import from_mapping
from smtpd_filters.testing import Conversation
from tests.effort import brief
from tests.filters.serving import PATIENCE
from tests.filters.spamd import stub
from tests.filters.spamd.stub import Answer, SpamdStub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from smtpd_filters.testing import Client, Delivery

LATER = "451 4.3.0 Temporary failure, please try again later"
MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nbody\r\n"
REFUSED = "554 5.7.1 Spam message rejected"


@pytest.fixture
def spamd() -> Iterator[SpamdStub]:
    with SpamdStub() as server:
        yield server


def deliver(
    smtpd: Conversation,
    content: bytes = MESSAGE,
    *,
    sender: str = "bob@example.net",
    recipients: tuple[str, ...] = ("anna@example.org",),
    **client: Any,
) -> Delivery:
    there: Client = smtpd.connect(**client)
    there.ehlo()
    there.mail_from(sender)
    for each in recipients:
        there.rcpt_to(each)
    return there.message(content)


def scan(spamd: SpamdStub, *flags: str, content: bytes = MESSAGE, **more: Any) -> Delivery:
    with Conversation(Spamd, "--spamd", spamd.server, *flags) as smtpd:
        return deliver(smtpd, content, **more)


def logged(smtpd: Conversation) -> list[str]:
    """The log, without sessions and times."""
    return [line.partition(" ")[2].partition(" took=")[0] for line in smtpd.log]


# -- the request -----------------------------------------------------------------------------------


def test_ham_gets_the_fields_of_spamd(spamd: SpamdStub) -> None:
    with Conversation(Spamd, "--spamd", spamd.server) as smtpd:
        delivery = deliver(smtpd)
        assert logged(smtpd) == ['spamd message result=edit reason="score 1.5/5 A_B"']
    [request] = spamd.requests
    sent = b"".join(line + b"\n" for line in delivery.sent)
    assert request.command == "HEADERS"
    assert request.fields == {"Content-length": str(len(request.body))}
    assert request.body == b"Return-Path: <bob@example.net>\n" + sent
    assert delivery.bytes == b"X-Spam-Status: No, score=1.5 required=5.0 tests=A_B\n" + sent


def test_spam_is_marked(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.spam)
    with Conversation(Spamd, "--spamd", spamd.server) as smtpd:
        delivery = deliver(smtpd)
        [line] = logged(smtpd)
    reason = "score 7.2/5 MISSING_MID,RCVD_ILLEGAL_IP,URIBL_BLACK"
    assert line == f'spamd message result=junk reason="{reason}"'
    assert delivery.bytes == (
        b"X-Spam: Yes\nX-Spam-Flag: YES\nX-Spam-Level: *******\n"
        + stub.STATUS.encode()
        + b"".join(line + b"\n" for line in delivery.sent)
    )


@pytest.mark.parametrize(
    ("sender", "field"),
    [
        ("", b"<>"),
        ("bob", b"<bob@mx.example.org>"),
        ("@relay.example:bob@example.net", b"<bob@example.net>"),
        ("a b\x01@example.net", b"<a b?@example.net>"),
    ],
)
def test_the_sender_of_the_envelope(spamd: SpamdStub, sender: str, field: bytes) -> None:
    scan(spamd, sender=sender)
    assert spamd.requests[0].body.startswith(b"Return-Path: " + field + b"\nReceived: ")


@pytest.mark.parametrize(
    ("flags", "recipients", "user"),
    [
        ((), ("anna@example.org",), None),
        (("--user", "filter"), ("anna@example.org",), "filter"),
        (("--user-by-recipient", "address"), ("Anna@Example.org",), "anna@example.org"),
        (("--user-by-recipient", "local"), ("Anna@example.org",), "anna"),
        (("--user-by-recipient", "address"), ("root",), "root@mx.example.org"),
        (("--user-by-recipient", "address"), ("a@example.org", "b@example.org"), None),
        (
            ("--user-by-recipient", "address", "--user", "all"),
            ("a@example.org", "b@example.org"),
            "all",
        ),
    ],
)
def test_users(
    spamd: SpamdStub, flags: tuple[str, ...], recipients: tuple[str, ...], user: str | None
) -> None:
    scan(spamd, *flags, recipients=recipients)
    assert spamd.requests[0].fields.get("User") == user


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        ((), "HEADERS"),
        (("--headers", "none"), "SYMBOLS"),
        (("--headers", "none", "--rewrite-subject"), "HEADERS"),
        (("--new-message",), "PROCESS"),
    ],
)
def test_commands(spamd: SpamdStub, flags: tuple[str, ...], command: str) -> None:
    scan(spamd, *flags)
    assert spamd.requests[0].command == command


@pytest.mark.parametrize("size", [10, 200_000])
def test_compression(spamd: SpamdStub, size: int) -> None:
    content = b"Subject: x\r\n\r\n" + b"0123456789\r\n" * (size // 10)
    delivery = scan(spamd, "--compress", "zlib", content=content)
    [request] = spamd.requests
    assert request.fields["Compress"] == "zlib"
    assert request.body.endswith(b"".join(line + b"\n" for line in delivery.sent))


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: x\r\n\r\n.\r\n..\r\n.dot\r\n",
        b"Subject: x\r\n\r\n" + bytes(sorted(set(range(256)) - {10, 13})) + b"\r\n",
        b"Subject: x\r\n\r\na\rb\r\r\n",
        b"Subject: x\r\n",
        b"",
        b"\r\nonly a body\r\n",
        b"Subject: x\r\n\r\n" + b"x" * 2000 + b"\r\n",
        b"Subject: x\r\n\r\n" + b"0123456789abcdef" * 8 + b"\r\n" * 3000,
    ],
    ids=["dots", "binary", "cr", "no body", "empty", "no header", "long line", "large"],
)
def test_the_daemon_sees_every_byte(spamd: SpamdStub, content: bytes) -> None:
    delivery = scan(spamd, "--headers", "none", content=content)
    assert delivery.unchanged
    sent = b"".join(line + b"\n" for line in delivery.sent)
    assert spamd.requests[0].body == b"Return-Path: <bob@example.net>\n" + sent


# -- forged verdicts -------------------------------------------------------------------------------

FORGED = b"X-Spam-Status: No, score=-100\r\n\tfolded\r\nx-spam-flag: NO\r\n"


@pytest.mark.parametrize(
    ("flags", "verb"),
    [((), "proceed"), (("--on-error", "proceed"), "proceed"), (("--max-size", "1k"), "proceed")],
    ids=["scanned", "failed", "large"],
)
def test_a_forged_verdict_is_removed(spamd: SpamdStub, flags: tuple[str, ...], verb: str) -> None:
    if "--on-error" in flags:
        spamd.answer = Answer(b"SPAMD/1.0 70 down\r\n")
    content = FORGED + MESSAGE + b"x\r\n" * (1000 if "1k" in flags else 0)
    delivery = scan(spamd, *flags, content=content)
    assert delivery.verb == verb
    assert b"score=-100" not in delivery.bytes
    assert b"folded" not in delivery.bytes
    assert b"x-spam-flag" not in delivery.bytes
    if "1k" not in flags:
        # spamd gets the message as it came.
        assert b"score=-100" in spamd.requests[0].body


@pytest.mark.parametrize("size", [10, 100_000])
def test_no_line_ends_the_header_for_spamassassin(spamd: SpamdStub, size: int) -> None:
    lines = b"--x: y\r\n\tfold\r\n: a\r\nX\xff: b\r\nX Y: c\r\n-z: d\r\nX :\r\n --e\r\n"
    content = lines + MESSAGE + b"--body\r\n: body\r\n" + b"x\r\n" * (size // 3)
    delivery = scan(spamd, content=content)
    shown = b"\nX-Invalid: --x: y\n\tfold\nX-Invalid: : a\n X\xff: b\n X Y: c\n-z: d\nX :\n --e\n"
    assert shown + content[len(lines) :].replace(b"\r\n", b"\n") in spamd.requests[0].body
    assert content.replace(b"\r\n", b"\n") in delivery.bytes


def test_a_forged_copy_of_the_subject_is_removed(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.spam)
    delivery = scan(spamd, "--rewrite-subject", content=b"X-Spam-Prev-Subject: y\r\n" + MESSAGE)
    assert delivery.headers.get_all("X-Spam-Prev-Subject") == []
    assert delivery.headers.get_all("Subject") == ["hello"]


def test_exempt_clients(spamd: SpamdStub) -> None:
    delivery = scan(spamd, "--exempt", "192.0.2.1", content=FORGED + MESSAGE, address="192.0.2.1")
    assert delivery.unchanged
    assert spamd.requests == []


# -- thresholds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "score", "outcome"),
    [
        ((), 7.2, "junk"),
        (("--junk-at", "8"), 7.2, "accept"),
        (("--junk-at", "7.2"), 7.2, "junk"),
        (("--junk-at", "never"), 7.2, "accept"),
        (("--junk-at", "1.5"), 1.5, "junk"),
        (("--reject-at", "7"), 7.2, "reject"),
        (("--reject-at", "8"), 7.2, "junk"),
        (("--reject-at", "spam"), 7.2, "reject"),
        (("--reject-at", "spam"), 1.5, "accept"),
        (("--reject-at", "-5", "--junk-at", "never"), 1.5, "reject"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--headers", "none")], ids=["fields", "none"])
def test_thresholds(
    spamd: SpamdStub, flags: tuple[str, ...], score: float, outcome: str, more: tuple[str, ...]
) -> None:
    spamd.answer = Answer(stub.spam if score > 5 else stub.ham)
    delivery = scan(spamd, *flags, *more)
    if outcome == "reject":
        assert delivery.reply == REFUSED
        return
    assert delivery.verb == "proceed"
    assert delivery.headers.get("X-Spam") == ("Yes" if outcome == "junk" else None)
    if more and outcome == "accept":
        assert delivery.unchanged


@pytest.mark.parametrize(
    ("flags", "subject", "result"),
    [
        (("--tag", "[SPAM]"), "[SPAM] hello", "junk"),
        (("--tag", "[SPAM]", "--tag-at", "8"), "hello", "junk"),
        (("--tag", "[SPAM]", "--tag-at", "6", "--junk-at", "9"), "[SPAM] hello", "junk"),
        (("--rewrite-subject",), "*****SPAM***** hello", "junk"),
    ],
)
def test_subjects(spamd: SpamdStub, flags: tuple[str, ...], subject: str, result: str) -> None:
    def rewritten(request: stub.Request) -> bytes:
        body = stub.content(request, stub.STATUS).replace(
            b"\nSubject: hello\n", b"\nSubject: *****SPAM***** hello\nX-Spam-Prev-Subject: hello\n"
        )
        return stub.reply(body, stub.SPAM)

    spamd.answer = Answer(rewritten)
    with Conversation(Spamd, "--spamd", spamd.server, *flags) as smtpd:
        delivery = deliver(smtpd)
        assert f"result={result}" in smtpd.log[0]
    assert delivery.headers.get_all("Subject") == [subject]
    kept = ["hello"] if "--rewrite-subject" in flags else []
    assert delivery.headers.get_all("X-Spam-Prev-Subject") == kept


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--junk-at", "8", "--reject-at", "8"), "--junk-at 8: must be below --reject-at 8"),
        (("--tag", "x", "--tag-at", "9", "--reject-at", "8"), "--tag-at 9: must be below"),
        (("--tag-at", "9"), "--tag-at requires --tag"),
        (("--points", "--reject-at", "8"), "--points: cannot be combined with --reject-at"),
    ],
)
def test_settings_that_contradict_each_other(flags: tuple[str, ...], error: str) -> None:
    with pytest.raises(ConfigError, match=f"^{error}"), Conversation(Spamd, *flags):
        pass


def test_the_kind_of_thresholds() -> None:
    for text in ("spam", "never", "5", "-0.5", "7.25"):
        assert str(THRESHOLD.parse(text)) == text
        assert THRESHOLD.parse(THRESHOLD.show(THRESHOLD.parse(text))) == THRESHOLD.parse(text)
    for text in ("", "Spam", "nan", "inf", "1e9", "5,0"):
        with pytest.raises(ValueError, match=r"expected|must be"):
            THRESHOLD.parse(text)
    settings: Any = from_mapping(Spamd.Options, {"junk-at": 6, "reject-at": "spam"}, "x")
    assert (settings.junk_at, settings.reject_at) == (Threshold(score=6), Threshold("spam"))


# -- a new message ---------------------------------------------------------------------------------


def test_a_new_message(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.wrapped)
    delivery = scan(spamd, "--new-message")
    [request] = spamd.requests
    made = stub.wrapped(request).partition(b"\r\n\r\n")[2]
    received = delivery.sent[0]
    assert received.startswith(b"Received: ")
    top, _, rest = delivery.bytes.partition(b"Received: from localhost by vm")
    assert top.startswith(b"X-Spam: Yes\nReceived: ")
    assert b"Received: from localhost by vm" + rest == made
    assert request.body in made


def test_a_header_of_a_new_message_is_not_used_alone(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.wrapped)
    delivery = scan(spamd)
    assert delivery.bytes == (
        b"X-Spam: Yes\nX-Spam-Flag: YES\n"
        + stub.STATUS.encode()
        + b"".join(line + b"\n" for line in delivery.sent)
    )


def test_ham_and_report_safe_0_have_no_new_message(spamd: SpamdStub) -> None:
    for answer in (stub.ham, stub.spam):
        spamd.answer = Answer(answer)
        delivery = scan(spamd, "--new-message")
        assert delivery.bytes.endswith(b"".join(line + b"\n" for line in delivery.sent))
        assert b"X-Spam-Status: " in delivery.bytes


def test_a_large_new_message_is_spooled(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.wrapped)
    content = b"Subject: x\r\n\r\n" + (b"0123456789" * 9 + b"\r\n") * 4000
    delivery = scan(spamd, "--new-message", content=content)
    made = stub.wrapped(spamd.requests[0]).partition(b"\r\n\r\n")[2]
    assert delivery.bytes.endswith(made)


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(b"SPAMD/1.0 79 Timeout: (1 second timeout while trying to CHECK)\r\n"),
         "error 79 Timeout: (1 second timeout while trying to CHECK)"),
        (Answer(b"SPAMD/1.0 76 Bad header line\r\n"), "error 76 Bad header line"),
        (Answer(b"SPAMD/1.0 69 \r\nX: y\r\n"), "error 69"),
        (Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "not a reply of spamd"),
        (Answer(b"SPAMD/1.1 0 EX_OK\r\n\r\n"), "no Spam in the reply"),
        (Answer(lambda _: stub.reply(b"X-Spam-Status: No, tests=TIME_LIMIT_EXCEEDED\n\n",
                                     stub.HAM)),
         "the scan exceeded SpamAssassin's time_limit"),
        (Answer(stub.ham, "cut"), "cut reply"),
        (Answer(stub.ham, "endless"), "more bytes than Content-length"),
        (Answer(b"", "close"), "closed the connection, but answers a ping"),
        (Answer(b"", "reset"), "closed the connection, but answers a ping"),
        (Answer(stub.ham, "keep"), "timeout"),
        (Answer(b"", "stall"), "timeout"),
    ],
)  # fmt: skip
def test_faults(spamd: SpamdStub, answer: Answer, cause: str) -> None:
    spamd.answer = answer
    flags = ("--timeout", f"{brief(0.5)}") if cause == "timeout" else ()
    with Conversation(Spamd, "--spamd", spamd.server, *flags) as smtpd:
        delivery = deliver(smtpd)
        [line] = logged(smtpd)
    assert delivery.reply == LATER
    assert f'cause="{spamd.server} {cause}"' in line


def test_a_daemon_that_is_not_there(spamd: SpamdStub) -> None:
    spamd.stop()
    with Conversation(Spamd, "--spamd", spamd.server) as smtpd:
        assert deliver(smtpd).reply == LATER
        assert "connection refused" in smtpd.log[0]
        spamd.start()
        assert deliver(smtpd).verb == "proceed"


def test_a_reply_in_single_bytes(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.spam, "trickle")
    assert scan(spamd).headers.get("X-Spam") == "Yes"


def test_an_error_before_the_message_was_read(spamd: SpamdStub) -> None:
    spamd.answer = Answer(b"SPAMD/1.0 76 Bad header line\r\n", "early")
    content = b"Subject: x\r\n\r\n" + (b"0123456789" * 9 + b"\r\n") * 5000
    with Conversation(Spamd, "--spamd", spamd.server) as smtpd:
        assert deliver(smtpd, content).reply == LATER
        assert "error 76 Bad header line" in smtpd.log[0]


def test_a_verdict_before_the_message_was_read(
    spamd: SpamdStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was scanned, it wasn't this message."""
    send = Connection.send

    async def early(connection: Connection, chunks: Iterable[bytes]) -> bool:
        await send(connection, list(chunks)[:1])
        return False

    monkeypatch.setattr(Connection, "send", early)
    spamd.answer = Answer(stub.reply(b"Subject: x\n\n", stub.HAM), "early")
    with Conversation(Spamd, "--spamd", spamd.server) as smtpd:
        assert deliver(smtpd).reply == LATER
        assert "replied before it had the whole message" in smtpd.log[0]


def test_the_next_daemon_is_asked(spamd: SpamdStub, tmp_path: Path) -> None:
    spamd.answer = Answer(b"SPAMD/1.0 79 Timeout\r\n")
    with (
        SpamdStub(Answer(stub.spam), path=tmp_path / "spamd") as second,
        Conversation(Spamd, "--spamd", spamd.server, "--spamd", second.server) as smtpd,
    ):
        delivery = deliver(smtpd)
        assert delivery.headers.get("X-Spam") == "Yes"
        assert f"after {spamd.server} error 79 Timeout" in smtpd.log[0]
        assert len(second.requests) == 1


def test_on_error(spamd: SpamdStub) -> None:
    spamd.answer = Answer(b"SPAMD/1.0 79 Timeout\r\n")
    assert scan(spamd, "--on-error", "proceed").unchanged
    assert scan(spamd, "--on-error", "junk").headers.get("X-Spam") == "Yes"


@pytest.mark.parametrize(
    ("larger", "reply"),
    [
        ("skip", ""),
        ("tempfail", "451 4.3.4 Message too large to be scanned, please try again later"),
        ("reject", "552 5.3.4 Message too large to be scanned"),
    ],
)
def test_large_messages(spamd: SpamdStub, larger: str, reply: str) -> None:
    content = b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * 8000
    assert scan(spamd, "--larger", larger, content=content).reply == reply
    assert spamd.requests == []


# -- in a chain ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "shown"), [(stub.ham, "1.5 (junk-at 6)"), (stub.spam, "7.2 (junk-at 6)")]
)
def test_points(spamd: SpamdStub, answer: Any, shown: str) -> None:
    spamd.answer = Answer(answer)
    filter_ = Spamd(from_mapping(Spamd.Options, {"spamd": [spamd.server], "points": True}, "x"))
    rules = Rules(RuleSettings(junk_at=6.0, score_header=True))
    with Conversation([filter_], rules=rules) as smtpd:
        delivery = deliver(smtpd)
    assert (delivery.headers.get("X-Smtpd-Filters-Score") or "").startswith(shown)
    assert delivery.headers.get("X-Spam") == ("Yes" if answer is stub.spam else None)
    assert "X-Spam-Status" in delivery.headers


def test_beside_another_scanner(spamd: SpamdStub) -> None:
    """It asks before its turn, and edits in its turn."""

    class Other(Filter):
        scans = True

        async def message(self, session: Session, message: Message) -> Proceed:
            del session
            assert await asyncio.to_thread(spamd.asked.wait, PATIENCE)
            message.headers.prepend("X-Other", "yes")
            return PROCEED

    for flags, asked in (({}, 1), ({"new-message": True}, 2)):
        spamd.requests.clear()
        spamd.asked.clear()
        second = Spamd(from_mapping(Spamd.Options, {"spamd": [spamd.server], **flags}, "x"))
        with Conversation([Other(), second]) as smtpd:
            delivery = deliver(smtpd, FORGED + MESSAGE)
        assert delivery.headers.names()[:2] == ["X-Spam-Status", "X-Other"]
        assert delivery.headers.get_all("X-Spam-Flag") == []
        assert len(spamd.requests) == asked


def test_points_are_bounded(spamd: SpamdStub) -> None:
    spamd.answer = Answer(
        lambda _: stub.reply(b"X-Spam-Status: Yes, tests=GTUBE\n\n", "Spam: True ; 1002.3 / 5.0")
    )
    with Conversation(Spamd, "--spamd", spamd.server, "--points") as smtpd:
        assert deliver(smtpd).headers.get("X-Spam") is None
        assert "points=100" in smtpd.log[0]


def test_a_dry_run(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.spam)
    assert scan(spamd, "--dry-run", "--reject-at", "5").unchanged


def test_points_in_place_of_a_tag_leave_no_forged_field(spamd: SpamdStub) -> None:
    spamd.answer = Answer(stub.spam)
    of = Rules(RuleSettings(score_header=True), {"spamd": FilterRules(score={"junk": 2})})
    flags = ("--spamd", spamd.server, "--tag", "[SPAM]", "--junk-at", "never")
    with Conversation([(Spamd, *flags)], rules=of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("bob@example.net")
        client.rcpt_to("alice@example.org")
        mail = client.message(b"X-Spam-Status: No, forged\r\nSubject: hello\r\n\r\nbody\r\n")
    (status,) = mail.headers.get_all("X-Spam-Status")
    assert status.startswith("Yes, score=7.2 ")
    assert mail.headers.get("Subject") == "hello"
