"""Measurements of SPF and of filter-auth, whose figures docs/decisions gives.

    python -m tests.bench.authentication

Times are of the processor. Messages are judged as by filter-auth, without smtpd's protocol and with
a warm cache of the DNS; beside it, dkimpy verifies the same signature and does nothing else.
"""

from __future__ import annotations

import asyncio
import statistics
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
#: Seconds that a slow name server takes for each answer.
DELAY = 0.03
#: Of the zone below: the look-ups, and those of the longest chain: record, included record, host.
COLD_LOOKUPS, COLD_CHAIN = 16, 3
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
    session = _session()
    with DNSServer(zone()) as server:
        async with Resolver([(server.address, server.port)]) as dns:
            for _ in range(WARM):
                await _judge(content, session, dns)
            began = time.process_time()
            for _ in range(count):
                await _judge(content, session, dns)
            return count / (time.process_time() - began)


def slow_zone() -> dict[str, dict[str, Any]]:
    """Return a zone in which each answer takes `DELAY`, and SPF has to follow chains."""
    hosts = ("m1.example.org", "m2.example.org", "a.example.org", "b.example.org", "h.p.example")
    names: dict[str, dict[str, Any]] = {
        **zone(),
        **{host: {"A": "192.0.2.50"} for host in hosts},
        "example.org": {
            "TXT": "v=spf1 mx a:a.example.org a:b.example.org include:p.example include:q.example"
            " -all",
            "MX": ["10 m1.example.org", "20 m2.example.org"],
        },
        "p.example": {"TXT": "v=spf1 ip4:192.0.2.60 a:h.p.example ?all"},
        "q.example": {"TXT": "v=spf1 a:h.q.example ?all"},
        "h.q.example": {"A": PASSES},
        "mail.example.com": {"TXT": "v=spf1 a -all", "A": PASSES},
    }
    return {name: {**types, "delay": DELAY} for name, types in names.items()}


def measure_cold(count: int) -> dict[str, float]:
    """Return the time of a message with two signatures whose answers must all be looked up.

    The median of so many messages, each with an empty cache; and the time of the longest chain of
    look-ups, and of all of them one after the other.
    """
    content = signed_by("example.org", signed_by("list.example", MESSAGE + LINE * 35))
    return {
        "ms": 1e3 * asyncio.run(_cold(content, count)),
        "longest chain ms": 1e3 * DELAY * COLD_CHAIN,
        "sum ms": 1e3 * DELAY * COLD_LOOKUPS,
    }


async def _cold(content: bytes, count: int) -> float:
    evidence.load()
    took = []
    with DNSServer(slow_zone()) as server:
        for number in range(count + 1):
            async with Resolver([(server.address, server.port)]) as dns:
                before = len(server.queries)
                began = time.perf_counter()
                await _judge(content, _session(), dns)
                if number:  # the first one imports
                    took.append(time.perf_counter() - began)
                if len(server.queries) - before != COLD_LOOKUPS:
                    raise AssertionError(server.queries[before:])
    return statistics.median(took)


def _session() -> Session:
    session = Session(b"7641df9700000001").expect(["username"])
    source = f"{PASSES}:33174".encode()
    session.apply("link-connect", (HELO.encode(), b"pass", source, b"198.51.100.25:25"))
    return session


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
    for name, value in measure_cold(ROUNDS // 10).items():
        print(f"cold, {DELAY * 1e3:.0f} ms for each answer, {name}: {value:.0f}")
