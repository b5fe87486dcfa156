"""The texts of the parts of a message, and what programs show of them."""

from __future__ import annotations

import base64
import quopri
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpd_filters import PROCEED, Filter, Message, Parts, Proceed, Session, read_parts
from smtpd_filters.checks.author import encoded_words
from smtpd_filters.mime.content import Part as Read
from smtpd_filters.mime.limits import BLOCK, TEXTS
from smtpd_filters.parts.markup import without_markup
from smtpd_filters.parts.part import described
from smtpd_filters.parts.texts import READINGS, Texts
from smtpd_filters.runtime.pace import TURN
from smtpd_filters.testing import Conversation
from tests.effort import part as part_of
from tests.mime.reading import mixed, read
from tests.mime.test_corpus import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")
ROOM = 1 << 16
RUSSIAN = "\u041f\u0440\u0438\u0432\u0435\u0442"
CHARSETS = encoded_words._CODECS
CODECS = sorted({codec for each in CHARSETS.values() for codec in each})


def done(work: Generator[int, None, T]) -> T:
    """Run a generator that yields units of work; each step is small."""
    try:
        while True:
            assert next(work) < TURN
    except StopIteration as end:
        result: T = end.value
        return result


def parts(mail: bytes, keep: int = ROOM, size: int = BLOCK) -> Parts:
    return done(described(read(mail, size, keep_texts=keep), keep))


def shown(mail: bytes) -> list[tuple[str, ...]]:
    return [part.shown for part in parts(mail)]


def visible(html: str) -> str:
    """The reading of the standard."""
    return done(without_markup(html))[0]


def declared(charset: str, data: bytes, kind: str = "plain") -> bytes:
    fields = f"Content-Type: text/{kind}; charset={charset}\nContent-Transfer-Encoding: base64\n\n"
    return fields.encode() + base64.encodebytes(data)


def test_texts_are_kept_only_if_asked_for() -> None:
    [part] = parts(b"Subject: x\n\nhello\n", 0)
    assert part.texts == part.shown == ()
    found = parts(b"Subject: x\n\nhello\n")
    assert [part.texts for part in found] == [("hello\n",)]
    assert [part.shown for part in found] == [("hello\n",)]
    assert not found.texts_cut


def test_encodings() -> None:
    text = "Grüße\n"
    data = text.encode()
    quoted = b"Content-Transfer-Encoding: quoted-printable\n\n" + quopri.encodestring(data)
    assert shown(quoted) == [(text,)]
    assert shown(declared("utf-8", data)) == [(text,)]
    uu = b"Content-Transfer-Encoding: x-uuencode\n\nbegin 644 x\n%:&5L;&\\ \n`\nend\n"
    assert shown(uu) == [("hello",)]
    assert shown(b"Subject: x\n\nbegin 644 a.txt\n%:&5L;&\\ \n`\nend\n")[1] == ("hello",)


@pytest.mark.parametrize(
    ("charset", "data"),
    [
        ("iso-8859-1", b"caf\xe9 \x80"),
        ("windows-1252", b"caf\xe9 \x80"),
        ("", b"caf\xe9 \x80"),
        ("us-ascii", b"caf\xe9 \x80"),
        ("no-such-set", b"caf\xe9 \x80"),
        ("utf-8", b"caf\xe9 \x80"),
        ("utf-16", "caf\xe9 \u20ac".encode("utf-16")),
        ("utf-16", "caf\xe9 \u20ac".encode("utf-16-le")),
        ("utf-16", "caf\xe9 \u20ac".encode("utf-16-be")),
        ("us-ascii", "caf\xe9 \u20ac".encode("utf-16")),
        ("utf-7", "caf\xe9 \u20ac".encode("utf-7")),
        ("gb18030", "caf\xe9 \u20ac".encode("gb18030")),
        ("'utf-8'", "caf\xe9 \u20ac".encode()),
        ("iso-8859-1", "caf\xe9 \u20ac".encode()),
    ],
)
def test_a_text_has_all_readings(charset: str, data: bytes) -> None:
    [part] = parts(declared(charset, data))
    assert "caf\xe9 \u20ac" in part.texts
    assert len(part.texts) <= 3


