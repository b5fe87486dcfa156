from __future__ import annotations

import asyncio
import subprocess
import sys
from time import monotonic, perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.filters.senderscore import NEUTRAL, UNREGISTERED, Senderscore, _read
from smtpd_filters.lookups.outcome import Found
from smtpd_filters.testing import Conversation, DNSServer, Verdict
from tests.effort import brief, some
from tests.filters.executables import at_once, complaint
from tests.runtime.process import FilterProcess, sid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from smtpd_filters.testing import Client, Delivery

ZONE = "score.senderscore.com"
REPLY = "550 your IP reputation is too low for this MX"
HEAD = "0.7|1576146008.006099|smtp-in"
PHASES = ("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "quit")
EVERY = {*PHASES, "data", "data-line", "commit"}
MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nhello\r\n"


def name(address: str, zone: str = ZONE) -> str:
    return f"{'.'.join(reversed(address.split('.')))}.{zone}"


def scored(*scores: int, zone: str = ZONE) -> dict[str, Any]:
    """A zone in which 192.0.2.N has the score N."""
    return {name(f"192.0.2.{score}", zone): {"A": f"127.0.4.{score}"} for score in scores}


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(scored(*range(101))) as running:
        yield running


@pytest.fixture(scope="module")
def shared() -> Iterator[DNSServer]:
    """One server for all examples; no test looks at its queries."""
    with DNSServer(scored(*range(101))) as running:
        yield running


def asking(server: DNSServer, *flags: str) -> tuple[str, ...]:
    return ("--nameserver", f"{server.address}:{server.port}", *flags)


def come(  # noqa: PLR0913  # all that a client does
    smtpd: Conversation,
    address: str = "192.0.2.7",
    *,
    helo: bool = False,
    tls: bool = False,
    user: str = "",
    local: bool = False,
    dest: str = "198.51.100.25:25",
) -> Verdict:
    """Send a message: the first verdict that isn't to proceed, or the last."""
    there = smtpd.connect(address=address, local=local, dest=dest)
    said = there.greeting
    steps: list[Callable[[], Verdict]] = [
        there.helo if helo else there.ehlo,
        *((there.tls, there.ehlo) if tls else ()),
        *([lambda: there.auth(user)] if user else []),
        lambda: there.mail_from("bob@example.net"),
        lambda: there.rcpt_to("anna@example.org"),
        lambda: there.message(MESSAGE),
        there.quit,
    ]
    for step in steps:
        # A refusal of credentials is given at the next command.
        if said.phase != "auth" and said.verb not in {"proceed", "unchanged"}:
            break
        said = step()
    return said


def verdict(*flags: str, **client: Any) -> Verdict:
    with Conversation(Senderscore, *flags) as smtpd:
        return come(smtpd, **client)


def score_seen(server: DNSServer) -> list[str]:
    with Conversation(Senderscore, *asking(server, "-scoreHeader")) as smtpd:
        there = smtpd.connect()
        there.ehlo()
        return scores(there)


def scores(there: Client) -> list[str]:
    """The score fields of one more message of this client, as it is delivered."""
    return delivered(there, MESSAGE).headers.get_all("X-SenderScore")


def delivered(there: Client, message: bytes) -> Delivery:
    """One more message of this client, as it is delivered."""
    there.mail_from("bob@example.net")
    there.rcpt_to("anna@example.org")
    return there.message(message)


def sent(smtpd: Conversation, message: bytes = MESSAGE, **client: Any) -> Delivery:
    """A message of a new client, as it is delivered."""
    there = smtpd.connect(**client)
    there.ehlo()
    return delivered(there, message)


# -- what a score does ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "verb"),
    [(0, "disconnect"), (49, "disconnect"), (50, "junk"), (79, "junk"), (80, "proceed")],
)
@pytest.mark.parametrize("spelling", ["-", "--"])
def test_the_thresholds(server: DNSServer, score: int, verb: str, spelling: str) -> None:
    flags = (f"{spelling}blockBelow", "50", f"{spelling}junkBelow=80")
    said = verdict(*asking(server), *flags, address=f"192.0.2.{score}")
    assert said.verb == verb
    if verb == "disconnect":
        assert (said.phase, said.reply) == ("connect", REPLY)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("score", [49, 50])
def test_who_is_blocked_is_told_so_at_the_phase(server: DNSServer, phase: str, score: int) -> None:
    flags = asking(server, "-blockBelow", "50", "-blockPhase", phase)
    how = {"helo": phase == "helo", "tls": True, "user": "anna" if phase == "auth" else ""}
    said = verdict(*flags, **how, address=f"192.0.2.{score}")
    if score < 50:
        given = "mail-from" if phase == "auth" else phase
        assert (said.phase, said.verb, said.reply) == (given, "disconnect", REPLY)
    else:
        assert not said.refused


