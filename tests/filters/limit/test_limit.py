from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.limit import Limit, policy
from smtpd_filters.filters.limit.credentials import user_of
from smtpd_filters.filters.limit.steps import LEASE
from smtpd_filters.runtime.counters import INVALID, TIMEOUT
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.stores.store import StoreUnavailableError
from smtpd_filters.testing import Conversation
from tests.filters.limit.limiting import Clock, limits, serving

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

# -- rates -----------------------------------------------------------------------------------


def test_messages_of_a_user() -> None:
    with serving(*limits("user messages 2/1h")) as server:
        alice = server.client(user="Alice")
        assert [server.send(alice) for _ in range(2)] == ["", ""]
        assert server.send(alice) == "450 4.7.1 Too many messages, try again in 1800 s"
        elsewhere = server.client("198.51.100.7", "alice")
        assert server.send(elsewhere).startswith("450 ")
        assert server.send(server.client(user="bob")) == ""
        assert server.send(server.client()) == "", "not of a user"
        server.advance(1800)
        assert server.send(alice) == ""
        assert server.send(alice).startswith("450 ")


def test_a_bucket_smaller_than_the_rate() -> None:
    with serving(*limits("user messages 60/1h burst=2")) as server:
        alice = server.client(user="alice")
        replies = [server.send(alice) for _ in range(3)]
        assert replies == ["", "", "450 4.7.1 Too many messages, try again in 60 s"]


@pytest.mark.parametrize(
    ("rule", "same", "other"),
    [
        ("client messages 1/1h", {"address": "192.0.2.1"}, {"address": "192.0.2.2"}),
        ("client messages 1/1h", {"address": "::ffff:192.0.2.1"}, {"address": "2001:db8::1"}),
        ("network messages 1/1h", {"address": "192.0.2.200"}, {"address": "192.0.3.1"}),
    ],
)
def test_clients_and_networks(rule: str, same: dict[str, str], other: dict[str, str]) -> None:
    with serving(*limits(rule)) as server:
        assert server.send(server.client("192.0.2.1")) == ""
        assert server.send(server.client(**same)) != ""
        assert server.send(server.client(**other)) == ""


def test_an_ipv6_client_is_its_network() -> None:
    with serving(*limits("client messages 1/1h")) as server:
        assert server.send(server.client("2001:db8:1:2::1")) == ""
        assert server.send(server.client("2001:db8:1:2:3::4")) != ""
        assert server.send(server.client("2001:db8:1:3::1")) == ""
    with serving(*limits("client messages 1/1h"), "--client-prefix6", "128") as server:
        assert server.send(server.client("2001:db8:1:2::1")) == ""
        assert server.send(server.client("2001:db8:1:2::2")) == ""


def test_senders_and_their_domains() -> None:
    with serving(*limits("sender messages 2/1h", "sender-domain messages 3/1h")) as server:
        client = server.client()
        assert server.send(client, "a@example.com") == ""
        assert server.send(client, "A+tag@EXAMPLE.com") == ""
        assert server.send(client, "a@example.com") != ""
        assert server.send(client, "b@example.com") == ""
        assert server.send(client, "c@example.com") != "", "the refused one was not counted"
        assert server.send(client, "c@example.net") == ""
        assert server.send(client, "") == "", "the null sender has no address"


def test_a_combination_is_counted_for_each_pair() -> None:
    with serving(*limits("client+sender messages 1/1h")) as server:
        client = server.client()
        assert server.send(client, "a@example.com") == ""
        assert server.send(client, "b@example.com") == ""
        assert server.send(client, "a@example.com") != ""
        assert server.send(server.client("192.0.2.9"), "a@example.com") == ""


def test_recipients() -> None:
    with serving(*limits("user recipients 3/1h")) as server:
        alice = server.client(user="alice")
        assert server.send(alice, recipients=2) == ""
        assert (
            server.send(alice, recipients=2) == "452 4.5.3 Too many recipients, try again in 1200 s"
        )


