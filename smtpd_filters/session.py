"""The state of a session and its transaction, built from smtpd's reports and read by policies.

The fields are those of smtpd-filters(7). Addresses, names and texts are the client's bytes decoded
as UTF-8, with surrogate escapes for invalid ones.

Invariants
----------
*Reports first*: reports build state, requests decide. A policy reads a `Session` and never handles
a report.
*Whole reports*: a report is applied as a whole or not at all, and applying it never raises.
*Unknown is not empty*: a field whose report is not registered raises `NotReportedError`; a failing
check is better than one that silently sees nothing. It is empty for a filter that decides only
before the report can come (`Filter.fields_without_reports`). Likewise a client whose address smtpd
has not reported is not `local`.
*As taken*: an address of the envelope has no source route and no empty domain, as for smtpd.
*Rewritten*: a parameter that a filter rewrote has its new value, though smtpd's own reports have
the old one.
"""

from __future__ import annotations

from .protocol.vis import unvis

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def text(value: bytes) -> str:
    """Decode a field of the protocol."""
    return value.decode("utf-8", "surrogateescape")


def bare(parameter: str) -> str:
    """Return a rewritten parameter as smtpd takes it: of `<address> PARAMETERS` the address."""
    return parameter[1:].partition(">")[0] if parameter.startswith("<") else parameter


def parameters(command: str | None) -> list[str]:
    """Return the parameters of a MAIL or RCPT command.

    They begin behind the first angle bracket, where smtpd ends the path; one of them may have more
    (`AUTH=<>`).
    """
    return (command or "").partition(">")[2].split()


def parameter(command: str | None, name: str) -> str | None:
    """Return the value of the first parameter of a name in capitals, `NAME=VALUE`, or None."""
    for word in parameters(command):
        keyword, equals, value = word.partition("=")
        if equals and keyword.upper() == name:
            return value
    return None


def submitter(session: Session) -> str | None:
    """Return who submitted the message of the last MAIL command, as the client says, or None.

    RFC 4954 section 5: the AUTH parameter, in xtext. None for `<>`, and for a client that has not
    authenticated. Needs the reports `link-auth` and `protocol-client`.
    """
    value = parameter(session.mail_command, "AUTH") if session.username else None
    return None if value == "<>" else value or None


def as_taken(address: bytes) -> bytes:
    """Return an address of the envelope as smtpd takes it: without its source route.

    smtpd drops everything before a colon in the local part, quotes included: `x:a@b` and `"x":a@b`
    are `a@b`, and `x:` is the null sender. So is `@`, and `a@` is `a`.
    """
    at = address.rfind(b"@")
    colon = address.find(b":", 0, at if at >= 0 else len(address))
    return address[colon + 1 :].removesuffix(b"@")


#: The fields of `link-connect` for a session whose report was missed.
_UNCONNECTED: tuple[bytes, ...] = (b"<unknown>", b"error", b"", b"")
#: The beginnings of the addresses of clients on this machine, in smtpd's notation.
_LOCAL = (b"unix:", b"127.", b"[::1]:", b"[::ffff:127.")
_V4_OCTETS, _OCTET_MAX = 4, 255
#: Characters of a reverse name on Linux (HOST_NAME_MAX); smtpd drops the rest and looks that up.
NAME_CUT = 64
#: The verbs of the commands of which a session keeps something.
COMMANDS = frozenset({b"MAIL", b"RCPT", b"AUTH"})
#: The mechanisms that smtpd offers.
_MECHANISMS = frozenset({b"PLAIN", b"LOGIN"})
#: Phases whose junk marks end with the transaction.
_OF_TRANSACTIONS = frozenset({"mail-from", "rcpt-to", "data", "headers", "message"})


class NotReportedError(LookupError):
    """A policy reads a field whose report its filter has not registered."""


