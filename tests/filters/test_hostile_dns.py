"""Filters that look things up, and a name server that says whatever it likes.

Whatever a zone holds and however its server misbehaves: smtpd gets answers that it takes, to all
its questions, nothing is a bug of ours, bodies pass unchanged, on a dry run everything does, and no
key is shown.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from smtpd_filters.filters.dnsbl import Dnsbl
from smtpd_filters.filters.helo import Helo
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.filters.sender import Sender
from smtpd_filters.filters.senderscore import Senderscore
from smtpd_filters.testing import Conversation, DNSServer
from tests.effort import part

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from smtpd_filters.filter import Filter
    from smtpd_filters.testing import Client, Delivery, Verdict

    Flags = list[str]

KEY = "k3yk3yk3yk3yk3yk3y"
SCORES, LIST, NAMES, HOSTS = "scores.example", f"{KEY}.bl.example", "names.example", "hosts.example"
ADDRESSES = ("192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "127.0.0.1")
SIX = ".".join(reversed("20010db8" + "0" * 23 + "7"))
HELO = (
    "mail.example.com",
    "gate",
    "[192.0.2.7]",
    "loop.example",
    "a_b.example",
    "-",
    "own.example",
)
DOMAINS = (
    "example.com",
    "loop.example",
    "gate",
    "[10.0.0.1]",
    "a_b.example",
    "-.example",
    "our.example",
)
#: All that is asked for, or could be.
ASKED = (
    *(f"7.2.0.192.{zone}" for zone in (SCORES, LIST)),
    f"{SIX}.{LIST}",
    *(f"{point}.{LIST}" for point in ("2.0.0.127", "1.0.0.127")),
    *(f"{name}.{zone}" for zone in (NAMES, HOSTS) for name in ("test", "invalid", *HELO[:1])),
    *(f"{name}.{NAMES}" for name in DOMAINS[:2]),
    *("mail.example.com", "example.com", "loop.example", "a_b.example", "mx.example.com"),
)

ADDRESS_RECORDS = [
    *("127.0.0.2", "127.0.0.1", "127.0.1.255", "127.255.255.254", "127.0.4.7", "127.0.4.100"),
    *("127.0.4.101", "10.0.0.1", "192.0.2.7", "1.2.3.4"),
]
EXCHANGERS = [
    *("0 .", "10 mx.example.com.", "10 10.0.0.1.", "5 localhost.", "65535 loop.example."),
    *(r"10 \000\010\255\"x.example.com.", "10 " + ".".join(["a" * 60] * 4) + "."),
]
RECORDS: dict[str, st.SearchStrategy[Any]] = {
    "A": st.lists(st.sampled_from(ADDRESS_RECORDS), max_size=3)
    | st.builds(lambda: [f"127.{n >> 8}.{n & 255}.2" for n in range(900)]),
    "AAAA": st.lists(st.sampled_from(["::1", "fd00::1", "2001:db8::7", "::ffff:10.0.0.1"])),
    "MX": st.lists(st.sampled_from(EXCHANGERS), max_size=3)
    | st.builds(lambda: [f"{n} mx{n}.example.com." for n in range(200)]),
    "TXT": st.lists(
        st.binary(max_size=300).map(lambda said: "=" + said.decode("utf-8", "surrogateescape"))
    )
    | st.just(f"see https://{KEY}.example/ 250 ok\r\n250 ok")
    | st.builds(lambda: "\0" * 50_000),
    "CNAME": st.sampled_from([f"{name}." for name in ASKED]),
}
BEHAVIOURS = [
    *("servfail", "refused", "drop", "truncate", "no-tcp", "wrong-id", "wrong-name"),
    *("wrong-owner", "spoof", "malformed", "trailing", "flap"),
]
ENTRIES = st.fixed_dictionaries({}, optional=RECORDS) | st.builds(
    lambda records, behaviour: {**records, behaviour: True},
    st.fixed_dictionaries({}, optional=RECORDS),
    st.sampled_from(BEHAVIOURS),
)
#: Lists have their entries for testing, unless something else is drawn.
POINTS = {
    name: {"A": "127.0.0.2"} for name in (f"2.0.0.127.{LIST}", f"test.{NAMES}", f"test.{HOSTS}")
}
ZONES = st.fixed_dictionaries({}, optional=dict.fromkeys([*ASKED, "*"], ENTRIES)).map(
    lambda zone: {**POINTS, **zone}
)

ACTIONS = st.sampled_from(["off", "log", "junk", "reject"])


def chosen(*flags: str) -> st.SearchStrategy[Flags]:
    """Draw some of these flags."""
    return st.lists(st.sampled_from(flags), unique=True)


def checks(*names: str) -> st.SearchStrategy[Flags]:
    """Draw what is done at each check."""
    drawn = st.lists(ACTIONS, min_size=len(names), max_size=len(names))
    return drawn.filter(lambda actions: set(actions) != {"off"}).map(
        lambda actions: [f"--{name}={do}" for name, do in zip(names, actions, strict=True)]
    )


def together(*parts: st.SearchStrategy[Flags]) -> st.SearchStrategy[Flags]:
    """Draw flags of each."""
    return st.tuples(*parts).map(lambda drawn: [flag for part in drawn for flag in part])


PHASES = ("connect", "helo", "ehlo", "mail-from", "rcpt-to")
FLAGS: dict[type[Filter], st.SearchStrategy[Flags]] = {
    Senderscore: together(
        st.just([f"--zone={SCORES}"]),
        chosen("-blockBelow=50", "-junkBelow=101", "-scoreHeader", "-slowFactor=2"),
        st.sampled_from(PHASES).map(lambda phase: [f"-blockPhase={phase}"]),
    ),
    Helo: together(
        checks("invalid", "non-fqdn", "foreign-literal", "elsewhere"),
        st.sampled_from(["log", "junk", "reject"]).map(lambda do: [f"--own={do}"]),
        st.sampled_from(["log", "junk", "reject"]).map(lambda do: [f"--unknown={do}"]),
        chosen("--phase=helo", "--phase=rcpt-to", "--own-names={ own.example }"),
    ),
    Sender: together(
        checks("non-fqdn", "unknown", "null-mx"),
        st.sampled_from(["log", "junk", "reject"]).map(lambda do: [f"--bad-mx={do}"]),
        chosen("--any-bad-mx"),
    ),
    Rcpt: together(
        checks("non-fqdn", "null-sender"),
        st.sampled_from(["log", "junk", "reject"]).map(lambda do: [f"--trapped={do}"]),
        st.sampled_from(["", "log", "junk", "reject"]).map(
            lambda do: [f"--many-recipients={do}", "--max-recipients=1"] if do else []
        ),
        st.sampled_from(["log", "junk", "reject"]).map(lambda do: [f"--unknown-domain={do}"]),
        st.just(["--domains={ our.example }", "--traps={ you@loop.example }"]),
        chosen("--max-unknown=2", "--delay=1ms", "--check-users"),
    ),
    Dnsbl: together(
        st.just([f"--client={LIST}=127.0.0.[1..255]*2"]),
        chosen(f"--client={LIST}*-1", f"--rdns={HOSTS}*-1", f"--untested={LIST}", "--header"),
        st.sampled_from([[], [f"--helo={NAMES}"], [f"--sender={NAMES}*2", f"--helo={NAMES}"]]),
        st.sampled_from([["--junk-at=1", "--reject-at=2"], ["--disconnect-at=2"], []]),
        chosen("--phase=rcpt-to"),
    ),
}

MESSAGE = b"X-SenderScore: 100\r\nX-Spam-DNSBL: no\r\nSubject: hello\r\n\r\n.hello\r\n"
BODY = b".hello\n"
TRUTHS = (True, False)


class Visit:
    """One client, who says what smtpd takes from it."""

    def __init__(self, client: Client, one_of: Callable[..., Any]) -> None:
        self.client = client
        self.one_of = one_of
        self.greeted = self.writes = False
        self.recipients = 0
        self.mails: list[Delivery] = []

    def steps(self) -> list[Callable[[], Verdict]]:
        if not self.greeted:
            return [*[self.greet] * 6, self.leave]
        if not self.writes:
            return [
                *[self.write] * 6,
                self.encrypt,
                self.authenticate,
                self.client.quit,
                self.reset,
            ]
        return [*[self.name] * 3, *([self.send] * 3 if self.recipients else []), self.reset]

    def greet(self) -> Verdict:
        command = self.one_of(self.client.ehlo, self.client.ehlo, self.client.helo)
        said: Verdict = command(self.one_of(*HELO))
        self.greeted = not said.refused
        return said

    def encrypt(self) -> Verdict:
        self.greeted = False
        return self.client.tls()

    def authenticate(self) -> Verdict:
        return self.client.auth("anna", ok=self.one_of(*TRUTHS))

    def write(self) -> Verdict:
        domain = self.one_of(*DOMAINS, "")
        said = self.client.mail_from(f"bob@{domain}" if domain else "")
        self.writes, self.recipients = not said.refused, 0
        return said

    def name(self) -> Verdict:
        accepted = self.one_of(*TRUTHS, True)  # noqa: FBT003  # it is one of several
        said = self.client.rcpt_to(f"you@{self.one_of(*DOMAINS)}", accepted=accepted)
        self.recipients += accepted and not said.refused
        return said

    def send(self) -> Verdict:
        mail = self.client.message(MESSAGE)
        if mail.phase == "commit":
            self.writes = False
            self.mails.append(mail)
        return mail

    def reset(self) -> Verdict:
        self.writes = False
        return self.client.rset()

    def leave(self) -> Verdict:
        self.client.disconnect()
        return self.client.greeting


class Visits:
    """Up to three clients at a time."""

    def __init__(self, smtpd: Conversation, choices: bytes) -> None:
        self.smtpd = smtpd
        # Drawn before: what there is to choose from depends on what comes in time.
        self.choices = iter(choices)
        self.all: list[Visit] = []
        self.said: list[Verdict] = []

    def one_of(self, *values: Any) -> Any:
        return values[next(self.choices) % len(values)]

    def run(self) -> None:
        with suppress(StopIteration):
            while True:
                there = [each for each in self.all if not each.client.closed]
                if not there or (len(there) < 3 and self.one_of(*range(5)) == 0):
                    self.come()
                else:
                    self.said.append(self.one_of(*self.one_of(*there).steps())())

    def come(self) -> None:
        rdns, address = self.one_of("mail.example.com", "-x..", None), self.one_of(*ADDRESSES)
        fcrdns = self.one_of("pass", "fail", "error") if rdns else "fail"
        client = self.smtpd.connect(rdns, address, fcrdns=fcrdns)
        self.said.append(client.greeting)
        self.all.append(Visit(client, self.one_of))

    @property
    def mails(self) -> list[Delivery]:
        return [mail for each in self.all for mail in each.mails]


@pytest.mark.parametrize("filter_", list(FLAGS))
def test_whatever_the_dns_says_smtpd_is_answered(
    filter_: type[Filter], capfd: pytest.CaptureFixture[str]
) -> None:
    on_error = st.sampled_from([f"--on-error={each}" for each in filter_.outcomes()])
    general = st.builds(lambda *drawn: list(drawn), on_error) | st.just(["--dry-run"])
    choices = st.binary(min_size=100, max_size=100)

    @given(FLAGS[filter_], general, ZONES, choices)
    @settings(
        deadline=None,
        max_examples=part(12),
        # Time-outs are real: what is found isn't made smaller by trying for minutes.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    def converse(
        flags: Flags, general: Flags, zone: dict[str, dict[str, Any]], choices: bytes
    ) -> None:
        assume(not set(flags) >= {"--phase=helo", "--phase=rcpt-to"})
        # There is no junk at the end of a message or session, where it is slowed down as well.
        assume("--on-error=junk" not in general or "-slowFactor=2" not in flags)
        with DNSServer(zone) as server:
            asked = f"--nameserver={server.address}:{server.port}"
            with Conversation(filter_, asked, "--timeout=20ms", *general, *flags) as smtpd:
                visits = Visits(smtpd, choices)
                visits.run()
        for line in smtpd.log:
            assert " error=" not in line, line
            assert "bug" not in line, line
        assert all(mail.body == BODY for mail in visits.mails)
        if "--dry-run" in general:
            assert {said.verb for said in visits.said} <= {"proceed", "unchanged"}
            assert all(mail.unchanged for mail in visits.mails)
        shown = [*smtpd.log, *(said.reply for said in visits.said)]
        assert KEY not in "\n".join(shown).lower()
        assert not any(KEY.encode() in mail.bytes.lower() for mail in visits.mails)

    converse()
    said = capfd.readouterr()
    assert " error=" not in said.err
    assert KEY not in said.err.lower()
