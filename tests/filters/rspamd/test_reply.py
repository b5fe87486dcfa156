from __future__ import annotations

import asyncio
import email.header
import json
import re
from itertools import permutations
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.filters.rspamd import reply
from smtpd_filters.filters.rspamd.edits import ARC_SET, DEFAULTS, Options, apply
from smtpd_filters.filters.rspamd.reply import (
    MAX_EDITS,
    MAX_JSON,
    MAX_NAME,
    MAX_SYMBOLS,
    MAX_TEXT,
    MAX_VALUES,
    Reply,
    ReplyError,
    _may_repeat,
    parse,
)
from smtpd_filters.filters.rspamd.reply_reader import SMALL, ReplyReader
from smtpd_filters.lookups.http import BadReplyError, NotKeptError
from smtpd_filters.message import Message, SpoolError
from smtpd_filters.protocol.decisions import Decision, Marked, Proceed, Reject
from smtpd_filters.runtime.pace import TURN, Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


TABLE = Path(__file__).parents[3] / "docs" / "rspamd-conformance.md"
#: What smtpd gives to a filter: its own Received in front of what the client sent.
RECEIVED = (
    b"Received: from mail.example.net\n\tby mx.example.org; Sat, 21 Nov 2026 06:00:00 +0000\n"
)
MAIL = (
    b"From: bob@example.net\nX-Foo: 1\nSubject: hello\nx-foo: 2\n\tfolded\nX-FOO: 3\n\nbody\n.dot\n"
)
MARK = b"X-Spam: Yes\n"


_MADE: list[Message] = []


@pytest.fixture(autouse=True)
def messages_are_freed() -> Iterator[None]:
    yield
    while _MADE:
        _MADE.pop().discard()


def applied(reply: Reply, message: Message, options: Options) -> Decision:
    """Do to the message what the reply says."""
    return asyncio.run(apply(reply, message, options))


class Said:
    """A response whose content comes in pieces of a size."""

    def __init__(
        self, content: bytes, offset: str | None = None, *, piece: int = 7, sized: bool = True
    ) -> None:
        self.status = 200
        self.headers = {} if offset is None else {"Message-Offset": offset}
        self.size = len(content) if sized else None
        self.early, self.delimited = False, True
        self.content = content
        self._each = piece
        self._pieces = self.pieces()

    async def pieces(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.content), self._each):
            yield self.content[at : at + self._each]

    async def piece(self) -> bytes:
        return await anext(self._pieces, b"")

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self._pieces])


def received(response: Said, message: Message) -> Reply:
    """Have a reply read as it comes; raises BadReplyError."""

    async def read() -> Reply:
        response_: Any = response
        return await ReplyReader(None).read(response_, message.new_body, 1 << 30)

    return asyncio.run(read())


def mail(head: bytes = b"", data: bytes = RECEIVED + MAIL) -> Message:
    message = Message()
    _MADE.append(message)
    lines = (head + data).split(b"\n")[:-1]
    message.feed([b"." + line if line.startswith(b".") else line for line in lines])
    message.close()
    return message


def said(body: dict[str, Any] | str | bytes, **top: Any) -> Reply:
    """Parse a reply; a dictionary needn't name the action."""
    if isinstance(body, dict):
        body = json.dumps({"action": "no action", **body, **top})
    return parse(200, body.encode() if isinstance(body, str) else body)


class Done:
    """A reply applied to a message."""

    def __init__(
        self,
        body: dict[str, Any] | str | bytes,
        message: Message | None = None,
        options: Options | None = None,
    ) -> None:
        message = message or mail()
        self.before = b"".join(message.iter_bytes())
        self.reply = said(body)
        self.decision: Decision = applied(self.reply, message, options or Options())
        self.after = b"".join(message.iter_bytes())
        self.head = self.after.partition(b"\n\n")[0].decode("utf-8", "surrogateescape").split("\n")
        self.names = message.headers.names()
        self.headers = message.headers

    @property
    def added(self) -> list[str]:
        """The lines that were not there, in their order."""
        before = self.before.decode("utf-8", "surrogateescape").split("\n")
        return [line for line in self.head if line not in before]

    @property
    def unchanged(self) -> bool:
        return self.before == self.after

    @property
    def accepted(self) -> bool:
        """Whether it was, and nothing of the reply was left out."""
        return isinstance(self.decision, Proceed | Marked) and not self.reply.complaints


def milter(**block: Any) -> dict[str, Any]:
    return {"milter": block}


def add(**headers: Any) -> dict[str, Any]:
    return milter(add_headers={name.replace("_", "-"): value for name, value in headers.items()})


def remove(headers: dict[str, Any]) -> dict[str, Any]:
    return milter(remove_headers=headers)


# -- what is a reply -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (500, b'{"error":"invalid command","error_domain":"protocol-error"}', "status 500: inval"),
        (500, b"<html>", "status 500"),
        (404, b'{"action":"no action"}', "status 404"),
        (204, b"", "status 204"),
        (200, b'{"error":"timeout","action":"no action"}', "error: timeout"),
        (200, b'{"error":17}', "error"),
        (200, b"", "invalid JSON"),
        (200, b'{"action":"no action"', "invalid JSON"),
        (200, b'{"action":"no action"} x', "invalid JSON"),
        (200, b"[]", "not a JSON object"),
        (200, b'["action"]', "not a JSON object"),
        (200, b'"no action"', "not a JSON object"),
        (200, b"null", "not a JSON object"),
        (200, b"{}", "no action"),
        (200, b'{"action":""}', "no action"),
        (200, b'{"action":null}', "no action"),
        (200, b'{"action":["reject"]}', "no action"),
        (200, b'{"action":{"reject":1}}', "no action"),
        (200, b"[" * 20_000, "invalid JSON"),
        (200, b'{"action":' * 20_000, "invalid JSON"),
        (200, b'{"action":"no action","score":' + b"9" * 5000 + b"}", "a number of more than"),
        (200, b" " * (MAX_JSON + 1), "oversized"),
        (200, b'{"action":"x","a":nan}', "invalid JSON"),
    ],
)
def test_an_error_is_an_error(status: int, body: bytes, cause: str) -> None:
    with pytest.raises(ReplyError) as raised:
        parse(status, body)
    assert cause in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("offset", "cause"),
    [
        ("23", "message offset outside of the reply"),
        ("99999999999999999999", "message offset outside of the reply"),
        ("9" * 5000, "message offset is not a number"),
        ("-1", "message offset is not a number"),
        ("+22", "message offset is not a number"),
        ("2_2", "message offset is not a number"),
        ("22 22", "message offset is not a number"),
        ("\u0662\u0662", "message offset is not a number"),
        ("0x16", "message offset is not a number"),
        ("", "message offset is not a number"),
        ("0", "invalid JSON"),
        ("5", "invalid JSON"),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
def test_an_invalid_offset_is_an_error(offset: str, cause: str, *, sized: bool) -> None:
    with pytest.raises(BadReplyError, match=f"^{cause}"):
        received(Said(b'{"action":"no action"}', offset, sized=sized), mail())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"[1", b'{"action": "no action", "score": [1'),
        (b"[" * 10_000, b"[" * 20_000),
        (b"[" * 100_000, b"[" * 200_000),
        (b" " * (MAX_JSON + 1), b" " * (MAX_JSON + 2)),
        (b'{"a":' + b"9" * 5000 + b"}", b'{"a":' + b"9" * 6000 + b"}"),
    ],
)
def test_a_cause_is_the_same_for_each_message(one: bytes, other: bytes) -> None:
    """It is logged once in a while."""
    causes = []
    for body in (one, other):
        with pytest.raises(ReplyError) as raised:
            parse(200, body)
        causes.append(str(raised.value))
    assert causes[0] == causes[1]


