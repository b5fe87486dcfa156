"""The daemons behind the bridges fail under load: killed, stopped, restarted, slow and too slow.

Whatever happens to them, smtpd stays up, no accepted mail is lost, repeated or altered, and none is
accepted that the daemon hasn't scanned: it leaves a trace in each message, or would have refused
some of them, or both.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import dkim
import pytest

from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.rspamd.daemon import Rspamd
from smtpd_filters.testing.rspamd.daemon import unavailable as no_rspamd
from smtpd_filters.testing.server import Lab, file_path, filter_command, system_version
from smtpd_filters.testing.server import unavailable as no_lab
from smtpd_filters.testing.server.lab import send_signal
from tests.e2e import clamd_set_up, policy_set_up, spamd_set_up
from tests.e2e.clamd_set_up import EICAR, ClamAV
from tests.e2e.daemon import FILES, unavailable
from tests.e2e.load import EVERY, Load, Traffic
from tests.e2e.milter_set_up import (
    amavisd_milter,
    clamav_milter,
    opendkim,
    opendmarc,
    pymilter,
    spamass_milter,
)
from tests.e2e.milter_set_up import spamd as plain_spamd
from tests.e2e.policy_set_up import MAILBOX, policyd_spf, postgrey, quota_status
from tests.e2e.relay import Relay
from tests.e2e.sending import ALICE, GOOD, SENDER, ZONE
from tests.e2e.spamd_set_up import GTUBE, Spamd
from tests.e2e.test_milter import RECORD, SCRIPT
from tests.e2e.test_milter_daemons import PROXY, RSPAMD
from tests.filters.test_dkimsign import pem
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

    Case: TypeAlias = Callable[[Lab], AbstractContextManager["Subject"]]

# What a bridge does doesn't depend on the protocol's version, and the daemons are this system's.
pytestmark = pytest.mark.parametrize("version", [system_version()], indirect=True)

ZONES = merge(
    ZONE,
    {
        "good.example": {"TXT": f"v=spf1 ip4:{GOOD} -all"},
        "rsa._domainkey.good.example": {"TXT": RECORD},
        "strict.example": {"TXT": "v=spf1 -all"},
        "_dmarc.strict.example": {"TXT": "v=DMARC1; p=reject"},
    },
)
#: Seconds that the filters wait for a daemon, and for SpamAssassin, which needs its time.
TIMEOUT, PATIENT = 1, 3
#: Seconds by which a relay delays pieces of replies.
SLOW, TOO_SLOW = 0.1, 3600
CLIENTS = 4
CLAMD = 3310
DATE = formatdate()
STRICT = "someone@strict.example"
SPF = "policyd-spf.conf"


class Daemon(Protocol):
    """A daemon that a test may make fail."""

    def kill(self) -> None: ...
    def start(self) -> None: ...
    def signal(self, number: signal.Signals, /) -> None: ...


class Program:
    """A program that the filter itself starts, each time that it has ended."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self.server: Smtpd | None = None

    def kill(self) -> None:
        """Kill it."""
        self.signal(signal.SIGKILL)

    def start(self) -> None:
        """Leave that to the filter."""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        assert self.server is not None
        found = self.server.find(self._marker)
        mine = [p for p in found if p.arguments[1:2] == ["-c"] and p.arguments[0] != "sh"]
        send_signal(mine, number)


class RspamdProxy(Rspamd):
    """Rspamd as a milter."""

    port = RSPAMD

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        send_signal(self.processes(), number)


@dataclass
class Subject:
    """A daemon, the filter that asks it, its traffic, and the relay before it if there is one."""

    daemon: Daemon
    command: str
    traffic: Traffic
    relay: Relay | None = None
    files: dict[str, str] = field(default_factory=dict)

    def kill(self) -> None:
        """Kill it: connections are refused."""
        if self.relay is not None:
            self.relay.stop()
        self.daemon.kill()

    def start(self) -> None:
        """Start it again."""
        self.daemon.start()
        if self.relay is not None:
            self.relay.start()


