"""The zones of lists: their kinds, test entries, and the redaction of keys in their names.

Invariants
----------
*Keys stay secret*: `shown` and `redact` return no key that is part of a zone's name.
"""

from __future__ import annotations

import re

from .listings import ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The kinds of subjects of a list; each has its own test entries (RFC 5782 section 5).
V4, V6, NAME = "IPv4", "IPv6", "names"

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


def shown(zone: str, keys: tuple[str, ...] = ()) -> str:
    """Return the name of a zone without its keys: recognised ones, and `keys`.

    `keys` are labels or parts of labels (`labels_of`).
    """
    labels = zone.split(".")
    for suffix, public in _KEYED:
        if ends(zone, suffix) and len(labels) > public:
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
    return ("test", *(name for suffix, name in _TESTS if ends(zone, suffix)))
