"""A made-up week of mail before filter-greylist: what waits, for how long, and what stays out.

    python -m tests.filters.greylist.simulation

prints the table of docs/decisions/greylisting.md. The filter is the true one, with a clock of its
own and a name server on loopback; `Week` makes up the rest from a seed. Its proportions are
guesses, so the differences between the columns say more than their figures.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import sys
from dataclasses import dataclass, field
from itertools import count
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.main import set_up
from smtpd_filters.protocol.decisions import Proceed
from smtpd_filters.runtime.log import Log
from smtpd_filters.session import Session
from smtpd_filters.settings import Pool, common_options, parse_flags
from smtpd_filters.testing.dns import DNSServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEED = 20261
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
#: The variants: their heading, and the flags.
VARIANTS = {
    "all wait, a client is a network": ("--key", "network"),
    "all wait": (),
    "only the suspicious": ("--only-if", "unconfirmed", "--only-if", "dynamic"),
}
HONEST = ("servers", "pools", "home")
SPAM = ("once", "again", "proper")
#: The retries of bots that have any, in seconds after the attempt before.
_SOON = ((10.0, 60.0), (MINUTE, 2 * MINUTE), (2 * MINUTE, 8 * MINUTE))
LABELS = {
    "servers": "mail servers",
    "pools": "pools of servers",
    "home": "servers at home",
    "once": "bots that try once",
    "again": "bots that try again soon",
    "proper": "spammers with servers in order",
}


@dataclass(frozen=True)
class Source:
    """A sender: its addresses with their names, and the seconds between its attempts."""

    kind: str
    domain: str
    addresses: tuple[tuple[str, str], ...]  # address, and name; "" for none
    retries: tuple[float, ...]
    confirmed: bool = True


@dataclass
class Mail:
    """A message: its attempts, and when it was accepted, in seconds after the first of them."""

    source: Source
    sender: str
    recipient: str
    first: float
    waits: list[float] = field(default_factory=list)
    accepted: float | None = None


class Week:
    """The sources, the messages and the DNS of a week."""

    def __init__(self, seed: int = SEED) -> None:
        self._dice = random.Random(seed)  # noqa: S311  # no secret
        self.zone: dict[str, dict[str, Any]] = {}
        self._networks = (f"{a}.{b}.{c}" for a in range(31, 99) for b in range(250) for c in (7,))
        self.mails = sorted(self._all(), key=lambda mail: mail.first)

    def _all(self) -> Iterator[Mail]:
        dice = self._dice
        for number in range(60):
            domain = f"company{number}.example"
            address = f"{next(self._networks)}.25"
            if dice.random() < 0.7:
                self.zone[domain] = {"TXT": f"v=spf1 ip4:{address} -all"}
            source = Source(
                "servers",
                domain,
                ((address, f"mail.{domain}"),),
                self._schedule(dice.choice([5, 10, 15, 30]) * MINUTE),
            )
            yield from self._written(source, people=4, mails=6)
        for number in range(8):
            yield from self._written(self._pool(f"big{number}.example"), people=30, mails=20)
        for number in range(10):
            network = next(self._networks)
            name = f"{network.replace('.', '-')}-9.dsl.provider.example"
            source = Source(
                *("home", f"home{number}.example"),
                ((f"{network}.9", name),),
                self._schedule(15 * MINUTE),
            )
            yield from self._written(source, people=2, mails=6)
        yield from self._spam()

    def _pool(self, domain: str) -> Source:
        """Return a sender with 40 addresses, half of which are in other networks each."""
        hosts = []
        for host in range(40):
            network = next(self._networks)
            hosts.append((f"{network}.{host + 1}", f"out{host}.mail.{domain}"))
        self.zone[f"_dmarc.{domain}"] = {"TXT": "v=DMARC1; p=none"}
        if self._dice.random() < 0.6:
            terms = " ".join(f"ip4:{address}" for address, _ in hosts)
            text = f"v=spf1 {terms} -all"
            strings = (text[at : at + 250] for at in range(0, len(text), 250))
            self.zone[domain] = {"TXT": " ".join(f'"{each}"' for each in strings)}
        return Source("pools", domain, tuple(hosts), self._schedule(6 * MINUTE))

    def _schedule(self, first: float) -> tuple[float, ...]:
        """Return the seconds between attempts: the first, then twice as much up to four hours."""
        return tuple(min(first * 2**step, 4 * HOUR) for step in range(16))

    def _written(self, source: Source, people: int, mails: int) -> Iterator[Mail]:
        """Yield the mail of a week, of people who write to some of ours."""
        dice = self._dice
        pairs = [
            (f"user{person}@{source.domain}", f"ours{dice.randrange(40)}@example.net")
            for person in range(people)
        ]
        for _ in range(mails):
            sender, recipient = dice.choice(pairs)
            yield Mail(source, sender, recipient, dice.uniform(0, 7 * DAY))

    def _spam(self) -> Iterator[Mail]:
        dice = self._dice
        for number in range(500):
            network = next(self._networks)
            kind = dice.choices(SPAM[:2], [85, 15])[0]
            name = dice.choices(
                [f"{network.replace('.', '-')}-4.dyn.isp.example", "", f"host{number}.example"],
                [65, 20, 15],
            )[0]
            source = Source(
                *(kind, f"forged{number}.example", ((f"{network}.4", name),)),
                dice.choice(_SOON) if kind == "again" else (),
                confirmed=dice.random() < 0.6,
            )
            yield from self._written(source, people=40, mails=dice.randrange(1, 4))
        for number in range(20):
            domain = f"offers{number}.example"
            address = f"{next(self._networks)}.8"
            self.zone[domain] = {"TXT": f"v=spf1 ip4:{address} -all"}
            source = Source(
                *("proper", domain, ((address, f"mx.{domain}"),)), self._schedule(10 * MINUTE)
            )
            yield from self._written(source, people=3, mails=8)


class Timed(Greylist):
    """The filter, with the clock of the simulation."""

    name = "greylist"

    def now(self) -> float:
        """Return the time of the simulation."""
        return self.advanced


class Exchanger:
    """The filter, with some flags."""

    def __init__(self, flags: Sequence[str], server: DNSServer) -> None:
        common = common_options(Greylist.outcomes(), Greylist.on_error, Greylist.deadline)
        words = [*flags, "--store=memory:", "--timeout=50", "--deadline=200"]
        own, general = parse_flags(Greylist.Options, words, common=common, prog="simulation")
        made: Any = own
        self._pool = Pool(nameserver=((server.address, server.port),))
        self._filter, _, _ = set_up(Timed(made), Log(), general, self._pool)
        self._sessions = count(1)
        self._fields = [*("tx", "username", "identity", "method", "refused_recipients")]

    async def accepts(self, now: float, mail: Mail, place: int) -> bool:
        """Return whether a message is accepted from one of its source's addresses."""
        greylist: Any = self._filter
        greylist.advanced = now
        address, name = mail.source.addresses[place]
        session = Session(b"%016x" % next(self._sessions)).expect(self._fields)
        confirmed = b"pass" if name and mail.source.confirmed else b"fail"
        ends = (f"{address}:25".encode(), b"198.51.100.25:25")
        session.apply("link-connect", (name.encode() or b"<unknown>", confirmed, *ends))
        session.apply("link-identify", (b"EHLO", (name or "localhost").encode()))
        session.apply("tx-begin", (b"1ef1c203",))
        session.apply("tx-mail", (b"1ef1c203", b"ok", mail.sender.encode()))
        return isinstance(await greylist.rcpt_to(session, mail.recipient), Proceed)

    async def close(self) -> None:
        """Release what the filter holds."""
        await self._pool.aclose()


