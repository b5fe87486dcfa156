"""A recorder that writes sessions to files in the format of `smtpd_filters.recording.format`.

Invariants
----------
*Self-contained files*: a file begins with the hand-shake and contains each of its sessions from
beginning to end, so that it can be replayed. Sessions are interleaved as they passed.
*Bounded*: sessions that begin after a file has reached `max_size` go to the next file; at twice
that size the sessions still open in it are cut off. The newest `max_files` files of this form in
the directory are kept.
*Mail first*: a failure to write, or a disk that hangs, pauses the recording and never delays mail.
A thread writes (`disk_thread`), with a bounded queue. Failures are logged.
*No credentials*: they are masked before anything is written (`redaction`).
"""

from __future__ import annotations

import os
import re
from errno import EACCES
from json import dumps
from time import gmtime, monotonic, strftime

from smtpd_filters.errors import ConfigError, os_reason, uncreated, user_name
from smtpd_filters.protocol.versions import NEWEST, dialect, version
from smtpd_filters.protocol.vocabulary import DATA_LINE, PHASES, REPORTS
from smtpd_filters.runtime.channel import CLOSING
from smtpd_filters.runtime.log import show
from smtpd_filters.settings.flags import is_check

from .disk_thread import Disk, File
from .format import (
    END,
    FROM_FILTER,
    FROM_SMTPD,
    LOOKUP,
    RECORDER,
    REMARK,
    encode_entry,
    encode_meta,
)
from .redaction import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from smtpd_filters.runtime.log import FilterLog

    from .anonymiser import Disguise

#: Bytes kept of a line; smtpd's longest has 65,616.
MAX_LINE = 4 << 20
#: Files open at a time: beyond that the oldest is closed and its sessions are cut off.
MAX_OPEN = 8
#: Sessions at a time, since a session whose end is never reported would be kept forever.
MAX_SESSIONS = 50_000
#: Bytes queued for the disk; beyond that the recording pauses.
MAX_PENDING = 16 << 20
#: Look-ups that are remembered to be in a file; beyond that some are written again.
MAX_LOOKUPS = 20_000
#: Look-ups that are kept until there is a file, such as those at the start of a filter.
MAX_EARLY = 200
#: Seconds without recording after a failure.
PAUSE = 60.0
_OURS = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9]+-[0-9]{6,}\.session")
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")


class Rows:
    """A splitter of bytes into whole lines."""

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial = b""

    def whole(self, data: bytes) -> bytes:
        """Add data; return everything up to the last line end."""
        if self._partial:
            data = self._partial + data
        cut = data.rfind(b"\n") + 1
        self._partial = data[cut : cut + MAX_LINE]
        return data[:cut]


class _Session:
    """A session that is being recorded; `file` is None after it was cut off."""

    __slots__ = ("body_in", "body_out", "file")

    def __init__(self, file: File | None) -> None:
        self.file = file
        #: Whether the lines of the message from smtpd, and from the filter, are in the body.
        self.body_in = self.body_out = False


