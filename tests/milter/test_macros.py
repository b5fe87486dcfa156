"""The macros that precede an event."""

from __future__ import annotations

from smtpd_filters.milter import Agreement
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.milter.macros import chosen

VALUES = {b"j": b"mx", b"i": b"12ab", b"{client_addr}": b"192.0.2.1", b"{mail_addr}": b""}


def test_the_usual_ones_whose_value_is_known() -> None:
    assert chosen(v.CONNECT, VALUES, Agreement()) == [(b"j", b"mx")]
    assert chosen(v.MAIL, VALUES, None) == [(b"i", b"12ab"), (b"{mail_addr}", b"")]
    assert chosen(v.HEADER, VALUES, None) == []


def test_those_that_a_milter_asks_for_replace_them() -> None:
    lists = {v.CONNECT: (b"client_addr", b"i", b"i", b"{nothing}"), v.MAIL: ()}
    agreed = Agreement(macros=lists)
    assert chosen(v.CONNECT, VALUES, agreed) == [(b"{client_addr}", b"192.0.2.1"), (b"i", b"12ab")]
    assert chosen(v.MAIL, VALUES, agreed) == []
    assert chosen(v.RCPT, VALUES, agreed) == [(b"i", b"12ab")]