def test_two_character_sets_are_two_readings() -> None:
    field = b"Content-Type: text/plain; charset=koi8-r; charset=windows-1251\n\n"
    [part] = parts(field + RUSSIAN.encode("koi8-r"))
    assert RUSSIAN in part.texts[0]
    assert RUSSIAN.encode("koi8-r").decode("cp1251") in part.texts[1]


def test_html_declares_its_character_set() -> None:
    html = b'<html><meta http-equiv=x content="text/html; charset=koi8-r">'
    mail = b"Content-Type: text/html\n\n" + html + RUSSIAN.encode("koi8-r")
    assert shown(mail) == [(f"\n{RUSSIAN}\n",)]


@pytest.mark.parametrize(
    ("mail", "count"),
    [
        (mixed(b"Content-Type: x/y; name=a.html\n\n<html>hello\n"), 2),
        (mixed(b"Content-Type: image/png\n\n\x89PNG\r\n\x1a\nhello\n"), 1),
        (mixed(b"Content-Type: text/plain\n\nhello\n", b"\nhello\n"), 3),
        (mixed(b"Content-Type: message/rfc822\n\nSubject: x\n\nhello\n"), 2),
        (
            mixed(
                b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"
                + base64.encodebytes(b"Subject: x\n\nhello\n")
            ),
            2,
        ),
        (
            b"Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: base64\n\n"
            + base64.encodebytes(b"--b\n\nhello\n--b--\n"),
            1,
        ),
        (b"Content-Type: multipart/mixed; boundary=b\n\nhello\n", 1),
    ],
)
def test_which_parts_are_texts(mail: bytes, count: int) -> None:
    """`mixed` puts a text ahead."""
    found = [part for part in parts(mail) if any("hello" in text for text in part.shown)]
    assert len(found) == count


def test_the_preamble_of_a_multipart_takes_no_room() -> None:
    mail = (
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"x" * 4999 + b"\n--b\n\nhello\n--b--\n"
    )
    found = parts(mail, 5000)
    assert [part.texts for part in found] == [("hello\n",)]
    assert not found.texts_cut


def test_texts_beyond_the_limit_are_cut() -> None:
    mail = mixed(b"\n" + b"a" * 5000 + b"\n", b"\n" + b"b" * 5000 + b"\n", b"\nc\n")
    found = parts(mail, 6000)
    assert found.texts_cut
    assert not found.cut
    texts = "".join(text for part in found for text in part.texts)
    assert len(texts.replace("\n", "")) == 6000 - texts.count("\n")


def test_readings_have_a_limit() -> None:
    sets = ("utf-16", "koi8-r", "cp1251", "utf-32", "iso-8859-7", "hz", "big5", "koi8-u", "cp437")
    part = Read(0, 0, charsets=sets)
    part.kept = [bytes(range(256)) * 4]
    texts = Texts(1000)
    found, shown = done(texts.of(part))
    assert found
    assert sum(map(len, (*found, *shown))) <= 1000 * READINGS
    assert texts.cut


@pytest.mark.parametrize(
    "html",
    [
        "<style><p>SHOWN</style>",
        "<svg><style><p>SHOWN",
        "<title><style></title>SHOWN<style></style>",
        "<textarea><style>SHOWN</style></textarea>",
        "<textarea><!--</textarea>SHOWN<!-- -->",
        "<xmp><!--</xmp>SHOWN<!-- -->",
        "<plaintext><style>SHOWN</style>",
        "<plaintext></plaintext><!-- SHOWN -->",
        "<style><!-- </style>SHOWN<!-- -->",
        "<style><!-- <b </style>SHOWN<!-- -->",
        "<style/>SHOWN</style>",
        "<!-- a --!>SHOWN<!-- b -->",
        "<!-->SHOWN<!-- b -->",
        "<!--->SHOWN<!-- b -->",
        "<!-- <!-- -->SHOWN-->",
        "<!--[if mso]>SHOWN<![endif]-->",
        '<! ">SHOWN<a b="">',
        "<? '>SHOWN<a b=''>",
        '</ ">SHOWN<a b="">',
        '<!doctype html public ">SHOWN<a b="">',
        "<svg><![CDATA[SHOWN]]></svg>",
        '<a ">SHOWN<a ">',
        '<a b">SHOWN<a ">',
        '<a b=c">SHOWN<a ">',
        '<a b=c=">SHOWN<a ">',
        '<a b="c""d">SHOWN<a ">',
        '<a / ">SHOWN<a ">',
        "<a b=\"'\">SHOWN<a b='>",
        "<a b=>SHOWN<a b=''>",
        "<a b='>SHOWN",
        '<a b=">SHOWN',
        "<a <b>SHOWN",
        "<a=\">SHOWN<a b=''>",
        "<img alt=SHOWN>",
        "<IMG src=x ALT = 'SHOWN' title=y>",
        "SH\u200cO\u200dWN<p>\u00e9",
    ],
)
def test_what_some_program_shows_is_not_hidden(html: str) -> None:
    [part] = parts(declared("utf-8", html.encode(), "html"))
    assert any("SHOWN" in text for text in part.shown)


