"""DMARC policy records (RFC 9989 section 4.7)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

NOTHING, QUARANTINE, REJECT = POLICIES = ("none", "quarantine", "reject")

# RFC 9989 section 4.8: the version is the first tag, and case-sensitive, unlike all other values.
_VERSION = re.compile(rb"v[ \t]*+=[ \t]*+DMARC1[ \t]*+(?:;|\Z)")
_URI = re.compile("[a-z][a-z0-9+.-]*+:[^,! \t]", re.IGNORECASE)
#: Bytes of a record that is kept when it has been parsed: many messages have the same author.
_KEPT = 512
#: Addresses for reports that are used, and characters of one.
MAX_URIS, MAX_URI = 8, 320


@dataclass(frozen=True, slots=True)
class Record:
    """A policy record.

    `p`, `sp` and `np` are policies: "" if the tag is absent, "invalid" if its value is. `testing`
    is the owner's test mode; `psd` is y, n or u. `rua` are the URIs for aggregate reports, as they
    are written; `fo` are the options for failure reports.
    """

    p: str = ""
    sp: str = ""
    np: str = ""
    strict_dkim: bool = False
    strict_spf: bool = False
    testing: bool = False
    psd: str = "u"
    rua: tuple[str, ...] = ()
    fo: str = ""

    def is_strict(self, method: str) -> bool:
        """Return whether identifiers of this method have to equal the author's domain."""
        return self.strict_spf if method == "spf" else self.strict_dkim

    def requested(self, *, below: bool, exists: bool) -> str:
        """Return the policy for a domain: none, quarantine or reject; "" if the record is void.

        `below` tells whether the domain is below that of the record, and `exists` whether it
        exists. RFC 9989 section 4.10.1: a record without a valid policy counts as "p=none" if it
        has an address for reports, and as no record otherwise.
        """
        policies = [self.p]
        if below:
            policies.insert(0, self.sp)
            if not exists:
                policies.insert(0, self.np)
        policy = next(filter(None, policies), "invalid")
        if policy in POLICIES:
            return policy
        return NOTHING if self.rua else ""


def parse(text: bytes) -> Record | None:
    """Return the record in a TXT record, or None if it isn't a DMARC record.

    Unknown tags are ignored, an invalid value stands for the tag's default, and of several tags of
    one name the first counts.
    """
    return _parse_kept(text) if len(text) <= _KEPT else _parse(text)


def _parse(text: bytes) -> Record | None:
    if not _VERSION.match(text):
        return None
    tags: dict[str, str] = {}
    for tag in text.decode("ascii", "replace").split(";")[1:]:
        name, equals, value = tag.partition("=")
        if equals:
            tags.setdefault(name.strip(" \t").lower(), value.strip(" \t"))
    uris = (each.strip(" \t") for each in tags.get("rua", "").split(","))
    rua = [each for each in uris if _URI.match(each) and len(each) <= MAX_URI]
    tags = {name: value.lower() for name, value in tags.items()}
    psd = tags.get("psd", "u")
    return Record(
        p=_policy(tags, "p"),
        sp=_policy(tags, "sp"),
        np=_policy(tags, "np"),
        strict_dkim=tags.get("adkim") == "s",
        strict_spf=tags.get("aspf") == "s",
        # "pct" is not a tag of RFC 9989. OpenDMARC treats 0 as "t=y", and so do we.
        testing=tags.get("t") == "y" or tags.get("pct") == "0",
        psd=psd if psd in {"y", "n"} else "u",
        rua=tuple(rua[:MAX_URIS]),
        fo=tags.get("fo", ""),
    )


_parse_kept = lru_cache(512)(_parse)


def _policy(tags: dict[str, str], name: str) -> str:
    value = tags.get(name, "")
    return value if value in POLICIES or name not in tags else "invalid"
