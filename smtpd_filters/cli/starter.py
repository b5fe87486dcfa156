"""The starter of a command of smtpd.conf(5), as smtpd does, to check whether it gets ready.

As under smtpd, the shell runs the command, in the libexec directory unless it has an absolute path,
with the user, the group and the root directory of its line, and with one socket as stdin and
stdout. The command is sent the hand-shake, and its input ends after `register|ready`.
A line that smtpd does not accept is an error, also after `register|ready`.

Only root can become another user; for other users the command has their own rights.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from smtpd_filters.errors import os_reason, user_name
from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.probes import TIMEOUT, Answer
from smtpd_filters.settings import CHECKING, ONLINE, TRAITS
from smtpd_filters.settings.declare import suggest
from smtpd_filters.settings.quoting import printable, quote
from smtpd_filters.supervise.process import LIBEXEC

from .accounts import UnknownError, filters_user
from .own_programs import interpreter_of, uses_package

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, BinaryIO

    from .accounts import Account
    from .smtpd_conf import Program, Table

SHELL = "/bin/sh"
#: The environment of a server.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    CHECKING: "1",
}
#: Bytes that a filter may write to smtpd without a request: a registration takes under 2 KiB.
MAX_OUTPUT = 1 << 17
#: Bytes of a log that are read.
_LOG = 1 << 16
#: A line of a traceback, and files that an author didn't write.
_FRAME = re.compile(r'\s*File "(.+)", line (\d+)')
_LIBRARY = re.compile(r"^<|/lib/python3|/smtpd_filters/")
#: The start of the line with which this package's programs fail at start.
_OURS = re.compile(r"(filter-[\w.-]+|smtpd-filters[\w -]*): ")
#: A first word without characters that are special to the shell.
_PLAIN = re.compile(r"""[^\s'"\\$`;&|<>()*?\[\]#~]+(?=\s|$)""")


#: Run by the interpreter as root: enter a root directory, become a user, and run the shell.
_IN_ROOT = """\
import os, sys
root, uid, gid, shell, *words = sys.argv[1:]
os.chroot(root)
os.chdir("/")
os.setgroups([int(gid)])
os.setgid(int(gid))
os.setuid(int(uid))
os.execv(shell, words)
"""


class _Child:
    """The starter of a child process as another user, perhaps in another root directory."""

    def __init__(self, account: Account | None, root: str) -> None:
        self._prefix: list[str] = []
        # In a session of its own it has no access to root's terminal.
        self._how: dict[str, Any] = {"env": ENVIRONMENT, "cwd": "/", "start_new_session": True}
        self._root = root
        if account is None:
            return
        if root:
            self._prefix = [sys.executable, "-I", "-c", _IN_ROOT]
            self._prefix += [root, str(account.uid), str(account.gid), SHELL]
        else:
            gid = account.gid
            self._how |= {"user": account.uid, "group": gid, "extra_groups": [gid]}

    def start(self, *words: str, **how: Any) -> subprocess.Popen[bytes]:
        """Start the shell as system(3) does; `how` are arguments of Popen."""
        if not self._prefix:
            how["executable"] = SHELL
        return subprocess.Popen([*self._prefix, "sh", "-c", *words], **{**self._how, **how})  # noqa: S603  # as smtpd does

    def unusable(self, path: str) -> str:
        """Return why the user can't run a file, or the shell in the root directory, or ""."""
        if not Path(f"{self._root}{SHELL}").exists():
            return f"chroot {self._root}: no {SHELL} in it, which runs the command"
        if not path:
            return ""
        if not Path(f"{self._root}{path}").exists():
            return f"{path}: No such file or directory{_elsewhere(path) or _near(path, self._root)}"
        words = ('test -f "$1" && test -x "$1"', "sh", path)
        if not self._succeeds(*words):
            return f"{path}: not a file that can be executed"
        return self._unusable_interpreter(path)

    def _unusable_interpreter(self, path: str) -> str:
        """Return why the user can't run the interpreter that a file names, or ""."""
        interpreter = interpreter_of(f"{self._root}{path}")
        if not interpreter or self._succeeds('test -x "$1"', "sh", interpreter):
            return ""
        if not Path(f"{self._root}{interpreter}").exists():
            return f"{path}: its interpreter {interpreter}: No such file or directory"
        target = os.path.realpath(f"{self._root}{interpreter}")
        of = "" if target == f"{self._root}{interpreter}" else f" ({target})"
        return (
            f"{path}: this user can't run its interpreter, {interpreter}{of}; a directory above it "
            "may be closed to others"
        )

    def _succeeds(self, *words: str) -> bool:
        """Return whether the shell's command ends with status 0."""
        return self.start(*words, stdin=subprocess.DEVNULL).wait() == 0


class Conditions(NamedTuple):
    """The conditions under which a filter is tried; the defaults are those of a server."""

    #: Seconds for a filter to get ready.
    ready: float = 30.0
    #: Seconds for a filter to end after the end of its input.
    ending: float = 5.0
    #: Seconds for the system to close the files of killed processes.
    closing: float = 1.0
    #: The directories of commands without a slash.
    libexec: Sequence[str] = LIBEXEC
    #: Whether to start each filter a second time and have it ask its services.
    online: bool = False


class Result(NamedTuple):
    """The result of checking a command."""

    #: Why smtpd would end, or "".
    error: str = ""
    #: Why it was not started, or "".
    untried: str = ""
    #: Whether it was not started because it is not a program of this package.
    foreign: bool = False
    #: The user that ran it.
    user: str = ""
    #: The log of a filter that got ready.
    logged: tuple[str, ...] = ()
    #: Whether a process that it started has left its process group, and so was not killed.
    remains: bool = False
    #: The names of the requests that it has registered for.
    phases: frozenset[str] = frozenset()
    #: What a filter of it does: `signs`, `edits_signed`.
    traits: frozenset[str] = frozenset()
    #: The answers of its services.
    services: tuple[Answer, ...] = ()


def try_program(program: Program, user: str, conditions: Conditions) -> Result:
    """Start a program if it is a filter of this package; else check whether it can be run."""
    if program.chroot and os.geteuid():
        return Result(untried="only root can try it in its chroot")
    try:
        account = _account(program, user)
    except UnknownError as unknown:
        return Result(f"{unknown}: smtpd will not start")
    text = command_line(program.command, conditions.libexec)
    path = _program(text)
    child = _Child(account, program.chroot)
    try:
        result = _try(text, path, child, program.chroot, conditions)
    except OSError as failure:  # the command is too long, say
        result = Result(f"the command can't be run: {os_reason(failure)}")
    return result._replace(user=account.name if account else user_name())


def try_table(table: Table, user: str, conditions: Conditions) -> str:
    """Return why smtpd would end at the start of a table's program, or ""; don't start it.

    That it is missing is known to `smtpd -n` as well, so it can be in any directory of `libexec`.
    """
    known = [f"{each}/table-{table.program}" for each in conditions.libexec if Path(each).is_dir()]
    if not known:
        return ""
    path = next(filter(os.path.exists, known), known[0])
    try:
        if "/" in table.program and not os.path.exists(path):  # noqa: PTH110  # of any length
            hint = 'smtpd takes what follows "proc:" for a name: write NAME:/CONFIGURATION'
            return f"{path}: No such file or directory; {hint}"
        account = filters_user(user) if os.geteuid() == 0 else None
        error = _Child(account, "").unusable(path)
    except UnknownError as unknown:
        return f"{unknown}: smtpd will not start"
    except OSError as failure:  # the name is too long, say
        return f"{path}: {os_reason(failure)}"
    return f"{error} (as {account.name if account else user_name()})" if error else ""


def _try(text: str, path: str, child: _Child, root: str, conditions: Conditions) -> Result:
    """Start a command with this program's file, or only check the file. Raises OSError."""
    if error := child.unusable(path):
        return Result(error)
    if not path:
        return Result(untried="only the shell can expand the program's name")
    if not uses_package(text, path, root):
        text = f"not a filter of this package; {path} can be run"
        return Result(untried=text, foreign=True)
    result = _start(text, child, conditions)
    if conditions.online and not result.error:
        result = result._replace(services=_ask(text, child, conditions))
    return result


def _ask(text: str, child: _Child, conditions: Conditions) -> tuple[Answer, ...]:
    """Start a filter that asks its services and ends; return their answers.

    One more, with a fault, if the filter failed, or didn't end in time.
    """
    began, limit = monotonic(), TIMEOUT + conditions.ready
    with tempfile.TemporaryFile() as log:
        process = child.start(
            f"exec {text}",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**ENVIRONMENT, CHECKING: ONLINE},
        )
        try:
            status = process.wait(limit)
            fault = f"the filter that asks them ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            fault = f"the filter that asks them didn't end within {limit:g} s"
        finally:
            _end(process)
        lines = _lines(log)
        answers = [answer for line in lines if (answer := Answer.parse(line)) is not None]
        if fault:
            last = next((line for line in lines[::-1] if Answer.parse(line) is None), "")
            fault += f": {last}" if last else ""
            answers.append(Answer("services", monotonic() - began, fault))
        return tuple(answers)


