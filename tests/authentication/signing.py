"""A signer that makes any signature, right or wrong, with dkimpy's canonicalisation."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from dkim.canonicalization import (
    CanonicalizationPolicy,
    InvalidCanonicalizationPolicyError,
)

from smtpd_filters.authentication.dkim.arc import Chain
from smtpd_filters.authentication.dkim.canonical import BodyHashes
from smtpd_filters.authentication.dkim.signatures import Signature, Signatures
from smtpd_filters.authentication.dkim.signed_fields import SignedFields
from smtpd_filters.lookups.outcome import Found, NotFound
from smtpd_filters.message import Message

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from smtpd_filters.authentication.dkim.arc import ArcResult
    from smtpd_filters.lookups.outcome import Outcome

T = TypeVar("T")

MESSAGE = (
    b"From: Joe <joe@example.org>\r\n"
    b"To: Suzie <suzie@example.net>\r\n"
    b"Subject: Is dinner\r\n  ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700\r\n"
    b"\r\n"
    b"Hi.\r\n\r\nWe lost  the game.\tAre you hungry yet? \r\n\r\nJoe.\r\n\r\n"
)
TEMPLATE = (
    "v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel;\r\n"
    "\th=from:to:subject:date; bh={bh};\r\n\tb={b}"
)
NAME = "sel._domainkey.example.org"
NOW = 1_000_000_000.0


def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """Return one of several keys of a size."""
    return _rsa_key(bits, number)


@cache
def _rsa_key(bits: int, number: int) -> rsa.RSAPrivateKey:
    del number
    return rsa.generate_private_key(65537, bits)


@cache
def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> str:
    """Return p= of a key."""
    if isinstance(key, rsa.RSAPrivateKey):
        encoding, form = (
            serialization.Encoding.DER,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
    else:
        encoding, form = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return b64encode(key.public_key().public_bytes(encoding, form)).decode()


def signature_of(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, data: bytes) -> str:
    """Return b= of a hash's input."""
    if isinstance(key, rsa.RSAPrivateKey):
        return b64encode(key.sign(data, padding.PKCS1v15(), hashes.SHA256())).decode()
    return b64encode(key.sign(sha256(data).digest())).decode()


def tag(template: str, name: str, default: str = "") -> str:
    found = re.search(rf"(?:^|[;\s]){name}\s*=\s*([^;]*)", template)
    return re.sub(r"\s", "", found[1]) if found else default


def signed(
    raw: bytes = MESSAGE,
    template: str = TEMPLATE,
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | None = None,
    name: str = "DKIM-Signature",
) -> bytes:
    """Return a message with a signature of this text at its top; {bh} and {b} are filled in.

    The hash of the body covers as much as l= says.
    """
    headers, body = _split(raw)
    policy = policy_of(tag(template, "c", "simple/simple"))
    canonical = policy.canonicalize_body(body)
    length = tag(template, "l")
    if length.isdigit():
        canonical = canonical[: int(length)]
    text = template.replace("{bh}", b64encode(sha256(canonical).digest()).decode())
    before, after = text.split("{b}")
    data = b""
    left = [(each.lower(), each, value) for each, value in headers]
    for wanted in tag(template, "h").lower().encode().split(b":"):
        at = [number for number, (each, _, _) in enumerate(left) if each.strip() == wanted]
        if at:
            _, own, value = left.pop(at[-1])
            for each in policy.canonicalize_headers([(own, value)]):
                data += each[0] + b":" + each[1]
    empty = re.sub(r"((?:^|[;\s])b\s*=)\s*$", r"\1", before) + after.lstrip()
    own_field = policy.canonicalize_headers(
        [(name.encode(), b" " + empty.encode("utf-8", "surrogateescape") + b"\r\n")]
    )
    for each in own_field:
        data += (each[0] + b":" + each[1]).rstrip(b"\r\n")
    made = signature_of(key or rsa_key(), data)
    field = f"{name}: {before}{made}{after}\r\n"
    return field.encode("utf-8", "surrogateescape") + raw


def policy_of(form: str) -> Any:
    """Return dkimpy's functions for a c=; those for simple/simple if it is unknown."""
    try:
        return CanonicalizationPolicy.from_c_value(form.lower().encode())
    except InvalidCanonicalizationPolicyError:
        return CanonicalizationPolicy.from_c_value(b"simple/simple")


def _split(raw: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return names and values of the fields, and the body; dkimpy refuses blanks after a name."""
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = re.split(rb"\r\n(?![ \t])", head)
    pairs = (field.partition(b":") for field in fields)
    return [(name, value + b"\r\n") for name, _, value in pairs], body


def message(raw: bytes) -> Message:
    """Return a message as a filter has it."""
    made = Message()
    lines = raw.replace(b"\r\n", b"\n").split(b"\n")
    if not lines[-1]:
        lines.pop()
    made.feed([b"." + line if line.startswith(b".") else line for line in lines])
    made.close()
    return made


def records(**texts: str | list[str]) -> dict[str, Outcome[bytes]]:
    """Return the records of NAME, or of other names."""
    found: dict[str, Outcome[bytes]] = {}
    for name, text in texts.items():
        every = [text] if isinstance(text, str) else text
        found[name] = Found(tuple(each.encode("utf-8", "surrogateescape") for each in every), 60)
    return found


def key_record(
    tags: str = "v=DKIM1; ",
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | None = None,
) -> dict[str, Outcome[bytes]]:
    """Return the outcomes with a key at NAME."""
    return records(**{NAME: f"{tags}p={public(key or rsa_key())}"})


def verified(
    raw: bytes,
    keys: Mapping[str, Outcome[bytes]] | None = None,
    *,
    now: float = NOW,
    authors: tuple[str, ...] = ("example.org",),
    block: int = 1 << 16,
) -> tuple[Signature, ...]:
    """Return the results for the signatures of a message."""
    made = message(raw)
    try:
        return verified_message(made, keys, now=now, authors=authors, block=block)
    finally:
        made.discard()


def verified_message(
    made: Message,
    keys: Mapping[str, Outcome[bytes]] | None = None,
    *,
    now: float = NOW,
    authors: tuple[str, ...] = ("example.org",),
    block: int = 1 << 16,
) -> tuple[Signature, ...]:
    signatures = Signatures(SignedFields(made.headers), now, authors=authors)
    found = key_record() if keys is None else keys
    outcomes = {name: found.get(name, NotFound("nxdomain")) for name in signatures.names}
    return drained(signatures.results(hashed(made, signatures.bodies, block), outcomes))


def chain(raw: bytes, keys: Mapping[str, Outcome[bytes]], now: float = NOW) -> ArcResult:
    """Return the result for the chain of a message."""
    made = message(raw)
    found = Chain(SignedFields(made.headers), now)
    try:
        return drained(found.result(hashed(made, found.bodies), keys))
    finally:
        made.discard()


def drained(steps: Generator[int, None, T]) -> T:
    """Return the result of what is done in steps."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: T = end.value
        return result


def hashed(made: Message, needs: list[tuple[str, int | None]], block: int = 1 << 16) -> BodyHashes:
    bodies = BodyHashes(needs)
    for part in made.body(block):
        bodies.update(part)
    bodies.finish()
    return bodies