def test_a_client_greets_with_helo_or_ehlo(server: DNSServer) -> None:
    """As in the original: who blocks at one of them doesn't block at the other."""
    for phase in ("helo", "ehlo"):
        flags = asking(server, "-blockBelow", "50", "-blockPhase", phase)
        for helo in (False, True):
            said = verdict(*flags, helo=helo)
            assert said.refused is (helo is (phase == "helo"))


def test_junk_is_said_at_connect_whenever_others_are_blocked(server: DNSServer) -> None:
    flags = asking(server, "-blockBelow", "50", "-blockPhase", "rcpt-to", "-junkBelow", "80")
    with Conversation(Senderscore, *flags) as smtpd:
        there = smtpd.connect(address="192.0.2.20")
        assert there.greeting.verb == "junk"
        there.ehlo()
        there.mail_from("bob@example.net")
        assert there.rcpt_to("anna@example.org").reply == REPLY


def test_a_threshold_of_zero_blocks_nobody(server: DNSServer) -> None:
    for flags in ([], ["-blockBelow", "0"], ["-junkBelow", "0"], ["-blockBelow", "-1"]):
        with Conversation(Senderscore, *asking(server), *flags) as smtpd:
            assert come(smtpd, "192.0.2.0").verb == "proceed"
            assert smtpd.phases == set()


def test_the_verdict_has_the_score_in_the_log(server: DNSServer) -> None:
    with Conversation(Senderscore, *asking(server, "-blockBelow", "50", "-junkBelow=80")) as smtpd:
        come(smtpd, "192.0.2.20")
        come(smtpd, "192.0.2.60")
        come(smtpd, "192.0.2.99")
        one, two = smtpd.log
        assert f'senderscore connect result=disconnect reason="score 20" reply="{REPLY}"' in one
        assert 'senderscore connect result=junk reason="score 60"' in two


# -- what smtpd is asked to ask ------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "phases"),
    [
        ("", set()),
        ("-blockPhase rcpt-to", set()),
        ("-blockBelow 50", {"connect"}),
        ("-blockBelow 50 -blockPhase rcpt-to", {"rcpt-to"}),
        ("-blockBelow 50 -blockPhase quit", {"quit"}),
        (
            "-blockBelow 50 -blockPhase auth -junkBelow 60",
            {"auth", "connect", "mail-from", "noop", "rset"},
        ),
        ("-junkBelow 60", {"connect"}),
        # What could not be kept is refused at commit.
        ("-scoreHeader", {"data-line", "commit"}),
        ("-slowFactor 1000", EVERY - {"data-line"} | {"noop", "rset"}),
        ("-slowFactor 0", set()),
        ("-testMode", EVERY | {"noop", "rset"}),
        ("-testMode -blockBelow 50 -scoreHeader", EVERY | {"noop", "rset"}),
    ],
)
def test_only_the_phases_that_are_needed_are_asked(flags: str, phases: set[str]) -> None:
    with Conversation(Senderscore, "--nameserver", "127.0.0.1:9", *flags.split()) as smtpd:
        assert smtpd.phases == phases
        assert smtpd.reports == {"link-connect", "link-disconnect"}


@pytest.mark.parametrize("flag", ["", "-testMode"])
def test_without_a_use_for_scores_nobody_is_asked(flag: str) -> None:
    with DNSServer({}) as idle:
        with Conversation(Senderscore, *asking(idle), *flag.split()) as smtpd:
            come(smtpd)
        assert idle.queries == []


# -- the header ----------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "value"), [(0, ["0"]), (42, ["42"]), (100, ["100"])])
def test_the_header_has_the_score(server: DNSServer, score: int, value: list[str]) -> None:
    with Conversation(Senderscore, *asking(server, "-scoreHeader")) as smtpd:
        there = smtpd.connect(address=f"192.0.2.{score}")
        there.ehlo()
        # The original marks the first message of a session only.
        for _ in range(3):
            assert scores(there) == value


def test_the_header_stands_above_everything_else(server: DNSServer) -> None:
    with Conversation(Senderscore, *asking(server, "-scoreHeader")) as smtpd:
        mail = sent(smtpd, address="192.0.2.42")
        assert mail.content == (b"X-SenderScore: 42", *mail.sent)


@pytest.mark.parametrize("address", ["192.0.2.142", "2001:db8::1"])
def test_there_is_no_header_without_a_score(server: DNSServer, address: str) -> None:
    with Conversation(Senderscore, *asking(server, "-scoreHeader")) as smtpd:
        assert sent(smtpd, address=address).unchanged


FORGED = b"X-SENDERSCORE: 100\r\nSubject: hello\r\nX-SenderScore:\r\n 99\r\n\r\nhello\r\n"


