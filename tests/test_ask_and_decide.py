"""The two ways to ask a handler have one result."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters import (
    JUNK,
    PROCEED,
    Disconnect,
    Filter,
    Junk,
    Proceed,
    Reject,
    Rewrite,
    Session,
)
from smtpd_filters.errors import UnavailableError
from smtpd_filters.guard import Guard
from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from smtpd_filters.filter import OnError

SAID = (
    *(PROCEED, JUNK, Reject("550 5.7.1 No"), Disconnect("421 4.7.0 Go"), Rewrite("a@b.example")),
    *(Rewrite("two words"), PROCEED.because("exempt"), None, "proceed", ValueError("wrong")),
    *(UnavailableError("no answer", status="4.4.3"), SystemExit(3), MemoryError()),
)


class Says(Filter):
    """Does what the test wants."""

    name = "says"
    does: Any = PROCEED

    def _act(self) -> Any:
        if isinstance(self.does, BaseException):
            raise self.does.with_traceback(None)  # of the call before
        return self.does

    def helo(self, session: Session, identity: str) -> Proceed | Junk | Reject | Rewrite:
        del session, identity
        return self._act()  # type: ignore[no-any-return]

    def auth(self, session: Session, credentials: str) -> Proceed | Junk | Reject | Rewrite:
        del session, credentials
        return self._act()  # type: ignore[no-any-return]

    def data(self, session: Session) -> Proceed | Junk | Reject | Disconnect:
        del session
        return self._act()  # type: ignore[no-any-return]


class Kept(Log):
    """A log whose lines are kept."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__(verbose=verbose)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        # How long it took is not the same twice.
        self.lines.append(text.partition(" took=")[0])


@given(
    handler=st.sampled_from(("helo", "auth", "data")),
    does=st.sampled_from(SAID),
    on_error=st.sampled_from(("proceed", "junk", "tempfail")),
    verbose=st.booleans(),
    dry=st.booleans(),
)
@settings(deadline=None)
def test_decide_and_ask_have_one_result(
    handler: str, does: object, on_error: OnError, verbose: object, dry: object
) -> None:
    filter_ = Says()
    filter_.does, filter_.dry_run = does, bool(dry)
    results = []
    for way in ("ask", "decide"):
        log = Kept(verbose=bool(verbose))
        filter_.log = FilterLog(log, filter_.name)
        guard = Guard(filter_, handler, on_error, 5.0, Watchdog())
        session = Session(b"7641df9700000001")
        if way == "decide":
            decision = guard.decide(session, b"argument")
        else:
            decision = guard.ask(session, *(["argument"] if guard.argument else []))
        assert guard.watchdog.running == 0.0
        # The innermost frame names the place of an error, whichever of the two called the handler.
        lines = [re.sub(r"guard\.py:\d+:(ask|decide)", "guard.py", line) for line in log.lines]
        results.append((decision, lines))
    assert results[0] == results[1]
