"""The limits on a server of Redis, which two filters share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main
from tests.filters.limit.limiting import limits, serving
from tests.needed import need
from tests.stores.redis_server import RedisServer, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.filters.limit.limiting import Server

pytestmark = pytest.mark.e2e
RULES = limits(
    "user messages 3/1h action=block",
    "client connections 2",
    "user networks 2/1h",
    "client+sender recipients 5/1h",
    "user messages 10x",
    "client failed-auth 2/1h",
)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    need(unavailable())
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def test_two_filters_share_the_limits(redis: RedisServer) -> None:
    flags = ("--store", f"unix://{redis.socket}", "--store-timeout", "60", *RULES)

    def sends(server: Server, address: str = "192.0.2.1", user: str = "alice") -> str:
        client = server.client(address, user)
        reply = server.send(client)
        client.quit()
        server.settle()
        return reply

    with serving(*flags, replaced=False) as one, serving(*flags, replaced=False) as other:
        other.smtpd._clients = 1000  # smtpd's session ids are random
        assert [sends(one), sends(other), sends(one)] == ["", "", ""]
        assert sends(other).startswith("450 4.7.1 Too many messages")
        assert sends(one).startswith("450 4.7.1 Sending is suspended")
        assert main(["limit", "release", "alice", "--store", f"unix://{redis.socket}"]) == 0
        assert sends(one, "198.51.100.1") == ""
        assert sends(other, "203.0.113.1") == ""
        assert sends(other, "192.0.2.1").startswith("450 4.7.1 Used from too many networks")

        held = [one.client("192.0.2.7"), other.client("192.0.2.7")]
        assert one.smtpd.connect(address="192.0.2.7").greeting.refused
        held[0].quit()
        one.settle()
        one.client("192.0.2.7")

        for server in (one, other):
            guessing = server.client("192.0.2.8")
            guessing.auth("bob", "wrong", ok=False)
            guessing.quit()
            server.settle()
        assert one.client("192.0.2.8").auth("bob", "right").refused
