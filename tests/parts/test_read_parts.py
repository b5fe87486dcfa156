"""The parts of a message, as a filter gets them from `read_parts`."""

from __future__ import annotations

import base64
import hashlib
import quopri

import pytest

from smtpd_filters import PROCEED, Filter, Message, Part, Parts, Proceed, Session, read_parts
from smtpd_filters.filters.content import Content
from smtpd_filters.parts import Member
from smtpd_filters.runtime.pace import TURN, Pace
from smtpd_filters.testing import Conversation
from tests.loading import loaded
from tests.mime.reading import EXE, attached, mixed, zipped
from tests.mime.test_corpus import MESSAGES


class Reader(Filter):
    """Keep the parts of the last message."""

    name = "reader"
    found: Parts

    async def message(self, session: Session, message: Message) -> Proceed:
        assert session.tx
        type(self).found = await read_parts(message)
        return PROCEED


def sent(mail: bytes, cls: type[Filter]) -> str:
    """Send a message to a filter, and return the reply that refuses it."""
    with Conversation(cls) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        return client.message(mail.replace(b"\n", b"\r\n")).reply


def parts(mail: bytes) -> Parts:
    assert sent(mail, Reader) == ""
    return Reader.found


def last(mail: bytes) -> Part:
    return list(parts(mail))[-1]


def test_a_text_and_an_attachment() -> None:
    found = parts(attached(b"%PDF-1.7" + b"x" * 992, b"Content-Type: x/pdf; name=a.pdf\n"))
    text, pdf = found
    assert len(found) == 2
    assert found.oddities == ()
    assert not found.ambiguous
    assert not found.cut
    assert (text.name, text.types, text.kind) == ("", ("text/plain",), "text")
    assert not text.attached
    assert (pdf.name, pdf.types, pdf.kind) == ("a.pdf", ("x/pdf",), "pdf")
    assert pdf.attached
    assert pdf.size == 1000
    assert pdf.dangerous == ""


def test_a_text_without_a_type() -> None:
    [text] = parts(b"Subject: x\n\nhello\n")
    assert text.types == ()
    assert text.size == 6
    assert not text.attached


@pytest.mark.parametrize(
    ("fields", "charset", "encoding"),
    [
        (b"", "", ""),
        (
            b"Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n",
            "utf-8",
            "",
        ),
        (
            b'Content-Type: text/html; charset="x"\nContent-Transfer-Encoding: BASE64\n',
            "x",
            "base64",
        ),
        (b"Content-Transfer-Encoding: quoted-printable\n", "", "quoted-printable"),
        (b"Content-Transfer-Encoding: uuencode\n", "", "x-uuencode"),
    ],
)
def test_how_a_text_is_encoded(fields: bytes, charset: str, encoding: str) -> None:
    [text] = parts(b"Subject: x\n" + fields + b"\naGVsbG8K\n")
    assert (text.charset, text.encoding) == (charset, encoding)


def test_an_archive() -> None:
    part = last(attached(zipped(("b.txt", b"x"), ("x/a.exe", b"x"))))
    assert part.kind == "zip"
    assert part.members == (Member(("b.txt",), "text"), Member(("a.exe",), "text"))
    assert part.dangerous == "a.exe"


@pytest.mark.parametrize(
    ("mail", "dangerous"),
    [
        (attached(EXE, b"Content-Type: image/png; name=a.png\n"), "a.png"),
        (attached(EXE, b"Content-Type: image/png\n"), "exe"),
        (attached(zipped(("a.png", EXE))), "a.png"),
        (mixed(b"Content-Type: text/plain; name=A.JS\n\nx\n"), "A.JS"),
        (mixed(b"Content-Type: text/plain\n\n@echo off\n"), ""),
        (mixed(b"Content-Disposition: attachment; filename=a.txt\n\nx\n"), ""),
    ],
)
def test_what_is_dangerous(mail: bytes, dangerous: str) -> None:
    assert last(mail).dangerous == dangerous


def test_an_attached_message_has_the_size_of_all_its_lines() -> None:
    inner = b"Subject: x\n\n" + b"y" * 50 + b"\n"
    for head, encoded in (
        (b"Content-Type: message/rfc822\n\n", inner),
        (
            b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n",
            base64.encodebytes(inner),
        ),
    ):
        whole, text = list(parts(mixed(head + encoded)))[1:]
        assert "message" in whole.traits
        assert whole.attached
        assert whole.size == len(inner)
        assert text.size == 51


def test_an_empty_attachment_has_no_size() -> None:
    field = b"Content-Disposition: attachment\nContent-Transfer-Encoding: base64\n\n"
    assert last(mixed(field + b"!\n")).size == 0


def test_a_line_that_is_no_field_hides_nothing() -> None:
    """With the standard library's `email` this message has no attachment."""
    found = parts(b"Subject: x\njunk\n" + b'Content-Type: x/y; name="a.exe"\n\nx\n')
    assert [part.dangerous for part in found] == ["a.exe"]


def test_a_message_beyond_the_limits_is_cut() -> None:
    levels = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level)
        for level in range(3000)
    )
    found = parts(levels)
    assert found.cut
    assert found.ambiguous
    assert "too many levels" in found.oddities


def test_the_parts_are_those_of_the_edited_message() -> None:
    class Edits(Reader):
        async def message(self, session: Session, message: Message) -> Proceed:
            message.headers.replace("Content-Type", "text/x; name=b.txt")
            message.replace_body(b"new\n")
            return await super().message(session, message)

    assert sent(b"Content-Type: text/plain; name=a.txt\n\nx\n", Edits) == ""
    [part] = Edits.found
    assert part.names == ("b.txt",)
    assert part.size == 4


