"""Public keys of DKIM and ARC: records in the DNS, and the verification of a signature's hash.

Invariants
----------
*Bounded*: a record has at most `MAX_RECORD` bytes, an RSA key at most `MAX_BITS` bits and an
exponent of `MAX_EXPONENT` bits, so that a verification takes less than a millisecond with
`cryptography`, and 3 ms without it.
*Problem only*: for no record do these functions raise anything else.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from smtpd_filters.lookups.outcome import Found, Unavailable

from .arithmetic import KeyNumbersError, MissingError, arithmetic
from .der import DERError, rsa_public
from .tags import Problem, TagError, base64_value, parse_tags

if TYPE_CHECKING:
    from smtpd_filters.lookups.outcome import Outcome

    from .arithmetic import Verify

#: Bytes of a record. A key of 4,096 bits takes 750.
MAX_RECORD: Final = 4096
# RFC 8301 section 3.2: verifiers "MUST NOT consider signatures using RSA keys of less than 1024
# bits as valid signatures", and MUST support 1024 to 4096.
MIN_BITS: Final = 1024
MAX_BITS: Final = 4096
#: Almost all keys have 65537. A long exponent makes a verification as slow as a signature.
MAX_EXPONENT: Final = 64
#: Records at the name of a key that are tried (RFC 6376 section 6.1.2).
RECORDS: Final = 4
#: The prices of a verification (`runtime.pace`), with `cryptography` and without it.
FAST: Final = 400
SLOW: Final = 2500
#: Keys that are kept, parsed, by the text of their record.
_KEPT = 512

RSA: Final = "rsa"
ED25519: Final = "ed25519"


class PublicKey(Protocol):
    """A public key; `bits` is its size."""

    bits: int

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Return whether this is the signature of a SHA-256 digest."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key record (RFC 6376 section 3.6.1); `hashes` and `services` are empty for all.

    `testing` and `strict` are the flags y and s: the domain tests DKIM; the domain in i= must be
    that in d=.
    """

    kind: str
    data: bytes
    hashes: frozenset[str]
    services: frozenset[str]
    testing: bool
    strict: bool

    def key(self) -> PublicKey:
        """Return the key. Raises Problem if it can't be used."""
        return _key(self.kind, self.data)

    def check(self, algorithm: str, *, subdomain: bool) -> None:
        """Raise Problem if the record isn't for signatures of mail by this algorithm.

        `subdomain` states that the identity is in a subdomain of the signature's domain.
        """
        if not self.data:
            raise Problem("permerror", "key revoked")
        kind, _, hash_name = algorithm.partition("-")
        if self.kind != kind:
            raise Problem("permerror", "key of another type")
        if self.hashes and hash_name not in self.hashes:
            raise Problem("permerror", "key not for this hash")
        if self.services and not self.services & {"*", "email"}:
            raise Problem("permerror", "key not for mail")
        if subdomain and self.strict:
            raise Problem("permerror", "key not for subdomains")


def parse_record(text: bytes) -> KeyRecord:
    """Parse a TXT record. Raises Problem if it isn't a key record."""
    if len(text) > MAX_RECORD:
        raise Problem("permerror", "key record too long")
    return _record(text)


@lru_cache(maxsize=_KEPT)
def _record(text: bytes) -> KeyRecord:
    try:
        tags = parse_tags(text)
        # RFC 6376 section 3.6.1: v= "MUST be the first tag in the record" and DKIM1.
        if "v" in tags and (tags["v"] != b"DKIM1" or next(iter(tags)) != "v"):
            raise Problem("permerror", "key record of another version")
        if "p" not in tags:
            raise Problem("permerror", "no key in the record")
        data = base64_value(tags["p"]) if tags["p"] else b""
    except (TagError, binascii.Error):
        raise Problem("permerror", "invalid key record") from None
    flags = _list(tags.get("t", b""))
    return KeyRecord(
        kind=tags.get("k", b"rsa").decode("latin-1").lower(),
        data=data,
        hashes=_list(tags.get("h", b"")),
        services=_list(tags.get("s", b"")),
        testing="y" in flags,
        strict="s" in flags,
    )


