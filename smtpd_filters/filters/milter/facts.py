"""The facts of a session that milters get: its endpoints, its names, the values of macros.

Sources: Postfix's milter_macros (MILTER_README) for the values, and libmilter for their names.
"""

from __future__ import annotations

from smtpd_filters.milter import vocabulary as v

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.session import Session

_IPV6 = "IPv6:"


class Facts:
    """The facts of one session and of its transaction.

    `host` is the name of this machine, `daemon` the value of `{daemon_name}`, `version` smtpd's.
    """

    __slots__ = ("_base", "identity", "parameters", "sender", "serial", "session", "tx")

    def __init__(self, session: Session, *, host: str, daemon: str, version: str) -> None:
        self.session = session
        self._base = (host, daemon, version)
        #: The name in the client's greeting.
        self.identity: str | None = None
        #: The number of the transaction in this session, its sender and its ESMTP parameters.
        self.serial = 0
        self.sender = ""
        self.parameters: list[bytes] = []
        #: smtpd's transaction, once it has begun.
        self.tx: object = None

    def begin(self, sender: str) -> None:
        """Note a MAIL command."""
        self.serial += 1
        self.sender = sender
        self.parameters = esmtp_parameters(self.session.mail_command)
        self.tx = None

    def update(self) -> None:
        """Note what smtpd has reported since: a greeting, and a transaction.

        The transaction is that of the last MAIL, or another that was not asked about.
        """
        session = self.session
        self.identity = session.identity or self.identity
        tx = session.tx
        if tx is None or tx is self.tx:
            return
        if self.tx is not None or not self.serial:
            self.begin(tx.sender or "")
        self.tx = tx

    @property
    def recipients(self) -> list[str]:
        """The recipients that smtpd has accepted."""
        tx = self.session.tx
        return [] if tx is None else tx.recipients

    def endpoint(self) -> tuple[bytes, bytes, int, bytes]:
        """Return what CONNECT has: the client's host, its family, its port, its address."""
        session = self.session
        if session.by_socket:
            return b"localhost", b"4", 0, b"127.0.0.1"
        address = session.address
        if address is None:
            return b"unknown", b"U", 0, b""
        name = session.rdns if session.fcrdns == "pass" else None
        return (
            encoded(name or f"[{address}]"),
            b"6" if ":" in address else b"4",
            _port(session.src),
            encoded(address),
        )

    def macros(self, event: bytes, recipient: str = "") -> dict[bytes, bytes]:
        """Return the values that are known at an event, by the names of macros."""
        values = self._of_connection()
        if event != v.CONNECT:
            values |= self._of_greeting()
        if event not in {v.CONNECT, v.HELO}:
            values |= self._of_message()
        if event == v.RCPT:
            values |= _mailbox("rcpt", recipient)
        return {
            name.encode(): encoded(value).replace(b"\0", b"")
            for name, value in values.items()
            if value is not None
        }

    def _of_connection(self) -> dict[str, str | None]:
        session, (host, daemon, version) = self.session, self._base
        name = session.server_name or host
        address, rdns = session.address, session.rdns
        values: dict[str, str | None] = {
            "j": name,
            "v": f"OpenSMTPD {version}".rstrip(),
            "{daemon_name}": daemon or name,
        }
        if session.dest and not session.by_socket:
            values["{daemon_addr}"] = _plain(session.dest)
            values["{daemon_port}"] = str(_port(session.dest))
        if session.by_socket:
            values |= {"_": "localhost [127.0.0.1]", "{client_addr}": "127.0.0.1"}
            values |= {"{client_name}": "localhost", "{client_ptr}": "localhost"}
            values |= {"{client_port}": "0", "{client_resolve}": "OK"}
        elif address is not None:
            shown = _IPV6 + address if ":" in address else address
            passed = session.fcrdns == "pass"
            forged = "" if passed else " (may be forged)"
            values["_"] = f"{rdns} [{shown}]{forged}" if rdns else f"unknown [{shown}]"
            values["{client_addr}"] = shown
            values["{client_name}"] = rdns if rdns and passed else "unknown"
            values["{client_ptr}"] = rdns or "unknown"
            values["{client_port}"] = str(_port(session.src))
            values["{client_resolve}"] = _resolved(session)
        values["{client_connections}"] = "0"
        return values

    def _of_greeting(self) -> dict[str, str | None]:
        parts = (self.session.tls or "").split(":")
        names = ("{tls_version}", "{cipher}", "{cipher_bits}")
        return {name: part for name, part in zip(names, parts, strict=False) if part}

    def _of_message(self) -> dict[str, str | None]:
        values = _mailbox("mail", self.sender)
        if user := self.session.username:
            values |= {"{auth_type}": "PLAIN", "{auth_authen}": user}
        if tx := self.session.tx:
            values["i"] = tx.msgid
        return values


def encoded(text: str) -> bytes:
    """Return a text of the session as the client's bytes."""
    return text.encode("utf-8", "surrogateescape").replace(b"\0", b"")


def bracketed(address: str) -> bytes:
    """Return an address with its angle brackets."""
    return b"<%b>" % encoded(address)


def esmtp_parameters(command: str | None) -> list[bytes]:
    """Return the ESMTP parameters of a MAIL command."""
    _, end, rest = (command or "").rpartition(">")
    return [encoded(word) for word in rest.split()] if end else []


def _mailbox(kind: str, address: str) -> dict[str, str | None]:
    return {
        f"{{{kind}_addr}}": address,
        f"{{{kind}_host}}": address.rpartition("@")[2] if "@" in address else None,
        f"{{{kind}_mailer}}": "smtp",
    }


def _resolved(session: Session) -> str:
    if session.fcrdns == "pass":
        return "OK"
    if session.fcrdns == "error":
        return "TEMP"
    return "FORGED" if session.rdns else "FAIL"


def _plain(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def _port(endpoint: str) -> int:
    port = endpoint.rpartition(":")[2]
    return int(port) & 0xFFFF if port.isdigit() else 0
