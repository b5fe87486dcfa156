"""The request of Postfix's policy delegation protocol, built without I/O.

A request is a list of lines `name=value` that ends with an empty line (SMTPD_POLICY_README). Names
and values are those of Postfix 3.7; what smtpd doesn't tell a filter is empty.

Invariants
----------
*Every attribute in every request*: a server may keep the attributes of the request before on the
same connection. Dovecot's quota-status refuses mail for the size of an earlier message if a request
has no size.
*No attribute from outside*: a value is what the client or the DNS said, without NUL, CR and LF,
which would end it and begin another attribute.
"""

from __future__ import annotations

from smtpd_filters.addresses import path
from smtpd_filters.checks.hosts import plain_address
from smtpd_filters.session import parameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_filters.session import Session

#: All attributes of Postfix up to 3.7, in its order. Those of 3.8, `compatibility_level` and
#: `mail_version`, describe Postfix itself.
ATTRIBUTES = (
    "request", "protocol_state", "protocol_name", "client_address", "client_name", "client_port",
    "reverse_client_name", "server_address", "server_port", "helo_name", "sender", "recipient",
    "recipient_count", "queue_id", "instance", "size", "etrn_domain", "stress", "sasl_method",
    "sasl_username", "sasl_sender", "ccert_subject", "ccert_issuer", "ccert_fingerprint",
    "ccert_pubkey_fingerprint", "encryption_protocol", "encryption_cipher", "encryption_keysize",
    "policy_context", "tls_sni",
)  # fmt: skip
#: Octets of a value; smtpd's longest command line has fewer.
MAX_VALUE = 4096
#: The names of a client without a reverse name.
UNKNOWN = "unknown"
#: The client on smtpd's own socket: postgrey exits on an empty address.
SOCKET = {"client_address": "127.0.0.1", "client_name": "localhost"}
#: A request by which a server shows that it works: this machine has connected, nothing more. What
#: a server may remember of it (postgrey has an entry without addresses) concerns no mail.
PROBE = {
    "request": "smtpd_access_policy",
    "protocol_state": "CONNECT",
    "protocol_name": "ESMTP",
    "reverse_client_name": SOCKET["client_name"],
    "instance": "smtpd-filters-check",
    "size": "0",
    **SOCKET,
}
#: Digits of a size: those of 2**63, RFC 1870 section 4 allows 20.
_MAX_DIGITS = 19


def build(values: Mapping[str, str]) -> bytes:
    """Return a request with all `ATTRIBUTES`; those that `values` lacks are empty.

    Raises KeyError for a name that is not one of them.
    """
    if unknown := values.keys() - set(ATTRIBUTES):
        raise KeyError(*sorted(unknown))
    lines = [b"%s=%s" % (name.encode(), _clean(values.get(name, ""))) for name in ATTRIBUTES]
    return b"\n".join([*lines, b"", b""])


def _clean(value: str) -> bytes:
    """Return a value in one line: the bytes that the client sent."""
    return value.encode("utf-8", "surrogateescape").translate(None, b"\0\r\n")[:MAX_VALUE]


def of_session(session: Session) -> dict[str, str]:
    """Return what is known of a client, after its connection and as its commands go on."""
    values = {
        "request": "smtpd_access_policy",
        "protocol_name": "ESMTP" if session.method == "EHLO" else "SMTP",
        "helo_name": session.identity or "",
        "sasl_username": session.username or "",
        "reverse_client_name": session.rdns or UNKNOWN,
        # As Postfix: the name is verified, that of the reverse look-up is not.
        "client_name": (session.rdns if session.fcrdns == "pass" else None) or UNKNOWN,
        "client_address": plain_address(session.address or ""),
        "client_port": _port(session.src),
        "server_address": _host(session.dest),
        "server_port": _port(session.dest),
    }
    if session.by_socket:
        values |= SOCKET | {"reverse_client_name": SOCKET["client_name"]}
    if session.tls:
        # PROTOCOL:CIPHER:BITS
        protocol, cipher, keysize, *_ = (*session.tls.split(":"), "", "")
        values["encryption_protocol"] = protocol
        values["encryption_cipher"] = cipher
        values["encryption_keysize"] = keysize
    return values


def _host(endpoint: str) -> str:
    """Return the address of `ADDRESS:PORT`, without the brackets of IPv6."""
    if endpoint.startswith("unix:"):
        return ""
    return plain_address(endpoint.rpartition(":")[0].strip("[]"))


def _port(endpoint: str) -> str:
    return "" if endpoint.startswith("unix:") else endpoint.rpartition(":")[2]


def declared_size(command: str | None) -> int:
    """Return the size that a MAIL command declares (RFC 1870), or 0."""
    value = parameter(command, "SIZE") or ""
    valid = len(value) <= _MAX_DIGITS and value.isascii() and value.isdigit()
    return int(value) if valid else 0


def address(text: str, server_name: str | None) -> str:
    """Return an address of the envelope as smtpd uses it, and as Postfix writes it.

    It has a domain, that of smtpd if the client gives none, but no source route and no quotes.
    """
    return str(path(text).completed(server_name))