@pytest.mark.parametrize(
    ("client", "fields"),
    [
        ({"address": "192.0.2.42"}, ["42"]),
        ({"address": "192.0.2.142"}, []),
        ({"address": "2001:db8::1"}, []),
        # Mail comes back from a scanner with the field that it was given when it came.
        ({"local": True}, ["100", "99"]),
        ({"address": "127.0.0.1"}, ["100", "99"]),
    ],
)
def test_a_header_that_a_client_made_is_removed(
    server: DNSServer, client: dict[str, Any], fields: list[str]
) -> None:
    with Conversation(Senderscore, *asking(server, "-scoreHeader")) as smtpd:
        mail = sent(smtpd, FORGED, **client)
        assert mail.headers.get_all("x-senderscore") == fields
        assert mail.body == b"hello\n"


def test_a_header_that_a_client_made_is_removed_though_the_score_is_unknown() -> None:
    with DNSServer({name("192.0.2.7"): {"servfail": True}}) as broken:
        flags = asking(broken, "-scoreHeader")
        with Conversation(Senderscore, *flags) as smtpd:
            assert "X-SenderScore" not in sent(smtpd, FORGED, address="192.0.2.7").headers
            assert "SERVFAIL" in smtpd.log[0]


class Hasty(Senderscore):
    """Its look-ups get a small part of the deadline, so that the rest suffices on any machine."""

    share = 0.01


def is_overdue(dead: DNSServer, line: str) -> bool:
    """Return whether a line of the log says that the deadline ended a look-up.

    On a busy machine it may have passed before the query was sent.
    """
    causes = (f"{dead.address}:{dead.port} timeout", "deadline passed")
    return any(f'cause="{cause}"' in line for cause in causes)


def test_a_header_that_a_client_made_is_removed_though_no_time_is_left() -> None:
    with DNSServer({name("192.0.2.7"): {"drop": True}}) as dead:
        flags = asking(dead, "-scoreHeader", "--deadline", "10s")
        with Conversation(Hasty, *flags) as smtpd:
            assert "X-SenderScore" not in sent(smtpd, FORGED, address="192.0.2.7").headers
            assert is_overdue(dead, smtpd.log[0])


# -- who is neutral ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "client",
    [
        {"local": True},
        {"address": "2001:db8::1"},
        {"address": "127.0.0.1"},
        {"address": "::ffff:127.0.0.1"},
        {"address": "::1"},
    ],
)
def test_local_clients_and_those_over_ipv6_are_neutral(
    client: dict[str, Any], naps: list[float]
) -> None:
    with DNSServer({f"*.{ZONE}": {"A": "127.0.4.1"}}) as server:
        flags = asking(server, "-blockBelow", "101", "-junkBelow=101", "-slowFactor=60000")
        assert verdict(*flags, **client).verb == "proceed"
        assert server.queries == []
    assert naps == []


@pytest.mark.parametrize(
    ("flags", "verb"),
    [
        (["-blockBelow=8"], "disconnect"),
        (["-blockBelow=8", "-testMode"], "disconnect"),
        (["-blockBelow=8", "-allowlist={ 192.0.2.0/28 }"], "proceed"),
    ],
)
def test_an_ipv4_client_at_an_ipv6_socket_has_its_score(
    server: DNSServer, flags: list[str], verb: str
) -> None:
    said = verdict(*asking(server, *flags), address="::ffff:192.0.2.7", dest="[::ffff:10.0.0.1]:25")
    assert said.verb == verb


def test_who_is_not_in_the_zone_is_neutral(server: DNSServer) -> None:
    flags = asking(server, "-blockBelow", "101", "--on-error", "tempfail")
    with Conversation(Senderscore, *flags) as smtpd:
        assert come(smtpd, "192.0.2.200").verb == "proceed"
        assert smtpd.log == []


def test_a_name_without_addresses_is_neutral() -> None:
    with DNSServer({name("192.0.2.7"): {"TXT": "nothing"}}) as server:
        flags = asking(server, "-blockBelow", "101", "--on-error", "tempfail")
        assert verdict(*flags).verb == "proceed"


ALLOWED = "192.0.2.1\n\n# ours\n192.0.2.64/26 # and theirs\n"


