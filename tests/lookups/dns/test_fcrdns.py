from __future__ import annotations

import asyncio

import pytest

from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.dns.fcrdns import (
    MAX_NAMES,
    Confirmed,
    FCrDNS,
    NoName,
    Unconfirmed,
    fcrdns,
)
from smtpd_filters.lookups.dns.message import PARTIAL
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.testing.dns import DNSServer, host, merge

ZONE = merge(
    host("mail.good.example", "192.0.2.9", "2001:db8::9"),
    host("compat.example", "::192.0.2.9"),
    host("three.example", "192.0.2.3"),
    host("also.three.example", "192.0.2.3"),
    {
        "7.2.0.192.in-addr.arpa": {"PTR": "mail.good.example"},
        "6.2.0.192.in-addr.arpa": {
            "PTR": ["missing.example", r"no\032name.example", "half.example"]
        },
        "5.2.0.192.in-addr.arpa": {"servfail": True},
        "4.2.0.192.in-addr.arpa": {"PTR": ["mail.good.example", "broken.example"]},
        "3.2.0.192.in-addr.arpa": {"PTR": ["broken.example", "liar.example"]},
        "broken.example": {"servfail": True},
        "liar.example": {"A": "192.0.2.66"},
        # What cannot confirm an IPv4 client is not asked for: its failure doesn't matter.
        "half.example": {"A": "192.0.2.66", "servfail": ["AAAA"]},
        "2.2.0.192.in-addr.arpa": {"PTR": [f"n{n:02}.example" for n in range(40)]},
        "n33.example": {"A": "192.0.2.2"},
        "1.2.0.192.in-addr.arpa": {"PTR": [f"n{n:02}.example" for n in range(40)]},
        "11.2.0.192.in-addr.arpa": {"PTR": [f"n{n:02}.example" for n in range(10)]},
        "12.2.0.192.in-addr.arpa": {"PTR": [f"n{n:02}.example" for n in range(11)]},
        "13.2.0.192.in-addr.arpa": {"PTR": [f"good{n}.example" for n in range(200)]},
        **{f"good{n}.example": {"A": "192.0.2.13"} for n in range(200)},
        "14.2.0.192.in-addr.arpa": {"PTR": ["huge.example", "missing.example"]},
        # A name server may answer so, as getaddrinfo(3) does.
        "71.2.0.192.in-addr.arpa": {"PTR": "192.0.2.71"},
        "192.0.2.71": {"A": "192.0.2.71"},
        # RFC 2317: a part of a network is delegated by aliases with a slash in their names.
        "70.2.0.192.in-addr.arpa": {"CNAME": "70.64/26.2.0.192.in-addr.arpa"},
        "70.64/26.2.0.192.in-addr.arpa": {"PTR": "small.example"},
        "small.example": {"A": "192.0.2.70"},
        "1.0.0.10.in-addr.arpa": {"PTR": "pool.example"},
        "pool.example": {"A": [f"10.0.0.{n}" for n in range(1, 129)]},
        "huge.example": {"A": [f"10.0.{n // 250}.{n % 250}" for n in range(600)]},
    },
)


MORE = Unavailable("more than 10 reverse names, of which 10 do not confirm")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.9", Confirmed(("mail.good.example",))),
        ("192.0.2.71", Unconfirmed(("192.0.2.71",))),
        ("192.0.2.70", Confirmed(("small.example",))),
        ("::ffff:192.0.2.9", Confirmed(("mail.good.example",))),
        ("2001:DB8::9", Confirmed(("mail.good.example",))),
        ("::192.0.2.9", Confirmed(("compat.example",))),
        ("192.0.2.8", NoName()),
        ("not an address", Unavailable("not an IP address")),
        ("192.0.2.7", Unconfirmed(("mail.good.example",))),
        ("192.0.2.6", Unconfirmed(("half.example", r"missing.example", r"no\032name.example"))),
        ("192.0.2.5", Unavailable("SERVFAIL")),
        # One name could not be looked up: it might have confirmed.
        ("192.0.2.4", Unavailable("SERVFAIL")),
        # One did confirm: it doesn't matter that another could not be looked up.
        ("192.0.2.3", Confirmed(("also.three.example", "three.example"))),
        ("192.0.2.11", Unconfirmed(tuple(f"n{n:02}.example" for n in range(10)))),
        # Some names were not looked up.
        ("192.0.2.12", MORE),
        ("192.0.2.1", MORE),
        # Some addresses were not read.
        ("192.0.2.14", Unavailable(PARTIAL)),
        ("10.0.0.1", Confirmed(("pool.example",))),
    ],
)
def test_fcrdns(address: str, expected: FCrDNS) -> None:
    async def main(server: DNSServer) -> FCrDNS:
        async with Resolver(server.endpoints) as resolver:
            return await fcrdns(resolver, address)

    with DNSServer(ZONE) as server:
        result = asyncio.run(main(server))
        if expected == Unavailable("SERVFAIL"):
            expected = Unavailable(f"127.0.0.1:{server.port} SERVFAIL")
        assert result == expected


def test_any_of_many_names_may_confirm() -> None:
    async def main(server: DNSServer) -> None:
        async with Resolver(server.endpoints) as resolver:
            confirmed = await fcrdns(resolver, "192.0.2.13")
            assert isinstance(confirmed, Confirmed)
            assert len(confirmed.names) == MAX_NAMES

    with DNSServer(ZONE) as server:
        asyncio.run(main(server))
        asked = [name for name, rdtype in server.queries if rdtype == "A"]
        assert len(asked) == MAX_NAMES


def test_a_client_that_comes_again_has_other_names_looked_at() -> None:
    async def main(server: DNSServer) -> None:
        async with Resolver(server.endpoints) as resolver:
            while (found := await fcrdns(resolver, "192.0.2.2")) == MORE:
                pass
            assert found == Confirmed(("n33.example",))

    with DNSServer(ZONE) as server:
        asyncio.run(main(server))
