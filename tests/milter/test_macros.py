"""The macros that precede an event."""

from __future__ import annotations

from smtpd_filters.milter import Agreement
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.milter.macros import chosen


def test_the_usual_ones() -> None:
    assert b"j" in chosen(v.CONNECT, Agreement())
    assert b"{mail_addr}" in chosen(v.MAIL, None)
    assert list(chosen(v.HEADER, None)) == []


def test_those_that_a_milter_asks_for_replace_them() -> None:
    lists = {v.CONNECT: (b"client_addr", b"i", b"i", b"{nothing}"), v.MAIL: ()}
    agreed = Agreement(macros=lists)
    assert list(chosen(v.CONNECT, agreed)) == [b"{client_addr}", b"i", b"{nothing}"]
    assert list(chosen(v.MAIL, agreed)) == []
    assert b"i" in chosen(v.RCPT, agreed)
