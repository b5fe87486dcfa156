"""Trials of other settings: the processes that the page starts for them, and what they return.

Invariants
----------
*One command*: a process is started with the command line that the service was started with; what a
user has chosen is in the JSON on its stdin, where it is checked.
*Bounded*: a user has one trial at a time, and the service `AT_ONCE`; each ends after `LONGEST`
seconds, and what it returns has a limit. `MOST` results are kept, for `KEPT` seconds.
*Ended*: the process of a trial that is over, cancelled or late is killed with what it has started.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Trials at a time.
AT_ONCE = 2
#: Seconds for which a description of the settings is shown.
FRESH = 5.0
#: Seconds for a trial, and for the description of the settings.
LONGEST, SHORT = 90.0, 20.0
#: Results that are kept, and for how many seconds.
MOST, KEPT = 20, 3600.0
#: Bytes of a line of a result.
MAX_LINE = 4 << 20


class TrialError(Exception):
    """A trial that failed; the text is for the reader of the page."""


class Setup(NamedTuple):
    """How trials are made: the command, and the part of the request that users don't choose."""

    command: Sequence[str]
    request: Mapping[str, str]


@dataclass(slots=True, eq=False)
class Trial:
    """A trial that runs or has ended."""

    id: str
    user: str
    #: The journal's id of the message that was asked about, "" for none.
    story: str
    began: float
    #: Sessions that were played, and all.
    progress: tuple[int, int] = (0, 0)
    result: dict[str, Any] | None = None
    error: str = ""
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.result is None and not self.error


class Trials:
    """The trials of a service."""

    def __init__(self, setup: Setup, clock: Callable[[], float], longest: float = LONGEST) -> None:
        """Take the setup, a clock in seconds, and the seconds for a trial."""
        self._setup = setup
        self._longest = longest
        self._clock = clock
        self._trials: dict[str, Trial] = {}
        self._describing = asyncio.Lock()
        #: The last description or error, and until when it is shown.
        self._described: dict[str, Any] | TrialError | None = None
        self._until = 0.0

    async def describe(self) -> dict[str, Any]:
        """Return the settings that can be tried. Raises TrialError.

        However often it is called, there is one process at a time, and one in `FRESH` seconds.
        """
        async with self._describing:
            if self._described is None or self._clock() >= self._until:
                try:
                    self._described = await self._ask({"do": "describe"}, SHORT)
                except TrialError as error:
                    self._described = error
                self._until = self._clock() + FRESH
        if isinstance(self._described, TrialError):
            raise self._described
        return self._described

    def find(self, id_: str, user: str) -> Trial | None:
        """Return a trial of a user."""
        found = self._trials.get(id_)
        return found if found is not None and found.user == user else None

    def begin(self, user: str, story: str, chosen: Mapping[str, Any]) -> Trial:
        """Begin a trial; `chosen` is the user's part of the request. Raises TrialError."""
        self._forget()
        running = [each for each in self._trials.values() if each.runs]
        if any(each.user == user for each in running):
            raise TrialError("Another trial of yours is running: wait for it, or cancel it.")
        if len(running) >= AT_ONCE:
            raise TrialError("Too many trials are running: try again in a minute.")
        trial = Trial(secrets.token_urlsafe(16), user, story, self._clock())
        self._trials[trial.id] = trial
        trial.task = asyncio.create_task(self._run(trial, chosen))
        return trial

    def running(self, user: str) -> Trial | None:
        """Return the running trial of a user."""
        return next((one for one in self._trials.values() if one.runs and one.user == user), None)

    async def cancel(self, trial: Trial) -> None:
        """End a trial, and wait until its processes are gone."""
        if trial.task is not None and trial.runs:
            trial.task.cancel()
            await asyncio.wait([trial.task])
            trial.error = trial.error or "Cancelled."

    async def aclose(self) -> None:
        """End all trials."""
        for trial in list(self._trials.values()):
            await self.cancel(trial)

    def _forget(self) -> None:
        """Forget the oldest results."""
        now = self._clock()
        for trial in sorted(self._trials.values(), key=lambda each: each.began):
            if not trial.runs and (now - trial.began > KEPT or len(self._trials) >= MOST):
                del self._trials[trial.id]

    async def _run(self, trial: Trial, chosen: Mapping[str, Any]) -> None:
        try:
            trial.result = await self._ask(
                {"do": "try", **chosen}, self._longest, lambda now: setattr(trial, "progress", now)
            )
        except TrialError as error:
            trial.error = str(error)
        except asyncio.CancelledError:
            trial.error = "Cancelled."
            raise

    async def _ask(
        self,
        chosen: Mapping[str, Any],
        seconds: float,
        progress: Callable[[tuple[int, int]], object] = lambda _: None,
    ) -> dict[str, Any]:
        """Have a process answer a request; return the result. Raises TrialError."""
        request = json.dumps({**chosen, **self._setup.request}).encode()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._setup.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env=_environment(),
                limit=MAX_LINE,
            )
        except OSError as error:
            raise TrialError(f"The trial can't be started: {error.strerror}.") from None
        try:
            async with asyncio.timeout(seconds):
                return await _talk(process, request, progress)
        except TimeoutError:
            raise TrialError(f"The trial took longer than {seconds:g} seconds.") from None
        except (OSError, ValueError, LookupError, TypeError):  # a long line, or no JSON of ours
            raise TrialError("The trial has failed.") from None
        finally:
            await _end(process)


async def _talk(
    process: asyncio.subprocess.Process,
    request: bytes,
    progress: Callable[[tuple[int, int]], object],
) -> dict[str, Any]:
    """Write a request, and read until the result.

    Raises TrialError, OSError, and ValueError, LookupError or TypeError for what isn't an answer.
    """
    assert process.stdin is not None  # noqa: S101  # both are pipes
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(request)
    process.stdin.close()
    while line := await process.stdout.readline():
        said = json.loads(line)
        if "error" in said:
            raise TrialError(str(said["error"]))
        if "result" in said:
            result: dict[str, Any] = said["result"]
            return result
        done, of = said["progress"]
        progress((int(done), int(of)))
    raise TrialError("The trial has failed: it used too much memory or time.")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a process with what it has started, and wait for its end."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await asyncio.shield(process.wait())


def _environment() -> dict[str, str]:
    """Return the environment of a trial's process."""
    kept = {name: os.environ[name] for name in ("TMPDIR", "TZ") if name in os.environ}
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **kept}