@pytest.mark.parametrize("form", ["{}", "file:{}", "relative"])
def test_the_allow_list(
    server: DNSServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "relative"
    file.write_text(ALLOWED)
    server.queries.clear()
    flags = asking(server, "-blockBelow", "80", "-scoreHeader", "-allowlist", form.format(file))
    with Conversation(Senderscore, *flags) as smtpd:
        assert come(smtpd, "192.0.2.63").reply == REPLY
        for address in ("192.0.2.1", "192.0.2.64", "192.0.2.127"):
            there = smtpd.connect(address=address)
            there.ehlo()
            assert scores(there) == ["100"]
        assert [query for query, _ in server.queries] == [name("192.0.2.63")]
        file.write_text("192.0.2.63")
        smtpd.reload()
        assert come(smtpd, "192.0.2.63").verb == "proceed"
        assert come(smtpd, "192.0.2.1").reply == REPLY


def test_the_allow_list_inline(server: DNSServer) -> None:
    flags = asking(server, "-blockBelow", "80", "-allowlist", "{ 192.0.2.1, 192.0.2.64/26 }")
    assert verdict(*flags, address="192.0.2.1").verb == "proceed"
    assert verdict(*flags, address="192.0.2.2").refused


# -- what is a score -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "score"),
    [("127.0.4.0", 0), ("127.0.4.7", 7), ("127.0.4.100", 100)],
)
def test_what_is_a_score(answer: str, score: int) -> None:
    with DNSServer({f"*.{ZONE}": {"A": answer}}) as server:
        assert score_seen(server) == [str(score)]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("127.255.255.255", UNREGISTERED),
        ("127.255.255.254", UNREGISTERED),
        ("127.255.255.0", UNREGISTERED),
        (["127.0.4.90", "127.255.255.255"], UNREGISTERED),
        ("127.0.4.101", "the zone answers 127.0.4.101, which is not a score"),
        ("127.0.4.255", "the zone answers 127.0.4.255, which is not a score"),
        ("127.0.0.2", "the zone answers 127.0.0.2, which is not a score"),
        ("127.0.40.2", "the zone answers 127.0.40.2, which is not a score"),
        ("127.0.5.50", "the zone answers 127.0.5.50, which is not a score"),
        # A provider that has an address for everything.
        ("203.0.113.66", "the zone answers 203.0.113.66, which is not a score"),
        (["127.0.4.90", "127.0.4.91"], "answers 127.0.4.90 127.0.4.91, which is not a score"),
    ],
)
@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
def test_what_is_none_is_left_to_on_error(
    answer: str | list[str], cause: str, on_error: str
) -> None:
    with DNSServer({f"*.{ZONE}": {"A": answer}}) as server:
        flags = asking(server, "-blockBelow", "101", "--on-error", on_error)
        with Conversation(Senderscore, *flags) as smtpd:
            said = come(smtpd, "192.0.2.7")
            assert said.verb == {"tempfail": "disconnect"}.get(on_error, on_error)
            if on_error == "tempfail":
                assert said.reply == "421 4.4.3 Temporary failure, please try again later"
            come(smtpd, "192.0.2.8")
            # The cause is logged once.
            line, short = smtpd.log
            assert ' reason="failed as logged before" cause="' in short
            assert cause in line
            assert "Error" not in line


def test_the_log_says_what_to_do_about_a_name_server_that_is_not_served() -> None:
    assert "register" in UNREGISTERED
    assert "--nameserver" in UNREGISTERED
    with (
        DNSServer({f"*.{ZONE}": {"A": "127.255.255.255"}}) as server,
        Conversation(Senderscore, *asking(server, "-scoreHeader")) as smtpd,
    ):
        there = smtpd.connect()
        there.ehlo()
        assert scores(there) == []
        assert UNREGISTERED in smtpd.log[0]


octets = st.integers(0, 255).map(str)
addresses = st.tuples(
    st.sampled_from(["127", "127", "10"]),
    st.sampled_from(["0", "0", "255"]) | octets,
    st.sampled_from(["4", "4", "255"]) | octets,
    octets,
).map(".".join)


@given(st.lists(addresses, min_size=1, max_size=3, unique=True))
def test_no_answer_is_taken_for_a_score_that_is_none(records: list[str]) -> None:
    score = _read(Found(tuple(records), 60))
    if isinstance(score, int):
        assert [f"127.0.4.{score}"] == records
        assert 0 <= score <= 100
    else:
        assert score
        assert not (len(records) == 1 and records[0] in {f"127.0.4.{n}" for n in range(101)})


@given(address=st.text(max_size=80) | addresses, test=st.booleans())
def test_an_odd_address_ends_nothing(shared: DNSServer, address: str, *, test: bool) -> None:
    """Whatever smtpd says of a client, it is answered."""
    flags = ("-blockBelow", "50", "-testMode") if test else asking(shared, "-blockBelow", "50")
    said = "".join(char for char in address if char not in "\n\r\0|")
    session, token = "7641df9771b4ed00", "1ef1c203cc576e5d"
    lines = (
        f"report|{HEAD}|link-connect|{session}|x|pass|{said}:1|192.0.2.1:25\n"
        f"filter|{HEAD}|connect|{session}|{token}|x|192.0.2.1\n"
    )
    with Conversation(Senderscore, *flags) as smtpd:
        served = smtpd._served
        served.receive(lines.encode("utf-8", "replace"))
        answer = served.output()
        while not answer and served.run():
            answer = served.output()
        assert answer.startswith(f"filter-result|{session}|{token}|".encode())
        assert not [line for line in smtpd.log if " bug " in line or "Error" in line]


