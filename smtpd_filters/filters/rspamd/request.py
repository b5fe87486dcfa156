"""The header of the HTTP request to Rspamd: the facts about a message beside the message itself.

Names of fields are those of Rspamd's protocol for `/checkv2`. The request has the flag of a milter:
then header values in the reply are folded with line feeds, and a new text is the body without the
header.

Invariants
----------
*Unknown is absent*: every fact that smtpd reports and the daemon understands is sent. An unknown
fact is left out, since the daemon treats an empty value as a value.
*Client text is hostile*: no greeting, user name or address can end its line, start another field,
add a recipient, or be longer than the daemon accepts.
*Verified only*: a fact that the daemon trusts is sent only if it is verified: the client's name if
it resolves back to its address, the user if authenticated.
"""

from __future__ import annotations

import re

from smtpd_filters.checks.hosts import plain_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.session import Session

# RFC 5321 section 4.5.3.1.3: a path has at most 256 octets; smtpd accepts lines of 2 KiB
# (SMTP_LINE_MAX of its 0.6 protocol); RFC 4954 section 4 allows user names as long as a line of
# base64.
MAX_VALUE = 1024
# The parser of Rspamd's HTTP server resets the connection at 80 KiB of header. smtpd accepts 1,000
# recipients of a message by default, which can be larger.
MAX_RECIPIENTS = 60 << 10
# sendmail(8) submits mail over smtpd's socket; the daemon signs mail from this address.
LOCAL_ADDRESS = "127.0.0.1"
_FLAGS = "milter,body_block"
# Control characters, line and paragraph separators: none is valid in an address or a name. DEL to
# U+009F are the C1 controls, whose UTF-8 some readers reject in a field value (RFC 9110 section
# 5.5).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Text without RFC 5322's specials (section 3.2.3) other than the dot.
_PLAIN = re.compile(r'[^ ()<>\[\]:;@\\,"]*')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


class Facts:
    """The facts that are the same for each message.

    `authserv_id` is the name in Authentication-Results, "" for smtpd's own.
    """

    __slots__ = ("authserv_id", "deliver_to", "own")

    def __init__(  # noqa: PLR0913  # one for each option
        self,
        *,
        settings_id: str = "",
        mta_tag: str = "",
        authserv_id: str = "",
        password: str = "",
        pass_all: bool = False,
        deliver_to: bool = False,
        compressed: bool = False,
    ) -> None:
        self.authserv_id = authserv_id
        self.deliver_to = deliver_to
        headers = (
            ("Flags", _FLAGS),
            ("Pass", "all" if pass_all else ""),
            ("Settings-ID", safe(settings_id)),
            ("MTA-Tag", safe(mta_tag)),
            ("Password", safe(password)),
            ("Compression", "zstd" if compressed else ""),
        )
        self.own = [(name, value) for name, value in headers if value]


def fields(session: Session, facts: Facts, admd: str = "") -> tuple[list[tuple[str, str]], int]:
    """Return the fields of the request, and how many recipients were left out as too many.

    `admd` is smtpd's authserv-id. The session has had all reports before the message.
    """
    # smtpd completes addresses with the name of the listener: `addresses.mailbox`.
    own = session.server_name or admd
    headers = list(facts.own)
    headers.append(("IP", _address(session)))
    headers.append(("Hostname", _hostname(session)))
    headers.append(("Helo", safe(session.identity or "")))
    headers.append(("User", safe(session.username or "")))
    headers.append(("MTA-Name", safe(facts.authserv_id or admd)))
    if session.tls:
        # smtpd writes PROTOCOL:CIPHER:BITS.
        version, _, cipher = session.tls.partition(":")
        headers.append(("TLS-Version", safe(version)))
        headers.append(("TLS-Cipher", safe(cipher.partition(":")[0])))
    left_out = 0
    if session.tx is not None:
        headers.append(("Queue-Id", safe(session.tx.msgid)))
        if session.tx.sender is not None:
            headers.append(("From", path(session.tx.sender, own)))
        recipients, left_out = _recipients(session.tx.recipients, own)
        if facts.deliver_to and len(session.tx.recipients) == 1:
            # The daemon would use one of several for all recipients.
            headers.append(("Deliver-To", safe(mailbox(session.tx.recipients[0], own))))
        headers += recipients
    return [(name, value) for name, value in headers if value], left_out


def safe(text: str) -> str:
    """Return text as the value of a field: one line without control characters, of limited length.

    Invalid UTF-8 becomes U+FFFD, a control character "?". White space at the ends is removed, since
    it isn't part of a value (RFC 9110 section 5.5).
    """
    if not text.isascii():
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except UnicodeEncodeError:  # surrogates without a byte, which smtpd cannot send
            text = text.encode("ascii", "replace").decode()
    if not text.isprintable():
        text = _UNSAFE.sub("?", text)
    return text[:MAX_VALUE].strip(" ")


def mailbox(address: str, own: str = "") -> str:
    """Return an address as smtpd uses it: without a source route, with a domain (`own` by default).

    RFC 5321 section 4.1.1.3: "Receiving systems MUST recognize source route syntax but SHOULD strip
    off the source route specification". The daemon would parse a route with a comma as several
    addresses.
    """
    if address.startswith("@"):
        return address.partition(":")[2] or address
    return f"{address}@{own}" if address and own and "@" not in address else address


def path(address: str, own: str = "") -> str:
    """Return an address in angle brackets that the daemon parses as one address.

    smtpd accepts a:b@example.org; RFC 5321 section 4.1.2 requires quotes around such a local part,
    and so does the daemon. It would parse a comma outside of quotes as a separator of addresses.
    """
    clean = safe(mailbox(address, own)).replace("<", "?").replace(">", "?")
    local, at, domain = clean.rpartition("@") if "@" in clean else (clean, "", "")
    if not _PLAIN.fullmatch(local) and not _QUOTED.fullmatch(local):
        local = local.replace("\\", "\\\\").replace('"', '\\"')
        local = f'"{local}"'
    return f"<{local}{at}{domain.replace(',', '?')}>"


def _address(session: Session) -> str:
    if session.by_socket:
        return LOCAL_ADDRESS
    # A zone index (fe80::1%em0) is meaningless on other machines.
    return plain_address(safe(session.address or ""))


def _hostname(session: Session) -> str:
    """Return the client's name if it resolves back to its address, or "".

    The daemon trusts this name; a milter's MTA sends "unknown" for an unverified one.
    """
    if session.by_socket:
        return "localhost"
    if session.rdns is None or session.fcrdns != "pass":
        return ""
    return safe(session.rdns)


def _recipients(addresses: Sequence[str], own: str) -> tuple[list[tuple[str, str]], int]:
    headers: list[tuple[str, str]] = []
    room = MAX_RECIPIENTS
    for at, address in enumerate(addresses):
        value = path(address, own)
        room -= len("Rcpt: \r\n") + len(value.encode())
        if room < 0:
            return headers, len(addresses) - at
        headers.append(("Rcpt", value))
    return headers, 0
