"""`smtpd-filters replay`: recordings played to a filter, and the comparison of verdicts.

`smtpd_filters.recording.replay` decides what is played, also in a session that diverges from its
recording; `player` transfers the bytes. Each recording is played to a process of its own, and with
`--old` and `--new` to two, whose verdicts are compared.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from difflib import unified_diff
from itertools import zip_longest
from pathlib import Path

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.versions import OLDEST, version
from smtpd_filters.recording import Recording
from smtpd_filters.recording.redaction import mask_credentials
from smtpd_filters.recording.replay import Replay
from smtpd_filters.settings import (
    LIST,
    PATH,
    SECONDS,
    SWITCH,
    TEXT,
    Settings,
    choice,
    operand,
    option,
)
from smtpd_filters.settings.quoting import printable

from .player import FatalError, Process, find
from .progress import PROGRESS, Progress
from .streams import print_json
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from smtpd_filters.recording.replay import Step
    from smtpd_filters.recording.verdict import Verdict

SAME, DIFFERS, FATAL = 0, 1, 3
#: The widest column of the table, and the lines shown of a changed message.
WIDTH, SHOWN = 44, 20


class Options(Settings):
    """The recordings, the filters and the output."""

    files = operand(
        LIST(PATH),
        required=True,
        metavar="FILE",
        help="A recording, or a directory with recordings (*.session) below it.",
    )
    old = option(
        TEXT,
        default="",
        help="Compare two filters: this one, and the one of --new or after --. Each is a command "
        "as in proc-exec, or the file of a chain (NAME.toml). Only differences are shown.",
    )
    new = option(TEXT, default="", help="The filter to play to, as for --old.")
    chain = option(
        TEXT,
        default="",
        help="The chain of the files of --old and --new; required only if they have several.",
    )
    diff = option(SWITCH, default=False, help="Show only differences.")
    json = option(SWITCH, default=False, help="Print JSON.")
    protocol = option(
        choice("0.5", "0.6", "0.7"),
        default=None,
        help="Speak this version of the protocol in place of the recorded one.",
    )
    timeout = option(SECONDS(low=0.001), default=30.0, help="How long to wait for an answer.")
    log = option(SWITCH, default=False, help="Show the filter's log.")


@dataclass(slots=True)
class Played:
    """The result of one recording with one filter."""

    replay: Replay
    #: Why smtpd would have ended or hung; empty if it would not.
    fatal: str = ""
    #: Violations of the protocol that smtpd tolerates.
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """A step with a decision, and the two verdicts that are compared."""

    step: Step
    before: Verdict | None
    now: Verdict | None
    #: Whether the two differ; False if the recording has no verdict.
    differs: bool
    #: The column of the filter that didn't reach the step, or "".
    unreached: str = ""

    @property
    def not_compared(self) -> bool:
        """Whether it is a message that the filter returned and of which nothing was recorded."""
        return self.before is None and self.now is not None and self.now.lines is not None


@dataclass(slots=True)
class Compared:
    """One recording: its verdicts beside those of a filter, or those of two filters."""

    file: str
    columns: tuple[str, str]
    rows: list[Row]
    fatal: str
    complaints: list[str]

    @classmethod
    def with_recorded(cls, file: str, played: Played) -> Compared:
        """Compare a filter with the recorded verdicts."""
        rows = [
            Row(
                step,
                step.recorded,
                step.verdict,
                step.differs,
                "" if step.verdict else "now",
            )
            for step in played.replay.outcomes
        ]
        return cls(file, ("recorded", "now"), rows, played.fatal, played.complaints)

    @classmethod
    def of_two(cls, file: str, old: Played, new: Played) -> Compared:
        """Compare two filters with each other."""
        rows = []
        # Both have the same steps, unless one ended early.
        for one, two in zip_longest(old.replay.outcomes, new.replay.outcomes):
            before = one.verdict if one else None
            now = two.verdict if two else None
            unreached = "" if before and now else "new" if before else "old"
            rows.append(Row(one or two, before, now, before != now, unreached))
        fatal = [f"{name}: {each.fatal}" for name, each in _named(old, new) if each.fatal]
        complaints = [
            f"{name}: {complaint}"
            for name, each in _named(old, new)
            for complaint in each.complaints
        ]
        return cls(file, ("old", "new"), rows, "; ".join(fatal), complaints)

    @property
    def changed(self) -> list[Row]:
        """The rows that differ."""
        return [row for row in self.rows if row.differs]

    @property
    def status(self) -> int:
        """The exit status for this recording."""
        if self.fatal:
            return FATAL
        return DIFFERS if self.changed or self.complaints else SAME


def _named(old: Played, new: Played) -> tuple[tuple[str, Played], tuple[str, Played]]:
    return ("old", old), ("new", new)


def run(options: Options, command: list[str]) -> int:
    """Play the recordings, print the comparison, and return the exit status."""
    commands = _commands(options, command)
    files = list(_files(options.files))
    progress = _Progress(len(files), wanted=sys.stderr.isatty() and not options.log)
    compared: list[Compared] = []
    only_changed = options.diff or len(commands) > 1
    for file in files:
        progress.begin(file)
        played = [play(file, each, options, progress) for each in commands]
        one = (
            Compared.with_recorded(file, *played)
            if len(played) == 1
            else Compared.of_two(file, *played)
        )
        compared.append(one)
        if not options.json:
            progress.clear()
            sys.stdout.write(_show(one, only_changed=only_changed))
    progress.clear()
    if options.json:
        print_json(_as_json(compared, only_changed=only_changed))
    else:
        sys.stdout.write(_summary(compared))
    return max((one.status for one in compared), default=SAME)


def _commands(options: Options, command: list[str]) -> list[list[str]]:
    """Return the commands of the filters: one, or the old and the new one."""
    if options.new and command:
        raise ConfigError("--new and a command after -- exclude each other")
    if not (options.new or command):
        raise ConfigError("no command: put it after -- at the end, or give --new")
    if len(command) == 1:
        command = shlex.split(command[0])  # as in proc-exec "filter-x --flag"
    new = find(command) if command else _command("--new", options.new, options.chain)
    return [_command("--old", options.old, options.chain), new] if options.old else [new]


def _command(flag: str, given: str, chain: str) -> list[str]:
    """Return the command of `--old` or `--new`."""
    try:
        if given.endswith(".toml") and Path(given).exists():
            words = ["filter-chain", "--config", str(Path(given).absolute())]
            return find([*words, "--chain", chain] if chain else words)
        words = shlex.split(given)
        if not words:
            raise ConfigError("empty command")  # noqa: TRY301  # the flag is added below
        return find(words)
    except (ConfigError, ValueError) as error:  # ValueError: an unclosed quote
        raise ConfigError(f"{flag}: {error}") from None


def _files(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if not Path(name).is_dir():
            yield name
            continue
        # A FIFO would be waited for.
        below = sorted(str(each) for each in Path(name).rglob("*.session") if each.is_file())
        if not below:
            raise ConfigError(f"{name}: no recording (*.session) in it")
        yield from below


def play(file: str, command: Sequence[str], options: Options, progress: _Progress) -> Played:
    """Play one recording; raise ConfigError if it can't be read or the filter not started."""
    recording = Recording.read(file)
    if not recording.sessions():
        raise ConfigError(f"{file}: no session in it")
    spoken = version(recording.protocol or "")
    if spoken is not None and spoken < OLDEST:
        raise ConfigError(f"{file}: protocol {recording.protocol} is too old to be replayed")
    protocol = version(options.protocol) if options.protocol else None
    played = Played(Replay(recording, protocol=protocol))
    process = Process(command, options.timeout, show_log=options.log)
    try:
        process.play(played.replay, progress.tick)
    except FatalError as error:
        played.fatal = str(error)
    finally:
        process.close()
    # The fatal complaint is shown once; requests left unanswered by it aren't complaints.
    if not played.fatal:
        played.complaints = [str(complaint) for complaint in played.replay.oracle.complaints]
    return played