@pytest.mark.parametrize("action", ["fancy", "No Action", "no action ", "x" * 10_000, "\ud800"])
def test_an_unknown_action_is_an_error(action: str) -> None:
    message = mail()
    before = b"".join(message.iter_bytes())
    reply = said({"action": action, **add(X="1")})
    with pytest.raises(ReplyError, match="unknown action") as raised:
        applied(reply, message, Options())
    assert len(str(raised.value)) < 150
    assert b"".join(message.iter_bytes()) == before


def test_any_bytes_may_stand_in_strings() -> None:
    # The daemon hands on what stood in the mail: rspamd 3.4 does so.
    done = Done(b'{"action":"no action","milter":{"add_headers":{"X-Bytes":"\xff caf\xe9 \x01"}}}')
    assert b"\nX-Bytes: \xff caf\xe9\n" in done.after


# -- actions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["no action", "greylist"])
def test_no_action(action: str) -> None:
    done = Done({"action": action, "score": 1.5, "symbols": {"A": {"score": 1.5}}})
    assert done.accepted
    assert done.unchanged


def test_is_skipped() -> None:
    assert Done({"is_skipped": True, "score": 0.0}).accepted


def test_add_header() -> None:
    done = Done(
        {
            "action": "add header",
            "score": 5.5,
            "required_score": 15.0,
            "symbols": {"B": {"score": 1.0, "options": ["x"]}, "A": {"score": 4.5}},
        }
    )
    assert done.head[:3] == [
        "X-Spam: Yes",
        "X-Spam-Score: 5.5 / 15",
        "X-Spam-Status: Yes, score=5.500 required=15.000 tests=[A=4.500, B=1.000]",
    ]
    assert done.after.endswith(RECEIVED + MAIL)
    assert isinstance(done.decision, Marked)
    assert done.decision.reason == "add header, score 5.5/15, A(4.5), B(1)"


def test_add_header_minimal() -> None:
    done = Done({"action": "add header"}, options=Options(headers="minimal"))
    assert done.after == MARK + RECEIVED + MAIL


def test_the_senders_own_mark_is_replaced() -> None:
    data = RECEIVED + b"X-Spam: No\nx-spam-score: -100\n" + MAIL + b"X-SPAM: body\n"
    done = Done({"action": "add header"}, mail(data=data))
    assert done.headers.get_all("X-Spam") == ["Yes"]
    assert done.headers.get_all("X-Spam-Score") == ["0 / 0"]
    assert done.after.endswith(b"\nX-SPAM: body\n")


@pytest.mark.parametrize("name", ["X-Spam-Status", "X-Spam-Score"])
@pytest.mark.parametrize("place", [{}, {"order": 0}, {"order": 2}])
def test_fields_that_the_daemon_adds_itself_stay(name: str, place: dict[str, int]) -> None:
    # Rspamd's milter_headers has routines for these.
    data = RECEIVED + f"{name}: forged\n".encode() + MAIL
    own = {name.lower(): {"value": "own", **place}}
    done = Done({"action": "add header", **milter(add_headers=own)}, mail(data=data))
    assert done.headers.get_all(name) == ["own"]
    assert done.headers.get_all("X-Spam") == ["Yes"]
    assert len(done.headers.get_all("X-Spam-Score")) == 1
    assert len(done.headers.get_all("X-Spam-Status")) == 1


@pytest.mark.parametrize(
    ("own", "marks"), [("Yes", ["Yes"]), ("yes", ["yes"]), ("Yes, 7", ["Yes", "Yes, 7"])]
)
def test_a_mark_of_the_daemons_own_stays(own: str, marks: list[str]) -> None:
    body = {"action": "add header", **add(X_Spam=own)}
    done = Done(body, mail(MARK, DIRTY), Options(headers="minimal"))
    assert done.headers.get_all("X-Spam") == marks


def test_a_mark_with_an_invalid_name_is_replaced() -> None:
    block = {"add_headers": {"X Y": "1"}, "spam_header": {"X Y": "1"}}
    done = Done({"action": "add header", "milter": block})
    assert done.headers.get_all("X-Spam") == ["Yes"]


def test_long_symbols_are_folded() -> None:
    symbols = {f"SOME_SYMBOL_{n}": {"score": 1.0} for n in range(50)}
    done = Done({"action": "add header", "symbols": symbols})
    assert max(map(len, done.head)) <= 80
    assert "SOME_SYMBOL_49=1.000" in (done.headers.get("X-Spam-Status") or "")


def test_reject() -> None:
    done = Done({"action": "reject", "score": 20, "required_score": 15, **add(X="1")})
    assert done.decision == Reject("554 5.7.1 Spam message rejected").because("reject, score 20/15")
    assert done.unchanged


def test_soft_reject() -> None:
    done = Done({"action": "soft reject", **add(X="1")})
    assert done.decision == Reject("451 4.7.1 Try again later").because("soft reject")
    assert done.unchanged


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("Gtube pattern", "Gtube pattern"),
        ("two\r\nlines|and a bar", "two lines|and a bar"),
        ("zwei \xe9\x00", "zwei ??"),
        ("\ud800", "?"),
        ("x" * 1000, "x" * 500),
        ("", ""),
    ],
)
@pytest.mark.parametrize(
    ("action", "code", "default"),
    [
        ("reject", "554 5.7.1", "Spam message rejected"),
        ("soft reject", "451 4.7.1", "Try again later"),
    ],
)
def test_smtp_message(action: str, code: str, default: str, message: str, text: str) -> None:
    done = Done({"action": action, "messages": {"smtp_message": message}})
    assert done.decision.text == f"{code} {text or default}"


@pytest.mark.parametrize("messages", [["smtp_message"], {"smtp_message": 5}, "text", None, {}])
def test_messages_of_another_kind(messages: Any) -> None:
    done = Done({"action": "reject", "messages": messages})
    assert done.decision.text == "554 5.7.1 Spam message rejected"


def test_discard() -> None:
    # smtpd can't drop a message that it takes: it may not arrive, so it isn't taken.
    assert Done({"action": "discard"}).decision.text == "554 5.7.1 Spam message rejected"
    done = Done({"action": "discard"}, options=Options(actions={"discard": "junk"}))
    assert done.headers.get("X-Spam") == "Yes"


def test_quarantine() -> None:
    # smtpd has no place for held mail: it may not get lost, so it is marked.
    done = Done({"action": "quarantine"})
    assert isinstance(done.decision, Marked)
    assert done.headers.get("X-Spam") == "Yes"
    options = Options(actions={"quarantine": "tempfail"})
    assert Done({"action": "quarantine"}, options=options).decision.text[:3] == "451"


