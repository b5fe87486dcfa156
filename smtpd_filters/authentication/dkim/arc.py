"""Validation of ARC chains (RFC 8617 section 5.2), without I/O.

A chain is a series of sets, one for each server that sealed the message: the results that it saw
(ARC-Authentication-Results), a signature of the message (ARC-Message-Signature), and a seal of all
sets up to its own (ARC-Seal). `Chain` has the same form as `signatures.Signatures`.

Invariants
----------
*All or nothing*: a chain passes if its structure is complete, the newest signature of the message
is valid, and every seal is. Any other chain is fail, whatever the cause: RFC 8617 knows no
temporary errors; `ArcResult.temporary` tells.
*Linear*: the sets below a seal are hashed once, and the seals fork that hash.
*Bounded*: of the older message signatures the newest `MAX_OLDER` are verified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from .canonical import RELAXED
from .field import (
    MAX_FIELD,
    SignatureTags,
    algorithm_of,
    binary,
    check_tags,
    domain_of,
    read_tags,
    require,
    selector_of,
)
from .keys import check_signature, price
from .signatures import check
from .signed_fields import without_value
from .tags import Problem

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from smtpd_filters.lookups.outcome import Outcome

    from .canonical import BodyHashes
    from .keys import Checked
    from .signed_fields import SignedFields

# RFC 8617 section 4.2.1: "the maximum number of ARC Sets ... is 50".
MAX_SETS: Final = 50
MAX_OLDER: Final = 8
KINDS: Final = ("ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal")
_INSTANCE = re.compile(rb"[0-9]{1,2}")
#: The beginning of an AAR (RFC 8617 section 4.1.1).
_RESULTS_INSTANCE = re.compile(rb"[ \t]*i[ \t]*=[ \t]*([0-9]{1,2})[ \t]*;")


@dataclass(frozen=True, slots=True)
class ArcSet:
    """One set of a chain: the domain and selector of its seal, and its results without `i=`.

    `results` is the text after `i=N;`, unfolded, from outside; bytes that aren't UTF-8 are
    surrogate escapes. It may be trusted as far as the chain passes and its sealer is trusted.
    """

    instance: int
    domain: str
    selector: str
    results: str


@dataclass(frozen=True, slots=True)
class ArcResult:
    """The result for a chain, none, pass or fail; `reason` explains fail.

    `sets` are the sets, the oldest first; empty unless the structure of the chain is complete.
    `oldest` is the instance of the oldest message signature that is known to be valid together with
    all newer ones, 0 if all are (RFC 8617 section 5.2, step 5); None unless the chain passes.
    `temporary` is set if nothing is wrong but that a key could not be looked up, or that there was
    no time to hash the body, so that a later check may differ.
    """

    result: str
    reason: str = ""
    sets: tuple[ArcSet, ...] = ()
    temporary: bool = False
    oldest: int | None = None


#: The result of a message without a chain.
NO_CHAIN: Final = ArcResult("none")


@dataclass(frozen=True, slots=True)
class _Seal:
    """The tags of a seal, checked."""

    algorithm: str
    domain: str
    selector: str
    signature: bytes
    cv: str

    @property
    def key_name(self) -> str:
        return f"{self.selector}._domainkey.{self.domain}"


@dataclass(frozen=True, slots=True)
class SetFields:
    """The three fields of an instance."""

    results: bytes
    message: bytes
    seal: bytes

    def __iter__(self) -> Iterator[bytes]:
        return iter((self.results, self.message, self.seal))


class Chain:
    """The chain of one message. `now` is the time in seconds since the epoch."""

    def __init__(self, fields: SignedFields, now: float) -> None:
        self._fields = fields
        self._sets: list[SetFields] = []
        self._seals: list[_Seal] = []
        self._message: SignatureTags | None = None
        #: Older message signatures, the newest first, with their fields.
        self._older: list[tuple[bytes, SignatureTags]] = []
        #: The result, as soon as it is known.
        self._known: ArcResult | None = None
        if not has_sets(fields):
            self._known = NO_CHAIN
            return
        try:
            self._sets = complete_sets(fields)
            self._seals = _seals(self._sets)
            self._message = check_tags(read_tags(self._sets[-1].message), now, arc=True)
        except Problem as problem:
            self._known = ArcResult("fail", str(problem))
            return
        for each in self._sets[-2 : -2 - MAX_OLDER : -1]:
            try:
                tags = check_tags(read_tags(each.message), now, arc=True)
            except Problem:
                break
            self._older.append((each.message, tags))
        signatures = (self._message, *(tags for _, tags in self._older))
        fields.find({name for tags in signatures for name in tags.names})

    @property
    def names(self) -> tuple[str, ...]:
        """The names whose TXT records are needed."""
        if self._known or self._message is None:
            return ()
        seals = (seal.key_name for seal in self._seals)
        older = (tags.key_name for _, tags in self._older)
        return tuple(dict.fromkeys((self._message.key_name, *seals, *older)))

    @property
    def bodies(self) -> list[tuple[str, int | None]]:
        """The hashes of the body that are needed, for `BodyHashes`."""
        if self._known or self._message is None:
            return []
        every = [self._message, *(tags for _, tags in self._older)]
        return [(tags.body_form, tags.length) for tags in every]

    def result(
        self, bodies: BodyHashes | None, keys: Mapping[str, Outcome[bytes]]
    ) -> Generator[int, None, ArcResult]:
        """Return the result. Yield the price of each verification (`runtime.pace`) before it.

        `bodies` is None if the body could not be hashed in time.
        """
        if self._known or self._message is None:
            return self._known or NO_CHAIN
        sets = tuple(
            ArcSet(number, seal.domain, seal.selector, _text(each.results))
            for number, (each, seal) in enumerate(zip(self._sets, self._seals, strict=True), 1)
        )
        yield price()
        checks = [check(self._sets[-1].message, self._message, self._fields, bodies, keys)]
        checks += yield from self._check_seals(keys)
        wrong = [number for number, each in enumerate(checks) if each.result != "pass"]
        if wrong:
            # What is wrong for certain comes first.
            number = min(wrong, key=lambda each: checks[each].result == "temperror")
            what = f"seal {len(self._seals) - number + 1}" if number else "message signature"
            temporary = checks[number].result == "temperror"
            return ArcResult("fail", f"{what}: {checks[number].reason}", sets, temporary)
        oldest = yield from self._oldest(bodies, keys)
        return ArcResult("pass", "", sets, oldest=oldest)

    def _oldest(
        self, bodies: BodyHashes | None, keys: Mapping[str, Outcome[bytes]]
    ) -> Generator[int, None, int]:
        """Return the oldest instance from which on all message signatures are valid; 0 for all."""
        instance = len(self._sets)
        for field, tags in self._older:
            yield price()
            if check(field, tags, self._fields, bodies, keys).result != "pass":
                break
            instance -= 1
        return 0 if instance == 1 else instance

    def _check_seals(
        self, keys: Mapping[str, Outcome[bytes]]
    ) -> Generator[int, None, list[Checked]]:
        """Check the seals, and return the results from the newest to the oldest."""
        found = []
        below = sha256()
        for each, seal in zip(self._sets, self._seals, strict=True):
            below.update(self._fields.canonical(each.results, RELAXED))
            below.update(self._fields.canonical(each.message, RELAXED))
            yield price()
            digest = below.copy()
            digest.update(without_value(each.seal, RELAXED))
            found.append(
                check_signature(
                    keys.get(seal.key_name), seal.algorithm, digest.digest(), seal.signature
                )
            )
            below.update(self._fields.canonical(each.seal, RELAXED))
        return found[::-1]


def _problem(reason: str) -> Problem:
    return Problem("fail", reason)


def has_sets(fields: SignedFields) -> bool:
    """Return whether a message has any field of a chain."""
    return any(fields.topmost(kind, MAX_SETS)[1] for kind in KINDS)


def complete_sets(fields: SignedFields) -> list[SetFields]:
    """Return the sets of a complete chain, the oldest first. Raises Problem.

    RFC 8617 section 5.2, step 3: each instance has each field once, without gaps.
    """
    if fields.too_long:
        raise _problem("header too long")
    numbered: list[dict[int, bytes]] = []
    for kind in KINDS:
        found, count = fields.topmost(kind, MAX_SETS)
        if count > MAX_SETS:
            raise _problem(f"more than {MAX_SETS} sets")
        by_instance = {_instance(kind, field): field for field in found}
        if len(by_instance) < len(found):
            raise _problem("an instance twice")
        numbered.append(by_instance)
    results, messages, seals = numbered
    instances = range(1, len(seals) + 1)
    if not set(results) == set(messages) == set(seals) == set(instances):
        raise _problem("incomplete sets")
    return [SetFields(results[each], messages[each], seals[each]) for each in instances]


def _instance(kind: str, field: bytes) -> int:
    if kind == KINDS[0]:
        match = _RESULTS_INSTANCE.match(_value(field))
        value = match[1] if match else b""
    else:
        value = read_tags(field).get("i", b"")
    if not _INSTANCE.fullmatch(value) or not 1 <= int(value) <= MAX_SETS:
        raise _problem("invalid instance")
    return int(value)


def _value(field: bytes) -> bytes:
    return field.replace(b"\n", b"").partition(b":")[2]


def _text(field: bytes) -> str:
    value = _value(field)[:MAX_FIELD].partition(b";")[2]
    return value.strip(b" \t").decode("utf-8", "surrogateescape")


def _seals(sets: list[SetFields]) -> list[_Seal]:
    """Return the seals of a chain, checked. Raises Problem."""
    seals = []
    for number, each in enumerate(sets, 1):
        seal = _seal(each.seal)
        # RFC 8617 section 5.2, step 3; step 2 for a chain that was marked as failed.
        if seal.cv != ("none" if number == 1 else "pass"):
            failed = seal.cv == "fail"
            raise _problem("sealed as failed" if failed else f"cv= of instance {number}")
        seals.append(seal)
    return seals


def _seal(field: bytes) -> _Seal:
    tags = read_tags(field)
    require(tags, ("a", "b", "cv", "d", "i", "s"))
    # RFC 8617 section 4.1.3: a seal has no h=, and no bh=.
    if "h" in tags or "bh" in tags:
        raise _problem("seal with h= or bh=")
    return _Seal(
        algorithm=algorithm_of(tags),
        domain=domain_of(tags["d"]),
        selector=selector_of(tags["s"]),
        signature=binary(tags["b"], "b"),
        cv=tags["cv"].decode("latin-1").lower(),
    )
