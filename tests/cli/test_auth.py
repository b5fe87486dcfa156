"""The verb auth: the verdict of filter-auth on a message, explained with a real name server."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from collections import Counter
from io import BytesIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.cli import main
from smtpd_filters.cli.auth.examination import message_of
from smtpd_filters.filters.auth import Auth
from smtpd_filters.testing import Conversation, DNSServer
from tests.filters.auth.mail import FAILS, MESSAGE, PASSES, of, send, signed_by, zone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

FIELD = "Authentication-Results"


@pytest.fixture(scope="module")
def server() -> Iterator[DNSServer]:
    names = zone() | {
        "1.2.0.192.in-addr.arpa": {"PTR": "mail.example.com"},
        "mail.example.com": {"A": PASSES, "TXT": f"v=spf1 ip4:{PASSES} -all"},
        "long.example": {
            "TXT": "v=spf1 include:example.org exists:%{i}.x.example mx redirect=soft.example"
        },
        "soft.example": {"TXT": "v=spf1 ?include:nothing.example ~all"},
        "nothing.example": {"TXT": "v=spf1"},
        "wrong.example": {"TXT": "v=spf1 mx ip4:1.2.3 -all"},
        "why.example": {"TXT": "v=spf1 a:broken.example -all"},
        "no.example": {"TXT": "v=spf1 -all exp=text.example"},
        "text.example": {"TXT": "%{i} is not ours"},
    }
    with DNSServer(names) as running:
        yield running


class Tool:
    """The command, for messages in a file."""

    def __init__(self, server: DNSServer, capsys: Capture, folder: Path) -> None:
        self._server = server
        self._capsys = capsys
        self.path = folder / "message"

    def run(self, *words: str) -> tuple[int, str, str]:
        try:
            status = main(["auth", *words])
        except SystemExit as end:
            status = int(str(end.code))
        out, err = self._capsys.readouterr()
        return status, out, err

    def check(
        self,
        content: bytes = MESSAGE,
        *flags: str,
        sender: str = "ann@example.org",
        address: str = PASSES,
        options: tuple[str, ...] = (),
    ) -> tuple[int, str]:
        self.path.write_bytes(content)
        status, out, err = self.run(
            "check", str(self.path), "--client", address, "--helo", "mail.example.com",
            "--mail-from", sender, "--server", "mx.example.org", *options,
            "--", "--nameserver", f"{self._server.address}:{self._server.port}", *flags,
        )  # fmt: skip
        assert err == ""
        return status, out

    def json(self, *arguments: Any, **options: Any) -> tuple[int, dict[str, Any]]:
        status, out = self.check(*arguments, options=("--json",), **options)
        return status, json.loads(out)


@pytest.fixture
def tool(server: DNSServer, capsys: Capture, tmp_path: Path) -> Tool:
    return Tool(server, capsys, tmp_path)


def test_it_adds_the_field_of_the_filter_itself(server: DNSServer, tool: Tool) -> None:
    signed = signed_by("example.org")
    forged = b"Authentication-Results: mx.example.org; dkim=pass\r\n" + signed
    for content in (signed, forged):
        status, found = tool.json(content)
        with Conversation(Auth, nameserver=(server.address, server.port)) as smtpd:
            client = smtpd.connect("mail.example.com", address=PASSES)
            client.ehlo("mail.example.com")
            delivery = send(smtpd, content, client=client)
        expected = [line.decode() for line in delivery.content]
        assert (status, found["decision"]["result"]) == (0, "proceed")
        assert found["fields"][0].startswith(FIELD)
        assert found["fields"] == expected[: len(found["fields"])]
        rest = "\n".join(expected[len(found["fields"]) :])
        assert FIELD not in rest
    assert found["decision"]["reason"] == f"removed 1 forged {FIELD}"


def test_it_records_nothing_for_reports(tool: Tool, tmp_path: Path) -> None:
    store = tmp_path / "reports.sqlite"
    status, _ = tool.check(MESSAGE, "--report-to", f"sqlite:{store}", "--store-timeout", "1s")
    assert (status, store.exists()) == (0, False)


def test_the_terms_of_a_record(tool: Tool) -> None:
    status, found = tool.json(sender="x@long.example", address=FAILS)
    assert status == 0
    helo, mail = found["spf"]
    assert (helo["identity"], helo["result"], helo["mechanism"]) == ("helo", "fail", "-all")
    assert (mail["identity"], mail["domain"], mail["result"]) == (
        "mail-from", "long.example", "softfail"
    )  # fmt: skip
    assert [
        (each["depth"], each.get("term") or each["domain"], each["outcome"])
        for each in mail["steps"]
    ] == [
        (0, "long.example", "softfail"),
        (1, "include:example.org", "no match"),
        (2, "example.org", "fail"),
        (3, f"ip4:{PASSES}", "no match"),
        (3, "-all", "match"),
        (1, "exists:%{i}.x.example", "no match"),
        (1, "mx", "no match"),
        (1, "redirect=soft.example", "no other term matches"),
        (2, "soft.example", "softfail"),
        (3, "?include:nothing.example", "no match"),
        (4, "nothing.example", "neutral"),
        (3, "~all", "match"),
    ]
    answers = mail["steps"][5]["answers"]
    assert answers == [{"name": f"{FAILS}.x.example", "type": "A", "answer": "nxdomain"}]
    assert (mail["look-ups"], mail["void-look-ups"]) == (5, 2)


@pytest.mark.parametrize(
    ("domain", "status", "problem", "last"),
    [
        ("wrong.example", 0, "permerror: Invalid IP4 address: ip4:1.2.3", None),
        ("why.example", 3, "temperror: DNS: ", ("a:broken.example", "error")),
        ("nowhere.example", 0, "none: ", None),
        ("no.example", 0, "fail: ", ("-all", "match")),
    ],
)
def test_a_record_that_helps_nobody(
    tool: Tool, domain: str, status: int, problem: str, last: tuple[str, str] | None
) -> None:
    found_status, found = tool.json(sender=f"x@{domain}", address=FAILS)
    mail = found["spf"][1]
    assert found_status == status
    assert f"{mail['result']}: {mail['problem']}".startswith(problem)
    terms = [(each["term"], each["outcome"]) for each in mail["steps"] if "term" in each]
    assert (terms[-1] if terms else None) == last
    assert mail["explanation"] == (f"{FAILS} is not ours" if domain == "no.example" else "")


def test_a_message_that_is_refused(tool: Tool) -> None:
    content = signed_by("example.org").replace(b"hello", b"HELLO")
    flags = ("--dmarc", "honour", "--dmarc-reject", "reject")
    status, found = tool.json(content, *flags, address=FAILS)
    assert status == 1
    (signature,) = found["dkim"]["signatures"]
    assert (signature["result"], signature["reason"]) == ("fail", "signature mismatch")
    assert signature["signed-fields"] == ["from", "to", "subject", "date"]
    assert signature["canonicalization"] == "relaxed/relaxed"
    assert signature["key"]["name"] == "sel._domainkey.example.org"
    assert signature["key"]["answer"].startswith('"v=DKIM1; p=')
    (author,) = found["dmarc"]["authors"]
    assert author["walk"] == [
        {"name": "_dmarc.example.org", "answer": '"v=DMARC1; p=reject"'},
        {"name": "_dmarc.org", "answer": "nxdomain"},
    ]
    assert (author["result"], author["requested"], author["disposition"]) == (
        "fail", "reject", "reject"
    )  # fmt: skip
    assert {"action": "reject", "reason": "dmarc=fail example.org policy=reject"} in (
        found["findings"]
    )
    assert found["decision"]["reply"].startswith("550 5.7.26 ")
    assert found["fields"] == []
    # The same, in words.
    status, text = tool.check(content, *flags, address=FAILS)
    assert status == 1
    for line in (
        "client 203.0.113.9 <unknown>, reverse name: fail",
        "SPF of MAIL FROM ann@example.org",
        "  example.org: v=spf1 ip4:192.0.2.1 -all",
        "    ip4:192.0.2.1: no match",
        "  fail by -all (0 of 10 look-ups, 0 of 2 void)",
        "  example.org s=sel a=rsa-sha256: fail: signature mismatch",
        "    _dmarc.org TXT: nxdomain",
        "    policy of example.org: reject",
        "    fail (disposition: reject)",
        "  reject: dmarc=fail example.org policy=reject",
        "  reject: 550 5.7.26 Not authenticated, refused per DMARC policy of example.org",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("content", "sender", "aligned"),
    [
        (signed_by("example.org"), "ann@example.com", {"dkim": True, "spf": False}),
        (signed_by("list.example"), "ann@example.org", {"dkim": False, "spf": True}),
        (MESSAGE, "", {"spf": False}),
        (of("x@mail.example.com"), "", {"spf": True}),
        (of("x@nowhere.example"), "ann@example.org", {"spf": None}),
    ],
)
def test_the_alignment_of_each_identifier(
    tool: Tool, content: bytes, sender: str, aligned: dict[str, bool | None]
) -> None:
    status, found = tool.json(content, sender=sender)
    (author,) = found["dmarc"]["authors"]
    assert {each["method"]: each["aligned"] for each in author["identifiers"]} == aligned
    assert status == 0


def test_what_else_it_says_in_words(tool: Tool) -> None:
    _, text = tool.check(of("a@testing.example"), sender="", address=FAILS)
    assert "SPF of MAIL FROM" not in text
    assert "    policy of testing.example: reject, testing: one level milder" in text
    assert "  none" in text.splitlines()
    _, text = tool.check(MESSAGE.replace(b"From", b"X-From"), sender="\x1b]@example.org\n")
    assert "  permerror: no From field" in text
    assert "\x1b" not in text
    status, text = tool.check(MESSAGE, "--spf-fail", "junk", sender="a@broken.example")
    assert status == 3
    assert "  --on-error decides: spf: DNS: " in text
    status, text = tool.check(MESSAGE, "--exempt", PASSES)
    assert (status, f"not checked, exempt: {PASSES} (--exempt)\n" in text) == (0, True)
    status, text = tool.check(MESSAGE, address="127.0.0.1")
    assert (status, "not checked, exempt: local (--exempt)\n" in text) == (0, True)
    status, text = tool.check(MESSAGE, sender="<x@no.example>", address=FAILS)
    assert f"  the owner explains: {FAILS} is not ours" in text
    many = b"".join([signed_by("list.example")[: -len(MESSAGE)]] * 9) + MESSAGE
    assert "  1 further signatures not verified" in tool.check(many)[1]


def test_a_policy_at_stake(tool: Tool) -> None:
    content = signed_by("slow.example", of("x@slow.example"))
    arguments: dict[str, Any] = {"sender": "a@broken.example", "address": FAILS}
    flags = ("--dmarc", "honour", "--on-error", "tempfail", "--timeout", "50ms")
    _, found = tool.json(content, *flags, **arguments)
    reason = "dmarc=temperror slow.example policy=reject: "
    assert [each["action"] for each in found["findings"]] == ["tempfail"]
    assert found["findings"][0]["reason"].startswith(reason)
    assert found["decision"]["reply"].startswith("451 4.4.3 DMARC of slow.example ")
    assert not any(each.startswith("dmarc") for each in found["failures"])
    _, text = tool.check(content, *flags, **arguments)
    assert f"  tempfail: {reason}" in text


def test_a_message_from_stdin(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("check", "-", "--client", "::1", "--helo", "x", "--mail-from", "")
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(MESSAGE)))
    status, out, _ = tool.run(*words)
    assert (status, "not checked, exempt: " in out) == (0, True)
    monkeypatch.setattr(sys, "stdin", None)
    assert tool.run(*words) == (2, "", "smtpd-filters auth: stdin is closed\n")


def test_a_fifo_that_nobody_writes_is_not_waited_for(tool: Tool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    name = str(tmp_path / "fifo")
    status, out, _ = tool.run("check", name, "--client", "::1", "--helo", "x", "--mail-from", "")
    assert (status, "not checked, exempt: " in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("check", "/nonexistent/x", "--client", "192.0.2.1"), "--helo is required"),
        (("check", "/nonexistent/x", "--client", "mail"), "--client: expected an IP address"),
        (("explain",), "ACTION"),
        (("check", "/nonexistent/x", "--client", "::1", "--helo", "a", "--mail-from", "b"),
         "/nonexistent/x: No such file"),
        (("check", "/dev/zero", "--client", "::1", "--helo", "a", "--mail-from", "b"),
         "/dev/zero: larger than 128 MiB"),
        (("check", "/dev/null", "--client", "::1", "--helo", "a", "--mail-from", "b", "--", "-x"),
         "filter-auth: unknown flag -x"),
        (("check", "/dev/null", "--client", "::1", "--dmarc", "honour"),
         "auth: --dmarc belongs behind --"),
        (("check", "/dev/null", "--client", "::1", "--nameserver=::1", "--", "--dmarc", "honour"),
         "auth: --nameserver belongs behind --"),
        (("check", "/dev/null", "--client", "::1", "--", "--dmarc", "honour", "--json"),
         "auth: --json belongs before --"),
        (("check", "/dev/null", "--client", "::1", "--helo", "a", "--mail-from", "b", "--",
          "--scrub-only"), "--scrub-only checks nothing"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(tool: Tool, words: tuple[str, ...], error: str) -> None:
    status, out, err = tool.run(*words)
    assert (status, out) == (2, "")
    assert error in err


@pytest.mark.parametrize(
    "content", [MESSAGE, MESSAGE.replace(b"\r\n", b"\n"), b"From ann Fri\n" + MESSAGE]
)
def test_line_ends_and_the_separator_of_an_mbox(content: bytes) -> None:
    message = message_of(content + b".\r\n..x")
    assert b"".join(message.iter_bytes(crlf=True)) == MESSAGE + b".\r\n..x\r\n"
    message.discard()


@given(lines=st.lists(st.text("a.\r", max_size=4)), ends=st.lists(st.sampled_from(["\n", "\r\n"])))
def test_lines_across_the_pieces_that_are_read(lines: list[str], ends: list[str]) -> None:
    pairs = [(line.rstrip("\r"), end) for line, end in zip(lines, ends, strict=False)]
    content = "".join(line + end for line, end in pairs).encode()
    for size in (1, 2, 3, 1000):
        message = message_of(content, size)
        assert b"".join(message.iter_bytes()) == "".join(f"{line}\n" for line, _ in pairs).encode()
        message.discard()


def test_a_message_of_empty_lines_takes_no_call_each() -> None:
    calls: Counter[str] = Counter()
    sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
    try:
        message_of(b"From: a@example.org\n" + b"\n" * 1_000_000).discard()
    finally:
        sys.setprofile(None)
    assert calls.total() < 100_000


def test_a_message_of_empty_lines_takes_little_memory() -> None:
    content = b"From: a@example.org\n" + b"\n" * (4 << 20)
    tracemalloc.start()
    try:
        message_of(content).discard()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(content)
