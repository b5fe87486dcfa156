"""filter-trace: shows and records what passes between smtpd and its filters.

The law:

1. It changes nothing and refuses nothing: it proceeds wherever it is asked.
2. Only what the chosen level needs is asked of smtpd. Reports cost next to nothing; from `all` on,
   and while recording, each phase is a round trip, and each message comes by.
3. Never a credential, neither in the log nor in a recording.
4. A message that nobody looks at passes without a look at its lines.

It is no policy but a tap (`smtpd_filters.runtime.wiretap`): it reads the lines themselves, for most
reports tell of nothing that a policy's session would show.  `smtpd_filters.recording.writer` writes
the recordings.
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
from smtpd_filters.settings.kinds import quote

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
    """Pass everything, and log or record what passes."""

    name = "trace"

    class Options(Settings):
        """What is logged, and what is recorded where."""

        detail = option(
            choice("none", "sessions", "commands", "headers", "all"),
            default="sessions",
            help="How much is logged: a line per step of each session and transaction; also every "
            "command, reply and answer of a filter; also the headers of messages; also every "
            "request and every line of each message.",
        )
        pass_data = option(
            SWITCH,
            default=False,
            help="Have messages come by even when nothing of them is logged, to see what that "
            "costs.",
        )
        record = option(
            PATH,
            default=None,
            help="Write sessions to files in this directory, which replay.",
        )
        no_body = option(SWITCH, default=False, help="Record messages without their bodies.")
        anonymise = option(
            SWITCH,
            default=False,
            help="Record pseudonyms in place of names, addresses and the words of headers, and "
            "no bodies. A word has the same pseudonym as long as the process runs.",
        )
        max_size = option(
            SIZE(low=1 << 10),
            default=16 << 20,
            help="Sessions that begin when a file has reached this size go to the next one.",
        )
        max_files = option(
            INTEGER(low=1), default=10, help="How many files are kept; the oldest go first."
        )

    settings: Options

    _taps: tuple[Tap, ...] = ()

    def setup(self) -> Registration:
        """Make the taps, and register what they need."""
        settings = self.settings
        taps: list[Tap] = []
        if settings.detail != "none":
            taps.append(_Logger(settings.detail, self.log))
        if settings.record is not None:
            taps.append(self._recorder(settings.record))
        elif settings.no_body or settings.anonymise:
            flag = "--no-body" if settings.no_body else "--anonymise"
            raise ConfigError(f"{flag} is of no use without --record")
        self._taps = tuple(taps)
        reports = {name for tap in taps for name in tap.reports}
        if reports & _TRANSACTIONS:
            reports.add("tx-begin")  # without it a session has no transaction to put the others in
        return Registration(
            # Its handler is for the headers alone; the rest passes the taps.
            {"headers"} if settings.detail == "headers" else (),
            reports=FIELDS.keys() & reports,
            data=settings.pass_data,
            taps=taps,
        )

    def _recorder(self, directory: str) -> Recorder:
        settings = self.settings
        if not directory.startswith("/"):
            # Where smtpd was started from is nobody's choice.
            raise ConfigError(f"--record: expected an absolute path, not {quote(directory)}")
        disguise = None
        if settings.anonymise:
            # The start pays for what it uses.
            from smtpd_filters.recording.anonymiser import Disguise

            disguise = Disguise()
        return Recorder(
            directory,
            self.log,
            body=not (settings.no_body or settings.anonymise),
            disguise=disguise,
            max_size=settings.max_size,
            max_files=settings.max_files,
        )

    def headers(self, session: Session, headers: Headers) -> Proceed:
        """Log the header block, a line for each of its lines."""
        for tap in self._taps:
            if isinstance(tap, _Logger):
                tap.show_headers(session, headers)
        return PROCEED


class _Logger:
    """A tap that writes what it hears to the log."""

    def __init__(self, detail: str, log: FilterLog) -> None:
        self.reports = LEVELS[detail]
        self._everything = detail == "all"
        self.phases = frozenset({*PHASES, DATA_LINE} if self._everything else ())
        self._log = log
        self._rows = Rows()
        self._spoken = b""
        self._dialect = dialect(NEWEST)

    def received(self, data: bytes) -> None:
        """Log what smtpd wrote."""
        rows = self._rows.whole(data)
        # Law 4: a chunk of body lines is not taken apart, unless a body speaks of reports.
        if self._everything or b"report|" in rows:
            for row in rows.split(b"\n"):
                if row.startswith(b"report|") or (self._everything and row.startswith(b"filter|")):
                    self._show(row)

    def sent(self, data: bytes) -> None:
        """Nothing: the answers are all the same."""

    def close(self) -> None:
        """Nothing is held."""

    def show_headers(self, session: Session, headers: Headers) -> None:
        """Log a header block."""
        for line in headers.lines():
            self._log.event("header", session.id, line=_text(line))

    def _show(self, row: bytes) -> None:
        spoken = row.split(b"|", 2)[1]
        if spoken != self._spoken:
            self._spoken = spoken
            self._dialect = dialect(version(spoken.decode("latin-1")) or NEWEST)
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