@pytest.mark.parametrize(
    "html",
    [
        "<style>p { x: HIDDEN }</style>",
        "<style><!-- p { x: HIDDEN } --></style>",
        "<title>x</title><STYLE type='a>b'>HIDDEN</STYLE  >",
        "<script>HIDDEN</script >",
        "<!-- HIDDEN -->",
        "<!-- <b>HIDDEN</b> -- > -->",
        "<a href='HIDDEN'>",
        "<a href = HIDDEN title=\">\" alt='HIDDEN'>",
        '<a\nhref\n=\n"\'HIDDEN>">',
        "<br HIDDEN/>",
        "<textarea></textarea><style>HIDDEN</style>",
    ],
)
def test_what_no_program_shows_is_hidden(html: str) -> None:
    [part] = parts(declared("utf-8", html.encode(), "html"))
    assert not any("HIDDEN" in text for text in part.shown)


@pytest.mark.parametrize(
    ("fields", "as_html", "as_it_is"),
    [
        (b"Content-Type: text/html\n", True, False),
        (b"Content-Type: text/plain\n", True, True),
        (b"", True, True),
        (b"Content-Type: text/plain\nContent-Type: text/html\n", True, True),
    ],
)
def test_html_that_some_programs_show_as_it_is(
    fields: bytes,
    as_html: bool,  # noqa: FBT001  # a table of cases
    as_it_is: bool,  # noqa: FBT001  # as above
) -> None:
    [part] = parts(b"Subject: x\n" + fields + b"\n<html>a<b>b<!--c-->\n")
    assert any("ab" in text for text in part.shown) == as_html
    assert any("c" in text for text in part.shown) == as_it_is


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("DE89<b>37</b>04", "DE8937 04".replace(" ", "")),
        ("a<br>b<p>c</p>d", "a\nb\nc\nd"),
        ("<td>a</td><td>b</td>", " a  b "),
        ("a<!-- x -->b", "ab"),
        ("a<!-->b", "ab"),
        ("a<!-- x", "a"),
        ("<STYLE>x{}</Style >a", "a"),
        ("<script>if (a < b) x</script>a", "a"),
        ("<style>a", ""),
        ("a<!doctype html>b<?xml x?>c", "abc"),
        ('<a title="x>y">b', "b"),
        ('<a title="x>y', ""),
        ("<a title='x\">y'>z", "z"),
        ("a < b > c", "a < b > c"),
        ("a <b", "a "),
        ("1<2", "1<2"),
        ("&#68;&#x45;&#0000056;&amp;lt;&nbsp;&eacute&;", "DE8&lt;\xa0\xe9&;"),
        ("&#" + "1" * 4090 + ";", "\ufffd"),
        ("&#1114112;&#xd800;&#0;", "\ufffd" * 3),
        ("", ""),
    ],
)
def test_html(html: str, text: str) -> None:
    assert visible(html) == text


