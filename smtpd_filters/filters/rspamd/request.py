"""What rspamd is told of a message beside the message: the header of the HTTP request.

The law:
1. Every fact that smtpd knows and the daemon understands is told. What is not known is left out:
   to the daemon an empty value is a value.
2. What a client said (its greeting, user and addresses) is hostile text. No value can end its
   line, start another field, name a second recipient, or be longer than the daemon reads.
3. What the daemon relies on is only told when it is sure: a name of the client that leads back to
   its address, a user who has authenticated.

How it works. Names are those of rspamd's protocol for ``/checkv2``. The request is one of a milter:
then header values come with line feeds, and a new text is the body without the header.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.session import Session

# RFC 5321, 4.5.3.1.3: a path has at most 256 octets; smtpd takes lines of 2 KiB (SMTP_LINE_MAX of
# its 0.6 protocol), and RFC 4954, 4 user names as long as a line of base64 can hold.
MAX_VALUE = 1024
# The parser of rspamd's HTTP server resets the connection at 80 KiB of header. smtpd takes 1,000
# recipients of a message by default, which can be more than that.
MAX_RECIPIENTS = 60 << 10
# smtpd submits what sendmail(8) is given by its socket; the daemon signs for this address.
LOCAL_ADDRESS = "127.0.0.1"
_FLAGS = "milter,body_block"
# Controls, line and paragraph separators: none is a part of an address or a name. DEL to U+009F
# are the C1 controls, which as UTF-8 are no bytes of a field value (RFC 9110, 5.5) to some readers.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# What has none of RFC 5322's specials (3.2.3) but the dot.
_PLAIN = re.compile(r'[^ ()<>\[\]:;@\\,"]*')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


class Facts:
    """What is the same for each message.

    `authserv_id` is the name by which results are signed, "" for smtpd's own.
    """

    __slots__ = ("authserv_id", "deliver_to", "own")

    def __init__(  # noqa: PLR0913  # an option each
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
        told = (
            ("Flags", _FLAGS),
            ("Pass", "all" if pass_all else ""),
            ("Settings-ID", safe(settings_id)),
            ("MTA-Tag", safe(mta_tag)),
            ("Password", safe(password)),
            ("Compression", "zstd" if compressed else ""),
        )
        self.own = [(name, value) for name, value in told if value]


def fields(session: Session, facts: Facts, admd: str = "") -> tuple[list[tuple[str, str]], int]:
    """The fields of the request, and how many recipients there was no room for.

    `admd` is smtpd's authserv-id. The session has its reports up to the message's.
    """
    # smtpd completes addresses by the name of the listener: `addresses.mailbox`.
    own = session.server_name or admd
    told = list(facts.own)
    told.append(("IP", _address(session)))
    told.append(("Hostname", _hostname(session)))
    told.append(("Helo", safe(session.identity or "")))
    told.append(("User", safe(session.username or "")))
    told.append(("MTA-Name", safe(facts.authserv_id or admd)))
    if session.tls:
        # smtpd writes PROTOCOL:CIPHER:BITS.
        version, _, cipher = session.tls.partition(":")
        told.append(("TLS-Version", safe(version)))
        told.append(("TLS-Cipher", safe(cipher.partition(":")[0])))
    left_out = 0
    if session.tx is not None:
        told.append(("Queue-Id", safe(session.tx.msgid)))
        if session.tx.sender is not None:
            told.append(("From", path(session.tx.sender, own)))
        recipients, left_out = _recipients(session.tx.recipients, own)
        if facts.deliver_to and len(session.tx.recipients) == 1:
            # Of several the daemon could take but one, and that for all.
            told.append(("Deliver-To", safe(mailbox(session.tx.recipients[0], own))))
        told += recipients
    return [(name, value) for name, value in told if value], left_out


def safe(text: str) -> str:
    """Any text as the value of a field: one line without controls, of bounded length.

    What is no UTF-8 becomes U+FFFD, any control "?". White space at its ends, which is none of the
    value's (RFC 9110, 5.5), goes.
    """
    if not text.isascii():
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except UnicodeEncodeError:  # surrogates that stand for no byte, which smtpd cannot send
            text = text.encode("ascii", "replace").decode()
    if not text.isprintable():
        text = _UNSAFE.sub("?", text)
    return text[:MAX_VALUE].strip(" ")


def mailbox(address: str, own: str = "") -> str:
    """An address as smtpd takes it: without relays in front, with its own name if it has no domain.

    RFC 5321, 4.1.1.3: "Receiving systems MUST recognize source route syntax but SHOULD strip off
    the source route specification". Of a route with a comma the daemon would make another address.
    """
    if address.startswith("@"):
        return address.partition(":")[2] or address
    return f"{address}@{own}" if address and own and "@" not in address else address


def path(address: str, own: str = "") -> str:
    """An address in its angle brackets, which the daemon takes for one address.

    smtpd takes a:b@example.org; RFC 5321, 4.1.2 wants such a local part in quotes, and so does the
    daemon. Outside of quotes it would take a comma for the end of one address of several.
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
    # A zone index (fe80::1%em0) is of no use elsewhere.
    return safe(session.address or "").partition("%")[0]


def _hostname(session: Session) -> str:
    """The name of the client, if it is its own.

    A milter's MTA calls a client "unknown" whose name does not lead back to its address; the
    daemon believes the names that it is told.
    """
    if session.by_socket:
        return "localhost"
    if session.rdns is None or session.fcrdns != "pass":
        return ""
    return safe(session.rdns)


def _recipients(addresses: Sequence[str], own: str) -> tuple[list[tuple[str, str]], int]:
    told: list[tuple[str, str]] = []
    room = MAX_RECIPIENTS
    for at, address in enumerate(addresses):
        value = path(address, own)
        room -= len("Rcpt: \r\n") + len(value.encode())
        if room < 0:
            return told, len(addresses) - at
        told.append(("Rcpt", value))
    return told, 0