def test_an_address_without_a_domain_is_on_this_server() -> None:
    rules = limits("sender messages 2/1h", "recipient recipients 2/1h")
    with serving(*rules) as server:
        client = server.client()
        senders = [server.send(client, text) for text in ("a@mx.example.org", "A", "a+b")]
        assert senders == ["", "", "450 4.7.1 Too many messages, try again in 1800 s"]
        client.mail_from("b")
        recipients = [client.rcpt_to(text).reply for text in ("x", "x@MX.example.org", "x+y", "z")]
        assert recipients == ["", "", "452 4.5.3 Too many recipients, try again in 1800 s", ""]
    rules = limits("sender-domain messages 2/1h", "recipient-domain recipients 2/1h")
    with serving(*rules) as server:
        client = server.client()
        assert [server.send(client, text)[:3] for text in ("a", "b", "c")] == ["", "", "450"]
        assert client.mail_from("").reply == "", "the null sender has no domain"
        recipients = [client.rcpt_to(text).reply[:3] for text in ("a", "b@mx.example.org", "c")]
        assert recipients == ["", "", "452"]


def test_messages_to_a_recipient() -> None:
    with serving(*limits("recipient messages 1/1h")) as server:
        client = server.client()
        assert server.send(client) == ""
        assert server.send(client) == "450 4.7.1 Too many messages, try again in 3600 s"


def test_bytes() -> None:
    with serving(*limits("user bytes 3k/1h")) as server:
        alice = server.client(user="alice")
        assert server.send(alice, size=900) == ""
        assert server.send(alice, size=2400).startswith("452 4.7.1 Too much mail, try again in ")
        assert server.send(alice, size=900) == "", "the refused one was not counted"
        assert server.send(alice, size=5000).startswith("552 5.3.4 "), "it can never pass"


def test_a_rate_of_connections() -> None:
    with serving(*limits("client connections 2/1m")) as server:
        for _ in range(2):
            server.client().quit()
        refused = server.smtpd.connect(address="192.0.2.1")
        assert refused.greeting.reply == "421 4.7.0 Too many connections, try again in 30 s"
        assert refused.closed


def test_all_is_one_bucket() -> None:
    with serving(*limits("all messages 2/1m")) as server:
        assert server.send(server.client("192.0.2.1")) == ""
        assert server.send(server.client("192.0.2.2")) == ""
        assert server.send(server.client("192.0.2.3")) != ""


def test_what_a_limit_refuses_is_not_counted_by_others() -> None:
    with serving(*limits("user messages 1/1h", "client messages 2/1h")) as server:
        alice = server.client(user="alice")
        replies = [server.send(alice) for _ in range(4)]
        assert [bool(reply) for reply in replies] == [False, True, True, True]
        assert server.send(server.client(user="bob")) == "", "the client has one left"
        assert server.send(server.client(user="carol")) != ""


def test_a_client_on_this_machine_is_no_client() -> None:
    with serving(*limits("client messages 1/1h", "sender messages 3/1h")) as server:
        for how in ({"address": "127.0.0.1"}, {"address": "::1"}, {"local": True}):
            assert server.send(server.client(**how)) == ""
        assert server.send(server.client("127.0.0.1")).startswith("450 "), "its sender is one"


# -- at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [(), ("client messages 99/1h",)])
def test_connections_at_once(others: tuple[str, ...]) -> None:
    with serving(*limits("client connections 2", *others)) as server:
        first = server.client()
        server.client()
        refused = server.smtpd.connect(address="192.0.2.1")
        assert refused.greeting.reply == "421 4.7.0 Too many connections"
        server.client("192.0.2.2")
        first.quit()
        server.client()
        assert server.smtpd.connect(address="192.0.2.1").greeting.refused


def test_connections_of_a_user_at_once() -> None:
    with serving(*limits("user connections 1")) as server:
        first = server.client(user="alice")
        assert server.send(first) == ""
        assert server.send(first) == ""
        second = server.client(user="alice")
        assert server.send(second) == "421 4.7.0 Too many connections"
        first.quit()
        assert server.send(server.client(user="alice")) == ""


def test_a_lease_is_renewed_while_the_session_lasts_and_expires_with_its_process() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    with serving(*limits("client connections 1"), store=store, clock=clock) as server:
        server.client()
        for _ in range(3):
            server.advance(LEASE / 2)
            server.smtpd.refresh()
        assert server.smtpd.connect(address="192.0.2.1").greeting.refused
        # As if the process was killed: nothing renews the lease.
        server.advance(LEASE + 1)
        server.client()


def test_leases_are_released_when_the_process_ends() -> None:
    class Kept(MemoryStore):
        async def aclose(self) -> None:
            pass

    clock = Clock()
    store = Kept(clock=clock)
    for _ in range(2):
        with serving(*limits("client connections 1"), store=store, clock=clock) as server:
            server.client()