# -- mail ------------------------------------------------------------------------------------------


def to_be_refused(number: int) -> bool:
    """Return whether a message of any traffic here is to be refused."""
    return number % EVERY == 0


def message(
    number: int,
    fields: str = "",
    *,
    sender: str = SENDER,
    subject: str = "plain",
    body: bytes = b"hello\n" * 30,
) -> bytes:
    """Return message `number`, with these fields further."""
    head = (
        f"X-Number: {number}\nFrom: {sender}\nTo: {ALICE}\nSubject: {subject}\nDate: {DATE}\n"
        f"Message-ID: <{number}.load@good.example>\n{fields}"
    )
    return head.encode() + b"\n" + body


def traffic(
    refusal: int,
    good: Callable[[int], bytes] = message,
    bad: Callable[[int], bytes] = message,
    **more: Any,
) -> Traffic:
    """Return traffic from outside, with messages of two kinds."""

    def content(number: int) -> bytes:
        return (bad if to_be_refused(number) else good)(number)

    return Traffic(content=content, source=GOOD, refusal=refusal, **more)


def envelopes(good: str, bad: str) -> Callable[[int], tuple[str, str]]:
    """Return the envelopes of traffic with these arguments of MAIL; `#` is the number."""

    def envelope(number: int) -> tuple[str, str]:
        mail = bad if to_be_refused(number) else good
        return mail.replace("#", str(number)), f"TO:<{ALICE}>"

    return envelope


@cache
def signed(number: int) -> bytes:
    """Return a message with a valid signature."""
    mail = message(number)
    signature = dkim.sign(mail, b"rsa", b"good.example", pem(form="PKCS1"))
    return bytes(signature).replace(b"\r\n", b"\n") + mail


def falsified(number: int) -> bytes:
    """Return a message that was changed after it was signed."""
    return signed(number) + b"changed\n"


BANNED = (
    b"--x\n\nhello\n--x\nContent-Type: application/octet-stream\n"
    b'Content-Disposition: attachment; filename="run.exe"\n\nMZ\n--x--\n'
)
MIXED = 'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="x"\n'


# -- daemons ---------------------------------------------------------------------------------------


@contextmanager
def behind_a_relay(
    lab: Lab, started: AbstractContextManager[Any], filter_: str, flags: str, mail: Traffic
) -> Iterator[Subject]:
    """A daemon with a port; in `flags`, RELAY stands for the address of the relay."""
    with started as daemon, Relay(lab, daemon.port) as relay:
        words = flags.replace("RELAY", relay.address).split()
        yield Subject(daemon, filter_command(filter_, *words), mail, relay)


def milter(
    lab: Lab, started: AbstractContextManager[Any], mail: Traffic, timeout: int = TIMEOUT
) -> AbstractContextManager[Subject]:
    """A milter."""
    waits = " ".join(f"--{kind}-timeout={timeout}" for kind in ("connect", "command", "content"))
    return behind_a_relay(lab, started, "milter", f"--milter inet:RELAY {waits}", mail)


@contextmanager
def case_clamd(lab: Lab) -> Iterator[Subject]:
    need(clamd_set_up.unavailable())
    mail = traffic(
        554, bad=partial(message, body=EICAR + b"\n"), scanned=rb"(?m)^X-Virus-Status: Clean$"
    )
    flags = f"--clamd RELAY --timeout {TIMEOUT} --headers all"
    with behind_a_relay(lab, ClamAV(port=CLAMD, lab=lab), "clamav", flags, mail) as subject:
        yield subject


@contextmanager
def case_spamd(lab: Lab) -> Iterator[Subject]:
    need(spamd_set_up.unavailable())
    mail = traffic(554, bad=partial(message, body=GTUBE.replace(b"\r", b"")), scanned=SPAM_STATUS)
    flags = f"--spamd RELAY --timeout {PATIENT} --reject-at 100"
    with behind_a_relay(lab, Spamd(lab), "spamd", flags, mail) as subject:
        yield subject


