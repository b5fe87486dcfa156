"""``smtpd-filters learn``: messages given to rspamd's controller to learn from, as spam or as ham.

The law:
1. The exit status is one of sysexits(3), as sendmail's: who runs this for one message knows whether
   to try again.
2. What the daemon has learned before is learned; a message that it has nothing to learn from is
   none of the caller's business. All else that isn't learned is an error.
3. It starts quickly: Dovecot runs it for each message that somebody moves, and waits.
4. It ends: each wait has its limit, a daemon that isn't there isn't asked a thousand times, and an
   interrupt waits for nothing.

How it works. As many threads as `--jobs` allows take messages from one iterator (`mailboxes`), give
them to the daemon (`controller`) and count in one `Tally` what becomes of them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import SECONDS
from smtpd_filters.settings.kinds import printable

from . import mailboxes, write_nowhere
from .controller import DATAERR, NOPERM, TEMPFAIL, Controller, Refused, Unreachable
from .mailboxes import Gone, Mail
from .progress import PROGRESS, Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from typing import BinaryIO, TextIO

# sysexits(3); those of a message are in `controller`.
OK, USAGE, NOINPUT, CONFIG = 0, 64, 66, 78
#: Of several, the one that says most of what to do now.
_ORDER = (NOPERM, TEMPFAIL, NOINPUT, DATAERR)
#: How many messages in a row may find no daemon.
PATIENCE = 3
#: The most jobs; the controller itself has one process.
MAX_JOBS = 64
_BAR = 30


class Tally:
    """What has become of the messages, counted by all threads."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.counts = dict.fromkeys(("learned", "known", "skipped", "failed"), 0)
        self.statuses: set[int] = set()
        #: Why nothing more is to be tried, if nothing is.
        self.stopped = ""
        self.complaints: list[str] = []
        self._last_cause = ""
        self._in_a_row = 0
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """How many messages have been dealt with."""
        return sum(self.counts.values())

    @property
    def status(self) -> int:
        """The exit status."""
        return next((status for status in _ORDER if status in self.statuses), OK)

    def add(self, outcome: str) -> None:
        """Count a message."""
        with self._lock:
            self.counts[outcome] += 1
            self._in_a_row = 0

    def fail(self, name: str, cause: str, status: int, *, unreachable: bool = False) -> None:
        """Count a message that wasn't learned.

        The daemon's cause is told once for messages in a row.
        """
        with self._lock:
            self.counts["failed"] += 1
            self.statuses.add(status)
            repeated = cause == self._last_cause and status != NOINPUT
            self.complaints.append(f"{name}: {'not learned, likewise' if repeated else cause}")
            self._last_cause = cause
            self._in_a_row = self._in_a_row + 1 if unreachable else 0
            if status == NOPERM or self._in_a_row >= PATIENCE:
                self.stopped = "given up"

    def summary(self) -> str:
        """One line that says all."""
        learned, known, skipped, failed = self.counts.values()
        text = f"{learned} learned, {known} known already, {skipped} skipped, {failed} not learned"
        return f"{text}; {self.stopped}\n" if self.stopped else f"{text}\n"


def run(options: Namespace, more: list[str]) -> int:
    """Have messages learned; returns an exit status of sysexits(3)."""
    names = [*options.files, *more]
    try:
        jobs = _jobs(options.jobs)
        controller = Controller(
            options.url,
            options.kind,
            password=_password(options.password_file),
            user=options.user,
            timeout=_seconds(options.timeout),
        )
    except ConfigError as error:
        sys.stderr.write(f"smtpd-filters: {printable(str(error))}\n")
        return USAGE
    except OSError as error:
        sys.stderr.write(f"smtpd-filters: --password-file: {error.filename}: {error.strerror}\n")
        return CONFIG
    if not names:
        return _learn_stdin(controller, mbox=options.mbox)
    wanted = sys.stderr.isatty()
    tally = Tally(mailboxes.count(names) if wanted else None)
    progress = _Progress(tally, wanted=wanted)
    try:
        _learn_all(controller, mailboxes.messages(names), jobs, tally, progress)
    except KeyboardInterrupt:
        tally.stopped = "interrupted"
        raise
    finally:
        progress.clear()
        _say(tally.summary())
    return tally.status


