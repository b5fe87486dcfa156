"""The engine's reader of smtpd: processes lines of messages in runs, any others one at a time.

Invariants
----------
*Retried*: a line that is not processed for lack of memory is processed again.
*In order*: lines of one session are processed in smtpd's order. Those of different sessions don't
depend on each other.
"""

from __future__ import annotations

from io import BytesIO
from itertools import chain, groupby

from .layout import DATA_LINE, ID, offset
from .transit import COMMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from .ledger import Session
    from .transit import Transit

    #: Lines with the same key (`Layout.key`), which is that of a message if they belong to one.
    Run = tuple[bytes, list[bytes]]

_NO_RUNS: Iterator[Run] = iter(())
_NO_ROWS: Iterator[bytes] = iter(())
_BAR, _FILTER, _REPORT = b"|fr"
#: What may follow the session of a report.
_ENDS = (b"|", b"\n")
_SMTP_IN = b"smtp-in"
#: The session in a key.
_SESSION = slice(len(DATA_LINE), len(DATA_LINE) + ID)


class SmtpdSide:
    """Reads what smtpd writes.

    `handle` is called with each line that does not belong to a known message. It returns the key of
    a message that begins with this line, which is then processed in a block (`Transit.blocks`), or
    an empty string. The most frequent lines are processed without it: requests of `sessions` with
    a program that registered for them, unless the session is in `refused`, and messages that begin
    and end in one read.
    """

    def __init__(
        self,
        transit: Transit,
        sessions: dict[bytes, Session],
        refused: Collection[bytes],
        report: Callable[[bytes, bytes, bytes, bytes], None],
        handle: Callable[[bytes], bytes],
    ) -> None:
        self._transit, self._sessions, self._refused = transit, sessions, refused
        self._report, self._handle = report, handle
        #: Lines are left unprocessed, for lack of memory.
        self.stalled = False
        self._partial = b""
        #: Lines to process: those of known messages by key; one to process again, and the rest of
        #: its run; a run to process again; other runs.
        self._gathered: dict[bytes, list[bytes]] = {}
        self._row = b""
        self._rows = _NO_ROWS
        self._run: Run | None = None
        self._runs = _NO_RUNS

    def receive(self, data: bytes) -> None:
        """Process bytes of smtpd.

        If memory runs out, the rest is kept (`stalled`), for `resume`. Raise MemoryError only if
        nothing of it was taken.
        """
        transit = self._transit
        if self._partial:
            data = self._partial + data
        end = data.rfind(b"\n") + 1
        partial = data[end:]
        whole = data[:end]
        rows = list(BytesIO(whole))  # three times as fast as `split`
        if offset(whole) != transit.layout.at:
            transit.learn(whole)
        if rows and transit.known and transit.pass_on(rows, whole):
            self._partial = partial
            return
        runs, lines = _NO_RUNS, _NO_ROWS
        if whole.find(DATA_LINE) >= 0:  # `in` takes twice as long
            runs = iter([(key, list(run)) for key, run in groupby(rows, transit.layout.key)])
        else:
            lines = iter(rows)
        # From here on the input counts as taken.
        self._partial = partial
        self._runs = runs
        self._rows = lines
        try:
            self._process()
        except MemoryError:
            self.stalled = True

    def resume(self) -> None:
        """Process what was left for lack of memory; to be called before further `receive`."""
        try:
            self._process()
        except MemoryError:
            self.stalled = True

    def _process(self) -> None:
        """Process the lines.  What is kept if it raises MemoryError is kept without allocating."""
        transit, gathered = self._transit, self._gathered
        self.stalled = False
        while True:
            if self._rows is not _NO_ROWS:
                self._lines()
            run = self._run
            if run is None:
                run = self._run = next(self._runs, None)
            if run is None:
                break
            key, rows = run
            if key in transit.known:
                if key in gathered:
                    gathered[key] += rows
                else:
                    gathered[key] = rows
                self._run = None
            elif not key.startswith(DATA_LINE):
                self._rows = iter(rows)
                self._run = None
            elif self._whole(key, rows):
                self._run = None
            else:
                first = iter(rows[:1])
                rest = (key, rows[1:]) if len(rows) > 1 else None
                self._rows = first
                self._run = rest
        if gathered:
            transit.blocks(gathered)

    def _whole(self, key: bytes, rows: list[bytes]) -> bool:
        """Process a message that begins and ends in this run; return False if it is not one."""
        session = self._sessions.get(key[_SESSION])
        return session is not None and self._transit.whole(session, key, rows)

    def _lines(self) -> None:  # noqa: C901  # calls would take longer than what they do
        """Process the lines of a run one at a time."""
        transit, sessions, gathered = self._transit, self._sessions, self._gathered
        refused = self._refused
        layout, now = transit.layout, transit.now
        head, requests = layout.head, layout.requests
        long_head, reports = layout.long_head, layout.reports
        row = self._row
        try:
            rows = chain((row,), self._rows) if row else self._rows
            for row in rows:
                fields = requests.get(row[head])
                if fields is not None:
                    phase, wire, name, pair, bar, end = fields
                    session = sessions.get(row[name])
                    if (
                        session is not None
                        and session.phase is None
                        and session.message is None
                        and not session.refusal
                        and (not refused or row[name] not in refused)
                        and (link := session.link) is not None
                        and wire in link.phases
                        and row.find(b"|", bar + 1) == end  # so the line is not too short
                        and row[bar] == _BAR
                        and row[0] == _FILTER
                    ):
                        if session.asked:
                            session.keep_request()
                        session.expected = expected = row[pair]
                        link.open[expected] = session
                        try:
                            link.out.append(row)
                        except MemoryError:  # the program has not got it
                            del link.open[expected]
                            raise
                        # From here on no memory is needed.
                        session.phase = phase
                        session.asked = row
                        session.asked_at = wire
                        session.since = now
                        if phase is COMMIT:
                            session.judged = False  # the program is asked for it
                        continue
                elif (named := reports.get(row[long_head])) is not None and not gathered:
                    report, name, after = named
                    id_ = row[name]
                    if row[after] in _ENDS and row[0] == _REPORT and b"|" not in id_:
                        self._report(row, _SMTP_IN, report, id_)
                        continue
                if gathered:
                    transit.blocks(gathered)
                if begun := self._handle(row):
                    gathered[begun] = [row]
        except MemoryError:
            self._row = row
            raise
        self._row = b""
        self._rows = _NO_ROWS
