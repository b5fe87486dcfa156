"""Properties of limits: they hold whatever clients do, and nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.stores.memory import MemoryStore
from tests.effort import part
from tests.filters.limit.limiting import Clock, limits, serving

if TYPE_CHECKING:
    from smtpd_filters.testing import Client, Verdict
    from tests.filters.limit.limiting import Server

RULES = limits(
    "client connections 3",
    "user messages 5/1m",
    "client messages 1000/1m",
    "client failed-auth 2/1m",
)
#: Who does what, and the seconds before.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["connect", "quit", "mail", "guess", "login"]),
        st.integers(0, 2),
        st.sampled_from([0, 0, 0, 7, 61]),
    ),
    max_size=60,
)


class World:
    """Clients of one address, and what they could do."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.clients: list[tuple[Client, str]] = []
        self.sent: list[tuple[float, str]] = []
        self.failed: list[float] = []

    def step(self, what: str, number: int) -> None:
        if what == "connect":
            self.connect()
        elif number < len(self.clients):
            getattr(self, what)(number, *self.clients[number])

    def connect(self) -> None:
        there = self.server.smtpd.connect(address="192.0.2.1")
        assert there.greeting.refused is (len(self.clients) >= 3)
        if not there.closed:
            there.ehlo("x.example")
            self.clients.append((there, ""))

    def quit(self, number: int, there: Client, _user: str) -> None:
        there.quit()
        del self.clients[number]

    def mail(self, _number: int, there: Client, user: str) -> None:
        if not there.mail_from("a@example.com").refused:
            there.rset()
            self.sent.append((self.server.clock.now, user))

    def guess(self, number: int, there: Client, user: str) -> None:
        if not user:
            if self.limited(there.auth(f"user{number}", "wrong", ok=False), there):
                del self.clients[number]
            else:
                self.failed.append(self.server.clock.now)

    @staticmethod
    def limited(said: Verdict, there: Client) -> bool:
        """Whether the filter refused the credentials; then the client's next command closes it."""
        if said.verb == "proceed":
            return False
        assert there.noop().reply.startswith("421 ")
        return True

    def login(self, number: int, there: Client, user: str) -> None:
        if not user:
            if self.limited(there.auth(f"user{number}", "right"), there):
                del self.clients[number]
            else:
                self.clients[number] = there, f"user{number}"


@settings(max_examples=part(80), deadline=None)
@given(STEPS)
def test_limits_hold(steps: list[tuple[str, int, int]]) -> None:
    store = MemoryStore(clock=(clock := Clock()))
    with serving(*RULES, store=store, clock=clock) as server:
        world = World(server)
        for what, number, seconds in steps:
            server.advance(seconds)
            server.smtpd.refresh()
            world.step(what, number)
        for there, _ in world.clients:
            there.quit()
        server.settle()
        left = store._rows.groups
        assert left == {}
    for user in {user for _, user in world.sent if user}:
        within([at for at, who in world.sent if who == user], 5)
    within(world.failed, 2)


def within(times: list[float], number: int) -> None:
    """Check that a bucket of a number a minute would have passed these."""
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            allowed = number + number * (times[last] - start) / 60
            assert last - first + 1 <= allowed + 1e-6
