"""The log, written to stderr, which smtpd copies to its own log.

Invariants
----------
*One line*: an event is one line of the form `SESSION NAME EVENT key=value ...`, in printable ASCII
and of bounded length, so that `grep SESSION maillog` shows the history of a session.
*Never blocks*: logging neither blocks nor raises; lines that can't be written are counted and
dropped.
*Limited*: an event that can recur with every mail is logged once per kind and interval, with a
count. Each further session affected by a failure gets a short line for each phase.
*No credentials*: the argument of the `auth` phase is never logged.
"""

from __future__ import annotations

import os
import select
from time import monotonic

from smtpd_filters.protocol.decisions import Exemption, Points, show_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.session import Session

#: Characters of a line. A ready pipe accepts as many without blocking (PIPE_BUF is 4,096 on Linux);
#: smtpd's own lines are cut at 4,096 as well.
MAX_LINE = 4000
#: Characters of an exception's text.
MAX_TEXT = 500
#: Seconds in which a kind of line is logged once.
INTERVAL = 60.0
#: Kinds that are distinguished; any further ones count as one kind.
MAX_KINDS = 1000
#: Failures remembered by session; after that a session may get a second line.
MAX_FAILURES = 4096
#: Characters of the cause in the short line of a session whose details are held back.
MAX_AGAIN = 60
#: The reason in such a short line.
AGAIN = "failed as logged before"
#: How the reason of the decision on an exempt client begins.
EXEMPT_FOR = "exempt: "
#: The result when a filter lets a message pass that it has changed.
EDIT = "edit"
_CONTROLS = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_PLAIN = frozenset(map(chr, range(0x21, 0x7F))) - frozenset('"\\=')


def quote(value: str) -> str:
    """Return a value for `key=value`: unchanged if it is one plain word, otherwise quoted."""
    if value and _PLAIN.issuperset(value):
        return value
    safe = value.replace("\\", "\\\\").replace('"', '\\"')
    if not (safe.isascii() and safe.isprintable()):
        safe = "".join(c if " " <= c <= "~" else escaped(c) for c in safe)
    return f'"{safe}"'


def escaped(char: str) -> str:
    r"""Escape a character; from `\x80` to `\xff` are bytes that aren't UTF-8."""
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code >= 0x80:
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    # Not by the codec of this form: the interpreter would import it now, which may fail.
    return _CONTROLS.get(char) or f"\\x{code:02x}"


def show(error: object) -> str:
    """Return the text of an exception or a value, of bounded length; never raise."""
    try:
        return str(error)[:MAX_TEXT]
    except BaseException:  # noqa: BLE001  # a policy's own exception may fail even at this
        return "(no text)"


_PACKAGE = os.path.dirname(__file__).removesuffix("runtime")  # noqa: PTH120  # pathlib costs start-up
#: The beginning of the paths of the interpreter's own modules for imports.
_IMPORTS = "<frozen importlib."
#: The beginnings of the paths of what calls filters.
_FRAMEWORK = tuple(f"{_PACKAGE}{each}" for each in ("runtime/", "chain/", "guard.py"))


def fold_traceback(error: BaseException, *, text: bool = True) -> str:
    """Return an exception and its traceback in one line, innermost frame last.

    The framework's frames before those of a filter are left out, and so are those of imports.
    """
    if isinstance(error, MemoryError):
        _release(error)
    frames: list[str] = []
    before = 0
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(_IMPORTS):
            trace = trace.tb_next
            continue
        if before == len(frames) and code.co_filename.startswith(_FRAMEWORK):
            before += 1
        frames.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}:{code.co_name}")  # noqa: PTH119  # pathlib costs start-up
        trace = trace.tb_next
    kind = type(error).__name__
    what = f"{kind}: {show(error)}" if text else kind
    if "'coroutine'" in what:
        what += " (is an await missing?)"
    if before < len(frames):
        frames = frames[before:]
    return f"{what} [{' > '.join(frames[-8:])}]"


