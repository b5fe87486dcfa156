"""``smtpd-filters replay``: recordings played to a filter, its verdicts beside those recorded.

`smtpd_filters.recording.replay` says what is played and what becomes of a session that goes another
way than recorded; `player` moves the bytes.  Each recording is played to a process of its own.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from difflib import unified_diff
from pathlib import Path

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.versions import OLDEST, version
from smtpd_filters.recording import Recording
from smtpd_filters.recording.redaction import mask_credentials
from smtpd_filters.recording.replay import Replay
from smtpd_filters.settings import SECONDS
from smtpd_filters.settings.kinds import printable

from .player import FatalError, Process, find
from .progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence
    from typing import Any

    from smtpd_filters.recording.replay import Step
    from smtpd_filters.recording.verdict import Verdict

SAME, DIFFERS, FATAL = 0, 1, 3
#: The widest column of the table, and the lines shown of a changed message.
WIDTH, SHOWN = 44, 20


@dataclass(slots=True)
class Played:
    """What came of one recording."""

    file: str
    replay: Replay
    #: How smtpd would have ended, or hung; empty when it would not.
    fatal: str = ""
    #: What else smtpd would not have liked.
    complaints: list[str] = field(default_factory=list)

    @property
    def changed(self) -> list[Step]:
        """The steps at which the filter decided otherwise than recorded."""
        return [step for step in self.replay.outcomes if differs(step)]

    @property
    def status(self) -> int:
        """The exit status that it calls for."""
        if self.fatal:
            return FATAL
        return DIFFERS if self.changed or self.complaints else SAME


def differs(step: Step) -> bool:
    """Whether a verdict is another one; where none was recorded there is nothing to compare."""
    return step.recorded is not None and step.differs


def run(options: Namespace, command: list[str]) -> int:
    """Play the recordings and print what came of it."""
    if not command:
        raise ConfigError("replay: no command; it stands behind -- at the end")
    if len(command) == 1:
        command = shlex.split(command[0])  # as in proc-exec "filter-x --flag"
    try:
        timeout = SECONDS(low=0.001).parse(options.timeout)
    except ValueError as error:
        raise ConfigError(f"--timeout: {error}") from None
    command = find(command)
    files = list(_files(options.files))
    progress = _Progress(len(files), wanted=sys.stderr.isatty() and not options.log)
    played: list[Played] = []
    for file in files:
        progress.begin(file)
        one = play(file, command, timeout, options.protocol, progress, show_log=options.log)
        played.append(one)
        if not options.json:
            progress.clear()
            sys.stdout.write(_show(one, only_changed=options.diff))
    progress.clear()
    if options.json:
        json.dump(_as_json(played, only_changed=options.diff), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(_summary(played))
    return max((one.status for one in played), default=SAME)


def _files(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if not Path(name).is_dir():
            yield name
            continue
        below = sorted(map(str, Path(name).rglob("*.session")))
        if not below:
            raise ConfigError(f"{name}: no recording (*.session) below")
        yield from below


def play(  # noqa: PLR0913  # what it takes to play
    file: str,
    command: Sequence[str],
    timeout: float,
    protocol: str | None,
    progress: _Progress,
    *,
    show_log: bool,
) -> Played:
    """Play one recording; ConfigError when it can't be read or the command can't be started."""
    recording = Recording.read(file)
    if not recording.sessions():
        raise ConfigError(f"{file}: no session in it")
    spoken = version(recording.protocol or "")
    if spoken is not None and spoken < OLDEST:
        raise ConfigError(f"{file}: protocol {recording.protocol} is too old to be replayed")
    replay = Replay(recording, protocol=version(protocol) if protocol else None)
    played = Played(file, replay)
    process = Process(command, timeout, show_log=show_log)
    try:
        process.play(replay, progress.tick)
    except FatalError as error:
        played.fatal = str(error)
    finally:
        process.close()
    # What ended the play is no further complaint, nor is what did not get its answer because of it.
    if not played.fatal:
        played.complaints = [str(complaint) for complaint in replay.oracle.complaints]
    return played


class _Progress(Progress):
    """How many files and steps of how many there were."""

    def __init__(self, files: int, *, wanted: bool) -> None:
        super().__init__(wanted=wanted)
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
            self.show(f"{self._done}/{self._files} {self._file}: {self._steps} steps"[:79])


# -- what is shown -----------------------------------------------------------------------


def _show(played: Played, *, only_changed: bool) -> str:
    steps = played.changed if only_changed else played.replay.outcomes
    if only_changed and not (steps or played.fatal or played.complaints):
        return ""
    lines = [played.file]
    rows = [("session", "phase", "client", "recorded", "now")]
    rows += [
        (
            step.session.decode("latin-1"),
            step.phase,
            _said(step),
            _cell(step.recorded),
            _cell(step.verdict, reached=not played.fatal),
        )
        for step in steps
    ]
    widths = [min(max(map(len, column)), WIDTH) for column in zip(*rows, strict=True)]
    for step, row in zip([None, *steps], rows, strict=True):
        cells = [_fit(cell, width) for cell, width in zip(row, widths, strict=True)]
        mark = "*" if step is not None and differs(step) else " "
        lines.append(f" {mark} {'  '.join(cells)}".rstrip())
        if only_changed and step is not None:
            lines += [f"       {line}" for line in _changed_lines(step)]
    lines += [f" ! {printable(complaint)}" for complaint in played.complaints]
    if played.fatal:
        lines.append(f" ! {printable(played.fatal)}")
    return "\n".join(lines) + "\n\n"


def _fit(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else f"{cell[: width - 3]}..."


def _said(step: Step) -> str:
    argument = step.argument
    if step.phase == "auth":
        argument = mask_credentials(argument)
    return printable(argument.decode("utf-8", "surrogateescape"))


def _cell(verdict: Verdict | None, *, reached: bool = True) -> str:
    if verdict is None:
        return "(not reached)" if reached else "-"
    if verdict.lines is not None:
        shown = f"{verdict.verb}, {_number(len(verdict.lines), 'line')}"
    else:
        text = verdict.reply or (verdict.parameter if verdict.verb == "rewrite" else "")
        if verdict.phase == "auth" and not verdict.reply:
            text = mask_credentials(text.encode("utf-8", "surrogateescape")).decode()
        shown = f"{verdict.verb} {printable(text)}".rstrip()
    return shown if verdict.asked else f"({shown})"


def _changed_lines(step: Step) -> list[str]:
    """How the message as it comes back now differs from the one recorded."""
    if step.recorded is None or step.verdict is None or step.recorded.lines is None:
        return []
    before, now = (
        [printable(line.decode("utf-8", "surrogateescape")) for line in verdict.lines or ()]
        for verdict in (step.recorded, step.verdict)
    )
    found = list(unified_diff(before, now, lineterm="", n=0))[2:]
    found = [line[:120] for line in found if not line.startswith("@@")]
    more = len(found) - SHOWN
    return found[:SHOWN] + ([f"... {more} more lines"] if more > 0 else [])


def _summary(played: Sequence[Played]) -> str:
    count: Counter[str] = Counter()
    for one in played:
        count["decisions"] += len(one.replay.outcomes)
        count["differ"] += len(one.changed)
        count["complaints"] += len(one.complaints)
        count["fatal"] += bool(one.fatal)
    text = f"{_number(len(played), 'recording')}, {_number(count['decisions'], 'decision')}"
    text += f", {count['differ'] or 'none'} differ{'s' if count['differ'] == 1 else ''}"
    if count["complaints"]:
        text += f", {_number(count['complaints'], 'complaint')}"
    if count["fatal"]:
        text += f", in {count['fatal']} smtpd would have ended or hung"
    return f"{text}\n"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _as_json(played: Sequence[Played], *, only_changed: bool) -> dict[str, Any]:
    return {
        "same": not any(one.status for one in played),
        "recordings": [
            {
                "file": one.file,
                "status": one.status,
                "fatal": one.fatal or None,
                "complaints": one.complaints,
                "decisions": [
                    {
                        "session": step.session.decode("latin-1"),
                        "phase": step.phase,
                        "argument": _said(step),
                        "recorded": _verdict(step.recorded),
                        "now": _verdict(step.verdict),
                        "differs": differs(step),
                    }
                    for step in (one.changed if only_changed else one.replay.outcomes)
                ],
            }
            for one in played
        ],
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    said: dict[str, Any] = {"verb": verdict.verb, "asked": verdict.asked}
    if verdict.lines is not None:
        said["lines"] = len(verdict.lines)
    elif verdict.reply:
        said["reply"] = printable(verdict.reply)
    elif verdict.verb == "rewrite":
        said["parameter"] = _cell(verdict).partition(" ")[2]
    return said
