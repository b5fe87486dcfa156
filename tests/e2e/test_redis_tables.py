"""Tables on a real Redis."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.tables import DomainTable, MappingTable, NetworkTable
from tests.needed import need
from tests.stores.redis_nodes import answering, with_nonce
from tests.stores.redis_server import RedisServer, unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.tables import Table

pytestmark = pytest.mark.e2e


def file_of(folder: Path, name: str, *lines: str) -> str:
    path = folder / name
    path.write_text("\n".join((*lines, "cache 0", "timeout 20s")))
    path.chmod(0o600)
    return f"redis:{path}"


def test_sets_hashes_and_keys(tmp_path: Path) -> None:
    need(unavailable())
    server = RedisServer(tmp_path / "redis", "--requirepass", "right")
    try:
        url = f"url unix://{server.socket}"
        right = (url, "password right")
        domains = DomainTable.load_by_key(file_of(tmp_path, "set", *right, "set domains"))
        wrong = DomainTable.load_by_key(file_of(tmp_path, "wrong", *right, "set users"))
        users = MappingTable.load_by_key(file_of(tmp_path, "hash", *right, "hash users"))
        keys = MappingTable.load_by_key(file_of(tmp_path, "prefix", *right, "prefix user:"))
        denied = DomainTable.load_by_key(
            file_of(tmp_path, "denied", url, "password no", "set domains")
        )
        tables: list[Table] = [domains, wrong, users, keys, denied]

        async def main() -> None:
            assert users.remote is not None
            command = users.remote.backend._command  # type: ignore[attr-defined]
            await command("SADD", "domains", "example.org")
            await command("HSET", "users", "joe", "joe@example.org", "jane", "@example.net")
            await command("SET", "user:joe", "j@example.org")
            await command("SADD", "nets", *(f"10.0.{n}.0/24" for n in range(256)))
            assert await domains.look_up("Example.ORG") == "example.org"
            assert await domains.look_up("example.com") is None
            assert await users.look_up_value("JOE") == "joe@example.org"
            assert await users.look_up_value("bob") is None
            assert await keys.look_up_value("joe") == "j@example.org"
            assert await keys.look_up_value("bob") is None
            await command("SADD", "user:group", "joe")
            for _ in range(5):  # doesn't count against the server
                with pytest.raises(UnavailableError, match="the value of a key is not a string"):
                    await keys.look_up_value("group")
            assert await keys.look_up_value("joe") == "j@example.org"
            with pytest.raises(UnavailableError, match="users is not a set"):
                await wrong.look_up("example.org")
            with pytest.raises(UnavailableError, match="authentication failed"):
                await denied.look_up("example.org")
            nets = await asyncio.to_thread(
                NetworkTable.load, file_of(tmp_path, "nets", *right, "set nets")
            )
            assert len(nets) == 256
            assert nets.match("10.0.7.7") == "10.0.7.0/24"
            await asyncio.to_thread(server.stop)
            with pytest.raises(UnavailableError, match=r"redis\.sock: connection"):
                await domains.look_up("example.edu")
            for table in tables:
                assert table.remote is not None
                await table.remote.aclose()

        asyncio.run(main())
    finally:
        server.stop()


@pytest.mark.parametrize("late", [False, True])
def test_a_reply_too_many_is_no_answer_to_the_next_look_up(tmp_path: Path, *, late: bool) -> None:
    """It comes right behind a reply, or ahead of the next one; it is what another user has."""

    async def steps() -> None:
        asked = 0

        def reply_to(data: bytes, _port: int) -> bytes | None:
            nonlocal asked
            if b"HGET" not in data:
                return None
            asked += 1
            user = b"jane" if b"jane" in data else b"joe"
            extra = b"$3\r\njoe\r\n"
            before = extra if late and asked == 2 else b""
            behind = extra if not late and asked == 1 else b""
            reply = b"$%d\r\n%b\r\n" % (len(user), user)
            return before + with_nonce(reply, data) + behind

        async with answering(reply_to) as port:
            url = f"url redis://127.0.0.1:{port}"
            users = MappingTable.load_by_key(file_of(tmp_path, "hash", url, "hash users"))
            assert users.remote is not None
            assert await users.look_up_value("joe") == "joe"
            with suppress(UnavailableError):
                assert await users.look_up_value("jane") == "jane"
            for _ in range(3):
                assert await users.look_up_value("jane") == "jane"
            await users.remote.aclose()

    asyncio.run(steps())


def test_a_user_who_may_only_look_up(tmp_path: Path) -> None:
    need(unavailable())
    server = RedisServer(tmp_path / "redis")
    try:
        server.command("HSET", "users", "joe", "joe@example.org")
        server.command("ACL", "SETUSER", "reader", "on", ">right", "~users", "+hget", "+select")
        lines = (f"url unix://reader@{server.socket}", "password right", "hash users")
        users = MappingTable.load_by_key(file_of(tmp_path, "hash", *lines))

        async def steps() -> None:
            assert users.remote is not None
            assert await users.look_up_value("joe") == "joe@example.org"
            assert await users.look_up_value("bob") is None
            await users.remote.aclose()

        asyncio.run(steps())
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (("set a",), "url is missing"),
        (("url sqlite:/x", "set a"), "expected one address of Redis or Valkey"),
        (("url redis://127.0.0.1",), "expected one of set, hash, prefix"),
        (("url redis://127.0.0.1", "set a", "hash b"), "expected one of set, hash, prefix"),
        (("url redis://127.0.0.1", "ca_file /x", "set a"), "requires TLS"),
    ],
)
def test_mistakes_are_found_at_start(tmp_path: Path, lines: tuple[str, ...], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        DomainTable.load_by_key(file_of(tmp_path, "conf", *lines))
    with pytest.raises(ConfigError, match="needs the path of a configuration file"):
        DomainTable.load_by_key("redis://127.0.0.1/0")
