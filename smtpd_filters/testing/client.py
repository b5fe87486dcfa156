"""An SMTP client, with smtpd's reactions to its commands and to the filter's answers."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.message import Headers
from smtpd_filters.message.dots import stuff, unstuff
from smtpd_filters.oracle.completion import completed
from smtpd_filters.protocol.vis import vis
from smtpd_filters.recording.verdict import MARK, PROTOCOL_IN_HANDSHAKE, Verdict, failure, wire

if TYPE_CHECKING:
    from .peer import Peer

TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
#: The name of the server.
HOST = "mx.example.org"
#: Octets of the longest address that smtpd reports; it accepts longer ones.
MAX_REPORTED = 254


@dataclass(frozen=True, slots=True)
class Delivery(Verdict):
    """The result of sending a message: the verdict at `commit`, and the message as returned.

    `Verdict.phase` is "data" if the client was already refused there.
    """

    #: The message as sent, without dot-stuffing, with smtpd's own fields at the top.
    sent: tuple[bytes, ...] = field(default=(), repr=False)
    #: The message as the filter returned it, without dot-stuffing and line ends.
    content: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def delivered(self) -> tuple[bytes, ...]:
        """The message as smtpd delivers it, with From, To and Cc completed."""
        end = self._end_of_headers
        return (*completed(list(self.content[:end]), HOST.encode()), *self.content[end:])

    @property
    def unchanged(self) -> bool:
        """Whether the filter returned every byte unchanged."""
        return self.sent == self.content

    @property
    def headers(self) -> Headers:
        """The header block as it is delivered."""
        delivered = self.delivered
        return Headers.parse(list(delivered[: self._end_of_headers]))

    @property
    def body(self) -> bytes:
        """The body as it is delivered, each line with a line feed."""
        return b"".join([line + b"\n" for line in self.content[self._end_of_headers + 1 :]])

    @property
    def _end_of_headers(self) -> int:
        return self.content.index(b"") if b"" in self.content else len(self.content)

    @property
    def bytes(self) -> bytes:
        """The message as it is delivered, each line with a line feed."""
        return b"".join([line + b"\n" for line in self.delivered])


class Client:
    """An SMTP client, with smtpd's view of its session. Created by `Conversation.connect`."""

    def __init__(self, smtpd: Peer, session: bytes, rdns: str, host: str) -> None:
        self._smtpd = smtpd
        self._session = session
        self._rdns = rdns
        self._host = host
        #: The session's id, as in `Conversation.log`.
        self.id = session.decode()
        #: Whether the connection is closed.
        self.closed = False
        #: The verdict on the connection itself.
        self.greeting = Verdict("connect", "proceed", asked=False)
        self._identity = ""
        self._msgid = b""
        self._recipients: list[str] = []
        #: The lines sent so far within DATA; None outside.
        self._sent: list[bytes] | None = None
        self._session_junk = self._message_junk = False
        #: What smtpd writes about TLS into its Received field.
        self._secured = ""

    def begin(self, tls: str) -> None:
        """Request a verdict on the connection and greet the client."""
        self.greeting = self._ask("connect", wire(f"{self._rdns}|{self._host}"))
        if self.greeting.refused:
            return
        if tls:
            self._secure(tls, verified=False)
        self._report("protocol-server", b"220 %s ESMTP OpenSMTPD" % HOST.encode())
        self._report("link-greeting", HOST.encode())

    def helo(self, name: str = "mail.example.com") -> Verdict:
        """Send HELO."""
        return self._greet("HELO", name)

    def ehlo(self, name: str = "mail.example.com") -> Verdict:
        """Send EHLO."""
        return self._greet("EHLO", name)

    def _greet(self, method: str, name: str) -> Verdict:
        self._require(not self._identity, "Already identified")
        self._command(f"{method} {name}")
        verdict = self._ask(method.lower(), wire(name))
        if not verdict.refused:
            self._identity = verdict.parameter
            self._report("link-identify", method.encode(), wire(verdict.parameter))
        return verdict

    def tls(self, cipher: str = TLS, *, verified: bool = False) -> Verdict:
        """Send STARTTLS; the client must greet again afterwards.

        `verified` is whether the client has a certificate that smtpd verifies.
        """
        self._require(bool(self._identity), "Command not allowed at this point")
        self._command("STARTTLS")
        verdict = self._ask("starttls", b"")
        if not verdict.refused:
            self._secure(cipher, verified=verified)
            self._identity = ""
        return verdict

    def _secure(self, cipher: str, *, verified: bool) -> None:
        self._secured = f" ({cipher}:{'YES' if verified else 'NO'})"
        self._report("link-tls", wire(cipher))

    def auth(
        self, user: str, password: str = "", *, ok: bool = True, mechanism: str = "PLAIN"
    ) -> Verdict:
        """Authenticate; `ok` is whether smtpd accepts the password."""
        self._require(bool(self._identity), "Command not allowed at this point")
        self._command(f"AUTH {mechanism} ********")
        credentials = base64.b64encode(b"\0%b\0%b" % (wire(user), wire(password)))
        initial = b" " + credentials if mechanism == "PLAIN" else b""
        verdict = self._ask("auth", mechanism.encode() + initial)
        if verdict.refused:
            return verdict
        self._report("link-auth", b"pass" if ok else b"fail", vis(wire(user)))
        return verdict if ok else _refused(verdict, "535 Authentication failed")

    def mail_from(self, address: str = "", *, parameters: str = "") -> Verdict:
        """Send MAIL FROM; the address is without angle brackets, "" is the null sender.

        `parameters` follow it, such as `SIZE=1000`.
        """
        _check_bare(address)
        self._require(bool(self._identity), "Command not allowed at this point")
        self._require(not self._msgid, "Already in transaction")
        self._command(f"MAIL FROM:<{address}> {parameters}".rstrip())
        verdict = self._ask("mail-from", wire(address))
        if not verdict.refused:
            self._msgid = self._smtpd.message_id()
            self._report("tx-begin", self._msgid)
            # smtpd reports the old address even if it was rewritten.
            self._report_path("tx-mail", self._msgid, b"ok", wire(address))
        return verdict

    def rcpt_to(self, address: str, *, accepted: bool = True, parameters: str = "") -> Verdict:
        """Send RCPT TO; `accepted` is whether smtpd itself accepts the recipient.

        `parameters` follow the address, such as `NOTIFY=NEVER`.
        """
        _check_bare(address)
        self._require(bool(self._msgid), "Command not allowed at this point")
        self._command(f"RCPT TO:<{address}> {parameters}".rstrip())
        msgid = self._msgid
        verdict = self._ask("rcpt-to", wire(address))
        if not verdict.refused and not accepted:
            verdict = _refused(verdict, f"550 Invalid recipient: <{address}>")
        if verdict.refused:
            if not self.closed:
                self._report_path("tx-rcpt", msgid, failure(verdict), wire(address))
            return verdict
        self._recipients.append(verdict.parameter)
        self._report("tx-envelope", msgid, msgid + b"%08x" % len(self._recipients))
        self._report_path("tx-rcpt", msgid, b"ok", wire(address))
        return verdict

    def data(self) -> Verdict:
        """Send DATA."""
        self._require(bool(self._recipients), "No recipient specified")
        self._command("DATA")
        verdict = self._ask("data", b"")
        if verdict.refused:
            if not self.closed:
                self._report("tx-data", self._msgid, failure(verdict))
            return verdict
        self._report("tx-data", self._msgid, b"ok")
        self._sent = []
        self._write(self._own_fields())
        return verdict

    def write(self, content: bytes) -> None:
        """Send whole lines of the message, not dot-stuffed; they end in CRLF or LF."""
        self._require(self._sent is not None, "Command not allowed at this point")
        lines = content.replace(b"\r\n", b"\n").split(b"\n")
        if lines[-1] == b"":
            del lines[-1]
        self._write(lines)

    def message(self, content: bytes = b"Subject: test\r\n\r\nbody\r\n") -> Delivery:
        """Send the message, or the rest of it, and the final dot; return the result.

        DATA is sent first, if it was not.
        """
        if self._sent is None:
            verdict = self.data()
            if verdict.refused:
                return Delivery("data", verdict.verb, verdict.reply)
        self.write(content)
        sent, self._sent = self._sent or [], None
        returned = self._smtpd.end_lines(self._session)
        self._command(".")
        msgid = self._msgid
        self._sent = []
        verdict = self._ask("commit", b"")
        self._sent = None
        if not self.closed:
            if verdict.refused:
                self._report("tx-data", msgid, failure(verdict))
                self._roll_back()
            else:
                size = b"%d" % sum(len(line) + 1 for line in returned)
                self._report("tx-commit", msgid, size)
                self._reset()
        return Delivery(
            "commit",
            verdict.verb,
            verdict.reply,
            asked=verdict.asked,
            lines=tuple(returned),
            sent=tuple(sent),
            content=tuple(unstuff(returned)),
        )

    def rset(self) -> Verdict:
        """Send RSET."""
        self._require(bool(self._identity), "Command not allowed at this point")
        self._command("RSET")
        verdict = self._ask("rset", b"")
        if not verdict.refused:
            self._roll_back()
        return verdict

    def noop(self, text: str = "") -> Verdict:
        """Send NOOP. Servers before 7.0 send no request for one with an argument."""
        self._command(f"NOOP {text}".rstrip())
        if text and self._smtpd.protocol < PROTOCOL_IN_HANDSHAKE:
            return Verdict("noop", "proceed", parameter=text, asked=False)
        return self._ask("noop", wire(text))

    def quit(self) -> Verdict:
        """Send QUIT."""
        self._command("QUIT")
        verdict = self._ask("quit", b"")
        if not verdict.refused:
            self._close()
        return verdict

    def disconnect(self) -> None:
        """Close the connection without QUIT, at any point."""
        self._require(not self.closed, "the connection is closed")
        self._close()

    def timeout(self) -> None:
        """Send nothing until smtpd closes the connection."""
        self._require(not self.closed, "the connection is closed")
        self._report("timeout")
        self._close()

    # -- smtpd's part --------------------------------------------------------------------

    def _require(self, allowed: bool, why: str) -> None:  # noqa: FBT001  # it reads like an assertion
        if self.closed or not allowed:
            state = "the connection is closed" if self.closed else f"smtpd replies 503 {why}"
            raise RuntimeError(f"not possible at this point: {state}")

    def _command(self, text: str) -> None:
        self._require(self._sent is None, "within DATA")
        self._report("protocol-client", wire(text))

    def _report(self, name: str, *values: bytes) -> None:
        self._smtpd.report(name, self._session, *values)

    def _report_path(self, name: str, msgid: bytes, result: bytes, address: bytes) -> None:
        """Report an address, unless it is one of those that smtpd doesn't report."""
        if len(address) <= MAX_REPORTED:
            self._report(name, msgid, result, address)

    def _ask(self, phase: str, argument: bytes) -> Verdict:
        verdict = self._smtpd.ask(phase, self._session, argument)
        if verdict.verb == "junk":
            # Before a transaction, junk marks the session.
            if self._msgid:
                self._message_junk = True
            else:
                self._session_junk = True
        if verdict.closes:
            if self._msgid and phase == "rcpt-to":
                self._report_path("tx-rcpt", self._msgid, failure(verdict), argument)
            elif self._msgid and phase in {"data", "commit"}:
                self._report("tx-data", self._msgid, failure(verdict))
            self._close()
        return verdict

    def _own_fields(self) -> list[bytes]:
        """Return the fields that smtpd adds at the top of a message."""
        method = "ESMTPS" if self._secured else "ESMTP"
        lines = [
            f"Received: from {self._identity} ({self._rdns} [{self._host.strip('[]')}])",
            f"\tby {HOST} (OpenSMTPD) with {method} id {self._msgid.decode()}{self._secured}",
            f"\tfor <{self._recipients[0]}>;",
            "\tTue, 14 Nov 2023 22:13:20 +0000 (UTC)",
        ]
        mark = [MARK] if self._session_junk or self._message_junk else []
        return mark + [wire(line) for line in lines]

    def _write(self, lines: list[bytes]) -> None:
        assert self._sent is not None  # noqa: S101  # the callers have checked
        self._sent += lines
        self._smtpd.write_lines(self._session, stuff(lines))

    def _roll_back(self) -> None:
        if self._msgid:
            self._report("tx-rollback", self._msgid)
            self._reset()

    def _reset(self) -> None:
        msgid, self._msgid = self._msgid, b""
        self._recipients = []
        self._message_junk = False
        self._report("tx-reset", msgid)

    def _close(self) -> None:
        self._roll_back()
        self._report("link-disconnect")
        self._smtpd.drop_lines(self._session)
        self._sent = None
        self.closed = True


def _refused(verdict: Verdict, reply: str) -> Verdict:
    """Return a verdict with the filter's decision and smtpd's own refusal."""
    return Verdict(verdict.phase, verdict.verb, reply, verdict.parameter, asked=verdict.asked)


def _check_bare(address: str) -> None:
    """Raise ValueError for an address in angle brackets, which the client adds."""
    if address.startswith("<") and address.endswith(">"):
        raise ValueError(f"expected an address without angle brackets, not {address!r}")
