"""Stories that a deciding process sends of recorded sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import (
    JUNK,
    PROCEED,
    Filter,
    Junk,
    Proceed,
    Reject,
    Session,
    Settings,
    UnavailableError,
    option,
)
from smtpd_filters.checks.exemptions import exempt_option, exempted
from smtpd_filters.journal.collector import (
    MAX_ANSWERS,
    MAX_EXEMPTIONS,
    MAX_ID,
    MAX_MARKS,
    MAX_RECIPIENTS,
    MAX_VERDICTS,
    Collector,
)
from smtpd_filters.journal.rollups import Sums
from smtpd_filters.journal.stories import Story, outcome, story
from smtpd_filters.journal.telling import says
from smtpd_filters.message import Headers
from smtpd_filters.scoring.rules import FilterRules, Rules
from smtpd_filters.settings import choice
from smtpd_filters.supervise.ledger import Session as Supervised
from smtpd_filters.web.texts import verdict

from .deciding import lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .deciding import Decide

RELEASES = ["6.8.0p2", "7.8.0p1"]


class Picky(Filter):
    """Refuse and mark by the first letter."""

    name = "picky"

    class Options(Settings):
        """How."""

        unknown = option(choice("junk", "reject"), default="reject", help="What to do.")

    settings: Options

    def mail_from(self, _session: Session, address: str) -> Proceed | Reject:
        if address.startswith("r@"):
            return Reject("550 5.7.1 No").because("begins with r")
        return PROCEED

    def rcpt_to(self, _session: Session, address: str) -> Proceed | Reject:
        if address.startswith("unknown"):
            return Reject("550 5.1.1 Who?").because("begins with unknown")
        return PROCEED

    def headers(self, _session: Session, headers: Headers) -> Junk | Proceed:
        return JUNK.because("odd") if "subject" in headers else PROCEED


def stories(parts: list[dict[str, Any]]) -> list[Story]:
    return [story(str(at), {**part, "p": [part["p"]]}) for at, part in enumerate(parts)]


@pytest.fixture
def picky() -> Picky:
    return Picky(Picky.Options())


@pytest.mark.parametrize("release", RELEASES)
def test_a_message_with_refused_recipients(decide: Decide, picky: Picky, release: str) -> None:
    [told] = stories(decide(picky).replay("rcpts-some-rejected", release))
    assert told.outcome == "junk"
    assert told.sender == "s@lab.test"
    assert told.size == 422
    assert told.client == "127.0.0.1"
    assert told.identity == "client.test"
    assert told.recipients == (
        ("a@lab.test", "accepted"),
        ("unknown@lab.test", "refused"),
        ("b@lab.test", "accepted"),
        ("x@foreign.test", "refused"),
        ("bad@@x", "refused"),
        ("c@lab.test", "accepted"),
    )
    passed = {(each.phase, each.count) for each in told.verdicts if each.verb == "proceed"}
    assert passed == {("mail-from", 1), ("rcpt-to", 4)}
    refused, marked = (each for each in told.verdicts if each.verb != "proceed")
    assert (refused.reason, refused.argument) == ("begins with unknown", "unknown@lab.test")
    assert refused.setting == "--unknown"
    assert told.deciding == marked
    assert "550 Invalid recipient: <x@foreign.test>" in told.answers


@pytest.mark.parametrize("release", RELEASES)
def test_each_message_of_a_session_is_a_story(decide: Decide, picky: Picky, release: str) -> None:
    told = stories(decide(picky).replay("multi-transaction", release))
    assert [each.sender for each in told] == ["s0@lab.test", "s1@lab.test", "s2@lab.test"]
    assert len({each.msgid for each in told}) == 3
    assert {each.client for each in told} == {"127.0.0.1"}
    assert {len(each.verdicts) for each in told} == {3}


@pytest.mark.parametrize("release", RELEASES)
def test_a_mark_of_the_session_is_that_of_each_message(decide: Decide, release: str) -> None:
    class Marks(Filter):
        """Mark all sessions."""

        name = "marks"

        def connect(self, _session: Session) -> Junk:
            return JUNK.because("the client")

    parts = decide(Marks(Marks.Options())).replay("multi-transaction", release)
    told = stories(parts)
    assert [each.outcome for each in told] == ["junk"] * 3
    assert [each.decided_by for each in told] == ["marks"] * 3
    assert [each.verdicts[0].earlier for each in told] == [False, True, True]
    assert says(told[1].verdicts[0]).startswith("marks marked it as junk earlier in the session: ")
    assert verdict(told[2].verdicts[0]) == "marked it as junk, earlier in the session"
    sums = Sums()
    for part in parts:
        sums.add(0.0, part, *outcome(part))
    assert [times.count for times in sums.verdicts.values()] == [1]
    assert sum(sums.reasons.values()) == 3


def test_marks_of_a_session_are_bounded(decide: Decide, picky: Picky) -> None:
    deciding = decide(picky)
    collector = Collector(deciding.sent, "filter-test", deciding.log)  # type: ignore[arg-type]
    session = Supervised(b"0123456789abcdef")
    for at in range(MAX_MARKS + 5):
        collector.noted(session, f"f{at}", "noop", "junk")
    assert session.story is not None
    assert len(session.story.marks) == MAX_MARKS
    assert session.story.marks[-1][0] == f"f{MAX_MARKS + 4}"


def within(recording: str, after: bytes, *reports: str) -> Iterator[bytes]:
    """Yield what smtpd wrote in a recording, with reports behind the first line with a text."""
    rows = list(lines(recording))
    at = next(n for n, row in enumerate(rows) if after in row)
    head = b"|".join(rows[at].split(b"|")[:4])
    session = rows[at].split(b"|")[5]
    yield from rows[: at + 1]
    for each in reports:
        name, _, rest = each.partition("|")
        yield b"%s|%s|%s|%s\n" % (head, name.encode(), session, rest.encode())
    yield from rows[at + 1 :]


def test_a_sender_within_a_transaction_is_not_that_of_the_message(
    decide: Decide, picky: Picky
) -> None:
    deciding = decide(picky)
    refused = ("tx-mail|3be05196|permfail|x@lab.test", "protocol-server|503 5.5.1 Invalid command")
    for line in within("multi-transaction", b"|tx-mail|", *refused):
        deciding.receive(line)
        deciding.output()
    told = stories(deciding.sent.parts)
    assert [each.sender for each in told] == ["s0@lab.test", "s1@lab.test", "s2@lab.test"]
    assert told[0].answers == ("503 5.5.1 Invalid command",)


def test_the_last_of_many_replies_is_kept(decide: Decide) -> None:
    deciding = decide(Sparing(Sparing.Options()))
    replies = [f"protocol-server|500 5.5.1 Wrong {at}" for at in range(MAX_ANSWERS * 2)]
    replies.append("protocol-server|552 5.3.4 Too large")
    for line in within("disconnect-in-data", b"|tx-rcpt|", *replies):
        deciding.receive(line)
        deciding.output()
    [told] = stories(deciding.sent.parts)
    assert (told.outcome, told.decided_by) == ("refused", "smtpd")
    assert told.reply == "552 5.3.4 Too large"
    assert len(told.answers) == MAX_ANSWERS
    assert told.left_out == MAX_ANSWERS + 1


@pytest.mark.parametrize("release", RELEASES)
def test_a_refused_sender_has_no_transaction(decide: Decide, release: str) -> None:
    class Refuses(Filter):
        """Refuse all."""

        name = "refuses"

        def mail_from(self, _session: Session, _address: str) -> Reject:
            return Reject("550 5.7.1 rejected at mail-from").because("all")

    told = stories(decide(Refuses(Refuses.Options())).replay("reject-at-mail-from", release))
    first = told[0]
    assert first.kind == "session"
    assert first.outcome == "refused"
    assert first.sender == "s@lab.test"
    assert first.deciding is not None
    assert (first.decided_by, first.deciding.argument) == ("refuses", "s@lab.test")
    assert first.reply == "550 5.7.1 rejected at mail-from"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("recording", "outcome", "by"),
    [
        ("reject-at-commit", "refused", "smtpd"),
        ("reject-commit-451", "deferred", "smtpd"),
        ("reject-at-connect", "refused", "smtpd"),
        ("disconnect-in-data", "abandoned", ""),
        ("connect-disconnect", "none", ""),
    ],
)
def test_outcomes_that_other_filters_decided(
    decide: Decide, recording: str, outcome: str, by: str, release: str
) -> None:
    class Watches(Filter):
        """See all, and decide nothing."""

        name = "watches"

        def rcpt_to(self, _session: Session, _address: str) -> Proceed:
            return PROCEED

    told = stories(decide(Watches(Watches.Options())).replay(recording, release))
    assert (told[0].outcome, told[0].decided_by) == (outcome, by)


def test_failures_have_their_causes(decide: Decide) -> None:
    class Fails(Filter):
        """Fail."""

        name = "fails"
        on_error = "tempfail"

        def rcpt_to(self, _session: Session, _address: str) -> Proceed:
            raise UnavailableError("the DNS is away")

    deciding = decide(Fails(Fails.Options()))
    [told] = stories(deciding.replay("reject-at-rcpt-to"))
    [failed] = [each for each in told.verdicts if each.failed]
    assert failed.reason == "the DNS is away"
    assert failed.setting == "--on-error"
    assert failed.reply.startswith("451 ")


def test_a_dry_run_decides_nothing(decide: Decide, picky: Picky) -> None:
    picky.dry_run = True
    [told] = stories(decide(picky).replay("rcpts-some-rejected"))
    assert told.outcome == "accepted"
    assert [each.dry for each in told.verdicts if each.verb != "proceed"] == [True, True]


class Sparing(Filter):
    """Exempts some clients."""

    class Options(Settings):
        """Whom."""

        exempt = exempt_option("local")

    settings: Options

    def connect(self, session: Session) -> Proceed:
        why = self.settings.exempt.reason(session)
        return exempted(self, why) if why else PROCEED

    def rcpt_to(self, session: Session, _address: str) -> Proceed:
        return self.connect(session)


class Other(Sparing):
    """Another one like it."""


def test_who_is_exempt_and_why(decide: Decide, picky: Picky) -> None:
    deciding = decide(Sparing(Sparing.Options()), picky, Other(Sparing.Options()))
    verdicts = [each for part in stories(deciding.replay("rcpts-some-rejected"))
                for each in part.verdicts]  # fmt: skip
    assert {(each.filter, each.phase, each.exempt) for each in verdicts if each.exempt} == {
        (name, phase, "local") for name in ("sparing", "other") for phase in ("connect", "rcpt-to")
    }
    [many] = [each for each in verdicts if each.filter == "sparing" and each.phase == "rcpt-to"]
    assert many.count > 1
    assert not any("exempt" in line for line in deciding.log.lines)


class Trusting(Filter):
    """Marks every client, for a rule by which that ends the chain."""

    def connect(self, _session: Session) -> Junk:
        return JUNK.because("listed")


def test_a_verdict_that_ends_a_chain(decide: Decide, picky: Picky) -> None:
    rules = Rules(filters={"trusting": FilterRules(bypass=("junk",))})
    deciding = decide(Trusting(Trusting.Options()), picky, rules=rules)
    told = stories(deciding.replay("rcpts-some-rejected"))
    [ended] = [each for part in told for each in part.verdicts]
    assert (ended.phase, ended.verb, ended.reason) == ("connect", "bypass", "listed")
    assert says(ended).startswith("trusting let it bypass the filters behind it: listed (")
    assert verdict(ended) == "let it bypass the filters behind it"


def test_an_exemption_that_ends_a_chain(decide: Decide) -> None:
    rules = Rules(filters={"sparing": FilterRules(bypass=("exempt",))})
    deciding = decide(Sparing(Sparing.Options()), Other(Sparing.Options()), rules=rules)
    verdicts = [each for part in stories(deciding.replay("rcpts-some-rejected"))
                for each in part.verdicts]  # fmt: skip
    [ended] = [each for each in verdicts if each.filter == "sparing"]
    assert (ended.phase, ended.verb, ended.reason) == ("connect", "bypass", "exempt: local")
    assert says(ended).startswith("sparing let it bypass the filters behind it: exempt: local (")
    assert not any(each.filter == "other" for each in verdicts)


class Quoting(Filter):
    """Begins its reasons with a client's text."""

    on_error = "proceed"

    def connect(self, _session: Session) -> Proceed:
        return PROCEED.because("exempt: local")

    def rcpt_to(self, _session: Session, _address: str) -> Proceed:
        raise UnavailableError("exempt: local")


