"""What answers of known lists mean that are no listings, and what of a zone's name is a key.

The law:

1. Only an answer in 127.0.0.0/8 can be a listing (RFC 5782 section 2.1).
2. What a list says of who asks (a public name server, too many questions, no registration) says
   nothing of who was asked about.  It comes with what an operator can do about it.
3. A key that is part of a zone's name is neither in what `shown` gives, nor in what `redact` does.

Where a code isn't named here, it is a listing.
"""

from __future__ import annotations

import re

from .sites import Pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: What a list is asked about; each has test entries of its own (RFC 5782 section 5).
V4, V6, NAME = "IPv4", "IPv6", "names"

_OWN_RESOLVER = "ask through a name server of your own (--nameserver), not a public one"
_REGISTER = "register for its Data Query Service and use the zone with your key"
_ODD = ";".join(str(octet) for octet in range(1, 256, 2))

#: (end of the zone's name, which answers, what to do; "" where the answer can be passed over).
#: The first that fits holds.
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
        # Of its lists of names, asked about an address; ZRD's third octet is 2.
        (("spamhaus.org", "spamhaus.net"), "127.0.[1;2].255", ""),
        (
            ("senderscore.com",),
            "127.255.255.[0..255]",
            f"it wants you to register at my.validity.com; {_OWN_RESOLVER}",
        ),
        # It has also been seen to call everybody highly trusted (127.0.10.3), for those who go on
        # asking too much.
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
        # By agreement of several lists, after Spamhaus.
        (
            ("",),
            "127.255.255.[0..255]",
            f"it refuses this name server: {_OWN_RESOLVER}, and see whether to register with it",
        ),
    )
    for suffix in suffixes
)
# RFC 5782 section 5: 127.0.0.1 must not be listed, and as an answer few lists use it. It is what
# some say to those whom they refuse, and what a name server says that blocks the list's domain.
_LOOPBACK = "127.0.0.1"
_LOOPBACK_ADVICE = (
    f"the list refuses this name server, or the name server blocks the list: {_OWN_RESOLVER}"
)
_OUTSIDE_ADVICE = (
    "the list is gone and its domain is somebody else's, or the name server invents answers"
)

#: Zones with a key in front of the list's own label: how many labels are public.
_KEYED = (("dq.spamhaus.net", 4), ("mail.abusix.zone", 4))
#: Elsewhere a label is taken for a key if it is long and made of letters and digits.
_KEY = re.compile(r"(?=[a-z]*[0-9])(?=[0-9]*[a-z])[a-z0-9]{16,63}", re.ASCII)
_REDACTED = "***"

#: Entries for testing that lists of names have beside or instead of that of RFC 5782 section 5.
_TESTS = (
    ("spamhaus.org", "dbltest.com"),
    ("spamhaus.net", "dbltest.com"),
    ("surbl.org", "surbl-org-permanent-test-point.com"),
    ("uribl.com", "test.uribl.com"),
)


def trouble(zone: str, address: str, *, wanted: bool = False) -> str | None:
    """Say why an answer is no listing, and what to do; "" if it can be passed over; None if it is.

    `wanted` is whether the operator's own filter names the answer. That counts for 127.0.0.1
    alone, where no known list is concerned.
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
    """Give the name of a zone without its keys: those that can be told, and `keys`.

    `keys` are labels or parts of them (`labels_of`).
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
    """Give the labels that keys are made of, as they are in the names of zones."""
    return tuple(label for key in keys for label in key.lower().split(".") if label)


def hidden(zone: str, keys: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Give the labels that `shown` leaves out, and `keys`, the longest first."""
    public = shown(zone, keys).split(".")
    labels = [label for label in zone.split(".") if label not in public]
    return tuple(sorted({*labels, *keys}, key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """Take secrets out of a text that comes from a list."""
    for secret in secrets:
        text = re.sub(re.escape(secret), _REDACTED, text, flags=re.IGNORECASE)
    return text


def probes(zone: str) -> tuple[str, ...]:
    """Give the names of which a list of names has at least one, for testing: RFC 5782 section 5."""
    return ("test", *(name for suffix, name in _TESTS if _ends(zone, suffix)))


def _ends(zone: str, suffix: str) -> bool:
    return not suffix or zone == suffix or zone.endswith(f".{suffix}")
