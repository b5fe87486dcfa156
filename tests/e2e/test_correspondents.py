"""filter-correspondents under real servers: what a user's message teaches filter-greylist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.testing.server import filter_command, scratch_path
from tests.e2e.sending import ALICE, BOB, GOOD, NAMELESS, attempt

if TYPE_CHECKING:
    from tests.e2e.conftest import Start


def test_an_answer_does_not_wait(start: Start) -> None:
    store = f"sqlite:{scratch_path('correspondents')}"
    patient = "--store-timeout=30"
    waiting = ("--key=network", f"--store=sqlite:{scratch_path('greylist')}", patient)
    server = start(
        filters={
            "learning": filter_command("correspondents", f"--store={store}", patient, "--header"),
            "greylist": filter_command("greylist", *waiting, f"--correspondents={store}"),
        }
    )
    assert attempt(server, NAMELESS, sender=BOB).code == 451
    assert attempt(server, GOOD, user="alice", sender=ALICE, recipients=[BOB]).code == 250
    # It is learnt after the message: an attempt may come before.
    assert any(
        attempt(server, NAMELESS, sender=BOB, recipients=[ALICE]).code == 250 for _ in range(100)
    )
    assert attempt(server, NAMELESS, sender="x@good.example", recipients=[ALICE]).code == 451
    [answer] = server.maildir("alice")
    assert answer.message["X-Correspondent"] == "known"