# -- look-ups ------------------------------------------------------------------------------


def test_the_zone_may_be_another() -> None:
    with DNSServer(scored(7, zone="mirror.example")) as server:
        flags = asking(server, "-blockBelow", "50", "--zone", "mirror.example")
        assert verdict(*flags).reply == REPLY
        assert server.queries == [(name("192.0.2.7", "mirror.example"), "A")]


def test_a_client_is_looked_up_once(server: DNSServer) -> None:
    server.queries.clear()
    flags = asking(server, "-blockBelow", "50", "-slowFactor=1", "-scoreHeader", "-junkBelow=60")
    with Conversation(Senderscore, *flags) as smtpd:
        for _ in range(3):
            come(smtpd, "192.0.2.90")
    assert server.queries == [(name("192.0.2.90"), "A")]


def test_the_look_up_begins_when_the_client_comes() -> None:
    """At the phase that needs it, the score is there."""
    with DNSServer({**scored(7), name("192.0.2.7"): {"A": "127.0.4.7", "delay": 0.2}}) as server:
        flags = asking(server, "-blockBelow", "50", "-blockPhase", "mail-from")
        with Conversation(Senderscore, *flags) as smtpd:
            there = smtpd.connect(address="192.0.2.7")
            loop = smtpd._served._loop
            resolver = smtpd.filters[0].dns  # type: ignore[attr-defined]
            [task] = resolver._under_way.values()
            loop.run_until_complete(asyncio.wait([task]))
            there.ehlo()
            session = smtpd._served.engine.session(there.id.encode())
            deciding: Any = smtpd.filters[0].mail_from(session, "bob@example.net")
            assert at_once(deciding).verb == "disconnect"
            assert there.mail_from("bob@example.net").reply == REPLY
        assert len(server.queries) == 1


def test_a_score_that_is_known_costs_no_task(server: DNSServer) -> None:
    with Conversation(Senderscore, *asking(server, "-blockBelow", "50")) as smtpd:
        come(smtpd, "192.0.2.7")
        spawned: list[object] = []
        smtpd._served.engine.spawn = lambda *work: spawned.append(work)  # type: ignore[assignment]
        assert come(smtpd, "192.0.2.7").reply == REPLY
        assert come(smtpd, "2001:db8::1").verb == "proceed"
        assert spawned == []


def test_a_session_has_one_score() -> None:
    with DNSServer(scored(90)) as server:
        flags = asking(server, "-blockBelow", "50", "-blockPhase", "rcpt-to")
        with Conversation(Senderscore, *flags) as smtpd:
            there = smtpd.connect(address="192.0.2.90")
            there.ehlo()
            there.mail_from("bob@example.net")
            assert there.rcpt_to("anna@example.org").verb == "proceed"
            server.zone = {name("192.0.2.90"): {"A": "127.0.4.7"}}
            smtpd.filters[0].dns._cache.clear()  # type: ignore[attr-defined]
            assert there.rcpt_to("carl@example.org").verb == "proceed"
            assert verdict(*flags, address="192.0.2.90").reply == REPLY


# Each of these is no statement about the client.
FAULTS: dict[str, Mapping[str, Any]] = {
    kind: {"A": "127.0.4.1", kind: True}
    for kind in ("servfail", "refused", "drop", "wrong-id", "wrong-name", "wrong-owner")
}
FAULTS["malformed"] = {"malformed": True}
FAULTS["late"] = {"A": "127.0.4.1", "delay": 60}
FAULTS["truncated, and no TCP"] = {"A": "127.0.4.1", "truncate": True, "no-tcp": True}
FAULTS["alias in a circle"] = {"CNAME": name("192.0.2.7")}


@pytest.mark.parametrize("phase", ["connect", "mail-from"])
@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
@pytest.mark.parametrize("entry", some(FAULTS.values()), ids=some(FAULTS))
def test_a_broken_dns_is_never_held_against_the_client(
    entry: Mapping[str, Any], on_error: str, phase: str
) -> None:
    with DNSServer({name("192.0.2.7"): entry}) as faulty:
        flags = asking(faulty, "--timeout", "20ms", "--on-error", on_error)
        block = ("-blockBelow", "101", "-blockPhase", phase)
        with Conversation(Senderscore, *flags, *block) as smtpd:
            there = smtpd.connect(address="192.0.2.7")
            said = there.greeting
            if phase == "mail-from":
                there.ehlo()
                said = there.mail_from("bob@example.net")
                if on_error == "junk":  # it is marked where there is a message to mark
                    there.rcpt_to("anna@example.org")
                    said = there.data()
            refused = "disconnect" if phase == "connect" else "reject"
            assert said.verb == {"tempfail": refused}.get(on_error, on_error)
            if on_error == "tempfail":
                code = 421 if phase == "connect" else 451
                text = "4.4.3 Temporary failure, please try again later"
                assert said.reply == f"{code} {text}"
            assert "cause=" in smtpd.log[0]
            assert "Error" not in smtpd.log[0]


