"""The arithmetic of signatures: `cryptography` if it is installed, or else dkimpy and PyNaCl.

The libraries are imported on first use: filters that verify or sign nothing don't load them.
docs/decisions/signatures.md has the reasons and the figures.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import TypeAlias

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPrivateNumbers

    #: Whether a signature is that of a SHA-256 digest; the signature of a digest.
    Verify: TypeAlias = Callable[[bytes, bytes], bool]
    Sign: TypeAlias = Callable[[bytes], bytes]


#: The digest of the signature by which a key is tried.
_TRIED = bytes(32)


class MissingError(Exception):
    """No library is installed for this kind of key; the text says which would do."""


class KeyNumbersError(ValueError):
    """The library refuses the numbers of a key."""


class Arithmetic(Protocol):
    """A library, by its name; `fast` means that an RSA signature takes less than a millisecond."""

    name: str
    fast: bool

    def rsa_verify(self, modulus: int, exponent: int) -> Verify:
        """Return the check of signatures by RSASSA-PKCS1-v1_5. Raises KeyNumbersError."""

    def ed25519_verify(self, key: bytes) -> Verify:
        """Return the check of Ed25519 signatures. Raises KeyNumbersError, MissingError."""

    def rsa_sign(self, numbers: RSANumbers) -> Sign:
        """Return a function that signs by RSASSA-PKCS1-v1_5. Raises KeyNumbersError."""

    def ed25519_sign(self, seed: bytes) -> Sign:
        """Return a function that signs by Ed25519. Raises MissingError."""

    def ed25519_public(self, seed: bytes) -> bytes:
        """Return the public key of a private one. Raises MissingError."""


class RSANumbers:
    """The numbers of a private RSA key (RFC 8017 section A.1.2)."""

    __slots__ = ("coefficient", "d", "dp", "dq", "e", "n", "p", "q")

    def __init__(self, numbers: tuple[int, int, int, int, int, int, int, int]) -> None:
        """Take n, e, d, p, q, d mod (p - 1), d mod (q - 1), and the inverse of q mod p."""
        self.n, self.e, self.d, self.p, self.q, self.dp, self.dq, self.coefficient = numbers

    def consistent(self) -> bool:
        """Return whether the numbers belong together, as signing relies on."""
        p, q = self.p, self.q
        return (
            p > 1
            and q > 1
            and self.n % 2 == 1
            and p * q == self.n
            and self.d * self.e % (p - 1) == 1
            and self.d * self.e % (q - 1) == 1
            and self.dp == self.d % (p - 1)
            and self.dq == self.d % (q - 1)
            and self.coefficient * q % p == 1
        )


class Cryptography:
    """The package `cryptography`, 38.0.4 or later."""

    name = "cryptography"
    fast = True

    def __init__(self) -> None:
        from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa, utils

        self._invalid, self._internal = InvalidSignature, InternalError
        self._refused = (ValueError, UnsupportedAlgorithm)
        self._rsa, self._ed25519, self._serialization = rsa, ed25519, serialization
        self._padding, self._hash = padding.PKCS1v15(), utils.Prehashed(hashes.SHA256())

    def rsa_verify(self, modulus: int, exponent: int) -> Verify:
        """Return the check of signatures by RSASSA-PKCS1-v1_5. Raises KeyNumbersError."""
        try:
            key = self._rsa.RSAPublicNumbers(exponent, modulus).public_key()
        except self._refused as error:
            raise KeyNumbersError(str(error)) from None

        def verify(digest: bytes, signature: bytes) -> bool:
            try:
                key.verify(signature, digest, self._padding, self._hash)
            except self._invalid:
                return False
            return True

        return verify

    def ed25519_verify(self, key: bytes) -> Verify:
        """Return the check of Ed25519 signatures. Raises KeyNumbersError, MissingError."""
        try:
            public = self._ed25519.Ed25519PublicKey.from_public_bytes(key)
        except self._refused as error:
            raise KeyNumbersError(str(error)) from None

        def verify(digest: bytes, signature: bytes) -> bool:
            try:
                public.verify(signature, digest)
            except self._invalid:
                return False
            return True

        return verify

    def rsa_sign(self, numbers: RSANumbers) -> Sign:
        """Return a function that signs by RSASSA-PKCS1-v1_5. Raises KeyNumbersError.

        A test of the primes would take 40 ms for a key of 2,048 bits and 0.5 s for 4,096, in which
        no session is served, whenever a key is reloaded; so one signature is tried instead.
        """
        public = self._rsa.RSAPublicNumbers(numbers.e, numbers.n)
        private = self._rsa.RSAPrivateNumbers(
            numbers.p,
            numbers.q,
            numbers.d,
            numbers.dp,
            numbers.dq,
            numbers.coefficient,
            public,
        )
        try:
            key = _untested(private)
            tried = key.sign(_TRIED, self._padding, self._hash)
            public.public_key().verify(tried, _TRIED, self._padding, self._hash)
        except (*self._refused, self._invalid, self._internal) as error:
            raise KeyNumbersError(str(error)) from None
        return lambda digest: key.sign(digest, self._padding, self._hash)

    def ed25519_sign(self, seed: bytes) -> Sign:
        """Return a function that signs by Ed25519."""
        return self._ed25519.Ed25519PrivateKey.from_private_bytes(seed).sign

    def ed25519_public(self, seed: bytes) -> bytes:
        """Return the public key of a private one."""
        key = self._ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key()
        # Version 38 lacks `public_bytes_raw`.
        serialization = self._serialization
        return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _untested(numbers: RSAPrivateNumbers) -> RSAPrivateKey:
    """Return the key without a test of its primes."""
    try:
        return numbers.private_key(unsafe_skip_rsa_key_validation=True)
    except TypeError:  # before version 39, which always tests them
        return numbers.private_key()


class _Digest:
    """A digest in the form of a hash object, as dkimpy takes it."""

    name = "sha256"

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def digest(self) -> bytes:
        """Return the digest."""
        return self._digest


class Dkimpy:
    """The arithmetic of dkimpy, in Python; PyNaCl for Ed25519."""

    name = "dkimpy"
    fast = False

    def __init__(self) -> None:
        from dkim import crypto

        self._crypto = crypto

    def rsa_verify(self, modulus: int, exponent: int) -> Verify:
        """Return the check of signatures by RSASSA-PKCS1-v1_5."""
        key = {"modulus": modulus, "publicExponent": exponent}
        size = (modulus.bit_length() + 7) // 8
        check = self._crypto.RSASSA_PKCS1_v1_5_verify

        def verify(digest: bytes, signature: bytes) -> bool:
            # RFC 8017 section 8.2.2, step 1, and section 5.2.2, which dkimpy leaves out.
            if len(signature) != size or int.from_bytes(signature, "big") >= modulus:
                return False
            return bool(check(_Digest(digest), signature, key))

        return verify

    def ed25519_verify(self, key: bytes) -> Verify:
        """Return the check of Ed25519 signatures. Raises MissingError."""
        signing = _nacl()
        from nacl.exceptions import BadSignatureError

        public = signing.VerifyKey(key)

        def verify(digest: bytes, signature: bytes) -> bool:
            try:
                public.verify(digest, signature)
            except BadSignatureError:
                return False
            return True

        return verify

    def rsa_sign(self, numbers: RSANumbers) -> Sign:
        """Return a function that signs by RSASSA-PKCS1-v1_5."""
        key = {
            "modulus": numbers.n,
            "prime1": numbers.p,
            "prime2": numbers.q,
            "exponent1": numbers.dp,
            "exponent2": numbers.dq,
            "coefficient": numbers.coefficient,
        }
        sign = self._crypto.RSASSA_PKCS1_v1_5_sign
        return lambda digest: bytes(sign(_Digest(digest), key))

    def ed25519_sign(self, seed: bytes) -> Sign:
        """Return a function that signs by Ed25519. Raises MissingError."""
        key = _nacl().SigningKey(seed)
        return lambda digest: bytes(key.sign(digest).signature)

    def ed25519_public(self, seed: bytes) -> bytes:
        """Return the public key of a private one. Raises MissingError."""
        return bytes(_nacl().SigningKey(seed).verify_key)


def _nacl() -> ModuleType:
    try:
        from nacl import signing
    except ImportError:
        raise MissingError("Ed25519 needs the package cryptography or PyNaCl") from None
    return signing


@cache
def arithmetic() -> Arithmetic:
    """Return the library of this installation."""
    try:
        return Cryptography()
    except ImportError:
        return Dkimpy()
