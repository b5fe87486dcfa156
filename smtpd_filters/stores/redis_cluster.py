"""A client of a cluster: which node has which slots, and the connections to the nodes.

redis-py has one as well, which is not used. It reconnects to all nodes when one has failed, and
disconnects the commands of others; it asks a node for the list of all commands each time, a node
that may be the dead one; and it sends ASKING and the command on two connections.

A cluster has 16,384 slots. Each key is in one of them, each slot on a master. A node that doesn't
have a slot names the one that has (MOVED); while a slot moves to another, its old node may name the
new one for a single command (ASK). All of the nodes know all slots (CLUSTER SLOTS).

Invariants
----------
*Current*: the slots are looked up again, in the background, after MOVED and failures, and as long
as commands are not sent to a failed node (`look_again`).
*Another's word*: the node that gave the slots is asked last the next time: it may be cut off from
the others, and know nothing of a failover.
*One dead node*: a node that doesn't answer delays the look-up by `HURRY`, not by a timeout.
"""

from __future__ import annotations

import asyncio
import binascii
import random
import re
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from redis import exceptions

from .redis_pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Host and port of a node.
Place: TypeAlias = tuple[str, int]

#: Slots of a cluster (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
SLOTS = 16384
#: Nodes that a command is sent to at most, one naming the next. redis-py has the same bound.
REDIRECTIONS = 16
#: Seconds before a command is sent again whose keys are on two nodes while their slot moves.
PAUSE = 0.05
#: Seconds between look-ups of the slots.
INTERVAL = 0.5
#: Seconds after which the next node is asked for the slots as well.
HURRY = 0.2
#: Nodes beyond which those are forgotten that only others have named; a cluster has 1,000 at most.
MAX_NODES = 2048
#: Names and addresses of hosts; they get into the log.
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")


NO_NODE = "no node of the cluster has the slot"
MOVING = "the slot is moving to another node of the cluster"
IN_CIRCLES = "the nodes of the cluster name each other for the slot"


class NoClusterError(Exception):
    """No node could be asked, or none has the slot of a key; with the text of the last error."""


class Cluster:
    """The nodes of a cluster; `seeds` are those that the address names.

    `pool` returns new connections to a node.
    """

    def __init__(
        self, seeds: Sequence[Place], pool: Callable[[Place], Pool], *, most: int = MAX_NODES
    ) -> None:
        self._most = most
        self._seeds = seeds
        self._new_pool = pool
        self._pools: dict[Place, Pool] = {}
        self._slots: list[Place | None] = []
        self._nodes: frozenset[Place] = frozenset()
        self._source: Place | None = None
        self._looked = 0.0
        self._look_up: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def node(self, key: bytes) -> Place | None:
        """Return the master of a key, as far as it is known."""
        return self._slots[slot_of(key)] if self._slots else None

    def pool(self, node: Place) -> Pool:
        """Return the connections to a node."""
        found = self._pools.get(node)
        if found is None:
            if len(self._pools) >= self._most:
                self._forget()
            found = self._pools[node] = self._new_pool(node)
        return found

    async def command(self, key: bytes, *words: Any) -> Any:
        """Return the reply of the node that has a key.

        Raises redis-py's exceptions, and NoClusterError if no node has the slot.
        """
        return await self._ask(key, Pool.command, words)

    async def script(self, key: bytes, *words: Any) -> list[Any]:
        """Return the results of a script on the node that has a key (`Pool.script`)."""
        results: list[Any] = await self._ask(key, Pool.script, words)
        return results

    async def _ask(self, key: bytes, how: Callable[..., Any], words: Sequence[Any]) -> Any:
        node, asking = self.node(key), False
        if node is None:
            await self._refresh()
            node = self.node(key)
        if node is None:
            raise NoClusterError(NO_NODE)
        text = ""
        for _ in range(REDIRECTIONS):
            try:
                return await how(self.pool(node), *words, asking=asking)
            except exceptions.ResponseError as error:
                text = _text(error)
                if text.startswith("TRYAGAIN"):
                    await asyncio.sleep(PAUSE)
                    continue
                if (named := self._named(key, text, node)) is None:
                    raise
                node, asking = named, text.startswith("ASK")
            except (exceptions.TimeoutError, TimeoutError):
                self.look_again()
                raise
            except (exceptions.ConnectionError, ConnectionError):
                if self._is_due():
                    await self._refresh()  # before the command is repeated
                raise
        raise exceptions.ResponseError(MOVING if text.startswith("TRYAGAIN") else IN_CIRCLES)

    def _named(self, key: bytes, text: str, node: Place) -> Place | None:
        """Return the node that another one names for a key in an error, if it names one."""
        if text.startswith("CLUSTERDOWN"):
            self.look_again()
        named = _redirection(text, node)
        if named is not None and text.startswith("MOVED"):
            self._slots[slot_of(key)] = named
            self.look_again()
        return named

    async def masters(self) -> Sequence[Place]:
        """Return the nodes that have slots. Raises NoClusterError."""
        await self._refresh()
        return self.known_masters()

    def known_masters(self) -> Sequence[Place]:
        """Return the nodes that have slots, as far as that is known."""
        return list(dict.fromkeys(node for node in self._slots if node is not None))

    def look_again(self) -> None:
        """Look the slots up again in the background, unless that has just been done."""
        if self._is_due():
            self._start()

    def _is_due(self) -> bool:
        return time.monotonic() - self._looked >= INTERVAL

    async def _refresh(self) -> None:
        """Look the slots up. Raises NoClusterError."""
        look_up = self._start()
        await asyncio.wait({look_up})
        look_up.result()

    def _start(self) -> asyncio.Task[None]:
        if self._look_up is None:
            self._look_up = self._spawn(self._find_slots())
            self._look_up.add_done_callback(self._found)
        return self._look_up

    def _found(self, _: asyncio.Task[None]) -> None:
        self._look_up = None
        self._looked = time.monotonic()

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may wait for it

    async def _find_slots(self) -> None:
        """Ask one node after the other, until the first knows the slots."""
        candidates = self._candidates()
        asked: dict[asyncio.Task[Any], Place] = {}
        failure: BaseException | None = None
        while True:
            if (node := next(candidates, None)) is not None:
                task = self._spawn(self.pool(node).command("CLUSTER", "SLOTS"))
                asked[task] = node
            if not asked:
                raise NoClusterError(str(failure)) from failure
            done, _ = await asyncio.wait(
                asked,
                timeout=None if node is None else HURRY,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                source = asked.pop(task)
                try:
                    slots, nodes = parse_slots(task.result(), source)
                except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # redis-py raises many
                    failure = error
                    continue
                self._use(source, slots, nodes)
                return

    def _candidates(self) -> Iterator[Place]:
        known = [*self._nodes]
        random.shuffle(known)  # spreads load
        nodes = dict.fromkeys([*known, *self._seeds])
        if self._source in nodes:  # *Another's word*
            del nodes[self._source]
            nodes[self._source] = None
        return iter(nodes)

    def _use(self, source: Place, slots: list[Place | None], nodes: frozenset[Place]) -> None:
        self._source, self._slots, self._nodes = source, slots, nodes
        self._forget()

    def _forget(self) -> None:
        """Close the connections to what is not a node, or not any more."""
        for node in self._pools.keys() - self._nodes - {*self._seeds}:
            self._pools.pop(node).retire()

    async def close(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))


