"""Measurements of SPF and of filter-auth, whose figures docs/decisions gives.

    python -m tests.bench.authentication

Times are of the processor. Messages are judged as by filter-auth, without smtpd's protocol and with
a warm cache of the DNS; beside it, dkimpy verifies the same signature and does nothing else.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import dkim
import spf as pyspf

from smtpd_filters.authentication import results, spf
from smtpd_filters.filters.auth import authors, evidence, fields, judgement
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.session import Session
from smtpd_filters.testing.dns import DNSServer
from tests.authentication.signing import message, public, rsa_key
from tests.authentication.zones import Zone
from tests.filters.auth.mail import MESSAGE, PASSES, signed_by, zone

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.authentication.inquiry import Engine

SENDER, HELO, OWN = "ann@example.org", "mail.example.com", "mx.example.net"
LINE = b"A line of a message of two kilobytes, more or less.\r\n"
BATCHES, ROUNDS = 8, 200
#: Messages before the measurement: imports, caches.
WARM = 20
LOGGED = judgement.Actions(*["log"] * 6)


def chain(terms: str, depth: int) -> dict[str, dict[str, Any]]:
    """Return records that include each other, each with these terms."""
    return {
        f"n{number}.example": {"TXT": f"v=spf1 {terms} include:n{number + 1}.example ?all"}
        for number in range(depth)
    }


#: Records, by the kind of their owner.
OWNERS: dict[str, dict[str, dict[str, Any]]] = {
    "one host": {"n0.example": {"TXT": "v=spf1 ip4:192.0.2.1 -all"}},
    "a provider's: three includes, no match": {
        "n0.example": {"TXT": "v=spf1 include:a.example include:b.example include:c.example ~all"},
        **{
            f"{name}.example": {
                "TXT": "v=spf1 " + " ".join(f"ip4:10.{n}.0.0/16" for n in range(10)) + " ?all"
            }
            for name in "abc"
        },
    },
    "hostile: eleven records of 250 terms": chain(
        " ".join(f"ip4:10.{number}.2.0/24" for number in range(250)), 12
    ),
}


def evaluations() -> None:
    """Measure evaluations of SPF, cold and step by step, and one run of pyspf."""
    spf.load()
    for owner, names in OWNERS.items():
        answers = Zone(names)
        took = []
        for _ in range(5):
            engine = spf.check("192.0.2.9", HELO, "a@n0.example", now=0)
            steps = list(_steps(engine, answers))
            took.append((sum(steps), max(steps), len(steps)))
        total, longest, count = min(took)
        print(
            f"{owner}: {total * 1e3:.2f} ms in {count} steps, the longest {longest * 1e3:.2f} ms;"
            f" a run of pyspf {_pyspf(names) * 1e3:.2f} ms"
        )


def _steps(engine: Engine[spf.Verdict], answers: Zone) -> Iterable[float]:
    """Yield the time of each step of an engine."""
    sent: Any = None
    while True:
        began = time.process_time()
        try:
            questions = engine.send(sent)
        except StopIteration:
            yield time.process_time() - began
            return
        yield time.process_time() - began
        sent = [answers(each) for each in questions]


def _pyspf(names: dict[str, dict[str, Any]]) -> float:
    """Return the time of one run of pyspf's own check, with answers that are there at once."""

    def look_up(name: str, rdtype: str, *_: object) -> list[object]:
        text = names.get(name.lower(), {}).get(rdtype)
        return [((name, rdtype), (str(text).encode(),))] if text else []

    before, pyspf.DNSLookup = pyspf.DNSLookup, look_up
    try:
        took = []
        for _ in range(5):
            began = time.process_time()
            pyspf.query(i="192.0.2.9", s="a@n0.example", h=HELO).check()
            took.append(time.process_time() - began)
        return min(took)
    finally:
        pyspf.DNSLookup = before


def measure_messages(count: int) -> dict[str, dict[str, float]]:
    """Return the rate of messages with one signature, SPF and DMARC, in one round.

    Beside it that of dkimpy's verification alone.
    """
    content = signed_by("example.org", MESSAGE + LINE * 35)
    return {
        "filter-auth": {"messages/s": asyncio.run(_ours(content, count))},
        "dkimpy": {"messages/s": _theirs(content, count)},
    }


async def _ours(content: bytes, count: int) -> float:
    evidence.load()
    session = Session(b"7641df9700000001").expect(["username"])
    source = f"{PASSES}:33174".encode()
    session.apply("link-connect", (HELO.encode(), b"pass", source, b"198.51.100.25:25"))
    with DNSServer(zone()) as server:
        async with Resolver([(server.address, server.port)]) as dns:
            for _ in range(WARM):
                await _judge(content, session, dns)
            began = time.process_time()
            for _ in range(count):
                await _judge(content, session, dns)
            return count / (time.process_time() - began)


def _theirs(content: bytes, count: int) -> float:
    key = f"v=DKIM1; p={public(rsa_key())}".encode()
    began = time.process_time()
    for _ in range(count):
        if not dkim.verify(content, dnsfunc=lambda *_, **__: key):
            raise AssertionError("the signature is invalid")
    return count / (time.process_time() - began)


async def _judge(content: bytes, session: Session, dns: Resolver) -> None:
    made = message(content)
    envelope = evidence.Envelope(dns, PASSES, OWN)
    envelope.sent_from(HELO, SENDER)
    found = await evidence.collect(
        made, authors.authors_of(made.headers, OWN), envelope, dns, seconds=24
    )
    judged = judgement.Judgement(LOGGED, found, excepts=lambda _: None, trusts=lambda _: None)
    results.remove_forged(made.headers, OWN)
    value = results.write(OWN, fields.results(session, found, judged.overridden))
    made.headers.prepend(results.FIELD, value)
    if "dmarc=pass" not in value or judged.decision("proceed").reason:
        raise AssertionError(value)
    made.discard()


if __name__ == "__main__":
    evaluations()
    # The fastest of some rounds counts: others use the machine as well.
    rounds = [measure_messages(ROUNDS) for _ in range(BATCHES)]
    for name in rounds[0]:
        print(f"{name}: {max(each[name]['messages/s'] for each in rounds):.0f} messages/s of 2 KB")