def _account(program: Program, user: str) -> Account | None:
    """Return the user to become, or None. Raises UnknownError."""
    as_root = os.geteuid() == 0
    if not (as_root or program.user or program.group):
        return None
    account = filters_user(program.user or user, program.group)
    return account if as_root else None


def command_line(command: str, libexec: Sequence[str]) -> str:
    """Return the command with its program's directory, as smtpd passes it to the shell."""
    if command.startswith("/"):
        return command
    known = [directory for directory in libexec if Path(directory).is_dir()]
    return f"{(known or libexec)[0]}/{command}"


def _elsewhere(path: str) -> str:
    """Return the place of a program of this package that smtpd looks for in another directory."""
    for directory in (Path(sys.argv[0]).parent, Path(sys.executable).parent):
        found = directory.absolute() / Path(path).name
        if found.is_file():
            return f"; its whole path is {found}"
    return ""


def _near(path: str, root: str) -> str:
    """Return the program in the same directory, or of this package, with nearly the same name."""
    prefix, known = "filter-", set()
    for directory in (Path(f"{root}{path}").parent, Path(sys.argv[0]).parent):
        with contextlib.suppress(OSError):
            known |= {each.name.removeprefix(prefix) for each in directory.glob(f"{prefix}*")}
    near = suggest(Path(path).name.removeprefix(prefix), sorted(known))  # the prefix is alike
    return near.replace('"', f'"{prefix}', 1)


