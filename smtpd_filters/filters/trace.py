"""filter-trace: the filter that logs and records the traffic between smtpd and its filters.

It is a wiretap rather than a policy (`smtpd_filters.runtime.wiretap`): it reads the protocol lines,
since most reports have no effect on a policy's session. `smtpd_filters.recording.writer` writes the
recordings.

Invariants
----------
*Passive*: it changes and refuses nothing, and proceeds at every phase.
*Registered as needed*: only what the level needs is registered. Reports cost next to nothing; at
level `all`, and while recording, each phase is a round trip, and each message passes through.
*No credentials*: neither the log nor a recording contains a credential.
*Bodies skipped*: the lines of messages are parsed only if they are logged.
"""

from __future__ import annotations

import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.protocol.codec import decode
from smtpd_filters.protocol.decisions import PROCEED, Proceed
from smtpd_filters.protocol.events import Lines, Report, Request
from smtpd_filters.protocol.versions import NEWEST, dialect, version
from smtpd_filters.protocol.vocabulary import DATA_LINE, PHASES, REPORTS
from smtpd_filters.recording.redaction import mask
from smtpd_filters.recording.writer import Recorder, Rows
from smtpd_filters.session import FIELDS
from smtpd_filters.settings import INTEGER, PATH, SIZE, SWITCH, Settings, choice, option
from smtpd_filters.settings.quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.message import Headers
    from smtpd_filters.runtime.log import FilterLog
    from smtpd_filters.runtime.wiretap import Tap
    from smtpd_filters.session import Session

_TRANSACTIONS = frozenset({"tx-mail", "tx-rcpt", "tx-commit", "tx-rollback"})
_SESSIONS = _TRANSACTIONS | {name for name in REPORTS if name.startswith("link-")} | {"timeout"}
#: The reports that each level shows.
LEVELS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "sessions": frozenset(_SESSIONS - {"link-greeting"}),
    "commands": frozenset(REPORTS),
    "headers": frozenset(REPORTS),
    "all": frozenset(REPORTS),
}


class Trace(Filter):
    """Log or record all traffic, and change nothing."""

    name = "trace"

    class Options(Settings):
        """The level of the log, and the recordings."""

        detail = option(
            choice("none", "sessions", "commands", "headers", "all"),
            default="sessions",
            help="What to log: a line per step of each session and transaction (sessions); also "
            "every command, reply and filter's answer (commands); also the headers of messages "
            "(headers); also every request and every line of each message (all).",
        )
        pass_data = option(
            SWITCH,
            default=False,
            help="Pass messages through the filter even if nothing of them is logged, to measure "
            "the cost.",
        )
        record = option(
            PATH("write"),
            default=None,
            help="Record sessions in files in this directory, for smtpd-filters replay.",
        )
        no_body = option(SWITCH, default=False, help="Record messages without their bodies.")
        anonymise = option(
            SWITCH,
            default=False,
            help="Record pseudonyms in place of names, addresses and the words of headers, and "
            "no bodies. A word keeps its pseudonym as long as the process runs.",
        )
        max_size = option(
            SIZE(low=1 << 10),
            default=16 << 20,
            help="The size at which a file is full: sessions that begin later go to the next one.",
        )
        max_files = option(
            INTEGER(low=1), default=10, help="How many files to keep; the oldest are removed first."
        )

    settings: Options

    _taps: tuple[Tap, ...] = ()

    def setup(self) -> Registration:
        """Make the wiretaps, and register what they need."""
        settings = self.settings
        taps: list[Tap] = []
        if settings.detail != "none":
            taps.append(_Logger(settings.detail, self.log))
        if settings.record is not None:
            taps.append(self._recorder(settings.record))
        elif settings.no_body or settings.anonymise:
            flag = "--no-body" if settings.no_body else "--anonymise"
            raise ConfigError(f"{flag} requires --record")
        self._taps = tuple(taps)
        reports = {name for tap in taps for name in tap.reports}
        if reports & _TRANSACTIONS:
            reports.add("tx-begin")  # creates the session's transaction
        return Registration(
            # The only handler is for headers; the taps get the rest.
            {"headers"} if settings.detail == "headers" else (),
            reports=FIELDS.keys() & reports,
            data=settings.pass_data,
            taps=taps,
        )

    def _recorder(self, directory: str) -> Recorder:
        settings = self.settings
        if not directory.startswith("/"):
            # smtpd's working directory is arbitrary.
            raise ConfigError(f"--record: expected an absolute path, not {quote(directory)}")
        # The filters of the same process look names up.
        from smtpd_filters.lookups.dns.records import encode  # only if needed

        disguise = None
        if settings.anonymise:
            # Imported only if needed.
            from smtpd_filters.recording.anonymiser import Disguise

            disguise = Disguise()
        return Recorder(
            directory,
            self.log,
            body=not (settings.no_body or settings.anonymise),
            disguise=disguise,
            encode=encode,
            max_size=settings.max_size,
            max_files=settings.max_files,
        )

    def headers(self, session: Session, headers: Headers) -> Proceed:
        """Log each line of the header block."""
        for tap in self._taps:
            if isinstance(tap, _Logger):
                tap.show_headers(session, headers)
        return PROCEED


class _Logger:
    """A wiretap that logs traffic."""

    def __init__(self, detail: str, log: FilterLog) -> None:
        self.reports = LEVELS[detail]
        self._everything = detail == "all"
        self.phases = frozenset({*PHASES, DATA_LINE} if self._everything else ())
        self._log = log
        self._rows = Rows()
        self._version = b""
        self._dialect = dialect(NEWEST)

    def received(self, data: bytes) -> None:
        """Log data from smtpd."""
        rows = self._rows.whole(data)
        # *Bodies skipped*: a chunk of body lines is not split unless it contains "report|".
        if self._everything or b"report|" in rows:
            for row in rows.split(b"\n"):
                if row.startswith(b"report|") or (self._everything and row.startswith(b"filter|")):
                    self._show(row)

    def sent(self, data: bytes) -> None:
        """Do nothing: all answers are the same."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def show_headers(self, session: Session, headers: Headers) -> None:
        """Log a header block."""
        for line in headers.lines():
            self._log.event("header", session.id, line=_text(line))

    def _show(self, row: bytes) -> None:
        text = row.split(b"|", 2)[1]
        if text != self._version:
            self._version = text
            self._dialect = dialect(version(text.decode("latin-1")) or NEWEST)
        event = decode(mask(row), self._dialect)
        if type(event) is Report:
            if event.name in self.reports:
                self._show_report(event)
        elif type(event) is Request and event.phase is not None:
            self._log.event(
                "asked",
                event.session.decode("latin-1"),
                phase=event.phase.name,
                argument=_text(event.argument),
            )
        elif type(event) is Lines:
            for line in event.lines:
                self._log.event(DATA_LINE, event.session.decode("latin-1"), line=_text(line))

    def _show_report(self, report: Report) -> None:
        fields = zip(REPORTS[report.name].fields, map(_text, report.values), strict=True)
        values = dict(fields)
        if values.get("address") == "":
            values["address"] = "<>"
        self._log.event(report.name, report.session.decode("latin-1"), **values)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-trace."""
    return run(Trace, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