@pytest.mark.parametrize(
    ("kind", "outcome"), [("discard", "reject"), ("quarantine", "junk"), ("other", None)]
)
def test_reject_names_the_kind_of_a_custom_action(kind: str, outcome: str | None) -> None:
    # Of an action configured as {"bounce": {"milter": "discard"}} rspamd 3.4 says so.
    body = {"action": "bounce", "reject": kind}
    if outcome is None:
        with pytest.raises(ReplyError, match="unknown action 'bounce'"):
            Done(body)
        return
    assert Done(body).decision.verb == outcome
    mapped = Done(body, options=Options(actions={"bounce": "accept"}))
    assert mapped.accepted


@pytest.mark.parametrize(
    ("outcome", "verb", "marked"),
    [
        ("accept", "proceed", False),
        ("junk", "junk", True),
        ("rewrite", "proceed", False),
        ("tempfail", "reject", False),
        ("reject", "reject", False),
    ],
)
def test_custom_actions(outcome: str, verb: str, *, marked: bool) -> None:
    done = Done({"action": "fancy"}, options=Options(actions={"fancy": outcome}))
    assert done.decision.verb == verb
    assert done.headers.get("X-Spam") == ("Yes" if marked else None)


def test_the_daemons_own_actions_can_be_mapped() -> None:
    done = Done({"action": "reject"}, options=Options(actions={"reject": "junk"}))
    assert done.headers.get("X-Spam") == "Yes"


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"fancy: expected .*, not 'drop'"):
        Options(actions={"fancy": "drop"})


def test_every_outcome_that_is_a_default_is_one() -> None:
    assert Options().actions == DEFAULTS


# -- subject ---------------------------------------------------------------------------------


def test_rewrite_subject() -> None:
    done = Done({"action": "rewrite subject", "subject": "***SPAM*** hello"})
    assert done.after == (RECEIVED + MAIL).replace(b"hello", b"***SPAM*** hello")
    assert done.decision.reason == "rewrite subject"


def test_rewrite_subject_encoded() -> None:
    # As rspamd 3.4 sends it.
    subject = (
        "=?UTF-8?Q?=2A=2A=2ASPAM=2A=2A=2A_gr=C3=BC=C3=9Fe_aus?="
        " =?UTF-8?Q?_K=C3=B6ln=2C_eine_lange_Ze?= =?UTF-8?Q?ile?="
    )
    done = Done({"action": "rewrite subject", "subject": subject})
    assert done.headers.get("Subject") == subject
    assert max(map(len, done.head)) <= 80


def test_rewrite_subject_raw() -> None:
    done = Done({"action": "rewrite subject", "subject": "grüße"})
    assert done.headers.get("Subject") == "=?utf-8?B?Z3LDvMOfZQ==?="


@pytest.mark.parametrize("subject", ["grüße " * 50, "日本語" * 100, "x" * 60 + "ü", "\ud83d" * 40])
def test_rewrite_subject_encoded_here(subject: str) -> None:
    done = Done({"action": "rewrite subject", "subject": subject})
    at = done.head.index("From: bob@example.net") + 2
    lines = [line for line in done.head[at:] if "=?" in line]
    assert lines[0].startswith("Subject: =?utf-8?B?")
    assert all(line.startswith(" =?") for line in lines[1:])
    # RFC 2047 section 2: such a line is limited to 76 characters, an encoded word to 75.
    assert max(map(len, lines)) <= 76
    shown = str(
        email.header.make_header(email.header.decode_header(done.headers.get("Subject", "")))
    )
    assert shown == subject.replace("\ud83d", "?")


def test_rewrite_subject_of_several() -> None:
    data = RECEIVED + b"Subject: one\n\tfolded\nSubject: two\n\nbody\n"
    done = Done({"action": "rewrite subject", "subject": "new"}, mail(data=data))
    assert done.after == RECEIVED + b"Subject: new\nSubject: two\n\nbody\n"


def test_rewrite_subject_that_is_missing() -> None:
    data = RECEIVED + b"From: <bob@example.net>\n\nbody\n"
    done = Done({"action": "rewrite subject", "subject": "***SPAM*** "}, mail(data=data))
    assert done.after == RECEIVED + b"From: <bob@example.net>\nSubject: ***SPAM***\n\nbody\n"


@pytest.mark.parametrize("subject", [None, 5, ["x"]])
def test_rewrite_subject_to_nothing(subject: Any) -> None:
    assert Done({"action": "rewrite subject", "subject": subject}).unchanged


def test_a_subject_makes_no_other_header() -> None:
    done = Done({"action": "rewrite subject", "subject": "a\r\nX-Evil: 1\n\nbody"})
    assert done.headers.get("Subject") == "a X-Evil: 1  body"
    assert "X-Evil" not in done.headers


# -- milter.remove_headers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        (0, []),
        (1, ["2\tfolded", "3"]),
        (2, ["1", "3"]),
        (3, ["1", "2\tfolded"]),
        (4, ["1", "2\tfolded", "3"]),
        (-1, ["1", "2\tfolded"]),
        (-3, ["2\tfolded", "3"]),
        (-4, ["1", "2\tfolded", "3"]),
        (10**30, ["1", "2\tfolded", "3"]),
        (1.0, ["2\tfolded", "3"]),
        ([1, 2], ["3"]),
        ([2, 1], ["3"]),
        ([1, -1], ["2\tfolded"]),
        ([1, 1], ["2\tfolded", "3"]),
        ([0, 1], []),
        ([], ["1", "2\tfolded", "3"]),
    ],
)
@pytest.mark.parametrize("name", ["X-Foo", "x-foo", "X-FOO"])
def test_remove_headers(name: str, numbers: Any, left: list[str]) -> None:
    done = Done(remove({name: numbers}))
    assert done.headers.get_all("X-Foo") == left
    assert done.accepted
    others = [line for line in done.head if not line.lower().startswith(("x-foo", "\tfolded"))]
    assert others == [
        *RECEIVED.decode().split("\n")[:-1],
        "From: bob@example.net",
        "Subject: hello",
    ]


def test_remove_headers_counts_what_came() -> None:
    # Neither what is added nor what another spelling removes is counted.
    done = Done(milter(remove_headers={"X-Foo": 1, "x-foo": 2}, add_headers={"X-Foo": "new"}))
    assert done.headers.get_all("X-Foo") == ["3", "new"]


def test_remove_headers_may_name_one_twice() -> None:
    done = Done('{"action":"no action","milter":{"remove_headers":{"X-Foo":1,"X-Foo":-1}}}')
    assert done.headers.get_all("X-Foo") == ["2\tfolded"]


@pytest.mark.parametrize("block", [{"X-Foo": "1"}, {"X-Foo": None}, {"X-Foo": [True]}, ["X-Foo"]])
def test_remove_headers_of_another_kind(block: Any) -> None:
    done = Done(milter(remove_headers=block))
    assert done.unchanged
    assert "remove_headers" in done.decision.reason


def test_remove_headers_has_a_bound() -> None:
    numbers = {f"X-{n}": 0 for n in range(MAX_EDITS)}
    assert Done(remove(numbers)).unchanged
    with pytest.raises(ReplyError, match=r"^remove_headers: more than 256$"):
        said(remove(numbers | {"X-Foo": 0}))


