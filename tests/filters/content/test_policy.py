"""filter-content as a whole: what is refused, marked, edited and logged."""

from __future__ import annotations

import base64
import unicodedata
from typing import TYPE_CHECKING

import pytest

from smtpd_filters import PROCEED, Filter, Proceed, Session
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.content import Content, patterns
from smtpd_filters.filters.content.inspection import TOO_COMPLEX
from smtpd_filters.filters.content.rules import Rules
from smtpd_filters.mime import limits
from smtpd_filters.settings import common_options, parse_flags
from smtpd_filters.testing import Conversation
from tests.filters.content.sending import Sent, written
from tests.filters.executables import complaint
from tests.mime.headers import cab, file_4, file_5, rar_4, rar_5, seven_zip
from tests.mime.reading import EXE, attached, every_name, mixed, read, zipped
from tests.mime.test_corpus import MESSAGES

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = "550 5.7.1 Attachments of this kind are not accepted"
PROGRAM = mixed(b"Content-Disposition: attachment; filename=a.exe\n\nMZ\n")
RUSSIAN = "Привет, как твои дела сегодня?\n"  # as it is written
PLAIN = b"Subject: hello\nFrom: a@example.net\n\nhello\n"


def rule(folder: Path, text: str) -> tuple[str, ...]:
    """The flags for one rule."""
    return ("--dangerous=off", "--rules", written(folder, f"[[rule]]\nname = 'r'\n{text}\n"))


def within(levels: int, part: bytes) -> bytes:
    """A message with a part in so many multiparts."""
    for level in range(levels):
        head = b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level)
        part = head + part + b"\n--b%d--\n" % level
    return part


def test_a_program_is_refused() -> None:
    sent = Sent(PROGRAM)
    assert sent.reply == REFUSED
    assert 'reason="dangerous: a.exe"' in sent.log[0]
    assert Sent(mixed(b"Content-Disposition: attachment; filename=a.pdf\n\nx\n")).reply == ""


@pytest.mark.parametrize(
    "mail",
    [
        attached(zipped(("x/a.exe", b"x")), b"Content-Type: application/zip; name=a.zip\n"),
        attached(zipped(("b.zip", zipped(("a.js", b"x"))))),
        attached(EXE, b"Content-Type: image/png; name=a.png\n"),
        attached(zipped(("a.png", EXE))),
        mixed(b"Content-Type: text/plain; name=a.txt\n\n@echo off\n"),
        mixed(b'Content-Disposition: attachment; name=x filename="a.exe" y\n\nx\n'),
        mixed(b"Content-Disposition: (;()) attachment; filename(a(;))=a.exe\n\nx\n"),
        b"Content-Type: multipart/mixed; boundary=b; name=a.exe\n\nx\n",
        b"Content-Type: multipart/mixed; name=a.exe\n\n--b\n\nx\n--b--\n",
        PROGRAM.replace(b"multipart", b"(;()) multipart"),
    ],
)
def test_disguised_programs_are_refused(mail: bytes) -> None:
    assert Sent(mail).reply == REFUSED


ATTACHMENT = b"Content-Disposition: attachment; filename="


@pytest.mark.parametrize(
    "mail",
    [
        mixed(ATTACHMENT + b'"=?utf-8?Q?a.exe?=' + b" =?utf-8?Q?_?=" * 50 + b'"\n\nx\n'),
        mixed(ATTACHMENT + b'"' + b"a" * 260 + b".exe" + "\u200b".encode() * 1100 + b'"\n\nx\n'),
        mixed(ATTACHMENT + b'"' + "é".encode() * 260 + b".exe" + b" " * 1100 + b'"\n\nx\n'),
        b"Subject: x\n\nbegin 644 " + b"a" * 300 + b".exe\n#0V%T\nend\n",
        b"Subject: x\n\n=ybegin line=128 x=" + b"1" * 300 + b" name=a.exe\nx\n=yend\n",
        b"Content-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(b"begin 644 " + b"a" * 3000 + b".exe\n#0V%T\nend\n"),
    ],
    ids=["encoded words", "invisible characters", "blanks", "uuencoded", "yEnc", "in base64"],
)
def test_no_name_is_too_long_to_be_read(mail: bytes) -> None:
    assert Sent(mail).reply == REFUSED


