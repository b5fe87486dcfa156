"""Chains with a score: whose points count, for what, and until when filters are asked."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters import (
    JUNK,
    MARKED,
    PROCEED,
    Answer,
    Decision,
    Filter,
    Headers,
    Junk,
    Marked,
    Message,
    OwnField,
    Points,
    Proceed,
    Registration,
    Reject,
    Session,
    UnavailableError,
)
from smtpd_filters.checks.exemptions import exempted
from smtpd_filters.errors import BugError, ConfigError
from smtpd_filters.main import make_chain, set_up
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.runtime.coroutines import Pending
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.log import Log
from smtpd_filters.scoring import chain
from smtpd_filters.scoring.chain import ScoringChain
from smtpd_filters.scoring.rules import ACTIONS, FilterRules, Rules, RuleSettings
from smtpd_filters.session import FIELDS
from smtpd_filters.tables import AddressTable, HostTable, NetworkTable, StringTable
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_filters.filter import OnError
    from tests.conftest import Logbook

FIELD = chain.FIELD.name
NO = Reject("550 5.7.1 No")
LATER = Reject("451 4.7.1 Later")
MESSAGE = b"Subject: x\r\n\r\nbody\r\n"
HANDLERS = ("connect", "ehlo", "mail_from", "rcpt_to", "data", "headers")


class Scripted(Filter):
    """Decides by handler; `asked` has the handlers that were called."""

    def __init__(self, name: str, **decisions: Any) -> None:
        super().__init__()
        self.name = name
        self.decisions = decisions
        self.asked: list[str] = []

    def setup(self) -> Registration:
        return Registration(self.decisions.keys())

    def _decide(self, handler: str) -> Any:
        self.asked.append(handler)
        decision = self.decisions[handler]
        if isinstance(decision, list):
            decision = decision.pop(0)
        if isinstance(decision, BaseException):
            raise decision
        return decision


def handler(name: str, returns: str) -> Any:
    def decide(self: Scripted, *_: object) -> Any:
        return self._decide(name)

    decide.__annotations__ = {"return": returns}
    return decide


def kind(name: str, more: str = "", points: Any = None, **returns: str) -> Any:
    """Make a class with all handlers; what they return is in their annotation."""
    returns = {
        **dict.fromkeys(HANDLERS, f"Answer{more}"),
        "headers": f"ContentAnswer{more}",
        "commit": "FinalAnswer",
        **returns,
    }
    made = {key: handler(key, value) for key, value in returns.items()}
    return type(name, (Scripted,), {"points": points, **made})


#: Decides, and gives no points of its own.
Acts = kind("Acts")
GREY = kind("Greylist")
#: Does nothing but give points.
Weighs = kind("Weighs", points=(-50, 50), **dict.fromkeys(HANDLERS, "Proceed | Points"))
#: Gives points itself as well.
Gives = kind("Gives", " | Points", points=(-50, 50))


def rules(
    scores: Mapping[str, float | dict[str, float]] | None = None,
    bypass: Mapping[str, tuple[str, ...]] | None = None,
    **settings: Any,
) -> Rules:
    filters: dict[str, dict[str, Any]] = {}
    for name, score in (scores or {}).items():
        by_action = score if isinstance(score, dict) else dict.fromkeys(ACTIONS, score)
        filters.setdefault(name, {})["score"] = by_action
    for name, actions in (bypass or {}).items():
        filters.setdefault(name, {})["bypass"] = actions
    return Rules(
        RuleSettings(**settings), {name: FilterRules(**each) for name, each in filters.items()}
    )


def converse(filters: Sequence[Filter], of: Rules) -> Conversation:
    return Conversation(filters, rules=of)


def line(log: Sequence[str], name: str = "score") -> str:
    """Return the one line under a name, without session and time."""
    [found] = [each for each in log if each.split()[1] == name]
    return re.sub(r" took=\S+", "", found).partition(" ")[2]


# -- points and thresholds -------------------------------------------------------------------


def test_points_add_up_to_a_refusal() -> None:
    one, two = Acts("one", connect=JUNK.because("why")), Acts("two", ehlo=NO)
    with converse([one, two], rules({"one": 4, "two": {"reject": 6.5}}, reject_at=10)) as smtpd:
        client = smtpd.connect()
        assert client.greeting.verb == "proceed"
        assert client.ehlo().reply == "550 5.7.1 Refused as probable spam"
    assert line(smtpd.log, "one") == "one connect result=proceed would=junk points=4 reason=why"
    assert line(smtpd.log) == (
        "score ehlo result=reject score=10.5 reject-at=10 "
        'points="one=4 two=6.5" reply="550 5.7.1 Refused as probable spam"'
    )


def test_points_below_the_threshold_do_nothing() -> None:
    one = Acts("one", connect=NO)
    with converse(
        [one, Acts("two", connect=PROCEED)], rules({"one": 4, "two": 6}, reject_at=10)
    ) as smtpd:
        client = smtpd.connect()
        assert client.greeting.verb == "proceed"
        client.ehlo()
        client.mail_from("a@example.org")
        assert client.rcpt_to("b@example.org").verb == "proceed"


def test_at_connect_the_score_disconnects() -> None:
    with converse([Acts("one", connect=NO)], rules({"one": 4}, reject_at=4)) as smtpd:
        greeting = smtpd.connect().greeting
    assert (greeting.verb, greeting.reply) == ("disconnect", "554 5.7.1 Refused as probable spam")


@pytest.mark.parametrize(
    ("decisions", "settings", "phases"),
    [
        ({"connect": NO}, {"junk_at": 2}, {"connect", "data"}),
        ({"connect": NO, "headers": NO}, {"junk_at": 2}, {"connect", "data-line", "commit"}),
        ({"connect": NO}, {"junk_at": 2, "score_header": True}, {"connect", "data-line", "commit"}),
        ({"data": NO}, {"reject_at": 2}, {"connect", "data"}),
        ({"data": NO}, {"reject_at": 2, "score_at": "helo"}, {"helo", "ehlo", "data"}),
        (
            {"data": NO},
            {"bypass_recipients": AddressTable("postmaster@")},
            {"rcpt-to", "data"},
        ),
    ],
)
def test_no_more_phases_are_registered_than_needed(
    decisions: dict[str, Any], settings: dict[str, Any], phases: set[str], logbook: Logbook
) -> None:
    scores = {"one": 2.0} if "bypass_recipients" not in settings else {}
    of = rules(scores, **settings)
    made = made_chain([Acts("one", **decisions)], of, logbook.log)
    assert set(made.phases) == phases


@pytest.mark.parametrize("reads", [True, False])
def test_a_message_is_marked_at_its_end(*, reads: bool) -> None:
    decisions = {"headers": JUNK} if reads else {"data": JUNK}
    one, two = Acts("one", connect=NO), Acts("two", **decisions)
    with converse([one, two], rules({"one": 2, "two": 3}, junk_at=4)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        assert client.message(MESSAGE).headers.get("X-Spam") == "Yes"
        # The session's points go on to count; those of the first message don't.
        two.decisions = dict.fromkeys(decisions, PROCEED)
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        assert client.message(MESSAGE).headers.get("X-Spam") is None
    at = "message" if reads else "data"
    assert line(smtpd.log) == f'score {at} result=junk score=5 junk-at=4 points="one=2 two=3"'


def test_without_a_later_phase_the_mark_is_made_at_data() -> None:
    with converse([Acts("one", connect=NO)], rules({"one": 2}, junk_at=2)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        assert client.message(MESSAGE).headers.get("X-Spam") == "Yes"


def test_a_refusal_at_data_stands_though_the_score_marks_there() -> None:
    one, two = Acts("one", connect=NO), Acts("two", data=NO)
    with converse([one, two], rules({"one": 2}, junk_at=2)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        assert client.data().reply == NO.text


def test_a_message_is_refused_at_commit() -> None:
    one, two = Acts("one", connect=NO), Acts("two", headers=NO)
    with converse([one, two], rules({"one": 2, "two": 3}, junk_at=2, reject_at=5)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        delivery = client.message(MESSAGE)
    assert (delivery.phase, delivery.reply) == ("commit", "550 5.7.1 Refused as probable spam")
    assert line(smtpd.log).startswith("score message result=reject score=5 junk-at=2 reject-at=5")


def test_points_of_its_own_may_be_negative() -> None:
    one, friend = Acts("one", connect=NO), Gives("friend", ehlo=Points(-4).because("known"))
    with converse([one, friend], rules({"one": 8}, reject_at=5)) as smtpd:
        client = smtpd.connect()
        # The other one may still lower it.
        assert client.greeting.verb == "proceed"
        assert client.ehlo().verb == "proceed"
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
    assert line(smtpd.log, "friend") == "friend ehlo result=proceed points=-4 reason=known"


def test_the_reply_and_the_first_phase_are_the_operators() -> None:
    reply = "550 5.7.0 Ask postmaster@example.org"
    one, two = Acts("one", connect=NO), Acts("two", mail_from=NO)
    of = rules({"one": 8, "two": 1}, reject_at=5, score_at="rcpt-to", score_reply=reply)
    with converse([one, two], of) as smtpd:
        client = smtpd.connect()
        assert client.greeting.verb == "proceed"
        client.ehlo()
        assert client.mail_from("a@example.org").verb == "proceed"
        assert client.rcpt_to("b@example.org").reply == reply
        assert client.rcpt_to("c@example.org").reply == reply
    # It can't change any more.
    assert two.asked == []


def test_an_action_without_points_is_taken() -> None:
    one = Acts("one", ehlo=[JUNK, NO])
    with converse([one], rules({"one": {"junk": 2}}, junk_at=2)) as smtpd:
        client = smtpd.connect()
        assert client.ehlo().verb == "proceed"
        client.tls()
        assert client.ehlo().reply == NO.text


def test_a_repeated_greeting_counts_once() -> None:
    one = Acts("one", ehlo=[NO, PROCEED])
    two = Acts("two", ehlo=[JUNK, JUNK])
    of = rules({"one": 3, "two": 3}, reject_at=4, score_at="mail-from")
    with converse([one, two], of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert client.mail_from("a@example.org").verb == "reject"
        client.tls()
        client.ehlo()
        assert client.mail_from("a@example.org").verb == "proceed"


def test_of_recipients_the_worst_accepted_one_counts() -> None:
    one = Acts("one", rcpt_to=[JUNK, NO, PROCEED, PROCEED], connect=NO)
    of = rules({"one": {"junk": 2, "reject": 7, "tempfail": 0}}, junk_at=9, reject_at=12)
    with converse([one], of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        assert client.rcpt_to("b@example.org").verb == "proceed"
        assert client.rcpt_to("c@example.org").verb == "reject"
        assert client.rcpt_to("d@example.org").verb == "proceed"
        # Seven of the session, two of the first recipient.
        assert client.message(MESSAGE).headers.get("X-Spam") == "Yes"
        client.mail_from("a@example.org")
        client.rcpt_to("e@example.org")
        assert client.message(MESSAGE).headers.get("X-Spam") is None


def test_points_of_a_message_end_with_it() -> None:
    one = Acts("one", mail_from=[JUNK, PROCEED, JUNK, PROCEED])
    two = Acts("two", mail_from=[NO, PROCEED, PROCEED, PROCEED])
    with converse([one, two], rules({"one": 3}, junk_at=3)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert client.mail_from("a@example.org").verb == "reject"
        client.mail_from("b@example.org")
        client.rcpt_to("x@example.org")
        assert client.message(MESSAGE).headers.get("X-Spam") is None
        client.mail_from("c@example.org")
        client.rset()
        client.mail_from("d@example.org")
        client.rcpt_to("x@example.org")
        assert client.message(MESSAGE).headers.get("X-Spam") is None


# -- doubts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decisions", "reply"),
    [
        ((NO, NO), "550 5.7.1 Refused as probable spam"),
        ((NO, LATER), "451 4.7.1 Checks could not be completed, please try again later"),
        ((LATER, NO), "451 4.7.1 Checks could not be completed, please try again later"),
    ],
)
def test_a_doubt_refuses_temporarily(decisions: Sequence[Decision], reply: str) -> None:
    filters = [Acts(name, ehlo=each) for name, each in zip("ab", decisions, strict=True)]
    with converse(filters, rules({"a": 3, "b": 3}, reject_at=5)) as smtpd:
        assert smtpd.connect().ehlo().reply == reply


def test_a_failure_has_the_points_of_its_outcome() -> None:
    one = Acts("one", ehlo=UnavailableError("no answer", "4.4.3"))
    one.on_error = "tempfail"
    with converse([one], rules({"one": {"tempfail": 3}}, reject_at=3)) as smtpd:
        assert smtpd.connect().ehlo().reply.startswith("451 4.7.1")
    assert (
        line(smtpd.log, "one") == 'one ehlo result=proceed would=reject points=3 cause="no answer"'
    )


@pytest.mark.parametrize("on_error", ["junk", "tempfail"])
def test_a_failure_has_no_points_in_favour_of_the_client(on_error: OnError) -> None:
    one = Acts("one", ehlo=[UnavailableError("no answer"), JUNK])
    one.on_error = on_error
    two = Acts("two", ehlo=NO)
    with converse([one, two], rules({"one": -2, "two": 3}, reject_at=3)) as smtpd:
        assert smtpd.connect().ehlo().reply == "550 5.7.1 Refused as probable spam"
        assert smtpd.connect().ehlo().verb == "proceed"


def test_a_dry_run_gives_no_points() -> None:
    one = Gives("one", connect=NO, ehlo=Points(3))
    one.dry_run = True
    with converse([one], rules({"one": 3}, reject_at=3)) as smtpd:
        client = smtpd.connect()
        assert client.greeting.verb == client.ehlo().verb == "proceed"
    assert [re.sub(r"\S+ (.*) took=.*", r"\1", each) for each in smtpd.log] == [
        "one connect result=proceed would=reject",
        "one ehlo result=proceed would=points",
    ]


def test_a_mark_that_became_points_is_undone() -> None:
    class Marks(Filter):
        def headers(self, session: Session, headers: Headers) -> Marked:  # noqa: ARG002
            headers.prepend("X-Spam", "Yes")
            return MARKED

    with converse([Marks()], rules({"marks": 3}, score_header=True)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        headers = client.message(MESSAGE).headers
    assert headers.get("X-Spam") is None
    assert headers.get(FIELD) == "3 marks=3"


@pytest.mark.parametrize("decision", [PROCEED, JUNK], ids=["proceed", "junk"])
def test_edits_other_than_marks_are_kept(decision: Decision) -> None:
    class Edits(Filter):
        def headers(self, session: Session, headers: Headers) -> Proceed | Junk:  # noqa: ARG002
            headers.prepend("X-Seen", "yes")
            return cast("Proceed", decision)

    with converse([Edits()], rules({"edits": 3}, junk_at=3)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        headers = client.message(f"{FIELD}: 1\r\n".encode() + MESSAGE).headers
    assert headers.get("X-Seen") == "yes"
    assert headers.get("X-Spam") == (None if decision is PROCEED else "Yes")
    # Without --score-header the field means nothing here.
    assert headers.get(FIELD) == "1"


@pytest.mark.parametrize("fails", [False, True])
def test_a_forged_field_is_removed_though_edits_are_undone(*, fails: bool) -> None:
    class Marks(Filter):
        own_fields = (OwnField("X-Own"),)

        def headers(self, session: Session, headers: Headers) -> Marked:  # noqa: ARG002
            self.own_fields[0].remove(headers)
            self.own_fields[0].prepend(headers, "spam")
            if fails:
                raise UnavailableError("no answer")
            return MARKED

    of = rules({"marks": {"junk": 3}}, score_header=True)
    with Conversation([(Marks, "--on-error", "junk")], rules=of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        headers = client.message(b"X-Own: ham\r\nX-\0Own: ham\r\n" + MESSAGE).headers
    assert headers.names() == [FIELD, "Received", "Subject"]
    assert headers.get(FIELD) == "3 marks=3"


@pytest.mark.parametrize("replaced", [False, True])
def test_other_edits_than_the_mark_that_became_points_are_kept(*, replaced: bool) -> None:
    class Marks(Filter):
        async def message(self, session: Session, message: Message) -> Marked:  # noqa: ARG002
            message.headers.remove("Subject")
            if replaced:
                message.replace_body(b"new")
            message.begin_mark()
            message.headers.prepend("X-Spam", "Yes")
            return MARKED

    class Later(Marks):
        """Marks without that."""

        async def message(self, session: Session, message: Message) -> Marked:  # noqa: ARG002
            message.headers.remove("From")
            return MARKED

    of = rules({"marks": 3, "later": 1}, score_header=True)
    with converse([Marks(), Later()], of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        mail = client.message(b"From: a@example.org\r\nSubject: x\r\n\r\nbody\r\n")
    assert mail.headers.names() == [FIELD, "Received", "From"]
    assert mail.body == (b"new\n" if replaced else b"body\n")


# -- the header field ------------------------------------------------------------------------


def test_the_score_is_a_field_and_a_forged_one_goes() -> None:
    one, two = Acts("one", connect=NO, headers=NO), Gives("two", ehlo=Points(-1.25))
    of = rules({"one": 2}, score_header=True, junk_at=9, reject_at=20)
    with pytest.raises(ConfigError, match="reject-at: 20 cannot be reached"):
        converse([Acts("one", connect=NO)], rules({"one": 2}, reject_at=20))
    with converse([one, two], of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        delivery = client.message(f"{FIELD}: -100 friend=-100\r\n".encode() + MESSAGE)
    assert delivery.headers.get_all(FIELD) == ["2.75 (junk-at 9, reject-at 20) one=4 two=-1.25"]


# -- the end of the questions ----------------------------------------------------------------


def test_who_could_change_nothing_is_not_asked() -> None:
    one, two, three = Acts("one", connect=PROCEED), Acts("two", ehlo=NO), Acts("three", ehlo=NO)
    with converse([one, two, three], rules({"one": 3, "two": 2, "three": 1}, junk_at=4)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
    # Three points of three may follow: they are not enough.
    assert (one.asked, two.asked, three.asked) == (["connect"], [], [])


def test_with_the_field_all_are_asked() -> None:
    one, two = Acts("one", connect=PROCEED), Acts("two", ehlo=NO)
    with converse([one, two], rules({"one": 3, "two": 2}, junk_at=4, score_header=True)) as smtpd:
        smtpd.connect().ehlo()
    assert two.asked == ["ehlo"]


def test_who_may_act_is_asked() -> None:
    one, two = Acts("one", connect=PROCEED), Acts("two", ehlo=NO)
    of = rules({"one": 3, "two": {"junk": 2}}, junk_at=4)
    with converse([one, two], of) as smtpd:
        assert smtpd.connect().ehlo().reply == NO.text


def test_who_reads_messages_is_asked() -> None:
    one, two = Acts("one", connect=PROCEED), Acts("two", ehlo=NO, headers=PROCEED)
    with converse([one, two], rules({"one": 3, "two": 0.5}, junk_at=3.5)) as smtpd:
        smtpd.connect().ehlo()
    assert two.asked == ["ehlo"]


def test_the_log_says_who_was_not_asked(logbook: Logbook) -> None:
    logbook.log.verbose = True
    one, two = Acts("one", connect=PROCEED), Acts("two", ehlo=NO)
    chain = made_chain([one, two], rules({"one": 3, "two": 2}, junk_at=4), logbook.log)
    client = session()
    assert said(chain, "connect", client) == said(chain, "ehlo", client, b"x") == PROCEED
    assert 'two ehlo result=skipped reason="score is certain"' in logbook.lines[-1]


def test_a_mark_for_a_message_that_is_not_begun_is_dropped(logbook: Logbook) -> None:
    """Another program has refused MAIL: smtpd has no transaction to report the end of."""
    one = Acts("one", mail_from=[JUNK, PROCEED], data=PROCEED)
    chain = made_chain([one], rules(bypass_users=StringTable("alice")), logbook.log)
    client = session()
    for mark in ("mail-from", ""):
        said(chain, "mail-from", client, b"a@example.org")
        assert client.mark == mark
    assert said(chain, "data", client) == PROCEED


def test_a_message_that_is_not_begun_ends_the_chain_for_itself_only(logbook: Logbook) -> None:
    friend = Acts("friend", mail_from=[JUNK, PROCEED])
    two = Acts("two", data=NO)
    chain = made_chain([friend, two], rules(bypass={"friend": ("junk",)}), logbook.log)
    client = session()
    for decision in (PROCEED, NO):
        said(chain, "mail-from", client, b"a@example.org")
        assert said(chain, "data", client) == decision


def session() -> Session:
    made = Session(b"7641df9771b4ed00").expect([f for fields in FIELDS.values() for f in fields])
    made.apply("link-connect", (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25"))
    return made


def made_chain(filters: Sequence[Filter], of: Rules, log: Log) -> ScoringChain:
    chain = make_chain([set_up(each, log) for each in filters], log, of)
    assert isinstance(chain, ScoringChain)
    return chain


def said(chain: ScoringChain, phase: str, client: Session, argument: bytes = b"") -> Decision:
    decision = chain.ask[PHASES[phase]](client, argument)
    assert isinstance(decision, Decision)
    return decision


VALUES = st.integers(-6, 6).map(float)
SCRIPTS = st.lists(
    st.dictionaries(st.sampled_from(HANDLERS), VALUES, min_size=1), min_size=1, max_size=4
)


def outcome(chain: ScoringChain) -> str:
    """Play a message; return what becomes of it."""
    client = session()
    for phase, argument in (
        ("connect", b""),
        ("ehlo", b"x"),
        ("mail-from", b"a@x"),
        ("rcpt-to", b"b@x"),
        ("data", b""),
    ):
        if (ask := chain.ask.get(PHASES[phase])) is not None:
            decision = ask(client, argument)
            assert isinstance(decision, Decision)
            if decision.verb in {"reject", "disconnect"}:
                return "reject"
            if decision.verb == "junk":
                return "junk"
    if chain.content:
        headers = Headers.parse([b"Subject: x"])
        decision = chain.judge_headers(client, headers)
        assert isinstance(decision, Decision)
        if decision.verb == "reject":
            return "reject"
        return "junk" if headers.get("X-Spam") else "proceed"
    return "proceed"


class Quiet(Log):
    def line(self, text: str) -> None:
        pass


@given(
    SCRIPTS,
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["connect", "mail-from", "data"]),
    st.booleans(),
)
def test_ending_the_questions_changes_no_outcome(
    scripts: list[dict[str, float]],
    junk: int,
    more: int,
    at: str,
    header: bool,  # noqa: FBT001  # drawn
) -> None:
    filters = [
        Weighs(f"f{number}", **{name: Points(value) for name, value in script.items()})
        for number, script in enumerate(scripts)
    ]
    for each, script in zip(filters, scripts, strict=True):
        each.points = (min(0.0, *script.values()), max(0.0, *script.values()))
    total = sum(value for script in scripts for value in script.values())
    expected = "reject" if total >= junk + more else "junk" if total >= junk else "proceed"
    of = rules(junk_at=junk, reject_at=junk + more, score_at=at, score_header=header)
    try:
        chain = made_chain(filters, of, Quiet())
    except ConfigError:  # beyond reach
        assert expected != "reject"
        return
    assert outcome(chain) == expected


# -- greylisting -----------------------------------------------------------------------------


def test_a_threshold_for_greylisting_needs_a_filter_that_does_it() -> None:
    with pytest.raises(ConfigError, match="greylist-at: requires a filter of the kind greylist"):
        converse([Acts("one", connect=NO)], rules({"one": 3}, greylist_at=3))


def test_the_filter_that_greylists_is_asked_from_its_threshold_on() -> None:
    grey = GREY("grey", rcpt_to=LATER)
    one = Acts("one", mail_from=[PROCEED, NO])
    with converse([one, grey], rules({"one": 3}, greylist_at=3)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        assert client.rcpt_to("b@example.org").verb == "proceed"
        client.rset()
        client.mail_from("a@example.org")
        assert client.rcpt_to("b@example.org").reply == LATER.text
    assert grey.asked == ["rcpt_to"]


def test_below_its_threshold_it_leaves_no_forged_field() -> None:
    class Greylist(Filter):
        own_fields = (OwnField("X-Greylist"),)

        def headers(self, session: Session, headers: Headers) -> Decision:  # noqa: ARG002
            raise AssertionError("it is not asked")

    with converse(
        [Acts("one", connect=PROCEED), Greylist()], rules({"one": 3}, greylist_at=3)
    ) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        headers = client.message(b"X-Greylist: delayed 99 days\r\n" + MESSAGE).headers
    assert headers.names() == ["Received", "Subject"]


# -- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "settings", "error"),
    [
        ({"one": 3}, {}, "score: requires junk-at, reject-at or score-header in the chain"),
        (
            {"one": 9},
            {"junk_at": 5, "reject_at": 5},
            "junk-at: 5 must be below reject-at, 5",
        ),
        (
            {"one": 9},
            {"junk_at": 9.001},
            "junk-at: 9.001 cannot be reached, the points of the filters add up to 9 at most",
        ),
        ({"one": 9}, {"junk_at": 5, "score_at": "data"}, "score-at: requires reject-at"),
        ({"one": 9}, {"junk_at": 5, "score_reply": "550 x"}, "score-reply: requires reject-at"),
    ],
)
def test_rules_against_each_other(scores: Any, settings: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(error)}$"):
        converse([Acts("one", connect=NO)], rules(scores, **settings))


class Weighing(Filter):
    """Gives points whose bounds only its settings know."""

    bounds: Any = (0, 3)

    def setup(self) -> Registration:
        return Registration(points=self.bounds)

    def ehlo(self, session: Session, identity: str) -> Decision:  # noqa: ARG002  # the protocol's
        return Points(3).because("three")


def test_points_that_only_setup_declares() -> None:
    with converse([Weighing()], rules(junk_at=3)) as smtpd:
        client = smtpd.connect()
        client.ehlo("x.example")
        client.mail_from("a@example.org")
        client.rcpt_to("b@example.org")
        assert client.message(MESSAGE).headers.get("X-Spam") == "Yes"
    assert not smtpd.errors


@pytest.mark.parametrize("bounds", [(3, 0), (1,), "x", (0, 10**9)])
def test_bounds_of_setup_are_two_numbers(bounds: Any) -> None:
    made = Weighing()
    made.bounds = bounds
    with pytest.raises(BugError, match=r"filter 'weighing': points = .* is not \(least, most\)"):
        converse([made], rules(junk_at=3))


def test_a_threshold_out_of_reach_names_the_filters_without_points() -> None:
    of = rules({"one": 2}, junk_at=3)
    error = "the points of the filters add up to 2 at most; without points: two, three$"
    with pytest.raises(ConfigError, match=error):
        converse([Acts("one", connect=NO), Acts("two", connect=NO), Acts("three")], of)


def test_a_name_that_no_filter_has() -> None:
    error = 'no filter "won" in the chain, which has "one", "two"'
    with pytest.raises(ConfigError, match=f"^{re.escape(error)}$"):
        converse([Acts("one", connect=NO), Acts("two", connect=NO)], rules({"won": 9}, junk_at=4))


def test_points_in_code() -> None:
    assert FilterRules(score=5).score == {"junk": 5, "reject": 5, "tempfail": 5}
    assert FilterRules(score=-0.5).score == dict.fromkeys(ACTIONS, -0.5)
    assert FilterRules(score={"junk": 2}).score == {"junk": 2}
    for wrong in (True, "5", 0.0001, float("nan"), [5], {"junk": "x"}, {"drop": 1}):
        with pytest.raises(TypeError, match=r"^FilterRules\.score: "):
            FilterRules(score=wrong)


def test_an_action_has_points_or_bypasses() -> None:
    of = rules({"one": {"junk": 3}}, {"one": ("junk",)}, junk_at=3)
    with pytest.raises(ConfigError, match="bypass: junk has points, too"):
        converse([Acts("one", connect=NO)], of)


def test_points_beyond_those_declared_are_a_failure() -> None:
    with Conversation(Gives("one", ehlo=Points(51)), errors=True) as smtpd:
        assert smtpd.connect().ehlo().verb == "proceed"
    assert "returned Points(51), but declares points = (-50, 50)" in smtpd.errors[0]


def test_points_must_be_declared() -> None:
    with pytest.raises(TypeError, match=r"declare the least and the most of them, such as points"):

        class Undeclared(Filter):
            def connect(self, session: Session) -> Proceed | Points:  # noqa: ARG002
                return Points(3)

    class Untyped(Filter):
        def connect(self, session: Session) -> Decision:  # noqa: ARG002
            return Points(3)

    with Conversation(Untyped, errors=True) as smtpd:
        smtpd.connect()
    assert "returned Points, but declares no points = (least, most)" in smtpd.errors[0]


@pytest.mark.parametrize("wrong", [3, (1, 0), (0,), ("a", "b"), (0, float("inf"))])
def test_points_are_two_numbers(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"is not \(least, most\)"):
        kind("Wrong", points=wrong)


def test_without_a_score_points_are_logged() -> None:
    with Conversation(Gives("one", ehlo=Points(2).because("so"))) as smtpd:
        assert smtpd.connect().ehlo().verb == "proceed"
    assert line(smtpd.log, "one") == "one ehlo result=proceed points=2 reason=so"


# -- look-ups --------------------------------------------------------------------------------


class Looks(Filter):
    """Decides when a test answers it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.answers: list[asyncio.Future[Decision]] = []

    async def rcpt_to(self, session: Session, address: str) -> Answer:  # noqa: ARG002
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]  # type: ignore[return-value]  # a test's


