"""What is written to stderr, which is smtpd's log.

Law
---
1. A line is one line: ``SESSION NAME EVENT key=value ...``, printable ASCII, of bounded length,
   so that ``grep SESSION maillog`` tells one story.
2. Logging never blocks and never fails: what the log does not take is counted and dropped.
3. What can recur with every mail is logged once per kind and interval, with a count; a failure
   leaves a short line for each phase of each further session that it affects.
4. Never a credential.  The ``auth`` phase's parameter does not come here.
"""

from __future__ import annotations

import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.session import Session

#: A pipe that is ready takes this much without blocking (POSIX: _POSIX_PIPE_BUF is 512, PIPE_BUF
#: is 4,096 on Linux); smtpd's own lines end at 4,096 as well.
MAX_LINE = 4000
#: Characters of an exception's text.
MAX_TEXT = 500
#: Seconds for which a kind of line is logged once.
INTERVAL = 60.0
#: Kinds that are told apart; beyond, all are one.
MAX_KINDS = 1000
#: Failures of sessions that are remembered; beyond, a session may have a second line.
MAX_FAILURES = 4096
#: Characters of the cause in the line of a session in which the details are held back.
MAX_AGAIN = 60
#: The reason in such a line.
AGAIN = "failed as logged before"
_PLAIN = frozenset(map(chr, range(0x21, 0x7F))) - frozenset('"\\=')


def quote(value: str) -> str:
    """A value for ``key=value``: as it is when it is one plain word, else in quotes."""
    if value and _PLAIN.issuperset(value):
        return value
    safe = value.replace("\\", "\\\\").replace('"', '\\"')
    if not (safe.isascii() and safe.isprintable()):
        safe = "".join(c if " " <= c <= "~" else _escape(c) for c in safe)
    return f'"{safe}"'


def _escape(char: str) -> str:
    """A byte that was no UTF-8 shows as the byte it was."""
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def show(error: object) -> str:
    """The text of an exception or a value, of bounded length, whatever it is."""
    try:
        return str(error)[:MAX_TEXT]
    except BaseException:  # noqa: BLE001  # a policy's own exception may fail even at this
        return "(no text)"


def fold_traceback(error: BaseException, *, text: bool = True) -> str:
    """An exception with where it came from, in one line: innermost frame last."""
    if isinstance(error, MemoryError):
        _release(error)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}:{code.co_name}")  # noqa: PTH119  # pathlib costs start-up
        trace = trace.tb_next
    kind = type(error).__name__
    what = f"{kind}: {show(error)}" if text else kind
    return f"{what} [{' > '.join(frames[-8:])}]"


def _release(error: BaseException) -> None:
    """Let go of what the frames hold that ran out of memory."""
    trace = error.__traceback__
    while trace is not None:
        try:
            trace.tb_frame.clear()
        except RuntimeError:  # it still runs
            pass
        trace = trace.tb_next


