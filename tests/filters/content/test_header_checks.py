"""Postfix's header_checks: its files, and what becomes of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.content.header_checks import Checks, refusal
from smtpd_filters.filters.content.inspection import TOO_COMPLEX
from tests.filters.content.sending import Sent, written
from tests.mime.reading import mixed

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")


def finished(work: Generator[int, None, T]) -> T:
    try:
        while True:
            next(work)
    except StopIteration as end:
        result: T = end.value
        return result


def asked(folder: Path, text: str, field: bytes, kind: str = "regexp") -> str:
    """The action on a field and its text, or ""."""
    checks = Checks((f"{kind}:{written(folder, text)}",))
    action = finished(checks.actions_on(field))
    return f"{action.name} {action.text}".strip() if action else ""


CASES = [
    ("/^Subject: .*win/ REJECT no", b"Subject: you WIN", "REJECT no"),
    ("/^subject: win/i REJECT", b"Subject: win", ""),
    ("/^Subject: win/i REJECT", b"Subject: win", "REJECT"),
    ("!/^Subject:/ WARN x", b"To: x", "WARN x"),
    ("!/^Subject:/ WARN x", b"Subject: x", ""),
    ("/a/ DUNNO\n/./ REJECT", b"X: a", ""),
    ("/a/ OK\n/./ REJECT", b"X: b", "REJECT"),
    ("# comment\n\n/^X:/\n  REJECT two\n\tlines", b"X: y", "REJECT two lines"),
    ("|/x/| reject", b"X: /x/", "REJECT"),
    ("/\\/x/ REJECT", b"X: /x", "REJECT"),
    ("if /^X:/\n/a/ REJECT a\nendif\n/./ INFO", b"X: a", "REJECT a"),
    ("if /^X:/\n/a/ REJECT a\nendif\n/./ INFO", b"Y: a", "INFO"),
    ("if !/^X:/\n/a/ REJECT a\nendif\n/./ INFO", b"X: a", "INFO"),
    ("if /^X:/\nif /b/\n/c/ REJECT\nendif\n/d/ WARN\nendif", b"X: cd", "WARN"),
    ("if /^X:/\nif /b/\n/c/ REJECT\nendif\n/d/ WARN\nendif", b"X: bcd", "REJECT"),
    ("if /^X:/\nendif\n/d/ WARN", b"X: d", "WARN"),
    ("/^X: (.*)-(.*)/ REPLACE Y: $2 ${1}$$(2)", b"X: a-b", "REPLACE Y: b a$(2)"),
    ("/^X:(.*)/ PREPEND Y:$1", b"X: a\n b", "PREPEND Y: a b"),
    ("/^X: [[:digit:]]{2}$/ STRIP", b"X: 12", "STRIP"),
    # A tab in a pattern is one; elsewhere it divides words.
    ("/^X:[ \t]*a\tb/ REJECT", b"X:\ta\tb", "REJECT"),
    ("/^X: a\tb/ REJECT", b"X: a b", ""),
    ("/^X:/\tREJECT\ta\tb", b"X: y", "REJECT a b"),
    ("if\t/^X:/\n/a/ REJECT a\nendif\t\n/./ INFO", b"X: b", "INFO"),
]


@pytest.mark.parametrize(("text", "field", "action"), CASES)
@pytest.mark.parametrize("kind", ["regexp", "pcre"])
def test_actions(tmp_path: Path, text: str, field: bytes, action: str, kind: str) -> None:
    assert asked(tmp_path, text, field, kind) == action


PERL = [
    (r"/^X:\s*\d+\w\S$/ REJECT", b"X: 12a!", "REJECT"),
    (r"/^X: (?:a|b)+?c/ REJECT", b"X: abc", "REJECT"),
    (r"/(?i)^x: A/ REJECT", b"X: a", "REJECT"),
    (r"/^X: [\w.-]+@/ REJECT", b"X: a.b-c@", "REJECT"),
    (r"/^X: [^\w]z/ REJECT", b"X: az", ""),
    (r"/^X: a{,2}/ REJECT", b"X: a{,2}", "REJECT"),
    (r"/^X:.y/s REJECT", b"X:\ny", ""),
    (r"/^X:.y/ REJECT", b"X:\ny", "REJECT"),
    (r"/\AX: \x41\t$/i REJECT", b"X: A\t", "REJECT"),
    (r"/^X: (a*?)(a*)$/ REPLACE Y: <$1><$2>", b"X: aa", "REPLACE Y: <><aa>"),
]


@pytest.mark.parametrize(("text", "field", "action"), PERL)
def test_perl(tmp_path: Path, text: str, field: bytes, action: str) -> None:
    assert asked(tmp_path, text, field, "pcre") == action


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("/x/ HOLD", "1: HOLD: smtpd has no hold queue for filters"),
        ("\n/x/ DISCARD", "2: DISCARD: smtpd's filters can't discard a message: use REJECT"),
        ("/x/ FILTER a:b", "1: FILTER: "),
        ("/x/ REDIRECT a@b", "1: REDIRECT: "),
        ("/x/ BCC a@b", "1: BCC: "),
        ("/x/ JUMP", '1: "JUMP" is not one of REJECT'),
        ("/x REJECT", "1: no / at the end of the pattern"),
        ("x REJECT", "1: expected /pattern/ and a text behind it"),
        ("\u3000", "1: expected /pattern/ and a text behind it"),
        ("/x/ WARN a $ sign", "1: a dollar is followed by the number of a group"),
        ("/x/q REJECT", '1: flag "q" is not supported'),
        ("if /x/\n/y/ REJECT", "1: if without endif"),
        ("endif", "1: endif without if"),
        ("/(x)/ REPLACE Y: $2", "1: $2: the pattern has 1 groups"),
        ("!/(x)/ REPLACE Y: $1", "1: $ and a number have no meaning with a negated pattern"),
        ("/x/ PREPEND text", '1: PREPEND: expected "Name: text", not "text"'),
        (" /x/ REJECT", "1: a continuation without a line before it"),
        (
            "/x/ HOLD\n/y/ REJECT\n/z/ BCC",
            "1: HOLD: smtpd has no hold queue for filters (and 1 more, lines 3)",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["regexp", "pcre"])
def test_errors_name_file_and_line(tmp_path: Path, text: str, error: str, kind: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        Checks((f"{kind}:{path}",))
    assert str(raised.value).startswith(f"{path}:{error}")


@pytest.mark.parametrize("flag", "sAEUX")
def test_flags_of_pcre_alone(tmp_path: Path, flag: str) -> None:
    path = written(tmp_path, f"/x/{flag} REJECT")
    with pytest.raises(ConfigError, match=f'flag "{flag}" is not supported'):
        Checks((f"regexp:{path}",))


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("", "550 5.7.1 Message content rejected"),
        ("no", "550 5.7.1 no"),
        ("5.6.0 no", "550 5.6.0 no"),
        ("4.7.1 later", "450 4.7.1 later"),
        ("554 5.7.1 no", "554 5.7.1 no"),
        ("554 no", "554 5.7.1 no"),
        ("451 5.7.1 odd", "451 4.7.1 odd"),
    ],
)
def test_replies(text: str, reply: str) -> None:
    assert refusal(text) == reply


# -- on messages ---------------------------------------------------------------------------

MAIL = b"X-A: 1\nX-B: 2\nX-A: 3\nSubject: s\n\nhello\n"


def sent(folder: Path, text: str, mail: bytes = MAIL, *flags: str) -> Sent:
    path = written(folder, text)
    return Sent(mail, "--dangerous=off", f"--header-checks=regexp:{path}", *flags)


def test_edits_of_fields(tmp_path: Path) -> None:
    text = "/^X-A: 1/ REPLACE X-A: one\n/^X-A: 3/ IGNORE\n/^X-B/ PREPEND X-A: two\n/^S/ WARN w"
    done = sent(tmp_path, text)
    assert done.head == ["X-A: one", "X-A: two", "X-B: 2", "Subject: s"]
    assert any(f"content warn check={tmp_path}/file:4 text=w" in line for line in done.log)


def test_edits_leave_lines_that_are_no_fields(tmp_path: Path) -> None:
    mail = b"X-A: 1\n\tfolded\nX-B : 2\nnot a field\n more\nX-C: 3\n\nhello\n"
    done = sent(tmp_path, "/^X-A/ IGNORE\n/^X-B/ REPLACE X-B: two\n/^(X).C/ PREPEND $1 y: z", mail)
    lines = [line for field in done.mail.bytes.split(b"\n\n")[:1] for line in field.split(b"\n")]
    assert lines[-5:] == [
        b"X-B: two",
        b"not a field",
        b" more",
        b"X-Invalid-Field: X y: z",
        b"X-C: 3",
    ]


def test_refusals(tmp_path: Path) -> None:
    done = sent(tmp_path, "/^X-B/ REJECT 554 5.7.1 No X-B")
    assert done.reply == "554 5.7.1 No X-B"
    assert f"reason={tmp_path}/file:1" in done.log[0]


def test_log_only(tmp_path: Path) -> None:
    done = sent(tmp_path, "/^X-B/ REJECT\n/^X-A/ IGNORE", MAIL, "--log-only")
    assert done.mail.unchanged
    assert sum("would=ignore" in line for line in done.log) == 2
    assert sum("would=reject" in line for line in done.log) == 1


def test_pass_ends_the_checks(tmp_path: Path) -> None:
    assert sent(tmp_path, "/^X-A/ PASS\n/^X-B/ REJECT").reply == ""


def test_the_log_of_a_message_has_a_bound(tmp_path: Path) -> None:
    done = sent(tmp_path, "/^X-/ WARN", b"X-A: 1\n" * 300 + b"\nx\n")
    assert len(done.log) == 21
    assert "further checks apply number=280" in done.log[-1]


def test_what_is_beyond_the_longest_header_is_body(tmp_path: Path) -> None:
    done = sent(tmp_path, "/^X-/ REJECT", b"A: 1\n" * 16_000 + b"X-C: 3\n\nx\n")
    assert done.reply == ""
    header, body = done.mail.bytes.split(b"\n\n", 1)
    assert header.endswith(b"\nA: 1")
    assert body.endswith(b"\nA: 1\nX-C: 3\n\nx\n")
    assert sent(tmp_path, "/^X-/ REJECT", b"A: 1\n" * 15_000 + b"X-C: 3\n\nx\n").reply


NESTED = mixed(
    b"Content-Type: message/rfc822\n\nX-B: inner\n\nx\n",
    b"Content-Type: x/y; name=a.exe\n\nx\n",
)


def test_a_field_has_no_length_beyond_which_it_is_not_checked(tmp_path: Path) -> None:
    long = b"Subject: a" + b" " * 70_000 + b"buy\n\nx\n"
    assert sent(tmp_path, "/buy$/ REJECT", long).reply
    assert sent(tmp_path, "/^Subject: *(a) *buy/ REJECT $1", long).reply == "550 5.7.1 a"


def test_fields_of_parts_and_attached_messages(tmp_path: Path) -> None:
    assert sent(tmp_path, r"/name=.*\.exe/ REJECT exe", NESTED).reply == "550 5.7.1 exe"
    assert sent(tmp_path, "/^X-B/ REJECT b", NESTED).reply == "550 5.7.1 b"
    nothing = written(tmp_path, "/^$/ WARN", "nothing")
    other = (f"--nested-header-checks=regexp:{nothing}", f"--mime-header-checks=regexp:{nothing}")
    assert sent(tmp_path, "/^X-B|exe/ REJECT", NESTED, *other).reply == ""


def test_an_edit_of_a_field_in_a_part_is_only_logged(tmp_path: Path) -> None:
    done = sent(tmp_path, "/^X-B: inner/ IGNORE", NESTED)
    assert done.mail.unchanged
    assert any("not done in a part" in line and "would=ignore" in line for line in done.log)


def test_a_pattern_that_backtracking_takes_long_for(tmp_path: Path) -> None:
    field = b"X: " + b"a" * 60_000
    assert asked(tmp_path, "/^X: (a+)+(a*)*b$/ REPLACE Y: $1", field, "pcre") == ""
    assert asked(tmp_path, "/^X: ((a+)+)$/ REPLACE Y: $2", field[:3000], "pcre") != ""


@pytest.mark.parametrize("subject", ["250 x", "421 x", "299", "2.0.0 x", "554 4.0.0 x"])
def test_no_group_is_the_code_of_a_reply(tmp_path: Path, subject: str) -> None:
    path = written(tmp_path, "/^Subject: (.*)/ REJECT $1\n")
    mail = f"Subject: {subject}\n\nx\n".encode()
    sent = Sent(mail, "--dangerous=off", "--header-checks", f"regexp:{path}")
    assert sent.reply == f"550 5.7.1 {subject}"


def test_the_text_in_the_log_is_bounded(tmp_path: Path) -> None:
    path = written(tmp_path, "/^Subject: (.*)/ WARN $1\n")
    mail = b"Subject: " + b"x" * 60_000 + b"\n\nx\n"
    sent = Sent(mail, "--dangerous=off", "--header-checks", f"regexp:{path}")
    assert max(map(len, sent.log)) < 1000


PROGRAM = b"Content-Type: x/y; name=a.exe\n\nx\n"
ATTACHED = b"Content-Type: message/rfc822\n\nSubject: casino\n\nx\n"


def checked(folder: Path, mail: bytes, *flags: str) -> Sent:
    """What became of a message whose parts must not have two fields."""
    file = written(folder, "/name=a.exe/ REJECT\n/^Subject:.* casino/ REJECT\n")
    return Sent(mail, "--dangerous=off", f"--header-checks=regexp:{file}", *flags)


@pytest.mark.parametrize(
    "mail",
    [
        mixed(*[b"X: " + b"y" * 60_000 + b"\n\nx\n"] * 6, PROGRAM),
        mixed(b"Content-Description: x\n" + b" y\n" * 3000 + b" name=a.exe\n\nx\n"),
        mixed(ATTACHED.replace(b"casino", b"x\n" + b" y\n" * 3000 + b" casino")),
    ],
    ids=["fields of other parts", "a long field", "a long subject"],
)
def test_no_field_of_a_part_is_too_far_behind_to_be_checked(mail: bytes, tmp_path: Path) -> None:
    assert checked(tmp_path, mail).reply == "550 5.7.1 Message content rejected"


def test_fields_of_parts_beyond_the_limits_are_refused(tmp_path: Path) -> None:
    mail = mixed(b"X: y\n" * 15_000 + PROGRAM)
    assert checked(tmp_path, mail).reply == TOO_COMPLEX
    sent = checked(tmp_path, mail, "--log-only")
    assert sent.reply == ""
    assert 'content check text="header block of a part too long" would=reject' in sent.log[0]
    passed = mail.replace(b"From:", b"X-Pass: y\nFrom:", 1)
    file = written(tmp_path, "/^X-Pass/ PASS\n/casino/ REJECT\n", "pass")
    assert Sent(passed, "--dangerous=off", f"--header-checks=pcre:{file}").reply == ""
    file = written(tmp_path, "/casino/ WARN\n", "warn")
    assert Sent(mail, "--dangerous=off", f"--header-checks=pcre:{file}").reply == ""
