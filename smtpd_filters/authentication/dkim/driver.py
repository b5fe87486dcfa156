"""The driver of the verification of DKIM and ARC: look-ups of keys, and the hashes of the body.

Invariants
----------
*Side by side*: the keys of all signatures are looked up at the same time, while the body is hashed.
*In steps*: a body is hashed block by block and signatures are verified one by one within the budget
of the event loop, so that other sessions are served in between.
*Each on its own*: what is not there in time makes those signatures temperror that need it, and no
others. A slow key of one domain says nothing about the signature of another.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Final

from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.runtime.pace import pace, paced

from .arc import NO_CHAIN, Chain
from .canonical import BodyHashes
from .signatures import LATE, LIMIT, Signatures
from .signed_fields import SignedFields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from smtpd_filters.lookups.dns.resolver import Resolver
    from smtpd_filters.lookups.outcome import Outcome
    from smtpd_filters.message import Message

    from .arc import ArcResult
    from .signatures import Signature

#: Bytes of a body that are hashed at a time, and their price (`runtime.pace`): a microsecond is
#: enough for 64 bytes of a body made to be slow, and for ten times as many of any other.
BLOCK: Final = 1 << 16
PRICE: Final = 1000


@dataclass(frozen=True, slots=True)
class Verified:
    """The results for one message: its DKIM signatures, and its chain of ARC sets.

    `left_out` is the number of signatures beyond the limit, which were not verified.
    """

    signatures: tuple[Signature, ...]
    left_out: int
    arc: ArcResult


async def verify(  # noqa: PLR0913  # options, given by name
    message: Message,
    dns: Resolver,
    *,
    authors: Iterable[str] = (),
    limit: int = LIMIT,
    arc: bool = True,
    clock: Callable[[], float] = time,
    seconds: float | None = None,
) -> Verified:
    """Verify the signatures of a message, and with `arc` its chain.

    `authors` are the domains in From, in canonical form: their signatures are verified first.
    `seconds` is how long the look-ups and the hash of the body may take, None without a limit.
    Raises SpoolError if the message can't be read.
    """
    fields = SignedFields(message.headers)
    now = clock()
    signatures = Signatures(fields, now, authors=authors, limit=limit)
    chain = Chain(fields, now) if arc else None
    names = list(dict.fromkeys((*signatures.names, *(chain.names if chain else ()))))
    for name in names:
        dns.start(name, "TXT")
    bodies = BodyHashes((*signatures.bodies, *(chain.bodies if chain else ())))
    hashed: BodyHashes | None = None
    keys: dict[str, Outcome[bytes]] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            if bodies:
                await _hash(message.body(BLOCK), bodies)
            hashed = bodies
            for name in names:
                (keys[name],) = await dns.query_all([(name, "TXT")])
    for name in names:
        if name not in keys:
            keys[name] = dns.known(name, "TXT") or Unavailable(LATE)
    return Verified(
        await paced(signatures.results(hashed, keys)),
        signatures.left_out,
        await paced(chain.result(hashed, keys)) if chain else NO_CHAIN,
    )


async def _hash(blocks: Iterator[bytes], bodies: BodyHashes) -> None:
    first = True
    for block in blocks:
        if not first:
            await pace().admit(PRICE)
        first = False
        bodies.update(block)
    bodies.finish()
