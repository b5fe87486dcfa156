"""Registrations of programs: checked, completed, and compared with the one with smtpd."""

from __future__ import annotations

import pytest

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES, REPORTS
from smtpd_filters.supervise.registration import NEEDED, Registered, Registration


def registration(*names: str) -> Registration:
    made = Registration()
    for name in names:
        assert not made.add(f"register|{name}".encode())
    return made


def told(*names: str, announced: tuple[str, ...] = ("smtp-in",)) -> list[str]:
    lines = Registered(registration(*names).entries, announced).lines()
    assert lines[-1] == b"register|ready\n"
    return [line.decode().removeprefix("register|").strip() for line in lines[:-1]]


TRACKING = [f"report|smtp-in|{name}" for name in NEEDED]


def test_sessions_are_tracked_whatever_the_program_registers() -> None:
    assert told() == TRACKING
    assert told("report|smtp-in|tx-reset", "filter|smtp-in|helo") == [
        *TRACKING,
        "filter|smtp-in|helo",
    ]


def test_commit_comes_with_data_line() -> None:
    lines = ["filter|smtp-in|data-line", "filter|smtp-in|commit"]
    assert told(lines[0]) == [*TRACKING, *lines]


def test_nothing_is_registered_for_a_subsystem_that_is_not_announced() -> None:
    assert told("report|smtp-out|link-connect", "report|smtp-in|tx-mail") == [
        *TRACKING,
        "report|smtp-in|tx-mail",
    ]
    both = told("report|smtp-out|tx-mail", announced=("smtp-in", "smtp-out"))
    assert "report|smtp-out|link-disconnect" in both


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"ready",
        b"filter-result|1|1|proceed",
        b"register",
        b"register|report|smtp-in|nothing",
        b"register|report|stats|link-connect",
        b"register|filter|smtp-out|connect",
        b"register|filter|smtp-in|link-connect",
        b"register|filter|smtp-in|connect\r",
        b"register|ready|x",
    ],
)
def test_lines_that_smtpd_exits_on(line: bytes) -> None:
    with pytest.raises(ValueError, match="registration"):
        Registration().add(line)


def test_all() -> None:
    lines = b"".join(Registered.all({"smtp-in", "smtp-out"}).lines())
    oracle = Oracle()
    oracle.from_smtpd(SmtpdConnection().configure(subsystems=("smtp-in", "smtp-out")))
    oracle.from_filter(lines)
    oracle.finish()
    oracle.verify()
    everything = registration(
        "report|smtp-in|*",
        *(f"filter|smtp-in|{name}" for name in (*PHASES, "data-line", "help")),
        *(f"report|smtp-out|{name}" for name in REPORTS),
    )
    assert (
        Registered.all({"smtp-in", "smtp-out"}).missing(everything, {"smtp-in", "smtp-out"}) == []
    )
    assert Registered.all({"smtp-in"}).missing(everything, {"smtp-in"}) == []


def test_what_a_later_program_registers_beyond_the_first() -> None:
    first = Registered(registration("filter|smtp-in|connect", "report|smtp-in|tx-mail").entries, ())
    assert first.missing(registration("filter|smtp-in|connect"), ()) == []
    assert first.missing(registration("report|smtp-in|link-connect"), ()) == []
    later = registration("filter|smtp-in|data", "filter|smtp-in|help", "report|smtp-in|*")
    assert first.missing(later, ()) == ["filter data", "report *"]


def test_every_report() -> None:
    assert registration("report|smtp-in|*").reports("smtp-in") == {n.encode() for n in REPORTS}
    assert registration("report|smtp-in|*").reports("smtp-out") == frozenset()