def test_remove_headers_finds_one_among_many() -> None:
    names = {f"X-{n}": 0 for n in range(100)}
    done = Done(remove(names | {"x-FOO": 0}))
    assert done.headers.get_all("X-Foo") == []


def test_remove_headers_of_a_long_name() -> None:
    """256 of them, on a header of a megabyte that nearly has them, took half a second."""
    done = Done(remove({"X-Foo" + "o" * 300: 0, "X-Foo": 1}))
    assert len(done.headers.get_all("X-Foo")) == 2
    assert "too long for a name" in done.decision.reason


@pytest.mark.parametrize("number", ["1" * 501, "-" + "7" * 4000, "0." + "0" * 500 + "1"])
@pytest.mark.parametrize("place", ['"x":[{}]', '"score":{}', '"milter":{{"x":{}}}'])
def test_numbers_that_take_long_to_read_are_refused(number: str, place: str) -> None:
    with pytest.raises(ReplyError, match="a number of more than 500 digits in the reply"):
        said('{"action":"no action",' + place.format(number) + "}")


@pytest.mark.parametrize("before", range(60))
def test_a_number_is_measured_wherever_it_is(before: int) -> None:
    """Only some of the bytes are looked at first."""
    text = '{"action":"no action","x":' + " " * before
    assert said(text + "7" * 500 + "}").action == "no action"
    with pytest.raises(ReplyError, match="a number of more than 500 digits"):
        said(text + "7" * 501 + "}")


def test_digits_in_a_text_are_no_number() -> None:
    """The sender of a message chooses its Message-ID."""
    assert Done({"message-id": "1" * 5000 + "@example.net", "score": 1.5}).accepted


# -- the mark of an earlier filter -----------------------------------------------------------

DIRTY = RECEIVED + b"X-Spam: client\n" + MAIL


@pytest.mark.parametrize("numbers", [0, [1, 2], [-1, -2], [1, -1]])
def test_an_earlier_filters_mark_survives(numbers: Any) -> None:
    # Rspamd requests this with every reply, unless configured otherwise.
    done = Done(remove({"X-Spam": numbers}), mail(MARK, DIRTY))
    assert done.after == MARK + RECEIVED + MAIL


def test_an_earlier_filters_mark_is_counted() -> None:
    assert Done(remove({"X-Spam": 1}), mail(MARK, DIRTY)).unchanged
    assert Done(remove({"X-Spam": 2}), mail(MARK, DIRTY)).after == MARK + RECEIVED + MAIL


def test_the_clients_mark_does_not_survive() -> None:
    assert Done(remove({"X-Spam": 0}), mail(data=DIRTY)).after == RECEIVED + MAIL
    # Without smtpd's own Received there is nothing to tell them apart by.
    assert Done(remove({"X-Spam": 0}), mail(MARK, MAIL)).after == MAIL


def test_the_daemons_own_header_replaces_a_mark() -> None:
    block = {"remove_headers": {"X-Spam": 0}, "add_headers": {"X-Spam": "No"}}
    assert Done({"milter": block}, mail(MARK, DIRTY)).headers.get_all("X-Spam") == ["No"]
    body = {"action": "add header", **remove({"X-Spam": 0})}
    options = Options(headers="minimal")
    assert Done(body, mail(MARK, DIRTY), options).after == MARK + RECEIVED + MAIL


# -- milter.add_headers ----------------------------------------------------------------------


@pytest.mark.parametrize("value", ["v", ["v"], {"value": "v"}, [{"value": "v"}]])
def test_add_headers(value: Any) -> None:
    done = Done(add(X_New=value))
    assert done.after == (RECEIVED + MAIL).replace(b"X-FOO: 3\n", b"X-FOO: 3\nX-New: v\n")
    assert done.accepted


@pytest.mark.parametrize("key", ["order", "index"])
@pytest.mark.parametrize(
    ("order", "names"),
    [
        (0, "New Received From X-Foo Subject"),
        (1, "Received New From X-Foo Subject"),
        (2, "Received From New X-Foo Subject"),
        (4, "Received From X-Foo Subject New"),
        (99, "Received From X-Foo Subject New"),
        (10**30, "Received From X-Foo Subject New"),
        (-1, "Received From X-Foo Subject New"),
        (-2, "Received From X-Foo New Subject"),
        (-4, "Received New From X-Foo Subject"),
        (-5, "New Received From X-Foo Subject"),
        (-99, "New Received From X-Foo Subject"),
        (-(10**30), "New Received From X-Foo Subject"),
        (1.0, "Received New From X-Foo Subject"),
    ],
)
def test_add_headers_order(key: str, order: Any, names: str) -> None:
    data = RECEIVED + b"From: b\nX-Foo: 1\n\tfolded\nSubject: s\n\nbody\n"
    done = Done(add(New={"value": "v", key: order}), mail(data=data))
    assert done.names == names.split()


def test_add_headers_order_is_counted_from_smtpds_own_received() -> None:
    body = add(Top={"value": "v", "order": 0}, New={"value": "v", "order": 1})
    assert Done(body, mail(MARK)).names[:4] == ["Top", "X-Spam", "New", "Received"]
    body = add(New={"value": "v", "order": 1})
    assert Done(body, mail(MARK)).names[:3] == ["X-Spam", "Received", "New"]
    assert Done(body, mail(data=MAIL)).names[:2] == ["New", "From"]


def test_add_headers_order_after_a_removal() -> None:
    both = milter(remove_headers={"Received": 1}, add_headers={"New": {"value": "v", "order": 1}})
    assert Done(both).names[:2] == ["New", "From"]


def test_add_headers_of_one_order_stand_the_last_on_top() -> None:
    done = Done(add(A={"value": "1", "order": 1}, B={"value": "2", "order": 1}))
    assert done.names[:4] == ["Received", "B", "A", "From"]


def test_add_headers_arc() -> None:
    # As rspamd 3.4 sends it; the JSON is in this order.
    body = add(
        ARC_Authentication_Results={"value": "i=1; mx.example.org;\r\n\tspf=pass", "order": 1},
        ARC_Message_Signature={"value": "i=1; a=rsa-sha256", "order": 1},
        ARC_Seal={"value": "i=1; cv=none", "order": 1},
    )
    done = Done(body)
    assert done.names[:5] == [
        "Received",
        "ARC-Seal",
        "ARC-Message-Signature",
        "ARC-Authentication-Results",
        "From",
    ]
    assert b"\nARC-Authentication-Results: i=1; mx.example.org;\n\tspf=pass\nFrom" in done.after


@pytest.mark.parametrize("order", [1, 0, 3, -1, None])
@pytest.mark.parametrize("names", list(permutations(ARC_SET)))
def test_an_arc_set_in_any_order(names: tuple[str, ...], order: int | None) -> None:
    """So it comes from daemons whose objects have none."""
    place = {} if order is None else {"order": order}
    headers = {name: {"value": "i=1", **place} for name in (names[0], "X-Other", *names[1:])}
    done = Done(milter(add_headers=headers))
    assert [name for name in done.names if name.startswith("arc-")] == [
        "arc-seal",
        "arc-message-signature",
        "arc-authentication-results",
    ]