#: Messages with a program that is beyond a limit of the reader.
BEYOND = {
    "parts": mixed(*[b"\n\n"] * limits.PARTS, b"Content-Type: x/y; name=a.exe\n\nx\n"),
    "levels": b"Content-Type: message/rfc822\n\n" * 30 + b"Content-Type: x/y; name=a.exe\n\nx\n",
    "header block": mixed(b"X: y\n" * 20_000 + b"Content-Type: x/y; name=a.exe\n\nx\n"),
    "names": mixed(
        b"Content-Disposition: x"
        + b"".join(b"; name=%d.txt" % number for number in range(60))
        + b"; filename=a.exe\n\nx\n"
    ),
    "values in values": mixed(
        b"Content-Disposition: x; name=" + b"name=x " * 500 + b"filename=a.exe y\n\nx\n"
    ),
    "comments": mixed(b"Content-Disposition: x" + b"()" * 200 + b"; filename(;())=a.exe\n\nx\n"),
    "a name in a text": b"Subject: x\n\nbegin 644 a.exe" + b" \0" * 3000 + b"\n#0V%T\nend\n",
    "files of messages": within(
        limits.DEPTH, b"Content-Type: x/y; name=x.eml\n\nContent-Type: x/y; name=a.exe\n\nx\n"
    ),
    "parameters": mixed(b"Content-Type: x/y; x=" + b"y" * 9000 + b"; name=a.exe\n\nx\n"),
}


LISTED = {
    "rar 4": rar_4(file_4(b"x\\invoice.pdf.exe")),
    "rar 5": rar_5(file_5(b"x/invoice.pdf.exe")),
    "7z": seven_zip("x/invoice.pdf.exe"),
    "cab": cab(b"x\\invoice.pdf.exe"),
}


@pytest.mark.parametrize("case", LISTED)
def test_rules_on_names_apply_in_archives_that_are_not_unpacked(case: str, tmp_path: Path) -> None:
    mail = attached(LISTED[case])
    sent = Sent(mail)
    assert sent.reply == REFUSED
    assert "invoice.pdf.exe in " in sent.log[0]
    for text in ("double-extension = true", 'filename = "^invoice"', "unreadable = true"):
        flags = rule(tmp_path, f'{text}\naction = "reject"\nreply = "554 5.7.1 No"')
        assert Sent(mail, "--dangerous=off", *flags).reply == "554 5.7.1 No"
    flags = rule(tmp_path, 'extension = "exe"\nnested = false\naction = "reject"')
    assert Sent(mail, "--dangerous=off", *flags).reply == ""


@pytest.mark.parametrize("case", BEYOND)
@pytest.mark.parametrize("action", ["reject", "remove", "rename"])
def test_a_message_beyond_the_limits_is_refused(case: str, action: str) -> None:
    assert Sent(BEYOND[case], f"--dangerous={action}").reply == TOO_COMPLEX


def test_a_message_beyond_the_limits_is_marked_or_logged(tmp_path: Path) -> None:
    sent = Sent(BEYOND["levels"], "--dangerous=junk")
    assert sent.mail.headers.get("X-Spam") == "Yes"
    sent = Sent(BEYOND["levels"], "--dangerous=log")
    assert (sent.reply, 'reason="too many levels"' in sent.log[0]) == ("", True)
    flags = rule(tmp_path, "beyond-limits = true\naction = 'reject'")
    assert Sent(BEYOND["levels"], *flags).reply == "550 5.7.1 Message content rejected"
    assert Sent(PROGRAM, *flags).reply == ""


@pytest.mark.parametrize(
    "mail",
    [
        PLAIN,
        b"Subject: x\n\n#!/bin/sh is how a script begins\n",
        b"Content-Type: text/html\n\n<script>x</script><p>hello</p>\n",
        attached(zipped(("stock-06.07.2016.xlsx", b"x"), ("post.pdf_copy", b"y"))),
        attached(rar_5(file_5(b"stock.xlsx"), file_5(b"x.exe/post.pdf"))),
        mixed(b"Content-Type: text/csv; name=x.csv\n\na,b\n"),
    ],
)
def test_ordinary_mail_passes(mail: bytes) -> None:
    sent = Sent(mail)
    assert sent.reply == ""
    assert sent.mail.unchanged
    assert sent.log == []