async def lived(week: Week, flags: Sequence[str], server: DNSServer, seed: int) -> list[Mail]:
    """Return the mail of a week with what has become of it."""
    dice = random.Random(seed)  # noqa: S311  # no secret
    exchanger = Exchanger(flags, server)
    mails = [Mail(each.source, each.sender, each.recipient, each.first) for each in week.mails]
    order = count()
    due = [(mail.first, next(order), mail, iter(mail.source.retries)) for mail in mails]
    heapq.heapify(due)
    while due:
        now, _, mail, retries = heapq.heappop(due)
        if await exchanger.accepts(now, mail, dice.randrange(len(mail.source.addresses))):
            mail.accepted = now - mail.first
        elif (wait := next(retries, None)) is not None:
            later = now + wait * dice.uniform(0.9, 1.2)
            heapq.heappush(due, (later, next(order), mail, retries))
    await exchanger.close()
    return mails


def minutes(seconds: float) -> str:
    """Return a time in minutes or hours."""
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def figures(mails: Sequence[Mail]) -> dict[str, str]:
    """Return the rows of a variant."""
    rows = {}
    for kind in HONEST:
        of = [mail for mail in mails if mail.source.kind == kind]
        delays = [mail.accepted for mail in of if mail.accepted]
        lost = sum(mail.accepted is None for mail in of)
        said = f"{100 * len(delays) / len(of):.0f} %"
        if len(delays) > 1:
            said += f"; {minutes(median(delays))}, {minutes(quantiles(delays, n=20)[-1])}"
        rows[kind] = said + (f"; {lost} lost" if lost else "")
    for kind in SPAM:
        of = [mail for mail in mails if mail.source.kind == kind]
        rows[kind] = f"{100 * sum(mail.accepted is None for mail in of) / len(of):.0f} %"
    return rows


def table(seed: int = SEED) -> str:
    """Return the table of the documentation."""
    week = Week(seed)
    with DNSServer(week.zone) as server:
        columns = [
            figures(asyncio.run(lived(week, flags, server, seed))) for flags in VARIANTS.values()
        ]
    lines = [f"| | {' | '.join(VARIANTS)} |", f"| --- |{' --- |' * len(VARIANTS)}"]
    for kind in (*HONEST, *SPAM):
        number = sum(mail.source.kind == kind for mail in week.mails)
        what = "delayed" if kind in HONEST else "kept out"
        cells = " | ".join(column[kind] for column in columns)
        lines.append(f"| {LABELS[kind]} ({number}): {what} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
