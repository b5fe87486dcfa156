"""`smtpd-filters reload`: have supervised filters start again, with new code and configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings import LIST, TEXT, Settings, operand
from smtpd_filters.settings.quoting import printable
from smtpd_filters.supervise.loop import MARK
from smtpd_filters.supervise.program import split_command

from . import PROG
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The exit status if there is nothing to reload, or not all of it can be.
FAILED = 1
_PROC = "/proc"


class Options(Settings):
    """The supervised filters."""

    name = operand(
        LIST(TEXT),
        default=(),
        metavar="NAME",
        help="A filter by the name of its executable, with or without filter-, or of its script, "
        "with or without .py, or by the number of its supervisor's process; by default all that "
        "run on this machine.",
    )


@dataclass(frozen=True, slots=True)
class Supervisor:
    """A supervisor that runs, and the command that it supervises."""

    pid: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the program, as it can be shown: any user can start one with any name.

        It is the first word with a filter's name, the script that Python runs, or the first word.
        """
        names = [word.rpartition("/")[2] for word in self.command]
        found = next((name for name in names if name.startswith("filter-")), "")
        if not found and names[0].startswith("python"):
            words = zip(self.command[1:], names[1:], strict=True)
            found = next((name for word, name in words if not word.startswith("-")), "")
        return printable(found or names[0])

    @property
    def names(self) -> set[str]:
        """What an operator may call it: its name, that without `filter-` and `.py`, its process."""
        bare = self.name.removesuffix(".py")
        return {self.name, bare, bare.removeprefix("filter-"), str(self.pid)}


def run(options: Options, _rest: list[str]) -> int:
    """Signal the supervisors; return the exit status."""
    found = list(supervisors())
    chosen = [each for each in found if not options.name or each.names.intersection(options.name)]
    known = {name for each in found for name in each.names}
    status = 0 if chosen else FAILED
    running = ", ".join(sorted({each.name for each in found}))
    there = f" (there is {running})" if running else ""
    for name in options.name:
        if name not in known:
            status = FAILED
            VERB.note(f"{name}: not a supervised filter that runs{there}")
    if not options.name and not found:
        VERB.note("no supervised filter runs")
    for each in chosen:
        try:
            send(each)
        except OSError as error:
            status = FAILED
            VERB.note(f"{each.name}, {each.pid}: {os_reason(error)}")
        else:
            sys.stdout.write(f"{each.name}: {each.pid} reloads\n")
    return status


def supervisors() -> Iterator[Supervisor]:
    """Yield the supervisors that run: by their mark on Linux, by their command line elsewhere."""
    if os.path.exists(f"{_PROC}/self/comm"):  # noqa: PTH110  # no path is made of it
        for entry in sorted(filter(str.isdigit, os.listdir(_PROC)), key=int):  # noqa: PTH208  # as above
            if _is_marked(int(entry)):
                line = _read(f"{_PROC}/{entry}/cmdline").decode("utf-8", "replace")
                yield from _parse(int(entry), line.rstrip("\0").split("\0"))
        return
    for line in _ps():
        number, *words = line.split()
        yield from _parse(int(number), words)


def _is_marked(pid: int) -> bool:
    return _read(f"{_PROC}/{pid}/comm").strip() == MARK


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # as above
            return file.read()
    except OSError:  # it has ended
        return b""


def _ps() -> list[str]:
    try:
        done = subprocess.run(
            ["/bin/ps", "-axww", "-o", "pid=", "-o", "args="],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"cannot list the processes: {error}") from None
    return done.stdout.splitlines()


def _parse(pid: int, words: Sequence[str]) -> Iterator[Supervisor]:
    """Yield the supervisor with this command line, if it is one: Python, and our program."""
    if not words or not words[0].rpartition("/")[2].startswith("python"):
        return
    at = next((at for at, word in enumerate(words) if at and not word.startswith("-")), 0)
    script = words[at].rpartition("/")[2]
    if "--" in words and "smtpd_filters.supervise.program" in " ".join(
        words[1 : words.index("--")]
    ):
        command = words[words.index("--") + 1 :]
    elif at and script == "filter-supervise":
        _, command = split_command(list(words[at + 1 :]))
    elif words[1:2] == ["-m"] and words[2:3] == ["smtpd_filters.supervise.program"]:
        _, command = split_command(list(words[3:]))
    else:
        return
    if split := " ".join(command).split():  # any user can start one with empty words
        yield Supervisor(pid, tuple(split))


def send(supervisor: Supervisor) -> None:
    """Send SIGHUP. On Linux another process can't get it, even if the number is used again."""
    if not hasattr(os, "pidfd_open"):
        os.kill(supervisor.pid, signal.SIGHUP)
        return
    handle = os.pidfd_open(supervisor.pid)
    try:
        if not _is_marked(supervisor.pid):
            raise ProcessLookupError(3, "No such process")
        signal.pidfd_send_signal(handle, signal.SIGHUP)
    finally:
        os.close(handle)


VERB = Verb(
    "reload",
    run,
    options=Options,
    description="Have supervised filters start again, with new code and configuration. The "
    "sessions that run are finished by the old processes; if the new ones don't start, the old "
    f"ones go on, and the log has the reason. `{PROG} check` finds most reasons beforehand.",
    ending="The exit status is 0 if all were signalled, and 1 if one was not or none runs. Whether "
    "the new processes start is in the log: `reload result=ok`, or `reload failed`.",
)
