"""The facts of a session that milters get: its endpoints, its names, the values of macros.

Sources: Postfix's milter_macros (MILTER_README) for the values, and libmilter for their names.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from socket import gethostname

from smtpd_filters.addresses import canonical, path
from smtpd_filters.checks.hosts import plain_address
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.session import FIELDS, Session, parameters, submitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    #: Returns the value of a macro, None if it is not known.
    Getter: TypeAlias = Callable[["Facts"], str | None]

_IPV6 = "IPv6:"
#: The endpoint of smtpd's socket.
_SOCKET = b"unix:smtpd"


class Facts:
    """The facts of one session and of its transaction.

    `host` is the name of this machine, `daemon` the value of `{daemon_name}`, `version` smtpd's.
    """

    __slots__ = (
        "_base", "_recipient", "identity", "parameters", "sender", "serial", "session", "tx",
    )  # fmt: skip

    def __init__(self, session: Session, *, host: str, daemon: str, version: str) -> None:
        self.session = session
        self._base = (host, daemon, version)
        #: The name in the client's greeting.
        self.identity: str | None = None
        #: The number of the transaction in this session, its sender and its ESMTP parameters.
        self.serial = 0
        self.sender = ""
        self.parameters: list[bytes] = []
        #: The recipient of the event for which macros are made.
        self._recipient = ""
        #: smtpd's transaction, once it has begun.
        self.tx: object = None

    @classmethod
    def of_this_machine(cls) -> Facts:
        """Return those of a session on smtpd's socket, with the null sender."""
        session = Session(b"0" * 16).expect(chain.from_iterable(FIELDS.values()))
        session.apply("link-connect", (b"localhost", b"pass", _SOCKET, _SOCKET))
        host = gethostname()
        facts = cls(session, host=host, daemon="", version="")
        facts.identity = host
        facts.begin("")
        return facts

    def begin(self, sender: str) -> None:
        """Note a MAIL command."""
        self.serial += 1
        self.sender = sender
        self.parameters = list(map(encoded, parameters(self.session.mail_command)))
        self.tx = None

    def update(self, identity: str | None = None) -> None:
        """Note what smtpd has reported since: a greeting, and a transaction.

        `identity` is the name of a greeting that smtpd has not reported yet. The transaction is
        that of the last MAIL, or another that was not asked about.
        """
        session = self.session
        self.identity = identity or session.identity or self.identity
        tx = session.tx
        if tx is None or tx is self.tx:
            return
        if self.tx is not None or not self.serial:
            self.begin(tx.sender or "")
        self.tx = tx

    def recipient_parameters(self, recipient: str) -> list[bytes]:
        """Return the ESMTP parameters with which the client has just named a recipient."""
        command = self.session.rcpt_command
        if not command or recipient not in command:
            return []
        return list(map(encoded, parameters(command)))

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
        address = self._address
        if address is None:
            return b"unknown", b"U", 0, b""
        name = session.rdns if session.fcrdns == "pass" else None
        return (
            encoded(name or f"[{address}]"),
            b"6" if ":" in address else b"4",
            _port(session.src),
            encoded(address),
        )

    @property
    def _address(self) -> str | None:
        """The client's address without a zone, for which libmilter hangs up."""
        address = self.session.address
        return None if address is None else plain_address(address)

    def macros(
        self, event: bytes, names: tuple[bytes, ...], recipient: str = ""
    ) -> Sequence[bytes]:
        """Return these names, each followed by its value, without those that aren't known.

        `recipient` is the one of the event.
        """
        self._recipient = recipient
        found: list[bytes] = []
        for name, get in _getters(event, names):
            value = get(self)
            if value is not None:
                # As `encoded`, which would be called ten times for a message.
                found += name, value.encode("utf-8", "surrogateescape").replace(b"\0", b"")
        return found

    # -- macros of the connection ----------------------------------------------------------

    def _j(self) -> str:
        return self.session.server_name or self._base[0]

    def _v(self) -> str:
        return f"OpenSMTPD {self._base[2]}".rstrip()

    def _daemon_name(self) -> str:
        return self._base[1] or self._j()

    def _daemon_addr(self) -> str | None:
        dest = self.session.dest
        return None if self.session.by_socket or not dest else _plain(dest)

    def _daemon_port(self) -> str | None:
        dest = self.session.dest
        return None if self.session.by_socket or not dest else str(_port(dest))

    def _client(self) -> str | None:
        session = self.session
        if session.by_socket:
            return "localhost [127.0.0.1]"
        address, rdns = self._client_addr(), session.rdns
        if address is None:
            return None
        if rdns is None:
            return f"unknown [{address}]"
        return f"{rdns} [{address}]" + ("" if session.fcrdns == "pass" else " (may be forged)")

    def _client_addr(self) -> str | None:
        if self.session.by_socket:
            return "127.0.0.1"
        address = self._address
        return _IPV6 + address if address and ":" in address else address

    def _client_name(self) -> str | None:
        return self._client_ptr() if self.session.fcrdns == "pass" else "unknown"

    def _client_ptr(self) -> str | None:
        return "localhost" if self.session.by_socket else self.session.rdns or "unknown"

    def _client_port(self) -> str:
        return "0" if self.session.by_socket else str(_port(self.session.src))

    def _client_resolve(self) -> str:
        session = self.session
        if session.by_socket or session.fcrdns == "pass":
            return "OK"
        if session.fcrdns == "error":
            return "TEMP"
        return "FORGED" if session.rdns else "FAIL"

    # -- macros of the greeting and of the message -----------------------------------------

    def _tls(self, part: int) -> str | None:
        parts = (self.session.tls or "").split(":")
        return parts[part] or None if part < len(parts) else None

    def _auth_type(self) -> str | None:
        session = self.session
        return (session.auth_mechanism or "PLAIN") if session.username else None

    def _msgid(self) -> str | None:
        tx = self.session.tx
        return None if tx is None else tx.msgid


