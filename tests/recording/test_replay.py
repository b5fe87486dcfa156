from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from smtpd_filters.protocol.vocabulary import PHASES, REPORTS
from smtpd_filters.recording import Recording
from smtpd_filters.recording.format import FROM_FILTER
from smtpd_filters.recording.replay import Replay, Step
from smtpd_filters.testing import Verdict, play
from tests.effort import SHARE
from tests.testing.test_conversation import GO, NO, Says

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol"
PATHS = sorted(FIXTURES.glob("*/*.session"))
PLAIN = FIXTURES / "7.8.0p1" / "ehlo-message.session"
every = pytest.mark.parametrize(
    "path", PATHS[::SHARE], ids=lambda path: f"{path.parent.name}/{path.stem}"
)

EVERYTHING = b"".join(
    [b"register|report|smtp-in|%s\n" % name.encode() for name in REPORTS]
    + [b"register|filter|smtp-in|%s\n" % name.encode() for name in (*PHASES, "data-line")]
    + [b"register|ready\n"]
)
#: What a filter says, by phase, each time it is asked; then it proceeds.
Answers = dict[str, list[bytes]]


def through(replay: Replay, answers: Answers, registered: bytes = EVERYTHING) -> list[Step]:
    """Play the steps to a filter with these answers that returns messages unchanged."""
    replay.handshake()
    replay.receive(registered)
    assert replay.ready
    steps = []
    for step in replay.steps():
        steps.append(step)
        for row in step.data.split(b"\n")[:-1]:
            fields = row.split(b"|", 7)
            if fields[0] != b"filter":
                continue
            name, ids = fields[4].decode(), b"|".join(fields[5:7])
            if name == "data-line":
                replay.receive(b"filter-dataline|%b|%b\n" % (ids, fields[7]))
            else:
                wire = answers[name].pop(0) if answers.get(name) else b"proceed"
                replay.receive(b"filter-result|%b|%b\n" % (ids, wire))
        assert not step.waiting
    replay.finish()
    return steps


def sent(steps: list[Step]) -> list[bytes]:
    """Return the lines that smtpd wrote, without tokens."""
    rows = b"".join(step.data for step in steps).split(b"\n")[:-1]
    return list(map(anonymous, rows))


def anonymous(row: bytes) -> bytes:
    fields = row.split(b"|", 7)
    if fields[0] == b"filter":
        # Lines that stand together are written at once, at the time of the first.
        fields[2], fields[6] = b"TIME", b"TOKEN"
    return b"|".join(fields)


def recorded_answers(recording: Recording) -> Answers:
    """Return the recorded answers by phase, for recordings of one session at a time."""
    answers: Answers = defaultdict(list)
    phase = ""
    for direction, line in recording.entries:
        if line.startswith(b"filter|"):
            phase = line.split(b"|", 5)[4].decode()
        elif direction == FROM_FILTER and line.startswith(b"filter-result|"):
            answers[phase].append(line.split(b"|", 3)[3])
    return answers


@every
def test_the_same_answers_bring_the_same_events(path: Path) -> None:
    recording = Recording.read(path)
    if path.stem.startswith("concurrent"):
        answers: Answers = {}
    else:
        answers = recorded_answers(recording)
    replay = Replay(recording)
    steps = through(replay, answers)
    # Two filters in a chain make two responses to a request of one, and smtpd's order of reports
    # beside lines is not strict; both are in what was recorded and in what was sent.
    events = [anonymous(line) for line in recording.to_filter() if not line.startswith(b"config|")]
    assert sent(steps) == events
    for outcome in replay.outcomes:
        if outcome.phase != "data-line":
            assert outcome.verdict == outcome.recorded
            assert not outcome.differs


def reported(steps: list[Step], *prefixes: bytes) -> list[bytes]:
    """Return name and values of the reports with these beginnings."""
    found = []
    for row in sent(steps):
        fields = row.split(b"|", 6)
        if fields[0] == b"report" and fields[4].startswith(prefixes):
            found.append(b"|".join([fields[4], *fields[6:]]))
    return found


def reached(replay: Replay) -> list[str]:
    return [step.phase for step in replay.outcomes if step.verdict is not None]


PLAIN_PHASES = ["connect", "ehlo", "mail-from", "rcpt-to", "data", "data-line", "commit", "quit"]
REJECT, DISCONNECT = b"reject|" + NO.text.encode(), b"disconnect|" + GO.text.encode()


