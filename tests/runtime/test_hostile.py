"""Misbehaving policies: smtpd gets a legal answer in time, and the process stays up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.handlers import CONTENT
from smtpd_filters.protocol.credentials import SPOILT
from smtpd_filters.protocol.vocabulary import PHASES
from tests import hostile_filter as hostile
from tests.effort import some
from tests.runtime.process import FilterProcess, sid

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULE = "tests.hostile_filter"
BODY = [b"Subject: x", b"From: a@example.org", b"", b"body", b"..", b"end"]
ARGUMENTS = {
    "helo": b"mx.example.org",
    "ehlo": b"mx.example.org",
    "auth": b"PLAIN AGEAcGFzc3dvcmQ=",
    "mail-from": b"a@example.org",
    "rcpt-to": b"b@example.org",
    "noop": b"",
}
#: The steps of a session; a message follows `data`.
STEPS = ("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data")
LAST_STEPS = ("rset", "noop", "quit")
MODES = [
    (mode, later)
    for mode in hostile.MODES
    for later in (False, True)
    if later or mode not in hostile.NEEDS_LOOP
]
IDS = [f"{mode}{'-async' if later else ''}" for mode, later in MODES]


def deadline(mode: str) -> str:
    """Short where it has to pass; where it must not, it doesn't on a busy machine."""
    if mode == hostile.LEAK_BLOCKING_TASK:  # it has to pass, but not before there is an answer
        return "2"
    return "0.2" if mode in hostile.SLOW else "30"


def start(mode: str, *flags: str, later: bool, on_error: str = "tempfail") -> FilterProcess:
    argv = ["-m", MODULE, "--mode", mode, "--on-error", on_error, "--deadline", deadline(mode)]
    argv += flags
    return FilterProcess([*argv, *(["--async"] if later else [])])


def expected(mode: str, phase: str, on_error: str) -> bytes:
    """Return the expected answer."""
    legal = hostile.MODES[mode] == hostile.PROCEEDS
    # At most phases junk is a decision, which a handler that says that it proceeds may not make.
    return PHASES[phase].fallbacks["proceed" if legal else on_error].wire


def ask(process: FilterProcess, phase: str, session: bytes) -> bytes:
    said = process.ask(phase, session, ARGUMENTS.get(phase, b""))
    return said.verb + (b"|" + said.argument if said.argument else b"")


def play(process: FilterProcess, session: bytes) -> dict[str, bytes]:
    """Run a whole session; return the answers, and under `message` the message returned."""
    process.connect(session)
    said = {step: ask(process, step, session) for step in STEPS}
    process.report("tx-begin", session, b"1ef1c203")
    process.report("tx-mail", session, b"1ef1c203", b"ok", b"a@example.net")
    back = process.message(session, BODY)
    said["message"] = b"\n".join(back)
    said["commit"] = ask(process, "commit", session)
    process.report("tx-reset", session, b"1ef1c203")
    said.update({step: ask(process, step, session) for step in LAST_STEPS})
    process.report("link-disconnect", session)
    return said


def places(mode: str, *, later: bool) -> Sequence[str]:
    """Where it is tried: everywhere, but for what takes long and was tried by plain handlers."""
    if later and mode in hostile.SLOW and mode not in hostile.NEEDS_LOOP:
        return ("connect", "rcpt-to", "headers")
    return hostile.PLACES


@pytest.mark.parametrize(("mode", "later"), some(MODES), ids=some(IDS))
def test_at_every_phase(mode: str, later: bool) -> None:  # noqa: FBT001
    where = places(mode, later=later)
    with start(mode, "--phase", *where, later=later).hand_shake() as process:
        said = play(process, sid(1))
        message = said.pop("message")
        hit = {*where, "commit"}  # where a message is refused
        wanted = {
            phase: expected(mode, phase, "tempfail") if phase in hit else b"proceed"
            for phase in said
        }
        if wanted["auth"].startswith(b"reject|"):  # given later, since smtpd would log credentials
            wanted |= {"auth": SPOILT.wire, "mail-from": wanted["auth"]}
        assert said == wanted
        assert message.endswith(b"\n\nbody\n..\nend")
        if mode != "header-break":
            assert message == b"\n".join(BODY)
        if mode == hostile.LEAK_BLOCKING_TASK:
            process.until_logged("OverdueError")
        # The next one is served; what went before has not gone wrong for good.
        process.connect(sid(2))
        assert ask(process, "rcpt-to", sid(2)) == expected(mode, "rcpt-to", "tempfail")
        process.finish()
    assert "Traceback" not in process.last_words


@pytest.mark.parametrize("mode", some(hostile.MODES))
def test_in_a_first_step(mode: str) -> None:
    """Which is taken by hand; where that is, makes no difference."""
    where = ("mail-from", "headers")
    # It is no task yet, and so is not among those that are cancelled.
    on_error = "proceed" if mode == "cancel-all" else "tempfail"
    with start(mode, "--first-step", "--phase", *where, later=False).hand_shake() as process:
        said = play(process, sid(1))
        assert said["mail-from"] == expected(mode, "mail-from", on_error)
        assert said["commit"] == expected(mode, "commit", on_error)
        if mode == hostile.LEAK_BLOCKING_TASK:
            process.until_logged("OverdueError")
        process.connect(sid(2))
        assert ask(process, "mail-from", sid(2)) == expected(mode, "mail-from", on_error)
        process.finish()
    assert "Traceback" not in process.last_words


def test_the_kit_has_every_phase() -> None:
    assert set(hostile.PLACES) == PHASES.keys() | CONTENT.keys()


@pytest.mark.parametrize("place", ["connect", "commit", "headers", "message"])
def test_at_one_phase_only(place: str) -> None:
    with start("raise", "--phase", place, later=False).hand_shake() as process:
        at = "commit" if place in CONTENT else place
        registered = {at, "data-line"} if place in CONTENT else {at}
        assert process.smtpd.phases == registered
        process.finish()


@pytest.mark.parametrize("later", [False, True])
def test_with_proceed_on_errors_mail_is_delivered(later: bool) -> None:  # noqa: FBT001
    with start("raise", later=later, on_error="proceed").hand_shake() as process:
        said = play(process, sid(1))
        assert said.pop("message") == b"\n".join(BODY)
        assert set(said.values()) == {b"proceed"}
        process.finish()
