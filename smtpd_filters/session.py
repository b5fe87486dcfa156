"""What is known of a client and its transaction: built from reports, read by policies.

Invariants
----------
Reports first
    Reports build state, requests decide.  A policy reads a `Session` and never handles a report.
Whole reports
    A report is applied as a whole or not at all; none raises.
Unknown is not nothing
    A field whose report nobody asked smtpd for raises `NotReportedError`, for a check that silently
    sees nothing is worse than one that fails.  And a client of which smtpd has not reported where
    it is, is a stranger: only what smtpd has reported makes it `local`.
Rewritten
    What smtpd was told to rewrite shows rewritten, though its own reports show the old address.

The fields are smtpd-filters(7)'s.  Addresses, names and texts are the client's bytes as UTF-8,
with surrogate escapes for what is not.
"""

from __future__ import annotations

from .protocol.vis import unvis

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def text(value: bytes) -> str:
    """A field of the wire as text."""
    return value.decode("utf-8", "surrogateescape")


#: What is known of a session whose ``link-connect`` was not seen.
_UNCONNECTED: tuple[bytes, ...] = (b"<unknown>", b"error", b"", b"")
#: What the address of a client on this machine begins with, as smtpd writes it.
_LOCAL = (b"unix:", b"127.", b"[::1]:", b"[::ffff:127.")
_V4_OCTETS, _OCTET_MAX = 4, 255
#: Phases whose marks go with the transaction.
_OF_TRANSACTIONS = frozenset({"mail-from", "rcpt-to", "data", "headers", "message"})


class NotReportedError(LookupError):
    """A policy reads a field whose report its filter did not ask for."""


class Transaction:
    """One message within a session, from ``tx-begin`` to its commit or rollback."""

    __slots__ = ("msgid", "recipients", "rejected", "scratch", "sender")

    def __init__(self, msgid: str) -> None:
        #: The message's id in the queue: eight hexadecimal digits.
        self.msgid = msgid
        #: The envelope sender that smtpd took: "" for the null sender, None before.
        self.sender: str | None = None
        #: The recipients that smtpd took.
        self.recipients: list[str] = []
        #: How many recipients were refused, for now or for good, by smtpd or by a filter.
        self.rejected = 0
        #: What filters keep for the length of the transaction, by filter.
        self.scratch: dict[object, Any] = {}

    def __repr__(self) -> str:
        return f"<transaction {self.msgid} from {self.sender!r} to {self.recipients!r}>"


