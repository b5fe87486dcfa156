"""Return codes of known lists that are not listings, and the redaction of keys in zone names.

A code that isn't named here is a listing.

Invariants
----------
*Loopback only*: only an answer in 127.0.0.0/8 can be a listing (RFC 5782 section 2.1).
*Refusals are not listings*: an answer about the querier (a public name server, too many queries, no
registration) says nothing about the subject. It comes with advice for the operator.
*Keys stay secret*: `shown` and `redact` return no key that is part of a zone's name.
"""

from __future__ import annotations

import re

from .sites import Pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The kinds of subjects of a list; each has its own test entries (RFC 5782 section 5).
V4, V6, NAME = "IPv4", "IPv6", "names"

_OWN_RESOLVER = "use a name server of your own (--nameserver), not a public one"
_REGISTER = "register for its Data Query Service and use the zone with your key"
_ODD = ";".join(str(octet) for octet in range(1, 256, 2))

#: Suffix of the zone's name, pattern of answers, and advice ("" if the answer can be ignored). The
#: first match applies.
_CODES = tuple(
    (suffix, Pattern(answers), advice)
    for suffixes, answers, advice in (
        # https://www.spamhaus.org/news/article/807/: "must not be interpreted as reputation".
        (
            ("spamhaus.org", "spamhaus.net"),
            "127.255.255.252",
            "the name of the list is misspelt: correct it",
        ),
        (
            ("spamhaus.org", "spamhaus.net"),
            "127.255.255.254",
            f"it refuses public name servers: {_OWN_RESOLVER}, or {_REGISTER}",
        ),
        (
            ("spamhaus.org", "spamhaus.net"),
            "127.255.255.255",
            f"too many queries: {_REGISTER}",
        ),
        # A query for an address in its lists of names; ZRD's third octet is 2.
        (("spamhaus.org", "spamhaus.net"), "127.0.[1;2].255", ""),
        (
            ("senderscore.com",),
            "127.255.255.[0..255]",
            f"register at my.validity.com; {_OWN_RESOLVER}",
        ),
        # It has also been seen to return 127.0.10.3 ("highly trusted") for every address, once
        # queries continue above the limit.
        (
            ("dnswl.org",),
            "127.0.0.255",
            f"more queries than are free: {_OWN_RESOLVER}, or subscribe to it",
        ),
        (
            ("dnswl.org",),
            "127.0.10.[1..3]",
            f"more queries than are free: {_OWN_RESOLVER}, or subscribe to it",
        ),
        # Lists whose last octet is a set of bits; 1 is "blocked" (https://uribl.com/refused.shtml).
        (
            ("surbl.org", "uribl.com"),
            f"127.0.[0..255].[{_ODD}]",
            f"it refuses this name server: {_OWN_RESOLVER}, or arrange for access to its data",
        ),
        # A convention of several lists, after Spamhaus.
        (
            ("",),
            "127.255.255.[0..255]",
            f"it refuses this name server: {_OWN_RESOLVER}, and see whether to register with it",
        ),
    )
    for suffix in suffixes
)
# RFC 5782 section 5: 127.0.0.1 must not be listed, and few lists use it as a code. Some return it
# to refused queriers, and so do name servers that block the list's domain.
_LOOPBACK = "127.0.0.1"
_LOOPBACK_ADVICE = (
    f"the list refuses this name server, or the name server blocks the list: {_OWN_RESOLVER}"
)
_OUTSIDE_ADVICE = (
    "the list is gone and its domain has a new owner, or the name server makes up answers"
)

#: Zones with a key before the list's own label, and their number of public labels.
_KEYED = (("dq.spamhaus.net", 4), ("mail.abusix.zone", 4))
#: In other zones, a long label of letters and digits is treated as a key.
_KEY = re.compile(r"(?=[a-z]*[0-9])(?=[0-9]*[a-z])[a-z0-9]{16,63}", re.ASCII)
_REDACTED = "***"

#: Test entries of lists of names beside or instead of that of RFC 5782 section 5.
_TESTS = (
    ("spamhaus.org", "dbltest.com"),
    ("spamhaus.net", "dbltest.com"),
    ("surbl.org", "surbl-org-permanent-test-point.com"),
    ("uribl.com", "test.uribl.com"),
)


def trouble(zone: str, address: str, *, wanted: bool = False) -> str | None:
    """Return why an answer is not a listing, with advice; "" to ignore it; None for a listing.

    `wanted` is whether the operator's own filter names the answer, which makes 127.0.0.1 a listing
    unless a known list is concerned.
    """
    if not address.startswith("127."):
        return f"answers {address}, outside 127.0.0.0/8: {_OUTSIDE_ADVICE}"
    for suffix, pattern, advice in _CODES:
        if _ends(zone, suffix) and pattern.match(address):
            return f"answers {address}: {advice}" if advice else ""
    if address == _LOOPBACK and not wanted:
        return f"answers {address}: {_LOOPBACK_ADVICE}"
    return None


def shown(zone: str, keys: tuple[str, ...] = ()) -> str:
    """Return the name of a zone without its keys: recognised ones, and `keys`.

    `keys` are labels or parts of labels (`labels_of`).
    """
    labels = zone.split(".")
    for suffix, public in _KEYED:
        if _ends(zone, suffix) and len(labels) > public:
            labels = labels[-public:]
    kept = [
        label
        for label in labels[:-2]
        if not _KEY.fullmatch(label) and not any(key in label for key in keys)
    ]
    return ".".join(kept + labels[-2:])


def labels_of(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the labels of keys, in the form in which zone names have them."""
    return tuple(label for key in keys for label in key.lower().split(".") if label)


def hidden(zone: str, keys: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the labels that `shown` omits, and `keys`, the longest first."""
    public = shown(zone, keys).split(".")
    labels = [label for label in zone.split(".") if label not in public]
    return tuple(sorted({*labels, *keys}, key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text from a list without secrets."""
    for secret in secrets:
        text = re.sub(re.escape(secret), _REDACTED, text, flags=re.IGNORECASE)
    return text


def probes(zone: str) -> tuple[str, ...]:
    """Return the test entries of a list of names, which has one at least: RFC 5782 section 5."""
    return ("test", *(name for suffix, name in _TESTS if _ends(zone, suffix)))


def _ends(zone: str, suffix: str) -> bool:
    return not suffix or zone == suffix or zone.endswith(f".{suffix}")
