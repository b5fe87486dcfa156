"""smtpd's side of a conversation with a filter: requests, reports, and the answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.recording.verdict import Tokens, Verdict, response, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from .in_process import Served


class Peer:
    """smtpd's side of one conversation, independent of its clients.

    `protocol` is the protocol version, `smtpd_version` the server's, "" for one that uses the
    protocol. The `oracle` checks every byte.
    """

    def __init__(self, served: Served, protocol: tuple[int, int], smtpd_version: str) -> None:
        self._served = served
        self._smtpd = SmtpdConnection(protocol, smtpd_version)
        self.oracle = Oracle()
        self.protocol = self._smtpd.dialect.version
        #: The phases and reports that the filter registered.
        self.phases = self._smtpd.phases
        #: The reports for which the filter has registered.
        self.reports = self._smtpd.reports
        self._tokens = Tokens()
        self._messages = 0
        self._clock = 0
        #: For each session its answer, the lines of its message, and whether these have ended.
        self._results: dict[bytes, Result] = {}
        self._lines: dict[bytes, list[bytes]] = {}
        self._ended: set[bytes] = set()

    def report(self, name: str, session: bytes, *values: bytes) -> None:
        """Send a report, if the filter has registered it."""
        if name in self.reports:
            self._send(self._smtpd.report(name, session, *values, time=self._time()))

    def ask(self, phase: str, session: bytes, argument: bytes) -> Verdict:
        """Send a request, if the filter has registered the phase; wait for the verdict."""
        if phase not in self.phases:
            return verdict(phase, argument, None)
        token = self._tokens[phase]
        self._send(self._smtpd.request(phase, session, token, argument, self._time()))
        self._wait(lambda: session in self._results, phase)
        decided = verdict(phase, argument, self._results.pop(session))
        self.report("filter-response", session, *response(phase, decided))
        return decided

    def write_lines(self, session: bytes, lines: list[bytes]) -> None:
        """Send lines of a message, dot-stuffed."""
        if "data-line" in self.phases:
            token = self._tokens["data-line"]
            data = self._smtpd.lines(session, token, lines, end=False, time=self._time())
            self._send(data)
        else:
            self._lines.setdefault(session, []).extend(lines)

    def end_lines(self, session: bytes) -> list[bytes]:
        """Send the final dot; return the lines that the filter returned."""
        if "data-line" in self.phases:
            token = self._tokens["data-line"]
            self._send(self._smtpd.lines(session, token, [], end=True, time=self._time()))
            self._wait(lambda: session in self._ended, "data-line")
            self._ended.discard(session)
        return self._lines.pop(session, [])

    def drop_lines(self, session: bytes) -> None:
        """Drop the lines of a message that was aborted."""
        self._lines.pop(session, None)

    def message_id(self) -> bytes:
        """Return a new message id."""
        self._messages += 1
        return b"%08x" % (0x1F2E3D00 + self._messages)

    # -- bytes ---------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        self.oracle.from_smtpd(data)
        self._served.receive(data)
        self._collect()

    def _collect(self) -> None:
        data = self._served.output()
        self.oracle.from_filter(data)
        for answer in self._smtpd.receive(data):
            if isinstance(answer, Result):
                self._results[answer.session] = answer
            elif isinstance(answer, Line):
                if answer.line == b".":
                    self._ended.add(answer.session)
                else:
                    self._lines.setdefault(answer.session, []).append(answer.line)

    def _wait(self, done: Callable[[], bool], phase: str) -> None:
        while not done():
            if not self._served.run():
                raise AssertionError(f"{phase} is never answered")
            self._collect()

    def _time(self) -> bytes:
        self._clock += 1
        return b"1700000000.%06d" % (self._clock % 1_000_000)