def test_the_text_of_a_reason_makes_no_exemption(decide: Decide) -> None:
    deciding = decide(Quoting(Quoting.Options()))
    verdicts = [each for part in stories(deciding.replay("rcpts-some-rejected"))
                for each in part.verdicts]  # fmt: skip
    assert not any(each.exempt for each in verdicts)
    told = {each.phase: says(each) for each in verdicts}
    assert told["connect"].startswith("quoting let it pass: exempt: local (")
    assert "failed, so --on-error let it pass for" in told["rcpt-to"]
    assert ": exempt: local (" in told["rcpt-to"]
    assert any(' connect result=proceed reason="exempt: local"' in line
               for line in deciding.log.lines)  # fmt: skip


def test_reasons_of_exemptions_are_bounded(decide: Decide) -> None:
    """A filter of one's own may give a reason that differs with each command."""

    class Chatty(Filter):
        """Exempt each command for another reason."""

        count = 0

        def rcpt_to(self, _session: Session, _address: str) -> Proceed:
            self.count += 1
            return exempted(self, f"command {self.count}")

    deciding = decide(Chatty(Chatty.Options()))
    rows = list(lines("rcpts-some-rejected"))
    at = next(n for n, row in enumerate(rows) if b"|rcpt-to|" in row)
    for row in rows[:at] + [rows[at]] * MAX_EXEMPTIONS * 3:
        deciding.receive(row)
        deciding.output()
    [session] = deciding.engine.sessions.values()
    assert session.story is not None
    passed = session.story.passed
    assert len(passed) == MAX_EXEMPTIONS + 1
    assert sum(count for count, *_ in passed.values()) == MAX_EXEMPTIONS * 3


