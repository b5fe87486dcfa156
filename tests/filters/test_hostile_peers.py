"""Servers that send without end, in crumbs, too early or too late: bounded, answered, no bad line.

Each filter is a process of its own with several sessions at once, and the oracle reads its output.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest

from smtpd_filters.milter import AddHeader, Agreement, NewBody, Verdict, packet
from smtpd_filters.milter import vocabulary as v
from tests.runtime.process import TOKENS, FilterProcess, sid

if TYPE_CHECKING:
    from smtpd_filters.protocol.events import Result

#: Sessions at a time, and the bytes of memory that they may cost together.
SESSIONS, MOST = 8, 24 << 20
PATIENCE = 60.0
LINES = [b"From: a@example.net", b"Subject: hello", b"", b"body"]
#: No reply to anything but the end of a message, and all kinds of edits.
SILENT = Agreement(6, 0x1FF, 0xFF080 | v.LEADING_SPACE).encode()
CONTINUE = Verdict(v.CONTINUE).encode()
END = packet(v.END_OF_BODY)
SPAMD = b"SPAMD/1.1 0 EX_OK\r\n"
LARGE = b"x" * 65536
FLAGS = {
    "policy": ("--server", "ADDRESS", "--timeout", "1", "--at", "rcpt-to", "--prepend", "ignore"),
    "clamav": ("--clamd", "ADDRESS", "--timeout", "1"),
    "spamd": ("--spamd", "ADDRESS", "--timeout", "1"),
    "milter": ("--milter", "inet:ADDRESS", "--content-timeout", "1"),
}


@dataclass(frozen=True)
class Attack:
    """What a server sends: before anything was asked, as the reply, and then without end.

    With `crumbs` all of it is sent in single bytes, as long as the connection lives.
    """

    early: bytes = b""
    reply: bytes = b""
    more: bytes = b""
    crumbs: bool = False


def added(edit: AddHeader | NewBody) -> bytes:
    """Return many edits of a kind."""
    return edit.encode() * 50


ATTACKS = {
    "policy": {
        "endless line": Attack(reply=b"action=", more=LARGE),
        "endless lines": Attack(reply=b"action=OK\n", more=b"a=b\n" * 10_000),
        "line ends": Attack(more=b"\n" * 65536),
        "crumbs": Attack(reply=b"action=PREPEND X: ", more=b"y", crumbs=True),
        "early": Attack(early=b"action=OK\n\n"),
        "after the end": Attack(reply=b"action=OK\n\n", more=b"action=OK\n\n" * 1000),
        "evil text": Attack(reply=b"action=550 a\rb\0c|\xff\n\n"),
    },
    "clamav": {
        "endless line": Attack(reply=b"stream: ", more=LARGE),
        "line ends": Attack(more=b"\n" * 65536),
        "nulls": Attack(more=b"\0" * 65536),
        "crumbs": Attack(reply=b"stream: ", more=b"y", crumbs=True),
        "after the end": Attack(reply=b"stream: OK\0", more=b"stream: OK\0" * 1000),
        "evil text": Attack(reply=b"stream: a\rb|\xff\x1b FOUND\0"),
    },
    "spamd": {
        "endless line": Attack(reply=SPAMD + b"X: ", more=LARGE),
        "endless head": Attack(reply=SPAMD, more=b"X: y\r\n" * 10_000),
        "endless body": Attack(
            reply=SPAMD + b"Content-length: 999999999999\r\nSpam: True ; 1 / 5\r\n\r\n",
            more=b"X-Spam-A: b\n" * 5000,
        ),
        "huge count": Attack(reply=SPAMD + b"Content-length: " + b"9" * 5000 + b"\r\n\r\n"),
        "line ends": Attack(more=b"\r\n" * 30_000),
        "crumbs": Attack(reply=SPAMD + b"X: ", more=b"y", crumbs=True),
        "early": Attack(early=SPAMD + b"Content-length: 0\r\nSpam: False ; 1 / 5\r\n\r\n"),
        "evil text": Attack(
            reply=SPAMD
            + b"Content-length: 40\r\nSpam: True ; 9 / 5\r\n\r\n"
            + b"X-Spam-Status: Yes, tests=A\rB\0|\xff\n\n".ljust(40)
        ),
    },
    "milter": {
        "endless packet": Attack(reply=b"\0\x10\0\0b", more=b"\0" * 100),
        "huge packet": Attack(reply=b"\xff\xff\xff\xffb", more=LARGE),
        "endless edits": Attack(more=added(AddHeader(b"X", b"y" * 1000))),
        "endless body": Attack(more=added(NewBody(b"y" * 60_000))),
        "empty pieces": Attack(more=added(NewBody(b""))),
        "progress": Attack(more=Verdict(v.PROGRESS).encode() * 1000),
        "crumbs": Attack(reply=b"\0\0\xff\xffh", more=b"y", crumbs=True),
        "after the end": Attack(reply=CONTINUE, more=CONTINUE * 1000),
        "evil text": Attack(reply=packet(v.REPLY_CODE, b"550 a\rb|\xff\x1b\0")),
        "evil field": Attack(reply=packet(v.ADD_HEADER, b"A:\nB\0x\r\ry\0") + CONTINUE),
    },
}
#: Where the first reply is made safe; and where it depends on the pieces that arrive together: a
#: reply before the request may come after it, and one may be complete before more arrives.
ACCEPTED = {("milter", "evil field")}
EITHER = {
    # A reply to the first part of a request may come before the rest is sent.
    *(("policy", "early"), ("spamd", "early"), ("spamd", "evil text")),
    *((name, "after the end") for name in ("policy", "clamav", "milter")),
}


class Peer:
    """The server; each connection has a thread."""

    def __init__(self, name: str, attack: Attack) -> None:
        self._is_milter = name == "milter"
        self._attack = attack
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                link.settimeout(0.2)
                thread = threading.Thread(target=self._serve, args=(link,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, link: socket.socket) -> None:
        attack = self._attack
        with link, suppress(OSError):
            if attack.early:
                link.sendall(attack.early)
            if not (self._negotiated(link) if self._is_milter else self._until(link, b"")):
                return
            self._send(link, attack.reply)
            while attack.more and not self._ended.is_set():
                self._send(link, attack.more)
            link.shutdown(socket.SHUT_WR)
            self._until(link, None)

    def _negotiated(self, link: socket.socket) -> bool:
        """Negotiate; return whether the end of a message has come, rather than that of a trial."""
        self._until(link, b"")
        link.sendall(SILENT)
        return self._until(link, END)

    def _until(self, link: socket.socket, end: bytes | None) -> bool:
        """Read until something, or these bytes, have arrived; return False at the end."""
        read = b""
        while not self._ended.is_set():
            with suppress(TimeoutError):
                data = link.recv(1 << 16)
                if not data:
                    return False
                read = read[-8:] + data
                if end is not None and end in read:
                    return True
        return False

    def _send(self, link: socket.socket, data: bytes) -> None:
        pieces = (
            [data] if not self._attack.crumbs else [data[at : at + 1] for at in range(len(data))]
        )
        for piece in pieces:
            while not self._ended.is_set():
                with suppress(TimeoutError):
                    link.sendall(piece)
                    break
            if self._attack.crumbs:
                self._ended.wait(0.002)


def begin(process: FilterProcess, name: str, number: int) -> None:
    """Begin a session, as far as the request that has the server asked."""
    session = sid(number)
    process.connect(session)
    if name == "policy":
        process.report("tx-begin", session, b"%08x" % number)
        process.report("tx-mail", session, b"%08x" % number, b"ok", b"a@example.net")
        process.send(process.request("rcpt-to", session, b"b@example.org"))
    else:
        process.send(process.smtpd.lines(session, TOKENS["data-line"], LINES))


def answers(process: FilterProcess, name: str) -> list[Result]:
    """Let all sessions have their request at once; return the answers."""
    numbers = range(1, SESSIONS + 1)
    for number in numbers:
        begin(process, name, number)
    if name != "policy":
        for number in numbers:
            process.until_dot(sid(number))
        for number in numbers:
            process.send(process.request("commit", sid(number)))
    said = []
    for number in numbers:
        process.until(partial(has_answer, process, sid(number)))
        said.append(process.answer_of(sid(number)))
    return said


def has_answer(process: FilterProcess, session: bytes) -> bool:
    """Return whether a session has a result."""
    return any(hasattr(each, "verb") and each.session == session for each in process.answers)


CASES = [(name, attack) for name, attacks in ATTACKS.items() for attack in attacks]


@pytest.mark.parametrize(("name", "attack"), CASES)
def test_a_hostile_server(name: str, attack: str) -> None:
    with Peer(name, ATTACKS[name][attack]) as peer:
        flags = [word.replace("ADDRESS", peer.address) for word in FLAGS[name]]
        words = ["-m", f"smtpd_filters.filters.{name}", *flags, "--on-error", "tempfail"]
        with FilterProcess(words) as process:
            process.hand_shake()
            before = process.memory()
            said = answers(process, name)
            grown = process.memory() - before
            process.finish()
    verbs = {each.verb for each in said}
    if (name, attack) in EITHER:
        assert verbs <= {b"proceed", b"reject"}
    else:
        assert verbs == {b"proceed" if (name, attack) in ACCEPTED else b"reject"}
    assert grown < MOST
    assert "Traceback" not in process.last_words