def test_two_arc_seals_are_no_set() -> None:
    headers = {
        "ARC-Authentication-Results": {"value": "i=1", "order": 1},
        "ARC-Seal": [{"value": "i=1", "order": 1}, {"value": "i=2", "order": 1}],
    }
    done = Done(milter(add_headers=headers))
    assert done.names[1:4] == ["ARC-Seal", "ARC-Seal", "ARC-Authentication-Results"]


def test_add_headers_several_of_a_name() -> None:
    done = Done(add(X_A=["1", {"value": "2", "order": 0}, {"value": "3"}], X_B="4"))
    assert done.names[0] == "X-A"
    assert done.headers.get_all("X-A") == ["2", "1", "3"]
    assert done.names[-3:] == ["X-A", "X-A", "X-B"]


def test_add_headers_may_name_one_twice() -> None:
    done = Done('{"action":"no action","milter":{"add_headers":{"X-A":"1","X-B":"2","X-A":"3"}}}')
    assert done.added == ["X-A: 1", "X-B: 2", "X-A: 3"]


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("a\n\tb", ["X: a", "\tb"]),
        ("a\r\n b\r\n\tc", ["X: a", " b", "\tc"]),
        ("a\nX-Evil: b", ["X: a X-Evil: b"]),
        ("a\r\n\r\nbody", ["X: a  body"]),
        ("a\n \nb", ["X: a", "  b"]),
        ("a\rb\x00c", ["X: a b c"]),
        ("", ["X:"]),
        ("\n", ["X:"]),
        ("y" * 2000, None),
    ],
)
@pytest.mark.parametrize("order", [None, 0, 1])
def test_add_headers_values_are_made_safe(
    order: int | None, value: str, lines: list[str] | None
) -> None:
    done = Done(add(X={"value": value, "order": order} if order is not None else value))
    assert max(map(len, done.head)) <= 998
    if lines is not None:
        at = done.head.index(lines[0])
        assert done.head[at : at + len(lines)] == lines
    assert done.names.count("X") == 1
    assert len(done.names) == 7
    assert done.after.endswith(b"\n\nbody\n.dot\n")


@pytest.mark.parametrize("name", ["", "X Y", "X:", "X\n", "Ü", "x" * 2000, "X\r\nEvil: 1\r\n"])
@pytest.mark.parametrize("order", [None, 0])
def test_add_headers_names_that_are_none_are_left_out(name: str, order: int | None) -> None:
    value: Any = "v" if order is None else {"value": "v", "order": order}
    done = Done(milter(add_headers={name: value, "X-Good": "1"}))
    assert done.added == ["X-Good: 1"]
    assert done.decision.verb == "proceed"
    assert "not a header's name" in done.decision.reason
    assert len(done.decision.reason) < 250


@pytest.mark.parametrize(
    "value", [5, None, True, {"order": 1}, {"value": 5}, {"value": ["a"]}, [["a"]], [None]]
)
def test_add_headers_of_another_kind(value: Any) -> None:
    done = Done(add(X=value, X_Good="1"))
    assert done.added == ["X-Good: 1"]
    assert done.decision.reason == "no action, add_headers X: no value"


@pytest.mark.parametrize("order", ["1", 1.5, [], True, 1e400])
def test_add_headers_order_of_another_kind(order: Any) -> None:
    done = Done(add(New={"value": "v", "order": order}))
    assert done.names[-1] == "New"
    assert done.decision.reason == "no action, add_headers New: order is not a number"


def test_add_headers_has_a_bound() -> None:
    assert Done(add(X=["v"] * MAX_EDITS)).names.count("X") == MAX_EDITS
    with pytest.raises(ReplyError, match=r"^add_headers: more than 256$"):
        said(add(X=["v"] * (MAX_EDITS + 1)))


