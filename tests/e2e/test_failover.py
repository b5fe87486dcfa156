"""Servers of the shared memory that are killed while filters under a real smtpd use them."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.runtime.log import AGAIN
from smtpd_filters.testing.server import file_path, filter_command
from tests.e2e.sending import ZONE, Outcome, attempt
from tests.e2e.test_greylist import FIRST
from tests.needed import need
from tests.stores.redis_server import (
    RedisServer,
    cluster,
    join_cluster,
    sentinel,
    unavailable,
    wait_for,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

#: Ports in the lab, which has no others.
PORTS = range(7001, 7007)
STORES = {
    "sentinel": f"redis+sentinel://127.0.0.1:{PORTS[2]}/mymaster",
    "cluster": f"redis+cluster://127.0.0.1:{PORTS[0]},127.0.0.1:{PORTS[1]}",
}
COUNTED, OTHER = "counted@good.example", "other@good.example"
LIMIT, BEFORE = 5, 3
CLIENTS = 6
#: Messages that are accepted before a server is killed, and after another has taken over.
MESSAGES = 30
#: Seconds for a server to take over; the machine may be busy.
PATIENCE = 120.0


class Servers:
    """The servers of a kind, in the network of a lab."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        if kind == "sentinel":
            self.all: Sequence[RedisServer] = sentinel(folder, *PORTS[:3])
            self.master, self.replica, _ = self.all
            watched(*self.all)
        else:
            self.all = cluster(folder, PORTS)
            join_cluster(self.all)
            self.master, self.replica = self.all[0], self.all[3]

    def choose(self, text: str) -> None:
        """Choose the master that is to be killed: one that has a key with a text."""
        if self.kind == "cluster":
            self.master = next(
                node for node in self.all[:3] if node.command("KEYS", f"*{text}*") != b"*0\r\n"
            )
            # Which of the others is its replica is redis-cli's choice.
            port = f"master_port:{self.master.port}\r".encode()
            self.replica = next(
                node for node in self.all[3:] if port in node.command("INFO", "replication")
            )

    def fail(self) -> None:
        """Kill a master whose data its replica has."""
        assert self.master.command("DBSIZE") != b":0\r\n"
        assert self.master.command("WAIT", "1", "60000") == b":1\r\n"
        self.master.stop()

    def wait(self) -> None:
        """Wait until the replica is the master."""
        wait_for(self.replica, "INFO replication", b"role:master")

    def state(self) -> Iterator[str]:
        """Yield what the servers tell and have logged, for a test that fails."""
        asked = ("INFO sentinel",) if self.kind == "sentinel" else ("CLUSTER INFO", "CLUSTER NODES")
        for each in self.all:
            yield f"-- {each.port}"
            with contextlib.suppress(OSError):
                for command in ("INFO replication", *asked):
                    yield each.command(command).decode()
            yield from (each.folder / "log").read_text().splitlines()[-30:]


@contextlib.contextmanager
def servers(kind: str, folder: Path, server: Smtpd) -> Iterator[Servers]:
    # The network is that of the thread that starts them.
    started = server.lab.call(lambda: Servers(kind, folder))
    try:
        yield started
    except AssertionError as error:
        error.add_note("\n".join(started.state()))
        failures = [line for line in server.log if "redis+" in line and AGAIN not in line]
        error.add_note("\n".join(failures[-30:]))
        raise
    finally:
        for each in started.all:
            each.stop()


class Load:
    """Clients that have passed and send all the time, each from an address of its own."""

    def __init__(self, server: Smtpd) -> None:
        self._server = server
        self._over = threading.Event()
        self._count = threading.Condition()
        self.accepted = 0
        self.refused: list[Outcome] = []
        self._numbers = itertools.count()
        self.clients = [f"192.0.2.{100 + number}" for number in range(CLIENTS)]

    def send(self, client: str, sender: str = "") -> Outcome:
        sender = sender or f"load-{next(self._numbers)}@good.example"
        outcome = attempt(self._server, client, sender=sender)
        with self._count:
            self.accepted += not outcome.stage
            self._count.notify_all()
        return outcome

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=[each]) for each in self.clients]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _run(self, client: str) -> None:
        while not self._over.is_set():
            outcome = self.send(client)
            if outcome.stage:
                self.refused.append(outcome)

    def wait(self, messages: int) -> None:
        """Wait until so many more messages are accepted."""
        with self._count:
            wanted = self.accepted + messages
            assert self._count.wait_for(lambda: self.accepted >= wanted, PATIENCE)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end


@pytest.mark.parametrize("kind", STORES)
def test_no_mail_is_refused_for_a_server_that_is_killed(
    start: Start, tmp_path: Path, kind: str
) -> None:
    need(unavailable())
    store = ("--store", STORES[kind])
    greylist = filter_command(
        *("greylist", "--delay", "1", "--ipv4-prefix", "32", "--key", "network"),
        *("--allow-senders", file_path("allowed"), *store),
    )
    limit = filter_command("limit", f"--limit=sender messages {LIMIT}/1h", *store)
    server = start(
        zone=ZONE,
        filters={"greylist": greylist, "limit": limit},
        files={"allowed": f"{COUNTED}\n{OTHER}\n"},
    )

    with servers(kind, tmp_path, server) as redis:
        load = Load(server)

        def count(times: int) -> list[str]:
            return [load.send("192.0.2.50", COUNTED).stage for _ in range(times)]

        for client in load.clients:
            until(lambda client=client: not load.send(client).stage)  # type: ignore[misc]
        first_seen = "192.0.2.60"
        assert is_greylisted(load.send(first_seen))
        assert count(BEFORE) == [""] * BEFORE
        assert load.send("192.0.2.51", OTHER).stage == ""
        redis.choose(OTHER)
        with load.running():
            load.wait(MESSAGES)
            redis.fail()
            load.wait(MESSAGES)
            redis.wait()
            load.wait(MESSAGES)
        assert load.refused == []

        # The memory of both filters works again on all servers, and has forgotten nothing.
        for new in (f"198.51.100.{number}" for number in range(1, 25)):
            until(lambda new=new: is_greylisted(load.send(new)))  # type: ignore[misc]
        until(lambda: load.send("192.0.2.51", OTHER).stage == "MAIL")
        assert [load.send(client).stage for client in load.clients] == [""] * CLIENTS
        assert load.send(first_seen).stage == ""
        assert count(LIMIT - BEFORE + 1) == [""] * (LIMIT - BEFORE) + ["MAIL"]
        assert len(server.maildir("alice")) == load.accepted


def is_greylisted(outcome: Outcome) -> bool:
    return outcome.stage == "RCPT" and FIRST.fullmatch(outcome.said) is not None
