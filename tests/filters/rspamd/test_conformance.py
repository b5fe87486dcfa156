"""The tables of docs/rspamd-conformance.md, and what they say of Debian's filter of that name."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.rspamd import reply
from smtpd_filters.filters.rspamd.edits import DEFAULTS
from smtpd_filters.filters.rspamd.reply import MAX_JSON
from smtpd_filters.filters.rspamd.request import Facts, fields
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub
from tests.filters.rspamd.test_reply import DIRTY, add, milter, remove
from tests.filters.rspamd.test_request import session

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.testing.rspamd.stub import Request

TABLE = Path(__file__).parents[3] / "docs" / "rspamd-conformance.md"

# -- the table -------------------------------------------------------------------------------


def _rows() -> list[list[str]]:
    lines = TABLE.read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line[:1] == "|"
    ]
    heads = ("---", "Field of the reply", "Data for the daemon")
    return [row for row in rows if not row[0].startswith(heads)]


def test_every_row_of_the_table_has_its_tests() -> None:
    root = TABLE.parents[1]
    rows = _rows()
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 4, row
        assert all(row), row
        named = re.findall(r"`(?:([a-z_/0-9]+\.py)::)?(test_\w+)`", row[3])
        assert named, row
        for file, test in named:
            source = (root / "tests" / (file or "filters/rspamd/test_reply.py")).read_text()
            assert f"def {test}(" in source, test


def test_every_field_is_in_the_table() -> None:
    first = " ".join(row[0] for row in _rows())
    names = [f"milter.{name}" for name in reply._MILTER]
    names += [
        "action",
        "subject",
        "reject",
        "dkim-signature",
        "score",
        "required_score",
        "symbols",
    ]
    names += ["messages.smtp_message", "error", "Message-Offset", "is_skipped"]
    told = session(tls="TLSv1.3:A:1", username="anna")
    facts = Facts(
        settings_id="a",
        mta_tag="a",
        authserv_id="a",
        password="a",  # noqa: S106
        pass_all=True,
        deliver_to=True,
        compressed=True,
    )
    sent = [name for name, _ in fields(told, facts)[0]]
    assert sent
    names += sent
    for name in [*names, *DEFAULTS]:
        assert f"`{name}`" in first or f'"{name}"' in first, name


# -- the other filter of this name -----------------------------------------------------------

OTHER = "/usr/libexec/opensmtpd/filter-rspamd"
EVENTS = """\
config|smtpd-version|7.4
config|smtp-session-timeout|300
config|subsystem|smtp-in
config|admd|mx.example.org
config|ready
report|0.7|1.2|smtp-in|link-connect|S|mail.example.net|pass|192.0.2.9:4000|192.0.2.1:25
report|0.7|1.2|smtp-in|link-identify|S|EHLO|mail.example.net
report|0.7|1.2|smtp-in|tx-begin|S|c9b7b4b7
report|0.7|1.2|smtp-in|tx-mail|S|c9b7b4b7|ok|bob@example.net
report|0.7|1.2|smtp-in|tx-rcpt|S|c9b7b4b7|ok|anna@example.org
"""
ITS_MAIL = DIRTY.replace(b".dot\n", b"")
BAD = "421 server internal error"


def other(
    answer: Answer | Callable[[Request], Answer], mail: bytes = ITS_MAIL, events: str = EVENTS
) -> tuple[str, bytes]:
    """What Debian's filter answers at commit, and the message as it comes back."""
    lines = [*mail.split(b"\n")[:-1], b"."]
    data = b"".join(b"filter|0.7|1.2|smtp-in|data-line|S|T|%b\n" % line for line in lines)
    got = []
    with (
        RspamdStub(answer) as rspamd,
        subprocess.Popen(
            [OTHER, "-url", rspamd.url, "-settings-id", "out"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(events.encode() + data)
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith(b"filter-dataline|S|T|"):
                got.append(line[len(b"filter-dataline|S|T|") :])
            if got and got[-1] == b".\n":
                break
        process.stdin.write(b"filter|0.7|1.2|smtp-in|commit|S|T|\n")
        process.stdin.flush()
        said = process.stdout.readline().decode().rstrip("\n").removeprefix("filter-result|S|T|")
        process.stdin.close()
    return said, b"".join(got[:-1])


@pytest.mark.e2e
@pytest.mark.skipif(not os.access(OTHER, os.X_OK), reason=f"no {OTHER}")
@pytest.mark.parametrize(
    ("body", "said", "head"),
    [
        # The header that comes back: what stands here, with {} for what was sent; "" for just that.
        ({"action": "reject", "error": "x"}, "reject|550 message rejected", ""),
        ({"error": "x"}, "proceed", ""),
        ("{", f"reject|{BAD}", ""),
        ("", f"reject|{BAD}", ""),
        ('{"action":"no action"', f"reject|{BAD}", ""),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", f"reject|{BAD}", ""),
        ("[]", f"reject|{BAD}", ""),
        ("null", "proceed", ""),
        ('{"action":"no action"} x', "proceed", ""),
        ('{"action":"no action"}' + " " * MAX_JSON, "proceed", ""),
        ({}, "proceed", ""),
        ({"action": "no action"}, "proceed", ""),
        ({"action": "greylist"}, "proceed", ""),
        ({"action": "reject", "is_skipped": True}, "reject|550 message rejected", ""),
        ({"action": "fancy"}, "proceed", ""),
        (
            b'{"action":"no action","milter":{"add_headers":{"A":"\xff"}}}',
            "proceed",
            "A: \ufffd\n{}",
        ),
        (
            {
                "action": "add header",
                "score": 7.7,
                "required_score": 15,
                "symbols": {"Z": {"score": 1}, "A": {"score": 0}},
            },
            "proceed",
            (
                "X-Spam: yes\nX-Spam-Score: 7.7 / 15\n"
                "X-Spam-Status: Yes, score=7.700 required=15.000\n"
                "\ttests=[A=0.000, Z=1.000]\n{}"
            ),
        ),
        ({"action": "rewrite subject"}, "proceed", "Subject: hello>Subject: "),
        (
            {"action": "rewrite subject", "subject": "\xfc"},
            "proceed",
            "Subject: hello>Subject: \xfc",
        ),
        ({"action": "soft reject"}, "reject|451 try again later", ""),
        ({"action": "reject"}, "reject|550 message rejected", ""),
        ({"action": "reject", "messages": {"smtp_message": "a\n\xe9"}}, "reject|550 a", ""),
        ({"action": "reject", "messages": {"smtp_message": "\xe9"}}, "reject|550 \xe9", ""),
        ({"action": "discard", "reject": "discard"}, "proceed", ""),
        ({"action": "bounce", "reject": "discard"}, "proceed", ""),
        ({"action": "quarantine", "reject": "quarantine"}, "proceed", ""),
        (remove({"X-Foo": 2}), "proceed", "X-Foo: 1\n>"),
        (remove({"X-Foo": -1}), "proceed", "X-Foo: 1\n>"),
        (remove({"X-Foo": [1]}), f"reject|{BAD}", ""),
        (remove({"X-Spam": 0}), "proceed", "X-Spam: client\n>"),
        (add(A="1"), "proceed", "A: 1\n{}"),
        (add(A={"value": "1"}), "proceed", ""),
        (add(A=[{"value": "1", "order": 1}]), "proceed", ""),
        (add(A=["1", "2"]), "proceed", ""),
        (add(A=5), "proceed", ""),
        (add(A="1\nB: 2\n\nbody"), "proceed", "A: 1\nB: 2\n\nbody\n{}"),
        (milter(add_headers={"X Y": "1"}), "proceed", "X Y: 1\n{}"),
        (milter(change_from="a@b", add_rcpt=["x@y"], del_rcpt=["z@w"]), "proceed", ""),
        ({"action": "reject", **milter(reject="quarantine")}, "reject|550 message rejected", ""),
        ({"action": "reject", **milter(no_action=True)}, "reject|550 message rejected", ""),
        (
            {"action": "add header", **milter(spam_header="Really")},
            "proceed",
            "X-Spam: yes\nX-Spam-Score: 0 / 0\n{}",
        ),
        (
            {"action": "add header", **milter(spam_header={"X-Bad": "1"})},
            "proceed",
            "X-Spam: yes\nX-Spam-Score: 0 / 0\n{}",
        ),
        ({"dkim-signature": "a\r\n\tb"}, "proceed", "DKIM-Signature: a\r\n\tb\n{}"),
        ({"dkim-signature": ["a", "b"]}, "proceed", "DKIM-Signature: a\nDKIM-Signature: b\n{}"),
        ({"dkim-signature": 5}, "proceed", ""),
        (
            '{"action":"no action","milter":{"add_headers":{"A":"1","A":"2"}}}',
            "proceed",
            "A: 2\n{}",
        ),
        (
            '{"action":"no action","milter":{"add_headers":{"A":"1","A":{"value":"2"}}}}',
            "proceed",
            "",
        ),
        (
            {"action": "add header", "symbols": {"A": {"score": 1}}, **add(X_Spam="Yes")},
            "proceed",
            (
                "X-Spam: yes\nX-Spam-Score: 0 / 0\n"
                "X-Spam-Status: Yes, score=0.000 required=0.000\n\ttests=[A=1.000]\n"
                "X-Spam: Yes\n{}"
            ),
        ),
        ({"action": ["reject"]}, f"reject|{BAD}", ""),
        ({"score": "5"}, f"reject|{BAD}", ""),
        ({"symbols": ["A"]}, f"reject|{BAD}", ""),
        (milter(remove_headers=["X-Foo"]), f"reject|{BAD}", ""),
        ({"messages": ["x"]}, f"reject|{BAD}", ""),
    ],
)
def test_the_other_filter(body: Any, said: str, head: str) -> None:
    if isinstance(body, dict):
        body = json.dumps(body)
    answer, message = other(Answer(body if isinstance(body, bytes) else body.encode()))
    old, _, new = head.partition(">")
    if ">" in head:
        expected = ITS_MAIL.replace(old.encode(), new.encode(), 1)
    else:
        expected = (head or "{}").encode().replace(b"{}", ITS_MAIL)
    assert (answer, message) == (said, expected)


@pytest.mark.e2e
@pytest.mark.skipif(not os.access(OTHER, os.X_OK), reason=f"no {OTHER}")
def test_the_other_filter_does_not_look_at_the_status() -> None:
    answer, message = other(Answer(b'{"action":"no action"}', status=500))
    assert (answer, message) == ("proceed", ITS_MAIL)
    answer, _ = other(Answer(b"{}", status=302, headers=(("Location", "http://127.0.0.1:1/"),)))
    assert answer == f"reject|{BAD}"


@pytest.mark.e2e
@pytest.mark.skipif(not os.access(OTHER, os.X_OK), reason=f"no {OTHER}")
@pytest.mark.parametrize("behaviour", ["close", "reset", "cut", "garbage"])
def test_the_other_filter_without_a_whole_reply(behaviour: str) -> None:
    assert other(Answer.of({}, behaviour=behaviour)) == (f"reject|{BAD}", ITS_MAIL)


@pytest.mark.e2e
@pytest.mark.skipif(not os.access(OTHER, os.X_OK), reason=f"no {OTHER}")
def test_the_other_filter_asks_for_no_new_body() -> None:
    answer = Answer.of({"action": "no action"}, b"new body\n")
    assert other(answer) == ("proceed", ITS_MAIL)


@pytest.mark.e2e
@pytest.mark.skipif(not os.access(OTHER, os.X_OK), reason=f"no {OTHER}")
@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ("", "", {}),
        ("|mail.example.net|pass|", "|<unknown>|fail|", {"Hostname": ["<unknown>"]}),
        (
            "|mail.example.net|pass|192.0.2.9:4000|192.0.2.1:25",
            "|local|pass|unix:/var/run/smtpd.sock|unix:/var/run/smtpd.sock",
            {"Hostname": ["local"], "IP": ["127.0.0.1"]},
        ),
        ("|192.0.2.9:4000|", "|[fe80::1%em0]:25|", {"IP": ["fe80::1%em0"]}),
        ("|ok|bob@example.net", "|ok|", {"From": [""]}),
        ("|ok|bob@example.net", "|ok|a:b@example.net", {"From": ["a:b@example.net"]}),
        ("|pass|anna\n", "|fail|anna\n", {}),
        ("0.7|1.2|smtp-in|link-auth|S|pass|anna", "0.6|1.2|smtp-in|link-auth|S|anna|pass", None),
    ],
)
def test_the_other_filters_request(old: str, new: str, facts: dict[str, list[str]] | None) -> None:
    events = EVENTS + (
        "report|0.7|1.2|smtp-in|link-greeting|S|greeter.example.org\n"
        "report|0.7|1.2|smtp-in|link-auth|S|pass|anna\n"
        "report|0.7|1.2|smtp-in|tx-rcpt|S|c9b7b4b7|ok|otto@example.org\n"
    )
    asked: list[Request] = []

    def answer(request: Request) -> Answer:
        asked.append(request)
        return Answer.of({"action": "no action"})

    other(answer, events=events.replace(old, new, 1))
    [request] = asked
    assert request.body == ITS_MAIL[:-1]
    said: dict[str, list[str]] = {}
    for name, value in request.headers:
        said.setdefault(name.lower(), []).append(value)
    for name in ("host", "user-agent", "content-length"):
        del said[name]
    expected = {
        "Accept-Encoding": ["gzip"],
        "From": ["bob@example.net"],
        "Helo": ["mail.example.net"],
        "Hostname": ["mail.example.net"],
        "IP": ["192.0.2.9"],
        "MTA-Name": ["greeter.example.org"],
        "Pass": ["All"],
        "Queue-Id": ["c9b7b4b7"],
        "Rcpt": ["anna@example.org", "otto@example.org"],
        "Settings-ID": ["out"],
        **({"User": ["anna"]} if facts is None else facts),
    }
    assert said == {name.lower(): values for name, values in expected.items()}


@pytest.mark.e2e
@pytest.mark.skipif(not os.access(OTHER, os.X_OK), reason=f"no {OTHER}")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"subject: hello\n", b"subject: hello\n"),
        (b"Subject: a\n b\n", b"Subject: new\n b\n"),
        (b"Subject: a\nSubject: b\n", b"Subject: new\nSubject: new\n"),
        (b"", b""),
    ],
)
def test_the_other_filters_subject(old: bytes, new: bytes) -> None:
    mail = ITS_MAIL.replace(b"Subject: hello\n", old)
    _, message = other(Answer(b'{"action":"rewrite subject","subject":"new"}'), mail)
    assert message == mail.replace(old, new)