def test_exempt_clients() -> None:
    assert Sent(PROGRAM, "--exempt=authenticated", user="ann").reply == ""
    assert Sent(PROGRAM, "--exempt=authenticated").reply == REFUSED


@pytest.mark.parametrize("flags", [("--log-only",), ("--dangerous=log",)])
def test_log_only(flags: tuple[str, ...]) -> None:
    sent = Sent(PROGRAM, *flags)
    assert sent.mail.unchanged
    assert "content rule rule=dangerous reason=a.exe" in sent.log[0]
    assert ("would=reject" in sent.log[0]) is (flags[0] == "--log-only")


def test_junk() -> None:
    sent = Sent(PROGRAM, "--dangerous=junk")
    assert sent.mail.headers.get("X-Spam") == "Yes"
    assert "result=junk" in sent.log[0]


def test_fields_and_subjects(tmp_path: Path) -> None:
    text = """
header = "Subject"
matches = "^Gewi?nn"
action = "subject"
tag = "[?]"

[[rule]]
header = "List-Id"
present = false
action = "header"
field = "X-List: no"
"""
    mail = b"Subject: =?utf-8?B?R2V3aW5uIQ==?=\n\nx\n"
    sent = Sent(mail, *rule(tmp_path, text))
    assert sent.head == ["Subject: [?] =?utf-8?B?R2V3aW5uIQ==?=", "X-List: no"]
    assert Sent(b"List-Id: x\nSubject: x\n\nx\n", *rule(tmp_path, text)).mail.unchanged


@pytest.mark.parametrize(
    "field",
    [
        b"a" + b" " * 70_000 + b"BUY",
        b"=?utf-8?q?a?=" + b" " * 5_000 + b"=?utf-8?q?buy?=",
        b"=?utf-8?q?a?= " + b"." * 5_000 + b" buy",
        b"x\nSubject: " * 1100 + b"buy",
    ],
)
@pytest.mark.parametrize("key", ["matches", "raw-matches"])
def test_no_field_is_too_long_for_patterns(tmp_path: Path, field: bytes, key: str) -> None:
    flags = rule(tmp_path, f'header = "Subject"\n{key} = "buy([?]=)?$"\naction = "reject"')
    assert Sent(b"Subject: " + field + b"\n\nx\n", *flags).reply
    assert not Sent(b"Subject: " + field[:-8] + b"\n\nx\n", *flags).reply


