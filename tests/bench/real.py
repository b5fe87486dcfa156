"""Messages per second through a real smtpd, with and without filters.

The servers run side by side in labs of their own and are loaded in turns. Mail is taken into a
queue in memory and not delivered: what is measured is the dialogue, in which filters have a say.
The client runs on the same machine and has its share of the cost, the same for all.
"""

from __future__ import annotations

import select
import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.testing.dns import host
from smtpd_filters.testing.server import (
    BIN,
    CODE,
    DOMAIN,
    VERSIONS,
    Smtpd,
    filter_command,
    system_version,
    unavailable,
)
from tests.bench.player import ROOT

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

CLIENT = "127.0.0.9"
CONNECTIONS = 8
# About 3 KB, as the small messages that most mail is.
BODY = b"From: alice@sender.example\r\nSubject: benchmark\r\n\r\n" + (b"x" * 70 + b"\r\n") * 41
SCRIPT = (
    (b"MAIL FROM:<alice@sender.example>\r\n", b"250"),
    (f"RCPT TO:<alice@{DOMAIN}>\r\n".encode(), b"250"),
    (b"DATA\r\n", b"354"),
    (BODY + b".\r\n", b"250"),
)
MANY = "smtp limit max-mails 1000000\nsmtp limit max-rcpt 1000000\n"


def our(name: str) -> str:
    """The command of a filter of tests.bench.filters, inside a lab."""
    code = f"from tests.bench.filters import {name}; {name}()"
    return shlex.join([f"{BIN}/python", "-c", code])


#: The practical limit, and six filters of ours with the same phases, alone and supervised.
LIMIT, SIX, SIX_SUPERVISED = "the practical limit", "six in one process", "six, supervised"


def line_ups(
    senderscore: Sequence[str] | None, limit: Sequence[str] | None
) -> dict[str, dict[str, str]]:
    """The compared servers, with the filters of each."""
    found = {
        "no filter": {},
        "one filter": {"first": our("first")},
        "four in one process": {"four": our("four")},
        "four processes": {name: our(name) for name in ("first", "second", "third", "fourth")},
    }
    if limit:
        # The six get no data-lines either.
        found[LIMIT] = {"limit": f"{CODE}/{Path(limit[0]).relative_to(ROOT)} commands"}
        found[SIX] = {"six": our("six")}
        found[SIX_SUPERVISED] = {
            "six": filter_command("supervise", *shlex.split(our("six"))),
        }
    if senderscore:
        found["senderscore"] = {"senderscore": shlex.join(senderscore)}
    return found


class Client:
    """A connection for a series of messages."""

    def __init__(self, connection: socket.socket) -> None:
        """Read the banner and send the greeting."""
        self.socket = connection
        self.at = 0
        #: When the current message began.
        self.began = 0.0
        self.expect(b"220")
        connection.sendall(b"HELO mail.sender.example\r\n")
        self.expect(b"250")

    def expect(self, code: bytes) -> None:
        """Read a reply of one line."""
        reply = b""
        while not reply.endswith(b"\n"):
            more = self.socket.recv(4096)
            if not more:
                raise ConnectionError("the server hung up")
            reply += more
        if not reply.startswith(code + b" "):
            raise ConnectionError(f"{reply!r} instead of {code.decode()}")

    def say(self) -> None:
        """Send the next command."""
        if self.at == 0:
            self.began = time.perf_counter()
        self.socket.sendall(SCRIPT[self.at][0])

    def read_reply(self) -> bool:
        """Read the reply to it; return whether that ends a message."""
        self.expect(SCRIPT[self.at][1])
        self.at = (self.at + 1) % len(SCRIPT)
        return self.at == 0


def load(server: Smtpd, messages: int, times: list[float] | None = None) -> float:
    """Send so many messages over all connections; return messages per second.

    `times` gets the seconds that each message took, from MAIL to the last reply.
    """
    with ExitStack() as stack:
        clients = {}
        poll = select.poll()
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(server.lab.connect(25, source=CLIENT))
            clients[connection.fileno()] = Client(connection)
            poll.register(connection, select.POLLIN)
        unsent = messages - len(clients)
        start = time.perf_counter()
        for client in clients.values():
            client.say()
        left = messages
        while left:
            for descriptor, _ in poll.poll(20_000):
                client = clients[descriptor]
                if client.read_reply():
                    left -= 1
                    if times is not None:
                        times.append(time.perf_counter() - client.began)
                    if not unsent:
                        continue
                    unsent -= 1
                client.say()
        return messages / (time.perf_counter() - start)


def measure(
    line_up: Mapping[str, Mapping[str, str]], rounds: int, messages: int
) -> list[dict[str, dict[str, float]]]:
    """Load each server in turns; return the figures of each round."""
    zone = host("mail.sender.example", CLIENT)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                Smtpd(
                    filters=filters,
                    zone=zone,
                    declarations=MANY,
                    arguments=["-B", "queue=ram"],
                )
            )
            for name, filters in line_up.items()
        }
        for server in servers.values():
            server.lab.run("/usr/sbin/smtpctl", "pause", "mda")
            load(server, CONNECTIONS)
        return [
            {name: {"messages/s": load(server, messages)} for name, server in servers.items()}
            for _ in range(rounds)
        ]


def missing() -> str | None:
    """Return why this can't be measured here; None if it can."""
    return unavailable(system_version() or VERSIONS[0])
