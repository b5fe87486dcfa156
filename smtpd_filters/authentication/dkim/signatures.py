"""Verification of DKIM signatures (RFC 6376), without I/O.

`Signatures` reads the header block and names the keys and the hashes of the body that it needs;
`results` verifies with them, in steps. `driver` is the loop around it, which looks up and hashes.

Invariants
----------
*Bounded*: `LIMIT` signatures are verified, those of the author's domain first. All that a sender
controls has a limit: `signed_fields.MAX_BLOCK`, `field.MAX_FIELD` and `MAX_NAMES`, those of
`keys`. Beyond one, a signature is not verified and never passes.
*A result for each*: no signature raises, and none affects the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from .field import SHOWN, SignatureTags, check_tags, read_tags, shown
from .keys import Checked, check_signature, price
from .tags import Problem

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from smtpd_filters.lookups.outcome import Outcome

    from .canonical import BodyHashes
    from .signed_fields import SignedFields

#: Signatures of a message that are verified; those that are considered, the topmost.
LIMIT: Final = 8
CONSIDERED: Final = 50
#: The reason of a temperror for what is not there in time.
LATE: Final = "not done in time"


@dataclass(frozen=True, slots=True)
class Signature:
    """The result for one signature, in the words of RFC 8601 section 2.7.1.

    `result` is pass, fail, policy, neutral, temperror or permerror; `reason` explains all but pass.
    The other texts are from the signature, and may be empty if it is invalid: its domain in
    canonical form, its selector, identity and algorithm, and the first characters of b= (RFC 6008).
    They have no controls; quote them. `bits` is the size of the key if it was used, and `testing`
    whether its record has the flag y, which does not change the result. `tags` are those of a
    signature that is valid apart from its key and hashes.
    """

    result: str
    domain: str = ""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    reason: str = ""
    b: str = ""
    bits: int = 0
    testing: bool = False
    tags: SignatureTags | None = field(default=None, compare=False, repr=False)


class _Candidate(NamedTuple):
    """A signature that is valid apart from its key and hashes; `b` is the beginning of its b=."""

    field: bytes
    tags: SignatureTags
    b: str

    @property
    def domain(self) -> str:
        return self.tags.domain


class Signatures:
    """The signatures of one message that are verified; `left_out` is the number of others.

    `authors` are the domains of the author, in canonical form. `now` is the time in seconds since
    the epoch.
    """

    def __init__(
        self,
        fields: SignedFields,
        now: float,
        *,
        authors: Iterable[str] = (),
        limit: int = LIMIT,
    ) -> None:
        self._fields = fields
        found, count = fields.topmost("DKIM-Signature", CONSIDERED)
        candidates = [_read(field, now, fields) for field in found]
        if count > 1:
            wanted = tuple(authors)
            candidates.sort(key=lambda each: _distance(each.domain, wanted))
        self._candidates = candidates[:limit]
        fields.find(name for each in self._candidates if each.tags for name in each.tags.names)
        self.left_out = count - len(self._candidates)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._candidates)

    @property
    def names(self) -> tuple[str, ...]:
        """The names whose TXT records are needed."""
        return tuple(dict.fromkeys(each.tags.key_name for each in self._candidates if each.tags))

    @property
    def bodies(self) -> list[tuple[str, int | None]]:
        """The hashes of the body that are needed, for `BodyHashes`."""
        return [(each.tags.body_form, each.tags.length) for each in self._candidates if each.tags]

    def results(
        self, bodies: BodyHashes | None, keys: Mapping[str, Outcome[bytes]]
    ) -> Generator[int, None, tuple[Signature, ...]]:
        """Return the results, those of the author's domain first.

        Yield the price of each verification (`runtime.pace`) before it. `bodies` is None if the
        body could not be hashed in time.
        """
        found = []
        for each in self._candidates:
            if each.tags:
                yield price()
            found.append(self._result(each, bodies, keys))
        return tuple(found)

    def _result(
        self,
        candidate: _Candidate | Signature,
        bodies: BodyHashes | None,
        keys: Mapping[str, Outcome[bytes]],
    ) -> Signature:
        if isinstance(candidate, Signature):
            return candidate
        field, tags, b = candidate
        checked = check(field, tags, self._fields, bodies, keys)
        return Signature(
            checked.result,
            tags.domain,
            tags.selector,
            tags.identity,
            tags.algorithm,
            checked.reason,
            b,
            checked.bits,
            checked.testing,
            tags,
        )


def _read(field: bytes, now: float, fields: SignedFields) -> _Candidate | Signature:
    """Return a signature to check, or the result of an invalid one."""
    if fields.too_long:
        return Signature("permerror", reason="header too long")
    tags: dict[str, bytes] = {}
    try:
        tags = read_tags(field)
        checked = check_tags(tags, now)
    except Problem as problem:
        return Signature(
            problem.result,
            domain=shown(tags, "d").lower(),
            selector=shown(tags, "s"),
            identity=shown(tags, "i"),
            algorithm=shown(tags, "a").lower(),
            reason=str(problem),
            b=shown(tags, "b")[:SHOWN],
        )
    b = tags["b"][:SHOWN]
    shown_b = b.decode("ascii") if b.isalnum() else shown(tags, "b")[:SHOWN]
    return _Candidate(field, checked, shown_b)


def _distance(domain: str, authors: tuple[str, ...]) -> int:
    """Return how far a signature's domain is from the authors', for the order of verification."""
    if domain in authors:
        return 0
    if any(author.endswith(f".{domain}") or domain.endswith(f".{author}") for author in authors):
        return 1
    return 2


def check(
    field: bytes,
    tags: SignatureTags,
    fields: SignedFields,
    bodies: BodyHashes | None,
    keys: Mapping[str, Outcome[bytes]],
) -> Checked:
    """Check one signature: its key, its hash of the body, and its hash of the header."""
    digest = fields.digest(tags.names, tags.header_form, field)
    checked = check_signature(
        keys.get(tags.key_name), tags.algorithm, digest, tags.signature, subdomain=tags.subdomain
    )
    if checked.result in {"permerror", "policy", "neutral"}:
        return checked
    if bodies is None:
        # A signature that doesn't match fails whatever the body is.
        is_fact = checked.result == "fail"
        return checked if is_fact else replace(checked, result="temperror", reason=LATE)
    body = bodies[tags.body_form]
    found = body.digest(tags.length)
    if found is None:
        return replace(checked, result="fail", reason="body shorter than l=")
    if found != tags.body_hash:
        return replace(checked, result="fail", reason="body hash mismatch")
    reason = ""
    if checked.result == "pass":
        if tags.length is not None and tags.length < body.size:
            reason = "part of the body is not signed"  # RFC 6376 section 8.2
        elif name := fields.added(tags.names):
            # RFC 6376 section 8.15: programs may show the one that isn't signed.
            reason = f"a second {name.decode().title()} is not signed"
    return replace(checked, result="policy", reason=reason) if reason else checked