def test_credentials_are_not_kept(decide: Decide) -> None:
    class Auth(Filter):
        """Refuse credentials, and repeat them."""

        name = "auth-x"

        def auth(self, _session: Session, credentials: str) -> Reject:
            return Reject(f"535 5.7.8 {credentials}")

    deciding = decide(Auth(Auth.Options()))
    deciding.replay("auth-login-ok")
    deciding.replay("auth-plain-fail")
    credentials = {
        line.rstrip().rpartition(b"|")[2].rpartition(b" ")[2]
        for line in lines("auth-plain-fail")
        if b"|auth|" in line and line.startswith(b"filter|")
    }
    assert credentials
    # smtpd tells the client what the filter said.
    session = next(lines_of(b"|auth|", "auth-plain-fail")).split(b"|")[5]
    reply = b"report|0.7|1.0|smtp-in|protocol-server|%b|535 5.7.8 %b\n"
    for row in (*lines("auth-plain-fail"),):
        if b"link-disconnect" in row:
            deciding.receive(reply % (session, max(credentials)))
        deciding.receive(row)
    for each in credentials:
        assert not any(each in data for data in deciding.sent.datagrams)
    assert any(b"535" in data for data in deciding.sent.datagrams)


def lines_of(what: bytes, recording: str) -> Iterator[bytes]:
    return (line for line in lines(recording) if what in line)


