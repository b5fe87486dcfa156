"""A store on real servers: dead, slow, refusing, restarted, failing over, and in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import (
    Add,
    Count,
    Delete,
    Get,
    Join,
    Leave,
    Put,
    Replace,
    Store,
    Take,
    join,
)
from smtpd_filters.stores.address import parse
from smtpd_filters.stores.operations import MAX_TTL
from smtpd_filters.stores.redis_client import cause as cause_of
from smtpd_filters.stores.redis_client import failure
from smtpd_filters.stores.redis_store import RedisStore
from smtpd_filters.stores.setting import open_store
from tests.e2e.slapd import certificate
from tests.needed import need
from tests.stores.conftest import PATIENCE, OnClock
from tests.stores.redis_nodes import NOTHING, answering, with_nonce
from tests.stores.redis_server import (
    RedisServer,
    cluster,
    free_port,
    free_ports,
    join_cluster,
    sentinel,
    unavailable,
    wait_for,
    watched,
)
from tests.stores.test_operations import A, B, patiently, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.stores.conftest import Clock

pytestmark = pytest.mark.e2e
RIGHT = "right"
#: The reply to a `Get`, but for the nonce; the entry has one octet.
ENTRY = b"*2\r\n*3\r\n$1\r\n%b\r\n$1\r\n1\r\n$1\r\n2\r\n:0\r\n"


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    need(unavailable())
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    need(unavailable())
    server = RedisServer(tmp_path / "redis")
    try:
        yield server
    finally:
        server.stop()


def store_of(server: RedisServer, timeout: float = PATIENCE, **more: Any) -> RedisStore:
    return RedisStore(parse(f"unix://{server.socket}"), timeout=timeout, **more)


async def cause(store: Store) -> str:
    """Return why a request failed."""
    with pytest.raises(UnavailableError) as caught:
        await store.ask(Put(A, b"v", ttl=60))
    return str(caught.value).removeprefix(f"{store.label}: ")


def test_what_expires_is_deleted_by_the_server(common: RedisServer) -> None:
    """No key without an expiry, so that nothing stays for ever."""
    common.command("FLUSHALL")

    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=60))
        await store.ask(Count(B, 60))
        await store.ask(Take(join("test", b"x"), rate=1 / 60, burst=5))
        await store.ask(Join(join("test", b"y"), b"m", 5, ttl=60))

    run(store_of(common, prefix="p:"), steps)
    for key, longest in (
        ("p:test:{client}:a", 60_000),
        ("p:test:{client}:b", 60_000),
        ("p:test:{x}", 60_000),
        ("p:test:{y}+", 60_000),
    ):
        left = int(common.command("PTTL", key)[1:])
        assert 0 < left <= longest
    assert common.command("DBSIZE") == b":4\r\n"


def test_a_request_is_one_round_trip(common: RedisServer) -> None:
    def commands() -> int:
        (line,) = [
            each
            for each in common.command("INFO", "stats").decode().splitlines()
            if each.startswith("total_commands_processed")
        ]
        return int(line.partition(":")[2])

    async def steps(store: Store) -> int:
        await store.ask(Get(A))
        before = commands()
        for _ in range(10):
            await store.ask(Get(A), Put(A, b"v", ttl=9), Count(B, 9))
        return commands() - before

    # Those of the script are counted as well: TIME, then GET, SET, GET and SET.
    assert run(store_of(common), steps) <= 10 * (1 + 5) + 1


def test_a_script_that_the_server_has_forgotten_is_sent_again(common: RedisServer) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=60))
        common.command("SCRIPT", "FLUSH")
        assert (await store.ask(Get(A))) is not None

    run(store_of(common), steps)


def test_a_server_that_was_restarted_is_connected_again(server: RedisServer) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=60))
        server.stop()
        server.start()
        assert await store.ask(Get(A)) is None  # it saved nothing
        await store.ask(Put(A, b"v", ttl=60))

    run(store_of(server), steps)


def test_a_dead_server_is_passed_over_and_tried_again(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=60))
        server.stop()
        causes = [await cause(store) for _ in range(6)]
        # What becomes of the open connection depends on the moment.
        assert causes[0] in {"connection failed or lost", "connection reset", "connection refused"}
        assert causes[1:3] == ["connection refused"] * 2
        assert causes[3:] == ["failed repeatedly, passed over for now"] * 3
        server.start()
        assert await cause(store) == "failed repeatedly, passed over for now"
        monkeypatch.setattr(store._servers[""], "next_try", 0.0)  # type: ignore[attr-defined]  # its time is up
        assert notes == []
        await store.ask(Put(A, b"v", ttl=60))
        await store.ask(Put(A, b"v", ttl=60))
        assert notes == [f"{store.label}: answers again"]

    notes: list[str] = []
    run(store_of(server, note=notes.append, set_back=600), steps)


def test_a_server_that_hangs_costs_three_timeouts(server: RedisServer) -> None:
    async def steps(store: Store) -> None:
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            causes = [await cause(store) for _ in range(50)]
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert set(causes[:3]) <= {"timeout", "no answer within 0.4 s"}
        assert set(causes[3:]) == {"failed repeatedly, passed over for now"}

    run(store_of(server, timeout=0.4, set_back=600), steps)


def test_a_late_reply_is_nobody_elses(server: RedisServer) -> None:
    """The next requests after a timeout get their own replies (CVE-2023-28858)."""

    async def steps(store: Store) -> None:
        for number in range(20):
            put = Put(join("test", b"%d" % number), b"%d" % number, ttl=600)
            await patiently(store, put)
        os.kill(server.process.pid, signal.SIGSTOP)
        late = [
            asyncio.ensure_future(store.ask(Get(join("test", b"%d" % number))))
            for number in range(20)
        ]
        await asyncio.sleep(0)
        for each in late[:10]:
            each.cancel()
        await asyncio.wait(late)
        os.kill(server.process.pid, signal.SIGCONT)
        store._servers.clear()  # type: ignore[attr-defined]  # it is not passed over
        for number in range(20):
            found = await patiently(store, Get(join("test", b"%d" % number)))
            assert found is not None
            assert found.value == b"%d" % number

    run(store_of(server, timeout=0.4), steps)


def test_a_wrong_password_is_named(tmp_path: Path) -> None:
    need(unavailable())
    server = RedisServer(tmp_path / "redis", "--requirepass", RIGHT)
    try:
        for password in ("", "wrong"):
            found = run(store_of(server, password=password), cause)
            assert found == "authentication failed (--store-password-file)"
        right = store_of(server, password=RIGHT)
        run(right, lambda store: store.ask(Put(A, b"v", ttl=60)))
    finally:
        server.stop()


def test_a_password_that_is_changed_is_read_again(tmp_path: Path) -> None:
    """Open connections stay valid on the server, so that only new ones fail."""
    need(unavailable())
    server = RedisServer(tmp_path / "redis", "--requirepass", RIGHT)
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text(RIGHT)
    store = open_store(
        {
            "store": parse(f"unix://{server.socket}"),
            "store_password_file": str(file),
            "store_ca_file": None,
            "store_prefix": "t:",
            "store_timeout": PATIENCE,
        },
        str,
    )
    try:

        async def steps(store: Store) -> None:
            await store.ask(Put(A, b"v", ttl=60))
            server.command(f"AUTH {RIGHT}\r\nCONFIG SET requirepass new")
            await store.ask(Put(A, b"v", ttl=60))
            server.command("AUTH new\r\nCLIENT KILL TYPE normal")
            assert await cause(store) == "authentication failed (--store-password-file)"
            for invalid in ("", "others\0"):
                file.write_text(invalid)
                assert await cause(store) == "authentication failed (--store-password-file)"
            file.write_text("new")
            await eventually(store, A)
            await store.ask(Put(A, b"v", ttl=60))

        run(store, steps)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("redis://127.0.0.1:1", "connection refused"),
        ("redis://localhost:1", "connection refused"),
        ("redis://[::1]:1", "connection refused"),
        ("redis://host.invalid", "unknown host"),
        ("unix:///nowhere/redis.sock", "no such file or directory"),
    ],
)
def test_a_server_that_is_not_there_is_named_with_the_reason(address: str, expected: str) -> None:
    store = RedisStore(parse(address), timeout=PATIENCE)
    assert run(store, cause) == expected
    assert failure(expected) == "unreachable"


def test_the_reason_is_found_among_errors_that_refer_to_each_other() -> None:
    lost, closed = exceptions.ConnectionError("lost"), OSError("closed")
    lost.__cause__, closed.__cause__ = closed, lost
    assert cause_of(lost) == "connection failed or lost"
    closed.errno = errno.ECONNRESET
    assert cause_of(lost) == "connection reset"


def test_a_password_that_the_server_does_not_ask_for_is_named(server: RedisServer) -> None:
    found = run(store_of(server, password=RIGHT), cause)
    assert found == "has no password for this user, but one is given (--store-password-file)"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("maxmemory", "1"), "out of memory (maxmemory)"),
        (("min-replicas-to-write", "1"), "has too few replicas"),
    ],
)
def test_a_server_that_refuses_to_write_is_named(
    settings: tuple[str, str], expected: str, server: RedisServer
) -> None:
    server.command("CONFIG", "SET", *settings)
    assert run(store_of(server), cause) == expected


@pytest.mark.parametrize(
    "rights",
    ["~* +@all -set", "~* +@all -time", "~* +@all -eval -evalsha", "~others:* +@all"],
)
def test_a_user_with_too_few_rights_is_told(rights: str, server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "filters", "reset", "on", "nopass", *rights.split())
    store = RedisStore(parse(f"unix://filters@{server.socket}"), timeout=PATIENCE)
    assert run(store, cause) == "denies access to this user"


def test_a_user_who_may_not_ask_for_the_slots_of_a_cluster_is_told(tmp_path: Path) -> None:
    need(unavailable())
    port = free_port()
    server = RedisServer(tmp_path / "redis", "--cluster-enabled", "yes", port=port)
    try:
        server.command("ACL SETUSER filters on nopass ~* +@all -cluster")
        store = RedisStore(
            parse(f"redis+cluster://filters@127.0.0.1:{server.port}"), timeout=PATIENCE
        )
        assert run(store, cause) == "the cluster is unreachable: denies access to this user"
        assert failure("the cluster is unreachable: denies access to this user") == "unreachable"
    finally:
        server.stop()


@pytest.mark.parametrize(
    "error",
    [
        "The user executing the script can't run this command or subcommand script: 0, on @user",
        "ACL failure in script: User filters has no permissions to run the 'set' command script: 0",
    ],
)
def test_rights_that_a_script_lacks_are_named_with_each_server(error: str) -> None:
    assert cause_of(exceptions.ResponseError(error)) == "denies access to this user"


def test_a_server_with_too_many_clients_is_named() -> None:
    found = cause_of(exceptions.ConnectionError("max number of clients reached"))
    assert found == "has too many clients (maxclients)"
    assert failure(found) == "unreachable"


def test_a_server_that_replies_is_not_passed_over(server: RedisServer) -> None:
    """What fails for its own reason stops nothing else."""

    async def steps(store: Store) -> None:
        server.command("CONFIG", "SET", "maxmemory", "1")
        for _ in range(6):
            assert await cause(store) == "out of memory (maxmemory)"
        assert await store.ask(Get(B)) is None
        server.command("CONFIG", "SET", "maxmemory", "0")
        await store.ask(Put(A, b"v", ttl=60))

    run(store_of(server), steps)


def test_requests_that_nobody_waits_for_count_as_well(server: RedisServer) -> None:
    async def steps(store: Store) -> None:
        await patiently(store, Put(A, b"v", ttl=60))
        os.kill(server.process.pid, signal.SIGSTOP)
        await _abandoned(store, 3)
        assert [is_open for _, is_open in store.circuits()] == [True]  # type: ignore[attr-defined]
        os.kill(server.process.pid, signal.SIGCONT)
        # The one that tries the server is given up, too, but the server replies to it.
        for each in store._servers.values():  # type: ignore[attr-defined]
            each.next_try = 0.0
        await _abandoned(store, 1)
        assert [is_open for _, is_open in store.circuits()] == [False]  # type: ignore[attr-defined]

    run(store_of(server, timeout=2.0), steps)


async def _abandoned(store: Store, count: int) -> None:
    """Make requests whose callers are cancelled, and wait until their commands have ended."""
    asked = [asyncio.ensure_future(store.ask(Get(A))) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(store._commands) == count  # type: ignore[attr-defined]
    for each in asked:
        each.cancel()
    await asyncio.wait(store._commands)  # type: ignore[attr-defined]
    await asyncio.sleep(0)


def test_a_request_that_has_waited_too_long_is_not_sent(server: RedisServer) -> None:
    async def steps(store: Store) -> None:
        await patiently(store, Put(A, b"v", ttl=60))
        os.kill(server.process.pid, signal.SIGSTOP)
        late = [asyncio.ensure_future(store.ask(Count(B, 600))) for _ in range(20)]
        await asyncio.wait(late)
        assert all(isinstance(each.exception(), UnavailableError) for each in late)
        os.kill(server.process.pid, signal.SIGCONT)
        store._servers.clear()  # type: ignore[attr-defined]  # it is not passed over
        await asyncio.wait(store._commands)  # type: ignore[attr-defined]
        assert await patiently(store, Count(B, 600, by=0)) < 10

    run(store_of(server, timeout=0.5, connections=1), steps)


def test_a_request_that_is_cancelled_from_within_is_unavailable(server: RedisServer) -> None:
    """asyncio cancels what waits for a connection to close, if another's time for that is up."""

    async def steps(store: Store) -> None:
        async def cancelled(*_: object) -> None:
            raise asyncio.CancelledError

        connections = store._connections  # type: ignore[attr-defined]
        script, connections.script = connections.script, cancelled
        assert await cause(store) == "invalid reply"
        connections.script = script
        await store.ask(Put(A, b"v", ttl=60))

    run(store_of(server), steps)


