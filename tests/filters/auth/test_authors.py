"""The domains of a message's authors, and how many of them are looked up."""

from __future__ import annotations

import pytest

from smtpd_filters.filters.auth.authors import MAX_DOMAINS, Authors, authors_of
from smtpd_filters.message import Headers

SERVER = "mx.example.org"
INVALID = "invalid domain in From"


def authors(value: bytes) -> Authors:
    return authors_of(Headers([b"From: " + value]), SERVER)


def addresses(*domains: bytes) -> bytes:
    return b", ".join(b"<a@%b>" % each for each in domains)


@pytest.mark.parametrize("valid", range(MAX_DOMAINS + 2))
def test_invalid_domains_do_not_add_to_the_look_ups(valid: int) -> None:
    names = [b"%d.example" % number for number in range(valid)]
    found = authors(addresses(*names, *(b"b%d.example\xff" % number for number in range(9))))
    assert found.problem == INVALID
    assert found.stated == tuple(name.decode() for name in names[:MAX_DOMAINS])
    assert len(found.domains) == MAX_DOMAINS


def test_as_many_domains_as_are_looked_up() -> None:
    names = [b"%d.example" % number for number in range(MAX_DOMAINS + 1)]
    assert authors(addresses(*names[:-1])).stated == tuple(name.decode() for name in names[:-1])
    assert authors(addresses(*names)) == Authors(problem="more than 4 domains in From")
