"""Sealing of messages with ARC (RFC 8617 section 5.1), without I/O.

A new set has the results that this server has written into Authentication-Results: those of a
filter that ran before, of which `arc=` is the state of the chain so far.

Invariants
----------
*No guess*: without such results, or without `arc=` for a message that has a chain, there is no
seal. Nor is there one if the chain could not be validated for a temporary error: the seal would
make it permanent (RFC 8617 section 5.2.1). A chain that was sealed as failed is left alone.
*The newest set alone*: the seal of a failed chain covers no other set.
*Bounded*: of Authentication-Results the topmost are parsed, which are those of this server.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from smtpd_filters.authentication.results import parse
from smtpd_filters.authentication.results.writer import value_of

from .arc import KINDS, MAX_SETS, complete_sets, has_sets
from .canonical import RELAXED, relaxed_field
from .field import read_tags
from .sign import (
    REMOVED,
    SigningFields,
    Style,
    TooManyFieldsError,
    Unsigned,
    folded,
    raw_field,
)
from .signed_fields import without_value
from .tags import Problem

if TYPE_CHECKING:
    from .arc import SetFields
    from .sign import SigningKey
    from .signed_fields import SignedFields

#: Bytes of Authentication-Results that are parsed, 30 ms at most: twice as many as ours can have.
MAX_RESULTS: Final = 1 << 15
RESULTS, MESSAGE, SEAL = "ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"
#: Fields that a signature of the message must not cover (RFC 8617 section 4.1.2).
_EXCLUDED: Final = REMOVED | {
    *(kind.lower().encode() for kind in KINDS),
    b"authentication-results",
}


class NotSealedError(Exception):
    """A message can't be sealed; the text is the reason."""


class NewSet:
    """The set to add to a message: `results`, then `message`, then `seal`.

    `names` are the fields to sign where they are present, in lower case; DKIM-Signature is added
    to them. `body` is the hash of the body in the relaxed form.
    """

    def __init__(
        self,
        fields: SignedFields,
        authserv_id: str,
        names: tuple[bytes, ...],
        key: SigningKey,
        now: float,
    ) -> None:
        """Raise NotSealedError if the message can't be sealed."""
        self._fields = fields
        self._key = key
        self._now = now
        self._sets = _chain_of(fields)
        self.instance = len(self._sets) + 1
        self.cv, text = self._state(authserv_id)
        signed = tuple(name for name in (*names, b"dkim-signature") if name not in _EXCLUDED)
        style = Style(RELAXED, RELAXED, signed, oversigned=())
        try:
            self._signing = SigningFields(fields, style)
        except TooManyFieldsError as error:
            raise NotSealedError(str(error)) from None
        #: The value of ARC-Authentication-Results.
        self.results = f"i={self.instance}; {value_of(authserv_id)}; {text}"

    def message(self, body: bytes) -> Unsigned:
        """Return the signature of the message, to be made."""
        tags = [*self._tags(), b"c=relaxed/relaxed", b"bh=" + b64encode(body)]
        return self._signing.unsigned_field(MESSAGE, [*tags, b"h=" + self._signing.names])

    def seal(self, message: bytes) -> Unsigned:
        """Return the seal, to be made; `message` is the value of ARC-Message-Signature."""
        text = folded(SEAL, [*self._tags(), b"cv=" + self.cv.encode()])
        data = sha256()
        if self.cv != "fail":
            for each in self._sets:
                for field in each:
                    data.update(self._fields.canonical(field, RELAXED))
        data.update(relaxed_field(raw_field(RESULTS, self.results)))
        data.update(relaxed_field(raw_field(MESSAGE, message)))
        data.update(without_value(raw_field(SEAL, text), RELAXED))
        return Unsigned(SEAL, text, data.digest())

    def _tags(self) -> list[bytes]:
        key = self._key
        return [
            b"i=%d" % self.instance,
            b"a=" + key.key.algorithm.encode(),
            b"d=" + key.domain.encode(),
            b"s=" + key.selector.encode(),
            b"t=%d" % self._now,
        ]

    def _state(self, authserv_id: str) -> tuple[str, str]:
        """Return the state of the chain so far, and the results; raise NotSealedError."""
        state, texts = "", []
        left = MAX_RESULTS
        for field in self._fields.each("Authentication-Results"):
            left -= len(field)
            if left < 0:
                break
            value = field.replace(b"\n", b"").partition(b":")[2].decode("utf-8", "surrogateescape")
            parsed = parse(value)
            if parsed is None or parsed.authserv_id.lower() != authserv_id.lower():
                continue
            texts.append(value.partition(";")[2].strip(" \t;"))
            state = next((each.result for each in parsed.results if each.method == "arc"), state)
        if not texts:
            raise NotSealedError(f"no results of {authserv_id}")
        if not self._sets:
            return "none", "; ".join(texts)
        if state == "temperror":
            raise NotSealedError(f"its chain could not be validated by {authserv_id}: temperror")
        if state not in {"pass", "fail"}:
            raise NotSealedError(f"no arc= in the results of {authserv_id}")
        return state, "; ".join(texts)


def _chain_of(fields: SignedFields) -> list[SetFields]:
    """Return the sets of a message, the oldest first; raise NotSealedError."""
    if not has_sets(fields):
        return []
    try:
        sets = complete_sets(fields)
        cv = read_tags(sets[-1].seal).get("cv", b"").lower()
    except Problem as problem:
        raise NotSealedError(f"its chain is broken: {problem}") from None
    if cv == b"fail":
        raise NotSealedError("its chain was sealed as failed")
    if len(sets) == MAX_SETS:
        raise NotSealedError(f"it has {MAX_SETS} sets")
    return sets
