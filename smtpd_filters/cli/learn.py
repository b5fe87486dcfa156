"""`smtpd-filters learn`: the training of Rspamd's or SpamAssassin's classifier with messages.

`--jobs` threads take messages from one iterator (`mailboxes`), send them to the daemon, Rspamd's
controller (`learn_rspamd`) or spamd (`learn_spamd`), and count the results in one `Tally`.

Invariants
----------
*Status*: the exit status is one of sysexits(3), as sendmail's, so that a caller can decide whether
to try again.
*Learned*: a message that the daemon has learned before counts as learned, and a message without
anything to learn as skipped. Every other message that isn't learned is an error.
*Quick*: the start is quick, since Dovecot runs this for each message that a user moves, and waits.
*Bounded*: each wait has a time limit, after a few messages without a reply the run ends, and an
interrupt takes effect at once.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.lookups.spamd import PORT
from smtpd_filters.lookups.stream import ADDRESS
from smtpd_filters.settings import (
    INTEGER,
    LIST,
    SECONDS,
    SWITCH,
    TEXT,
    Settings,
    choice,
    operand,
    option,
)
from smtpd_filters.settings.files import open_file
from smtpd_filters.settings.kind import Kind
from smtpd_filters.settings.quoting import printable, quote

from . import mailboxes
from .learn_rspamd import DATAERR, NOPERM, TEMPFAIL, Controller, Refused, Unreachable
from .mailboxes import Gone, Mail
from .progress import PROGRESS, Progress
from .streams import say
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Protocol, TextIO

    class Daemon(Protocol):
        """What messages are sent to."""

        def learn(self, mail: Mail) -> str:
            """Send a message; return "learned", "known" or "skipped".

            Raises Refused, OSError or Gone.
            """


# sysexits(3); the statuses for a message are in `learn_rspamd`.
OK, USAGE, NOINPUT, CONFIG = 0, 64, 66, 78
#: The precedence of statuses, the most urgent first.
_ORDER = (NOPERM, TEMPFAIL, NOINPUT, DATAERR)
#: How many messages in a row may have no reply before the run ends.
PATIENCE = 3
#: The maximum of `--jobs`; the controller itself has one process.
MAX_JOBS = 64
_BAR = 30


class _File(Kind[str]):
    """A path; an empty one is a file that can't be read, and has the exit status of such a file."""

    metavar = "PATH"
    noun = "a path"

    def parse(self, text: str) -> str:
        return text


class Options(Settings):
    """The messages, what to do with them, and the daemon."""

    kind = operand(
        choice("ham", "spam", "forget", "report", "revoke"),
        required=True,
        help="The class of the messages. With --spamd also: forget what was learned, report as "
        "spam to the services that spamd is configured for, or revoke such a report.",
    )
    files = operand(
        LIST(_File()),
        default=(),
        metavar="FILE",
        help="A message, an mbox, a maildir or a directory of messages; by default a message is "
        "read from the standard input.",
    )
    url = option(
        TEXT,
        default="http://localhost:11334",
        flags=("-url",),
        help="The controller: http://HOST:PORT, https or the path of a socket.",
    )
    password_file = option(
        _File(),
        default=None,
        help="A file whose first line is the controller's password.",
    )
    user = option(
        TEXT,
        default="",
        help="The owner of the mail, if each user has a classifier of their own.",
    )
    spamd = option(
        ADDRESS(PORT),
        default=None,
        help="Teach SpamAssassin's spamd, in place of Rspamd: its host and port, or the path of "
        "its socket. It must have been started with --allow-tell.",
    )
    timeout = option(SECONDS(low=0.001), default=60.0, help="How long to wait for the daemon.")
    jobs = option(
        INTEGER(low=1, high=MAX_JOBS), default=4, help="How many messages to send at a time."
    )
    mbox = option(SWITCH, default=False, help="The standard input is an mbox, not a message.")


class Tally:
    """The results of the messages, counted by all threads."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.counts = dict.fromkeys(("learned", "known", "skipped", "failed"), 0)
        self.statuses: set[int] = set()
        #: Why the run has ended early, or "".
        self.stopped = ""
        self.complaints: list[str] = []
        self._last_cause = ""
        self._in_a_row = 0
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """The number of messages with a result."""
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

        The daemon's cause is shown once for messages in a row.
        """
        with self._lock:
            self.counts["failed"] += 1
            self.statuses.add(status)
            repeated = cause == self._last_cause and status != NOINPUT
            self.complaints.append(f"{name}: {'not learned, same cause' if repeated else cause}")
            self._last_cause = cause
            self._in_a_row = self._in_a_row + 1 if unreachable else 0
            if status == NOPERM or self._in_a_row >= PATIENCE:
                self.stopped = "given up"

    def summary(self) -> str:
        """Return the counts in one line."""
        learned, known, skipped, failed = self.counts.values()
        text = f"{learned} learned, {known} known already, {skipped} skipped, {failed} not learned"
        return f"{text}; {self.stopped}\n" if self.stopped else f"{text}\n"


def run(options: Options, more: list[str]) -> int:
    """Send messages to the daemon; return an exit status of sysexits(3)."""
    names = [*options.files, *more]
    try:
        daemon = _daemon(options)
    except OSError as error:
        _print_error(f"--password-file: {error.filename or quote('')}: {os_reason(error)}")
        return CONFIG
    if not names:
        return _learn_stdin(daemon, mbox=options.mbox)
    wanted = sys.stderr.isatty()
    tally = Tally(mailboxes.count(names) if wanted else None)
    progress = _Progress(tally, wanted=wanted)
    try:
        _learn_all(daemon, mailboxes.messages(names), options.jobs, tally, progress)
    except KeyboardInterrupt:
        tally.stopped = "interrupted"
        raise
    finally:
        progress.clear()
        say(tally.summary())
    return tally.status


