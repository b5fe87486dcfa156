"""filter-senderscore under real servers, and beside the filter of that name that Debian has."""

from __future__ import annotations

import re
import select
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import Lab, filter_command, unavailable
from tests.e2e.sending import (
    ALICE,
    BOB,
    GOOD6,
    MESSAGE,
    SENDER,
    Outcome,
    attempt,
    folders,
    local,
    logged,
    transact,
)
from tests.e2e.test_credentials import REFUSED
from tests.effort import brief
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import IO, Any, Self

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

NAME = "senderscore"
ORIGINAL = shutil.which("filter-senderscore", path="/usr/libexec/opensmtpd")
TEXT = "your IP reputation is too low for this MX"
LATER = "Temporary failure, please try again later"
PHASES = ("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "quit")
SCORES = (0, 19, 20, 49, 50, 79, 80, 99, 100)
#: 192.0.2.N has the score N; others have none.
ZONE: dict[str, dict[str, Any]] = {
    f"{score}.2.0.192.score.senderscore.com": {"A": f"127.0.4.{score}"} for score in SCORES
}
UNKNOWN = "192.0.2.201"
SUSPECT = "192.0.2.77"
NETWORKS_ZONE = ".2.0.192.score.senderscore.com"
SUSPECTS_NAME = f"77{NETWORKS_ZONE}"


def served(start: Start, *flags: str, zone: dict[str, dict[str, Any]] = ZONE) -> Smtpd:
    return start(zone=zone, filters={NAME: filter_command(NAME, *flags)})


# -- scores ----------------------------------------------------------------------------------------


def test_clients_are_judged_by_their_scores(start: Start) -> None:
    server = served(start, "-blockBelow", "50", "-junkBelow", "80", "-scoreHeader")
    expected = []
    for score in SCORES:
        outcome = attempt(server, f"192.0.2.{score}")
        if score < 50:
            assert outcome == Outcome("connect", 550, TEXT, stayed=False)
            continue
        assert outcome.stage == ""
        expected.append(("Junk" if score < 80 else "", [str(score)]))
    for neutral in (UNKNOWN, GOOD6, "127.0.0.1", "::1"):
        assert attempt(server, neutral).stage == ""
        expected.append(("", []))
    server.submit(local(MESSAGE), SENDER, ALICE)
    expected.append(("", []))
    found = [
        (mail.folder, mail.message.get_all("X-SenderScore", [])) for mail in server.maildir("alice")
    ]
    assert sorted(found) == sorted(expected)
    assert len(logged(server, f"^{NAME}: .* result=disconnect reason=.score ", 4)) == 4
    # IPv6, loopback and the socket have no score.
    asked = [name for name, _ in server.lab.dns.queries if name.endswith("senderscore.com")]
    assert len(asked) == len(SCORES) + 1


def test_every_message_of_a_connection_is_marked(start: Start) -> None:
    server = served(start, "-junkBelow", "80", "-scoreHeader")
    with server.connection("192.0.2.50") as connection:
        connection.reply()
        connection.command("EHLO client.example")
        for _ in range(3):
            assert transact(connection, recipients=(ALICE, BOB)).stage == ""
    for user in ("alice", "bob"):
        for mail in server.maildir(user):
            assert mail.folder == "Junk"
            assert mail.message.get_all("X-SenderScore") == ["50"]
        assert len(server.maildir(user)) == 3


@pytest.mark.parametrize("phase", PHASES)
def test_the_phase_at_which_clients_are_blocked(start: Start, phase: str) -> None:
    server = served(start, "-blockBelow", "50", "-blockPhase", phase)
    helo = "HELO client.example" if phase == "helo" else "EHLO client.example"
    user = "alice" if phase in {"starttls", "auth"} else None
    if phase == "quit":
        with server.connection("192.0.2.49") as connection:
            connection.reply()
            connection.command(helo)
            assert transact(connection).stage == ""
            reply = connection.command("QUIT")
            assert reply is not None
            assert (reply.code, reply.text) == (550, TEXT)
        assert len(server.maildir("alice")) == 1
    else:
        stage = {"mail-from": "MAIL", "rcpt-to": "RCPT"}.get(phase, phase.upper())
        blocked = Outcome(stage.replace("CONNECT", "connect"), 550, TEXT, stayed=False)
        if phase == "auth":  # of a command with credentials: the client is closed at the next one
            blocked = Outcome("AUTH", 501, REFUSED.partition(" ")[2], stayed=True)
        assert attempt(server, "192.0.2.49", helo=helo, user=user) == blocked
    for accepted in ("192.0.2.50", UNKNOWN, GOOD6):
        assert attempt(server, accepted, helo=helo, user=user).stage == ""


def test_the_slow_are_slow_and_hold_up_nobody(start: Start) -> None:
    server = served(start, "-slowFactor", "500", "-blockBelow", "20", "-blockPhase", "mail-from")
    with server.connection("192.0.2.0") as waiting:
        assert waiting.reply() is not None
        assert waiting.command("EHLO slow.example") is not None
        began = time.monotonic()
        waiting.send(b"MAIL FROM:<a@slow.example>\r\n")
        assert attempt(server, "192.0.2.100").stage == ""
        assert attempt(server, UNKNOWN).stage == ""
        assert attempt(server, GOOD6).stage == ""
        reply = waiting.reply()
        assert time.monotonic() - began > 0.45
    assert reply is not None
    assert (reply.code, reply.text) == (550, TEXT)


def test_an_allowed_client_is_not_looked_up(start: Start) -> None:
    flags = ("-blockBelow", "50", "-scoreHeader", "-allowlist", "{ 192.0.2.0/28 }")
    server = served(start, *flags)
    assert attempt(server, "192.0.2.0").stage == ""
    [mail] = server.maildir("alice")
    assert mail.message["X-SenderScore"] == "100"
    assert not [name for name, _ in server.lab.dns.queries if name.endswith("senderscore.com")]


# -- a DNS that fails ------------------------------------------------------------------------------

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "dead": ({"drop": True}, "127.0.0.1:53 timeout"),
    "slow": ({"A": "127.0.4.1", "delay": 60}, "127.0.0.1:53 timeout"),
    "servfail": ({"servfail": True}, "127.0.0.1:53 SERVFAIL"),
    "lying": ({"A": "203.0.113.66"}, "the zone answers 203.0.113.66, which is not a score"),
    "of another name": ({"A": "127.0.4.1", "wrong-owner": True}, "answer for another name"),
    "not registered": ({"A": "127.255.255.255"}, "register its address at my.validity.com"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
def test_a_dns_that_fails(start: Start, fault: str, on_error: str) -> None:
    """The outcome that was chosen, and nothing for others."""
    entry, cause = FAULTS[fault]
    timeout = "1" if "timeout" in cause else "5"
    flags = ("-blockBelow", "50", "-junkBelow", "60", "--timeout", timeout, "--on-error", on_error)
    server = served(start, *flags, zone={**ZONE, SUSPECTS_NAME: entry})
    with server.connection(SUSPECT) as waiting:
        for other in ("192.0.2.100", UNKNOWN, GOOD6):
            assert attempt(server, other).stage == ""
        reply = waiting.reply()
        assert reply is not None
        if on_error == "tempfail":
            assert (reply.code, reply.text) == (421, f"4.4.3 {LATER}")
        else:
            assert reply.code == 220
            waiting.command("EHLO client.example")
            assert transact(waiting).stage == ""
    assert cause in server.wait_for(f"{NAME}: .* cause=.*")[0]
    found = sorted(folders(server))
    assert found == ["", "", "", *{"proceed": [""], "junk": ["Junk"]}.get(on_error, [])]
    assert attempt(server, "192.0.2.49").text == TEXT
    # It recovers, and with it the client.
    server.lab.dns.zone[SUSPECTS_NAME] = {"A": "127.0.4.100", "ttl": 5}
    if on_error == "tempfail" and fault in {"dead", "servfail"}:
        deadline = time.monotonic() + 60  # what failed is left alone for a second
        while attempt(server, SUSPECT).stage and time.monotonic() < deadline:
            pass
        assert attempt(server, SUSPECT).stage == ""


def test_a_flapping_dns_is_good_enough(start: Start) -> None:
    zone = {**ZONE, SUSPECTS_NAME: {"A": "127.0.4.7", "flap": True}}
    flags = ("-blockBelow", "50", "--timeout", "1", "--on-error", "tempfail")
    server = served(start, *flags, zone=zone)
    assert attempt(server, SUSPECT).text == TEXT


def test_the_deadline_holds_whatever_the_time_out(start: Start) -> None:
    zone = {**ZONE, SUSPECTS_NAME: {"drop": True}}
    flags = ("-blockBelow", "50", "--timeout", "60s", "--deadline", "3s")
    server = served(start, *flags, "--on-error", "tempfail", zone=zone)
    with server.connection(SUSPECT) as waiting:
        assert attempt(server, "192.0.2.100").stage == ""
        reply = waiting.reply()  # long before the time-outs have passed
    assert reply is not None
    assert reply.code == 421


def test_a_crowd_behind_a_dead_name_server(start: Start) -> None:
    """All of them at a time: they wait together, not one after the other."""
    crowd = [f"192.0.2.{number}" for number in range(210, 250)]
    zone = {**ZONE, f"*{NETWORKS_ZONE}": {"drop": True}}
    server = served(start, "-blockBelow", "50", "--timeout", str(brief(1.5)), zone=zone)
    with ExitStack() as stack:
        waiting = [stack.enter_context(server.connection(source)) for source in crowd]
        assert attempt(server, "192.0.2.100").stage == ""
        for connection in waiting:
            reply = connection.reply()
            assert reply is not None
            assert reply.code == 220
            # When the first one's time is up, all have been asked for.
            asked = {name for name, _ in server.lab.dns.queries}
            assert {f"{source.rpartition('.')[2]}{NETWORKS_ZONE}" for source in crowd} <= asked


# -- beside the original ---------------------------------------------------------------------------

HEAD = "0.6|1576146008.006099|smtp-in"
TOKEN = "1ef1c203cc576e5d"  # noqa: S105  # a token of the protocol
LINES = ("Received: from x", "\tby y", "From: a|b", "Subject: hi", "", "..", "a|b||c|", "", ".")
#: The requests of a session, in smtpd's order, HELO for some of them.
OPENING = (
    ("connect", "mail.example.net|{address}"),
    ("ehlo", "mail.example.net"),
    ("starttls", ""),
    ("ehlo", "mail.example.net"),
    ("auth", "PLAIN AGEAYg=="),
)
MAIL = (
    ("mail-from", "alice@example.net"),
    ("rcpt-to", "bob@example.org"),
    ("rcpt-to", "carl|x@example.org"),
    ("data", ""),
    ("data-line", ""),
    ("commit", ""),
)


#: What is registered with `auth`, for refusals that smtpd must not log with credentials; and what
#: is sent in place of such a refusal, which follows at the next request.
ADDED = {f"register|filter|smtp-in|{phase}" for phase in ("mail-from", "rset", "noop")}
SPOILT = "rewrite|PLAIN *"


class Player:
    """Plays smtpd towards a filter, a request at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.sessions = 0
        self.rest = b""
        self.registered: set[str] = set()

    def __enter__(self) -> Self:
        self.send("config|smtpd-version|6.8.0", "config|ready")
        while (line := self.line()) != "register|ready":
            self.registered.add(line)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(60)

    def send(self, *lines: str) -> None:
        stdin: IO[bytes] | None = self.process.stdin
        assert stdin is not None
        stdin.write("".join(f"{line}\n" for line in lines).encode())
        stdin.flush()

    def line(self) -> str:
        stdout: IO[bytes] | None = self.process.stdout
        assert stdout is not None
        while b"\n" not in self.rest:
            assert select.select([stdout], [], [], 60)[0], "no answer"
            more = stdout.read1()  # type: ignore[attr-defined]
            assert more, "it has ended"
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return str(line.decode())

    def session(
        self, address: str, *, helo: bool = False, messages: int = 1
    ) -> dict[str, list[str]]:
        """Play a session, as far as the filter lets it: what it answered, by phase."""
        self.sessions += 1
        session = f"7641df9771b4{self.sessions:04x}"
        source = f"{address}:33174|198.51.100.1:25"
        self.send(f"report|{HEAD}|link-connect|{session}|mail.example.net|pass|{source}")
        answers: dict[str, list[str]] = {}
        for name, parameter in (*OPENING, *MAIL * messages, ("quit", "")):
            phase = "helo" if helo and name == "ehlo" else name
            if f"register|filter|smtp-in|{phase}" not in self.registered:
                continue
            request = f"filter|{HEAD}|{phase}|{session}|{TOKEN}|"
            if phase == "data-line":
                self.send(*(f"{request}{line}" for line in LINES))
            else:
                self.send(request + parameter.format(address=address))
            said = answers.setdefault(phase, [])
            said.append(self.line())
            while phase == "data-line" and not said[-1].endswith("|."):
                said.append(self.line())
            if "|disconnect|" in said[-1]:
                break
        self.send(f"report|{HEAD}|link-disconnect|{session}")
        return answers


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if ORIGINAL is None:
        pytest.skip("there is no other filter-senderscore (install opensmtpd-filter-senderscore)")
    need(unavailable())
    with Lab(ZONE) as running:
        yield running


def original(lab: Lab, *flags: str) -> Player:
    """Debian's; it asks the name server of resolv.conf."""
    assert ORIGINAL is not None
    return Player(lab.command([ORIGINAL, *flags]))


def ours(lab: Lab | None, *flags: str) -> Player:
    """This one, in the network of the lab or, in test mode, in none."""
    command = [sys.executable, "-m", "smtpd_filters.filters.senderscore", *flags]
    if lab is None:
        return Player([*command, "-testMode"])
    # It is the same file system, with its own resolv.conf.
    network = f"--net=/proc/{lab.pid}/ns/net"
    return Player(["nsenter", network, "--", *command, "--nameserver", "127.0.0.1"])


FLAGS = (
    "",
    "-blockBelow 50",
    "-junkBelow 80",
    "-scoreHeader",
    "-scoreHeader=false",
    "--blockBelow=50 --junkBelow=80 --scoreHeader",
    "-blockBelow 0 -junkBelow 0",
    "-blockBelow 100 -junkBelow 100",
    "-blockBelow 101 -junkBelow 101",
    "-blockBelow 80 -junkBelow 50",
    "-slowFactor 20 -scoreHeader",
    "-slowFactor 20 -blockBelow 50 -junkBelow 80",
    *(f"-blockBelow 50 -junkBelow 80 -scoreHeader -blockPhase {phase}" for phase in PHASES),
)


@pytest.mark.parametrize("flags", [text.split() for text in FLAGS], ids=FLAGS)
def test_it_does_what_the_original_does(lab: Lab, flags: list[str]) -> None:
    """In test mode to the byte, in service at the phases that are asked."""
    with original(lab, *flags) as theirs, ours(None, *flags) as test, ours(lab, *flags) as service:
        assert test.registered == theirs.registered | ADDED
        assert service.registered <= theirs.registered | ADDED
        for address in (*(f"192.0.2.{score}" for score in SCORES), "192.0.2.255", "[2001:db8::1]"):
            for helo in (False, True):
                answers = theirs.session(address, helo=helo)
                [*_, refused] = answers.get("auth", [""])
                if "|disconnect|" in refused:
                    answers["mail-from"] = [refused]
                    answers["auth"] = [f"{refused.partition('|disconnect|')[0]}|{SPOILT}"]
                assert test.session(address, helo=helo) == answers
                asked = service.session(address, helo=helo)
                assert asked == {phase: answers[phase] for phase in asked}
                for phase in answers.keys() - asked.keys():
                    # What is not asked would not have made a difference.
                    assert all(
                        line.endswith("|proceed") or phase == "data-line" for line in answers[phase]
                    )
                if "data-line" in answers.keys() - asked.keys():
                    assert [line.split("|", 3)[3] for line in answers["data-line"]] == [*LINES]


def test_who_is_slow_is_as_slow_as_with_the_original(lab: Lab) -> None:
    flags = ("-slowFactor", "200")
    with original(lab, *flags) as theirs, ours(None, *flags) as test, ours(lab, *flags) as service:
        for score in (50, 100):
            took = []
            for player in (theirs, test, service):
                player.session(f"192.0.2.{score}")  # it is known from here on
                began = time.monotonic()
                answers = player.session(f"192.0.2.{score}")
                took.append(time.monotonic() - began)
            delays = sum(len(said) for phase, said in answers.items() if phase != "data-line")
            assert min(took) >= 0.2 * (100 - score) / 100 * delays


def test_where_it_does_not_do_what_the_original_does(lab: Lab) -> None:
    """What the manual page says of the difference."""
    flags = ("-blockBelow", "50", "-scoreHeader")
    lab.dns.zone["210.2.0.192.score.senderscore.com"] = {"A": "127.255.255.255"}
    lab.dns.zone["211.2.0.192.score.senderscore.com"] = {"A": "203.0.113.66"}
    found = []
    for player in (original(lab, *flags), ours(lab, *flags)):
        with player:
            heads = [
                player.session(f"192.0.2.{number}")["data-line"][0].split("|", 3)[3]
                for number in (210, 211)
            ]
            messages = player.session("192.0.2.99", messages=2)["data-line"]
            marked = sum(line.endswith("|X-SenderScore: 99") for line in messages)
            found.append((*heads, marked))
    assert found == [("X-SenderScore: 127", "X-SenderScore: 66", 1), (LINES[0], LINES[0], 2)]
    with original(lab, "-blockBelow", "50", "-blockPhase", "no-such-phase") as theirs:
        answers = theirs.session("192.0.2.0")
        assert all(said[0].endswith("|proceed") for said in answers.values() if len(said) == 1)


def test_its_options_are_the_originals_and_more(lab: Lab) -> None:
    shown = lab.run(ORIGINAL or "", "-help", check=False)
    theirs = set(re.findall(r"^  (-\w+)", (shown.stdout + shown.stderr).decode(), re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-m", "smtpd_filters.filters.senderscore", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    own = set(re.findall(r"(-\w+)", done.stdout))
    assert {"-blockBelow", "-slowFactor"} <= theirs
    assert theirs <= own