@pytest.mark.parametrize("case", MESSAGES)
def test_filter_content_refuses_what_is_dangerous_or_cut(case: str) -> None:
    found = parts(MESSAGES[case])
    bad = found.cut or any(part.dangerous for part in found)
    assert bool(sent(MESSAGES[case], Content)) == bad


def test_many_members_are_described_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted: list[int] = []

    class Counting(Pace):
        async def admit(self, work: int) -> None:
            admitted.append(work)
            await super().admit(work)

    counting = Counting()
    monkeypatch.setattr("smtpd_filters.runtime.pace.pace", lambda: counting)
    members = [(f"{number}.txt", b"") for number in range(1000)]
    assert len(last(attached(zipped(*members))).members) == 1000
    assert sum(admitted) > 10 * len(members)
    assert max(admitted) < TURN


def test_parts_can_be_made_for_a_test() -> None:
    assert not Parts(()).ambiguous
    assert Parts((), ["x"], cut=True).ambiguous


def test_it_is_loaded_by_filters_that_use_it_only() -> None:
    code = "from smtpd_filters import Filter, Message, OwnField, Session, run; Message"
    before = loaded(code)
    assert not {each for each in before if each.startswith(("smtpd_filters.parts", "asyncio"))}
    assert not {each for each in before if each.startswith("smtpd_filters.mime")}
    assert "smtpd_filters.mime.archives" in loaded("from smtpd_filters import read_parts")


class Digester(Filter):
    """Keep the parts of the last message, with their digests."""

    name = "digester"
    found: Parts

    async def message(self, session: Session, message: Message) -> Proceed:
        assert session.tx
        type(self).found = await read_parts(message, digest="sha256")
        return PROCEED


def digests(mail: bytes) -> list[str]:
    """The digest of each part of a message."""
    assert sent(mail, Digester) == ""
    return [part.digest for part in Digester.found]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_no_digest_unless_it_is_asked_for() -> None:
    assert last(b"Subject: x\n\nhello\n").digest == ""


def test_the_digest_of_a_large_attachment() -> None:
    content = bytes(range(256)) * 5000
    assert digests(attached(content, b"Content-Type: x/y; name=a\n"))[-1] == sha256(content)


def test_the_digest_of_other_encodings() -> None:
    content = b"gr\xfc\xdfe =\n\nx\n"
    fields = b"Content-Transfer-Encoding: quoted-printable\n\n"
    assert digests(fields + quopri.encodestring(content)) == [sha256(content)]
    assert digests(b"Subject: x\n\nhello\n") == [sha256(b"hello\n")]


@pytest.mark.parametrize(
    ("encoding", "body", "content"),
    [
        (b"8bit", b"abc\n", b"abc"),
        (b"8bit", b"abc\n\n", b"abc\n"),
        (b"8bit", b"\n", b""),
        (b"quoted-printable", b"ab=\nc\n", b"abc"),
        (b"quoted-printable", b"abc=0A\n", b"abc\n"),
        (b"quoted-printable", b"abc=0A=\n", b"abc\n"),
        (b"base64", b"YWJjCg==\n", b"abc\n"),
        (b"8bit", b"abc\n" * 3000, b"abc\n" * 2999 + b"abc"),
    ],
)
def test_the_line_end_before_a_delimiter_is_no_content(
    encoding: bytes, body: bytes, content: bytes
) -> None:
    part = b"\n--b\nContent-Type: x/y; name=a\nContent-Transfer-Encoding: " + encoding + b"\n\n"
    mail = b"Content-Type: multipart/mixed; boundary=b\n" + part + body + b"--b--\n"
    assert digests(mail) == [sha256(content)]


def test_the_digest_of_a_file_in_text() -> None:
    mail = b"Subject: x\n\nbegin 644 a.bin\n#86)C\n`\nend\n"
    assert digests(mail)[-1] == sha256(b"abc")


def test_the_digest_of_what_has_no_content() -> None:
    assert digests(b"Subject: x\n\n") == [sha256(b"")]


def test_an_attached_message_has_a_digest_only_if_it_was_decoded() -> None:
    inner = b"Subject: in\n\nhello\n"
    fields = b"Content-Type: message/rfc822\n"
    assert digests(fields + b"\n" + inner) == ["", sha256(b"hello\n")]
    encoded = b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(inner)
    assert digests(fields + encoded) == [sha256(inner), sha256(b"hello\n")]


def test_the_digest_of_an_archive_leaves_its_members_readable() -> None:
    content = zipped(("a.exe", EXE))
    assert digests(attached(content, b"Content-Type: x/zip; name=a.zip\n"))[-1] == sha256(content)
    assert list(Digester.found)[-1].dangerous == "a.exe"


@pytest.mark.parametrize("name", ["sha-999", "shake_128"])
def test_an_algorithm_without_a_digest_of_its_own_is_a_mistake(name: str) -> None:
    class Wrong(Filter):
        """Ask for what does not exist."""

        async def message(self, session: Session, message: Message) -> Proceed:
            assert session.tx
            await read_parts(message, digest=name)
            return PROCEED

    with Conversation(Wrong, errors=True) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        client.message()
        assert f'ValueError: digest: no algorithm of a fixed length: "{name}"' in smtpd.errors[0]
