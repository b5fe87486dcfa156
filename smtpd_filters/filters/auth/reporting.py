"""The record of results for aggregate reports of DMARC, in a store.

Each message is counted in the row of its day, its policy and its results. `smtpd-filters dmarc`
makes reports of the rows.

Invariants
----------
*Nobody waits*: a message is counted after its decision, in a task of its own. If more than
`MAX_PENDING` are waiting, or the store fails, a message is not counted, which is logged.
*Bounded*: a row takes at most some KiB, and the store has a bound of its own.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from hashlib import sha256
from heapq import nsmallest
from itertools import islice
from time import time
from typing import TYPE_CHECKING, NamedTuple

from smtpd_filters.authentication.dmarc.reports import is_domain
from smtpd_filters.authentication.dmarc.reports.document import MAX_ROWS
from smtpd_filters.authentication.dmarc.reports.rows import MAX_NAME, Published, Row, cut
from smtpd_filters.checks.exemptions import known_address
from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import Add, Count, Delete, Get, Put, Store, join, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.authentication import dmarc
    from smtpd_filters.runtime.log import FilterLog
    from smtpd_filters.session import Session

    from .evidence import Evidence
    from .judgement import Judgement

#: Seconds for which a day's rows are kept: time enough to mend a report that could not be sent.
KEPT = 8 * 86400.0
#: Seconds after which a claim ends: longer than it takes to submit a mail.
LEASE = 600.0
#: Bytes of the rows of a report in the store: a sender can make rows of some KiB each, which don't
#: compress, and mail has limits.
MAX_SIZE = 16 << 20
#: Messages that wait to be counted.
MAX_PENDING = 1000
#: Seconds for which the end of the process waits for them.
LAST = 2.0

#: The reason of a temporary error.
FAILED = "a look-up failed"

_SPACE = "dmarc-report"
_POLICY, _ROW, _COUNT = b"policy", b"row", b"count"
_CLAIMED, _SENT = b"claimed", b"sent"
#: Rows that are read at a time.
_AT_ONCE = 64
_DISPOSITIONS = {"junk": "quarantine", "reject": "reject"}


def rows_of(
    session: Session, evidence: Evidence, judgement: Judgement, *, dry: bool
) -> Iterator[tuple[Published, Row]]:
    """Yield the policies that request reports on a message, each with the message's row.

    With `dry` nothing was done to the message.
    """
    source = known_address(session)
    if source is None:
        return
    sender = "" if evidence.null else (session.tx and session.tx.sender) or ""
    for verdict in evidence.verdicts:
        policy = verdict.policy
        record = policy.record
        if record is None or not record.rua or policy.domain in evidence.authors.readings:
            continue
        if not is_domain(policy.source):
            continue
        disposition, reasons = _evaluated(verdict, judgement, dry=dry)
        aligned = {each.method for each in verdict.aligned}
        yield (
            Published(
                policy.source,
                p=record.p,
                sp=record.sp,
                np=record.np,
                adkim="s" if record.strict_dkim else "r",
                aspf="s" if record.strict_spf else "r",
                testing="y" if record.testing else "n",
                fo=cut(record.fo, 20),
                rua=record.rua,
            ),
            Row(
                source=source,
                header_from=cut(policy.domain, MAX_NAME),
                envelope_from=cut(sender.rpartition("@")[2].lower(), MAX_NAME),
                disposition=disposition,
                dkim="dkim" in aligned,
                spf="spf" in aligned,
                reasons=tuple(reasons),
                signatures=tuple(_signatures(evidence, verdict)),
                sender=_sender(evidence),
            ),
        )


def _evaluated(
    verdict: dmarc.Verdict, judgement: Judgement, *, dry: bool
) -> tuple[str, list[tuple[str, str]]]:
    """Return what was done because of a verdict, and why that is not the owner's policy."""
    policy = verdict.policy
    if verdict.result == "pass":
        return "none" if policy.requested == "none" else "pass", []
    action = "log" if dry else judgement.taken.get(policy.domain, "log")
    disposition = _DISPOSITIONS.get(action, "none")
    if verdict.result != "fail":
        return disposition, [("other", FAILED)]
    reasons = []
    if policy.applied != policy.requested:
        reasons.append(("policy_test_mode", ""))
    if policy.domain in judgement.overridden:
        reasons.append(("trusted_forwarder", "ARC"))
    elif disposition != policy.applied:
        reasons.append(("local_policy", ""))
    return disposition, reasons


def _signatures(evidence: Evidence, verdict: dmarc.Verdict) -> Iterator[tuple[str, str, str, str]]:
    """Yield the signatures, in RFC 9990's order of preference (section 3.1.3)."""
    aligned = {each.domain for each in verdict.aligned if each.method == "dkim"}
    domain = verdict.policy.domain
    for each in sorted(
        evidence.verified.signatures,
        key=lambda each: (
            each.result != "pass",
            each.domain != domain,
            each.domain not in aligned,
        ),
    ):
        if each.domain:
            names = cut(each.domain, MAX_NAME), cut(each.selector, MAX_NAME)
            yield (*names, each.result, _reason(each.result, each.reason))


def _sender(evidence: Evidence) -> tuple[str, ...]:
    verdict = evidence.mail
    if verdict is None:
        return ()
    reason = _reason(verdict.result, verdict.problem)
    return cut(verdict.domain, MAX_NAME), verdict.result, reason