def _daemon(options: Options) -> Daemon:
    """Return the daemon; raise ConfigError, or OSError if the password can't be read."""
    _refuse_control("--user", options.user)
    if options.spamd is not None:
        if unused := {"url", "password_file"} & options.given:
            flag = "-url" if "url" in unused else "--password-file"
            raise ConfigError(f"{flag} is for Rspamd: it cannot be combined with --spamd")
        if os.path.isdir(options.spamd.path):  # noqa: PTH112  # paths as text
            place = printable(options.spamd.path)
            raise ConfigError(
                f"--spamd: {place}: a directory, not spamd's socket; write the address of spamd in "
                f"front of it: --spamd 127.0.0.1:{PORT} {place}"
            )
        from .learn_spamd import Teller

        return Teller(options.spamd, options.kind, user=options.user, timeout=options.timeout)
    if options.kind not in ("ham", "spam"):
        raise ConfigError(f"{options.kind} requires --spamd")
    password = _password(options.password_file)
    _refuse_control("--password-file", password)
    return Controller(
        options.url,
        options.kind,
        password=password,
        user=options.user,
        timeout=options.timeout,
    )


def _refuse_control(flag: str, value: str) -> None:
    """Raise ConfigError for a value that can't be in a request; it may be a secret."""
    if any(c < " " or c == "\x7f" for c in value):
        raise ConfigError(f"{flag}: contains a control character")


def _password(name: str | None) -> str:
    """Return the first line of the file; raise OSError if it can't be read or is empty."""
    if name is None:
        return ""
    with open_file(name) as file:
        line = file.readline(4096).rstrip(b"\r\n")
    if not line:
        raise OSError(errno.EINVAL, "the first line is empty", name)
    return line.decode("utf-8", "surrogateescape")


def _learn_stdin(daemon: Daemon, *, mbox: bool) -> int:
    tally = Tally(None if mbox else 1)
    try:
        for mail in mailboxes.piped(_stdin(), mbox=mbox):
            _learn_one(daemon, mail, tally)
            if tally.stopped:
                break
    except OSError as error:
        tally.fail("stdin", error.strerror or str(error), NOINPUT)
    if not tally.done:
        tally.fail("stdin", "not an mbox" if mbox else "an empty message", DATAERR)
    _print_complaints(tally)
    return tally.status


def _stdin() -> BinaryIO:
    stdin: TextIO | None = sys.stdin
    if stdin is None:
        raise OSError(errno.EBADF, "is closed")
    if stat.S_ISDIR(os.fstat(stdin.fileno()).st_mode):
        raise OSError(errno.EISDIR, "is a directory")
    return stdin.buffer


def _learn_one(daemon: Daemon, mail: Mail | OSError, tally: Tally) -> None:
    if isinstance(mail, OSError):
        tally.fail(mail.filename or quote(""), os_reason(mail), NOINPUT)
        return
    try:
        tally.add(daemon.learn(mail))
    except Gone:
        pass  # moved or deleted in the meantime
    except Refused as refused:
        unreachable = isinstance(refused, Unreachable)
        tally.fail(mail.name, str(refused), refused.status, unreachable=unreachable)
    except OSError as error:
        tally.fail(mail.name, os_reason(error), NOINPUT)


def _learn_all(
    daemon: Daemon,
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
                _learn_one(daemon, mail, tally)
        except BaseException as error:  # noqa: BLE001  # raised in the main thread
            failures.append(error)
            tally.stopped = "given up"

    # An interrupt ends the program at once; the daemon drops an incomplete request.
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


def _print_complaints(tally: Tally) -> None:
    complaints, tally.complaints = tally.complaints, []
    for complaint in complaints:
        _print_error(complaint)


def _print_error(complaint: str) -> None:
    sys.stderr.write(f"smtpd-filters: {printable(complaint)}\n")


class _Progress(Progress):
    """The bar, with complaints above it."""

    def __init__(self, tally: Tally, *, wanted: bool) -> None:
        super().__init__(wanted=wanted)
        self._tally = tally

    def tick(self) -> None:
        """Print complaints, and update the bar after its interval."""
        if self._tally.complaints:
            self.clear()
            _print_complaints(self._tally)
        if self.due():
            self.show(bar(self._tally.done, self._tally.total))


def bar(done: int, total: int | None) -> str:
    """Return the progress as a bar."""
    if not total:
        return f"{done} messages"
    done = min(done, total)
    full = _BAR * done // total
    return f"[{'#' * full}{'.' * (_BAR - full)}] {done}/{total} {100 * done // total}%"


VERB = Verb(
    "learn",
    run,
    options=Options,
    description="Send messages to rspamd's controller, or to SpamAssassin's spamd, to learn from. "
    "They are learned as spam or as ham.",
    ending="Exit status, of sysexits(3): 0 if every message is learned, was learned before, or is "
    "skipped: by rspamd as too short or not new, with --spamd above 500 KB; 75 if another try may "
    "help; 65 for a message that can't be learned, 66 for a file that can't be read, 77 for a "
    "wrong password or a spamd without --allow-tell, 64 for an invalid option, 78 for a password "
    "file that can't be read.",
    behind="FILE ...",
    usage=USAGE,
)
