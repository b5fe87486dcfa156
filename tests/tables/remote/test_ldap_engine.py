from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.tables.remote.ldap_client import ber, messages
from smtpd_filters.tables.remote.ldap_client.ber import BERError, Reader, element, integer, octets
from smtpd_filters.tables.remote.ldap_client.engine import MESSAGE_MAX, Engine, EngineError
from smtpd_filters.tables.remote.ldap_client.filters import DEPTH_MAX, encode, escape, fill
from smtpd_filters.tables.remote.ldap_client.messages import (
    Entry,
    Reference,
    Result,
    TooLarge,
    decode,
)
from tests.fuzz import fuzz_ldap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def entry(number: int, **attributes: Sequence[bytes]) -> bytes:
    """A SearchResultEntry as a server writes it."""
    written = [
        element(0x30, octets(name.encode()), element(0x31, *map(octets, values)))
        for name, values in attributes.items()
    ]
    found = element(0x64, octets(b"uid=x"), element(0x30, *written))
    return element(0x30, integer(number), found)


def result(number: int, tag: int = 0x65, code: int = 0, text: bytes = b"") -> bytes:
    done = element(tag, integer(code, 0x0A), octets(b""), octets(text))
    return element(0x30, integer(number), done)


# -- BER -----------------------------------------------------------------------------------


@given(st.integers(-(2**62), 2**62), st.binary(max_size=70_000))
@example(128, b"x" * 127)
@example(-129, b"x" * 128)
@example(255, b"x" * 256)
def test_what_is_encoded_is_decoded(number: int, content: bytes) -> None:
    data = element(0x30, integer(number), octets(content))
    assert ber.size_of(data) == len(data)
    reader = Reader(data).inner(0x30)
    assert (reader.integer(), reader.octets(), bool(reader)) == (number, content, False)


@given(st.binary(max_size=200))
@example(b"\x30\x80\0\0")
@example(b"\x30\x84\xff\xff\xff\xff")
@example(b"\x1f\x81\x00")
@example(b"\x30\x85\0\0\0\0\0")
@example(result(1)[:-1])
def test_hostile_bytes_only_raise_the_error_of_their_engine(data: bytes) -> None:
    engine = Engine()
    number = engine.number()
    try:
        found = list(engine.receive(data))
    except EngineError:
        found = []
    assert all(message.number == number for message in found)
    with suppress(BERError):
        decode(data)


@given(st.sampled_from(fuzz_ldap.seeds()), st.data())
def test_messages_with_errors_only_raise_the_error_of_their_engine(
    seed: bytes, data: st.DataObject
) -> None:
    mutated = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        mutated = mutated or bytearray(b"0")
    fuzz_ldap.fuzz(bytes(mutated))
    assert Engine().pending == 0


@given(st.data())
def test_messages_arrive_in_any_pieces(data: st.DataObject) -> None:
    engine = Engine()
    first, second = engine.number(), engine.number()
    stream = (
        entry(second, mail=[b"a@example.org", b"b@example.org"], **{"cn;lang-en": [b"A"]})
        + element(0x30, integer(first), element(0x73, octets(b"ldap://192.0.2.1/")))
        + entry(99, mail=[b"of nobody"])
        + element(0x30, integer(second), element(0x79))
        + result(second, code=4, text=b"limit")
        + result(second)
        + result(first)
    )
    found: list[Entry | Result | Reference | TooLarge] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += engine.receive(stream[:size])
        stream = stream[size:]
    assert [(type(each).__name__, each.number) for each in found] == [
        ("Entry", second), ("Reference", first), ("Result", second), ("Result", first),
    ]  # fmt: skip
    assert isinstance(found[0], Entry)
    assert found[0].values("MAIL") == ["a@example.org", "b@example.org"]
    assert found[0].values("cn") == ["A"]
    assert found[0].values("sn") == []
    assert isinstance(found[2], Result)
    assert (found[2].code, found[2].reason) == (4, "size limit exceeded")
    assert engine.pending == 0


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"HTTP/1.1 400", "does not speak LDAP"),
        (
            element(0x30, b"\x04" + b"x")[:1] + b"\x84\x7f\xff\xff\xff",
            "a message of 2147483653 bytes",
        ),
        (b"\x30\x80", "an invalid message: a length"),
        (element(0x30, integer(1), element(0x41)), "an unknown message, 0x41"),
        (element(0x30, integer(-1), element(0x65)), "a negative message number"),
        (result(0, 0x78, 52), "closes the connection: unavailable"),
        (element(0x30, integer(1), element(0x64, octets(b""))), "an invalid message"),
    ],
)
def test_a_broken_server_ends_its_connection(data: bytes, cause: str) -> None:
    engine = Engine()
    engine.number()
    with pytest.raises(EngineError) as raised:
        list(engine.receive(data))
    assert cause in str(raised.value)
    assert MESSAGE_MAX < 2**31