def test_a_certain_score_ends_the_look_ups(logbook: Logbook) -> None:
    filters = [Looks(name) for name in "abc"]
    of = rules({"a": 5, "b": 5, "c": 5}, reject_at=10)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        chain = made_chain(filters, of, logbook.log)
        waiting = chain.ask[PHASES["rcpt-to"]](session(), b"b@example.org")
        assert isinstance(waiting, Pending)
        decision: asyncio.Future[Decision] = loop.create_future()
        Job(loop, waiting, decision.set_result, decision.set_exception)
        assert [len(each.answers) for each in filters] == [1, 1, 1]
        filters[1].answers[0].set_result(NO)
        filters[0].answers[0].set_result(NO)
        assert (await decision).verb == "reject"
        for _ in range(5):
            await asyncio.sleep(0)
        assert filters[2].answers[0].cancelled()

    asyncio.run(test())


# -- bypass ----------------------------------------------------------------------------------


def message(client: Any, *recipients: str) -> Any:
    client.mail_from("a@example.org")
    for each in recipients:
        client.rcpt_to(each)
    return client.message(MESSAGE)


@pytest.mark.parametrize(
    ("table", "source", "bypasses"),
    [
        ({"bypass_clients": NetworkTable("192.0.2.0/24")}, {"address": "192.0.2.7"}, True),
        ({"bypass_clients": NetworkTable("192.0.2.0/24")}, {"address": "198.51.100.7"}, False),
        ({"bypass_clients": NetworkTable("local")}, {"address": "127.0.0.1"}, True),
        ({"bypass_names": HostTable("*.example.com")}, {"rdns": "a.example.com"}, True),
        (
            {"bypass_names": HostTable("*.example.com")},
            {"rdns": "a.example.com", "fcrdns": "fail"},
            False,
        ),
        ({"bypass_names": HostTable("*.example.com")}, {"rdns": None}, False),
    ],
)
def test_clients_that_bypass_the_chain(table: Any, source: Any, *, bypasses: bool) -> None:
    one = Acts("one", connect=NO, ehlo=NO, mail_from=NO, headers=NO, commit=NO)
    with converse([one], rules({"one": 2}, score_header=True, **table)) as smtpd:
        client = smtpd.connect(**source)
        client.ehlo()
        one.decisions["commit"] = PROCEED
        delivery = message(client, "b@example.org")
    assert one.asked == ([] if bypasses else ["connect", "ehlo", "mail_from", "headers", "commit"])
    assert delivery.headers.get(FIELD) == (None if bypasses else "8 one=8")


