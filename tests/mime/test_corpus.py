"""Hostile and broken MIME, each with the names that some mail program shows of it."""

from __future__ import annotations

import base64
import binascii

import pytest

from smtpd_filters.mime import limits
from tests.mime.reading import EXE, attached, every_name, mixed, read, zipped

#: A field of the attachment, and a name that must be among its readings.
NAMES = {
    "plain": (b'filename="a.exe"', "a.exe"),
    "upper case": (b'FILENAME="A.EXE"', "A.EXE"),
    "with blanks, unquoted": (b"filename=my invoice.exe", "my invoice.exe"),
    "up to a blank": (b"filename=a.exe and more", "a.exe"),
    "in ticks": (b"filename='a.exe'", "a.exe"),
    "an apostrophe within": (b"filename=\"it's.exe\"", "it's.exe"),
    "open quote": (b'filename="a.exe', "a.exe"),
    "open quote before a parameter": (b'filename="a.exe; size=3', "a.exe"),
    "escaped quote": (b'filename="a\\".exe"', 'a".exe'),
    "continuations": (b"filename*0=a.; filename*1=exe", "a.exe"),
    "continuations in the wrong order": (b"filename*1=exe; filename*0=a.", "a.exe"),
    "a gap in continuations": (b"filename*0=a.; filename*2=exe", "a.exe"),
    "encoded continuations": (b"filename*0*=utf-8''a%2E; filename*1*=%65xe", "a.exe"),
    "extended": (b"filename*=UTF-8''a%2Eexe", "a.exe"),
    "extended in quotes": (b"filename*=\"UTF-8''a%2Eexe\"", "a.exe"),
    "extended without a character set": (b"filename*=''a%2Eexe", "a.exe"),
    "extended without ticks": (b"filename*=a%2Eexe", "a.exe"),
    "extended beside plain": (b"filename=\"a.txt\"; filename*=UTF-8''a%2Eexe", "a.exe"),
    "in UTF-16": (b"filename*=UTF-16BE''%00a%00.%00e%00x%00e", "a.exe"),
    "the second of two": (b'filename="a.txt"; filename="a.exe"', "a.exe"),
    "the first of two": (b'filename="a.exe"; filename="a.txt"', "a.exe"),
    "encoded word": (b'filename="=?utf-8?Q?a=2Eexe?="', "a.exe"),
    "unquoted encoded word": (b"filename==?utf-8?B?YS5leGU=?=", "a.exe"),
    "two encoded words": (b'filename="=?utf-8?Q?a=2E?= =?utf-8?Q?exe?="', "a.exe"),
    "an encoded word in continuations": (
        b'filename*0="=?utf-8?Q?a="; filename*1="2Eexe?="', "a.exe",
    ),
    "a folded name": (b'filename="a.\n exe"', "a. exe"),
    "no semicolon": (b' filename="a.exe"', "a.exe"),
    "blanks around the sign": (b'filename = "a.exe"', "a.exe"),
    "trailing dots and blanks": (b'filename="a.exe . ."', "a.exe"),
    "controls": (b'filename="a.e\x01xe"', "a.exe"),
    "a NUL": (b'filename="a.exe\x00.txt"', "a.exe"),
    "raw UTF-8": ('filename="ä.exe"'.encode(), "ä.exe"),
    "bytes of no encoding": (b'filename="\xe4.exe"', "\udce4.exe"),
    "from right to left": ('filename="a\u202etxt.exe"'.encode(), "atxt.exe"),
    "a full-width dot": ('filename="a\uff0eexe"'.encode(), "a.exe"),
    "a path": (b'filename="C:\\\\x\\\\a.exe"', "a.exe"),
    "a path with slashes": (b'filename="../x/a.exe"', "a.exe"),
    "a stream": (b'filename="a.exe:x.txt"', "a.exe"),
    "the default stream": (b'filename="a.exe::$DATA"', "a.exe"),
    "a comment behind": (b"filename=a.exe (a comment)", "a.exe"),
    "a comment before the sign": (b"filename (a comment) = a.exe", "a.exe"),
    "an open comment before another sign": (b'name (=x filename="a.exe" y', "a.exe"),
    "comments in a comment before the sign": (b"filename(;())=a.exe", "a.exe"),
    "a semicolon in a comment before the sign": (b"filename (a;b) = a.exe", "a.exe"),
    "a quoted pair in a comment before the sign": (b"filename(\\);)=a.exe", "a.exe"),
    "a comment without quoted pairs before the sign": (b"filename(;(\\))=a.exe", "a.exe"),
    "a comment within the parameter": (b"file(;())na(c)me=a.exe", "a.exe"),
    "a comment within the value": (b"filename=a.(c)e(d(e))xe", "a.exe"),
    "a comment before a quoted value": (b'filename=(a(;)) "a.exe" y', "a.exe"),
    "a comment before the sign of an extended one": (b"filename(;())*=''a%2Eexe", "a.exe"),
    "a quoted one within a value": (b'name=x filename="a.exe" y', "a.exe"),
    "one within a value": (b"name=x filename=a.exe y", "a.exe"),
    "one behind a comma in a value": (b"name=x,filename=a.exe", "a.exe"),
    "one within one within a value": (b'name=x name=y filename="a.exe" z', "a.exe"),
    "an extended one within a value": (b"name=x filename*=utf-8''a%2Eexe y", "a.exe"),
    "a continuation within a value": (b'name=x filename*0="a." y; filename*1=exe', "a.exe"),
    "one with a semicolon within a value": (b'name=x filename="b;a.exe" y', "b;a.exe"),
    "one within a continuation": (b'filename*0=x filename="a.exe" y', "a.exe"),
    "one behind a continuation": (b"filename*0=a.exe size=3", "a.exe"),
    "one behind a semicolon in quotes": (b'name="x; filename=a.exe; y"', "a.exe"),
    "a semicolon in quotes within the value": (b'filename=x";".exe', "x;.exe"),
    "text behind the quote": (b'filename="a.txt".exe', "a.txt.exe"),
    "a quote within quotes": (b'filename=""a.exe""', "a.exe"),
    "an empty value before it": (b'filename="" a.exe', "a.exe"),
    "percent-encoded": (b'filename="a%2Eexe"', "a.exe"),
    "the beginning of a long name": (b'filename="a.exe' + b" " * 300 + b'.txt"', "a.exe"),
    "behind many other parameters": (b"x=y; " * 100 + b"filename=a.exe", "a.exe"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize(
    "field", [b"Content-Disposition: attachment; ", b"Content-Disposition: inline; "]
)
def test_names(case: str, field: bytes) -> None:
    parameter, name = NAMES[case]
    assert name in every_name(read(mixed(field + parameter + b"\n\nx\n")))


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (b"Content-Type: a/b; name=a.exe\nContent-Disposition: x; filename=a.txt\n", 2),
        (b"Content-Disposition: x; filename=a.txt\nContent-Disposition: x; filename=a.exe\n", 2),
        (b"Content-Disposition : attachment; filename=a.exe\n", 1),
        (b"Content-Disposition:\n attachment;\n\tfilename=a.exe\n", 1),
        (b"garbage\nContent-Disposition: attachment; filename=a.exe\n", 1),
        (b"Content-Disposition: attachment filename=a.exe\n", 1),
    ],
)
def test_fields_of_a_part(fields: bytes, names: int) -> None:
    content = read(mixed(fields + b"\nx\n"))
    assert "a.exe" in every_name(content)
    assert len(every_name(content)) == names
    assert content.ambiguous == (names == 2 or fields.startswith(b"garbage"))