class Log:
    """The log of one process.  ``verbose`` logs plain proceeds too."""

    def __init__(
        self, *, fd: int = 2, verbose: bool = False, clock: Callable[[], float] = monotonic
    ) -> None:
        self.verbose = verbose
        #: Lines that the log did not take.
        self.dropped = 0
        self._fd = fd
        self._clock = clock
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._since: dict[str, float] = {}
        self._held: dict[str, int] = {}
        #: Whose failures in which sessions are in the log.
        self._failures: set[tuple[str, ...]] = set()

    def line(self, text: str) -> None:
        """Write one line."""
        if not (text.isascii() and text.isprintable()):
            text = "".join(c if " " <= c <= "~" else _escape(c) for c in text)
        data = text[:MAX_LINE].encode() + b"\n"
        try:
            if self._poll.poll(0):
                os.write(self._fd, data)
            else:
                self.dropped += 1
        except (OSError, RuntimeError, MemoryError):
            # RuntimeError: another thread is at it.
            self.dropped += 1

    def event(self, who: str, what: str, session: str = "", /, **values: str) -> None:
        """Write ``SESSION WHO WHAT key=value ...``."""
        try:
            words = [session] if session else []
            words += [who, what]
            words += [f"{key}={quote(value)}" for key, value in values.items() if value]
            self.line(" ".join(words))
        except MemoryError:
            self.dropped += 1

    def limited(self, kind: str, who: str, what: str, session: str = "", /, **values: str) -> bool:
        """As `event`, once per kind and interval; the next one says how many there were.

        Returns whether the line was written, or lost for lack of memory: False when it was held
        back.
        """
        try:
            held = self._held_back(kind[:MAX_TEXT])
        except MemoryError:
            self.dropped += 1
            return True
        if held is None:
            return False
        if held:
            values["repeated"] = str(held)
        self.event(who, what, session, **values)
        return True

    def failure(
        self, kind: str, who: str, what: str, session: str, brief: Mapping[str, str], **why: str
    ) -> None:
        """Log a failure: the details once per kind and interval, and each session it affects.

        ``brief`` says what became of the request, ``why`` what went wrong, and perhaps ``reply``
        what the client was told.  A session in which the details are held back gets one line for
        each filter, phase and result, with the beginning of what went wrong.
        """
        logged = self.limited(kind, who, what, session, **brief, **why)
        try:
            known = (session, who, what, *brief.values())
            if known in self._failures:
                return
            if len(self._failures) >= MAX_FAILURES:
                self._failures.clear()
            self._failures.add(known)
        except MemoryError:
            self.dropped += 1
            return
        if not logged:
            reply = why.pop("reply", "")
            short = {
                "cause" if key == "reason" else key: text[:MAX_AGAIN] for key, text in why.items()
            }
            self.event(who, what, session, **brief, reason=AGAIN, **short, reply=reply)

    def _held_back(self, kind: str) -> int | None:
        """How many lines of this kind were held back before this one; None to hold it back, too."""
        now = self._clock()
        if kind not in self._since and len(self._since) >= MAX_KINDS:
            self._forget(now)
            if len(self._since) >= MAX_KINDS:
                kind = ""
        since = self._since.get(kind)
        if since is not None and now - since < INTERVAL:
            self._held[kind] = self._held.get(kind, 0) + 1
            return None
        self._since[kind] = now
        return self._held.pop(kind, 0)

    def unraisable(self, error: Any) -> None:
        """Take what the interpreter itself would write to stderr, in many lines."""
        what = fold_traceback(error.exc_value) if error.exc_value is not None else "unknown"
        self.limited("unraisable", "smtpd-filters", "an error that nobody could catch", error=what)

    def _forget(self, now: float) -> None:
        """Make room: a kind that did not recur within the interval is new when it does."""
        for kind in [kind for kind, since in self._since.items() if now - since >= INTERVAL]:
            del self._since[kind]
            self._held.pop(kind, None)

    def verdict(  # noqa: PLR0913  # what a verdict is made of
        self,
        session: Session,
        who: str,
        phase: str,
        decision: Decision,
        seconds: float,
        *,
        dry: bool = False,
    ) -> None:
        """Say who decided what, at which phase, why, and how long it took."""
        self.event(
            who,
            phase,
            session.id,
            **outcome(decision, dry=dry),
            reason=decision.reason,
            # There a rewritten parameter is a credential, and a reply may repeat it.
            reply="" if phase == "auth" else decision.text,
            took=f"{seconds * 1000:.1f}ms",
        )


class FilterLog:
    """The log of one filter: lines under its name, within the limits of the process's log."""

    __slots__ = ("_log", "_name")

    def __init__(self, log: Log, name: str) -> None:
        self._log, self._name = log, name

    @property
    def verbose(self) -> bool:
        """Whether plain proceeds are logged; their reasons are of use only then."""
        return self._log.verbose

    def event(self, what: str, session: str | Session = "", /, **values: object) -> None:
        """Write ``SESSION NAME WHAT key=value ...``; ``session`` is the session or its id.

        Never blocks and never raises.  A value is written as its text; None and those whose text
        is empty are left out.
        """
        self._log.event(self._name, what, _id_of(session), **_texts(values))

    def limited(
        self, kind: str, what: str, session: str | Session = "", /, **values: object
    ) -> None:
        """As `event`, once per ``kind`` and minute; the next line says how many there were."""
        name = self._name
        self._log.limited(f"{name} {kind}", name, what, _id_of(session), **_texts(values))

    def failure(
        self, kind: str, what: str, session: str, brief: Mapping[str, str], **why: str
    ) -> None:
        """As `Log.failure`."""
        self._log.failure(f"{self._name} {kind}", self._name, what, session, brief, **why)

    def verdict(
        self, session: Session, phase: str, decision: Decision, seconds: float, *, dry: bool = False
    ) -> None:
        """As `Log.verdict`."""
        self._log.verdict(session, self._name, phase, decision, seconds, dry=dry)


def _id_of(session: str | Session) -> str:
    return session if isinstance(session, str) else session.id


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else show(value)
        for key, value in values.items()
        if value is not None
    }


def outcome(decision: Decision, *, dry: bool) -> dict[str, str]:
    """What became of a request, and on a dry run what would have."""
    if dry and decision.verb != "proceed":
        return {"result": "proceed", "would": decision.verb}
    return {"result": decision.verb}