def test_a_connection_that_another_process_let_in_counts() -> None:
    """Under a supervisor, a new process gets the reports of sessions, not their requests."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    with serving(*limits("client connections 1"), store=store, clock=clock) as server:
        first = server.client()
        # As if the process had been killed: what it knew of the session is gone.
        vars(server.filter)["_opened"] = None
        server.smtpd._served.engine.sessions[first.id.encode()].scratch.clear()
        server.advance(LEASE + 1)
        second = server.client()
        assert server.send(first) == "", "it is there already"
        second.quit()
        assert server.smtpd.connect(address="192.0.2.1").greeting.refused
        first.quit()
        server.client()


# -- authentication --------------------------------------------------------------------------


def test_guesses_are_refused_before_they_are_checked() -> None:
    with serving(*limits("client failed-auth 2/10m")) as server:
        client = server.client()
        for _ in range(2):
            assert client.auth("alice", "wrong", ok=False).reply == "535 Authentication failed"
        assert client.auth("alice", "wrong", ok=False).reply.startswith("501 ")
        refused = client.rset()
        assert refused.reply == "421 4.7.0 Too many failed authentications, try again in 300 s"
        assert client.closed
        server.client("192.0.2.2").auth("alice", "wrong", ok=False)
        again = server.client().auth("bob", "right")
        assert again.refused, "even the right one"
        server.advance(301)
        assert server.client().auth("bob", "right").verb == "proceed"


def test_parallel_guesses_are_bounded() -> None:
    """A guess counts when it is made, not when it has failed."""
    with serving(*limits("client failed-auth 2/10m")) as server:
        clients = [server.client() for _ in range(4)]
        asked = [each._ask("auth", b"PLAIN " + base64.b64encode(b"\0alice\0x")) for each in clients]
        assert [each.refused for each in asked] == [False, False, True, True]


def test_a_right_password_costs_nothing() -> None:
    with serving(*limits("client failed-auth 2/10m", "user failed-auth 2/10m")) as server:
        for _ in range(5):
            assert server.client().auth("alice", "right").verb == "proceed"
        client = server.client()
        for _ in range(2):
            client.auth("alice", "wrong", ok=False)
        assert client.auth("alice", "wrong").refused


def test_guesses_for_a_user_from_many_networks() -> None:
    with serving(*limits("user failed-auth 2/10m")) as server:
        for number in range(2):
            server.client(f"198.51.{number}.1").auth("Alice", "wrong", ok=False)
        refused = server.client("203.0.113.1")
        assert refused.auth("alice", "right").refused
        assert refused.mail_from().verb == "disconnect"
        assert server.client("203.0.113.1").auth("bob", "right").verb == "proceed"


def test_a_user_that_is_named_later_counts() -> None:
    """With LOGIN smtpd asks before it knows the user."""
    with serving(*limits("client+user failed-auth 2/10m")) as server:
        client = server.client()
        for _ in range(2):
            client.auth("alice", "wrong", ok=False, mechanism="LOGIN")
        assert client.auth("alice", "wrong", ok=False, mechanism="LOGIN").verb == "proceed"
        assert client.auth("alice", "right").refused
        assert client.noop().verb == "disconnect"
        assert server.client().auth("bob", "wrong", ok=False).verb == "proceed"


@pytest.mark.parametrize(
    ("argument", "user"),
    [
        ("PLAIN " + base64.b64encode(b"\0alice\0secret").decode(), "alice"),
        ("PLAIN " + base64.b64encode(b"admin\0alice\0secret").decode(), "alice"),
        ("PLAIN " + base64.b64encode("\0jörg\0x".encode()).decode(), "jörg"),
        ("PLAIN " + base64.b64encode(b"\0\xff\0x").decode(), "\udcff"),
        ("LOGIN " + base64.b64encode(b"alice").decode(), "alice"),
        ("PLAIN AGFsaW NlAHNl\x0b\x0cY3 JldA==", "alice"),
        ("PLAIN  \tAGFsaWNlAHNlY3JldA = = ", "alice"),
        ("PLAIN\tAGFsaWNlAHNlY3JldA==", "alice"),
        ("LOGIN YWxp\tY2U=", "alice"),
        ("PLAIN", None),
        ("LOGIN", None),
        ("PLAIN  ", None),
        ("PLAIN =", None),
        ("PLAIN !", None),
        ("PLAIN " + base64.b64encode(b"alice").decode(), None),
        ("PLAIN " + base64.b64encode(b"\0\0x").decode(), None),
        ("PLAIN é", None),
        ("PLAIN " + "A" * 20_000, None),
    ],
)
def test_the_user_in_an_initial_response(argument: str, user: str | None) -> None:
    assert user_of(argument) == user


def test_no_credential_is_logged() -> None:
    with serving(*limits("client+user failed-auth 1/10m"), "-v") as server:
        for _ in range(2):
            server.client().auth("alice", "hunter2", ok=False)
        log = "\n".join(server.smtpd.log)
        assert "alice" in log
        assert "hunter2" not in log
        assert base64.b64encode(b"\0alice\0hunter2").decode() not in log


# -- recipients that smtpd refuses -----------------------------------------------------------


def test_refused_recipients() -> None:
    with serving(*limits("client refused-recipients 3/1h")) as server:
        client = server.client()
        client.mail_from("a@example.com")
        for number in range(3):
            refused = client.rcpt_to(f"guess{number}@example.org", accepted=False)
            assert refused.reply.startswith("550 Invalid recipient")
        last = client.rcpt_to("real@example.org")
        assert last.reply.startswith("421 4.7.0 Too many invalid recipients")
        assert server.send(server.client()).startswith("421 "), "in the next session as well"
        assert server.send(server.client("192.0.2.2")) == ""


@pytest.mark.parametrize("others", [(), ("client messages 99/1h",)])
def test_refused_recipients_of_a_session_that_ends_count(others: tuple[str, ...]) -> None:
    with serving(*limits("client refused-recipients 2/1h", *others)) as server:
        for number in range(2):
            client = server.client()
            client.mail_from("a@example.com")
            client.rcpt_to(f"guess{number}@example.org", accepted=False)
            client.quit()
        assert server.send(server.client()).startswith("421 ")


def test_what_this_filter_refuses_itself_is_no_guess() -> None:
    rules = limits("client refused-recipients 2/1h", "client recipients 1/1h action=reject")
    with serving(*rules) as server:
        client = server.client()
        client.mail_from("a@example.com")
        client.rcpt_to("a@example.org")
        for _ in range(4):
            assert client.rcpt_to("b@example.org").reply.startswith("550 5.7.1 Too many recipients")
        client.quit()
        assert server.send(server.client()).startswith("550 5.7.1 Too many recipients")


# -- actions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "reply"),
    [
        ("user messages 1/1h", "550 5.7.1 Too many messages"),
        ("user recipients 1/1h", "550 5.7.1 Too many recipients"),
        ("user bytes 400/1h", "552 5.7.1 Too much mail"),
    ],
)
def test_reject(rule: str, reply: str) -> None:
    with serving(*limits(rule), "--action", "reject") as server:
        alice = server.client(user="alice")
        assert [server.send(alice) for _ in range(2)] == ["", reply]


def test_junk() -> None:
    with serving(*limits("sender messages 1/1h action=junk")) as server:
        client = server.client()
        assert server.send(client) == ""
        assert server.send(client) == ""
        assert "result=junk" in server.smtpd.log[-1]


def test_log() -> None:
    with serving(*limits("sender messages 1/1h action=log")) as server:
        client = server.client()
        assert [server.send(client) for _ in range(3)] == ["", "", ""]
        lines = [line for line in server.smtpd.log if "result=proceed" in line]
        assert len(lines) == 2
        assert 'reason="sender=a@example.com exceeds sender messages 1/1h"' in lines[0]


def test_the_strictest_action_decides() -> None:
    rules = limits(
        "sender messages 1/1h action=log",
        "client messages 1/1h action=reject",
        "all messages 1/1h",
    )
    with serving(*rules) as server:
        client = server.client()
        assert [server.send(client)[:3] for _ in range(2)] == ["", "550"]


def test_delay_waits_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("sender messages 60/1m burst=1 action=delay")) as server:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            server.advance(seconds)

        monkeypatch.setattr("smtpd_filters.filters.limit.policy.sleep", sleep)
        client = server.client()
        assert [server.send(client) for _ in range(3)] == ["", "", ""]
        assert slept == [1.0, 1.0]


def test_delay_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        raise AssertionError(seconds)

    monkeypatch.setattr("smtpd_filters.filters.limit.policy.sleep", sleep)
    with serving(*limits("sender messages 1/1h action=delay")) as server:
        client = server.client()
        assert server.send(client) == ""
        assert server.send(client) == "450 4.7.1 Too many messages, try again in 3600 s"


def test_no_command_waits_for_connections_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        raise AssertionError(seconds)

    monkeypatch.setattr("smtpd_filters.filters.limit.policy.sleep", sleep)
    table = tmp_path / "overrides"
    table.write_text("192.0.2.1 connections 1\n")
    rules = limits("client connections 60/1m action=delay")
    with serving(*rules, "--override", f"file:{table}") as server:
        server.client()
        refused = server.smtpd.connect(address="192.0.2.1").greeting
        assert refused.reply == "421 4.7.0 Too many connections"


def test_a_dry_run_refuses_and_delays_nothing() -> None:
    rules = limits("sender messages 1/1h", "client messages 1/1h action=delay")
    with serving(*rules, "--dry-run") as server:
        client = server.client()
        assert [server.send(client) for _ in range(3)] == ["", "", ""]
        assert any("would=reject" in line for line in server.smtpd.log)


# -- overrides -------------------------------------------------------------------------------


def overridden(server: Any, who: Sequence[tuple[str, str, str]]) -> list[int]:
    """Return how many of five messages pass of each user, sender and client."""
    counts = []
    for user, sender, address in who:
        client = server.client(address, user)
        counts.append([server.send(client, sender) for _ in range(5)].count(""))
    return counts


def test_overrides(tmp_path: Path) -> None:
    table = tmp_path / "overrides"
    table.write_text(
        "vip@example.org unlimited\n"
        "carol messages 3/1h\n"
        "@partner.example messages unlimited\n"
        "list@example.com recipients 5/1h, messages 4/1h burst=2\n"
        "198.51.100.0/24 messages 4/1h\n"
        "[2001:db8::/32] unlimited\n"
    )
    flags = (*limits("user messages 1/1h"), "--override", f"file:{table}")
    with serving(*flags) as server:
        who = [
            ("alice", "a@example.com", "192.0.2.1"),
            ("VIP@example.org", "a@example.com", "192.0.2.1"),
            ("carol", "a@example.com", "192.0.2.1"),
            ("x@partner.example", "a@example.com", "192.0.2.1"),
        ]
        assert overridden(server, who) == [1, 5, 3, 5]
    flags = (*limits("client+sender messages 1/1h"), "--override", f"file:{table}")
    with serving(*flags) as server:
        who = [
            ("", "a@example.com", "192.0.2.1"),
            ("", "list@example.com", "192.0.2.1"),
            ("", "x@partner.example", "192.0.2.1"),
            ("", "a@example.com", "198.51.100.7"),
            ("", "a@example.com", "2001:db8::1"),
        ]
        assert overridden(server, who) == [1, 2, 5, 4, 5]
    flags = (*limits("sender-domain messages 1/1h"), "--override", f"file:{table}")
    with serving(*flags) as server:
        assert overridden(server, [("", "x@partner.example", "192.0.2.1")]) == [5]


def test_overrides_are_reloaded(tmp_path: Path) -> None:
    table = tmp_path / "overrides"
    table.write_text("# empty\n")
    flags = (*limits("user messages 1/1h"), "--override", f"file:{table}")
    with serving(*flags) as server:
        alice = server.client(user="alice")
        assert [server.send(alice)[:3] for _ in range(2)] == ["", "450"]
        table.write_text("alice unlimited\n")
        server.smtpd.reload()
        assert server.send(alice) == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alice", "expected a key and a value"),
        ("alice often", "expected unlimited, or amounts such as messages 5000/1h, not 'often'"),
        ("alice messages", "expected unlimited"),
        ("alice messages 5", "messages require a period"),
        ("alice messages 5/1h, messages 6/1h", "messages are there twice"),
        ("alice messages 5/1h action=log", "is not burst=N"),
        ("alice messages 5/1h often", "is not burst=N"),
    ],
)
def test_an_invalid_override_names_its_line(tmp_path: Path, line: str, reason: str) -> None:
    table = tmp_path / "overrides"
    table.write_text(f"# first\n{line}\n")
    with pytest.raises(ConfigError) as raised:
        Conversation(Limit, *limits("user messages 1/1h"), "--override", f"file:{table}")
    assert f"{table}:2: " in str(raised.value)
    assert reason in str(raised.value)


# -- the store fails ---------------------------------------------------------------------------


class Broken(MemoryStore):
    """A store that fails."""

    label = "sqlite:/x"

    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        del operations
        raise UnavailableError("sqlite:/x: disk full")


class Full(MemoryStore):
    """A store that at some time takes no writes any more."""

    failure = ""

    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        if self.failure and any(each.writes for each in operations):
            raise StoreUnavailableError("redis://x: out of memory", self.failure)
        return await super()._apply(operations)


class Cluster(MemoryStore):
    """A store in several places, of which one fails: that of the keys with these bytes."""

    one_place = False
    broken = b"nothing"

    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        if any(self.broken in operation.key for operation in operations):
            raise UnavailableError("redis: connection refused")
        return await super()._apply(operations)


def test_leases_are_renewed_though_another_part_of_the_store_fails() -> None:
    clock = Clock()
    store = Cluster(clock=clock)
    with serving(*limits("client connections 1"), store=store, clock=clock) as server:
        for address in ("192.0.2.1", "192.0.2.2"):
            server.client(address=address)
        vars(server.filter)["_opened"]._renewed = 1  # at a time
        store.broken = b"192.0.2.1"
        for _ in range(3):
            server.advance(LEASE / 2)
            server.smtpd.refresh()
        assert server.smtpd.connect(address="192.0.2.2").greeting.refused
        assert 'limit store error="redis: connection refused"' in server.smtpd.log


def test_a_refusal_stands_though_another_part_of_the_store_fails() -> None:
    clock = Clock()
    store = Cluster(clock=clock)
    rules = limits("client messages 1/1h", "user messages 3/1h")
    with serving(*rules, store=store, clock=clock) as server:
        alice = server.client(user="alice")
        assert server.send(alice) == ""
        store.broken = b"user="
        assert server.send(alice).startswith("450 4.7.1 Too many messages")
        store.broken = b"client="
        assert [server.send(alice) for _ in range(4)] == [""] * 4, "--on-error proceed"
        server.settle()
        store.broken = b"nothing"
        elsewhere = [server.client(f"198.51.100.{n}", "alice") for n in range(3)]
        assert [server.send(each)[:3] for each in elsewhere] == ["", "", "450"], "put back"


def test_a_store_that_fails_in_a_delay_gets_back_what_was_taken() -> None:
    clock = Clock()
    store = Cluster(clock=clock)
    rules = limits("user messages 2/1h", "client messages 1/10s action=delay")
    with serving("--max-delay", "20s", *rules, store=store, clock=clock) as server:
        alice = server.client(user="alice")
        assert server.send(alice) == ""

        async def fail(_seconds: float) -> None:
            store.broken = b"client="

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "sleep", fail)
            assert server.send(alice) == "", "--on-error proceed"
        server.settle()
        elsewhere = [server.client(f"198.51.100.{n}", "alice") for n in range(2)]
        store.broken = b"nothing"
        assert [server.send(each)[:3] for each in elsewhere] == ["", "450"]


def test_a_refused_message_is_no_connection_of_its_user() -> None:
    with serving(*limits("client messages 1/1h", "user connections 1")) as server:
        server.send(server.client())
        alice = server.client(user="alice")
        assert server.send(alice).startswith("450 4.7.1 Too many messages")
        server.settle()
        elsewhere = server.client("198.51.100.7", "alice")
        assert server.send(elsewhere) == ""
        assert server.send(server.client("203.0.113.7", "alice"))[:3] == "421"


def test_requests_that_have_ended_are_pending_no_longer() -> None:
    with serving(*limits("client messages 1/1h", "user messages 3/1h")) as server:
        alice = server.client(user="alice")
        assert [server.send(alice)[:3] for _ in range(4)] == ["", "450", "450", "450"]
        server.settle()
        filter_ = server.filter
        assert isinstance(filter_, Limit)
        assert not filter_._ledger._tasks


class Busy(Limit):
    """It has no room for a request for which no command waits."""

    name = "limit"
    background = 0


def test_requests_for_which_no_command_waits_are_bounded() -> None:
    with serving(*limits("client messages 1/1h", "user messages 3/1h"), kind=Busy) as server:
        alice = server.client(user="alice")
        assert [server.send(alice)[:3] for _ in range(2)] == ["", "450"]
        assert 'error="too many requests are pending"' in server.smtpd.log[-2]


EVERYTHING = limits(
    "client connections 1",
    "client failed-auth 1/1h",
    "user messages 1/1h",
    "client recipients 1/1h",
    "user bytes 1k/1h",
    "client refused-recipients 1/1h",
)


def test_a_broken_store_refuses_nothing() -> None:
    with serving(*EVERYTHING, store=Broken()) as server:
        for _ in range(3):
            client = server.client(user="alice")
            assert server.send(client, recipients=2) == ""
            client.quit()
        causes = [line for line in server.smtpd.log if "cause=" in line and "repeated" not in line]
        assert causes
        assert all("sqlite:/x: disk full" in line for line in causes)


@pytest.mark.parametrize(("failure", "is_read"), [(INVALID, True), (TIMEOUT, False)])
def test_an_account_stays_blocked_though_nothing_can_be_written(
    failure: str, *, is_read: bool
) -> None:
    clock = Clock()
    store = Full(clock=clock)
    rules = limits("user messages 1/1h action=block", "client messages 100/1h")
    with serving(*rules, store=store, clock=clock) as server:
        alice, bob = server.client(user="alice"), server.client(user="bob")
        assert [bool(server.send(alice)) for _ in range(2)] == [False, True]
        store.failure = failure
        assert server.send(alice).startswith("450 4.7.1 Sending is suspended") is is_read
        assert server.send(bob) == ""
        server.settle()


def test_leases_that_a_broken_store_does_not_renew_are_logged_as_its_failure() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    with serving(*limits("client connections 1"), store=store, clock=clock) as server:
        server.client()
        ledger = vars(server.filter)["_opened"]
        ledger._store = Broken()
        server.smtpd.refresh()
        assert server.smtpd.log == ['limit store error="sqlite:/x: disk full"']
        ledger._store = store
        server.smtpd.refresh()
        assert server.smtpd.connect(address="192.0.2.1").greeting.refused


def test_a_broken_store_refuses_everything_if_it_should() -> None:
    flags = (*limits("user messages 1/1h"), "--on-error", "tempfail")
    with serving(*flags, store=Broken()) as server:
        assert server.send(server.client(user="alice")).startswith("451 4.3.0 ")


def test_a_client_whose_address_is_unknown_is_for_on_error() -> None:
    with serving(*limits("client messages 1/1h")) as server:
        for _ in range(2):
            client = server.client(reported=False)
            assert server.send(client) == ""
        assert "the client's address is not known" in server.smtpd.log[0]


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "--limit is required"),
        (limits("user messages 1/1h", "user messages 1/1h"), "user messages 1/1h is there twice"),
        (
            limits("client+user messages 1/1h", "user+client messages 1/1h"),
            "user+client messages 1/1h is there twice",
        ),
        ((*limits("all messages 1/1h"), "--action", "block"), "--action: all messages 1/1h: "),
        ((*limits("client connections 1"), "--action", "delay"), "action=delay is for rates"),
    ],
)
def test_settings_without_a_meaning(flags: Sequence[str], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Conversation(Limit, "--store", "memory:", *flags)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("rule", "phases", "reports"),
    [
        ("client connections 1", {"connect", "mail-from"}, set()),
        ("client failed-auth 1/1h", {"auth", "mail-from", "rset", "noop"}, {"link-auth"}),
        ("all messages 1/1h", {"mail-from"}, set()),
        ("user recipients 1/1h", {"rcpt-to", "mail-from"}, {"link-auth", "tx-begin"}),
        ("sender messages 1/1h", {"mail-from"}, {"link-greeting"}),
        ("client+recipient-domain messages 1/1h", {"rcpt-to"}, {"link-greeting", "tx-begin"}),
        ("user bytes 1k/1h", {"data-line", "commit", "mail-from"}, {"link-auth", "tx-begin"}),
    ],
)
def test_only_what_a_limit_needs_is_registered(
    rule: str, phases: set[str], reports: set[str]
) -> None:
    with serving(*limits(rule)) as server:
        assert server.smtpd.phases == phases
        kept = {"link-auth", "link-greeting", "tx-begin"}
        assert server.smtpd.reports & kept == reports


def test_exempt_clients_have_no_limits() -> None:
    flags = (*EVERYTHING, "--exempt", "198.51.100.0/24", "--exempt", "authenticated")
    with serving(*flags) as server:
        for _ in range(3):
            server.smtpd.connect(address="198.51.100.9")
        alice = server.client(user="alice")
        for _ in range(3):
            assert server.send(alice, recipients=3, size=2000) == ""
