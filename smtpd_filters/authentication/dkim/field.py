"""The tags of DKIM-Signature and ARC-Message-Signature, checked (RFC 6376, RFC 8617).

Invariants
----------
*Problem only*: for no field do these functions raise anything else.
*Nothing guessed*: whatever departs from the grammar of a tag that decides anything is a Problem.
Unknown tags are ignored, and so is z=.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from smtpd_filters.addresses import canonical

from .canonical import RELAXED, SIMPLE
from .signed_fields import MAX_NAMES
from .tags import Problem, TagError, base64_value, parse_tags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Bytes of a signature's field.
MAX_FIELD: Final = 8 << 10
#: Seconds that clocks may differ; that of OpenDKIM.
SKEW: Final = 300
ALGORITHMS: Final = ("rsa-sha256", "ed25519-sha256")
#: Bytes of a tag in results: of an address (RFC 5321 section 4.5.3.1), folded.
MAX_SHOWN: Final = 400
#: Characters of b= in results; RFC 6008 section 4 asks for at least eight.
SHOWN: Final = 8

#: Bytes of a domain in UTF-8.
_LONGEST: Final = 1024
_WHITE = re.compile(rb"[ \t\r\n]+")
# RFC 6376 section 3.5: t= and x= have up to 12 digits, l= up to 76.
_TIME = re.compile(rb"[0-9]{1,12}")
_LENGTH = re.compile(rb"[0-9]{1,76}")
_NAMES = re.compile(rb"[!-9;-~]++(?::[!-9;-~]++)*")
_DOMAIN = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_QUOTED = re.compile(rb"=([0-9A-F]{2})")


@dataclass(frozen=True, slots=True)
class SignatureTags:
    """The tags of a valid signature.

    Domain, selector and names are in canonical form. `identity` is i= decoded; `subdomain` states
    that its domain is not the signature's, but below it.
    """

    algorithm: str
    header_form: str
    body_form: str
    domain: str
    selector: str
    identity: str
    subdomain: bool
    names: tuple[bytes, ...]
    body_hash: bytes
    signature: bytes
    length: int | None
    time: int | None
    expires: int | None

    @property
    def key_name(self) -> str:
        """The name of the key in the DNS."""
        return f"{self.selector}._domainkey.{self.domain}"


def read_tags(field: bytes) -> dict[str, bytes]:
    """Return the tags of a raw field. Raises Problem if it is too long or not a tag list."""
    text = field.replace(b"\n", b"")
    if len(text) > MAX_FIELD:
        raise Problem("permerror", "signature too long")
    try:
        return parse_tags(text.partition(b":")[2])
    except TagError as error:
        raise Problem("permerror", str(error)) from None


def check_tags(tags: Mapping[str, bytes], now: float, *, arc: bool = False) -> SignatureTags:
    """Check the tags of a DKIM-Signature, or of an ARC-Message-Signature. Raises Problem.

    RFC 8617 section 4.1.2: the latter has no v=, and its i= is a number that is not checked here.
    As in the test suite of ARC, it may have an empty h=, and c= is relaxed/relaxed by default.
    `now` is the time in seconds since the epoch.
    """
    require(tags, ("a", "b", "bh", "d", "h", "s") if arc else ("v", "a", "b", "bh", "d", "h", "s"))
    if not arc and tags["v"] != b"1":
        raise _problem("unknown version")
    algorithm = algorithm_of(tags)
    domain = domain_of(tags["d"])
    identity, subdomain = ("", False) if arc else _identity(tags, domain)
    _check_query(tags.get("q", b"dns/txt"))
    header_form, body_form = _forms(tags.get("c", b"relaxed/relaxed" if arc else b"simple"))
    names = _names(tags["h"], blank=arc)
    if arc:
        # RFC 8617 section 4.1.2 excludes all fields of ARC, but most sealers sign some.
        if b"arc-seal" in names:
            raise _problem("ARC-Seal signed")
    elif b"from" not in names:
        # RFC 6376 section 5.4: "The From header field MUST be signed".
        raise _problem("From not signed")
    body_hash = binary(tags["bh"], "bh")
    if len(body_hash) != 32:
        raise _problem("bh= of the wrong size")
    time, expires = _times(tags, now)
    length = tags.get("l")
    if length is not None and not _LENGTH.fullmatch(length):
        raise _problem("invalid l=")
    return SignatureTags(
        algorithm=algorithm,
        header_form=header_form,
        body_form=body_form,
        domain=domain,
        selector=selector_of(tags["s"]),
        identity=identity,
        subdomain=subdomain,
        names=names,
        body_hash=body_hash,
        signature=binary(tags["b"], "b"),
        length=None if length is None else int(length),
        time=time,
        expires=expires,
    )


def shown(tags: Mapping[str, bytes], name: str) -> str:
    """Return a tag for a result, as text without white space and controls; "" without it."""
    text = _WHITE.sub(b"", tags.get(name, b"")[:MAX_SHOWN]).decode("utf-8", "replace")
    return text if text.isprintable() else "".join(filter(str.isprintable, text))


def require(tags: Mapping[str, bytes], names: Sequence[str]) -> None:
    """Raise Problem for a tag that is missing."""
    for name in names:
        if name not in tags:
            raise _problem(f"no {name}=")


def algorithm_of(tags: Mapping[str, bytes]) -> str:
    """Return a= in lower case. Raises Problem if it is unknown, or obsolete."""
    algorithm = tags["a"].decode("latin-1").lower()
    if algorithm == "rsa-sha1":
        # RFC 8301 section 3.1: "rsa-sha1 MUST NOT be used for signing or verifying."
        raise _problem("rsa-sha1 is obsolete")
    if algorithm not in ALGORITHMS:
        raise _problem("unknown algorithm")
    return algorithm


def domain_of(value: bytes) -> str:
    """Return the canonical form of d=. Raises Problem.

    RFC 6376 section 3.5 requires two labels; RFC 8616 section 4 allows U-labels.
    """
    domain = _domain(value)
    if domain is None or "." not in domain:
        raise _problem("invalid d=")
    return domain


def selector_of(value: bytes) -> str:
    """Return the canonical form of s=. Raises Problem."""
    selector = _domain(value)
    if selector is None:
        raise _problem("invalid s=")
    return selector


def binary(value: bytes, name: str) -> bytes:
    """Return a value in Base64 decoded. Raises Problem."""
    try:
        data = base64_value(value)
    except binascii.Error:
        data = b""
    if not data:
        raise _problem(f"invalid {name}=")
    return data


def _problem(reason: str) -> Problem:
    return Problem("permerror", reason)


def _domain(value: bytes) -> str | None:
    return _read_domain(value) if len(value) <= _LONGEST else None


# Most mail of a server has signatures of the same domains.
@lru_cache(maxsize=1024)
def _read_domain(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    if text.endswith("."):
        return None
    domain = canonical(text)
    return domain if len(domain) <= 253 and _DOMAIN.fullmatch(domain) else None


def _identity(tags: Mapping[str, bytes], domain: str) -> tuple[str, bool]:
    """Return i= and whether its domain is below d=. Raises Problem."""
    value = tags.get("i")
    if value is None:
        return f"@{domain}", False
    # RFC 6376 section 2.11: quoted-printable in which white space is ignored.
    value = _QUOTED.sub(lambda code: bytes((int(code[1], 16),)), _WHITE.sub(b"", value))
    local, at, part = value.rpartition(b"@")
    own = _domain(part) if at else None
    if own is None:
        raise _problem("invalid i=")
    if own != domain and not own.endswith(f".{domain}"):
        raise _problem("i= is outside d=")
    return f"{local.decode('utf-8', 'replace')}@{own}", own != domain


def _check_query(value: bytes) -> None:
    """Raise Problem if no known method is in q=; methods may have arguments."""
    if value == b"dns/txt":
        return
    for method in value.lower().split(b":"):
        if _WHITE.sub(b"", method) == b"dns/txt":
            return
    raise _problem("unknown query method")


def _forms(value: bytes) -> tuple[str, str]:
    header, slash, body = value.decode("latin-1").lower().partition("/")
    # RFC 6376 section 3.5: a lone one is that of the header; the body's is simple then.
    forms = header.strip(" \t"), body.strip(" \t") if slash else SIMPLE
    if not {*forms} <= {SIMPLE, RELAXED}:
        raise _problem("unknown canonicalization")
    return forms


def _names(value: bytes, *, blank: bool) -> tuple[bytes, ...]:
    """Return h= in lower case, with `blank` without empty names, which are errors otherwise."""
    names = value.translate(None, b" \t\r\n").lower().split(b":", MAX_NAMES)
    if len(names) > MAX_NAMES:
        raise _problem("too many names in h=")
    if blank:
        names = list(filter(None, names))
    if names and not _NAMES.fullmatch(b":".join(names)):
        raise _problem("invalid h=")
    return tuple(names)


def _times(tags: Mapping[str, bytes], now: float) -> tuple[int | None, int | None]:
    """Return t= and x=. Raises Problem if they are invalid, or not valid now."""
    time, expires = _time(tags, "t"), _time(tags, "x")
    if time is not None and expires is not None and expires <= time:
        raise _problem("x= is not after t=")
    if expires is not None and expires + SKEW < now:
        raise _problem("signature expired")
    if time is not None and time - SKEW > now:
        # RFC 6376 section 3.5: such signatures MAY be ignored.
        raise Problem("policy", "signed in the future")
    return time, expires


def _time(tags: Mapping[str, bytes], name: str) -> int | None:
    value = tags.get(name)
    if value is None:
        return None
    if not _TIME.fullmatch(value):
        raise _problem(f"invalid {name}=")
    return int(value)