class Transaction:
    """One message within a session, from `tx-begin` to its commit or rollback."""

    __slots__ = ("msgid", "recipients", "rejected", "scratch", "sender")

    def __init__(self, msgid: str) -> None:
        #: The message's id in the queue: eight hexadecimal digits.
        self.msgid = msgid
        #: The envelope sender that smtpd accepted: "" for the null sender. None until smtpd has
        #: reported it, or if it was refused; a handler that finds a transaction finds its sender.
        self.sender: str | None = None
        #: The recipients that smtpd accepted.
        self.recipients: list[str] = []
        #: The number of recipients refused by smtpd or a filter, temporarily or permanently.
        self.rejected = 0
        #: Data that filters keep until the transaction ends, by filter.
        self.scratch: dict[object, Any] = {}

    def __repr__(self) -> str:
        return f"<transaction {self.msgid} from {self.sender!r} to {self.recipients!r}>"


class Session:
    """One client connection, from `link-connect` to `link-disconnect`."""

    __slots__ = (
        "_authenticated",
        "_connect",
        "auth_mechanism",
        "edited",
        "failed_username",
        "identity",
        "key",
        "mail_command",
        "mark",
        "method",
        "rcpt_command",
        "refused_recipients",
        "rewrites",
        "scratch",
        "server_name",
        "story",
        "tls",
        "tx",
        "username",
    )

    #: The host name in smtpd's greeting: that of the listener, or of its `hostnames` table. smtpd
    #: completes addresses without a domain with it. None before the greeting.
    server_name: str | None
    #: HELO or EHLO; None before the greeting.
    method: str | None
    #: The name in the client's greeting; None before it.
    identity: str | None
    #: Protocol and cipher, such as `TLSv1.3:TLS_AES_256_GCM_SHA384:256`; None without TLS.
    tls: str | None
    #: The authenticated user; None before authentication and after a failure.
    username: str | None
    #: The user name of the last authentication, if it failed; else None.
    failed_username: str | None
    #: The client's last MAIL command with its parameters, `MAIL FROM:<a@b> SIZE=1000`; None before
    #: it. Only if a `Registration` names the report `protocol-client`.
    mail_command: str | None
    #: The client's last RCPT command, in the same way.
    rcpt_command: str | None
    #: The mechanism of the client's last AUTH command, PLAIN or LOGIN, passed or failed; None
    #: before it. With the same report. With `link-auth` as well, that which has passed stays.
    auth_mechanism: str | None
    #: The current transaction, or None. There is one in `rcpt_to`, `data`, `headers`, `message`
    #: and `commit`, but none in `mail_from`, whose decision begins it.
    tx: Transaction | None
    #: The number of recipients, in all transactions, that were refused permanently: by smtpd,
    #: because they are unknown or invalid, or by a filter.
    refused_recipients: int
    #: Data that filters keep until the session ends, by filter.
    scratch: dict[object, Any]

    def __init__(self, session: bytes) -> None:
        #: The session's id as smtpd writes it.
        self.key = session
        self._connect = _UNCONNECTED
        self._authenticated = False
        #: The phase whose junk decision is still to be turned into a mark; "" if there is none.
        self.mark = ""
        #: Rewritten parameters by phase, until smtpd's report of the command.
        self.rewrites: dict[str, str] | None = None
        #: While a filter judges the message: returns whether the filter has changed it.
        self.edited: Callable[[], bool] | None = None
        #: The events of the session for the journal (`journal.collector`).
        self.story: Any = None

    def expect(self, fields: Iterable[str]) -> Session:
        """Make these fields readable: their reports are registered."""
        for field in fields:
            setattr(self, field, _AT_FIRST.get(field))
        return self

    def __getattr__(self, name: str) -> Any:
        # Called only for a slot without a value.
        if name == "scratch":
            self.scratch = {}
            return self.scratch
        for report in FIELDS:
            if name in FIELDS[report]:
                where = "" if name != "tx" else "rcpt_to and later handlers have it; elsewhere "
                raise NotReportedError(
                    f"session.{name} needs the report {report!r}: {where}add it to the Registration"
                )
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    @property
    def id(self) -> str:
        """The session id in smtpd's log: 16 hexadecimal digits."""
        return self.key.decode("latin-1")

    @property
    def rdns(self) -> str | None:
        """The client's reverse name, or None."""
        # smtpd writes "<unknown>", though its manual page documents an empty field.
        rdns = self._connect[0]
        return text(rdns) if rdns not in (b"<unknown>", b"") else None

    @property
    def fcrdns(self) -> str:
        """Whether the reverse name resolves to the client: "pass", "fail" or "error" (DNS).

        An IP address in place of the name, which smtpd confirms without the DNS, is "fail". A name
        of `NAME_CUT` characters that fails is "error": smtpd may have looked up a part of it.
        """
        rdns, result, *_ = self._connect
        # smtpd passes the name to getaddrinfo(3), for which an address leads to itself. RFC 1123
        # section 2.1: "a valid host name can never have the dotted-decimal form". Postfix takes
        # such a client for one without a name.
        if result == b"pass" and (b":" in rdns or _is_ipv4(rdns)):
            return "fail"
        if result == b"fail" and len(rdns) == NAME_CUT:
            return "error"
        return text(result)

    @property
    def src(self) -> str:
        """The client's endpoint: `192.0.2.1:33174`, `[2001:db8::1]:25` or `unix:PATH`."""
        return text(self._connect[2])

    @property
    def dest(self) -> str:
        """The server's endpoint, in the same form."""
        return text(self._connect[3])

    @property
    def by_socket(self) -> bool:
        """Whether the client uses smtpd's own socket, as `sendmail` does."""
        return self._connect[2].startswith(b"unix:")

    @property
    def local(self) -> bool:
        """Whether the client is on this machine: on smtpd's socket, or at a loopback address.

        RFC 1122 section 3.2.1.3 (g) and RFC 4291 section 2.5.3. A client whose address smtpd has
        not reported is not local.
        """
        src = self._connect[2]
        return src.startswith(_LOCAL) and _is_local(src)

    @property
    def address(self) -> str | None:
        """The client's IP address without port and brackets.

        None for a client on smtpd's socket, and for one whose address smtpd has not reported.
        """
        src = self.src
        if not src or self.by_socket:
            return None
        return src.rpartition(":")[0].strip("[]")

    def __repr__(self) -> str:
        return f"<session {self.id} {self.rdns or '<unknown>'} {self.src}>"

    def rewritten(self, phase: str, parameter: str) -> None:
        """Keep the parameter that a filter put in place of the client's, as smtpd takes it."""
        if self.rewrites is None:
            self.rewrites = {}
        self.rewrites[phase] = bare(parameter)

    def apply(self, name: str, values: tuple[bytes, ...]) -> None:
        """Apply a report: its name, and its fields in the order of protocol 0.7."""
        if name == "link-connect":
            self._connect = values
            return
        action = _ACTIONS.get(name)
        if action is not None:
            action(self, *values)

    # -- one method for each report, with its fields as parameters -----------------------

    def _link_greeting(self, hostname: bytes) -> None:
        self.server_name = text(hostname)

    def _link_identify(self, method: bytes, identity: bytes) -> None:
        self.method, self.identity = text(method), text(identity)

    def _link_tls(self, tls: bytes) -> None:
        # RFC 3207 section 4.2: STARTTLS invalidates the client's previous EHLO; smtpd reports the
        # new one.
        self.tls = text(tls)

    def _link_auth(self, result: bytes, username: bytes) -> None:
        # smtpd encodes the name with vis(3), in 6.8 as well as in 7.8.
        user = text(unvis(username))
        passed = result == b"pass"
        self._authenticated = passed
        self.username = user if passed else None
        self.failed_username = None if passed else user

    def _protocol_client(self, command: bytes) -> None:
        # smtpd reports a command before it asks filters about it.
        verb = command[:5].upper()
        if verb == b"MAIL ":
            self.mail_command = text(command)
        elif verb == b"RCPT ":
            self.rcpt_command = text(command)
        elif verb == b"AUTH " and not self._authenticated:  # smtpd refuses another one then
            # smtpd masks what follows; nothing else is kept in any case.
            mechanism = command[5:].partition(b" ")[0].upper()
            self.auth_mechanism = text(mechanism) if mechanism in _MECHANISMS else None

    def _tx_begin(self, msgid: bytes) -> None:
        self.tx = Transaction(text(msgid))

    def _tx_mail(self, msgid: bytes, result: bytes, address: bytes) -> None:
        sender = self.rewrites and self.rewrites.pop("mail-from", None)
        if result == b"ok":
            tx = self._transaction(msgid)
            tx.sender = sender if isinstance(sender, str) else text(as_taken(address))

    def _tx_rcpt(self, msgid: bytes, result: bytes, address: bytes) -> None:
        recipient = self.rewrites and self.rewrites.pop("rcpt-to", None)
        tx = self._transaction(msgid)
        if result == b"ok":
            known = recipient if isinstance(recipient, str) else text(as_taken(address))
            tx.recipients.append(known)
        else:
            tx.rejected += 1
            if result == b"permfail":
                self._count_refused_recipient()

    def _tx_reset(self, _msgid: bytes) -> None:
        # It ends every transaction, after its commit or its rollback.
        self.tx = None
        self.rewrites = None
        if self.mark in _OF_TRANSACTIONS:
            self.mark = ""

    def _count_refused_recipient(self) -> None:
        try:
            self.refused_recipients += 1
        except NotReportedError:  # only a tap registered this report
            pass

    def _transaction(self, msgid: bytes) -> Transaction:
        """Return the open transaction, or a new one if its beginning was not reported."""
        try:
            tx = self.tx
        except NotReportedError:  # only a tap registered this report
            tx = None
        if tx is None:
            tx = self.tx = Transaction(text(msgid))
        return tx