def test_a_broken_dns_is_waited_for_once_in_a_session() -> None:
    with DNSServer({name("192.0.2.7"): {"drop": True}}) as dead:
        flags = asking(dead, "--timeout", "20ms", "-blockBelow=50", "-blockPhase", "rcpt-to")
        with Conversation(Senderscore, *flags, "-slowFactor=1000", "-scoreHeader") as smtpd:
            assert come(smtpd).verb == "proceed"
            asked = len(dead.queries)
            assert asked
            smtpd.filters[0].dns._cache.clear()  # type: ignore[attr-defined]
        assert len(dead.queries) == asked


def test_a_look_up_that_the_deadline_ended_is_not_waited_for_again() -> None:
    with DNSServer({name("192.0.2.7"): {"drop": True}}) as dead:
        flags = asking(dead, "--timeout", "60s", "--deadline", "10s", "-blockBelow", "50")
        with Conversation(Hasty, *flags, "-blockPhase", "rcpt-to", "-scoreHeader") as smtpd:
            there = smtpd.connect(address="192.0.2.7")
            there.ehlo()
            there.mail_from("bob@example.net")
            for _ in range(100):
                assert there.rcpt_to("anna@example.org").verb == "proceed"
            assert is_overdue(dead, smtpd.log[1])
        assert len(dead.queries) <= 1


def test_a_server_that_answers_at_the_second_time_is_good_enough() -> None:
    with DNSServer({name("192.0.2.7"): {"A": "127.0.4.7", "flap": True}}) as flapping:
        flags = asking(flapping, "--timeout", f"{brief(0.5)}s", "-blockBelow", "50")
        assert verdict(*flags).reply == REPLY


def test_a_forged_answer_beside_the_true_one_changes_nothing() -> None:
    with DNSServer({name("192.0.2.7"): {"A": "127.0.4.7", "spoof": True}}) as server:
        assert verdict(*asking(server, "-blockBelow", "50")).reply == REPLY


def test_the_next_name_server_is_asked_when_one_is_dead(server: DNSServer) -> None:
    with DNSServer({name("192.0.2.7"): {"drop": True}}) as dead:
        flags = [*asking(dead), *asking(server), "--timeout", f"{brief(0.5)}s", "-blockBelow", "50"]
        assert verdict(*flags).reply == REPLY
        assert dead.asked(name("192.0.2.7"), "A")