SPAM_STATUS = rb"(?m)^X-Spam-Status: No, score="


@contextmanager
def case_pymilter(lab: Lab) -> Iterator[Subject]:
    mail = traffic(
        554,
        bad=partial(message, subject="void"),
        appended=rb"(\nX-(Size|Macros|Parameters): .*)*",
        # The macros are there for each message of a session.
        scanned=rb"\nX-Size: \d+\nX-Macros: mx\.local\.example [0-9a-f]{8}\n",
    )
    with milter(lab, pymilter(lab, SCRIPT), mail) as subject:
        yield subject


@contextmanager
def case_opendkim(lab: Lab) -> Iterator[Subject]:
    need(unavailable("opendkim"))
    settings = (
        "Mode v", f"TestPublicKeys {FILES}/keys", "AlwaysAddARHeader yes",
        "AuthservID mx.local.example", "On-BadSignature reject",
    )  # fmt: skip
    keys = {"keys": f"rsa._domainkey.good.example {RECORD}\n"}
    mail = traffic(550, signed, falsified, scanned=rb"mx\.local\.example;\s+dkim=pass")
    with milter(lab, opendkim(lab, *settings, files=keys), mail) as subject:
        yield subject


@contextmanager
def case_opendmarc(lab: Lab) -> Iterator[Subject]:
    need(unavailable("opendmarc"))
    settings = ("AuthservID mx.local.example", "RejectFailures true", "SPFSelfValidate true")
    mail = traffic(
        550,
        bad=partial(message, sender=STRICT),
        envelope=envelopes(f"FROM:<{SENDER}>", f"FROM:<{STRICT}>"),
        scanned=rb"mx\.local\.example;\s+dmarc=none",
    )
    with milter(lab, opendmarc(lab, *settings), mail) as subject:
        yield subject


@contextmanager
def case_clamav_milter(lab: Lab) -> Iterator[Subject]:
    need(unavailable("clamav-milter"))
    need(clamd_set_up.unavailable())
    mail = traffic(
        550,
        bad=partial(message, body=EICAR + b"\n"),
        appended=rb"(\nX-Virus-.*(\n\s.*)*)*",
        scanned=rb"(?m)^X-Virus-Status: Clean$",
    )
    settings = ("OnInfected Reject", "AddHeader Replace")
    with (
        ClamAV(port=CLAMD, lab=lab),
        milter(lab, clamav_milter(lab, CLAMD, *settings), mail) as subject,
    ):
        yield subject


@contextmanager
def case_spamass_milter(lab: Lab) -> Iterator[Subject]:
    need(unavailable("spamass-milter", "spamd"))
    mail = traffic(
        550,
        bad=partial(message, fields="X-Test-Spam: yes\n"),
        appended=rb"(\nX-Spam-.*(\n\s.*)*)*",
        scanned=SPAM_STATUS,
    )
    with (
        plain_spamd(lab) as scanner,
        milter(lab, spamass_milter(lab, scanner.port, "-r", "15"), mail, PATIENT) as subject,
    ):
        yield subject


@contextmanager
def case_amavisd_milter(lab: Lab) -> Iterator[Subject]:
    need(unavailable("amavisd-milter", "amavisd"))
    mail = traffic(554, bad=partial(message, fields=MIXED, body=BANNED))
    with milter(lab, amavisd_milter(lab), mail) as subject:
        yield subject