@pytest.mark.parametrize(
    ("phase", "unreached", "expected"),
    [
        ("connect", [], ["tx-begin", "tx-mail", "tx-envelope", "tx-rcpt", "tx-data", "tx-commit"]),
        ("ehlo", PLAIN_PHASES[2:7], []),
        ("mail-from", PLAIN_PHASES[3:7], []),
        (
            "rcpt-to",
            PLAIN_PHASES[4:7],
            ["tx-begin", "tx-mail", "tx-rcpt permfail", "tx-rollback"],
        ),
        (
            "data",
            PLAIN_PHASES[5:7],
            ["tx-begin", "tx-mail", "tx-envelope", "tx-rcpt", "tx-data permfail", "tx-rollback"],
        ),
        (
            "commit",
            [],
            [
                *("tx-begin", "tx-mail", "tx-envelope", "tx-rcpt", "tx-data"),
                *("tx-data permfail", "tx-rollback"),
            ],
        ),
        ("quit", [], ["tx-begin", "tx-mail", "tx-envelope", "tx-rcpt", "tx-data", "tx-commit"]),
    ],
)
def test_a_refusal_ends_the_transaction(
    phase: str, unreached: list[str], expected: list[str]
) -> None:
    replay = Replay(Recording.read(PLAIN))
    steps = through(replay, {phase: [REJECT]})
    assert reached(replay) == [name for name in PLAIN_PHASES if name not in unreached]
    told = [line.decode().split("|") for line in reported(steps, b"tx-")]
    names = [
        fields[0] + (f" {fields[2]}" if fields[2:3] == ["permfail"] else "") for fields in told
    ]
    assert [name for name in names if name != "tx-reset"] == expected
    assert (names[-1:] == ["tx-reset"]) == bool(expected)
    (refused,) = (step for step in replay.outcomes if step.phase == phase)
    assert refused.differs
    assert refused.verdict == Verdict(phase, "reject", reply=NO.text)
    assert bool(reported(steps, b"link-identify")) == (phase != "ehlo")
    assert reported(steps, b"link-disconnect") == [b"link-disconnect"]
    if phase not in {"connect", "quit"}:
        replay.oracle.verify()


@pytest.mark.parametrize("phase", PLAIN_PHASES)
def test_a_disconnect_ends_the_session(phase: str) -> None:
    if phase == "data-line":
        return
    replay = Replay(Recording.read(PLAIN))
    steps = through(replay, {phase: [DISCONNECT]})
    assert reached(replay) == PLAIN_PHASES[: PLAIN_PHASES.index(phase) + 1]
    assert [step.phase for step in replay.outcomes] == PLAIN_PHASES
    assert all(step.differs for step in replay.outcomes[len(reached(replay)) - 1 :])
    ends = [line.partition(b"|")[0] for line in reported(steps, b"tx-r", b"link-d", b"tx-c")]
    rolled_back = [b"tx-rollback", b"tx-reset"] if phase in {"rcpt-to", "data", "commit"} else []
    gone = [b"tx-commit", b"tx-reset"] if phase == "quit" else rolled_back
    assert [end for end in ends if end != b"tx-rcpt"] == [*gone, b"link-disconnect"]
    failed = {"rcpt-to": b"tx-rcpt", "data": b"tx-data", "commit": b"tx-data"}
    results = [line for line in reported(steps, b"tx-") if b"|tempfail" in line]
    assert [line.partition(b"|")[0] for line in results] == [
        failed[name] for name in (phase,) if name in failed
    ]
    replay.oracle.verify()


@pytest.mark.parametrize(
    ("name", "phase", "report"),
    [("starttls", "starttls", b"link-tls"), ("auth-login-ok", "auth", b"link-auth")],
)
def test_a_refusal_suppresses_later_reports(name: str, phase: str, report: bytes) -> None:
    recording = Recording.read(PLAIN.with_name(f"{name}.session"))
    assert reported(through(Replay(recording), {}), report)
    assert reported(through(Replay(recording), {phase: [REJECT]}), report) == []


def test_one_remaining_recipient_is_enough() -> None:
    recording = Recording.read(PLAIN.with_name("rcpts-some-rejected.session"))
    replay = Replay(recording)
    steps = through(replay, {"rcpt-to": [REJECT]})
    assert replay.outcomes[3].phase == "rcpt-to"
    results = [line.split(b"|")[2] for line in reported(steps, b"tx-rcpt")]
    assert results[0] == b"permfail"
    replay.oracle.verify()


def test_a_refusal_does_not_affect_the_next_transaction() -> None:
    recording = Recording.read(PLAIN.with_name("multi-transaction.session"))
    for phase in ("mail-from", "rcpt-to", "data", "commit"):
        replay = Replay(recording)
        steps = through(replay, {phase: [REJECT]})
        assert reached(replay).count("mail-from") == 3
        assert len(reported(steps, b"tx-commit")) == 2
        replay.oracle.verify()


