"""Tests of each filter with a DNS that is dead, slow, broken, lying or flapping."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.server import filter_command
from tests.e2e.sending import GOOD, GOOD6, ZONE, attempt
from tests.filters.dnsbl.zones import addresses, under

if TYPE_CHECKING:
    from tests.e2e.conftest import Start

FAULTS: dict[str, dict[str, Any]] = {
    "dead": {"drop": True},
    # More than `DEADLINE`: a filter that waited for the answer would act on it.
    "slow": {"delay": 60},
    "servfail": {"servfail": True},
    "lying": {"wrong-owner": True},
    "flapping": {"flap": True},
}
# At most 2.8 s a look-up, and two of them one behind the other.
DEADLINE = ("--deadline", "30s", "--timeout", "700ms")
SLOW_LISTS = ("--deadline", "30s", "--timeout", "3s")
LIST = "bl.lists.example"
LATER = "4.4.3 Temporary failure, please try again later"


class Case(NamedTuple):
    """A filter, what is wrong for whom, and where it shows."""

    flags: tuple[str, ...]
    stage: str
    #: The reply with a flapping DNS: that of the DNS's answer, found in the second attempt.
    found: str
    #: The name that is looked up for the client of a fault, and what is there.
    name: str
    entry: dict[str, Any]
    six: bool = True


CASES = {
    "senderscore": Case(
        ("-blockBelow", "50", *DEADLINE),
        "connect",
        "550 your IP reputation is too low for this MX",
        "{reversed}.score.senderscore.com",
        {"A": "127.0.4.7"},
        six=False,
    ),
    "dnsbl": Case(
        ("--client", LIST, *SLOW_LISTS),
        "connect",
        f"554 5.7.1 {{address}} is listed by {LIST}",
        "{reversed}." + LIST,
        {"A": "127.0.0.2"},
    ),
    "helo": Case(
        ("--unknown", "reject", "--elsewhere", "reject", *DEADLINE),
        "MAIL",
        "550 5.7.1 Your HELO name does not lead to the address you come from",
        "{fault}.example",
        {"A": "192.0.2.99", "AAAA": "2001:db8::99"},
    ),
    "sender": Case(
        DEADLINE,
        "MAIL",
        "550 5.7.27 Your sender domain says that it receives no mail (null MX)",
        "{fault}.example",
        {"MX": "0 ."},
    ),
    "rcpt": Case(
        ("--domains", "local.example", "--unknown-domain", "reject", *DEADLINE),
        "RCPT",
        "556 5.1.10 The recipient's domain accepts no mail (null MX)",
        "{fault}.example",
        {"MX": "0 ."},
    ),
}


def addresses_of(number: int, *, six: bool) -> list[str]:
    """Where the clients of a fault come from."""
    return [f"192.0.2.{20 + number}", *([f"2001:db8::{20 + number}"] if six else [])]


@pytest.mark.parametrize("filter_", CASES)
def test_the_chosen_outcome_is_there_before_the_answer(start: Start, filter_: str) -> None:
    case = CASES[filter_]
    zone = merge(ZONE, addresses(LIST), {"mx.public.example": {"A": "1.2.3.4"}})
    zone["good.example"] = {"MX": "10 mx.public.example"}
    zone["client.example"] = {"A": GOOD, "AAAA": GOOD6}
    clients: list[tuple[str, str]] = []
    for number, (fault, behaviour) in enumerate(FAULTS.items()):
        for address in addresses_of(number, six=case.six):
            clients.append((fault, address))
            reverse = under("", address).rstrip(".")
            name = case.name.format(fault=fault, reversed=reverse)
            zone[name] = {**case.entry, **behaviour}
    command = filter_command(filter_, *case.flags, "--on-error", "tempfail")
    server = start(zone=zone, filters={filter_: command})

    def come(fault: str, address: str) -> tuple[str, str]:
        named: dict[str, dict[str, Any]] = {
            "helo": {"helo": f"EHLO {fault}.example"},
            "sender": {"sender": f"a@{fault}.example"},
            "rcpt": {"recipients": (f"a@{fault}.example",)},
        }
        outcome = attempt(server, address, **named.get(filter_, {}))
        return outcome.stage, outcome.said

    with ThreadPoolExecutor(len(clients)) as pool:
        fates = [pool.submit(come, *client) for client in clients]
        for source in (GOOD, GOOD6):
            assert attempt(server, source).stage == ""
        for (fault, address), fate in zip(clients, fates, strict=True):
            later = f"{421 if case.stage == 'connect' else 451} {LATER}"
            expected = case.found.format(address=address) if fault == "flapping" else later
            assert fate.result() == (case.stage, expected), (fault, address)