# -- who is slowed down --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "seconds"), [(0, 0.02), (25, 0.015), (50, 0.01), (99, 0.0002), (100, 0)]
)
def test_the_delay_grows_as_the_score_falls(
    server: DNSServer, score: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    async def sleep(delay: float) -> None:
        asked.append(delay)

    with Conversation(Senderscore, *asking(server, "-slowFactor", "20")) as smtpd:
        come(smtpd, f"192.0.2.{score}")  # what is known is answered in the same turn
        monkeypatch.setattr(asyncio, "sleep", sleep)
        come(smtpd, f"192.0.2.{score}")
        monkeypatch.undo()
    # connect, ehlo, mail-from, rcpt-to, data, commit, quit
    assert asked == [pytest.approx(seconds)] * (7 if seconds else 0)


@pytest.mark.parametrize("verb", ["proceed", "junk", "disconnect"])
def test_every_answer_comes_late(server: DNSServer, verb: str) -> None:
    flags = {"junk": ["-junkBelow", "60"], "disconnect": ["-blockBelow", "60"]}.get(verb, [])
    with Conversation(Senderscore, *asking(server, "-slowFactor", "100"), *flags) as smtpd:
        started = monotonic()
        there = smtpd.connect(address="192.0.2.50")
        assert there.greeting.verb == verb
        assert monotonic() - started > 0.05


@pytest.mark.parametrize(
    ("flags", "session_timeout", "cap"),
    [
        ((), "300", 27),
        (("--deadline", "5m"), "300", 60),
        (("--deadline", "5m"), "60", 30),
        (("--deadline", "5m"), "", 60),
        (("--deadline", "5m"), "soon", 60),
        (("--deadline", "2s"), "300", 1.8),
    ],
)
def test_a_delay_ends_before_anybody_gives_up(
    server: DNSServer, flags: tuple[str, ...], session_timeout: str, cap: float
) -> None:
    given = asking(server, "-slowFactor", "86400000", *flags)
    with Conversation(Senderscore, *given) as smtpd:
        policy = smtpd.filters[0]
        assert isinstance(policy, Senderscore)
        policy.smtpd = {"smtp-session-timeout": session_timeout}
        assert policy._cap() == pytest.approx(cap)


def test_a_delay_ends_before_the_deadline(naps: list[float]) -> None:
    """What the look-up took counts as well."""
    flags = ("-slowFactor", "100000", "--deadline", "20s", "-blockBelow", "50")
    zone = {name("192.0.2.7"): {"A": "127.0.4.7", "delay": 0.2}}
    with DNSServer(zone) as slow:
        assert verdict(*asking(slow, *flags)).reply == REPLY
    *_, nap = naps  # before it, between two tries of a query
    # The look-up begins when the client connects, a moment before the handler is called.
    assert nap < 0.9 * 20 - 0.1


def test_on_a_dry_run_nobody_waits(server: DNSServer, naps: list[float]) -> None:
    flags = asking(server, "-slowFactor", "60000", "-blockBelow", "50", "--dry-run")
    with Conversation(Senderscore, *flags, "-scoreHeader") as smtpd:
        there = smtpd.connect(address="192.0.2.7")
        assert there.greeting.verb == "proceed"
        there.ehlo()
        assert scores(there) == []
        assert 'result=proceed would=disconnect reason="score 7"' in smtpd.log[0]
    assert naps == []


# -- the executable ------------------------------------------------------------------------

COMMAND = (sys.executable, "-m", "smtpd_filters.filters.senderscore")


def test_without_a_flag_it_says_that_it_does_nothing() -> None:
    """As the original it starts, for it is put in its place without a look at smtpd.conf."""
    for flags, log in (
        ((), ["senderscore nothing to do: no setting asks for anything"]),
        (
            ("-blockBelow", "-1", "-slowFactor", "0"),
            ["senderscore nothing to do: no setting asks for anything"],
        ),
        (("-blockBelow", "1", "--nameserver", "127.0.0.1:9"), []),
    ):
        with Conversation(Senderscore, *flags) as smtpd:
            assert smtpd.log == log


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("-blockBelow", "ten"), "-blockBelow: expected a whole number"),
        (("-blockBelow", "128"), "-blockBelow: must be at most 101, not 128"),
        (("-junkBelow", "102"), "-junkBelow: must be at most 101, not 102"),
        (("-blockBelow", "128", "-testMode"), "-blockBelow: must be at most 127, not 128"),
        (("-junkBelow", "-2"), "-junkBelow: must be at least -1"),
        (("-blockPhase", "data"), '-blockPhase: invalid choice "data"'),
        (("-allowlist", "nonexistent"), "-allowlist: nonexistent: No such file or directory"),
        (("-allowlist", "{ 192.0.2.0/33 }"), "-allowlist: "),
        (("-scoreHeader=perhaps",), "-scoreHeader: expected true or false"),
        (("--zone", "score example"), "--zone: 'score example' is not a domain name"),
        (("--zone", ""), "--zone: '' is not a domain name"),
        (("-blockBelow=1", "--nameserver", "ns.example.org"),
         "--nameserver: name server: 'ns.example.org' is not an IP address"),
        (("--timeout", "0"), "--timeout: must be at least"),
        (
            ("-junkBelow=70", "-slowFactor=9", "--on-error=junk"),
            "--on-error: junk is not possible with -slowFactor",
        ),
        (
            ("-testMode", "-slowFactor=9", "--on-error=junk"),
            "--on-error: junk is not possible with -testMode",
        ),
        (
            ("-blockBelow=9", "-blockPhase=quit", "--on-error=junk"),
            "--on-error: junk is not possible with -blockPhase quit",
        ),
        (("-junkBellow",), 'unknown flag -junkBellow, did you mean "-junkBelow"?'),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line(flags: tuple[str, ...], expected: str) -> None:
    assert expected in complaint("senderscore", *flags)


def running(server: DNSServer) -> FilterProcess:
    """The executable, which delays who has a low score, and asks this server."""
    flags = asking(server, "-blockBelow", "101", "-slowFactor", "60000")
    return FilterProcess([*COMMAND[1:], *flags])


def arrive(smtpd: FilterProcess, number: int, address: str) -> bytes:
    """Let a client come, and don't wait for the answer."""
    client = sid(number)
    smtpd.report(
        "link-connect", client, b"x", b"pass", f"{address}:1".encode(), b"198.51.100.25:25"
    )
    smtpd.send(smtpd.request("connect", client, f"x|{address}".encode()))
    return client


def test_who_waits_holds_up_nobody_else() -> None:
    """Neither for a name server nor for a delay."""
    zone = {name("192.0.2.1"): {"drop": True}, **scored(10, 100)}
    with DNSServer(zone) as server, running(server) as smtpd:
        smtpd.hand_shake()
        waiting = {arrive(smtpd, 1, "192.0.2.1"), arrive(smtpd, 2, "192.0.2.10")}
        for number in range(3, 50):
            said = smtpd.answer(arrive(smtpd, number, "192.0.2.100"))
            assert (said.verb, said.argument) == (b"disconnect", REPLY.encode())
        assert not [each for each in smtpd.answers if each.session in waiting]


