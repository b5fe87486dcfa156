"""Fixtures of the end-to-end tests: real servers, and a filter that reports its input.

Every test here carries the marker `e2e`. Where real servers can't run it is skipped with the
reason; with SMTPD_FILTERS_E2E=required in the environment that is a failure.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

from smtpd_filters.testing.server import (
    CODE,
    Smtpd,
    scratch_path,
    script_command,
)
from tests.sandbox.kernel import complete

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

#: What a filter logs that can't give up all that it does not need.
INCOMPLETE = "sandbox is incomplete"
SERVERS = pytest.StashKey[list[Smtpd]]()


class Start(Protocol):
    """Starts a server for this test; arguments as for Smtpd, without the version."""

    def __call__(self, **arguments: Any) -> Smtpd: ...


class Spied(NamedTuple):
    """A line that a filter was given."""

    kind: str  # "report" or "filter"
    name: str  # the event or phase
    session: str
    rest: str  # without the token


class Spy(Protocol):
    """Give the command line of the spy filter; then read what it saw.

    A request is written down before it is answered, so what a client has had an answer to is there.
    Reports are not waited for by anybody: one is there when a request after it has been answered,
    as that of QUIT. Those of a session's end may be missing, after `server.terminate()` as well.
    """

    def __call__(self, *rules: str) -> str: ...

    def seen(self, server: Smtpd, name: str | None = None) -> list[Spied]: ...

    def head(self, server: Smtpd) -> str: ...


class _Spy:
    FILE = "spy"

    def __call__(self, *rules: str) -> str:
        return script_command(f"{CODE}/tests/e2e/spy_filter.py", scratch_path(self.FILE), *rules)

    def _lines(self, server: Smtpd) -> list[str]:
        return server.scratch(self.FILE).decode("utf-8", "surrogateescape").split("\n")

    def seen(self, server: Smtpd, name: str | None = None) -> list[Spied]:
        found = []
        for line in self._lines(server):
            kind, *fields = line.split("|", 6)
            if kind == "report":
                rest = "|".join(fields[5:])
            elif kind == "filter":
                rest = fields[5].partition("|")[2]
            else:
                continue
            if name in (None, fields[3]):
                found.append(Spied(kind, fields[3], fields[4], rest))
        return found

    def head(self, server: Smtpd) -> str:
        return self._lines(server)[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for server in item.stash.get(SERVERS, []):
            report.sections.append((f"smtpd {server.version} log", "\n".join(server.log[-200:])))
    return report


@pytest.fixture
def start(version: str, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start servers of this version, which end with the test; one that died by itself fails it."""
    servers: list[Smtpd] = []
    request.node.stash[SERVERS] = servers
    with ExitStack() as stack:

        def start(**arguments: Any) -> Smtpd:
            server = Smtpd(version, **arguments)
            servers.append(server)
            return stack.enter_context(server)

        yield start
    if complete():  # so that each test here is one of `--sandbox strict` as well
        lacks = [line for server in servers for line in server.log if INCOMPLETE in line]
        assert lacks == []


@pytest.fixture(scope="session")
def spy() -> Spy:
    """Give the spy filter; `start(filters={"spy": spy("connect=junk")})`, `spy.seen(server)`."""
    return _Spy()
