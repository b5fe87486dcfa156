"""smtpd's end of the conversation, for replay, tests, benchmarks and supervisors.

`SmtpdConnection` encodes reports, requests and lines as a server of a given version does, and
decodes the answers of the filter. It checks only their syntax; whether smtpd would survive them is
checked by `smtpd_filters.oracle`.
"""

from __future__ import annotations

from .codec import (
    decode_answer,
    encode_config,
    encode_lines,
    encode_report,
    encode_request,
)
from .events import Config, Line, Lines, Malformed, Register, Report, Request, Result
from .versions import dialect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Answer = Register | Result | Line | Malformed

#: By version of the protocol: the default version of smtpd.
SERVERS = {(0, 5): "6.6.4", (0, 6): "6.8.0p2", (0, 7): "7.8.0"}


class SmtpdConnection:
    """One conversation with a filter, as smtpd.

    `protocol` is the version of the protocol, such as `(0, 7)`.
    """

    def __init__(self, protocol: tuple[int, int] = (0, 7), smtpd_version: str = "") -> None:
        self.dialect = dialect(protocol)
        self.smtpd_version = smtpd_version or SERVERS[self.dialect.version]
        #: Registered names, by kind.
        self.reports: set[str] = set()
        self.phases: set[str] = set()
        self.ready = False
        self._partial = b""

    def configure(
        self,
        *,
        session_timeout: int = 300,
        admd: str = "mx.example.org",
        subsystems: Iterable[str] = ("smtp-in",),
    ) -> bytes:
        """Return the handshake up to `config|ready`, as this version of the server writes it.

        `subsystems`: "smtp-in" if the filter is on a listener, "smtp-out" if on a relay action.
        """
        settings = [Config("smtpd-version", self.smtpd_version)]
        if self.dialect.version >= (0, 7):
            settings.append(Config("protocol", self.dialect.name))
        settings += [
            Config("smtp-session-timeout", str(session_timeout)),
            *(Config("subsystem", name) for name in subsystems),
            Config("admd", admd),
            Config("ready"),
        ]
        return b"".join(map(encode_config, settings))

    def report(
        self, name: str, session: bytes, *values: bytes, time: bytes = b"1700000000.000000"
    ) -> bytes:
        """Return a report; `values` are in the field order of the newest protocol."""
        return encode_report(Report((name, b"smtp-in", time, session, values)), self.dialect)

    def request(
        self,
        phase: str,
        session: bytes,
        token: bytes,
        argument: bytes = b"",
        time: bytes = b"1700000000.000000",
    ) -> bytes:
        """Return a request; `phase` is the name on the wire."""
        event = Request((None, time, session, token, argument))
        return encode_request(event, phase.encode(), self.dialect)

    def lines(
        self,
        session: bytes,
        token: bytes,
        lines: Iterable[bytes],
        *,
        end: bool = True,
        time: bytes = b"1700000000.000000",
    ) -> bytes:
        """Return data-lines for dot-stuffed lines of a message, with the final dot if `end`."""
        return encode_lines(Lines(session, token, list(lines), end=end), time, self.dialect)

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Decode bytes of the filter; exhaust the iterator before the next call."""
        *rows, self._partial = (self._partial + data).split(b"\n")
        for row in rows:
            answer = decode_answer(row, self.dialect)
            if type(answer) is Register:
                self._registered(answer)
            yield answer

    def _registered(self, answer: Register) -> None:
        if answer.kind == "ready":
            self.ready = True
        elif answer.subsystem == "smtp-in":
            (self.reports if answer.kind == "report" else self.phases).add(answer.name)
