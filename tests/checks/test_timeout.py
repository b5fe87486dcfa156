"""`--timeout` beside `--deadline`, for every filter that has both."""

from __future__ import annotations

import pytest

from smtpd_filters.cli.listing import discover
from smtpd_filters.testing import Conversation

NEEDED = {
    "dnsbl": ("--client", "bl.example", "--untested", "bl.example"),
    "fcrdns": ("--verify",),
    "greylist": ("--store", "memory:"),
    "policy": ("--server", "127.0.0.1:9"),
    "rcpt": ("--domains", "example.org", "--unknown-domain", "log"),
    "senderscore": ("-junkBelow", "50"),
}
#: Filters that ask daemons, and no name server.
WITHOUT_DNS = {"clamav", "policy", "rspamd", "spamd"}
ASKING = {cls.name: cls for cls in discover()[0] if "timeout" in cls.Options.options}


def logged(name: str, *flags: str) -> list[str]:
    nameserver = () if name in WITHOUT_DNS else ("--nameserver", "127.0.0.1:9")
    with Conversation(ASKING[name], *NEEDED.get(name, ()), *nameserver, *flags) as smtpd:
        return [line for line in smtpd.log if "--timeout" in line]


def test_every_filter_with_lookups_is_tested() -> None:
    assert ASKING.keys() >= {*NEEDED, "helo", "rspamd", "sender", "senderscore"}


@pytest.mark.parametrize("name", ASKING)
def test_a_timeout_above_the_deadline_is_logged_at_start(name: str) -> None:
    assert logged(name, "--timeout", "4s", "--deadline", "1500ms") == [
        f"{name} --timeout 4s has no effect: --deadline 1.5s is shorter"
    ]
    assert logged(name, "--timeout", "4s", "--deadline", "4s") == []
    assert logged(name, "--deadline", "1s") == []