def test_a_database_that_is_not_there_is_not_replaced_by_another(server: RedisServer) -> None:
    async def steps(store: Store) -> None:
        for _ in range(3):
            await cause(store)
        assert server.command("DBSIZE") == b":0\r\n"

    address = parse(f"unix://{server.socket}?db=99")
    run(RedisStore(address, timeout=PATIENCE), steps)


def test_a_server_that_evicts_forgets_and_goes_on(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "3mb", "maxmemory-policy", "allkeys-lru")

    async def steps(store: Store) -> None:
        keys = [join("test", b"%d" % number) for number in range(4000)]
        for key in keys:
            await store.ask(Put(key, b"v" * 1000, ttl=600))
        assert await store.ask(Get(keys[-1])) is not None
        kept = [key async for key, _ in store.scan(b"test:")]
        assert 0 < len(kept) < len(keys)

    run(store_of(server), steps)


def test_a_server_that_loads_its_data_is_named(tmp_path: Path) -> None:
    need(unavailable())
    slowly = ("--loading-process-events-interval-bytes", "1024", "--enable-debug-command", "yes")
    server = RedisServer(tmp_path / "redis", *slowly)
    loading = None
    try:

        async def steps(store: Store) -> None:
            for number in range(1000):
                await store.ask(Put(join("test", b"%d" % number), b"v" * 100, ttl=600))
            server.command("CONFIG", "SET", "key-load-delay", "20000")
            nonlocal loading
            loading = Thread(target=server.command, args=("DEBUG", "RELOAD"))
            loading.start()
            await asyncio.to_thread(wait_for, server, "PING", b"-LOADING")
            assert await cause(store) == "is loading its data"
            server.command("CONFIG", "SET", "key-load-delay", "0")
            await eventually(store, A)

        run(store_of(server), steps)
    finally:
        server.stop()
        if loading is not None:
            loading.join()


