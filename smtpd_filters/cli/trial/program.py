"""The process of one trial: reads a request from stdin, and writes lines of JSON to stdout.

The page starts it, always with the same command line; what its users choose is in the request. The
lines are `{"progress": [done, of]}`, and at last `{"result": ...}` or `{"error": TEXT}`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections import Counter
from itertools import groupby, zip_longest
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from smtpd_filters.cli.chain_file import ChainFile
from smtpd_filters.cli.journal_use import key_of
from smtpd_filters.cli.player import FatalError, Process
from smtpd_filters.errors import ConfigError
from smtpd_filters.recording import Recording
from smtpd_filters.recording.replay import Replay
from smtpd_filters.settings.quoting import printable
from smtpd_filters.startup import python

from . import past
from .changes import changed, sections
from .fates import Fate, fates
from .subject import PROG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.recording.replay import Step

    from .changes import Change, Section

#: Bytes of a request, of address space, and seconds of processor time, for each process.
MAX_REQUEST, MAX_MEMORY, MAX_PROCESSOR = 64 << 10, 1 << 30, 120
#: Seconds after which no further session is played, and for an answer of a filter.
BUDGET, PATIENCE = 60.0, 10.0
#: Sessions that are played to the same processes.
AT_ONCE = 200
#: Rows of a result, texts of what is missing, and characters of a text.
MAX_ROWS, MAX_MISSING, MAX_TEXT = 300, 12, 300
#: Bytes of notes on what one step lacked.
MAX_NOTES = 1 << 20
_NICE = 10
#: The fields of a request: what the operator, and what the user has chosen, beside `values`.
_ALWAYS = ("file", "name", "recordings", "journal")
_CHOSEN = ("kind", "section", "session")
_REFUSED = frozenset({"deferred", "refused"})


def main() -> int:
    """Answer the request on stdin."""
    try:
        _limit()
        request = _request(sys.stdin.buffer.read(MAX_REQUEST))
        file = ChainFile.read(request["file"])
        chain = file.chain(request["name"])
        if request["do"] == "describe":
            _say({"result": _described(chain, sections(file, chain))})
        else:
            _say({"result": Trial(file, chain, request).result()})
    except ConfigError as error:
        _say({"error": printable(str(error))})
    except MemoryError:
        _say({"error": "this takes too much memory"})
    return 0


def _request(data: bytes) -> dict[str, Any]:
    """Parse a request. Raises ConfigError."""
    try:
        request = json.loads(data)
        texts = [request["do"], *(request[name] for name in _ALWAYS)]
        if request["do"] == "try":
            texts += [*(request[name] for name in _CHOSEN), *request["values"].values()]
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        texts = [None]
    if not all(isinstance(each, str) for each in texts):
        raise ConfigError("invalid request")  # which the page doesn't send
    found: dict[str, Any] = request
    return found


def _limit() -> None:
    """Set the limits of this process and those that it starts."""
    os.nice(_NICE)
    for name, most in (
        ("RLIMIT_AS", MAX_MEMORY),
        ("RLIMIT_CPU", MAX_PROCESSOR),
        ("RLIMIT_CORE", 0),
    ):
        which = getattr(resource, name, None)
        if which is not None:
            _, hard = resource.getrlimit(which)
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(which, (limit, limit))


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def _described(chain: str, found: list[Section]) -> dict[str, Any]:
    return {
        "chain": chain,
        "sections": [
            {**each._asdict(), "fields": [field._asdict() for field in each.fields]}
            for each in found
        ],
    }


class Trial:
    """A change that is tried on the past.

    After `budget` seconds no further session is played; a filter has `PATIENCE` seconds for an
    answer.
    """

    def __init__(
        self,
        file: ChainFile,
        chain: str,
        request: dict[str, Any],
        *,
        budget: float = BUDGET,
    ) -> None:
        """Check the change. Raises ConfigError."""
        self._file, self._chain = file, chain
        self._session = request["session"]
        self.change = changed(file, chain, request["kind"], request["section"], request["values"])
        # The rules of the chain are checked with the filters, in `subject`.
        kind, name, values = self.change
        file.with_changes(kind, name, values).declared(chain)
        directory = request["journal"]
        self._past = past.read(request["recordings"], directory, key_of(directory), time())
        filters = sections(file, chain)[1:]
        self._filters = [each.name for each in filters]
        #: Those whose verdicts the journal has.
        self._repeated = [
            each.name
            for each in filters
            if each.repeats(
                looked_up=bool(self._past.lookups), changed=name if kind == "filter" else ""
            )
        ]
        self._until = monotonic() + budget

    def result(self) -> dict[str, Any]:
        """Play all sessions, and return what differs. Raises ConfigError."""
        sessions = self._past.sessions
        rows: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        missing: Counter[str] = Counter()
        for some in self._pieces():
            if monotonic() > self._until:
                break
            old, new = self._play(some, None), self._play(some, self.change)
            for session in some:
                if session.id not in old.ended & new.ended:
                    continue
                counts["sessions"] += 1
                lacking = old.missing[session.id] | new.missing[session.id]
                if self._repeated and session.id not in self._past.verdicts:
                    lacking.add("the journal has nothing of this session")
                missing.update(lacking)
                both = old.of[session.id], new.of[session.id]
                for row in self._rows(session, *both, sorted(lacking)):
                    counts["messages"] += 1
                    counts["differ"] += row["differs"]
                    counts["unsure"] += bool(row["missing"])
                    if row["differs"] or row["this"]:
                        rows.append(row)
            _say({"progress": [counts["sessions"], len(sessions)]})
        return {
            "change": self.change.text(),
            "sessions": counts["sessions"],
            "left_out": len(sessions) - counts["sessions"] + self._past.left_out,
            "messages": counts["messages"],
            "differ": counts["differ"],
            "unsure": counts["unsure"],
            "without_body": self._past.without_body,
            # That of the message that was asked about first; sorting keeps the order otherwise.
            "rows": sorted(rows, key=lambda row: not row["this"])[:MAX_ROWS],
            "missing": missing.most_common(MAX_MISSING),
            "this": any(row["this"] for row in rows),
        }

    def _pieces(self) -> Iterator[list[past.Session]]:
        """Yield sessions that are played to the same processes, the newest first."""
        of_server = groupby(self._past.sessions[::-1], key=lambda each: each.head)
        for _, group in of_server:
            sessions = list(group)
            for begin in range(0, len(sessions), AT_ONCE):
                yield sessions[begin : begin + AT_ONCE]

    def _play(self, sessions: list[past.Session], change: Change | None) -> Played:
        """Play sessions one after another to one variant of the chain. Raises ConfigError."""
        known = {each.id for each in sessions}
        facts = {
            "file": self._file.path,
            "content": self._file.content,
            "chain": self._chain,
            "change": change,
            "filters": self._filters,
            "repeated": self._repeated,
            "verdicts": {id_: of for id_, of in self._past.verdicts.items() if id_ in known},
            "phases": self._past.phases,
            "lookups": self._past.lookups,
        }
        with tempfile.TemporaryFile() as written, tempfile.TemporaryFile() as notes:
            written.write(json.dumps(facts).encode())
            written.flush()
            numbers = written.fileno(), notes.fileno()
            played = Played(sessions, notes.fileno(), self._until)
            command = [*python(f"{__package__}.subject"), *map(str, numbers)]
            process = Process(command, PATIENCE, inherit=numbers)
            try:
                process.play(played, lambda: None)
            except FatalError as error:
                _, _, said = str(error).rpartition(f": {PROG}: ")  # of a chain that can't start
                raise ConfigError(said or f"the chain can't be tried: {error}") from None
            finally:
                process.close()
        for step in played.outcomes:
            played.of[step.session.decode("latin-1")].append(step)
        return played

    def _rows(
        self, session: past.Session, old: list[Step], new: list[Step], lacking: list[str]
    ) -> Iterator[dict[str, Any]]:
        for before, after in zip_longest(fates(old), fates(new)):
            one, two = before or Fate(), after or Fate()
            differs = _signature(one) != _signature(two)
            yield {
                "time": session.time,
                "session": session.id,
                "client": session.client,
                "sender": one.sender,
                "recipients": one.addresses[:MAX_MISSING],
                "old": _shown(one, one),
                "new": _shown(two, one),
                "edited": one.lines != two.lines and bool(one.lines and two.lines),
                "differs": differs,
                "missing": lacking[:MAX_MISSING],
                "this": session.id == self._session,
            }


class Played(Replay):
    """Sessions that are played one after another, and what the chain lacked for each."""

    def __init__(self, sessions: list[past.Session], notes: int, until: float) -> None:
        """Take the sessions, the descriptor that `subject` notes in, and when to stop."""
        head = list(sessions[0].head)
        entries = [entry for each in sessions for entry in each.entries]
        super().__init__(Recording(entries=head + entries))
        self._notes, self._until = notes, until
        self._taken = 0
        #: By the sessions' ids: the steps with a decision, and what was not recorded.
        self.of: dict[str, list[Step]] = {each.id: [] for each in sessions}
        self.missing: dict[str, set[str]] = {each.id: set() for each in sessions}
        #: The sessions that were played to their ends.
        self.ended: set[str] = set()

    def steps(self) -> Iterator[Step]:
        """Yield the steps until it is time to stop."""
        # What filters lacked at their start, such as the test of a list, concerns no session.
        self._taken = os.fstat(self._notes).st_size
        now = ""
        for step in super().steps():
            session = step.session.decode("latin-1")
            if session != now:
                self._ended(now)
                if monotonic() > self._until:
                    return
                now = session
            yield step
            self._take_notes(now)
        self._ended(now)

    def _ended(self, session: str) -> None:
        if session:
            self.ended.add(session)

    def _take_notes(self, session: str) -> None:
        """Take what the last step lacked."""
        # Both processes share the file's position, which is that of the writer.
        if data := os.pread(self._notes, MAX_NOTES, self._taken):
            self._taken += len(data)
            lines = data.decode("utf-8", "replace").splitlines()
            self.missing[session].update(printable(each)[:MAX_TEXT] for each in lines)


def _signature(fate: Fate) -> tuple[object, ...]:
    refusals = tuple(map(bool, fate.replies))
    return fate.outcome, fate.phase, fate.reply, fate.marked, refusals, fate.lines


def _shown(fate: Fate, old: Fate) -> dict[str, str]:
    outcome = fate.outcome
    if fate is not old and old.outcome in _REFUSED and outcome in {"abandoned", "none"}:
        outcome = "passes"  # what would follow is not recorded
    return {"outcome": outcome, "phase": fate.phase, "reply": printable(fate.reply)[:MAX_TEXT]}