def test_the_junk_mark_follows_the_new_decision() -> None:
    def first_line(name: str, answers: Answers) -> bytes:
        steps = through(Replay(Recording.read(PLAIN.with_name(f"{name}.session"))), answers)
        (row,) = [row for row in sent(steps) if b"|data-line|" in row][:1]
        return row.split(b"|", 7)[7]

    assert first_line("ehlo-message", {"ehlo": [b"junk"]}) == b"X-Spam: Yes"
    assert first_line("ehlo-message", {"rcpt-to": [b"junk"]}) == b"X-Spam: Yes"
    assert first_line("ehlo-message", {}).startswith(b"Received: ")
    assert first_line("junk-at-ehlo", {"ehlo": [b"junk"]}) == b"X-Spam: Yes"
    assert first_line("junk-at-ehlo", {}).startswith(b"Received: ")


def test_the_name_follows_the_new_rewrite() -> None:
    steps = through(Replay(Recording.read(PLAIN)), {"ehlo": [b"rewrite|new.example"]})
    assert reported(steps, b"link-identify") == [b"link-identify|EHLO|new.example"]
    assert reported(steps, b"filter-response")[1] == b"filter-response|ehlo|rewrite|new.example"


def test_a_filter_gets_what_it_registered() -> None:
    replay = Replay(Recording.read(PLAIN))
    registered = b"register|report|smtp-in|tx-mail\nregister|filter|smtp-in|quit\nregister|ready\n"
    steps = through(replay, {}, registered)
    assert [row.split(b"|")[4] for row in sent(steps)] == [b"tx-mail", b"quit"]
    assert [step.phase for step in replay.outcomes] == PLAIN_PHASES
    assert [step.phase for step in replay.outcomes if step.verdict and step.verdict.asked] == [
        "quit"
    ]
    assert not any(step.differs for step in replay.outcomes)


def test_tokens_are_the_filters_own_and_the_same_for_each_phase() -> None:
    recording = Recording.read(PLAIN.with_name("multi-transaction.session"))
    steps = through(Replay(recording), {})
    tokens = defaultdict(set)
    for row in b"".join(step.data for step in steps).split(b"\n"):
        fields = row.split(b"|", 7)
        if fields[0] == b"filter":
            tokens[fields[4]].add(fields[6])
    assert all(len(of) == 1 for of in tokens.values())
    assert len(set.union(*tokens.values())) == len(tokens)
    assert not any(token in line for line in recording.to_filter() for (token,) in tokens.values())


@pytest.mark.parametrize(
    ("protocol", "server"), [((0, 5), b"6.6.4"), ((0, 6), b"6.8.0p2"), ((0, 7), b"7.8.0-portable")]
)
def test_a_recording_is_played_in_another_version(protocol: tuple[int, int], server: bytes) -> None:
    recording = Recording.read(PLAIN.with_name("auth-login-ok.session"))
    replay = Replay(recording, protocol=protocol)
    shake = replay.handshake()
    assert shake.startswith(b"config|smtpd-version|" + server + b"\n")
    assert (b"config|protocol|0.7\n" in shake) == (protocol == (0, 7))
    assert shake.endswith(b"config|admd|vm\nconfig|ready\n")
    steps = through(Replay(recording, protocol=protocol), {})
    auth = [b"pass|user", b"user|pass"][protocol < (0, 7)]
    assert reported(steps, b"link-auth") == [b"link-auth|" + auth]


def test_steps_have_the_new_and_the_recorded_verdict() -> None:
    steps = play(PLAIN.with_name("reject-at-mail-from.session"), Says(rcpt_to=NO), protocol=(0, 6))
    (mail,) = (step for step in steps if step.phase == "mail-from")
    assert mail.differs
    assert mail.recorded == Verdict("mail-from", "reject", reply="550 5.7.1 rejected at mail-from")
    assert mail.verdict == Verdict("mail-from", "proceed", parameter="s@lab.test")
    assert str(mail.recorded) == "reject 550 5.7.1 rejected at mail-from"
    assert str(mail.verdict) == "proceed"


def test_any_recording_can_be_played() -> None:
    odd = [
        (">", b"filter-result|1|2|proceed"),
        (">", b"filter-dataline|1|2|x"),
        ("<", b"nonsense"),
        ("<", b"report|0.7|1.0|smtp-out|link-connect|a1|r|pass|a:1|b:2"),
        ("<", b"report|0.7|1.0|smtp-in|tx-new|a1|x"),
        ("<", b"filter|0.7|1.0|smtp-in|new-phase|a1|b1|x"),
        (">", b"filter-result|a1|b1|proceed"),
        ("<", b"filter|0.7|1.0|smtp-in|data-line|a1|b1|x"),
        ("#", b"a remark"),
        ("<", b"filter|0.7|1.0|smtp-in|data-line|a1|b1|."),
        (">", b"filter-dataline|a1|b1|."),
        (">", b"filter-dataline|a1|b1|late"),
    ]
    replay = Replay(Recording({}, odd))
    through(replay, {})
    (message,) = replay.outcomes
    assert message.recorded == Verdict("data-line", "changed", lines=())
    assert message.verdict == Verdict("data-line", "unchanged", lines=(b"x",))