@contextmanager
def case_rspamd_proxy(lab: Lab) -> Iterator[Subject]:
    need(no_rspamd())
    mail = traffic(
        554,
        bad=partial(message, body=GTUBE.replace(b"\r", b"")),
        appended=rb"(\nX-Spam-.*(\n\s.*)*)*",
        scanned=SPAM_STATUS,
    )
    started = RspamdProxy(
        lab,
        workers=PROXY,
        override={"greylist.conf": "enabled = false;"},
        local={"milter_headers.conf": 'use = ["x-spam-status"]; skip_local = false;'},
        redis=False,
    )
    with milter(lab, started, mail, PATIENT) as subject:
        yield subject


@contextmanager
def case_quota_status(lab: Lab) -> Iterator[Subject]:
    need(policy_set_up.no_quota_status())
    large = f"FROM:<{SENDER}> SIZE={MAILBOX * 2}"
    mail = traffic(552, envelope=envelopes(f"FROM:<{SENDER}>", large))
    flags = f"--server inet:RELAY --timeout {TIMEOUT}"
    with behind_a_relay(lab, quota_status(lab), "policy", flags, mail) as subject:
        yield subject


@contextmanager
def case_postgrey(lab: Lab) -> Iterator[Subject]:
    """Each message that is to be refused is the first one of its sender."""
    need(policy_set_up.no_postgrey())
    mail = traffic(450, envelope=envelopes(f"FROM:<{SENDER}>", "FROM:<new#@good.example>"))
    flags = f"--server inet:RELAY --timeout {TIMEOUT}"
    daemon = postgrey(lab, "--auto-whitelist-clients=0")
    with behind_a_relay(lab, daemon, "policy", flags, mail) as subject:
        yield subject


@contextmanager
def case_policyd_spf(lab: Lab) -> Iterator[Subject]:
    del lab
    need(policy_set_up.no_policyd_spf())
    mail = traffic(
        550,
        envelope=envelopes(f"FROM:<{SENDER}>", f"FROM:<{STRICT}>"),
        scanned=rb"(?m)^Received-SPF: Pass ",
    )
    program = policyd_spf(file_path(SPF))
    command = filter_command("policy", "--server", f"exec:{program}", "--timeout", str(TIMEOUT))
    files = {SPF: "debugLevel = 0\nTestOnly = 1\nHELO_reject = False\nMail_From_reject = Fail\n"}
    yield Subject(Program("spf_engine"), command, mail, files=files)


CASES = {
    name.removeprefix("case_"): made for name, made in list(globals().items()) if "case_" in name
}

# -- faults ----------------------------------------------------------------------------------------


def killed(subject: Subject, load: Load) -> None:
    """It is away for a while."""
    subject.kill()
    load.wait(refused=1)
    subject.start()


def restarted(subject: Subject, load: Load) -> None:
    """It is back at once."""
    del load
    subject.kill()
    subject.start()


def stopped(subject: Subject, load: Load) -> None:
    """It takes connections, and answers nothing."""
    subject.daemon.signal(signal.SIGSTOP)
    load.wait(refused=1)
    subject.daemon.signal(signal.SIGCONT)


def slow(subject: Subject, load: Load) -> None:
    """It answers slowly, then too slowly."""
    assert subject.relay is not None
    subject.relay.delay(SLOW)
    load.wait(accepted=CLIENTS + 1)  # one of each client may have been answered before
    assert subject.relay.delayed
    subject.relay.delay(TOO_SLOW)
    load.wait(refused=1)
    subject.relay.delay(0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_mail_is_lost_or_unscanned(start: Start, case: Case) -> None:
    need(no_lab())
    with Lab(ZONES) as lab, case(lab) as subject:
        server = start(lab=lab, filters={"bridge": subject.command}, files=subject.files)
        load = Load(server, subject.traffic)
        faults = [killed, stopped, restarted, slow]
        if isinstance(subject.daemon, Program):
            # It has no port, and is never away for long.
            subject.daemon.server = server
            faults = [restarted, stopped, restarted]
        with load.clients(CLIENTS):
            load.wait(accepted=2, denied=1)
            for fault in faults:
                fault(subject, load)
                load.wait(accepted=2, denied=1)
        load.check()