def test_a_request_is_open_until_its_result() -> None:
    engine = Engine()
    numbers = [engine.number() for _ in range(3)]
    assert numbers == [1, 2, 3]
    engine.close(2)
    assert [each.number for each in engine.receive(result(1) + result(2) + result(3))] == [1, 3]
    assert engine.unused() == 4
    assert list(engine.receive(result(4))) == []


def test_the_cookie_of_a_page() -> None:
    value = element(0x30, integer(0), octets(b"next"))
    controls = element(
        0xA0,
        element(0x30, octets(b"1.2.3"), octets(b"other")),
        element(0x30, octets(messages.PAGED), ber.boolean(value=False), octets(value)),
    )
    done = element(0x65, integer(0, 0x0A), octets(b""), octets(b""))
    message = decode(element(0x30, integer(7), done, controls))
    assert isinstance(message, Result)
    assert message.cookie == b"next"


def test_a_name_without_a_password_is_never_sent() -> None:
    with pytest.raises(ValueError, match="without a password"):
        messages.bind(1, b"cn=admin", b"")
    assert messages.bind(1, b"", b"") == bytes.fromhex("300c020101600702010304008000")
    assert messages.bind(1, b"cn=a", b"pw") == bytes.fromhex(
        "3012020101600d0201030404636e3d6180027077"
    )


# -- filters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("(uid=a)", "a308 0403756964 040161"),
        ("(uid=*)", "8703756964"),
        ("(uid=***)", "8703756964"),
        ("(uid=a*b*c)", "a410 0403756964 3009 800161 810162 820163"),
        ("(uid=*b*)", "a40a 0403756964 3003 810162"),
        ("(!(uid=a))", "a20a a308 0403756964 040161"),
        ("(&(uid=a)(uid=*))", "a00f a308 0403756964 040161 8703756964"),
        ("(|(uid=a))", "a10a a308 0403756964 040161"),
        ("(uid>=a)", "a508 0403756964 040161"),
        ("(uid<=a)", "a608 0403756964 040161"),
        ("(uid~=a)", "a808 0403756964 040161"),
        (r"(uid=\2a\28)", "a309 0403756964 04022a28"),
        ("(uid:=a)", "a908 8203756964 830161"),
        ("(uid:dn:2.4.6:=a)", "a912 8105322e342e36 8203756964 830161 8401ff"),
        ("(&)", "a000"),
    ],
)
def test_filters_are_encoded(text: str, encoded: str) -> None:
    assert encode(text).hex() == encoded.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    [
        "", "uid=a", "(uid)", "(uid=a", "(uid=a))", "(&(uid=a)", "(=a)", "(u d=a)", r"(uid=\zz)",
        r"(uid=\2)", "(!)", "(uid=a)(uid=b)", "((uid=a))", "(:=a)", "(uid:a:b:c:=x)", "(uid=(x)",
        "(!" * (DEPTH_MAX + 2) + "(uid=a)" + ")" * (DEPTH_MAX + 2),
    ],
)  # fmt: skip
def test_invalid_filters(text: str) -> None:
    with pytest.raises(ValueError, match=r"filter"):
        encode(text)


