"""The sentinels that name a master, asked one after the other.

redis-py gives up at the first one that replies with an error, such as a lack of rights, and takes
no password that only some of them require.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .redis_cluster import Place


class NoMasterError(RedisError):
    """No sentinel has named the master; its cause is the failure of the last one that failed.

    Unlike redis-py's it isn't a lost connection, after which a request is repeated.
    """


class Sentinels(Sentinel):
    """Sentinels on some places, each with a client for each way to log in.

    `connect` returns a client of redis-py for a place and a way. `is_login` returns whether an
    error is about the way, so that the next one is tried. `settings` are those of the master.
    """

    def __init__(
        self,
        places: Sequence[Place],
        ways: Sequence[Any],
        connect: Callable[[Place, Any], Any],
        is_login: Callable[[BaseException], bool],
        settings: dict[str, Any],
    ) -> None:
        untyped: Any = super().__init__
        untyped([], sentinel_kwargs={}, **settings)
        self._is_login = is_login
        self._clients = [(place, connect(place, way)) for place in places for way in ways]

    @property
    def clients(self) -> Sequence[Any]:
        """The clients of all sentinels."""
        return [client for _, client in self._clients]

    async def discover_master(self, service_name: str) -> Place:
        """Return the place of a master. Raises NoMasterError."""
        failure: BaseException | None = None
        done: set[Place] = set()
        for number, (place, client) in enumerate(self._clients):
            if place in done:
                continue
            try:
                masters = await client.sentinel_masters()
            except Exception as error:  # noqa: BLE001  # redis-py raises many
                failure = error
                if not self._is_login(error):
                    done.add(place)
                continue
            done.add(place)
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self._clients.insert(0, self._clients.pop(number))  # it is asked first
                return state["ip"], state["port"]
        raise NoMasterError from failure