def test_composing_a_field_takes_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalising 64 Ki marks in the wrong order at once takes 13 s."""
    given: list[int] = []

    def normalize(_form: str, text: str) -> str:
        given.append(len(text))
        return unicodedata.normalize("NFC", text)

    monkeypatch.setattr(patterns, "normalize", normalize)
    for text in ("\u0300\u0316" * 500, "ab" * 500 + "e\u0301", "-e\u0301" * 500, "\u4e2d" * 999):
        given.clear()
        folded = patterns.folded(text)
        assert sum(given) == len(text)
        assert max(given) <= 256
        if "\u0316" not in text:
            assert folded.decode() == unicodedata.normalize("NFC", text)
    work = list(patterns.folding("\u0300\u0316" * 500))
    assert max(work) <= 128
    assert sum(work) >= 500


def test_points(tmp_path: Path) -> None:
    flags = rule(tmp_path, 'header = "X-Y"\naction = "points"\npoints = 2.5')
    assert "points=2.5" in Sent(b"X-Y: z\n\nx\n", *flags).log[0]


@pytest.mark.parametrize(
    ("text", "mail"),
    [
        ('header = "Subject"\nrepeated = true', b"Subject: a\nSubject: b\n\nx\n"),
        ('header = "Subject"\nraw-matches = "=\\\\?koi8"', b"Subject: =?KOI8-R?Q?a?=\n\nx\n"),
        ("larger = 1000", b"Subject: x\n\n" + b"x" * 80 + b"\n" + b"y\n" * 600),
        ("parts-over = 2", mixed(b"\nx\n", b"\ny\n")),
        ('charset = "KOI8-R"', b"Content-Type: text/plain; charset=koi8-r\n\nx\n"),
        ('charset = "koi8-r"', b'Content-Type: text/plain; charset(=x charset="koi8-r" y\n\nx\n'),
        (
            'charset = "koi8-r"',
            b"Content-Type: text/plain; charset=ascii; charset=koi8-r\n\nx\n",
        ),
        (
            'script = "cyrillic"',
            b"Content-Type: text/plain; charset=ascii\nContent-Type: text/plain; charset=koi8-r\n\n"
            + RUSSIAN.encode("koi8-r"),
        ),
        (
            "beyond-limits = true",
            b"Content-Type: text/plain"
            + b"".join(b"; charset=c%d" % number for number in range(20))
            + b"\n\nx\n",
        ),
        ('script = "cyrillic"\nshare = 0.9', b"Subject: x\n\n" + RUSSIAN.encode()),
        (
            'script = "cyrillic"',
            mixed(*[b"\n" + b"hello, you\n" * 500] * 20, b"\n" + RUSSIAN.encode()),
        ),
        (
            'script = "cyrillic"',
            b"Content-Type: text/html\n\n" + RUSSIAN.encode("ascii", "xmlcharrefreplace"),
        ),
        (
            'script = "cyrillic"',
            b"Content-Type: text/plain; charset=utf-16\nContent-Transfer-Encoding: base64\n\n"
            + base64.encodebytes(RUSSIAN.encode("utf-16")),
        ),
        (
            'script = "cyrillic"',
            b"Content-Type: text/plain; charset=koi8-r\n\n" + RUSSIAN.encode("koi8-r"),
        ),
        ('type = "audio/*"', mixed(b"Content-Type: audio/x\n\nx\n")),
        ('filename = "^rech.*[0-9]"', mixed(b"Content-Type: x/y; name=Rechnung_7.pdf\n\nx\n")),
        (
            "double-extension = true",
            mixed(b"Content-Type: x/y; name=\"a.pdf   .exe\"\n\nx\n"),
        ),
        ("macros = true", attached(zipped(("word/vbaProject.bin", b"x")))),
        ("unreadable = true", attached(b"Rar!\x1a\x07\x00xxx")),
        ("ambiguous = true", mixed(b"Content-Type: a/b; name=a.txt; name=b.exe\n\nx\n")),
        ("ambiguous = true", mixed(b"Content-Transfer-Encoding: (base64\n\neA==\n")),
        ("ambiguous = true", mixed(b"Content-Type: a/b; name=x filename=\"a.exe\" y\n\nx\n")),
        ("ambiguous = true", mixed(b"Content-Transfer-Encoding: (;()) base64\n\neA==\n")),
        ("ambiguous = true", mixed(b"Content-Type: (;()) image/png\n\nx\n")),
        ('type = "image/png"', mixed(b"Content-Type: (;()) image/png\n\nx\n")),
        ('content = "archive"', attached(zipped(("a", b"x")))),
    ],
)  # fmt: skip
def test_conditions(tmp_path: Path, text: str, mail: bytes) -> None:
    flags = rule(tmp_path, f'{text}\naction = "reject"\nreply = "554 5.7.1 No"')
    assert Sent(mail, *flags).reply == "554 5.7.1 No"
    assert Sent(PLAIN, *flags).reply == ""


@pytest.mark.parametrize(
    ("text", "mail"),
    [
        ("double-extension = true", mixed(b"Content-Type: x/y; name=a.06.07.exe\n\nx\n")),
        ("double-extension = true", mixed(b"Content-Type: x/y; name=a.exe.pdf\n\nx\n")),
        ('filename = "^rech"', mixed(b"Content-Type: x/y; name=Meine_Rechnung.pdf\n\nx\n")),
        ('extension = "exe"\nnested = false', attached(zipped(("a.exe", b"x")))),
        *(
            (f"{trait} = true", mixed(b"Content-Type: text/plain; name=a.txt\n\nx\n"))
            for trait in ("macros", "unreadable", "ambiguous", "beyond-limits")
        ),
        # Both conditions, but not of one file.
        (
            'extension = "exe"\ntype = "image/png"',
            mixed(b"Content-Type: image/png\n\nx\n", b"Content-Type: x/y; name=b.exe\n\nx\n"),
        ),
        ('script = "cyrillic"', "Subject: x\n\nЯ, hello to all of you out there\n".encode()),
    ],
)  # fmt: skip
def test_conditions_that_are_not_met(tmp_path: Path, text: str, mail: bytes) -> None:
    assert Sent(mail, *rule(tmp_path, f'{text}\naction = "reject"')).reply == ""


# -- edits ---------------------------------------------------------------------------------


def test_a_removed_part_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    odd = b"Content-Type: x/y; name=b.txt\nX-Odd:   y\n\n..a\nbare\n-- \n\xff\n"
    program = b"X-Keep: 1\nContent-Type: x/y; name=a.exe\nContent-Transfer-Encoding: base64\n\n"
    mail = mixed(odd, program + base64.encodebytes(EXE), odd)
    flags = rule(
        tmp_path, 'extension = "exe"\naction = "remove"\nnote = "{name} is gone.\\nSorry."'
    )
    body = Sent(mail, *flags).mail.body
    before, after = mail.partition(b"\n\n")[2].split(program + base64.encodebytes(EXE))
    assert body == before + (
        b"X-Keep: 1\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
        b"Content-Disposition: inline\n\na.exe is gone.\nSorry.\n"
    ) + after  # fmt: skip


def test_a_renamed_part_keeps_its_content(tmp_path: Path) -> None:
    part = b'Content-Disposition: attachment;\n filename="a.exe"\nContent-Id: <x>\n\nMZ\n'
    flags = rule(tmp_path, 'extension = "exe"\naction = "rename"\nsuffix = ".safe"')
    assert (
        Sent(mixed(part), *flags).mail.body
        == mixed(
            b"Content-Id: <x>\nContent-Type: application/octet-stream\n"
            b'Content-Disposition: attachment; filename="a.exe.safe"\n\nMZ\n'
        ).partition(b"\n\n")[2]
    )


@pytest.mark.parametrize("action", ["remove", "rename"])
def test_a_field_behind_a_bare_carriage_return_is_edited_as_well(
    tmp_path: Path, action: str
) -> None:
    part = b"X-A: y\rContent-Disposition: attachment; filename=a.exe\n\nMZ\n"
    assert Sent(mixed(part), f"--dangerous={action}").reply == TOO_COMPLEX
    sent = Sent(mixed(part), *rule(tmp_path, f"extension = 'exe'\naction = '{action}'"))
    assert sent.reply == ""
    body = sent.mail.body
    assert b"\r" not in body.replace(b"\r\n", b"\n")
    assert b"filename=a.exe" not in body
    assert b"X-A: y\n" in body.replace(b"\r\n", b"\n")


def test_a_message_that_is_the_attachment(tmp_path: Path) -> None:
    mail = b"Subject: x\nContent-Type: x/y; name=a.exe\nContent-Transfer-Encoding: base64\n\nTVo=\n"
    sent = Sent(mail, *rule(tmp_path, 'extension = "exe"\naction = "remove"'))
    assert sent.mail.body == b"The attachment a.exe was removed by the mail server.\n"
    assert sent.head == [
        "Subject: x",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "Content-Disposition: inline",
    ]
    sent = Sent(mail, *rule(tmp_path, 'extension = "exe"\naction = "rename"'))
    assert sent.mail.body == b"TVo=\n"
    assert sent.head[-1] == 'Content-Disposition: attachment; filename="a.exe_"'


def test_a_part_in_an_encoded_one_goes_with_that(tmp_path: Path) -> None:
    inner = b"Content-Type: x/y; name=a.exe\n\nMZ\n"
    outer = b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"
    mail = mixed(outer + base64.encodebytes(inner), b"\nrest\n")
    body = Sent(mail, *rule(tmp_path, 'extension = "exe"\naction = "rename"')).mail.body
    assert b"The attachment a.exe was removed" in body
    assert body.endswith(b"--frontier\n\nrest\n--frontier--\n")
    assert base64.encodebytes(inner)[:20] not in body


def test_a_part_of_an_attached_message_alone(tmp_path: Path) -> None:
    inner = b"Subject: inner\n\n" + PROGRAM.partition(b"\n\n")[2].replace(b"frontier", b"inner")
    inner = inner.replace(b"\n\n", b"\nContent-Type: multipart/mixed; boundary=inner\n\n", 1)
    mail = mixed(b"Content-Type: message/rfc822\n\n" + inner, b"\nrest\n")
    body = Sent(mail, *rule(tmp_path, 'extension = "exe"\naction = "remove"')).mail.body
    assert b"Subject: inner\n" in body
    assert b"MZ" not in body


def test_several_parts(tmp_path: Path) -> None:
    text = 'extension = "exe"\naction = "remove"\n[[rule]]\nextension = "js"\naction = "rename"'
    js = b"Content-Type: x/y; name=b.js\n\nx\n"
    program = b"Content-Type: x/y; name=a.exe\n\nMZ\n"
    body = Sent(mixed(js, program, js, program), *rule(tmp_path, text)).mail.body
    assert body.count(b"was removed") == 2
    assert body.count(b'filename="b.js_"') == 2
    assert body.count(b"--frontier\n") == 5


# -- privacy -------------------------------------------------------------------------------

REVEALING = (
    b"Received: from [192.168.1.7] by laptop; x\nUser-Agent: Mail/1\nX-Mailer: y\nSubject: s\n"
    b"X-Originating-IP: [10.0.0.1]\nMIME-Version: 1.0 (Mac OS X Mail 9)\nX-Company: z\n\nhello\n"
)


def test_comments_of_a_version_take_linear_time() -> None:
    """It takes some milliseconds; it took the square of the comments, half an hour for these."""
    version = b"MIME-Version: 1.0 " + (b"()" * 400 + b"\n ") * 1000
    sent = Sent(b"Subject: s\n" + version + b"x\n\nhello\n", "--private", user="ann")
    assert sent.head == ["Subject: s", "MIME-Version: 1.0"]


@pytest.mark.parametrize("who", [{"user": "ann"}, {"local": True}])
def test_private(who: dict[str, object]) -> None:
    sent = Sent(REVEALING, "--dangerous=off", "--private", **who)  # type: ignore[arg-type]
    assert sent.head == ["Subject: s", "MIME-Version: 1.0", "X-Company: z"]
    assert sent.mail.headers.get("Received", "").startswith("from mail.example.net")


def test_mail_of_others_keeps_its_fields() -> None:
    assert Sent(REVEALING, "--dangerous=off", "--private").mail.unchanged


def test_private_fields_of_the_operators_choice() -> None:
    flags = ("--private-field=X-Company", "--private-keep=Received", "--private-keep=MIME-Version",
             "--private-replace=User-Agent: mail")  # fmt: skip
    sent = Sent(REVEALING, "--private", *flags, user="ann")
    assert sent.head == [
        "Received: from [192.168.1.7] by laptop; x",
        "User-Agent: mail",
        "Subject: s",
        "MIME-Version: 1.0 (Mac OS X Mail 9)",
    ]


def test_exempt_users_have_privacy() -> None:
    sent = Sent(REVEALING, "--private", "--exempt=authenticated", user="ann")
    assert sent.head[0] == "Subject: s"


@pytest.mark.parametrize(
    ("flags", "edits"),
    [
        (("--private",), True),
        (("--dangerous=remove",), True),
        (("--dangerous=remove", "--log-only"), False),
        ((), False),
        (("--dangerous=junk",), False),
    ],
)
def test_behind_a_filter_that_signs(flags: tuple[str, ...], *, edits: bool) -> None:
    class Signer(Filter):
        signs = True

        def data(self, session: Session) -> Proceed:
            return PROCEED.because(session.identity)

    own, _ = parse_flags(Content.Options, list(flags), common=common_options(), prog="x")
    content = Content(own)
    with Conversation([content, Signer()]):
        assert content.edits_signed is edits
    if edits:
        with (
            pytest.raises(ConfigError, match="content must be ahead of signer"),
            Conversation([Signer(), Content(own)]),
        ):
            pass


# -- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--dangerous=off",), "nothing to do: --dangerous off, without rules, checks and "),
        (("--private-field=X",), "--private-field, --private-keep and --private-replace require "),
        (("--private-replace=X",), '--private-replace: expected a field such as "User-Agent: '),
        (("--rules=FOLDER/missing",), "--rules: FOLDER/missing: No such file or directory"),
        (("--header-checks=/x",), '--header-checks: expected regexp:PATH or pcre:PATH, not "/x"'),
        *(
            ((f"{flag}=pcre:FOLDER/missing",), f"{flag}: FOLDER/missing: No such file or directory")
            for flag in ("--header-checks", "--mime-header-checks", "--nested-header-checks")
        ),
    ],
)  # fmt: skip
def test_wrong_flags(flags: tuple[str, ...], error: str, tmp_path: Path) -> None:
    *words, error = (text.replace("FOLDER", str(tmp_path)) for text in (*flags, error))
    assert error in complaint("content", *words)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "rule 1 (\"r\"): requires an action"),
        ('action = "reject"', "has no condition: it would apply to every message"),
        ('acton = "reject"', 'unknown key "acton", did you mean "action"?'),
        ('action = "burn"', 'action: "burn" is not one of reject, junk'),
        ('extension = "*.exe"\naction = "junk"', 'extension: "*.exe" is not an ext'),
        ('extension = "tar.gz"\naction = "junk"', "only the last extension counts"),
        ('filename = "(?=x)"\naction = "junk"', 'filename: "(?=x)": '),
        ('header = "A B"\naction = "junk"', "header: "),
        ('header = "Subject"\naction = "subject"', 'action "subject" requires tag'),
        ('header = "Subject"\naction = "remove"', 'action "remove" requires a cond'),
        ('extension = "exe"\naction = "junk"\nnote = "x"', 'note has no effect with action "junk"'),
        ('extension = "exe"\naction = "reject"\nreply = "250 ok"', "reply: a reply is a 4xx or 5"),
        ('content = "virus"\naction = "junk"', 'content: "virus" is not one of '),
        ('matches = "x"\naction = "junk"', "matches requires header"),
        ('header = "X"\npresent = false\nmatches = "x"\naction = "junk"', "absent can't match"),
        ('larger = "1x"\naction = "junk"', "larger: expected a size"),
        ('script = "klingon"\naction = "junk"', 'script: "klingon" is not one of arabic'),
        ("macros = false\naction = 'junk'", "macros: expected true"),
        *(
            (f"parts-over = {value}\naction = 'junk'", "parts-over: expected a number")
            for value in ("'2'", "true", "-1", "2.5")
        ),
        ("= 1", "Invalid"),
        ("name = 3", "Cannot overwrite a value"),
    ],
)  # fmt: skip
def test_wrong_rules(tmp_path: Path, text: str, error: str) -> None:
    _, _, path = rule(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        Rules().load(path)
    assert error in str(raised.value)
    assert str(raised.value).startswith(path)


def test_a_large_message_is_read_in_steps() -> None:
    body = b"--b\nContent-Type: x/y; name=a.txt\n\n" + b"x" * 70 + b"\n"
    mail = b"Content-Type: multipart/mixed; boundary=b\n\n" + body * 3000
    with Conversation(Content) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        assert client.message(mail.replace(b"\n", b"\r\n")).unchanged


# -- hostile messages ----------------------------------------------------------------------


@pytest.mark.parametrize("case", MESSAGES)
def test_no_reading_has_the_program_once_it_is_removed(tmp_path: Path, case: str) -> None:
    flags = rule(tmp_path, 'filename = "exe"\naction = "remove"\nnote = "removed"')
    sent = Sent(MESSAGES[case], *flags)
    head = b"\n".join(line for field in sent.mail.headers for line in field.lines)
    left = read(head + b"\n\n" + sent.mail.body)
    assert not any("exe" in name.lower() for name in every_name(left))
    assert b"removed\n" in sent.mail.body