@given(st.text())
@example("*)(uid=*")
@example("\\2a")
@example("a\0b")
@example("\udcff")
def test_no_key_changes_what_is_searched_for(key: str) -> None:
    try:
        value = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return
    assert encode(fill("(uid=%u)", escape(key))) == element(0xA3, octets(b"uid"), octets(value))


@given(st.text(alphabet="()&|!=*\\:<>~%ua2 "))
def test_the_parser_of_filters_only_raises_value_errors(text: str) -> None:
    try:
        encoded = encode(text)
    except ValueError:
        encoded = b"\xa0\0"
    assert ber.size_of(encoded) == len(encoded)


def test_templates() -> None:
    assert fill("(&(mail=%u)(a=%s)(t=%h)(p=100%%))", "k", "domain") == (
        "(&(mail=k)(a=k)(t=domain)(p=100%))"
    )
    assert encode(fill("(mail=*%u*)", "*")) == encode("(mail=*)")
    with pytest.raises(ValueError, match=r"%d in a filter"):
        fill("(mail=%d)", "k")


def crowded(*attributes: bytes) -> bytes:
    """Encode an entry without a name with these attributes, for request 1."""
    found = element(messages.ENTRY, octets(b""), element(ber.SEQUENCE, *attributes))
    return element(ber.SEQUENCE, integer(1), found)


def test_an_entry_that_would_take_long_to_read_fails_alone() -> None:
    empty = element(ber.SET)
    many = [element(ber.SEQUENCE, octets(b"%x" % each), empty) for each in range(1001)]
    values = element(ber.SET, *[octets(b"")] * 50_001)
    for data in (crowded(*many), crowded(element(ber.SEQUENCE, octets(b"a"), values))):
        engine = Engine()
        engine.number()
        large, done = list(engine.receive(data + result(1)))
        assert isinstance(large, TooLarge)
        assert "an entry with more than" in large.cause
        assert isinstance(done, Result)


@pytest.mark.parametrize("step", [1, 9, 40_000, 1 << 22])
def test_a_message_that_is_too_long_is_dropped_and_fails_alone(step: int) -> None:
    engine = Engine()
    assert [engine.number(), engine.number()] == [1, 2]
    long = entry(1, mail=[b"x" * (MESSAGE_MAX if step < 1000 else 3 << 20)])
    head = len(long) - 2000 if step < 1000 else 0  # by bytes at its ends alone
    data = long + result(1) + entry(2, mail=[b"a"]) + result(2)
    pieces = [data[: 2 * step], data[2 * step : head]] if head else []
    pieces += [data[at : at + step] for at in range(head, len(data), step)]
    found: list[object] = []
    for piece in pieces:
        found += engine.receive(piece)
        assert engine.pending <= MESSAGE_MAX
    large, first, other, second = found
    assert isinstance(large, TooLarge)
    assert (large.number, large.cause) == (1, f"a message of {len(long)} bytes")
    assert isinstance(other, Entry)
    assert isinstance(first, Result)
    assert isinstance(second, Result)


def test_an_attribute_has_the_values_with_its_options() -> None:
    found = entry(1, **{"cn": [b"A"], "cn;lang-de": [b"B"], "CN;x-1;Lang-DE": [b"C"]})
    [read] = _entries(found)
    assert read.values("cn") == ["A", "B", "C"]
    assert read.values("CN;lang-de") == ["B", "C"]
    assert read.values("cn;x-1;lang-de") == ["C"]
    assert read.values("cn;lang-fr") == []
    assert read.others(["cn;lang-de", "sn"]) == ["cn"]


def _entries(data: bytes) -> list[Entry]:
    engine = Engine()
    engine.number()
    return [each for each in engine.receive(data) if isinstance(each, Entry)]