def _list(value: bytes) -> frozenset[str]:
    """Return the items of a list separated by colons, in lower case."""
    items = (item.strip().lower() for item in value.decode("latin-1").split(":"))
    return frozenset(item for item in items if item)


# -- keys --------------------------------------------------------------------------------------


class _Key:
    """A key of either type; see `PublicKey`."""

    def __init__(self, bits: int, size: int, verify: Verify) -> None:
        self.bits = bits
        self._size = size
        self._verify = verify

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Return whether this is the signature of a SHA-256 digest."""
        return len(signature) == self._size and self._verify(digest, signature)


@lru_cache(maxsize=_KEPT)
def _key(kind: str, data: bytes) -> PublicKey:
    try:
        if kind == RSA:
            modulus, exponent = _rsa_numbers(data)
            verify = arithmetic().rsa_verify(modulus, exponent)
            return _Key(modulus.bit_length(), (modulus.bit_length() + 7) // 8, verify)
        if kind == ED25519 and len(data) == 32:  # RFC 8463 section 4.2: p= is the key itself
            return _Key(256, 64, arithmetic().ed25519_verify(data))
    except (DERError, KeyNumbersError):
        raise _not_valid() from None
    except MissingError as error:
        # RFC 8601 section 2.7.1: neutral if a signature "could not be processed".
        raise Problem("neutral", str(error)) from None
    raise _not_valid() if kind == ED25519 else Problem("permerror", "key of an unknown type")


def _rsa_numbers(data: bytes) -> tuple[int, int]:
    """Return modulus and exponent of a key. Raises DERError, and Problem beyond a limit."""
    n, e = rsa_public(data)
    if not MIN_BITS <= n.bit_length() <= MAX_BITS:
        raise Problem("policy", f"key of {n.bit_length()} bits")
    if not n & 1 or not e & 1 or e < 3 or e.bit_length() > MAX_EXPONENT:
        raise _not_valid()
    return n, e


def _not_valid() -> Problem:
    return Problem("permerror", "invalid key")


def price() -> int:
    """Return the price of a verification with the library of this installation."""
    return FAST if arithmetic().fast else SLOW


# -- signatures --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a signature's hash: pass, or another result of RFC 8601 and its reason.

    `bits` is the size of the key, and `testing` a flag of its record, as far as they are known.
    """

    result: str
    reason: str = ""
    bits: int = 0
    testing: bool = False


#: The results of several records, the most telling first.
_RANKS = ("pass", "fail", "policy", "neutral", "permerror")


def check_signature(
    outcome: Outcome[bytes] | None,
    algorithm: str,
    digest: bytes,
    signature: bytes,
    *,
    subdomain: bool = False,
) -> Checked:
    """Check the signature of a SHA-256 digest with the records at the name of its key.

    If there are several, one that passes suffices. See `KeyRecord.check` for `subdomain`.
    """
    if isinstance(outcome, Unavailable):
        return Checked("temperror", f"key: {outcome.cause}")
    if not isinstance(outcome, Found):
        return Checked("permerror", "no key")
    results = []
    for text in outcome.records[:RECORDS]:
        result = _check_with(text, algorithm, digest, signature, subdomain=subdomain)
        if result.result == "pass":
            return result
        results.append(result)
    if outcome.gap:
        return Checked("temperror", f"key: {outcome.gap}")
    return min(results, key=lambda each: _RANKS.index(each.result))


def _check_with(
    text: bytes, algorithm: str, digest: bytes, signature: bytes, *, subdomain: bool
) -> Checked:
    bits, testing = 0, False
    try:
        record = parse_record(text)
        testing = record.testing
        record.check(algorithm, subdomain=subdomain)
        key = record.key()
        bits = key.bits
        if not key.verify(digest, signature):
            raise Problem("fail", "signature mismatch")  # noqa: TRY301  # handled alike
    except Problem as problem:
        return Checked(problem.result, str(problem), bits, testing)
    return Checked("pass", "", bits, testing)