class Recorder:
    """A tap that writes all traffic to files in `directory`.

    With `body`, bodies of messages are included; with `disguise`, names are pseudonyms;
    with `encode`, which makes JSON of an outcome and its type of records, look-ups are remarks.
    Failures are written to `log`. `max_size` is the size of a file in bytes, `max_files` the
    number of files kept. The other limits are those of this module: open files and sessions at a
    time, bytes queued for the disk, and the seconds to wait for it at the end.
    """

    reports = frozenset(REPORTS)
    phases = frozenset({*PHASES, DATA_LINE})

    def __init__(  # noqa: PLR0913  # one for each setting
        self,
        directory: str,
        log: FilterLog,
        *,
        body: bool = True,
        disguise: Disguise | None = None,
        encode: Callable[[Any, str], object] | None = None,
        max_size: int = 16 << 20,
        max_files: int = 10,
        max_open: int = MAX_OPEN,
        max_sessions: int = MAX_SESSIONS,
        max_pending: int = MAX_PENDING,
        closing: float = CLOSING / 2,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Raise ConfigError if the directory can't be written to."""
        self._directory, self._log, self._clock = directory, log, clock
        self._body, self._disguise = body, disguise
        self._encode = encode
        self._max_size, self._max_files = max_size, max_files
        self._max_open, self._max_sessions = max_open, max_sessions
        self._max_pending, self._closing = max_pending, closing
        self._in, self._out = Rows(), Rows()
        self._handshake: list[bytes] = []
        self._server = ""
        self._ready = False
        #: Lines read together with the hand-shake, as from a pipe; smtpd itself waits.
        self._early: list[bytes] = []
        #: Look-ups from before there was a file, by type and name.
        self._early_lookups: dict[tuple[str, str], bytes] = {}
        self._sessions: dict[bytes, _Session] = {}
        #: Sessions whose end was in the last input: their answers may still follow.
        self._ended: list[bytes] = []
        #: The open files, the newest last; new sessions go to that.
        self._open: list[File] = []
        self._written = 0
        self._paused_until = 0.0
        self._disk = Disk()
        self._check()

    def _check(self) -> None:
        try:
            directory = self._directory
            if not os.path.isdir(directory):  # noqa: PTH112  # pathlib costs start-up
                if is_check() and not os.path.lexists(directory):  # as above
                    directory = os.path.dirname(os.path.abspath(directory))  # noqa: PTH100, PTH120
                    os.stat(directory)  # noqa: PTH116  # it must exist
                else:
                    os.mkdir(directory, 0o700)  # noqa: PTH102
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise ConfigError(f"--record: {self._directory}: not a directory") from None
            raise ConfigError(self._unusable(error)) from None
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigError(self._unusable(PermissionError(EACCES, "not writable")))

    def _unusable(self, error: OSError) -> str:
        """Return the error of an unusable directory, and how to create it."""
        from shlex import quote  # needed only for an error

        how = f"install -d -o {user_name()} -m 700 {quote(self._directory)}"
        return f"--record: {self._directory}: {os_reason(error)}; make it as root: {how}"

    # -- input ---------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Record what smtpd wrote."""
        self._check_failures()
        for session in self._ended:
            self._forget(session)
        self._ended.clear()
        for row in self._in.whole(data).split(b"\n")[:-1]:
            if row.startswith(b"config|"):
                self._record_config(row)
            elif self._ready:
                self._record_input(row)
            else:
                self._early.append(row)
        self._flush()

    def sent(self, data: bytes) -> None:
        """Record what the filter writes."""
        for row in self._out.whole(data).split(b"\n")[:-1]:
            if row.startswith(b"register|"):
                self._record_handshake(FROM_FILTER, row)
                if row == b"register|ready" and not self._ready:
                    self._ready = True
                    for early in self._early:
                        self._record_input(early)
                    self._early.clear()
            else:
                self._record_output(row)
        self._flush()

    def looked_up(self, name: str, rdtype: str, outcome: object) -> None:
        """Record the outcome of a look-up, once in each file; never raises."""
        try:
            if self._encode is None or self._disguise is not None:
                return
            record = dumps([rdtype, name, self._encode(outcome, rdtype)]).encode()
            if self._open:
                self._record_lookup(self._open[-1], (rdtype, name), record)
            elif len(self._early_lookups) < MAX_EARLY:
                self._early_lookups[rdtype, name] = record
        except Exception as error:  # noqa: BLE001  # *Mail first*
            self._log.limited("look-up", "record", error=show(error))

    @staticmethod
    def _record_lookup(file: File, question: tuple[str, str], record: bytes) -> None:
        """Write a look-up, unless the file has it with this outcome."""
        known = hash(record)  # records themselves may be large
        if file.lookups.get(question) != known:
            if len(file.lookups) >= MAX_LOOKUPS:
                file.lookups.clear()
            file.lookups[question] = known
            file.buffer.append(encode_entry(REMARK, LOOKUP + record))

    def close(self) -> None:
        """Close all files, waiting at most `closing` seconds for the disk."""
        while self._open:
            self._open[-1].buffer.append(encode_entry(REMARK, END))
            self._close(self._open[-1])
        if not self._disk.finish(self._closing):
            self._failed(self._directory, "the disk does not keep up")
        self._check_failures()

    def _record_config(self, row: bytes) -> None:
        if row.startswith(b"config|smtpd-version|"):
            self._server = row.split(b"|", 2)[2].decode("utf-8", "replace")
        self._record_handshake(FROM_SMTPD, row)

    def _record_handshake(self, direction: str, row: bytes) -> None:
        if not self._ready:
            disguised = self._disguise.line(row) if self._disguise else row
            if disguised is not None:
                self._handshake.append(encode_entry(direction, disguised))

    def _record_input(self, row: bytes) -> None:
        fields = row.split(b"|", 7)
        if len(fields) < 6:
            return
        event, session = fields[4], fields[5]
        request = fields[0] == b"filter"
        if request and len(fields) > 6 and _token_first(fields[1]):
            session = fields[6]
        state = self._sessions.get(session)
        if state is None or event == b"link-connect":
            state = self._begin(session)
        if event == b"link-disconnect" and not request:
            self._ended.append(session)
        if state.file is None:
            return
        if request and event == b"data-line":
            if self._body is False and len(fields) == 8:
                kept, state.body_in = _is_header(fields[7], in_body=state.body_in)
                if not kept:
                    return
        else:
            if request:
                state.body_in = state.body_out = False
            row = mask(row)
        self._write(state.file, FROM_SMTPD, row)

    def _record_output(self, row: bytes) -> None:
        fields = row.split(b"|", 3)
        state = self._sessions.get(fields[1]) or self._sessions.get(fields[2])
        if state is None or state.file is None:
            return
        if self._body is False and fields[0] == b"filter-dataline":
            kept, state.body_out = _is_header(fields[3], in_body=state.body_out)
            if not kept:
                return
        self._write(state.file, FROM_FILTER, mask(row))

    def _write(self, file: File, direction: str, row: bytes) -> None:
        if self._disguise is not None:
            disguised = self._disguise.line(row)
            if disguised is None:
                direction, disguised = REMARK, b"a line of unknown form was omitted"
            row = disguised
        file.buffer.append(encode_entry(direction, row))

    # -- files ---------------------------------------------------------------------------

    def _begin(self, session: bytes) -> _Session:
        self._forget(session)
        if len(self._sessions) >= self._max_sessions:
            while self._open:
                self._cut(self._open[0], b"cut off: too many sessions that do not end")
            self._sessions.clear()
        file = self._open[-1] if self._open else None
        if file is None or file.size >= self._max_size:
            file = self._next(file)
        state = self._sessions[session] = _Session(file)
        if file is not None:
            file.sessions.add(session)
        return state

    def _forget(self, session: bytes) -> None:
        state = self._sessions.pop(session, None)
        if state is None or state.file is None:
            return
        state.file.sessions.discard(session)
        if not state.file.sessions and state.file is not self._open[-1]:
            self._close(state.file)

    def _next(self, full: File | None) -> File | None:
        """Open another file; return None if that fails."""
        if self._clock() < self._paused_until:
            return None
        if full is not None and not full.sessions:
            self._close(full)
        if len(self._open) >= self._max_open:
            self._cut(self._open[0], b"cut off: too many files are open")
        self._written += 1
        stamp = strftime("%Y%m%dT%H%M%SZ", gmtime())
        name = f"{stamp}-{os.getpid()}-{self._written:06}.session"
        path = os.path.join(self._directory, name)  # noqa: PTH118  # pathlib costs start-up
        if self._disk.pending > self._max_pending:
            self._failed(path, "the disk does not keep up")
            return None
        file = File(path)
        file.buffer += (self._head(), *self._handshake)
        kept = frozenset(file.path for file in self._open)
        self._disk.do(file, lambda: self._prune(stamp, kept))
        self._disk.do(file, file.open)
        self._open.append(file)
        early, self._early_lookups = self._early_lookups, {}
        for question, record in early.items():
            self._record_lookup(file, question, record)
        return file

    def _head(self) -> bytes:
        meta = {
            "server": f"OpenSMTPD {self._server or 'unknown'}",
            RECORDER: "filter-trace",
            "policy": "proceed / echo everything",
            "started": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        }
        if not self._body:
            meta["body"] = "left out"
        if self._disguise:
            meta["names"] = "pseudonyms"
        return encode_meta(meta)

    def _prune(self, now: str, kept: frozenset[str]) -> None:
        """Make room for one more file: delete the oldest, by the time in their names.

        Those in `kept` stay. A file with a time after `now` was named by a clock that was ahead,
        and is deleted first.
        """
        names = sorted(
            filter(_OURS.fullmatch, os.listdir(self._directory)),  # noqa: PTH208
            key=lambda name: (name[: len(now)] <= now, name),
        )
        surplus = len(names) + 1 - self._max_files
        paths = [os.path.join(self._directory, name) for name in names]  # noqa: PTH118
        for path in [path for path in paths if path not in kept][: max(surplus, 0)]:
            os.unlink(path)  # noqa: PTH108

    def _flush(self) -> None:
        """Pass the buffered output to the disk, unless too much is queued."""
        if self._disk.pending > self._max_pending:
            for file in list(self._open):
                file.buffer.clear()
                self._cut(file, b"cut off: the disk does not keep up")
                self._failed(file.path, "the disk does not keep up")
        for file in list(self._open):
            self._write_out(file)
            if file.size >= 2 * self._max_size:
                self._cut(file, b"cut off: the file is full")

    def _write_out(self, file: File) -> None:
        if file.buffer:
            data = b"".join(file.buffer)
            file.buffer.clear()
            file.size += len(data)
            self._disk.do(file, lambda: file.write(data), len(data))

    def _cut(self, file: File, why: bytes) -> None:
        """Close a file with sessions still open; nothing more of them is recorded."""
        file.buffer.append(encode_entry(REMARK, why))
        self._close(file)

    def _close(self, file: File) -> None:
        self._write_out(file)
        self._drop(file)

    def _drop(self, file: File) -> None:
        for session in file.sessions:
            if session in self._sessions:
                self._sessions[session].file = None
        self._open.remove(file)
        self._disk.do(file, file.close)

    def _check_failures(self) -> None:
        """Process the failures of the disk."""
        for file, error in self._disk.failures():
            why = uncreated(error) if isinstance(error, OSError) else show(error)
            self._failed(file.path, why)
            if file in self._open:
                self._drop(file)

    def _failed(self, path: str, error: str) -> None:
        self._paused_until = self._clock() + PAUSE
        self._log.limited("record", "recording paused", file=path, error=error)


def _token_first(spoken: bytes) -> bool:
    return dialect(version(spoken.decode("latin-1")) or NEWEST).token_first


def _is_header(line: bytes, *, in_body: bool) -> tuple[bool, bool]:
    """Return whether a line is kept when bodies are left out, and whether the body follows."""
    if line == b".":
        return True, False
    if in_body:
        return False, True
    if not line:
        return True, True
    kept = line[:1] in (b" ", b"\t") or _FIELD.match(line) is not None
    return kept, not kept
