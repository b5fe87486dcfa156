"""The encryption of a connection, as smtpd reports it.

smtpd's `link-tls` has the protocol, the cipher's name and the bits of its key, separated by colons:
`TLSv1.3:TLS_AES_256_GCM_SHA384:256`. It doesn't have the client's certificate: whether smtpd has
verified one is stated at the end of the same words in the Received field that smtpd writes into
each message, `(TLSv1.3:TLS_AES_256_GCM_SHA384:256:YES)`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    #: A version of TLS, such as (1, 2). SSL counts as (0, 0), less than any.
    Version: TypeAlias = tuple[int, int]

#: Key exchanges of TLS 1.2 and earlier whose keys can't be computed later from the server's own.
_EPHEMERAL = ("ECDHE-", "DHE-", "EDH-", "AECDH-", "ADH-")
_TLS = "TLSv"


class Channel:
    """The protocol, cipher and key length of an encrypted connection."""

    __slots__ = ("bits", "cipher", "protocol", "version")

    def __init__(self, protocol: str, cipher: str, bits: int) -> None:
        #: The name of the protocol, such as `TLSv1.2`.
        self.protocol = protocol
        self.version = _version(protocol)
        #: The cipher's name as OpenSSL and LibreSSL spell it.
        self.cipher = cipher
        #: The bits of the cipher's key; 0 if smtpd reported none.
        self.bits = bits

    @property
    def forward_secrecy(self) -> bool:
        """Whether the session's keys are ephemeral."""
        # RFC 8446 section 1.2: all public-key based key exchange of TLS 1.3 provides it.
        return self.version >= (1, 3) or self.cipher.startswith(_EPHEMERAL)

    def __repr__(self) -> str:
        return f"<channel {self.protocol} {self.cipher} {self.bits}>"


def parse_channel(text: str) -> Channel:
    """Parse smtpd's words; raise ValueError if the protocol is unknown."""
    protocol, _, rest = text.partition(":")
    cipher, _, bits = rest.partition(":")
    number = int(bits) if bits.isascii() and bits.isdigit() and len(bits) < 6 else 0
    return Channel(protocol, cipher, number)


def parse_version(text: str) -> Version:
    """Parse `1.2`, or `1` for 1.0; raise ValueError."""
    major, _, minor = text.partition(".")
    if not (f"{major}{minor}".isascii() and major.isdigit() and (minor or "0").isdigit()):
        raise ValueError(f"not a version: {text[:20]!r}")
    if len(text) > 5:
        raise ValueError(f"not a version: {text[:20]!r}")
    return int(major), int(minor or 0)


def _version(protocol: str) -> Version:
    if protocol.startswith("SSL"):
        return 0, 0
    if not protocol.startswith(_TLS):
        raise ValueError(f"unknown protocol {protocol[:40]!r}")
    return parse_version(protocol.removeprefix(_TLS))


def is_verified(received: str, msgid: str, tls: str) -> bool | None:
    """Return whether smtpd's own Received field says that it verified the client's certificate.

    `received` is the value of the topmost Received field, `tls` what `link-tls` reported. None
    stands for a field that smtpd hasn't written: the id of the message, which no client knows
    before the message is complete, must be in it.
    """
    words = " ".join(received.split())
    head, found, rest = words.partition(f" id {msgid} ({tls}:")
    if not found or "(OpenSMTPD) with " not in head:
        return None
    return rest.partition(")")[0] == "YES"