@pytest.mark.parametrize(
    ("html", "readings"),
    [
        ("<p>a<style>b</style>c<!-- d -->", ("\nac",)),
        ("<title>a</title><style><!-- b --></style>", ("\na\n",)),
        ("<style>a", ("", "a")),
        ("a<!-- b", ("a", "a b")),
        ("a<!--[if mso]>b<![endif]-->", ("a", "a[if mso]>b")),
        ("<textarea>a<b>c</textarea>", ("\na<b>c\n", "\nac\n")),
        ("<svg><![CDATA[a<b>c]]>", ("c]]>", "a<b>c]]>")),
        ("<plaintext>a<b>", ("\na<b>", "\na")),
    ],
)
def test_there_is_a_second_reading_where_programs_may_differ(
    html: str, readings: tuple[str, ...]
) -> None:
    assert done(without_markup(html)) == readings


def test_a_reference_between_two_steps() -> None:
    for before in range(4000, 4100):
        assert visible("x" * before + "&nbsp;<b>y") == "x" * before + "\xa0y"


def test_what_is_shown_has_no_invisible_characters() -> None:
    mail = declared("utf-8", "DE\u200b89\u00ad<b>".encode())
    [part] = parts(mail)
    assert part.texts == ("DE\u200b89\u00ad<b>",)
    assert part.shown == ("DE89<b>",)


@pytest.mark.parametrize("case", MESSAGES)
def test_texts_do_not_depend_on_the_pieces(case: str) -> None:
    whole = [part.texts for part in parts(MESSAGES[case], size=1 << 20)]
    assert [part.texts for part in parts(MESSAGES[case], size=64)] == whole


HOSTILE = (
    "<!--x--!>", "<img alt=x>", "<img alt='x", "<title>", "<title></title>", "<a x='>' ",
    "<style>x</style>", "<style><b", "<a x=\">\" <a ", "<!---->", "<xmp>", "</xmp>", "<![CDATA[",
    "<a>", '<a "', '<a "">" ', "<a '", "<!--", "<!-->", "<style>", "<style></style>", "<script>",
    "&", "&#0", "&lt", "<", "<a", "</", "<!", "</s", "<a>'", "<a '<a \"", "&abcdefghijklmnopqr",
    "<style></", "x", "\u0301", "\u200b",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_html_takes_linear_work(piece: str) -> None:
    """Each repeat is charged a number of units that doesn't grow with the length."""

    def work(count: int) -> int:
        return sum(without_markup(piece * count + ">'\">-->"))

    assert work(8000) < 10 * work(1000) + 20 * TURN


@settings(max_examples=part_of(150))
@given(st.binary(max_size=3000), st.sampled_from(CODECS), st.sampled_from(["plain", "html"]))
@example(b"+" + b"A" * 20_000, "utf-7", "plain")
@example(b"\x1b$" * 100, "iso2022_kr", "plain")
@example(b"~{" * 5000, "hz", "plain")
def test_no_content_raises_an_exception(data: bytes, codec: str, kind: str) -> None:
    charsets = [name for name, found in CHARSETS.items() if codec in found]
    assert charsets
    for charset in charsets:
        [part] = parts(declared(charset, data, kind))
        assert bool(part.texts) == bool(part.shown)
        for text in part.texts:
            assert isinstance(text, str)


@pytest.mark.parametrize("codec", CODECS)
def test_a_text_is_decoded_as_a_whole(codec: str) -> None:
    """A character may be in two pieces."""
    text = "".join(chr(c) * 3 for c in range(0x20, 0x7F)) * 60 + "\n"
    text += "漢字ЖЙé" * 1500
    data = text.encode(codec, "ignore")
    part = Read(0, 0)
    part.charsets = (next(name for name, found in CHARSETS.items() if codec in found),)
    part.kept = [data]
    found, _ = done(Texts(len(data)).of(part))
    assert data.decode(codec) in found


def test_a_filter_gets_texts() -> None:
    class Searching(Filter):
        """Keep the texts of the last message."""

        found: Parts

        async def message(self, session: Session, message: Message) -> Proceed:
            assert session.tx
            type(self).found = await read_parts(message, keep_texts=1 << 30)
            return PROCEED

    with Conversation(Searching) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        text = b"<p>a</p>\r\n" + (b"x" * 998 + b"\r\n") * 4500
        client.message(b"Content-Type: text/html\r\n\r\n" + text)
    [part] = Searching.found
    assert part.shown[0].startswith("\na\n\nxxx")
    assert len(part.texts[0]) == TEXTS
    assert Searching.found.texts_cut