def _reason(result: str, reason: str) -> str:
    """Return the reason of a result for others: not the address of our name server."""
    return FAILED if result == "temperror" else cut(reason)


class Reporter:
    """The record of results, in a store.

    `max_pending` is the number of results that may wait for the store, and `last` the seconds that
    they have at the end.
    """

    def __init__(
        self, log: FilterLog, *, max_pending: int = MAX_PENDING, last: float = LAST
    ) -> None:
        self._log = log
        self._max_pending, self._last = max_pending, last
        self._pending: set[asyncio.Task[None]] = set()

    def note(self, store: Store, published: Published, row: Row) -> None:
        """Count a message; return at once."""
        if len(self._pending) >= self._max_pending:
            self.failed("too many results wait for the store")
            return
        task = asyncio.get_running_loop().create_task(
            self._count(store, published, row), name="count a result"
        )
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _count(self, store: Store, published: Published, row: Row) -> None:
        try:
            await count(store, day_of(time()), published, row)
        except UnavailableError as error:
            self.failed(str(error))

    def failed(self, cause: str) -> None:
        """Log, at intervals, that a message is not counted."""
        self._log.limited("report", "report", error=f"a result is not reported: {cause}")

    async def aclose(self) -> None:
        """Wait, for some seconds, until everything is counted."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=self._last)
        for task in self._pending:
            task.cancel()


def day_of(now: float) -> str:
    """Return the day, in UTC, of a time in seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


async def count(store: Store, day: str, published: Published, row: Row) -> None:
    """Count a message. Raises UnavailableError."""
    shard = f"{day}/{published.domain}".encode("utf-8", "surrogateescape")
    stored = row.stored()
    digest = sha256(stored).digest()[:16]
    await store.ask(
        Put(join(_SPACE, shard, _POLICY), published.stored(), KEPT),
        Add(join(_SPACE, shard, _ROW, digest), stored, KEPT),
        Count(join(_SPACE, shard, _COUNT, digest), KEPT),
    )


class Results(NamedTuple):
    """The results of a day for the policy of a domain, whose rows `most_frequent` reads.

    `counts` has the number of messages of each row, by the row's digest.
    """

    published: Published
    shard: bytes
    counts: dict[bytes, int]


async def results_on(store: Store, day: str) -> dict[str, Results]:
    """Return the results of a day, by the domains of their policies.

    What another version has stored is left out. Raises UnavailableError.
    """
    policies: dict[bytes, Published] = {}
    counts: dict[bytes, dict[bytes, int]] = {}
    async for key, entry in store.scan(f"{_SPACE}:{{{day}/".encode()):
        shard, *parts = split(key)
        try:
            match parts:
                case [kind] if kind == _POLICY:
                    policies[shard] = Published.restored(entry.value)
                case [kind, digest] if kind == _ROW:
                    counts.setdefault(shard, {}).setdefault(digest, 1)
                case [kind, digest] if kind == _COUNT:
                    counts.setdefault(shard, {})[digest] = int(entry.value)
        except ValueError:
            store.damaged(key)
    return {
        published.domain: Results(published, shard, counts[shard])
        for shard, published in sorted(policies.items())
        if shard in counts and is_domain(published.domain)
    }


async def most_frequent(
    store: Store, results: Results, *, max_rows: int = MAX_ROWS, max_size: int = MAX_SIZE
) -> list[tuple[Row, int]]:
    """Return the rows of results with their counts, the most frequent ones first.

    They are at most `max_rows`, and take at most `max_size` bytes in the store. Raises
    UnavailableError.
    """
    found: list[tuple[Row, int]] = []
    left = max_size
    chosen = iter(nsmallest(max_rows, results.counts.items(), key=lambda each: (-each[1], each[0])))
    while some := [*islice(chosen, _AT_ONCE)]:
        keys = [join(_SPACE, results.shard, _ROW, digest) for digest, _ in some]
        entries = await asyncio.gather(*(store.ask(Get(key)) for key in keys))
        for key, entry, (_, number) in zip(keys, entries, some, strict=True):
            if entry is None:
                continue
            left -= len(entry.value)
            if left < 0:
                return found
            try:
                found.append((Row.restored(entry.value), number))
            except ValueError:
                store.damaged(key)
    return found


async def claim(store: Store, day: str, domain: str, address: str, lease: float = LEASE) -> str:
    """Claim the sending of a report to an address; return "", or who has it.

    "sent" means that it has been sent, "claimed" that another process sends it. A claim expires
    after `lease` seconds: its process may have been killed. Raises UnavailableError.
    """
    earlier = await store.ask(Add(_sent_key(day, domain, address), _CLAIMED, lease))
    if earlier is None:
        return ""
    return "claimed" if earlier.value == _CLAIMED else "sent"


async def end_claim(store: Store, day: str, domain: str, address: str, *, sent: bool) -> None:
    """End a claim: note that the report was sent, or let others send it.

    Raises UnavailableError.
    """
    key = _sent_key(day, domain, address)
    await store.ask(Put(key, _SENT, KEPT) if sent else Delete(key))


def _sent_key(day: str, domain: str, address: str) -> bytes:
    return join(_SPACE, f"sent/{day}/{domain}".encode("utf-8", "surrogateescape"), address.encode())