def test_tls(tmp_path: Path) -> None:
    need(unavailable())
    pem, port = str(certificate(tmp_path)), free_port()
    files = ("--tls-cert-file", pem, "--tls-key-file", pem, "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "redis", "--tls-port", str(port), *files)
    try:
        address = parse(f"rediss://127.0.0.1:{port}")
        run(RedisStore(address, timeout=PATIENCE, certificates=pem), lambda s: eventually(s, A))
        # Neither a certificate that nobody has signed nor one of another name.
        expected = "the certificate is not accepted: "
        unsigned = run(RedisStore(address, timeout=PATIENCE), cause)
        assert unsigned == f"{expected}self-signed certificate"
        other = parse(f"rediss://localhost:{port}")
        found = run(RedisStore(other, timeout=PATIENCE, certificates=pem), cause)
        mismatch = "Hostname mismatch, certificate is not valid for 'localhost'"
        assert found == f"{expected}{mismatch}"
    finally:
        server.stop()


def test_a_server_that_requires_certificates_of_clients_is_named(tmp_path: Path) -> None:
    """As Redis does by default; a reset may overtake its alert."""
    need(unavailable())
    pem, port = str(certificate(tmp_path)), free_port()
    files = ("--tls-cert-file", pem, "--tls-key-file", pem, "--tls-ca-cert-file", pem)
    server = RedisServer(tmp_path / "redis", "--tls-port", str(port), *files)
    try:
        store = RedisStore(parse(f"rediss://127.0.0.1:{port}"), timeout=PATIENCE, certificates=pem)
        named = "requires certificates of clients (tls-auth-clients), and filters have none"
        assert run(store, cause) in {named, "connection reset"}
    finally:
        server.stop()


def test_the_alert_of_an_earlier_try_names_a_server_that_requires_certificates() -> None:
    """redis-py tries twice: the second may find a reset in place of the alert, or the first."""
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert")
    later = exceptions.ConnectionError("Error while reading: (104, 'Connection reset by peer')")
    later.__context__ = alert
    assert cause_of(later).startswith("requires certificates of clients")
    reset = exceptions.ConnectionError(f"Error while reading: {alert.args}")
    reset.__context__ = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert cause_of(reset).startswith("requires certificates of clients")


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """The TLS contexts that are made."""
    make, found = ssl.create_default_context, []

    def counted(*words: Any, **more: Any) -> ssl.SSLContext:
        found.append(make(*words, **more))
        return found[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    return found


def test_connections_with_tls_share_a_context(
    tmp_path: Path, contexts: list[ssl.SSLContext]
) -> None:
    """The loop stands still while one is made: 80 ms each are more than a busy filter has."""
    need(unavailable())
    pem, port = str(certificate(tmp_path)), free_port()
    files = ("--tls-cert-file", pem, "--tls-key-file", pem, "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "redis", "--tls-port", str(port), *files)
    try:

        async def steps(store: Store) -> None:
            await asyncio.gather(*(eventually(store, A) for _ in range(20)))
            server.stop()
            server.start()
            await asyncio.gather(*(eventually(store, A) for _ in range(20)))
            assert len(contexts) == 1

        address = parse(f"rediss://127.0.0.1:{port}")
        run(RedisStore(address, timeout=PATIENCE, certificates=pem), steps)
    finally:
        server.stop()


def test_certificates_that_are_replaced_are_read_again(tmp_path: Path) -> None:
    need(unavailable())
    used, port = certificate(tmp_path), free_port()
    files = ("--tls-cert-file", str(used), "--tls-key-file", str(used), "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "redis", "--tls-port", str(port), *files)
    try:

        async def steps(store: Store) -> None:
            await eventually(store, A)
            server.stop()
            assert certificate(tmp_path) == used
            server.start()
            await eventually(store, A)

        address = parse(f"rediss://127.0.0.1:{port}")
        run(RedisStore(address, timeout=PATIENCE, certificates=str(used)), steps)
    finally:
        server.stop()


def test_a_replica_is_named(server: RedisServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", "1")
    assert run(store_of(server), cause) == "is a read-only replica"
    server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    assert run(store_of(server), cause) == "is a replica without its master"


def test_behind_a_proxy_another_master_is_used(server: RedisServer, tmp_path: Path) -> None:
    """A master that becomes a replica keeps its connections, and so does the proxy."""
    other = RedisServer(tmp_path / "other")
    try:

        async def steps() -> None:
            async with proxy(server) as (at, port):
                store = RedisStore(parse(f"redis://127.0.0.1:{port}"), timeout=PATIENCE)
                try:
                    await store.ask(Put(A, b"v", ttl=600))
                    server.command("REPLICAOF", "127.0.0.1", "1")
                    at[0] = other
                    for each in EACH:
                        await store.ask(each)
                finally:
                    await store.aclose()

        asyncio.run(steps())
    finally:
        other.stop()


#: One operation of each kind that writes.
EACH = (
    *(Count(A, window=60), Put(B, b"v", ttl=60), Add(A, b"v", ttl=60), Delete(A)),
    *(Replace(B, b"w", 60, b"v"), Take(A, rate=1, burst=2), Join(A, b"m", 2, ttl=60)),
    Leave(A, b"m"),
)


@asynccontextmanager
async def proxy(first: RedisServer) -> AsyncIterator[tuple[list[RedisServer], int]]:
    """A proxy to the server in a list, with its port; connections stay where they are."""
    at = [first]
    served: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        served.add(task)
        theirs, ours = await asyncio.open_unix_connection(str(at[0].socket))
        await asyncio.gather(pump(reader, ours), pump(theirs, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield at, listening.sockets[0].getsockname()[1]
        await asyncio.gather(*served)


def test_nonsense_in_place_of_a_server_is_unavailable() -> None:
    async def steps() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"220 smtp.example ESMTP\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            store = RedisStore(parse(f"redis://127.0.0.1:{port}"), timeout=PATIENCE)
            assert await cause(store)
            await store.aclose()

    asyncio.run(steps())


@pytest.mark.parametrize(
    "reply",
    [
        b"*0\r\n",
        b"*1\r\n:5\r\n",
        b"*1\r\n*3\r\n$1\r\nx\r\n$1\r\ny\r\n:1\r\n",
        b"*2\r\n$3\r\n123\r\n:0\r\n",
        b"*2\r\n*3\r\n:5\r\n$1\r\n1\r\n$1\r\n1\r\n:0\r\n",
        b"*2\r\n*3\r\n$1\r\nx\r\n$3\r\nnan\r\n$1\r\n1\r\n:0\r\n",
        b"*2\r\n*3\r\n$1\r\nx\r\n$1\r\n1\r\n$3\r\ninf\r\n:0\r\n",
    ],
)
def test_a_result_of_another_form_is_unavailable(reply: bytes) -> None:
    async def steps() -> None:
        def reply_to(data: bytes, _port: int) -> bytes | None:
            return with_nonce(reply, data) if b"EVAL" in data else None

        async with answering(reply_to) as port:
            store = RedisStore(parse(f"redis://127.0.0.1:{port}"), timeout=PATIENCE)
            try:
                with pytest.raises(UnavailableError, match=r": invalid result$"):
                    await store.ask(Get(A))
            finally:
                await store.aclose()

    asyncio.run(steps())


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b":x\r\n", "invalid reply"),
        (b"+OK\r\n", "reply to another command"),
        (b":5\r\n", "reply to another command"),
        (b"$2\r\nab\r\n", "reply to another command"),
        (b"220 smtp.example ESMTP\r\n", "invalid reply"),
        (b"-ERR unknown command\r\n", "replies with an error"),
        (b"-MOVED 1 127.0.0.1:1\r\n", "replies with an error"),
    ],
)
def test_a_reply_that_is_no_result_is_named(reply: bytes, expected: str) -> None:
    async def steps() -> None:
        def reply_to(data: bytes, _port: int) -> bytes | None:
            return with_nonce(reply, data) if b"EVAL" in data else None

        async with answering(reply_to) as port:
            store = RedisStore(parse(f"redis://127.0.0.1:{port}"), timeout=PATIENCE)
            try:
                assert await cause(store) == expected
            finally:
                await store.aclose()

    asyncio.run(steps())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        b":7\r\n" * 9,
        b"$-1\r\n",
        b"*0\r\n",
        ENTRY % b"0",
        with_nonce(ENTRY % b"0", b"\r\nnonce\r\n"),
    ],
)
def test_a_reply_too_many_is_no_reply_to_the_next_request(extra: bytes, *, late: bool) -> None:
    """It comes right behind a reply, or ahead of the next one."""

    async def steps() -> None:
        scripts = 0

        def reply_to(data: bytes, _port: int) -> bytes | None:
            nonlocal scripts
            if b"EVAL" not in data:
                return None
            scripts += 1
            before = extra if late and scripts == 2 else b""
            behind = extra if not late and scripts == 1 else b""
            return before + with_nonce(ENTRY % b"x", data) + behind

        async with answering(reply_to) as port:
            store = RedisStore(parse(f"redis://127.0.0.1:{port}"), timeout=PATIENCE)
            try:
                for _ in range(4):
                    assert await store.ask(Get(A)) == (b"x", 1, 2)
            finally:
                await store.aclose()

    asyncio.run(steps())


@pytest.mark.parametrize("second", [False, True])
def test_a_page_of_keys_is_not_another_page(*, second: bool) -> None:
    """The reply to a SCAN is there twice: an old page would hide keys."""
    key = b"smtpd-filters:" + A
    page = b"*2\r\n$1\r\n%b\r\n*1\r\n$%d\r\n%b\r\n"

    async def steps() -> None:
        pages = [page % (cursor, len(key), key) for cursor in (b"7", b"0")]

        def reply_to(data: bytes, _port: int) -> bytes | None:
            if b"SCAN" in data:
                reply = pages.pop(0)
                return with_nonce(reply * 2 if bool(pages) != second else reply, data)
            return with_nonce(ENTRY % b"x", data) if b"EVAL" in data else None

        async with answering(reply_to) as port:
            store = RedisStore(parse(f"redis://127.0.0.1:{port}"), timeout=PATIENCE)
            try:
                with pytest.raises(UnavailableError, match="reply to another command"):
                    assert [each async for each in store.scan(b"")] == [(A, (b"x", 1, 2))]
            finally:
                await store.aclose()

    asyncio.run(steps())


def test_a_dead_sentinel_costs_no_request() -> None:
    async def steps() -> None:
        def reply_to(data: bytes, port: int) -> bytes | None:
            if b"EVAL" in data:
                return with_nonce(NOTHING, data)
            return _masters(port) if b"MASTERS" in data.upper() else None

        async with answering(reply_to) as port:
            address = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/main"
            store = RedisStore(parse(address), timeout=2)
            try:
                assert await store.ask(Get(A)) is None
            finally:
                await store.aclose()

    asyncio.run(steps())


def test_a_master_that_sentinels_name_has_tls(tmp_path: Path) -> None:
    need(unavailable())
    pem, port = str(certificate(tmp_path)), free_port()
    files = ("--tls-cert-file", pem, "--tls-key-file", pem, "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "redis", "--tls-port", str(port), *files)

    async def steps() -> None:
        def reply_to(data: bytes, _port: int) -> bytes | None:
            return _masters(port) if b"MASTERS" in data.upper() else None

        async with answering(reply_to) as at:
            address = parse(f"rediss+sentinel://127.0.0.1:{at}/main?sentinel-tls=no")
            known = RedisStore(address, timeout=PATIENCE, certificates=pem)
            unknown = RedisStore(address, timeout=PATIENCE)
            try:
                await eventually(known, A)
                found = await cause(unknown)
                assert found.startswith("the certificate is not accepted: ")
            finally:
                await known.aclose()
                await unknown.aclose()

    try:
        asyncio.run(steps())
    finally:
        server.stop()


@contextlib.contextmanager
def guarded(folder: Path, password: str = "", *, tls: bool = False) -> Iterator[tuple[int, str]]:
    """A master with a password and its sentinel: the sentinel's port, and a certificate for TLS."""
    need(unavailable())
    pem = str(certificate(folder)) if tls else ""
    port, watching = free_ports(2)
    keys = (f"tls-cert-file {pem}", f"tls-key-file {pem}", "tls-auth-clients no") if tls else ()
    configuration = folder / "sentinel.conf"
    own = [f"sentinel monitor main 127.0.0.1 {port} 1", f"sentinel auth-pass main {RIGHT}", *keys]
    own += [f"requirepass {password}"] if password else []
    own += [f"tls-port {watching}", f"tls-ca-cert-file {pem}", "tls-replication yes"] if tls else []
    configuration.write_text("\n".join(own) + "\n")
    flags = [f"--{word}" if not at else word for key in keys for at, word in enumerate(key.split())]
    master = RedisServer(
        folder / "master",
        *(*(("--tls-port", str(port)) if tls else ()), *flags, "--requirepass", RIGHT),
        *("--user", "filters", "on", f">{RIGHT}", "~*", "+@all"),
        port=0 if tls else port,
    )
    watcher = RedisServer(
        folder / "sentinel", port=0 if tls else watching, configuration=configuration
    )
    try:
        yield watching, pem
    finally:
        watcher.stop()
        master.stop()


@pytest.mark.parametrize("password", ["", RIGHT])
@pytest.mark.parametrize("user", ["", "filters@"])
@pytest.mark.parametrize("tls", ["", "s"])
def test_sentinels_have_tls_and_the_password_if_they_require_one(
    tls: str, user: str, password: str, tmp_path: Path
) -> None:
    with guarded(tmp_path, password, tls=bool(tls)) as (port, pem):
        address = parse(f"redis{tls}+sentinel://{user}127.0.0.1:{port}/main")
        store = RedisStore(address, timeout=PATIENCE, password=RIGHT, certificates=pem)
        run(store, lambda store: eventually(store, A))


def test_sentinels_that_reject_the_password_are_named(tmp_path: Path) -> None:
    with guarded(tmp_path, RIGHT) as (port, _):
        address = parse(f"redis+sentinel://127.0.0.1:{port}/main")
        assert run(RedisStore(address, timeout=PATIENCE, password="no"), cause) == (  # noqa: S106  # wrong
            "no sentinel knows the master: authentication failed (--store-password-file)"
        )


def test_a_sentinel_that_replies_with_an_error_stops_no_other() -> None:
    async def steps() -> None:
        def refuse(data: bytes, _port: int) -> bytes | None:
            return b"-ERR unknown command\r\n" if b"MASTERS" in data.upper() else None

        def reply_to(data: bytes, port: int) -> bytes | None:
            if b"EVAL" in data:
                return with_nonce(NOTHING, data)
            return _masters(port) if b"MASTERS" in data.upper() else None

        async with answering(refuse) as one, answering(reply_to) as other:
            hosts = f"127.0.0.1:{one},127.0.0.1:{other}"
            store = RedisStore(parse(f"redis+sentinel://{hosts}/main"), timeout=PATIENCE)
            none = RedisStore(parse(f"redis+sentinel://{hosts}/other"), timeout=PATIENCE)
            try:
                assert await store.ask(Get(A)) is None
                assert await cause(none) == "no sentinel knows the master: replies with an error"
            finally:
                await store.aclose()
                await none.aclose()

    asyncio.run(steps())


def _masters(port: int) -> bytes:
    """Return a sentinel's reply: one master on a port."""
    known = f"name main ip 127.0.0.1 port {port} flags master runid x num-slaves 0"
    words = f"{known} num-other-sentinels 0 quorum 1 last-ok-ping-reply 0".split()
    fields = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*1\r\n*{len(words)}\r\n{fields}".encode()


@pytest.mark.parametrize("back", [7200.0, 5 * 86400.0])
def test_a_clock_that_is_set_back_stops_nothing(
    common: RedisServer, clock: Clock, back: float
) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"waiting", ttl=86400))
        await store.ask(Take(B, rate=1, burst=10, cost=10))
        clock.advance(-back)
        assert await store.ask(Get(A)) == (b"waiting", 0, 86400)
        assert await store.ask(Take(B, rate=1, burst=10, cost=1)) == pytest.approx(1)
        clock.advance(300)
        assert await store.ask(Get(A)) == (b"waiting", 300, 86100)
        assert await store.ask(Take(B, rate=1, burst=10, cost=1)) == 0

    run(OnClock(common, clock), steps)


def test_a_clock_that_is_set_back_releases_no_block(common: RedisServer, clock: Clock) -> None:
    """A block lasts ten years, and so ends more than ten years from a time before it."""

    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"blocked", ttl=MAX_TTL))
        clock.advance(-400 * 86400.0)
        assert await store.ask(Get(A)) == (b"blocked", 0, MAX_TTL)

    run(OnClock(common, clock), steps)


