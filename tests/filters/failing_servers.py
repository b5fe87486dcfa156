"""Servers that fail at any byte: milters, policy servers, clamd, spamd and Rspamd, without threads.

Each connection is one end of a pair of sockets, and `act` does one thing at it. What the server
does is decided by choices (`tests.protocol.hostile`). A server that parses a request raises
AssertionError if the filter has broken the protocol.

A verdict depends on what is judged alone: a message with `VIRUS` and an address that begins with
`bad` are refused, all else is accepted. So a reply that is treated as one to another request
shows.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from smtpd_filters.milter import (
    AddHeader,
    Agreement,
    ChangeHeader,
    InsertHeader,
    MilterSide,
    NewBody,
    ReplyCode,
    Verdict,
)
from smtpd_filters.milter import vocabulary as v
from tests.filters.clamav.stub import CLEAN, FOUND
from tests.filters.milter.stub import PLAIN
from tests.filters.policy.scripted import action
from tests.filters.spamd import stub as spamd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_filters.milter import Event
    from tests.protocol.hostile import Choices

#: What a message has that is to be refused, and the beginning of such an address.
VIRUS, BAD = b"VIRUS", b"bad"
#: Bytes that are a reply of no protocol.
GARBAGE = (
    b"\0\0\0\0",
    b"\xff" * 40,
    b"\r\n\r\n",
    b"action",
    b"HTTP/1.1 200",
    b"stream: ",
    b"SPAMD/",
)
#: SO_LINGER's value by which a socket sends a reset when it is closed.
RESET = struct.pack("ii", 1, 0)
#: More than any reply may have.
MUCH = b"x" * 300_000
#: Agreements of milters: all events, few, and some without an answer.
AGREEMENTS = (
    PLAIN,
    Agreement(6, 0x1FF, 0),
    Agreement(6, 0x1FF, v.LEADING_SPACE | v.NO_UNKNOWN | 0x7F000),
    Agreement(6, 0x1FF, v.NO_UNKNOWN | 0x02),
    Agreement(2, 0, 0),
)


class Edits(NamedTuple):
    """What a milter edits, beside fields that it adds."""

    #: Whether the subject becomes SUBJECT, the field To is deleted, and LINE is added to the body.
    subject: bool = False
    to: bool = False
    body: bool = False


SUBJECT, LINE = b"edited", b"added"
#: Faults of a milter's replies, of which a message has a dozen; and of the last one with its edits,
#: which often ends before its last byte.
RARE, CUT = (*[0] * 160, *range(25)), (0, 0, 0, 0, 10, 11, 12, 24)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the ends of a connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


class Peer:
    """A server's end of one connection."""

    def __init__(self, choices: Choices, judged: Callable[[bytes], None], *, faults: bool) -> None:
        self.pick = choices.of
        self.faults = faults
        #: Called with each message that was received as a whole, without carriage returns.
        self.judged = judged
        self.tcp = self.pick((False, False, True))
        self.mine, self.filters = tcp_pair() if self.tcp else socket.socketpair()
        self.mine.setblocking(False)  # noqa: FBT003  # its only parameter
        self.filters.setblocking(False)  # noqa: FBT003
        # So that a message doesn't fit, and must wait for the server to read.
        small = self.pick((2048, 1 << 17))
        self.filters.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, small)
        self.closed = False
        #: Replies that are still to be sent, in pieces; whether the connection ends then.
        self.pieces: list[bytes] = []
        self.ending = False
        #: Whether only its own side ends then, and it reads no more.
        self.halves = False
        #: Whether nothing more is read or sent.
        self.stalled = False
        self.ended = False
        self.setup()

    def setup(self) -> None:
        """Prepare what the protocol needs."""

    def replies(self, data: bytes) -> Iterator[bytes]:
        """Yield the replies to what has arrived; empty ones are those that have no bytes."""
        raise NotImplementedError

    #: Whether the connection ends after a reply.
    once = False
    #: The faults of replies (`_faulty`), each as likely as another; below 10 there is none.
    kinds: Sequence[int] = range(25)

    def act(self) -> bool:
        """Read, or send a piece; return whether anything has happened."""
        if self.closed:
            return False
        if self.pieces:
            self._send()
            return True
        if self.ending:
            if self.halves:
                self._end_half()
            else:
                self.close()
            return True
        return not self.stalled and self._read()

    def _end_half(self) -> None:
        self.ending, self.stalled = False, True
        with contextlib.suppress(OSError):
            self.mine.shutdown(socket.SHUT_WR)

    def _read(self) -> bool:
        try:
            data = self.mine.recv(self.pick((1 << 16, 1 << 16, 1000, 7)))
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return True
        if not data:
            self.ended = True
            for reply in self.at_end():
                self._reply(reply)
            if not self.pieces:
                self.close()
            self.ending = True
            return True
        for reply in self.replies(data):
            if self.closed or self.ending or self.stalled:
                break
            self._reply(reply)
        return True

    def at_end(self) -> Iterator[bytes]:
        """Yield the replies after the filter has ended its side."""
        yield from ()

    def _reply(self, reply: bytes) -> None:
        """Send a reply, or fail."""
        fault = self.pick(self.kinds) if self.faults else 0
        half = reply[: len(reply) // 2 if fault & 1 else -1]
        if fault == 12:
            self.close()
            return
        self.stalled = 13 <= fault <= 16
        self.ending = self.once or fault in (10, 11, 23, 24)
        self.halves = fault == 24
        self.pieces += filter(None, self._faulty(fault, reply, half))

    def _faulty(self, fault: int, reply: bytes, half: bytes) -> list[bytes]:
        """Return the pieces of a reply with a fault."""
        match fault:
            case 10 | 11 | 13 | 14 | 15 | 24:
                pieces = [half if fault != 15 else b""]
            case 16:
                pieces = [self.pick(GARBAGE)]
            case 17:
                pieces = [reply + reply]
            case 18:
                pieces = [MUCH[at : at + 20_000] for at in range(0, len(MUCH), 20_000)]
            case 19 | 20:
                bytewise = (reply[at : at + 1] for at in range(min(len(reply), 200)))
                pieces = [*bytewise, reply[200:]]
            case 21:
                pieces = [reply + self.pick(GARBAGE)]
            case 22:
                pieces = [reply[:3], reply[3:]]
            case _:
                pieces = [reply]
        return pieces

    def _early(self, reply: bytes) -> None:
        """Reply, perhaps, while the filter still has a part of the request to send."""
        if not self.faults or self.pieces or self.pick(range(10)) != 1:
            return
        with contextlib.suppress(OSError):
            if not self.complete(self.mine.recv(1 << 22, socket.MSG_PEEK)):
                self.mine.send(reply)
                self.ending = self.pick((True, False))
                self.stalled = True

    def complete(self, more: bytes) -> bool:
        """Return whether the request is complete with these bytes."""
        raise NotImplementedError

    def _send(self) -> None:
        piece = self.pieces.pop(0)
        try:
            sent = self.mine.send(piece)
        except BlockingIOError:
            self.pieces.insert(0, piece)
        except OSError:
            self.close()
        else:
            if sent < len(piece):
                self.pieces.insert(0, piece[sent:])

    def speak(self) -> None:
        """Send a reply that nothing has asked for, and perhaps end the connection."""
        # Not over TCP, where a request may be on its way, to which this would be the reply.
        if self.tcp or self.closed or self.pieces or self.ending or self.stalled or self.asked:
            return
        with contextlib.suppress(OSError):
            try:
                self.mine.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                self.mine.send(self.unasked())
                if self.pick((True, False)):
                    self.close()

    def unasked(self) -> bytes:
        """Return a reply that accepts."""
        raise NotImplementedError

    @property
    def asked(self) -> bool:
        """Whether a part of a request has arrived."""
        raise NotImplementedError

    def break_off(self) -> None:
        """End the connection, whatever is pending."""
        self.close()

    def close(self) -> None:
        """Close the connection; the filter gets a reset with unread data, and over TCP at times."""
        if not self.closed:
            self.closed = True
            self.pieces = []
            if self.tcp and self.pick((True, False)):
                self.mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.mine.close()

    @property
    def left(self) -> bool:
        """Whether the filter's end is still open."""
        return self.filters.fileno() >= 0


class MilterPeer(Peer):
    """A milter."""

    #: What it wants.
    agreement = PLAIN
    #: Called with the number of each message that it accepts, and with its edits, if its reply is
    #: sent whole.
    accepted: Callable[[bytes, Edits], None]
    #: These, before the reply is sent.
    verdict: tuple[bytes, Edits] | None = None

    def unasked(self) -> bytes:
        """Return a reply that accepts."""
        return Verdict(v.ACCEPT).encode()

    @property
    def asked(self) -> bool:
        """Whether a part of an event has arrived."""
        return not self.side._packets.empty

    def setup(self) -> None:
        """Begin without an event."""
        self.side = MilterSide()
        self.body = bytearray()
        self.header = bytearray()
        #: Whether it has been sent a part of a message, and no end of it.
        self.has_message = False

    def replies(self, data: bytes) -> Iterator[bytes]:
        """Answer what the agreement says is answered."""
        for event in self.side.receive(data):
            if event.command == v.NEGOTIATE:
                offer = self.side.offer
                assert offer is not None
                yield self.agreement.encode()
            elif (answer := self._answer(event)) is not None:
                yield answer

    def _answer(self, event: Event) -> bytes | None:
        command = event.command
        if command in (v.ABORT, v.QUIT, v.MAIL):
            assert command != v.MAIL or not self.has_message  # libmilter would refuse it
            self.has_message = command == v.MAIL
            self.body.clear()
            self.header.clear()
        if command in (v.ABORT, v.QUIT):
            return None
        verdict = Verdict(v.CONTINUE).encode()
        if command == v.HEADER:
            self.header += event.fields[0] + b":\n"
        if command == v.BODY:
            self.body += event.fields[0]
        if command == v.END_OF_BODY:
            self.has_message = False
            self.body += b"".join(event.fields)
            return self._judge()
        if not self.agreement.answers(command):
            return None
        if command in (v.MAIL, v.RCPT) and event.fields[0].startswith(b"<" + BAD):
            return ReplyCode(550, "5.7.1", (b"no",)).encode()
        if self.pick((0, 0, 0, 0, 0, 0, 0, 1)):
            return Verdict(v.PROGRESS).encode() + verdict
        return verdict

    def _judge(self) -> bytes:
        if self.header or self.body:
            self.judged(bytes(self.body))
        if VIRUS in self.body:
            return ReplyCode(550, "5.7.1", (b"virus",)).encode()
        edits, data = Edits(), b""
        if self.agreement.actions:
            edits = Edits(*(self.pick((True, False)) for _ in Edits._fields))
            data = self._edit(edits)
        if self.body:
            self.verdict = bytes(self.body).partition(b"\r\n")[0], edits
        return data + Verdict(v.CONTINUE).encode()

    def _reply(self, reply: bytes) -> None:
        self.kinds = RARE if self.verdict is None else CUT
        super()._reply(reply)
        verdict, self.verdict = self.verdict, None
        if verdict is not None and reply in b"".join(self.pieces):
            self.accepted(*verdict)

    def _edit(self, edits: Edits) -> bytes:
        space = b" " if self.agreement.leading_space else b""
        made: list[AddHeader | InsertHeader | ChangeHeader | NewBody] = [
            AddHeader(b"X-Mark", space + b"1"),
            InsertHeader(0, b"X-Mark-Top", space + b"1"),
        ]
        if edits.subject:
            made.append(ChangeHeader(1, b"Subject", space + SUBJECT))
        if edits.to:
            made.append(ChangeHeader(1, b"To", b""))
        if edits.body:
            body = bytes(self.body) + LINE + b"\r\n"
            at = self.pick(range(100))
            made += [NewBody(body[:at]), NewBody(body[at:])]
        return b"".join(each.encode() for each in made)


class PolicyPeer(Peer):
    """A policy server."""

    def unasked(self) -> bytes:
        """Return a reply that accepts."""
        return action("OK")

    @property
    def asked(self) -> bool:
        """Whether a part of a request has arrived."""
        return bool(self.data)

    def setup(self) -> None:
        """Begin without a request."""
        self.data = b""

    def replies(self, data: bytes) -> Iterator[bytes]:
        """Answer each request."""
        self.data += data
        while b"\n\n" in self.data:
            head, _, self.data = self.data.partition(b"\n\n")
            values = dict(line.split(b"=", 1) for line in head.split(b"\n"))
            bad = (
                values[b"protocol_state"] == b"RCPT" and values[b"recipient"].startswith(BAD)
            ) or (values[b"protocol_state"] == b"MAIL" and values[b"sender"].startswith(BAD))
            good = self.pick(("DUNNO", "OK", "PREPEND X-Mark: 1"))
            yield action("REJECT no" if bad else good)


class ClamdPeer(Peer):
    """A clamd."""

    once = True

    def unasked(self) -> bytes:
        """Return a reply that accepts."""
        return CLEAN

    @property
    def asked(self) -> bool:
        """Whether a part of a command has arrived."""
        return bool(self.data) or self.streams

    def setup(self) -> None:
        """Begin without a command."""
        self.data = bytearray()
        self.message = bytearray()
        self.streams = False

    def replies(self, data: bytes) -> Iterator[bytes]:
        """Answer a command."""
        self.data += data
        if not self.streams:
            command, null, rest = bytes(self.data).partition(b"\0")
            if not null:
                return
            if command == b"zPING":
                yield b"PONG\0"
                return
            assert command == b"zINSTREAM"
            self.streams, self.data = True, bytearray(rest)
            self._early(CLEAN)
        while len(self.data) >= 4:
            (size,) = struct.unpack(">I", self.data[:4])
            if len(self.data) < 4 + size:
                return
            if not size:
                self.judged(bytes(self.message))
                yield FOUND if VIRUS in self.message else CLEAN
                return
            self.message += self.data[4 : 4 + size]
            del self.data[: 4 + size]
        self._early(CLEAN)

    def complete(self, more: bytes) -> bool:
        """Return whether the empty chunk is there."""
        data, at = bytes(self.data) + more, 0
        while len(data) >= at + 4:
            (size,) = struct.unpack_from(">I", data, at)
            if not size:
                return True
            at += 4 + size
        return False


class SpamdPeer(Peer):
    """A spamd."""

    once = True

    def unasked(self) -> bytes:
        """Return a reply that accepts."""
        return spamd.reply(b"A: b\n\n", spamd.HAM)

    @property
    def asked(self) -> bool:
        """Whether a part of a request has arrived."""
        return bool(self.data)

    def setup(self) -> None:
        """Begin without a request."""
        self.data = bytearray()

    def replies(self, data: bytes) -> Iterator[bytes]:
        """Keep the request: it ends with the filter's side."""
        self.data += data
        if self.data.startswith(b"PING "):
            yield b"SPAMD/1.5 0 PONG\r\n"
        else:
            self._early(spamd.reply(b"A: b\n\n", spamd.HAM))

    def complete(self, more: bytes) -> bool:
        """Return whether the announced length is there."""
        head, _, body = (bytes(self.data) + more).partition(b"\r\n\r\n")
        found = re.search(rb"Content-length: (\d+)", head)
        return found is None or len(body) >= int(found[1])

    def at_end(self) -> Iterator[bytes]:
        """Answer the request."""
        head, found, body = bytes(self.data).partition(b"\r\n\r\n")
        if not found or head.startswith(b"PING"):
            return
        first, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        if len(body) != int(fields["Content-length"]):
            return  # the filter has given up
        self.judged(body.partition(b"\n")[2])  # below the Return-Path
        request = spamd.Request(first.split(" ")[0], fields, body)
        yield (spamd.spam if VIRUS in body else spamd.ham)(request)


class RspamdPeer(Peer):
    """An Rspamd."""

    def unasked(self) -> bytes:
        """Return a reply that accepts."""
        return self._verdict(b"")

    @property
    def asked(self) -> bool:
        """Whether a part of a request has arrived, or none yet.

        A reply before the first request isn't looked for.
        """
        return bool(self.data) or not self.served

    def setup(self) -> None:
        """Begin without a request."""
        self.data = b""
        self.served = False

    def replies(self, data: bytes) -> Iterator[bytes]:
        """Answer each request."""
        self.data += data
        while b"\r\n\r\n" in self.data:
            head, _, rest = self.data.partition(b"\r\n\r\n")
            found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if found is None:
                body, rest, whole = self._chunked(rest)
                if not whole:
                    return
            else:
                size = int(found[1])
                if len(rest) < size:
                    self._early(self._verdict(b""))
                    return
                body, rest = rest[:size], rest[size:]
            self.data, self.served = rest, True
            if head.startswith(b"GET"):
                yield b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong"
                continue
            self.judged(body)
            yield self._verdict(body)

    def complete(self, more: bytes) -> bool:
        """Return whether the announced length is there."""
        head, _, body = (self.data + more).partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: *(\d+)", head)
        return found is None or len(body) >= int(found[1])

    def _chunked(self, data: bytes) -> tuple[bytes, bytes, bool]:
        body = b""
        while b"\r\n" in data:
            length, _, data = data.partition(b"\r\n")
            size = int(length, 16)
            if len(data) < size + 2:
                break
            body, data = body + data[:size], data[size + 2 :]
            if not size:
                return body, data, True
        return b"", b"", False

    def _verdict(self, body: bytes) -> bytes:
        bad = VIRUS in body
        reply = {
            "is_skipped": False,
            "score": 20.0 if bad else 0.5,
            "required_score": 15.0,
            "action": "reject" if bad else "no action",
            "symbols": {},
            "message-id": "x@y",
            "milter": {"add_headers": {"X-Mark": "1"}},
        }
        content = json.dumps(reply).encode()
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(content)
        ) + content


def refused() -> OSError:
    """Return what connecting to a server that doesn't run raises."""
    return ConnectionRefusedError(111, "Connection refused")


def shut(sock: socket.socket) -> None:
    """Close a socket that may be closed."""
    with contextlib.suppress(OSError):
        sock.close()