def _release(error: BaseException) -> None:
    """Release the local variables of the frames that ran out of memory."""
    trace = error.__traceback__
    while trace is not None:
        try:
            trace.tb_frame.clear()
        except RuntimeError:  # the frame still runs
            pass
        trace = trace.tb_next


class Log:
    """The log of one process.  With `verbose` plain proceeds are logged, too."""

    def __init__(
        self, *, fd: int = 2, verbose: bool = False, clock: Callable[[], float] = monotonic
    ) -> None:
        self.verbose = verbose
        #: Whether a journal gets the decisions too, with the reasons of exemptions.
        self.journaled = False
        #: Number of lines that could not be written.
        self.dropped = 0
        self._fd = fd
        self._clock = clock
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._since: dict[str, float] = {}
        self._held: dict[str, int] = {}
        #: Failures that have a line: session, filter, event and result.
        # Not a set: see FilterConnection._sessions.
        self._failures: dict[tuple[str, ...], None] = {}

    def line(self, text: str) -> None:
        """Write one line."""
        if not (text.isascii() and text.isprintable()):
            text = "".join(c if " " <= c <= "~" else escaped(c) for c in text)
        data = text[:MAX_LINE].encode() + b"\n"
        try:
            if self._poll.poll(0):
                os.write(self._fd, data)
            else:
                self.dropped += 1
        except (OSError, RuntimeError, MemoryError):
            # RuntimeError: another thread is polling.
            self.dropped += 1

    def event(self, name: str, event: str, session: str = "", /, **values: str) -> None:
        """Write `SESSION NAME EVENT key=value ...`."""
        try:
            words = [session] if session else []
            words += [name, event]
            words += [f"{key}={quote(values[key])}" for key in values if values[key]]
            self.line(" ".join(words))
        except MemoryError:
            self.dropped += 1

    def limited(
        self, kind: str, name: str, event: str, session: str = "", /, **values: str
    ) -> bool:
        """Write an event once per kind and interval; the next line has the number of repetitions.

        Return False if the line was held back, True if it was written or lost for lack of memory.
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
        self.event(name, event, session, **values)
        return True

    def failure(
        self,
        kind: str,
        name: str,
        event: str,
        session: str,
        brief: Mapping[str, str],
        **details: str,
    ) -> None:
        """Log a failure: the details once per kind and interval, and each affected session.

        `brief` is the result of the request. `details` are the cause, and optionally `reply`, the
        reply to the client. A session whose details are held back gets one line for each filter,
        phase and result, with the beginning of the cause.
        """
        logged = self.limited(kind, name, event, session, **brief, **details)
        try:
            known = (session, name, event, *brief.values())
            if known in self._failures:
                return
            if len(self._failures) >= MAX_FAILURES:
                self._failures.clear()
            self._failures[known] = None
        except MemoryError:
            self.dropped += 1
            return
        if not logged:
            reply = details.pop("reply", "")
            short = {
                "cause" if key == "reason" else key: details[key][:MAX_AGAIN] for key in details
            }
            self.event(name, event, session, **brief, reason=AGAIN, **short, reply=reply)

    def defect(self, who: str, what: str, session: str, error: str) -> None:
        """Note an error in a filter's code, which is logged besides: for a test kit."""

    def _held_back(self, kind: str) -> int | None:
        """Return how many lines of this kind were held back; None to hold this one back, too."""
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
        """Log an exception that the interpreter would write to stderr, in many lines."""
        text = fold_traceback(error.exc_value) if error.exc_value is not None else "unknown"
        self.limited("unraisable", "smtpd-filters", "unraisable exception", error=text)

    def _forget(self, now: float) -> None:
        """Forget the kinds that did not recur within the interval."""
        for kind in [each for each in self._since if now - self._since[each] >= INTERVAL]:
            del self._since[kind]
            self._held.pop(kind, None)

    def verdict(  # noqa: PLR0913  # the fields of the line
        self,
        session: Session,
        name: str,
        phase: str,
        decision: Decision,
        seconds: float,
        *,
        dry: bool = False,
        edited: bool = False,
    ) -> None:
        """Log a decision: the filter, the phase, the result, the reason and the time taken.

        `edited` is whether the filter has changed the message.
        """
        self.event(
            name,
            phase,
            session.id,
            **outcome(decision, dry=dry, edited=edited),
            reason=decision.reason,
            # At `auth` a rewritten parameter is a credential, and a reply may repeat it.
            reply="" if phase == "auth" else decision.text,
            took=f"{seconds * 1000:.1f}ms",
        )