def encoded(text: str) -> bytes:
    """Return a text of the session as the client's bytes."""
    return text.encode("utf-8", "surrogateescape").replace(b"\0", b"")


def bracketed(address: str) -> bytes:
    """Return an address with its angle brackets."""
    return b"<%b>" % encoded(address)


def mailbox(address: str, server_name: str | None) -> tuple[str, str]:
    """Return an address in the form in which all spellings of it are equal.

    It may be what Sendmail and Postfix take from a milter for a recipient: with brackets or not,
    with a name in front of them, a source route or quotes, and in any letter case.
    """
    text = address.strip(" \t")
    if text.endswith(">") and not text.startswith("<"):
        text = text[text.rfind("<") :]
    found = path(text).completed(server_name)
    return found.local.lower(), canonical(found.domain)


def _domain(address: str) -> str | None:
    return address.rpartition("@")[2] if "@" in address else None


def _plain(endpoint: str) -> str:
    return plain_address(endpoint.rpartition(":")[0].strip("[]"))


def _port(endpoint: str) -> int:
    port = endpoint.rpartition(":")[2]
    return int(port) & 0xFFFF if port.isdigit() else 0


_OF_CONNECTION: dict[bytes, Getter] = {
    b"j": Facts._j,  # noqa: SLF001  # one class, as below
    b"_": Facts._client,  # noqa: SLF001
    b"v": Facts._v,  # noqa: SLF001
    b"{daemon_name}": Facts._daemon_name,  # noqa: SLF001
    b"{daemon_addr}": Facts._daemon_addr,  # noqa: SLF001
    b"{daemon_port}": Facts._daemon_port,  # noqa: SLF001
    b"{client_addr}": Facts._client_addr,  # noqa: SLF001
    b"{client_name}": Facts._client_name,  # noqa: SLF001
    b"{client_ptr}": Facts._client_ptr,  # noqa: SLF001
    b"{client_port}": Facts._client_port,  # noqa: SLF001
    b"{client_resolve}": Facts._client_resolve,  # noqa: SLF001
    b"{client_connections}": lambda _: "0",
}
_OF_GREETING: dict[bytes, Getter] = {
    b"{tls_version}": lambda facts: facts._tls(0),  # noqa: SLF001
    b"{cipher}": lambda facts: facts._tls(1),  # noqa: SLF001
    b"{cipher_bits}": lambda facts: facts._tls(2),  # noqa: SLF001
}
_OF_MESSAGE: dict[bytes, Getter] = {
    b"i": Facts._msgid,  # noqa: SLF001
    b"{auth_type}": Facts._auth_type,  # noqa: SLF001
    b"{auth_authen}": lambda facts: facts.session.username,
    b"{auth_author}": lambda facts: submitter(facts.session),
    b"{mail_addr}": lambda facts: facts.sender,
    b"{mail_host}": lambda facts: _domain(facts.sender),
    b"{mail_mailer}": lambda _: "smtp",
}
_OF_RECIPIENT: dict[bytes, Getter] = {
    b"{rcpt_addr}": lambda facts: facts._recipient,  # noqa: SLF001
    b"{rcpt_host}": lambda facts: _domain(facts._recipient),  # noqa: SLF001
    b"{rcpt_mailer}": lambda _: "smtp",
}
_OF_ALL = _OF_CONNECTION | _OF_GREETING | _OF_MESSAGE
#: What is known at some events; `_OF_ALL` at all others.
_KNOWN_AT = {
    v.CONNECT: _OF_CONNECTION,
    v.HELO: _OF_CONNECTION | _OF_GREETING,
    v.RCPT: _OF_ALL | _OF_RECIPIENT,
}


@lru_cache(maxsize=64)  # milters ask for the same in each session
def _getters(event: bytes, names: tuple[bytes, ...]) -> tuple[tuple[bytes, Getter], ...]:
    known = _KNOWN_AT.get(event, _OF_ALL)
    getters = ((name, known.get(_without_braces(name))) for name in names)
    return tuple((name, get) for name, get in getters if get is not None)


def _without_braces(name: bytes) -> bytes:
    """Return a name of one letter, which may have braces or not, without them."""
    return name[1:2] if len(name) == len(b"{i}") else name