PART = b"Content-Disposition: attachment; filename=a.exe\n\nMZ\n"
MIXED = b"Content-Type: multipart/mixed; boundary=b\n"
INNER = b"Subject: x\n" + MIXED + b"\n--b\n" + PART + b"--b--\n"
#: Messages with one attachment, a.exe, and the oddity that must be noted ("" for none).
STRUCTURES = {
    "as it should be": (MIXED + b"\n--b\n" + PART + b"--b--\n", ""),
    "no MIME-Version, blank boundary": (
        b'Content-Type: multipart/mixed; boundary="a b"\n\n--a b\n' + PART + b"--a b--\n", "",
    ),
    "blanks behind the boundary": (MIXED + b"\n--b \t\n" + PART + b"--b-- \n", ""),
    "boundary in continuations": (
        b"Content-Type: multipart/mixed; boundary*0=b; boundary*1=c\n\n--bc\n" + PART + b"--bc--\n",
        "",
    ),
    "no boundary": (
        b"Content-Type: multipart/mixed\n\n--b\n" + PART + b"--b--\n",
        "multipart without a boundary",
    ),
    **{
        f"{case} in the boundary, behind another one": (
            b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\n\n--decoy\n\nx\n--'
            + boundary + b"\n" + PART + b"--" + boundary + b"--\n",
            oddity,
        )
        for case, boundary, oddity in (
            ("300 characters", b"b" * 300, ""),
            ("bytes of no encoding", b"b\xe4", ""),
            ("a tab", b"b\tc", ""),
            ("a no-break space", "b\u00a0c".encode(), ""),
        )
    },
    "a type without its second half": (
        b"Content-Type: multipart/; boundary=b\n\n--b\n" + PART + b"--b--\n",
        "multipart of an invalid type",
    ),
    "comments in comments before the type": (
        b"Content-Type: (c(d)) multipart/mixed; boundary=b\n\n--b\n" + PART + b"--b--\n",
        "multipart of an invalid type",
    ),
    "an open comment before the type": (
        b"Content-Type: (multipart/mixed; boundary=b\n\n--b\n" + PART + b"--b--\n",
        "multipart of an invalid type",
    ),
    **{
        f"{case} the type": (
            b"Content-Type: " + field + b"; boundary=b\n\n--b\n" + PART + b"--b--\n",
            "multipart of an invalid type",
        )
        for case, field in (
            ("comments in a comment with a semicolon before", b"(;()) multipart/mixed"),
            ("a comment with a semicolon before", b"(a;b) multipart/mixed"),
            ("another type in a comment before", b"(text/plain; x) multipart/mixed"),
            ("a comment with a quoted pair before", b"(\\);) multipart/mixed"),
            ("a comment with a quote before", b'(";) multipart/mixed'),
            ("a comment without quoted pairs before", b"(;\\) multipart/mixed"),
            ("comments without quoted pairs before", b"(;(\\)) multipart/mixed"),
            ("an open comment and another before", b"((;) multipart/mixed"),
            ("comments within", b"multipart (;()) / (a(;)) mixed"),
            ("a comment within a word of", b"multi(;)part/mixed"),
        )
    },
    **{
        f"{case} the type of a message": (
            b"Content-Type: " + field + b"\n\n" + INNER, "message of an invalid type",
        )
        for case, field in (
            ("comments in a comment with a semicolon before", b"(;()) message/rfc822"),
            ("a comment within", b"message/(a;b)rfc822"),
        )
    },
    **{
        f"{case} the encoding": (
            b"Content-Type: message/rfc822\nContent-Transfer-Encoding: " + field + b"\n\n"
            + base64.encodebytes(INNER),
            "unknown or several encodings",
        )
        for case, field in (
            ("comments in a comment with a semicolon before", b"(;()) base64"),
            ("a comment with a semicolon before", b"(a;b) base64"),
            ("a comment with a quoted pair before", b"(\\)) base64"),
            ("comments without quoted pairs before", b"(x;(\\)) base64"),
            ("a comment within", b"ba(;)se64"),
        )
    },
    "a comment before the sign of a boundary": (
        b"Content-Type: multipart/mixed; boundary(;())=b\n\n--b\n" + PART + b"--b--\n",
        "comment in a parameter",
    ),
    "another boundary within a boundary": (
        b'Content-Type: multipart/mixed; boundary=x boundary="b" y\n\n--b\n' + PART + b"--b--\n",
        "two boundaries",
    ),
    **{
        f"a multipart of that name, {case}": (
            b"Content-Type: multipart/mixed" + parameters + b"; name=a.exe\n\nMZ\n" + body, oddity,
        )
        for case, parameters, body, oddity in (
            ("no delimiter", b"; boundary=b", b"", "no closing boundary"),
            ("another delimiter", b"; boundary=b", b"--c\n\nx\n--c--\n", "no closing boundary"),
            ("an end only", b"; boundary=b", b"--b--\n", ""),
            ("no boundary, delimiter", b"", b"--b\n\nx\n--b--\n", "multipart without a boundary"),
            ("two boundaries", b"; boundary=b; boundary=c", b"--c\n\nx\n--c--\n", "two boundaries"),
            ("an indented delimiter", b"; boundary=b", b" --b\n\nx\n--b--\n",
             "indented boundary"),
            ("text behind it", b"; boundary=b", b"--b x\n\nx\n--b--\n", "text behind a boundary"),
            ("a return before it", b"; boundary=b", b"x\r--b\n\nx\n--b--\n",
             "bare carriage return"),
            ("a return behind it", b"; boundary=b", b"--b\rX: y\n\nx\n--b--\n",
             "bare carriage return"),
            ("a comment before its sign", b"; boundary (c) = b", b"--b\n\nx\n--b--\n", ""),
            ("a comment", b" (c); boundary=b", b"--b\n\nx\n--b--\n", ""),
            ("a comment before it", b"; boundary(;())=b", b"--b\n\nx\n--b--\n",
             "comment in a parameter"),
        )
    },
    "a multipart of that name in its disposition": (
        MIXED + b"Content-Disposition: attachment; filename=a.exe\n\nMZ\n", "no closing boundary",
    ),
    "a multipart of that name in another type": (
        b"Content-Type: application/octet-stream; name=a.exe\n" + MIXED + b"\n--b\n\nx\n--b--\n",
        "two types",
    ),
    "a multipart of that name in a multipart": (
        MIXED + b"\n--b\nContent-Type: multipart/mixed; boundary=c; name=a.exe\n\nMZ\n--b--\n",
        "no closing boundary",
    ),
    "a message of another type, without a delimiter": (
        b"Content-Type: message/rfc822\n" + MIXED.replace(b"=b", b"=c") + b"\n" + INNER
        + b"--c--\n",
        "two types",
    ),
    "a multipart of that name, encoded": (
        MIXED + b"Content-Disposition: attachment; filename=a.exe\n"
        b"Content-Transfer-Encoding: base64\n\nTVo=\n",
        "encoded multipart",
    ),
    "uuencoded in a multipart without a delimiter": (
        MIXED + b"\nbegin 644 a.exe\n" + binascii.b2a_uu(b"MZ\0\0") + b"end\n",
        "no closing boundary",
    ),
    "an attached message in a multipart without a delimiter": (
        MIXED[:-1] + b"; name=x.eml\n\n" + INNER.replace(b"b\n", b"c\n").replace(b"--b", b"--c"),
        "no closing boundary",
    ),
    "an open comment before the type of a message": (
        b"Content-Type: (message/rfc822\n\n" + INNER, "message of an invalid type",
    ),
    "comments in comments before the type of a message": (
        b"Content-Type: (c(d)) Message / rfc822\n\n" + INNER, "message of an invalid type",
    ),
    "an open comment before the encoding": (
        b"Content-Type: message/rfc822\nContent-Transfer-Encoding: (base64\n\n"
        + base64.encodebytes(INNER),
        "unknown or several encodings",
    ),
    "an open comment before another boundary": (
        b'Content-Type: multipart/mixed; boundary(=x boundary="b" y\n\n--b\n' + PART + b"--b--\n",
        "",
    ),
    "a piece of a message": (
        b"Content-Type: message/partial; id=x; number=1; total=2\n\n" + INNER,
        "a piece of a message",
    ),
    "indented boundary": (MIXED + b"\n  --b\n" + PART + b"--b--\n", "indented boundary"),
    "text behind a boundary": (MIXED + b"\n--b x\n" + PART + b"--b--\n", "text behind a boundary"),
    "the second boundary": (
        b"Content-Type: multipart/mixed; boundary=c; boundary=b\n\n--b\n" + PART + b"--b--\n",
        "two boundaries",
    ),
    "the first boundary": (
        b"Content-Type: multipart/mixed; boundary=b; boundary=c\n\n--b\n" + PART + b"--b--\n",
        "two boundaries",
    ),
    "no closing boundary": (MIXED + b"\n--b\n" + PART, "no closing boundary"),
    "a part behind the closing boundary": (
        MIXED + b"\n--b--\n--b\n" + PART + b"--b--\n", "part behind the closing boundary",
    ),
    "the second type": (
        b"Content-Type: text/plain\n" + MIXED + b"\n--b\n" + PART + b"--b--\n", "two types",
    ),
    "a multipart in base64": (
        MIXED + b"Content-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(b"--b\n" + PART + b"--b--\n"),
        "encoded multipart",
    ),
    "a multipart that claims base64": (
        MIXED + b"Content-Transfer-Encoding: base64\n\n--b\n" + PART + b"--b--\n",
        "encoded multipart",
    ),
    "a bare carriage return": (
        MIXED + b"\n--b\r" + PART.replace(b"\n", b"\r") + b"--b--\n", "bare carriage return",
    ),
    "carriage returns at line ends": (
        MIXED + b"\n--b\r\n" + PART.replace(b"\n", b"\r\n") + b"--b--\r\n", "",
    ),
    "an inner multipart without its end": (
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\n" + MIXED + b"\n--b\n" + PART
        + b"--o--\n",
        "no closing boundary",
    ),
    "an attached message": (
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: message/rfc822\n\n"
        + INNER + b"--o--\n",
        "",
    ),
    "an attached message in base64": (
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: message/rfc822\n"
        b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(INNER) + b"--o--\n",
        "",
    ),
    "no parts at all": (b"Content-Type: application/octet-stream; name=a.exe\n\nMZ\n", ""),
    "uuencoded": (
        b"Subject: x\n\nhello\nbegin 644 a.exe\n" + binascii.b2a_uu(b"MZ\0\0") + b"end\n", "",
    ),
    "uuencoded, without an empty line before it": (
        MIXED + b"\n--b\nbegin 644 a.exe\n" + binascii.b2a_uu(b"MZ\0\0") + b"end\n--b--\n",
        "line in a header block that isn't a field",
    ),
    "uuencoded, in quoted-printable": (
        b"Content-Transfer-Encoding: quoted-printable\n\nbegin=20644 a=2Eexe\n"
        + binascii.b2a_uu(b"MZ") + b"end\n",
        "",
    ),
    "yEnc": (b"Subject: x\n\n=ybegin line=128 size=2 name=a.exe\nxx\n=yend size=2\n", ""),
}  # fmt: skip
#: The messages of both tables.
MESSAGES = {
    **{case: message for case, (message, _) in STRUCTURES.items()},
    **{
        case: mixed(b"Content-Disposition: attachment; " + parameter + b"\n\nx\n")
        for case, (parameter, _) in NAMES.items()
    },
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_structures(case: str) -> None:
    message, oddity = STRUCTURES[case]
    content = read(message)
    assert "a.exe" in every_name(content)
    # The raw reading of an encoded multipart has no end.
    several = oddity == "encoded multipart"
    assert list(content.oddities)[: 1 if several else None] == ([oddity] if oddity else [])


#: Contents, with their encodings, that must be recognised as programs.
PROGRAMS = {
    "base64": base64.encodebytes(EXE),
    "base64 in one line": base64.b64encode(EXE) + b"\n",
    "base64 with garbage": b"!!" + base64.encodebytes(EXE).replace(b"A", b"A -\x01", 9),
    "base64 without padding": base64.b64encode(EXE + b"x").rstrip(b"=") + b"\n",
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_by_content(case: str) -> None:
    part = b"Content-Transfer-Encoding: base64\nContent-Type: image/png; name=a.png\n\n"
    content = read(mixed(part + PROGRAMS[case]))
    assert content.parts[-1].kind == "exe"
    assert not content.ambiguous


def test_a_program_without_an_empty_line_before_it() -> None:
    part = b"Content-Transfer-Encoding: base64\nContent-Type: image/png; name=a.png\n"
    content = read(mixed(part + base64.encodebytes(EXE)))
    assert content.parts[-1].kind == "exe"
    assert content.ambiguous


def test_base64_behind_padding_is_ambiguous() -> None:
    data = base64.b64encode(b"x") + b"\n" + base64.encodebytes(EXE)
    content = read(mixed(b"Content-Transfer-Encoding: base64\n\n" + data))
    assert content.parts[-1].size == 1 + len(EXE)
    assert list(content.oddities) == ["base64 continues behind its padding"]


def test_quoted_printable() -> None:
    data = b"".join(b"=%02X" % byte for byte in EXE)
    part = b"Content-Transfer-Encoding: quoted-printable\nContent-Type: x/y\n\n" + data + b"=\n"
    assert read(mixed(part)).parts[-1].kind == "exe"


@pytest.mark.parametrize("name", [b"a.eml", b"A.MHT", b"a.nws"])
def test_files_that_are_opened_as_messages(name: bytes) -> None:
    content = read(attached(INNER, b"Content-Type: application/octet-stream; name=" + name + b"\n"))
    assert "a.exe" in every_name(content)
    assert content.parts[1].names == (name.decode(),)
    assert not content.ambiguous


def test_an_encoded_message_that_is_a_program() -> None:
    content = read(attached(EXE, b"Content-Type: message/rfc822\n"))
    assert content.parts[1].kind == "exe"


def test_a_file_in_text_that_begins_within_another() -> None:
    content = read(b"From: x\n\nbegin 644 a.txt\n#0V%T\nbegin 644 a.exe\n#0V%T\n`\nend\n")
    assert {"a.txt", "a.exe"} <= every_name(content)


def test_names_of_ordinary_parts_are_within_the_limit() -> None:
    words = " ".join(
        f"=?iso-2022-jp?B?{base64.b64encode(text.encode('iso-2022-jp')).decode()}?="
        for text in ("請求書: 100%の", "見積もり%20", "ファイル.pdf")
    )
    quoted = "".join(f"%{byte:02X}" for byte in "請求書: 100%の見積もり%20ファイル.pdf".encode())
    fields = f'Content-Type: application/pdf; name="{words}"\n'
    fields += f"Content-Disposition: attachment; filename*=UTF-8''{quoted}\n"
    content = read(mixed(fields.encode() + b"\nx\n"))
    assert not content.cut
    assert len(content.parts[-1].names) < limits.NAMES / 2


def test_a_multipart_without_a_boundary_is_one_file_to_some_programs() -> None:
    content = read(b"Content-Type: multipart/mixed; name=a.zip\n\n" + zipped(("a.exe", b"x")))
    assert "a.exe" in every_name(content)


def test_a_multipart_without_a_delimiter_is_text() -> None:
    content = read(b"Content-Type: multipart/mixed; boundary=b\n\nhello\n")
    (part,) = content.parts
    assert (part.attached, part.head, part.kind) == (False, b"hello\n", "text")


def test_text_before_the_first_delimiter_is_no_part() -> None:
    text = b"Subject: x\nThis is a multipart message.\nbegin 644 a.exe\n" + EXE * 200 + b"\n"
    parts = b"--b\nContent-Type: text/plain\n\nhello\n--b--\n"
    for name in (b"", b"; name=x.zip", b"; name=x.eml"):
        head = b"Content-Type: multipart/mixed; boundary=b" + name + b"\n\n"
        (expected,), (part,) = read(head + parts).parts, read(head + text + parts).parts
        assert (part.number, part.head, part.names) == (0, b"hello\n", ())
        assert read(head + text + parts).text_left == read(head + parts).text_left
        assert expected.size == part.size


#: Content-Type, Content-Disposition and Content-Transfer-Encoding as mail programs write them, and
#: as the standards' examples do.
HONEST = [
    (b"text/plain; charset=us-ascii (Plain text)", b"inline", b"7bit (ASCII)"),
    (b"text/plain (a (b; c) d); charset=us-ascii", b"inline (x; y)", b'8bit (; \\) ")'),
    (b"(hello) text/plain; charset=us-ascii", b"(hello) attachment", b"(hello) base64"),
    (b"application/pdf; name (a comment) = a.pdf", b"attachment; filename (x) = a.pdf", b"base64"),
    (b'application/pdf; name="Report (1); name (2)=x.pdf"', b"attachment", b"base64"),
    (b'application/pdf; name="a (1.pdf"', b'attachment; filename="a (1.pdf"', b"base64"),
    (b'application/pdf; name="a\\"(1);.pdf"', b'attachment; filename="a\\"(1);.pdf"', b"base64"),
    (b"application/pdf; name=a.pdf", b"attachment; filename=a.pdf; size=3 (bytes)", b"BASE64"),
    (b"text/html; name=x.html; url=http://x/?a;name=x.html", b"inline", b"quoted-printable"),
    (b'text/calendar; method=REQUEST; name="R&eacute;union;.ics"', b"attachment", b"8BIT"),
    (
        b"application/x-pkcs7-signature; name=smime.p7s",
        b'attachment; filename="smime.p7s"',
        b"base64",
    ),
    (b"message/delivery-status; reporting=(x)", b"", b""),
]


@pytest.mark.parametrize("fields", HONEST)
def test_honest_fields_are_not_ambiguous(fields: tuple[bytes, bytes, bytes]) -> None:
    kind, disposition, encoding = fields
    part = b"Content-Type: " + kind + b"\nContent-Disposition: " + disposition + b"\n"
    content = read(mixed(part + b"Content-Transfer-Encoding: " + encoding + b"\n\neA==\n"))
    assert list(content.oddities) == []


@pytest.mark.parametrize(
    ("field", "what"),
    [
        (b"Content-Type: (;()) image/png", "type"),
        (b"Content-Disposition: (;()) attachment", "disposition"),
        (b"Content-Disposition: (inline;) attachment", "disposition"),
        (b"Content-Disposition: attachment; filename(;())=a.png", "parameter"),
        (b"Content-Type: image/png; name(\\))=a.png", "parameter"),
    ],
)
def test_comments_that_programs_read_differently(field: bytes, what: str) -> None:
    content = read(mixed(field + b"\n\nx\n"))
    assert list(content.oddities) == [f"comment in a {what}"]
    part = content.parts[-1]
    assert {
        "type": part.type == "image/png",
        "disposition": part.disposition == "attachment",
        "parameter": part.names == ("a.png",),
    }[what]


def test_encodings_in_comments() -> None:
    part = b"Content-Transfer-Encoding: (quoted-printable; x) base64\n\neA==\n"
    assert list(read(mixed(part)).oddities) == [
        "unknown or several encodings", "several encodings",
    ]  # fmt: skip


def test_tnef_is_a_leaf() -> None:
    content = read(
        attached(b"\x78\x9f\x3e\x22" + b"\0" * 9, b"Content-Type: application/ms-tnef\n")
    )
    assert content.parts[-1].kind == "tnef"


def test_offsets_are_those_of_the_part_in_the_body() -> None:
    message = STRUCTURES["an attached message"][0]
    body = message.partition(b"\n\n")[2]
    attachment = next(part for part in read(message).parts if part.names)
    outer = next(part for part in read(message).parts if "message" in part.traits)
    assert body[attachment.start : attachment.end] == PART
    assert body[attachment.body : attachment.end] == b"MZ\n"
    assert body[outer.body : outer.end] == INNER


def test_fields_of_parts_are_kept_for_checks() -> None:
    content = read(STRUCTURES["an attached message"][0], keep_fields=True)
    assert [(field.raw, field.nested) for field in content.fields] == [
        (b"Content-Type: message/rfc822", False),
        (b"Subject: x", True),
        (b"Content-Type: multipart/mixed; boundary=b", True),
        (b"Content-Disposition: attachment; filename=a.exe", True),
    ]


def test_character_set_and_text() -> None:
    content = read(b"Content-Type: text/plain; charset=KOI8-R\n\n\xf0\xd2\xc9\n")
    assert (content.parts[0].charset, content.parts[0].head) == ("koi8-r", b"\xf0\xd2\xc9\n")


def test_a_part_with_several_encodings_is_read_by_one_only() -> None:
    fields = b"Content-Transfer-Encoding: quoted-printable\nContent-Transfer-Encoding: base64\n"
    content = read(mixed(fields + b"Content-Type: x/y\n\n" + base64.encodebytes(EXE)))
    assert content.cut
    harmless = read(mixed(b"Content-Transfer-Encoding: 7bit\n" + fields[44:] + b"\n\n"))
    assert harmless.ambiguous
    assert not harmless.cut