def test_a_session_that_ends_while_it_waits_is_forgotten() -> None:
    zone = {name("192.0.2.1"): {"drop": True}, **scored(10, 100)}
    with DNSServer(zone) as server, running(server) as smtpd:
        smtpd.hand_shake()
        for number, address in ((1, "192.0.2.1"), (2, "192.0.2.10")):
            smtpd.report("link-disconnect", arrive(smtpd, number, address))
        said = smtpd.answer(arrive(smtpd, 3, "192.0.2.100"))
        assert (said.verb, said.argument) == (b"disconnect", REPLY.encode())
        smtpd.finish()


# -- test mode -----------------------------------------------------------------------------


def script(*flags: str, lines: tuple[str, ...], cwd: Path | None = None) -> list[str]:
    """Do what a test script does: pipe all of it in, and look at what comes out."""
    done = subprocess.run(
        [*COMMAND, "-testMode", *flags],
        input="".join(f"{line}\n" for line in ("config|ready", *lines)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=cwd,
    )
    registrations, _, answers = done.stdout.partition("register|ready\n")
    assert sorted(registrations.splitlines()) == sorted(
        [f"register|filter|smtp-in|{phase}" for phase in (*EVERY, "noop", "rset")]
        + [f"register|report|smtp-in|link-{event}" for event in ("connect", "disconnect")]
    )
    return answers.splitlines()


def odd_client(version: str, number: int, address: str) -> tuple[str, str]:
    """As those scripts have it: a bare time stamp, no reverse name, and the report's fields."""
    session = f"7641df9771b4ed{number:02x}"
    said = f"|pass|{address}:33174|198.51.100.1:25"
    return (
        f"report|{version}|0|smtp-in|link-connect|{session}|{said}",
        f"filter|{version}|0|smtp-in|connect|{session}|1ef1c203cc576e5d|{said}",
    )


@pytest.mark.parametrize(
    ("address", "header"),
    [
        ("192.0.2.0", ["X-SenderScore: 0"]),
        ("192.0.2.42", ["X-SenderScore: 42"]),
        ("192.0.2.100", ["X-SenderScore: 100"]),
        ("192.0.2.101", ["X-SenderScore: 101"]),
        ("192.0.2.200", ["X-SenderScore: 127"]),
        ("192.0.2.255", []),
        ("[2001:db8::1]", []),
    ],
)
def test_in_test_mode_the_score_is_in_the_address(address: str, header: list[str]) -> None:
    head = "filter|0.5|0|smtp-in|data-line|7641df9771b4ed00|1ef1c203cc576e5d|"
    back = "filter-dataline|7641df9771b4ed00|1ef1c203cc576e5d|"
    lines = (*odd_client("0.5", 0, address), f"{head}.")
    assert script("-scoreHeader", lines=lines) == [
        "filter-result|7641df9771b4ed00|1ef1c203cc576e5d|proceed",
        *(f"{back}{field}" for field in header),
        f"{back}.",
    ]


def test_in_test_mode_answers_come_in_the_order_of_the_questions() -> None:
    clients = [(0, "192.0.2.20"), (1, "192.0.2.100"), (2, "192.0.2.60"), (3, "192.0.2.255")]
    lines = tuple(
        line for number, address in clients for line in odd_client("0.5", number, address)
    )
    flags = ("-blockBelow", "50", "-junkBelow", "70", "-slowFactor", "100")
    started = perf_counter()
    answers = script(*flags, lines=lines)
    assert perf_counter() - started > 0.08 + 0.04
    assert [line.split("|", 3)[1][-1] + line.split("|", 3)[3] for line in answers] == [
        f"0disconnect|{REPLY}",
        "1proceed",
        "2junk",
        "3proceed",
    ]


def test_in_test_mode_the_oldest_protocol_is_spoken() -> None:
    lines = odd_client("0.4", 0, "192.0.2.20")
    assert script("-blockBelow", "50", lines=lines) == [
        f"filter-result|1ef1c203cc576e5d|7641df9771b4ed00|disconnect|{REPLY}"
    ]


def test_in_test_mode_the_allow_list_counts(tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("192.0.2.1\n198.51.100.0/24\n")
    addresses = ["192.0.2.1", "192.0.2.2", "198.51.100.7"]
    lines = tuple(line for at, each in enumerate(addresses) for line in odd_client("0.5", at, each))
    answers = script("-blockBelow=20", "-allowlist", "allowed", lines=lines, cwd=tmp_path)
    assert [line.split("|", 3)[3] for line in answers] == [
        "proceed",
        f"disconnect|{REPLY}",
        "proceed",
    ]


def test_neutral_is_no_score() -> None:
    assert NEUTRAL < 0