def test_what_was_lost_is_reported_with_the_next_story(decide: Decide, picky: Picky) -> None:
    deciding = decide(picky)
    deciding.sent.full = True
    assert deciding.replay("rcpts-some-rejected") == []
    deciding.sent.full = False
    [part] = deciding.replay("disconnect-in-data")
    assert part["x"] == 1
    assert deciding.sent.unreported == 0


def test_a_session_keeps_a_bounded_story(decide: Decide, picky: Picky) -> None:
    deciding = decide(picky)
    rows = list(lines("rcpts-some-rejected"))
    at = next(n for n, row in enumerate(rows) if b"|rcpt-to|" in row and b"unknown" in row)
    report = next(row for row in rows if b"|tx-rcpt|" in row and b"unknown" in row)
    repeated = rows[: at + 1] + [rows[at], report] * (MAX_VERDICTS * 3) + rows[at + 1 :]
    for row in repeated:
        deciding.receive(row)
        deciding.output()
    parts = deciding.sent.parts
    assert sum(len(part["w"]) for part in parts) < MAX_VERDICTS + 5
    assert sum(part["y"] for part in parts) > MAX_VERDICTS


def test_names_and_ids_have_a_limit(picky: Picky, decide: Decide) -> None:
    deciding = decide(picky)
    collector = Collector(deciding.sent, "filter-" + 1000 * "x", deciding.log)  # type: ignore[arg-type]
    session = Supervised(b"a" * 5000)
    collector.mail_from(session, b"a@example.org")
    collector.closed(session)
    (part,) = deciding.sent.parts
    assert part["s"] == "a" * MAX_ID
    assert part["f"] == "a@example.org"


def test_a_story_has_a_bounded_number_of_recipients(decide: Decide, picky: Picky) -> None:
    deciding = decide(picky)
    rows = list(lines("rcpts-some-rejected"))
    at = next(n for n, row in enumerate(rows) if b"|tx-rcpt|" in row)
    for row in rows[: at + 1] + [rows[at]] * MAX_RECIPIENTS * 2 + rows[at + 1 :]:
        deciding.receive(row)
        deciding.output()
    parts = deciding.sent.parts
    assert sum(len(part["r"]) for part in parts) == MAX_RECIPIENTS
    assert sum(part["y"] for part in parts) > MAX_RECIPIENTS


def test_a_bug_of_the_journal_changes_no_decision(decide: Decide, picky: Picky) -> None:
    def broken(_data: bytes) -> bool:
        raise RuntimeError("bug")

    deciding, plain = decide(picky), decide(Picky(Picky.Options()))
    deciding.sent.send = broken  # type: ignore[method-assign, assignment]
    answers = []
    for each in (deciding, plain):
        for line in lines("rcpts-some-rejected"):
            each.receive(line)
            answers.append(each.output())
    half = len(answers) // 2
    # The registrations are in the first output; they are the same as well.
    assert answers[:half] == answers[half:]
    assert any("journal bug" in line for line in deciding.log.lines)