def _say(text: str) -> None:
    """Write to stdout; that nobody reads it changes nothing of what has been learned."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        write_nowhere()


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= MAX_JOBS):
        raise ConfigError(f"--jobs: expected a number from 1 to {MAX_JOBS}, not {text[:20]!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return SECONDS(low=0.001).parse(text)
    except ValueError as error:
        raise ConfigError(f"--timeout: {error}") from None


def _password(name: str | None) -> str:
    """The first line of the file; OSError if it can't be read."""
    if name is None:
        return ""
    with open(name, "rb") as file:  # noqa: PTH123
        line = file.readline(4096).rstrip(b"\r\n")
    if not line:
        raise OSError(errno.EINVAL, "the first line is empty", name)
    return line.decode("utf-8", "surrogateescape")


def _learn_stdin(controller: Controller, *, mbox: bool) -> int:
    tally = Tally(None if mbox else 1)
    try:
        for mail in mailboxes.piped(_stdin(), mbox=mbox):
            _learn_one(controller, mail, tally)
            if tally.stopped:
                break
    except OSError as error:
        tally.fail("stdin", error.strerror or str(error), NOINPUT)
    if not tally.done:
        tally.fail("stdin", "no mbox" if mbox else "an empty message", DATAERR)
    _complain(tally)
    return tally.status


def _stdin() -> BinaryIO:
    stdin: TextIO | None = sys.stdin
    if stdin is None:
        raise OSError(errno.EBADF, "is closed")
    if stat.S_ISDIR(os.fstat(stdin.fileno()).st_mode):
        raise OSError(errno.EISDIR, "is a directory")
    return stdin.buffer


def _learn_one(controller: Controller, mail: Mail | OSError, tally: Tally) -> None:
    if isinstance(mail, OSError):
        tally.fail(str(mail.filename), mail.strerror or str(mail), NOINPUT)
        return
    try:
        tally.add(controller.learn(mail))
    except Gone:
        pass  # moved away or deleted meanwhile
    except Refused as refused:
        unreachable = isinstance(refused, Unreachable)
        tally.fail(mail.name, str(refused), refused.status, unreachable=unreachable)
    except OSError as error:
        tally.fail(mail.name, error.strerror or str(error), NOINPUT)


def _learn_all(
    controller: Controller,
    mails: Iterator[Mail | OSError],
    jobs: int,
    tally: Tally,
    progress: _Progress,
) -> None:
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not tally.stopped:
                with lock:
                    mail = next(mails, None)
                if mail is None:
                    return
                _learn_one(controller, mail, tally)
        except BaseException as error:  # noqa: BLE001  # handed to the main thread
            failures.append(error)
            tally.stopped = "given up"

    # An interrupt ends the program whatever they wait for; the controller forgets half a request.
    threads = [threading.Thread(target=work, name=f"learn-{n}", daemon=True) for n in range(jobs)]
    try:
        _run_all(threads, progress)
    except BaseException:
        tally.stopped = "given up"
        raise
    progress.tick()
    for failure in failures:
        raise failure


def _run_all(threads: list[threading.Thread], progress: _Progress) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(PROGRESS)
            progress.tick()


def _complain(tally: Tally) -> None:
    complaints, tally.complaints = tally.complaints, []
    for complaint in complaints:
        sys.stderr.write(f"smtpd-filters: {printable(complaint)}\n")


class _Progress(Progress):
    """How far it has come; complaints go above it."""

    def __init__(self, tally: Tally, *, wanted: bool) -> None:
        super().__init__(wanted=wanted)
        self._tally = tally

    def tick(self) -> None:
        """Show how far it has come, if it is time to."""
        if self._tally.complaints:
            self.clear()
            _complain(self._tally)
        if self.due():
            self.show(bar(self._tally.done, self._tally.total))


def bar(done: int, total: int | None) -> str:
    """How far it has come."""
    if not total:
        return f"{done} messages"
    done = min(done, total)
    full = _BAR * done // total
    return f"[{'#' * full}{'.' * (_BAR - full)}] {done}/{total} {100 * done // total}%"