def test_members_from_before_a_clock_was_set_back_expire(common: RedisServer, clock: Clock) -> None:
    """Such as the networks of a user: otherwise they alone would be let in for a year."""

    async def steps(store: Store) -> None:
        assert await store.ask(Join(A, b"old", 1, ttl=3600)) == (True, 1)
        clock.advance(-366 * 86400.0)
        assert await store.ask(Join(A, b"new", 1, ttl=3600)) == (False, 1)
        clock.advance(3600)
        assert await store.ask(Join(A, b"new", 1, ttl=3600)) == (True, 1)

    run(OnClock(common, clock), steps)


def test_a_cluster_of_endless_slots_is_unavailable() -> None:
    async def steps() -> None:
        def reply_to(data: bytes, port: int) -> bytes | None:
            slots = b"*1\r\n*3\r\n:0\r\n:20000000\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port
            return with_nonce(slots, data) if b"SLOTS" in data else None

        async with answering(reply_to) as port:
            store = RedisStore(parse(f"redis+cluster://127.0.0.1:{port}"), timeout=PATIENCE)
            try:
                assert await cause(store) == "the cluster is unreachable"
            finally:
                await store.aclose()

    asyncio.run(steps())


RACING = """
import asyncio, sys
from smtpd_filters.stores import Add, Count, join
from smtpd_filters.stores.address import parse
from smtpd_filters.stores.redis_store import RedisStore

async def main(address, own):
    store = RedisStore(parse(address), timeout=60)
    sys.stdin.readline()
    new = 0
    for number in range(0, 300, 10):
        results = await asyncio.gather(*(
            store.ask(
                Add(join("t", b"s", b"%d" % each), own, ttl=1000), Count(join("t", b"s"), 1000)
            )
            for each in range(number, number + 10)))
        new += sum(before is None for before, _ in results)
    await store.aclose()
    print(new)

asyncio.run(main(sys.argv[1], sys.argv[2].encode()))
"""