class FilterLog:
    """The log of one filter: lines under its name, within the limits of the process's log."""

    __slots__ = ("_keeps", "_log", "_name", "verbose")

    def __init__(self, log: Log, name: str) -> None:
        self._log, self._name = log, name
        self._keeps = False
        #: Whether plain proceeds are logged; their reasons are needed only then.
        self.verbose = log.verbose

    @property
    def keeps_exemptions(self) -> bool:
        """Whether the log, a journal or the rules of a chain get why clients are exempt."""
        return self._keeps or self._log.verbose or self._log.journaled

    def keep_exemptions(self) -> None:
        """Keep why clients are exempt, because the rules of a chain act on it."""
        self._keeps = True

    def event(self, event: str, session: str | Session = "", /, **values: object) -> None:
        """Write `SESSION NAME EVENT key=value ...`; `session` is the session or its id.

        Never block and never raise. A value is written as its text; None and values with an empty
        text are left out. A `session` that is neither is left out as well.
        """
        text: object = event  # a filter may pass anything
        text = text if isinstance(text, str) else show(text)
        self._log.event(self._name, text, _id_of(session), **_texts(values))

    def limited(
        self, kind: str, event: str, session: str | Session = "", /, **values: object
    ) -> None:
        """Write an event once per `kind` and minute; the next line has a count of repetitions."""
        name = self._name
        self._log.limited(f"{name} {kind}", name, event, _id_of(session), **_texts(values))

    def failure(
        self, kind: str, event: str, session: str, brief: Mapping[str, str], **details: str
    ) -> None:
        """Log a failure as `Log.failure` does."""
        self._log.failure(f"{self._name} {kind}", self._name, event, session, brief, **details)

    def defect(self, what: str, session: str | Session, error: str) -> None:
        """As `Log.defect`."""
        self._log.defect(self._name, what, _id_of(session), error)

    def verdict(  # noqa: PLR0913  # the fields of the line
        self,
        session: Session,
        phase: str,
        decision: Decision,
        seconds: float,
        *,
        dry: bool = False,
        edited: bool = False,
    ) -> None:
        """Log a decision as `Log.verdict` does."""
        self._log.verdict(session, self._name, phase, decision, seconds, dry=dry, edited=edited)


def _id_of(session: str | Session) -> str:
    if isinstance(session, str):
        return session
    found = getattr(session, "id", "")
    return found if isinstance(found, str) else ""


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else show(value)
        for key in values
        for value in (values[key],)
        if value is not None
    }


def exemption(decision: Decision) -> str:
    """Return why a client is exempt, if that is why its command is let pass, or ""."""
    if type(decision.reason) is Exemption and decision.verb in {"proceed", "bypass"}:
        return decision.reason.removeprefix(EXEMPT_FOR)
    return ""


def outcome(decision: Decision, *, dry: bool, edited: bool = False) -> dict[str, str]:
    """Return the result of a request for the log; on a dry run also the suppressed one.

    A decision to proceed is `EDIT` if the message was `edited`.
    """
    if type(decision) is Points:
        points = "" if dry else show_points(decision.thousandths)
        would = decision.instead or ("points" if dry else "")
        return {"result": "proceed", "would": would, "points": points}
    verb = EDIT if edited and decision.verb == "proceed" else decision.verb
    if dry and verb != "proceed":
        return {"result": "proceed", "would": verb}
    return {"result": verb}
