"""The demonstration shows what is true, on a real smtpd and replayed, and says so if it isn't."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.testing.server import LabError
from tests.demo import __main__ as demo
from tests.demo.configuration import CONF, chains, commands, laboratory
from tests.demo.live import serve
from tests.demo.log import read_log
from tests.demo.neighbours import (
    INBOX,
    JUNK,
    NEIGHBOURS,
    NOWHERE,
    REFUSED,
    SMTP,
    SUBMISSION,
    Outcome,
    Said,
)
from tests.demo.recorded import in_order, replay
from tests.demo.report import show, summary, unexpected
from tests.demo.sheet import NARROW, Cell, Entry, Painter, table, wrap

PLAIN = Painter(colour=False)
COLOUR = re.compile("\033\\[[0-9]*m")


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {each.neighbour.who: each for each in outcomes}


ALONE = ["rdns", "fcrdns", "dyndns", "mailfrom"]


def of_alone(outcome: Outcome) -> Outcome:
    """The same without what is said by filters that ask others."""
    said = [each for each in outcome.said if each.filter in ALONE]
    return outcome._replace(said=said, silent=[each for each in outcome.silent if each in ALONE])


def check_facts(outcomes: list[Outcome]) -> None:
    """Check the expected results of the demonstration, on any server."""
    assert [each.place for each in outcomes] == [INBOX, JUNK, REFUSED, JUNK, REFUSED, INBOX, INBOX]
    assert unexpected(outcomes) == []
    of = by_name(outcomes)
    assert of["a good host"].rdns == "mail.good.example"
    assert of["a good host"].answered.reply.startswith("250 2.0.0 ")
    assert {said.verb for said in of["a good host"].said} == {"proceed"}
    assert of["a good host"].silent == []

    [dynamic] = [said for said in of["a dynamic address"].said if said.verb != "proceed"]
    assert dynamic[:3] == ("dyndns", "connect", "junk")
    assert dynamic.reason.startswith("rdns 203-0-113-77.dsl.pool.isp.example ")

    unnamed = of["no reverse name"]
    assert unnamed.rdns == "<unknown>"
    assert unnamed.said == [Said("rdns", "connect", "reject", "no reverse name")]
    assert unnamed.silent == ["fcrdns", "dyndns", "mailfrom"]
    assert unnamed.answered.command == "connect"
    assert unnamed.answered.reply.startswith("421 4.7.25 ")

    liar = of["a name that isn't its own"]
    assert Said("rdns", "connect", "proceed", "") in liar.said
    [unconfirmed] = [said for said in liar.said if said.verb == "junk"]
    assert unconfirmed.filter == "fcrdns"
    assert unconfirmed.reason == "rdns mail.bank.example not confirmed for 198.51.100.66"

    spoof = of["spoofs our domain"]
    assert spoof.said[-1][:3] == ("mailfrom", "mail-from", "reject")
    assert "boss@example.org" in spoof.said[-1].reason
    assert spoof.answered.command == "MAIL FROM"
    assert spoof.answered.reply.startswith("550 5.7.1 ")

    assert {said.filter for said in of["trusted: our scanner"].said} == set(ALONE)
    alice = of["alice, logged in, at home"]
    assert alice.said == [Said("mailfrom", "mail-from", "proceed", "exempt: authenticated")]


def conf() -> str:
    return CONF.read_text("utf-8")


# -- on a real server ------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_real_server(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--server", version, "--width", "100"]) == 0
    shown = capsys.readouterr().out
    assert f"On a real smtpd {version}: 10 messages: 3 delivered, 3 junk, 4 refused, in " in shown
    assert "alice: Junk" in shown
    assert "550 your IP reputation" in shown
    assert "554 5.7.1 Gtube pattern" in shown
    assert "421 4.7.25 " in shown
    assert "\033" not in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.e2e
def test_the_replay_is_true(version: str) -> None:
    live = serve(version)
    assert {said.filter for each in live for said in each.said} == set(commands(conf()))
    for each in live:
        if each.neighbour.judge:
            assert each.place == each.neighbour.expected
            objectors = {said.filter for said in each.said if said.verb != "proceed"}
            assert objectors == {each.neighbour.judge}
            [verb] = {said.verb for said in each.said if said.verb != "proceed"}
            assert (verb == "junk") is (each.place == JUNK)
    alone = [of_alone(each) for each in live if not each.neighbour.judge]
    check_facts(alone)
    for real, replayed in zip(alone, replay(), strict=True):
        assert real[:4] == replayed[:4]
        assert real.place == replayed.place
        assert real.answered.command == replayed.answered.command
        # Message ids are the server's own.
        assert real.answered.reply.split()[:2] == replayed.answered.reply.split()[:2]


# -- replayed --------------------------------------------------------------------------------------


def test_the_replay() -> None:
    check_facts(replay())


def test_what_is_missing_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "unavailable", lambda _version: "no smtpd here")
    monkeypatch.setenv("SMTPD_FILTERS_E2E", "required")
    assert demo.main([]) == 1
    assert capsys.readouterr().err == "no smtpd here\n"
    monkeypatch.delenv("SMTPD_FILTERS_E2E")
    assert demo.main([]) == 0
    first, blank, *rest = capsys.readouterr().out.splitlines()
    assert first == "No real smtpd: no smtpd here. Recorded sessions are replayed instead."
    assert not blank
    assert any(line.startswith("Replayed from a recording: 7 messages") for line in rest)


def test_a_server_that_fails_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_server: str) -> list[Outcome]:
        raise LabError("smtpd did not start")

    monkeypatch.setattr(demo, "unavailable", lambda _version: None)
    monkeypatch.setattr(demo, "serve", fail)
    assert demo.main([]) == 1
    assert capsys.readouterr().err == "smtpd did not start\n"


def test_what_is_not_expected_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = replay()
    outcomes[0] = outcomes[0]._replace(place=NOWHERE)
    monkeypatch.setattr(demo, "replay", lambda: outcomes)
    assert demo.main(["--replay"]) == 1
    shown = capsys.readouterr().out
    assert "NOT AS EXPECTED: a good host: nowhere, not Inbox" in shown
    assert "EXPECTED Inbox" in shown
    assert "2 delivered, 2 junk, 2 refused, 1 lost" in shown


def test_a_wrong_flag() -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(["--server", "5.0"])
    assert caught.value.code == 2


def test_smtpd_stops_asking_when_one_has_spoken() -> None:
    proceed = Said("a", "connect", "proceed", "")
    junk = Said("b", "connect", "junk", "why")
    unasked = Said("c", "connect", "reject", "why")
    later = Said("c", "mail-from", "proceed", "")
    refusal = Said("d", "mail-from", "reject", "why")
    last = Said("a", "rcpt-to", "proceed", "")
    verdicts = [last, proceed, junk, unasked, later, refusal]
    assert in_order(verdicts) == ([proceed, junk, later, refusal], refusal)
    assert in_order([last, proceed]) == ([proceed, last], None)


# -- configuration and log -------------------------------------------------------------------------


def test_the_configuration() -> None:
    assert len([line for line in conf().splitlines() if line]) == 18
    assert chains(conf()) == {
        SMTP: ["rdns", "senderscore", "fcrdns", "dyndns", "mailfrom", "rspamd"],
        SUBMISSION: ["mailfrom", "rspamd"],
    }
    assert commands(conf())["dyndns"] == "filter-dyndns --action junk --supervised"
    changed = laboratory(conf(), "http://127.0.0.1:1")
    # What decides about mail is the operator's.
    for line in conf().splitlines():
        if line.startswith("match"):
            assert line in changed
        if line.startswith("filter"):
            name, *flags = line.removesuffix('"').partition('"filter-')[2].split()
            found = re.findall(rf'proc-exec "\S+/filter-{name} (.*)"', changed)
            assert any(set(flags) <= set(each.split()) for each in found)
    assert "filter-rspamd -url http://127.0.0.1:1 " in changed


def test_a_configuration_that_does_not_suit_is_refused() -> None:
    with pytest.raises(LabError, match="no match for"):
        laboratory(conf().replace("maildir junk", "maildir"), "")


def test_the_log() -> None:
    lines = [
        "0123456789abcdef smtp connected address=192.0.2.1 host=a.example",
        r'one: 0123456789abcdef fcrdns connect result=junk reason="a \"b\" \\c" took=0.1ms',
        "two: 0123456789abcdef dyndns connect result=proceed took=0.0ms",
        "two: 0123456789abcdef dyndns helo result=junk reason=word took=0.0ms",
        "0123456789abcdef smtp disconnected reason=quit",
    ]
    sessions, said = read_log(lines)
    assert sessions["192.0.2.1"] == ("0123456789abcdef", "a.example")
    assert said == {
        "0123456789abcdef": [
            Said("one", "connect", "junk", r'a "b" \c'),
            Said("two", "connect", "proceed", ""),
            Said("two", "helo", "junk", "word"),
        ]
    }


def test_neighbours_are_told_apart() -> None:
    assert len({each.address for each in NEIGHBOURS}) == len(NEIGHBOURS)
    assert len({each.who for each in NEIGHBOURS}) == len(NEIGHBOURS)


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 150])
def test_the_table_fits_and_colour_changes_nothing(width: int) -> None:
    plain = show(replay(), width, PLAIN, "-")
    coloured = show(replay(), width, Painter(colour=True), "-")
    assert max(map(len, plain)) <= width
    assert [COLOUR.sub("", line) for line in coloured] == plain
    assert any(COLOUR.search(line) for line in coloured)


def test_the_sum() -> None:
    assert summary(replay(), 1.26) == "7 messages: 3 delivered, 2 junk, 2 refused, in 1.3 s."


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one two", ["one two"]),
        ("one two three", ["one two", "  three"]),
        ("a mail.exam.org", ["a mail.", "  exam.", "  org"]),
        ("xxxxxxxxxxxx", ["xxxxxx", "  xxxxxx"]),
    ],
)
def test_wrap(text: str, lines: list[str]) -> None:
    assert wrap(text, 8) == lines


words = st.text("ab.-@", min_size=1, max_size=30)


@given(st.lists(words, max_size=12), st.integers(4, 60))
def test_wrapped_text_fits_and_is_whole(text: list[str], width: int) -> None:
    lines = wrap(" ".join(text), width)
    assert all(len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text)


cells = st.lists(st.builds(Entry, words, st.sampled_from(["", "some text"])), max_size=4)


@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=5), st.integers(3, 120))
def test_a_table_has_no_more_than_its_width(rows: list[list[Cell]], width: int) -> None:
    lines = table(("a", "b", "c"), rows, width, PLAIN)
    assert all(len(line) <= max(width, 3 * NARROW + 4) for line in lines)
