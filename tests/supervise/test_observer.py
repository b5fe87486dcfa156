"""The journal of a supervised program: its answers, those in its place, and the mail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.journal.collector import Collector
from smtpd_filters.journal.outbox import SPACING
from smtpd_filters.journal.stories import verdict
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.supervise.observer import Observer
from tests.journal.deciding import Sent
from tests.supervise.hostile import nowhere
from tests.supervise.test_replay import Stage, answer, report, request

if TYPE_CHECKING:
    from smtpd_filters.journal.stories import Verdict

TRANSACTION = (
    report("tx-begin", "0000000a"),
    report("tx-mail", "0000000a", "ok", "a@example.org"),
)
REFUSED = "reject|550 5.7.1 no"


class Journaled(Stage):
    """A program whose supervisor has a journal."""

    def __init__(
        self, *, by_itself: bool = False, long_lines: bool = False, spacing: float = SPACING
    ) -> None:
        self.sent = Sent()
        sent: Any = self.sent
        collector = Collector(sent, "filter-supervise", nowhere(), spacing=spacing)
        self.sent.flush = collector.flush
        observer = Observer(collector, "filter-test", by_itself=by_itself)
        super().__init__(observer=observer, refuse_long_lines=long_lines)

    def begin(self) -> None:
        """Go on to the sender."""
        self.write(report("link-connect", "h", "pass", "192.0.2.1:25", "192.0.2.2:25"))
        self.write(report("link-identify", "EHLO", "h.example"))

    def parts(self) -> list[dict[str, Any]]:
        """What was sent of the session, which ends."""
        self.write(report("link-disconnect"))
        assert not self.engine.sessions
        return self.sent.parts

    def verdicts(self) -> list[Verdict]:
        """The verdicts on the session, which ends."""
        return [verdict(row) for part in self.parts() for row in part["w"]]


def test_what_it_needs_is_registered_with_smtpd() -> None:
    stage = Journaled()
    registered = stage.engine.handshake.registered
    assert registered is not None
    assert {*Collector.reports} <= {
        name for kind, of, name in registered.entries if (kind, of) == ("report", "smtp-in")
    }


def test_answers_of_the_program() -> None:
    stage = Journaled()
    stage.begin()
    stage.ask("mail-from", "a@example.org")
    stage.write(*TRANSACTION)
    for wire in ("proceed", "proceed", REFUSED, "rewrite|<c@example.org>"):
        stage.ask("rcpt-to", "b@example.org", wire)
    verdicts = stage.verdicts()
    assert {(each.phase, each.verb, each.reply): each.count for each in verdicts} == {
        ("mail-from", "proceed", ""): 1,
        ("rcpt-to", "proceed", ""): 2,
        ("rcpt-to", "reject", "550 5.7.1 no"): 1,
        ("rcpt-to", "rewrite", ""): 1,
    }
    assert {each.filter for each in verdicts} == {"filter-test"}
    assert stage.sent.parts[0]["f"] == "a@example.org"


def test_an_answer_that_seems_to_have_begun_before_its_session() -> None:
    # The clock of deadlines advances once a round, so the time that an answer took is that since
    # the beginning of a round: of one in which the session was reported as well.
    stage = Journaled()
    stage.begin()
    [session] = stage.engine.sessions.values()
    stage.engine._observer.passed(session, PHASES["mail-from"], 5.0)
    [part] = stage.parts()
    [found] = map(verdict, part["w"])
    assert (found.phase, found.verb, found.at) == ("mail-from", "proceed", 0)
    assert found.took >= 5_000_000


def test_an_answer_that_is_made_safe_is_noted_as_it_is_sent() -> None:
    stage = Journaled()
    stage.begin()
    stage.write(request("mail-from", "a@example.org"))
    stage.reply("report|text")
    assert stage.said() == answer()
    [found] = stage.verdicts()
    assert (found.phase, found.verb) == ("mail-from", "proceed")


def test_replies_at_auth_are_not_noted() -> None:
    stage = Journaled()
    stage.begin()
    stage.write(request("auth", "PLAIN c2VjcmV0"))
    stage.reply("reject|535 5.7.8 no c2VjcmV0")
    [found] = stage.verdicts()
    assert (found.phase, found.verb, found.reply) == ("auth", "reject", "")


def test_a_program_with_a_journal_of_its_own() -> None:
    stage = Journaled(by_itself=True)
    stage.begin()
    stage.ask("mail-from", "a@example.org")
    stage.ask("rcpt-to", "b@example.org", REFUSED)
    stage.write(request("rcpt-to", "b@example.org"))
    stage.end()
    [found] = stage.verdicts()
    assert (found.phase, found.verb, found.reason) == ("rcpt-to", "reject", "killed")
    assert (found.flags, found.setting) == ("f", "--on-error")


@pytest.mark.parametrize("lost", [True, False])
def test_messages_that_are_refused_in_its_place(lost: bool) -> None:  # noqa: FBT001
    stage = Journaled(long_lines=True)
    stage.begin()
    stage.write(request("data-line", "x" * 70000), request("data-line", "."))
    rows = [row for row in stage.given().splitlines(keepends=True) if b"|data-line|" in row]
    back = [b"filter-dataline|" + row.split(b"|", 5)[5] for row in rows]
    stage.engine.from_program(stage.link, b"".join(back[:1] if lost else back))
    if lost:
        stage.end()
    stage.write(request("commit"))
    assert stage.said().startswith(answer("reject|")[:-1])
    [found] = stage.verdicts()
    assert (found.filter, found.phase, found.verb) == ("filter-test", "commit", "reject")
    why = "the message was lost with the program" if lost else "a line is too long"
    assert found.reason == why
    assert (found.flags, found.setting) == (("f", "") if lost else ("", "--long-lines"))


@pytest.mark.parametrize(
    ("row", "noted"),
    [
        (report("protocol-server", "550 5.7.1 no"), True),
        (report("protocol-server", "250 2.0.0 yes"), False),
        (report("protocol-server", "550 5.7.1 no").replace(b"smtp-in", b"smtp-out"), False),
        (report("protocol-server", "550 5.7.1 no").replace(b"|0.7|", b"|x|"), True),
        (report("protocol-server").replace(b"|protocol", b"protocol", 1)[:-17] + b"\n", False),
        (report("timeout"), False),
    ],
)
def test_replies_of_smtpd(row: bytes, noted: bool) -> None:  # noqa: FBT001
    stage = Journaled()
    stage.begin()
    stage.ask("mail-from", "a@example.org")
    stage.write(*TRANSACTION)
    stage.write(row)
    texts = [text for part in stage.parts() for text in part.get("a", ())]
    assert texts == (["550 5.7.1 no"] if noted else [])


def test_a_report_without_its_fields_is_none() -> None:
    stage = Journaled()
    stage.write(report("link-connect"), report("link-auth", "pass"))
    [session] = stage.engine.sessions.values()
    assert session.story is None or session.story.client == []


def test_the_state_is_sent_when_it_is_due() -> None:
    stage = Journaled()
    due = stage.engine.beat(ends=2)
    assert due is not None
    assert due > 0
    [state] = stage.sent.datagrams
    assert state.startswith(b'{"v":1,"k":"state","p":"filter-supervise"')
    assert b'"o":0,"r":2' in state  # no session, two ends


def test_what_waits_is_sent_at_the_end() -> None:
    stage = Journaled(spacing=1000.0)
    for holds in (False, True):
        stage.begin()
        stage.ask("mail-from", "a@example.org", REFUSED)
        stage.write(report("link-disconnect"))
        assert stage.engine.holds is holds
    stage.engine.flush()
    assert len(stage.sent.datagrams) == 2


def test_without_a_journal_nothing_is_due() -> None:
    engine = Stage().engine
    assert engine.beat(ends=0) is None
    assert not engine.holds
    engine.flush()