def _is_local(src: bytes) -> bool:
    """Whether a source that starts like a local one is completely valid as one."""
    if src.startswith((b"unix:", b"[::1]:")):
        return True
    return _is_ipv4(src.rpartition(b":")[0].strip(b"[]").removeprefix(b"::ffff:"))


def _is_ipv4(address: bytes) -> bool:
    octets = address.split(b".")
    return len(octets) == _V4_OCTETS and all(
        octet.isdigit() and int(octet[:4]) <= _OCTET_MAX for octet in octets
    )


_ACTIONS: dict[str, Callable[..., None]] = {
    "link-greeting": Session._link_greeting,  # noqa: SLF001  # one class
    "link-identify": Session._link_identify,  # noqa: SLF001
    "link-tls": Session._link_tls,  # noqa: SLF001
    "link-auth": Session._link_auth,  # noqa: SLF001
    "protocol-client": Session._protocol_client,  # noqa: SLF001
    "tx-begin": Session._tx_begin,  # noqa: SLF001
    "tx-mail": Session._tx_mail,  # noqa: SLF001
    "tx-rcpt": Session._tx_rcpt,  # noqa: SLF001
    "tx-reset": Session._tx_reset,  # noqa: SLF001
}

#: The fields that each report provides; `link-connect`, with its fields, is always registered.
FIELDS: dict[str, tuple[str, ...]] = {
    "link-greeting": ("server_name",),
    "link-identify": ("method", "identity"),
    "link-tls": ("tls",),
    "link-auth": ("username", "failed_username"),
    "tx-begin": ("tx", "refused_recipients"),
    "protocol-client": ("mail_command", "rcpt_command", "auth_mechanism"),
}
#: Reports that only filters get that name them: there is one for each command of a client.
NAMED_ONLY = frozenset({"protocol-client"})
#: Initial values of fields, where they aren't None.
_AT_FIRST: dict[str, Any] = {"refused_recipients": 0}
#: Reports that are registered together with another: a transaction is described by several.
TOGETHER: dict[str, tuple[str, ...]] = {
    "tx-begin": ("tx-mail", "tx-rcpt", "tx-reset"),
}