@pytest.mark.parametrize(
    "body",
    [
        add(X="v" * MAX_TEXT),
        add(**{f"X_{n}": "v" * 1000 for n in range(MAX_TEXT // 1000)}),
        {"dkim-signature": ["v" * 1000] * (MAX_TEXT // 1000 + 1)},
        milter(spam_header={"X": "v" * MAX_TEXT}),
    ],
)
def test_the_text_of_all_headers_has_a_bound(body: dict[str, Any]) -> None:
    with pytest.raises(ReplyError, match=r"^more than 131072 characters of headers in the reply$"):
        said(body)


@pytest.mark.parametrize(
    ("symbols", "cause"),
    [
        ({f"S{n}": {"score": 1} for n in range(MAX_SYMBOLS + 1)}, "symbols: more than 1000"),
        ({"S" * (MAX_NAME + 1): {"score": 1}}, "symbols: a name of more than 256 characters"),
    ],
)
def test_symbols_have_a_bound(symbols: dict[str, Any], cause: str) -> None:
    most = {f"{n:0{MAX_NAME}}": {"score": 1} for n in range(MAX_SYMBOLS)}
    done = Done({"action": "add header", "symbols": most})
    assert len(done.reply.symbols) == MAX_SYMBOLS
    with pytest.raises(ReplyError, match=rf"^{cause}$"):
        said({"symbols": symbols})


LISTED = '{"action":"no action","x":%s}'


@pytest.mark.parametrize(
    "value",
    [
        "[" + "0," * MAX_VALUES + "0]",
        "[" + "[]," * (MAX_VALUES // 2 + 1) + "0]",
        "[" * (MAX_VALUES + 1),
        "{" + ",".join(f'"{n}":0' for n in range(MAX_VALUES)) + "}",
        "[" + '"",' * (3 * MAX_VALUES) + "0]",
        "[" + '"\\\\",' * (5 * MAX_VALUES) + "0]",
    ],
)
def test_values_are_counted_before_they_are_made(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said({})
    monkeypatch.setattr(reply, "_decoders", [None, None])
    with pytest.raises(ReplyError, match=r"^more than 25000 values in the reply$"):
        said(LISTED % value)


@pytest.mark.parametrize("text", ["," * MAX_VALUES, "[{" * MAX_VALUES, '\\",' * MAX_VALUES])
def test_what_stands_in_strings_is_no_value(text: str) -> None:
    # The sender may choose it, and must not make a reply that nobody reads.
    assert said(LISTED % f'["{text}", "{text}"]').action == "no action"


@pytest.mark.parametrize("end", [b"", b"\\"])
@pytest.mark.parametrize("text", [b'\\",,', b'\\"' + b"1" * 100])
def test_an_unterminated_string_is_searched_once(text: bytes, end: bytes) -> None:
    """Commas and digits are counted outside of strings, which no quote in one may end."""

    def seconds(size: int) -> float:
        data = b'{"action":"no action","x":["' + text * (size // len(text)) + b"1" * 1000 + end
        begun = process_time()
        with pytest.raises(ReplyError, match=r"^invalid JSON"):
            parse(200, data)
        return process_time() - begun

    assert min(seconds(1 << 16) for _ in range(3)) < 0.1


def test_a_reply_with_the_most_links_is_read() -> None:
    # rspamd 3.4 lists 10,240 links (max_urls), each with the name of its host, of 253 octets.
    hosts = [f"{n:06}" + "x" * 247 for n in range(10_240)]
    assert said({"urls": hosts, "emails": []}).action == "no action"


def test_a_subject_is_cut() -> None:
    done = Done({"action": "rewrite subject", "subject": "x" * 100_000})
    assert done.headers.get("Subject", "").replace(" ", "") == "x" * (8 << 10)


def test_a_great_many_names_are_not_each_looked_for() -> None:
    """In a reply of 20,000 names that took seventeen seconds of everybody's time."""

    class Text(str):
        __slots__ = ()
        looks = 0

        def __len__(self) -> int:
            return 1000

        def count(self, *_: object) -> int:
            Text.looks += 1
            return 1  # each name stands once

    for names, looks in ((10, 11), (20_000, 0)):
        added = add(**{f"X_{n}": "1" for n in range(names)})
        Text.looks = 0
        assert _may_repeat(Text(), added["milter"]) == (names == 20_000)
        assert Text.looks == looks
        body = json.dumps({"action": "no action", **added})
        if names == 10:
            assert len(said(body).additions) == names


def test_lines_that_are_no_field_stay_where_they_are() -> None:
    data = b"From bob Sat\n" + RECEIVED + b"no field\nFrom: b\n\nbody\n"
    body = add(A={"value": "1", "order": 0}, B={"value": "2", "order": 1}, C="3")
    assert Done(body, mail(data=data)).after == (
        b"From bob Sat\nA: 1\nB: 2\n" + RECEIVED + b"no field\nFrom: b\nC: 3\n\nbody\n"
    )


# -- dkim-signature --------------------------------------------------------------------------

SIGNATURE = "v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n\td=example.org; s=mail;\r\n\tb=abc"


def test_dkim_signature() -> None:
    done = Done({"dkim-signature": SIGNATURE})
    folded = SIGNATURE.replace("\r", "").encode()
    assert done.after == RECEIVED + b"DKIM-Signature: " + folded + b"\n" + MAIL
    assert done.accepted


def test_dkim_signature_array() -> None:
    done = Done({"dkim-signature": [SIGNATURE, "v=2"]})
    assert done.names[:4] == ["Received", "DKIM-Signature", "DKIM-Signature", "From"]
    assert done.headers.get_all("DKIM-Signature")[1] == "v=2"


def test_dkim_signature_of_another_kind() -> None:
    done = Done({"dkim-signature": [5, "v=1", {}]})
    assert done.headers.get_all("DKIM-Signature") == ["v=1"]
    assert (
        done.decision.reason
        == "no action, dkim-signature is not a string, dkim-signature is not a string"
    )


def test_dkim_signature_has_a_bound() -> None:
    most = Done({"dkim-signature": ["v=1"] * MAX_EDITS})
    assert most.names.count("DKIM-Signature") == MAX_EDITS
    with pytest.raises(ReplyError, match=r"^dkim-signature: more than 256$"):
        said({"dkim-signature": ["v=1"] * (MAX_EDITS + 1)})


# -- the rest of the milter block ------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "said_so"),
    [
        ({"change_from": "a@b"}, "change_from a@b"),
        ({"add_rcpt": ["x@y", "u@v"]}, "add_rcpt u@v"),
        ({"del_rcpt": ["x@y"]}, "del_rcpt x@y"),
    ],
)
def test_changes_of_the_envelope(block: dict[str, Any], said_so: str) -> None:
    done = Done({"milter": {**block, "add_headers": {"X": "1"}}})
    assert done.decision.verb == "proceed"
    assert f"not possible: {said_so}" in done.decision.reason
    assert done.added == ["X: 1"]
    done = Done(
        {"milter": {**block, "add_headers": {"X": "1"}}}, options=Options(envelope="tempfail")
    )
    assert done.decision.text == "451 4.3.5 The envelope of this message cannot be changed"
    assert said_so in done.decision.reason
    assert done.unchanged


@pytest.mark.parametrize("block", [{"change_from": 5}, {"add_rcpt": "x@y"}, {"del_rcpt": {}}])
def test_changes_of_the_envelope_of_another_kind(block: dict[str, Any]) -> None:
    done = Done({"milter": block}, options=Options(envelope="tempfail"))
    assert done.decision.verb == "proceed"
    assert f"{next(iter(block))} is no" in done.decision.reason


def test_a_refusal_is_not_put_off_for_the_envelope() -> None:
    body = {"action": "reject", **milter(change_from="a@b")}
    assert Done(body, options=Options(envelope="tempfail")).decision.text[:3] == "554"


@pytest.mark.parametrize(
    ("kind", "verb", "mark"),
    [("discard", "reject", None), ("quarantine", "junk", "Yes"), ("no", "reject", None)],
)
def test_milter_reject(kind: str, verb: str, mark: str | None) -> None:
    done = Done({"action": "reject", **milter(reject=kind)})
    assert done.decision.verb == verb
    assert done.headers.get("X-Spam") == mark
    assert Done(milter(reject=kind)).accepted


def test_milter_reject_of_another_kind() -> None:
    assert "milter.reject is not a string" in Done(milter(reject=1)).decision.reason


@pytest.mark.parametrize("action", sorted(DEFAULTS))
def test_no_action_flag(action: str) -> None:
    done = Done(
        {"action": action, "subject": "s", **milter(no_action=True, add_headers={"X": "1"})}
    )
    assert done.decision.verb == "proceed"
    assert done.decision.reason == action
    assert done.added == ["X: 1", f"X-Rspamd-Action: {action}"]


def test_an_invalid_no_action_flag() -> None:
    assert Done(milter(no_action=False)).accepted
    done = Done({"action": "reject", **milter(no_action="yes")})
    assert done.decision.verb == "reject"
    assert done.decision.reason == "reject, no_action is not a boolean"


def test_spam_header() -> None:
    body = {"action": "add header", **milter(spam_header="Really")}
    done = Done(body, options=Options(headers="minimal"))
    assert done.after == b"X-Spam: Really\n" + RECEIVED + MAIL
    assert Done(milter(spam_header="Really")).unchanged


def test_spam_header_object() -> None:
    body = {"action": "add header", **milter(spam_header={"X-Bad": "1", "x-foo": "2"})}
    done = Done(body, options=Options(headers="minimal"))
    assert done.names == ["x-foo", "X-Bad", "Received", "From", "Subject"]


@pytest.mark.parametrize("value", [5, {"X Y": "1"}, {"X-Bad": 1}, {}, None, []])
def test_spam_header_of_another_kind(value: Any) -> None:
    body = {"action": "add header", **milter(spam_header=value)}
    done = Done(body, options=Options(headers="minimal"))
    assert done.after == MARK + RECEIVED + MAIL


def test_spam_header_has_a_bound() -> None:
    marks = {f"X-{n}": "1" for n in range(MAX_EDITS)}
    done = Done({"action": "add header", **milter(spam_header=marks)})
    assert len([name for name in done.names if name[2:].isdigit()]) == MAX_EDITS
    with pytest.raises(ReplyError, match=r"^spam_header: more than 256$"):
        said(milter(spam_header=marks | {"X": "1"}))


def test_changes_of_the_envelope_have_a_bound() -> None:
    with pytest.raises(ReplyError, match=r"^add_rcpt: more than 256$"):
        said(milter(add_rcpt=["x@y"] * (MAX_EDITS + 1)))
    done = Done(milter(add_rcpt=["x@y"] * MAX_EDITS))
    assert done.decision.reason == ", ".join(["no action", *["not possible: add_rcpt x@y"] * 8])


@pytest.mark.parametrize("block", [[], "x", 5])
def test_a_milter_block_of_another_kind(block: Any) -> None:
    done = Done({"milter": block})
    assert done.unchanged
    assert done.decision.reason == "no action, milter is not an object"


def test_what_a_later_daemon_may_say_is_passed_over() -> None:
    assert Done({"milter": {"new_thing": 5}, "urls": ["x"], "emails": []}).accepted


# -- the body --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_new_body(end: bytes) -> None:
    said = json.dumps({"action": "no action", "milter": {"add_headers": {"X": "1"}}}).encode()
    body = end.join([b"another body", b".dot", b"", b"caf\xe9", b""])
    message = mail()
    reply = received(Said(said + body, str(len(said))), message)
    decision = applied(reply, message, Options())
    assert isinstance(decision, Proceed)
    head = (RECEIVED + MAIL).partition(b"\n\n")[0]
    expected = head + b"\nX: 1\n\nanother body\n.dot\n\ncaf\xe9\n"
    assert b"".join(message.iter_bytes()) == expected
    message.release()
    sent = []
    while lines := message.drain():
        sent += lines
    assert b"..dot" in sent


def test_a_new_body_that_is_empty() -> None:
    said = b'{"action":"no action"}'
    message = mail()
    applied(received(Said(said, str(len(said))), message), message, Options())
    assert b"".join(message.body()) == b""


def test_a_new_body_of_what_is_marked() -> None:
    # The daemon's own milter forgets it then.
    said = b'{"action":"add header","milter":{"spam_header":"Really"}}'
    message = mail()
    reply = received(Said(said + b"new\n", str(len(said))), message)
    applied(reply, message, Options())
    assert b"".join(message.body()) == b"new\n"


@pytest.mark.parametrize("piece", [1000, 1 << 16])
def test_the_json_may_be_smaller_than_the_body(piece: int) -> None:
    said = b'{"action":"no action"}'
    body = b"x" * 997 + b"\n"
    message = mail()
    reply = received(Said(said + body * 5000, str(len(said)), piece=piece), message)
    applied(reply, message, Options())
    assert b"".join(message.body()) == body * 5000


@given(st.binary(max_size=40), st.integers(1, 9), st.booleans())
def test_a_new_body_may_be_cut_anywhere(body: bytes, piece: int, sized: bool) -> None:  # noqa: FBT001
    said = b'{"action":"no action"}'
    message, other = mail(), mail()
    response = Said(said + body, str(len(said)), piece=piece, sized=sized)
    applied(received(response, message), message, Options())
    other.replace_body(body)
    assert list(message.body()) == list(other.body())


class Disk:
    """A new body that counts its discards."""

    def __init__(self, fails: bool = False) -> None:  # noqa: FBT001, FBT002
        self.fails = fails
        self.discarded = 0

    def write(self, _data: bytes) -> None:
        if self.fails:
            raise SpoolError("no space left")

    def close(self) -> None:
        pass

    def discard(self) -> None:
        self.discarded += 1


def taken(response: Said, body: Disk) -> Reply:
    reader = ReplyReader(None)

    async def read() -> Reply:
        response_: Any = response
        body_: Any = body
        try:
            return await reader.read(response_, lambda: body_, 1 << 30)
        finally:
            assert reader._large._value == 2

    return asyncio.run(read())


@pytest.mark.parametrize(
    "content", [b"{broken}", b"{}", b'{"action":"x","symbols":' + b"[" * 30_000]
)
def test_a_new_body_behind_no_verdict_is_discarded(content: bytes) -> None:
    body = Disk()
    with pytest.raises(BadReplyError):
        taken(Said(content + b"new", str(len(content))), body)
    assert body.discarded == 1


@pytest.mark.parametrize("size", [0, 10_000, SMALL + 1])
@pytest.mark.parametrize("offset", [False, True])
def test_a_reply_before_the_whole_message_is_no_verdict(size: int, *, offset: bool) -> None:
    content = b'{"action":"no action"}'.ljust(size)
    response, body = Said(content, str(len(content)) if offset else None), Disk()
    response.early = True
    with pytest.raises(BadReplyError, match=r"^replied before it had the whole message$"):
        taken(response, body)
    assert body.discarded == offset


def test_an_early_error_is_that_error() -> None:
    response = Said(b'{"error":"too large"}')
    response.early, response.status = True, 413
    with pytest.raises(BadReplyError, match=r"^status 413: too large$"):
        taken(response, Disk())


def test_a_new_body_that_may_be_cut_is_not_used() -> None:
    """It ends with the connection, as with HTTP/1.0, whether all of it was sent or not."""
    response = Said(b'{"action":"no action"}new', "22", sized=False)
    response.delimited = False
    with pytest.raises(BadReplyError, match=r"^a new body without its length$"):
        taken(response, Disk())


def test_a_new_body_of_a_message_that_is_refused_is_discarded() -> None:
    said = b'{"action":"reject"}'
    body = Disk()
    reply = taken(Said(said + b"new", str(len(said))), body)
    assert isinstance(applied(reply, mail(), Options()), Reject)
    assert body.discarded == 1


def test_a_new_body_that_cannot_be_kept_is_no_failure_of_the_daemon() -> None:
    said = b'{"action":"no action"}'
    body = Disk(fails=True)
    with pytest.raises(NotKeptError, match="no space left"):
        taken(Said(said + b"new", str(len(said))), body)
    assert body.discarded == 1


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("offset", [None, str(MAX_JSON + 1)])
def test_json_is_read_up_to_its_limit(offset: str | None, *, sized: bool) -> None:
    response = Said(b" " * (MAX_JSON + 2), offset, piece=1 << 16, sized=sized)
    with pytest.raises(BadReplyError, match=r"^oversized reply$"):
        taken(response, Disk())


@pytest.fixture
def admitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The work of each piece that waits for its turn, in the units of `pace`."""
    pieces = []
    admit = Pace.admit

    async def counted(self: Pace, work: int) -> None:
        pieces.append(work)
        await admit(self, work)

    monkeypatch.setattr(Pace, "admit", counted)
    return pieces


def test_each_edit_is_a_piece_of_work(admitted: list[int]) -> None:
    """Of the largest header, with the largest reply, no piece takes 50 ms of the others' time."""
    message = mail(RECEIVED, b"X:\n" * 16_000 + MAIL)
    body = {
        "action": "add header",
        "symbols": {f"S{n}": {"score": 1} for n in range(MAX_SYMBOLS)},
        "dkim-signature": ["v=1"] * MAX_EDITS,
        **milter(
            add_headers={"X": [{"value": "v " * 100, "order": 8000}] * MAX_EDITS},
            remove_headers={"X": list(range(1, MAX_EDITS))},
            spam_header={f"Y{n}": "1" for n in range(MAX_EDITS)},
        ),
    }
    applied(said(body), message, Options())
    assert len(admitted) > 3 * MAX_EDITS
    assert max(admitted) <= TURN


def test_the_text_of_one_header_is_no_more_than_a_turn_can_take(admitted: list[int]) -> None:
    applied(said(add(X="v " * (MAX_TEXT // 2 - 1))), mail(), Options())
    assert max(admitted) == sum(admitted) - min(admitted)
    assert max(admitted) < 50_000  # microseconds, about


def test_a_reply_is_parsed_in_its_turn(admitted: list[int]) -> None:
    content = b'{"action":"no action"}' + b" " * (MAX_JSON - 22)
    taken(Said(content, piece=32 << 10), Disk())
    assert admitted == [MAX_JSON // 100]
    assert max(admitted) < 50_000


def test_few_large_replies_are_held_at_a_time() -> None:
    reader = ReplyReader(None)
    most = open_ = 0

    class Slow(Said):
        async def pieces(self) -> AsyncIterator[bytes]:
            nonlocal most, open_
            yield self.content[: SMALL + 1]
            open_ += 1
            most = max(most, open_)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            open_ -= 1
            yield self.content[SMALL + 1 :]

    async def read_all() -> list[Reply]:
        responses: list[Any] = [
            Slow(b'{"action":"no action"}' + b" " * 2 * SMALL) for _ in range(10)
        ]
        new_body: Any = Disk
        return await asyncio.gather(*(reader.read(each, new_body, 0) for each in responses))

    assert len(asyncio.run(read_all())) == 10
    assert most == 2


# -- what is logged --------------------------------------------------------------------------


def test_the_heaviest_symbols_come_first() -> None:
    symbols = {"A": {"score": 1}, "B": {"score": -7}, "C": {"score": 0.0}, "D": {"score": "x"}}
    reply = said({"score": -6, "required_score": 15, "symbols": symbols | {"E": 5}})
    assert reply.summary() == "no action, score -6/15, B(-7), A(1)"


@pytest.mark.parametrize("score", ["5", None, True, 10**400, [1], 1e400])
def test_a_score_of_another_kind(score: Any) -> None:
    assert Done({"score": score, "required_score": score}).accepted
    assert said({"score": score}).summary() == "no action"


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_score_that_is_not_finite(word: str) -> None:
    assert said(f'{{"action":"no action","score":{word}}}').score is None


def test_what_is_accepted_has_a_reason() -> None:
    done = Done({"score": 1.5})
    assert done.decision.reason == "no action, score 1.5"


# -- whatever comes --------------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(["X-Foo", "x-spam", "X-Spam", "Received", "From", "Subject", "New"]),
    st.text(max_size=8),
)
VALUES = st.text(max_size=30) | st.sampled_from(["a\n\tb", "a\nb: c", "\r\n\r\n", "\ud800"])
NUMBERS = st.integers(-6, 8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | VALUES
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
PLACED = st.fixed_dictionaries({"value": VALUES}, optional={"order": NUMBERS, "index": NUMBERS})
ADDITION = VALUES | PLACED
ADDED = st.dictionaries(NAMES, ADDITION | st.lists(ADDITION, max_size=4), max_size=5)
REMOVED = st.dictionaries(NAMES, NUMBERS | st.lists(NUMBERS, max_size=4), max_size=5)
MILTER = st.fixed_dictionaries(
    {},
    optional={
        "add_headers": ADDED | ANYTHING,
        "remove_headers": REMOVED | ANYTHING,
        "spam_header": VALUES | st.dictionaries(NAMES, VALUES, max_size=3) | ANYTHING,
        "reject": st.sampled_from(["discard", "quarantine"]) | ANYTHING,
        "no_action": ANYTHING,
        "change_from": ANYTHING,
        "add_rcpt": ANYTHING,
        "del_rcpt": ANYTHING,
    },
)
REPLIES = st.fixed_dictionaries(
    {"action": st.sampled_from(sorted(DEFAULTS))},
    optional={
        "milter": MILTER | ANYTHING,
        "dkim-signature": VALUES | st.lists(VALUES, max_size=3) | ANYTHING,
        "subject": VALUES | ANYTHING,
        "score": ANYTHING,
        "required_score": ANYTHING,
        "symbols": st.dictionaries(NAMES, st.fixed_dictionaries({"score": st.floats()}), max_size=3)
        | ANYTHING,
        "messages": st.fixed_dictionaries({"smtp_message": VALUES}) | ANYTHING,
        "reject": ANYTHING,
    },
)
HEADS = st.sampled_from(
    [
        RECEIVED,
        MARK + RECEIVED,
        MARK + RECEIVED + b"X-Spam: c\n",
        b"X-Spam: No\n",
        b"",
        b" continuation\n" + RECEIVED,
        RECEIVED + b"no field\n\tgoes on\n",
    ]
)


@given(REPLIES, HEADS)
def test_any_reply_leaves_a_header_block(body: dict[str, Any], head: bytes) -> None:
    message = mail(head, MAIL)
    old = set(message.headers.lines())
    decision = applied(said(json.dumps(body)), message, Options())
    for line in set(message.headers.lines()) - old:
        assert re.match(rb"[!-9;-~]+:|[ \t]+[^ \t]", line), line
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", line)
        assert len(line) <= 998
    assert b"".join(message.body()) == b"body\n.dot\n"
    assert type(decision) in {Proceed, Marked, Reject}
    assert b"\n" not in decision.wire


@given(st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_reply_or_an_error(body: bytes) -> None:
    action = None
    try:
        reply = parse(200, body)
        action = reply.action
        applied(reply, mail(), Options())
    except ReplyError:
        assert action not in DEFAULTS
    else:
        assert action


@given(
    st.lists(st.tuples(st.sampled_from("ABC"), NUMBERS), max_size=6),
    st.dictionaries(st.sampled_from("abcdr"), st.lists(NUMBERS, max_size=3), max_size=3),
)
def test_headers_end_up_where_a_milter_would_put_them(
    added: list[tuple[str, int]], removed: dict[str, list[int]]
) -> None:
    # The model: a list whose first element is the MTA's own Received, as in smfi_insheader.
    model = [("R", "own"), *((name, str(n)) for n, name in enumerate("abcabcd"))]
    gone = set()
    for name, numbers in removed.items():
        mine = [field for field in model if field[0].lower() == name]
        for number in numbers:
            if number == 0:
                gone.update(mine)
            elif abs(number) <= len(mine):
                gone.add(mine[number - 1 if number > 0 else number])
    data = b"".join(f"{name}: {value}\n".encode() for name, value in model).replace(
        b"R: own", b"Received: own"
    )
    if ("R", "own") in gone:
        removed = {**removed, "received": [1]}
    own = 0 if ("R", "own") in gone else 1
    model = [field for field in model if field not in gone]
    for at, (name, order) in enumerate(added):
        if order > 0:
            place = order - 1 + own
        elif order < 0:
            place = max(len(model) + order + 1, 0)
        else:
            place = 0
        model.insert(place, (name, f"new{at}"))
    pairs = [
        (name, {"value": f"new{at}", "order": order}) for at, (name, order) in enumerate(added)
    ]
    text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs)
    message = mail(data=data + b"\n")
    body = (
        f'{{"action":"no action","milter":{{"remove_headers":{json.dumps(removed)},'
        f'"add_headers":{{{text}}}}}}}'
    )
    applied(said(body), message, Options())
    assert [(name, value) for name, value in _fields(message)] == model


def _fields(message: Message) -> list[tuple[str, str]]:
    return [
        ("R" if field.name == "Received" else field.name, field.value) for field in message.headers
    ]
