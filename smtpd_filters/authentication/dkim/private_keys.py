"""Private keys: read from the files of openssl, opendkim-genkey and rspamadm, and made.

The files are PEM (PKCS#1 or PKCS#8), or the Base64 of an Ed25519 key, as rspamadm writes it.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Final

from smtpd_filters.errors import ConfigError

from . import der
from .arithmetic import KeyNumbersError, MissingError, RSANumbers, arithmetic
from .keys import ED25519, MAX_BITS, MIN_BITS, RSA
from .tags import base64_value

if TYPE_CHECKING:
    from .arithmetic import Sign

# RFC 8301 section 3.2: signers SHOULD use at least 2048 bits.
ADVISED_BITS: Final = 2048
#: Bytes of a file. A key of 4,096 bits takes 3,300.
MAX_FILE: Final = 32 << 10

_PEM = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]*)-----[ \t]*\r?\n(.*?)\r?\n[ \t]*-----END \1-----", re.DOTALL
)


class PrivateKeyError(ValueError):
    """A text is not a usable private key; the text of the exception is the reason."""


class PrivateKey:
    """A private key: its `kind`, rsa or ed25519, its size in `bits`, and `public`, for p=.

    `costly` means that a signature takes more than a millisecond.
    """

    def __init__(self, kind: str, secret: bytes) -> None:
        """Take an RSAPrivateKey in DER, or the 32 bytes of an Ed25519 key."""
        self.kind = kind
        self.secret = secret
        try:
            if kind == ED25519:
                self.bits = 256
                self.public = arithmetic().ed25519_public(secret)
                self.sign: Sign = arithmetic().ed25519_sign(secret)
                self.costly = False
                return
            n, e, d, p, q, dp, dq, inverse = der.rsa_private(secret)
            numbers = RSANumbers((n, e, d, p, q, dp, dq, inverse))
            self.bits = n.bit_length()
            if not MIN_BITS <= self.bits <= MAX_BITS:
                raise PrivateKeyError(
                    f"an RSA key of {self.bits} bits; expected {MIN_BITS} to {MAX_BITS}"
                )
            if not numbers.consistent():
                raise PrivateKeyError("the numbers of the RSA key don't belong together")
            self.public = der.rsa_public_info(n, e)
            self.sign = arithmetic().rsa_sign(numbers)
        except (der.DERError, KeyNumbersError):
            raise PrivateKeyError("not a valid key") from None
        except MissingError as error:
            raise PrivateKeyError(str(error)) from None
        self.costly = not arithmetic().fast or self.bits > ADVISED_BITS

    @property
    def algorithm(self) -> str:
        """The algorithm of its signatures, for a=."""
        return f"{self.kind}-sha256"

    def record(self) -> str:
        """Return the key record for the DNS (RFC 6376 section 3.6.1)."""
        return f"v=DKIM1; k={self.kind}; p={b64encode(self.public).decode()}"


def parse_private_key(text: bytes) -> PrivateKey:
    """Parse the content of a file. Raises PrivateKeyError."""
    if len(text) > MAX_FILE:
        raise PrivateKeyError("too large for a private key")
    found = _PEM.search(text)
    if found is None:
        return _bare(text)
    label, content = found[1], found[2]
    if label == b"ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in content:
        raise PrivateKeyError("the key is encrypted; remove its passphrase")
    try:
        data = base64_value(content)
        if label == b"RSA PRIVATE KEY":
            return PrivateKey(RSA, data)
        if label == b"PRIVATE KEY":
            kind, secret = der.private_info(data)
            return PrivateKey(kind, secret)
    except (Base64Error, der.DERError):
        raise PrivateKeyError("not a valid RSA or Ed25519 key") from None
    raise PrivateKeyError(f"{label.decode('ascii').capitalize()} is not a private key")


def new_private_key(kind: str, bits: int) -> bytes:
    """Make a key of a kind, in PEM; `bits` is the size of an RSA key.

    Raises ConfigError if neither `cryptography` nor openssl(1) is there to make one of RSA.
    """
    if kind == ED25519:
        data = b64encode(der.ed25519_private_info(os.urandom(32)))
        return b"-----BEGIN PRIVATE KEY-----\n%b\n-----END PRIVATE KEY-----\n" % data
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
    except ImportError:
        return _by_openssl(bits)
    key = rsa.generate_private_key(65537, bits)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _by_openssl(bits: int) -> bytes:
    import subprocess

    command = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}"]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError("an RSA key needs the package cryptography, or openssl(1)") from None


def _bare(text: bytes) -> PrivateKey:
    """Read an Ed25519 key in Base64: its 32 bytes, and perhaps those of the public key."""
    try:
        data = base64_value(text)
    except Base64Error:
        data = b""
    if len(data) not in {32, 64}:
        raise PrivateKeyError("no private key in PEM")
    key = PrivateKey(ED25519, data[:32])
    if data[32:] not in {b"", key.public}:
        raise PrivateKeyError("the two halves of the Ed25519 key don't belong together")
    return key