class Session:
    """One client connection, from ``link-connect`` to ``link-disconnect``."""

    __slots__ = (
        "_connect",
        "identity",
        "key",
        "mark",
        "method",
        "refused_recipients",
        "rewrites",
        "scratch",
        "server_name",
        "tls",
        "tx",
        "username",
    )

    #: The host name with which smtpd greeted the client: that of the listener, or of its
    #: `hostnames` table. smtpd completes addresses without a domain with it. None before.
    server_name: str | None
    #: HELO or EHLO; None before the greeting.
    method: str | None
    #: The name in the client's greeting; None before it.
    identity: str | None
    #: Protocol and cipher, such as ``TLSv1.3:TLS_AES_256_GCM_SHA384:256``; None without TLS.
    tls: str | None
    #: The user, once it has authenticated; None before and after a failure.
    username: str | None
    #: The transaction; None outside of one.
    tx: Transaction | None
    #: How many recipients, of all transactions, were refused for good: by smtpd, to which they are
    #: unknown or no addresses, or by a filter.
    refused_recipients: int
    #: What filters keep for the length of the session, by filter.
    scratch: dict[object, Any]

    def __init__(self, session: bytes) -> None:
        #: The session's id as smtpd writes it.
        self.key = session
        self._connect = _UNCONNECTED
        #: The phase that decided on junk where no mark could be made yet; "" when there is none.
        self.mark = ""
        #: What smtpd was told to take for a phase's parameter, until it reports that it has.
        self.rewrites: dict[str, str] | None = None

    def expect(self, fields: Iterable[str]) -> Session:
        """Make these fields readable: their reports will come."""
        for field in fields:
            setattr(self, field, _AT_FIRST.get(field))
        return self

    def __getattr__(self, name: str) -> Any:
        # Reached only for a slot that is still empty.
        if name == "scratch":
            self.scratch = {}
            return self.scratch
        for report, fields in FIELDS.items():
            if name in fields:
                raise NotReportedError(f"session.{name} needs the report {report!r} in `needs`")
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    @property
    def id(self) -> str:
        """The session's name in smtpd's log, 16 hexadecimal digits to grep for."""
        return self.key.decode("latin-1")

    @property
    def rdns(self) -> str | None:
        """The client's reverse name; None when it has none."""
        # smtpd writes "<unknown>"; the manual page says it would be empty.
        rdns = self._connect[0]
        return text(rdns) if rdns not in (b"<unknown>", b"") else None

    @property
    def fcrdns(self) -> str:
        """Whether that name leads back: "pass", "fail", or "error" when the DNS failed."""
        return text(self._connect[1])

    @property
    def src(self) -> str:
        """Where the client is: ``192.0.2.1:33174``, ``[2001:db8::1]:25`` or ``unix:PATH``."""
        return text(self._connect[2])

    @property
    def dest(self) -> str:
        """Where it came to, likewise."""
        return text(self._connect[3])

    @property
    def by_socket(self) -> bool:
        """Whether the client came by smtpd's own socket, as ``sendmail`` does."""
        return self._connect[2].startswith(b"unix:")

    @property
    def local(self) -> bool:
        """Whether the client is on this machine: by smtpd's socket, or from a loopback address.

        RFC 1122 section 3.2.1.3 (g) and RFC 4291 section 2.5.3.  A client of which smtpd has
        reported nothing is not local.
        """
        src = self._connect[2]
        return src.startswith(_LOCAL) and _is_local(src)

    @property
    def address(self) -> str | None:
        """The client's IP address without port and brackets.

        None for a client on smtpd's socket, and for one of which smtpd has reported nothing.
        """
        src = self.src
        if not src or self.by_socket:
            return None
        return src.rpartition(":")[0].strip("[]")

    def __repr__(self) -> str:
        return f"<session {self.id} {self.rdns or '<unknown>'} {self.src}>"

    def rewritten(self, phase: str, parameter: str) -> None:
        """Keep what smtpd was told to take for the client's parameter.

        Only the address is kept of ``<address> PARAMETERS``.
        """
        if parameter.startswith("<"):
            parameter = parameter[1:].partition(">")[0]
        if self.rewrites is None:
            self.rewrites = {}
        self.rewrites[phase] = parameter

    def apply(self, name: str, values: tuple[bytes, ...]) -> None:
        """Take in what smtpd reports: the report's name, and its fields as 0.7 orders them."""
        if name == "link-connect":
            self._connect = values
            return
        action = _ACTIONS.get(name)
        if action is not None:
            action(self, *values)

    # -- one for each report; their parameters are its fields ----------------------------

    def _link_greeting(self, hostname: bytes) -> None:
        self.server_name = text(hostname)

    def _link_identify(self, method: bytes, identity: bytes) -> None:
        self.method, self.identity = text(method), text(identity)

    def _link_tls(self, tls: bytes) -> None:
        # RFC 3207, 4.2: after STARTTLS the client's former greeting counts no more; smtpd
        # reports the new one.
        self.tls = text(tls)

    def _link_auth(self, result: bytes, username: bytes) -> None:
        # smtpd writes the name in the form of vis(3), 6.8 as well as 7.8.
        self.username = text(unvis(username)) if result == b"pass" else None

    def _tx_begin(self, msgid: bytes) -> None:
        self.tx = Transaction(text(msgid))

    def _tx_mail(self, msgid: bytes, result: bytes, address: bytes) -> None:
        sender = self.rewrites and self.rewrites.pop("mail-from", None)
        if result == b"ok":
            tx = self._transaction(msgid)
            tx.sender = sender if isinstance(sender, str) else text(address)

    def _tx_rcpt(self, msgid: bytes, result: bytes, address: bytes) -> None:
        recipient = self.rewrites and self.rewrites.pop("rcpt-to", None)
        tx = self._transaction(msgid)
        if result == b"ok":
            tx.recipients.append(recipient if isinstance(recipient, str) else text(address))
        else:
            tx.rejected += 1
            if result == b"permfail":
                self._count_refused_recipient()

    def _tx_reset(self, _msgid: bytes) -> None:
        # It ends every transaction, behind its commit as behind its rollback.
        self.tx = None
        self.rewrites = None
        if self.mark in _OF_TRANSACTIONS:
            self.mark = ""

    def _count_refused_recipient(self) -> None:
        try:
            self.refused_recipients += 1
        except NotReportedError:  # a tap asked for this report alone
            pass

    def _transaction(self, msgid: bytes) -> Transaction:
        """The open transaction; one of its own if its beginning was not reported."""
        try:
            tx = self.tx
        except NotReportedError:  # a tap asked for this report alone
            tx = None
        if tx is None:
            tx = self.tx = Transaction(text(msgid))
        return tx


def _is_local(src: bytes) -> bool:
    """Whether a source that begins as a local one is one to its end."""
    if src.startswith((b"unix:", b"[::1]:")):
        return True
    octets = src.rpartition(b":")[0].strip(b"[]").removeprefix(b"::ffff:").split(b".")
    return len(octets) == _V4_OCTETS and all(
        octet.isdigit() and int(octet[:4]) <= _OCTET_MAX for octet in octets
    )


_ACTIONS: dict[str, Callable[..., None]] = {
    "link-greeting": Session._link_greeting,  # noqa: SLF001  # one class
    "link-identify": Session._link_identify,  # noqa: SLF001
    "link-tls": Session._link_tls,  # noqa: SLF001
    "link-auth": Session._link_auth,  # noqa: SLF001
    "tx-begin": Session._tx_begin,  # noqa: SLF001
    "tx-mail": Session._tx_mail,  # noqa: SLF001
    "tx-rcpt": Session._tx_rcpt,  # noqa: SLF001
    "tx-reset": Session._tx_reset,  # noqa: SLF001
}

#: The fields that a report gives, beyond those of ``link-connect``, which is always asked for.
FIELDS: dict[str, tuple[str, ...]] = {
    "link-greeting": ("server_name",),
    "link-identify": ("method", "identity"),
    "link-tls": ("tls",),
    "link-auth": ("username",),
    "tx-begin": ("tx", "refused_recipients"),
}
#: What a field holds before its report has come, where that is not None.
_AT_FIRST: dict[str, Any] = {"refused_recipients": 0}
#: What comes with a field's report when that is asked for: the transaction is several reports.
TOGETHER: dict[str, tuple[str, ...]] = {
    "tx-begin": ("tx-mail", "tx-rcpt", "tx-reset"),
}