def test_users_bypass_the_chain_once_they_are_known() -> None:
    one = Acts("one", ehlo=PROCEED, mail_from=NO)
    with converse([one], rules(bypass_users=StringTable("alice"))) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert client.mail_from("a@example.org").verb == "reject"
        client.auth("alice")
        assert client.mail_from("a@example.org").verb == "proceed"
        other = smtpd.connect()
        other.ehlo()
        other.auth("bob")
        assert other.mail_from("a@example.org").verb == "reject"


@pytest.mark.parametrize("users", ["*", "{ alice, * }"])
def test_all_users_bypass_the_chain(users: str) -> None:
    one = Acts("one", mail_from=NO)
    with converse([one], rules(bypass_users=StringTable(users))) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert client.mail_from("a@example.org").verb == "reject"
        client.auth("bob")
        assert client.mail_from("a@example.org").verb == "proceed"


def test_recipients_bypass_the_chain_for_themselves() -> None:
    one = Acts("one", rcpt_to=NO, headers=NO)
    of = rules(bypass_recipients=AddressTable("postmaster@"))
    with converse([one], of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert message(client, "postmaster@example.org").verb == "proceed"
        assert one.asked == []
        one.decisions["rcpt_to"] = PROCEED
        assert message(client, "postmaster@example.org", "b@example.org").reply == NO.text
        assert one.asked == ["rcpt_to", "headers"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "of",
    [rules(bypass_recipients=AddressTable("postmaster@")), rules(bypass={"friend": ("junk",)})],
)
def test_a_recipient_about_which_the_chain_was_not_asked_does_not_bypass_it(
    of: Rules, *, first: bool
) -> None:
    friend = Acts("friend", rcpt_to=[JUNK, JUNK])
    one = Acts("one", rcpt_to=PROCEED, headers=NO)
    with converse([friend, one], of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")

        def not_asked(result: bytes) -> None:
            """Report a recipient that a filter ahead has marked, say."""
            smtpd.report("tx-rcpt", client.id.encode(), b"0f6d2b5a", result, b"b@example.org")

        not_asked(b"permfail")
        if first:
            not_asked(b"ok")
        client.rcpt_to("postmaster@example.org")
        if not first:
            not_asked(b"ok")
        assert client.message().reply == NO.text
        # It goes on with the next message.
        client.mail_from("a@example.net")
        not_asked(b"tempfail")
        client.rcpt_to("postmaster@example.org")
        assert client.message().verb == "proceed"


def test_a_recipient_that_smtpd_refuses_is_none_of_the_message() -> None:
    one = Acts("one", rcpt_to=PROCEED, headers=NO)
    with converse([one], rules(bypass_recipients=AddressTable("postmaster@"))) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("unknown@example.org", accepted=False)
        client.rcpt_to("postmaster@example.org")
        assert client.message().verb == "proceed"
        client.mail_from("a@example.net")
        client.rcpt_to("postmaster@example.com", accepted=False)
        client.rcpt_to("b@example.org")
        assert client.message().reply == NO.text


def test_a_recipient_for_which_memory_lacked_does_not_bypass_the_chain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Acts("one", rcpt_to=PROCEED, headers=NO)
    of = rules(bypass_recipients=AddressTable("postmaster@"))
    with Conversation([one], rules=of, errors=True) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        with monkeypatch.context() as patched:
            patched.setattr(chain.ScoringChain, "_ask", raise_memory_error)
            assert client.rcpt_to("b@example.org").verb == "proceed"
        client.rcpt_to("postmaster@example.org")
        assert client.message().reply == NO.text


def raise_memory_error(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("handler", ["connect", "mail_from", "rcpt_to", "headers"])
def test_a_verdict_of_a_filter_ends_the_chain(handler: str) -> None:
    one = Acts("one", **{handler: JUNK.because("listed")})
    two = Acts("two", **dict.fromkeys(HANDLERS, PROCEED) | {handler: NO, "headers": NO})
    with converse([one, two], rules(bypass={"one": ("junk",)})) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert message(client, "b@example.org").verb == "proceed"
    assert line(smtpd.log, "one").startswith(
        f"one {handler.replace('_', '-')} result=bypass reason=listed"
    )
    # It goes on with the next session, or message.
    assert (handler == "connect") == (two.asked == [])


class Friends(Filter):
    """Exempts clients at one phase, as `--exempt` of other filters does."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self._phase = phase

    def setup(self) -> Registration:
        return Registration([self._phase])

    def _friend(self, session: Session, *_: object) -> Decision:
        return exempted(self, "192.0.2.0/24") if session.address == "192.0.2.1" else PROCEED

    def connect(self, session: Session) -> Decision:
        return self._friend(session)

    def mail_from(self, session: Session, _address: str) -> Decision:
        return self._friend(session)

    def rcpt_to(self, session: Session, _address: str) -> Decision:
        return self._friend(session)

    def headers(self, session: Session, _headers: Headers) -> Decision:
        return self._friend(session)


@pytest.mark.parametrize("phase", ["connect", "mail_from", "rcpt_to", "headers"])
@pytest.mark.parametrize("bypass", [("exempt",), ()])
def test_an_exemption_ends_the_chain(phase: str, bypass: tuple[str, ...]) -> None:
    friends, two = Friends(phase), Acts("two", headers=NO)
    with converse([friends, two], rules(bypass={"friends": bypass})) as smtpd:
        for address, passes in (("192.0.2.1", bool(bypass)), ("198.51.100.1", False)):
            client = smtpd.connect(address=address)
            client.ehlo()
            assert message(client, "b@example.org").refused is not passes
    assert not any("exempt" in each for each in smtpd.log)


def test_a_bypass_by_exemption_is_logged_when_asked_for(logbook: Logbook) -> None:
    for verbose in (False, True):
        logbook.log.verbose = verbose
        of = rules(bypass={"friends": ("exempt",)})
        said(made_chain([Friends("connect")], of, logbook.log), "connect", session())
    [entry] = logbook.lines
    assert 'friends connect result=bypass reason="exempt: 192.0.2.0/24"' in entry


def test_an_exemption_may_matter_when_the_score_is_certain() -> None:
    """A filter that can only add points is asked nevertheless if it may end the chain."""
    one = Acts("one", connect=NO)
    friends, two = Friends("mail_from"), Acts("two", headers=NO)
    of = rules({"one": 5, "friends": 1}, {"friends": ("exempt",)}, junk_at=5)
    with converse([one, friends, two], of) as smtpd:
        client = smtpd.connect(address="192.0.2.1")
        client.ehlo()
        delivery = message(client, "b@example.org")
        assert delivery.verb == "proceed"
        assert "X-Spam" not in delivery.headers


def test_exemptions_have_no_points() -> None:
    with pytest.raises(TypeError, match='unknown action "exempt"'):
        rules({"one": {"exempt": -1}})


def test_an_unknown_table_bypasses_nothing() -> None:
    clients = NetworkTable("192.0.2.0/24")
    clients.unload("down")
    one = Acts("one", ehlo=NO)
    with converse([one], rules(bypass_clients=clients)) as smtpd:
        for address in ("192.0.2.7", "192.0.2.8"):
            assert smtpd.connect(address=address).ehlo().reply == NO.text
        assert any('cause="192.0.2.0/24: down"' in line for line in smtpd.log)


def test_a_failure_bypasses_nothing() -> None:
    one = Acts("one", ehlo=UnavailableError("no answer"))
    one.on_error = "junk"
    two = Acts("two", ehlo=NO)
    with converse([one, two], rules(bypass={"one": ("junk",)})) as smtpd:
        assert smtpd.connect().ehlo().reply == NO.text


def test_who_bypasses_the_chain_is_not_refused_by_the_score() -> None:
    one, friend = Acts("one", connect=NO), Acts("friend", ehlo=JUNK)
    of = rules({"one": 5}, {"friend": ("junk",)}, reject_at=5, score_at="mail-from")
    with converse([one, friend], of) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert message(client, "b@example.org").verb == "proceed"


def test_a_mark_made_before_remains() -> None:
    one, friend = Acts("one", mail_from=JUNK), Acts("friend", rcpt_to=JUNK)
    with converse([one, friend], rules(bypass={"friend": ("junk",)})) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert message(client, "b@example.org").headers.get("X-Spam") == "Yes"


def test_a_bypass_is_logged_when_asked_for(logbook: Logbook) -> None:
    of = rules(bypass_clients=NetworkTable("192.0.2.0/24"))
    for verbose in (False, True):
        logbook.log.verbose = verbose
        said(made_chain([Acts("one", connect=NO)], of, logbook.log), "connect", session())
    assert [each.partition(" ")[2] for each in logbook.lines] == [
        'bypass connect result=proceed reason="client 192.0.2.0/24"'
    ]


def test_tables_of_the_chain_are_reloaded(tmp_path: Any, logbook: Logbook) -> None:
    path = tmp_path / "friends"
    path.write_text("# nobody\n")
    of = rules(bypass_clients=NetworkTable(f"file:{path}"))
    chain = made_chain([Acts("one", connect=NO)], of, logbook.log)
    assert said(chain, "connect", session()) == NO
    path.write_text("192.0.2.1\n")
    for _ in chain.reload():
        pass
    assert said(chain, "connect", session()) == PROCEED
    assert logbook.lines[-1] == (f"bypass reload table=clients result=ok file={path} entries=1")