class _Progress(Progress):
    """The numbers of files and steps."""

    def __init__(self, files: int, *, wanted: bool, interval: float = PROGRESS) -> None:
        super().__init__(wanted=wanted, interval=interval)
        self._files = files
        self._done = self._steps = 0
        self._file = ""

    def begin(self, file: str) -> None:
        """Count a file."""
        self._done += 1
        self._file = file

    def tick(self) -> None:
        """Count a step."""
        self._steps += 1
        if self.due():
            file = printable(self._file)
            self.show(f"{self._done}/{self._files} {file}: {self._steps} steps"[:79])


# -- output ------------------------------------------------------------------------------


def _show(compared: Compared, *, only_changed: bool) -> str:
    rows = compared.changed if only_changed else compared.rows
    if only_changed and not (rows or compared.fatal or compared.complaints):
        return ""
    folded = _folded([] if compared.fatal else rows)
    table: list[tuple[Row | None, tuple[str, ...]]] = [
        (None, ("session", "phase", "client", *compared.columns))
    ]
    table += [(row, _cells(row)) for row in rows if id(row) not in folded]
    widths = [
        min(max(map(len, column)), WIDTH)
        for column in zip(*(cells for _, cells in table), strict=True)
    ]
    shown = {id(row): cells for row, cells in table}
    lines = [printable(compared.file), _line(" ", table[0][1], widths)]
    for row in rows:
        if id(row) in shown:
            mark = "*" if row.differs and not row.unreached else " "
            lines.append(_line(mark, shown[id(row)], widths))
            if only_changed:
                lines += [f"       {line}" for line in _changed_lines(row)]
        elif count := folded[id(row)]:
            by = f" with the {row.unreached} one" if row.unreached != "now" else ""
            lines.append(f"   {_session(row)}  ({_number(count, 'step')} not reached{by})")
    lines += [f" ! {printable(complaint)}" for complaint in compared.complaints]
    if compared.fatal:
        lines.append(f" ! {printable(compared.fatal)}")
    return "\n".join(lines) + "\n\n"


