"""Keys of a store: a space, a shard and the parts that identify an entry.

A key is `SPACE:{SHARD}:PART:PART...`. The space is the owner of the entry ("greylist"). All keys of
one request have the same shard, usually the client or the user that is judged: a Redis Cluster
keeps the keys with the same text in braces on one node (its documentation calls it a hash tag), so
that one request can use several of them atomically.

Shard and parts are bytes from outside, such as addresses. `join` escapes the bytes that have a
meaning in a key, and replaces a long part by its hash.
"""

from __future__ import annotations

import hashlib
import re

#: The size of a part in bytes, above which its hash stands for it. RFC 5321 section 4.5.3.1.3: an
#: address has at most 256 octets with its brackets.
MAX_PART = 256
_UNSAFE = re.compile(
    rb"[^!-$&-9;-z|~]"
)  # without blanks, controls, 8-bit bytes, "%", ":", "{", "}"
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")
_SPACE = re.compile(r"[a-z][a-z0-9.-]{0,31}")
_TAG = re.compile(rb"[^{}:]+:\{([^{}]*)\}")
_KEY = re.compile(rb"[a-z][a-z0-9.-]{0,31}:\{[^{}:]*\}(?::[^{}:]*)*")


def join(space: str, shard: bytes, *parts: bytes) -> bytes:
    """Return the key of an entry.

    `space` is a word of the filter's own. Entries of one `shard`, such as a client's address, are
    on one server of a cluster, and can be in one request. Of a long part the hash is kept.

    Raises ValueError if the space is not a lower-case word, and TypeError for a part that isn't
    bytes: mistakes of the caller.
    """
    if not _SPACE.fullmatch(space):
        raise ValueError(f"space {space!r}: must be a word of at most 32 lower-case characters")
    rest = b"".join(b":" + _part(part) for part in parts)
    return b"%s:{%s}%s" % (space.encode(), _part(shard), rest)


def split(key: bytes) -> tuple[bytes, ...]:
    """Return shard and parts of a key that `join` made; the hash stands for a long one."""
    _, shard, *parts = key.split(b":")
    return tuple(_ESCAPE.sub(_unescape, part) for part in (shard[1:-1], *parts))


def shard_of(key: bytes) -> bytes:
    """Return the shard of a key, escaped; raise ValueError if `join` did not make the key."""
    if not (found := _TAG.match(key)):
        raise ValueError(f"key {key!r}: was not made by `join`")
    return found[1]


def is_key(key: object) -> bool:
    """Return whether something has the form of a key."""
    return isinstance(key, bytes) and _KEY.fullmatch(key) is not None


def _part(part: bytes) -> bytes:
    if not isinstance(part, bytes):
        raise TypeError(f"a part of a key must be bytes, not {part!r}")
    if len(part) > MAX_PART:
        part = b"sha256=" + hashlib.sha256(part).hexdigest().encode()
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], part)


def _unescape(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 16)])