def slot_of(key: bytes) -> int:
    """Return the slot of a key: that of the part in braces, if it has one."""
    _, brace, rest = key.partition(b"{")
    part, end, _ = rest.partition(b"}")
    return binascii.crc_hqx(part if brace and end and part else key, 0) % SLOTS


def parse_slots(reply: Any, asked: Place) -> tuple[list[Place | None], frozenset[Place]]:
    """Return the master of each slot, and all nodes, from a reply to CLUSTER SLOTS.

    Raises AttributeError, TypeError or ValueError for an invalid one.
    """
    slots: list[Place | None] = [None] * SLOTS
    nodes: set[Place] = set()
    left = SLOTS
    for first, last, *servers in reply:
        if not 0 <= first <= last < SLOTS:
            raise ValueError("no slots of a cluster")
        left -= last - first + 1
        if left < 0:
            raise ValueError("more slots than a cluster has")
        places = [_place(host, port, asked[0]) for host, port, *_ in servers]
        slots[first : last + 1] = places[:1] * (last - first + 1) or [None] * (last - first + 1)
        nodes.update(place for place in places if place is not None)
    if not nodes:
        raise ValueError("no nodes")
    return slots, frozenset(nodes)


def _place(host: bytes | None, port: int, asked: str) -> Place | None:
    """Return the place of a node, None for one that the server doesn't know itself."""
    name = host.decode() if host else asked  # it doesn't know by which name it is reached
    if name == "?" or port == 0:
        return None
    if not _HOST.fullmatch(name) or not 0 < port < 65536:
        raise ValueError("no host and port")
    return name, port


def _text(error: exceptions.ResponseError) -> str:
    """Return a server's error with its code, which redis-py may have made a class of."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return f"{code} {error}"
    return str(error)


#: MovedError is an AskError.
_CODES: Sequence[tuple[type[Exception], str]] = (
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
)


def _redirection(text: str, node: Place) -> Place | None:
    """Return the node that another names in an error, if it names one."""
    match text.split():
        case ["MOVED" | "ASK", _, address, *_]:
            host, _, port = address.rpartition(":")
            try:
                return _place(host.encode(), int(port), node[0])
            except ValueError:
                return None
    return None