def _folded(rows: Sequence[Row]) -> dict[int, int]:
    """Count the consecutive steps that a session did not reach, by the row's id.

    The first of them has the count, the others have 0.
    """
    counts: dict[int, int] = {}
    first: dict[tuple[bytes, str], int] = {}
    for row in rows:
        session = row.step.session
        if not row.unreached:
            for key in [key for key in first if key[0] == session]:
                del first[key]
            continue
        head = first.setdefault((session, row.unreached), id(row))
        counts[id(row)] = 0
        counts[head] += 1
    return counts


def _cells(row: Row) -> tuple[str, ...]:
    return _session(row), row.step.phase, _argument(row.step), _cell(row.before), _cell(row.now)


def _line(mark: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    shown = [_fit(cell, width) for cell, width in zip(cells, widths, strict=True)]
    return f" {mark} {'  '.join(shown)}".rstrip()


def _session(row: Row) -> str:
    return row.step.session.decode("latin-1")


def _fit(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else f"{cell[: width - 3]}..."


def _argument(step: Step) -> str:
    argument = step.argument
    if step.phase == "auth":
        argument = mask_credentials(argument)
    return printable(argument.decode("utf-8", "surrogateescape"))


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    if verdict.lines is not None:
        shown = f"{verdict.verb}, {_number(len(verdict.lines), 'line')}"
    else:
        text = verdict.reply or (verdict.parameter if verdict.verb == "rewrite" else "")
        if verdict.phase == "auth" and not verdict.reply:
            text = mask_credentials(text.encode("utf-8", "surrogateescape")).decode()
        shown = f"{verdict.verb} {printable(text)}".rstrip()
    return shown if verdict.asked else f"({shown})"


def _changed_lines(row: Row) -> list[str]:
    """Return the differences between the returned messages, as lines of a diff."""
    if row.before is None or row.now is None or row.before.lines is None:
        return []
    before, now = (
        [printable(line.decode("utf-8", "surrogateescape")) for line in verdict.lines or ()]
        for verdict in (row.before, row.now)
    )
    found = list(unified_diff(before, now, lineterm="", n=0))[2:]
    found = [line[:120] for line in found if not line.startswith("@@")]
    more = len(found) - SHOWN
    return found[:SHOWN] + ([f"... {more} more lines"] if more > 0 else [])


def _summary(compared: Sequence[Compared]) -> str:
    count: Counter[str] = Counter()
    for one in compared:
        count["decisions"] += len(one.rows)
        count["differ"] += sum(not row.unreached for row in one.changed)
        count["unreached"] += sum(bool(row.unreached) for row in one.changed if not one.fatal)
        count["not compared"] += sum(row.not_compared for row in one.rows)
        count["complaints"] += len(one.complaints)
        count["fatal"] += bool(one.fatal)
    text = f"{_number(len(compared), 'recording')}, {_number(count['decisions'], 'decision')}"
    text += f", {count['differ'] or 'none'} differ{'s' if count['differ'] == 1 else ''}"
    if count["unreached"]:
        text += f", {count['unreached']} not reached"
    if count["not compared"]:
        text += f", {_number(count['not compared'], 'message')} not compared"
        text += " (--old filter-trace shows edits)"
    if count["complaints"]:
        text += f", {_number(count['complaints'], 'complaint')}"
    if count["fatal"]:
        text += f", in {count['fatal']} smtpd would have ended or hung"
    return f"{text}\n"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _as_json(compared: Sequence[Compared], *, only_changed: bool) -> dict[str, Any]:
    return {
        "same": not any(one.status for one in compared),
        "recordings": [
            {
                "file": one.file,
                "status": one.status,
                "fatal": one.fatal or None,
                "complaints": one.complaints,
                "decisions": [
                    {
                        "session": _session(row),
                        "phase": row.step.phase,
                        "argument": _argument(row.step),
                        one.columns[0]: _verdict(row.before),
                        one.columns[1]: _verdict(row.now),
                        "differs": row.differs,
                    }
                    for row in (one.changed if only_changed else one.rows)
                ],
            }
            for one in compared
        ],
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    shown: dict[str, Any] = {"verb": verdict.verb, "asked": verdict.asked}
    if verdict.lines is not None:
        shown["lines"] = len(verdict.lines)
    elif verdict.reply:
        shown["reply"] = printable(verdict.reply)
    elif verdict.verb == "rewrite":
        shown["parameter"] = _cell(verdict).partition(" ")[2]
    return shown


VERB = Verb(
    "replay",
    run,
    options=Options,
    description="Play recordings to a filter and compare its verdicts with those recorded. They "
    "are played as by smtpd, and every answer is checked against the rules on which smtpd ends.",
    ending="Exit status: 0 without differences, 1 with some, 2 for an invalid flag or file, 3 if "
    "the filter would have ended or hung smtpd.",
    behind="COMMAND ...",
)
