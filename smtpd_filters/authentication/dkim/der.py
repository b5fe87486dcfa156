"""Keys in DER: public ones of RSA, private ones of RSA and Ed25519 (RFC 8017, RFC 8410).

The encoding is read strictly: minimal lengths, and nothing behind the key.
"""

from __future__ import annotations

from typing import Final

_INTEGER: Final = 0x02
_BITS: Final = 0x03
_OCTETS: Final = 0x04
_SEQUENCE: Final = 0x30
# RFC 8017 section A.1: rsaEncryption with its parameters, NULL. RFC 8410 section 3: Ed25519.
_RSA: Final = bytes.fromhex("300d06092a864886f70d0101010500")
_ED25519: Final = bytes.fromhex("300506032b6570")
#: Bytes of the number of bytes of an element.
_MAX_SIZE: Final = 2


class DERError(Exception):
    """The bytes aren't a key of this form."""


def rsa_public(data: bytes) -> tuple[int, int]:
    """Return modulus and exponent of a SubjectPublicKeyInfo or an RSAPublicKey. Raises DERError."""
    inner = _whole(data, _SEQUENCE)
    if inner.startswith(_RSA):
        bits = _whole(inner[len(_RSA) :], _BITS)
        if not bits.startswith(b"\0"):
            raise DERError
        inner = _whole(bits[1:], _SEQUENCE)
    modulus, exponent = _integers(inner, 2)
    return modulus, exponent


def rsa_public_info(modulus: int, exponent: int) -> bytes:
    """Return a key as a SubjectPublicKeyInfo, the form of p= in the DNS."""
    key = _encoded(_SEQUENCE, _number(modulus) + _number(exponent))
    return _encoded(_SEQUENCE, _RSA + _encoded(_BITS, b"\0" + key))


def rsa_private(data: bytes) -> list[int]:
    """Return the numbers of an RSAPrivateKey (RFC 8017 section A.1.2). Raises DERError.

    They are n, e, d, p, q, d mod (p - 1), d mod (q - 1), and the inverse of q mod p.
    """
    version, *numbers = _integers(_whole(data, _SEQUENCE), 9)
    if version:
        raise DERError
    return numbers


def private_info(data: bytes) -> tuple[str, bytes]:
    """Return the kind of a PrivateKeyInfo (PKCS#8), and its key. Raises DERError.

    The kinds are rsa, with an RSAPrivateKey, and ed25519, with the 32 bytes of the key.
    """
    inner = _whole(data, _SEQUENCE)
    version, rest = _element(inner, _INTEGER)
    if version not in {b"\0", b"\1"}:
        raise DERError
    for kind, algorithm in (("rsa", _RSA), ("ed25519", _ED25519)):
        if rest.startswith(algorithm):
            # Attributes and a public key may follow.
            key, _ = _element(rest[len(algorithm) :], _OCTETS)
            return kind, key if kind == "rsa" else _whole(key, _OCTETS)
    raise DERError


def ed25519_private_info(seed: bytes) -> bytes:
    """Return a private key as a PrivateKeyInfo (RFC 8410 section 7)."""
    key = _encoded(_OCTETS, _encoded(_OCTETS, seed))
    return _encoded(_SEQUENCE, _number(0) + _ED25519 + key)


def _integers(data: bytes, count: int) -> list[int]:
    """Return non-negative integers, which must be the whole of the data."""
    numbers = []
    for _ in range(count):
        content, data = _element(data, _INTEGER)
        if not content or content[0] & 0x80:
            raise DERError
        numbers.append(int.from_bytes(content, "big"))
    if data:
        raise DERError
    return numbers


def _whole(data: bytes, tag: int) -> bytes:
    content, rest = _element(data, tag)
    if rest:
        raise DERError
    return content


def _element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return the content of the first element, which must have this tag, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise DERError
    size, at = data[1], 2
    if size & 0x80:
        count = size & 0x7F
        at += count
        size = int.from_bytes(data[2:at], "big")
        if not 0 < count <= _MAX_SIZE or size < 0x80:
            raise DERError
    if len(data) < at + size:
        raise DERError
    return data[at : at + size], data[at + size :]


def _number(value: int) -> bytes:
    return _encoded(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _encoded(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content