def test_of_several_exchangers_one_adds_an_entry_and_no_count_is_lost(
    server: RedisServer,
) -> None:
    address = f"unix://{server.socket}"
    several = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, address, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in several:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sum(int(process.communicate()[0]) for process in several) == 300
    counted = run(store_of(server), lambda store: store.ask(Count(join("t", b"s"), 1000, by=0)))
    assert counted == 900


# -- several servers --------------------------------------------------------------------------


async def eventually(store: Store, key: bytes) -> None:
    """Write an entry, until it succeeds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            await store.ask(Put(key, b"v", ttl=600))
        except UnavailableError:
            for each in store._servers.values():  # type: ignore[attr-defined]
                each.next_try = 0.0
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0)
        else:
            return


def test_sentinels_name_the_new_master(tmp_path: Path) -> None:
    need(unavailable())
    ports = free_ports(3)
    servers = master, replica, watching = sentinel(tmp_path, *ports)
    try:

        async def steps(store: Store) -> None:
            await eventually(store, A)
            watched(master, replica, watching)
            master.stop()
            await eventually(store, B)
            assert b"role:master" in replica.command("INFO", "replication")
            assert await patiently(store, Get(B)) is not None

        address = f"redis+sentinel://127.0.0.1:{ports[2]}/mymaster"
        run(RedisStore(parse(address), timeout=2.0), steps)
    finally:
        for each in servers:
            each.stop()


def test_a_cluster_goes_on_when_a_node_is_killed(tmp_path: Path) -> None:
    need(unavailable())
    nodes = cluster(tmp_path, free_ports(6))
    try:
        join_cluster(nodes)

        async def steps(store: Store) -> None:
            keys = [join("test", b"%d" % number) for number in range(60)]
            for key in keys:
                await eventually(store, key)
            assert {key async for key, _ in store.scan(b"test:")} == set(keys)
            nodes[0].stop()
            for key in keys:
                await eventually(store, key)
                assert await patiently(store, Add(key, b"w", ttl=9)) is not None

        address = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:3])
        run(RedisStore(parse(f"redis+cluster://{address}"), timeout=2.0), steps)
    finally:
        for node in nodes:
            node.stop()


def test_a_slot_that_moves_to_another_node_refuses_nothing(tmp_path: Path) -> None:
    """A key that isn't at its old node any more is asked for at the new one (ASK)."""
    need(unavailable())
    nodes = cluster(tmp_path, free_ports(6))
    try:
        join_cluster(nodes)

        async def steps(store: Store) -> None:
            await eventually(store, A)
            key = "own:" + A.decode()
            slot = nodes[0].command("CLUSTER", "KEYSLOT", key).strip(b":\r\n").decode()
            by_key = [node.command("GET", key) for node in nodes[:3]]
            [at] = [number for number, said in enumerate(by_key) if not said.startswith(b"-MOVED")]
            source, target = nodes[at], nodes[(at + 1) % 3]
            names = [
                each.command("CLUSTER", "MYID").split()[1].decode() for each in (source, target)
            ]
            for node, state, name in (
                (target, "IMPORTING", names[0]),
                (source, "MIGRATING", names[1]),
            ):
                assert node.command("CLUSTER", "SETSLOT", slot, state, name) == b"+OK\r\n"
            assert source.command("DEL", key) == b":1\r\n"
            assert source.command("GET", key).startswith(b"-ASK")
            assert await store.ask(Add(A, b"new", ttl=600)) is None
            found = await store.ask(Get(A))
            assert found is not None
            assert found.value == b"new"

        address = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:3])
        run(RedisStore(parse(f"redis+cluster://{address}"), timeout=PATIENCE, prefix="own:"), steps)
    finally:
        for node in nodes:
            node.stop()
