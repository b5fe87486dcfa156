"""Rspamd as it is configured: proxies, what is larger than it takes, results, compression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.http import zstd
from smtpd_filters.testing.rspamd.daemon import Rspamd, unavailable
from smtpd_filters.testing.server import Lab, Smtpd, filter_command, system_version
from smtpd_filters.testing.server import unavailable as no_lab
from smtpd_filters.testing.server.lab import HOSTNAME
from tests.e2e.conftest import Start
from tests.e2e.sending import GOOD, ZONE, attempt, logged
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator


GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
SMALL_LIMIT = 100_000
PROXIES = """
worker "rspamd_proxy" {
  bind_socket = "%(socket)s-forwarding mode=0666";
  milter = false;
  upstream "local" { default = true; hosts = "%(address)s:%(port)d"; }
}
worker "rspamd_proxy" {
  bind_socket = "%(socket)s-scanning mode=0666";
  milter = false;
  upstream "local" { default = true; self_scan = true; }
}
"""
MILTER_HEADERS = 'use = ["authentication-results"]; skip_local = false;'


def scanned(name: str) -> str:
    """A rule that adds a field with this value to whatever is scanned."""
    return f"""
rspamd_config:register_symbol{{
  name = "TEST_SCANNED", type = "idempotent", flags = "explicit_disable",
  callback = function(task)
    task:set_milter_reply({{ add_headers = {{ ["X-Scanned"] = "{name}" }} }})
  end
}}
"""


NEW_BODY = """
rspamd_config:register_symbol{
  name = "TEST_BODY", type = "prefilter", priority = 10, flags = "empty,nostat",
  callback = function(task)
    if task:get_header("X-Test-Body") then
      task:set_message("Subject: new\\r\\n\\r\\nnew body\\r\\n")
    end
  end
}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    need(unavailable())
    with Lab(ZONE) as made:
        yield made


def configured(lab: Lab, name: str, options: str = "", *, proxies: bool = False) -> Rspamd:
    override = {"greylist.conf": "enabled = false;", "options.inc": options}
    local = {"milter_headers.conf": MILTER_HEADERS}
    lua = scanned(name) + NEW_BODY
    return Rspamd(
        lab,
        lua=lua,
        local=local,
        override=override,
        workers=PROXIES if proxies else "",
        redis=False,
    )


@pytest.fixture(scope="module")
def small(lab: Lab) -> Iterator[Rspamd]:
    """A daemon that takes no large messages."""
    with configured(lab, "small", f"max_message = {SMALL_LIMIT};") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def large(lab: Lab) -> Iterator[Rspamd]:
    """A daemon that does."""
    with configured(lab, "large", proxies=True) as daemon:
        yield daemon


def mail(size: int = 100) -> bytes:
    lines = b"0123456789" * 7 + b"\r\n"
    return b"Subject: hello\r\nFrom: someone@good.example\r\n\r\n" + lines * (size // len(lines))


def begin(start: Start, lab: Lab, *flags: str) -> Smtpd:
    return start(lab=lab, filters={"rspamd": filter_command("rspamd", *flags)})


def by(server: Smtpd) -> list[str]:
    """Who has scanned the messages that were delivered, in the order of their sizes."""
    delivered = sorted(server.maildir("alice"), key=lambda each: len(each.content))
    return [str(each.message["X-Scanned"]) for each in delivered]


def test_a_message_above_the_daemons_limit(start: Start, lab: Lab, small: Rspamd) -> None:
    """Rspamd reads no further and closes the connection."""
    server = begin(start, lab, "-url", small.url)
    for _ in range(4):
        assert attempt(server, message=mail(3 * SMALL_LIMIT)).code == 451
    line, *others = logged(server, r"rspamd.*result=reject", 4)
    assert f'cause="{small.url} closed the connection, but answers a ping"' in line
    assert len(others) == 3
    assert all('reason="failed as logged before"' in other for other in others)
    assert attempt(server, message=mail()).code == 250
    assert by(server) == ["small"]


def test_the_limit_of_the_first_daemon_is_not_its_death(
    start: Start, lab: Lab, small: Rspamd, large: Rspamd
) -> None:
    server = begin(start, lab, "-url", small.url, "-url", large.url)
    for number in range(5):
        assert attempt(server, message=mail((3 + number) * SMALL_LIMIT)).code == 250
    assert attempt(server, message=mail()).code == 250
    assert by(server) == ["small"] + 5 * ["large"]


@pytest.mark.parametrize("flags", [(), ("--authserv-id", "results.example")])
def test_in_whose_name_results_are(
    start: Start, lab: Lab, large: Rspamd, flags: tuple[str, ...]
) -> None:
    server = begin(start, lab, "-url", large.url, *flags)
    assert attempt(server, GOOD, message=mail()).code == 250
    [delivered] = server.maildir("alice")
    results = str(delivered.message["Authentication-Results"])
    assert results.partition(";")[0] == (flags[1] if flags else HOSTNAME)
    assert "smtp.mailfrom=someone@good.example" in results


@pytest.mark.parametrize("size", [100, 2_000_000])
def test_messages_are_compressed(lab: Lab, large: Rspamd, size: int) -> None:
    try:
        zstd.load()
    except ConfigError:
        pytest.skip("needs Python 3.14 or zstandard")
    command = filter_command("rspamd", "-url", large.url, "--compress", "zstd")
    # Its filters run in this Python; those of others in their root's, which has no zstd.
    if (version := system_version()) is None:
        pytest.skip("needs an smtpd of this system")
    with Smtpd(version, lab=lab, filters={"rspamd": command}) as server:
        message = mail(size)
        assert attempt(server, message=message).code == 250
        [delivered] = server.maildir("alice")
    assert delivered.message["X-Scanned"] == "large"
    assert delivered.content.endswith(message.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("proxy", ["forwarding", "scanning"])
def test_a_proxy_scans(start: Start, lab: Lab, large: Rspamd, proxy: str) -> None:
    large.wait_for("starting rspamd_proxy process")
    path = large.socket.with_name(f"{large.socket.name}-{proxy}")
    command = filter_command("rspamd", "-url", f"/srv/rspamd/{path.name}")
    binds = {"/srv/rspamd": path.parent}
    server = start(lab=lab, filters={"rspamd": command}, binds=binds)
    for size in (100, 2_000_000):
        assert attempt(server, message=mail(size)).code == 250
    assert by(server) == ["large", "large"]
    assert attempt(server, message=b"X-Test-Body: new\r\n" + mail()).code == 250
    assert attempt(server, message=b"Subject: x\r\n\r\n" + GTUBE).code == 554
    assert any(each.content.endswith(b"\n\nnew body\n") for each in server.maildir("alice"))
