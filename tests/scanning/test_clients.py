"""The clients of smtpd share the servers that filters ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.filters.clamav import Clamav
from smtpd_filters.filters.milter import Milter
from smtpd_filters.filters.policy import Policy
from smtpd_filters.filters.rspamd import Rspamd
from smtpd_filters.filters.spamd import Spamd
from smtpd_filters.lookups.failover.turns import Turns
from smtpd_filters.testing import Conversation
from tests.filters.policy.scripted import Scripted
from tests.filters.scripted_peers import PEERS

if TYPE_CHECKING:
    from smtpd_filters.filter import Filter


SOCKET = "smtpd's own socket"


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The clients for which there was a turn."""
    found: set[str] = set()
    acquire = Turns.acquire

    async def noted(turns: Turns, client: str = "") -> None:
        found.add(client)
        await acquire(turns, client)

    monkeypatch.setattr(Turns, "acquire", noted)
    return found


def deliver(policy: type[Filter], *flags: str, address: str = "192.0.2.1") -> None:
    with Conversation(policy, *flags) as smtpd:
        client = smtpd.connect(address=address, local=address == SOCKET)
        client.ehlo("mail.example.net")
        client.mail_from("alice@example.net")
        client.rcpt_to("bob@example.org")
        client.message()


@pytest.mark.parametrize(
    ("policy", "peer", "flag"),
    [
        (Clamav, "clamav", "--clamd"),
        (Milter, "milter", "--milter"),
        (Rspamd, "rspamd", "--url"),
        (Spamd, "spamd", "--spamd"),
    ],
)
def test_each_client_has_its_own_turns(
    policy: type[Filter], peer: str, flag: str, clients: set[str]
) -> None:
    with PEERS[peer]() as address:
        deliver(policy, flag, address)
    assert clients == {"192.0.2.0/24"}


CLIENTS = {
    "192.0.2.77": "192.0.2.0/24",
    "::ffff:192.0.2.77": "192.0.2.0/24",
    "2001:db8:1:2:3::4": "2001:db8:1:2::/64",
    "fe80::1%em0": "fe80::/64",
    "127.0.0.9": "",
    "::1": "",
    SOCKET: "",
}


@pytest.mark.parametrize(("address", "client"), CLIENTS.items())
def test_a_network_is_a_client(address: str, client: str, clients: set[str]) -> None:
    with Scripted() as server:
        deliver(Policy, "--server", server.name, "--exempt", "authenticated", address=address)
        assert server.seen
    assert clients == {client}