def _program(text: str) -> str:
    """Return the program's file; "" if only the shell can expand it."""
    if found := _PLAIN.match(text):
        return found[0]
    if any(char in text for char in "$`"):
        return ""
    try:
        return shlex.split(text)[0]
    except ValueError:
        return ""


def _start(text: str, child: _Child, conditions: Conditions) -> Result:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, tempfile.TemporaryFile() as log:
        with theirs:
            process = child.start(
                f"exec {text}",
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=log,
            )
        talk = _HandShake(ours)
        try:
            error = talk.start(conditions.ready)
            if error in {"", _CLOSED}:
                # The end of input ends the filter, if it hasn't failed already.
                deadline = monotonic() + conditions.ending
                error = talk.end(deadline) or error
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(deadline - monotonic(), 0))
        finally:
            _end(process)
        remains = talk.is_held(conditions.closing)
        told = _lines(log)
    lines = [each for each in told if not each.startswith(TRAITS)]
    traits = [word for each in told if each.startswith(TRAITS) for word in each.split()[2:]]
    if error == _CLOSED:
        reported = [line for line in lines if _OURS.match(line)] or lines
        status = process.returncode
        error = reported[-1] if reported else f"ends with status {status} before it is ready"
        if reported is lines and lines:
            error = f"{_place(lines)}{error}"
    return Result(
        error,
        logged=() if error else tuple(lines),
        remains=remains,
        phases=frozenset(talk.phases),
        traits=frozenset(traits),
    )


_CLOSED = "closed"


class _HandShake:
    """The conversation with a filter until it ends, checked for lines that smtpd refuses."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._smtpd = SmtpdConnection()
        self._oracle = Oracle()
        self._received = 0

    def start(self, timeout: float) -> str:
        """Play smtpd until the filter is ready; return why it isn't, or ""."""
        deadline = monotonic() + timeout
        try:
            self._connection.settimeout(timeout)
            configuration = self._smtpd.configure()
            self._oracle.from_smtpd(configuration)
            self._connection.sendall(configuration)
            while not self._smtpd.ready:
                data = self._receive(deadline)
                if not data:
                    return _CLOSED
                if error := self._check(data):
                    return error
                for _ in self._smtpd.receive(data):
                    pass  # iterating parses it
        except TimeoutError:
            return f"not ready within {timeout:g} s"
        except OSError:
            return _CLOSED
        return ""

    @property
    def phases(self) -> set[str]:
        """The names of the requests that the filter has registered for."""
        return self._smtpd.phases

    def end(self, deadline: float) -> str:
        """End the filter's input and read until it ends; return what is invalid, or ""."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
            while data := self._receive(deadline):
                if error := self._check(data):
                    return error
        except OSError:
            pass  # the deadline has passed, or the filter has ended
        return ""

    def is_held(self, timeout: float) -> bool:
        """Return whether, after the filter was killed, a process still has its stdin or stdout."""
        deadline = monotonic() + timeout
        try:
            while self._receive(deadline):
                pass
        except TimeoutError:
            return True
        except OSError:
            pass
        return False

    def _receive(self, deadline: float) -> bytes:
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv(1 << 16)

    def _check(self, data: bytes) -> str:
        self._received += len(data)
        self._oracle.from_filter(data)
        for complaint in self._oracle.complaints:
            line = quote(complaint.line.decode("utf-8", "replace"))
            return f"invalid output {line}: {complaint.why}"
        if self._received > MAX_OUTPUT:
            return f"writes more than {MAX_OUTPUT} bytes without a request"
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, if still running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _place(lines: Sequence[str]) -> str:
    """Return the innermost place of a traceback that is not a library's: "FILE:LINE: ", or ""."""
    found = [place for line in lines if (place := _FRAME.match(line))]
    own = [each for each in found if not _LIBRARY.search(each[1])]
    for last in (own or found)[-1:]:
        return f"{last[1]}:{last[2]}: "
    return ""


def _lines(log: BinaryIO) -> list[str]:
    """Return the lines written to stderr, printable, without empty ones."""
    log.seek(0)
    text = log.read(_LOG).decode("utf-8", "replace")
    return [printable(line.rstrip()) for line in text.splitlines() if line.strip()]
