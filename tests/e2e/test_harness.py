"""Tests of the harness: servers, clients, names and mail are real, and nothing is left behind."""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import signal
import smtplib
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing import server as harness
from smtpd_filters.testing.dns import host, merge
from smtpd_filters.testing.rspamd.daemon import Rspamd, unavailable
from smtpd_filters.testing.server import (
    CODE,
    Lab,
    LabError,
    Smtpd,
    file_path,
    filter_command,
    password,
    root_of,
    scratch_path,
    script_command,
)
from smtpd_filters.testing.server.lab import children
from tests.e2e.daemon import Daemon
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.e2e.conftest import Spy, Start

ALICE = "alice@local.example"
SENDER = "someone@good.example"
NOBODY = (65534, 65534)
#: linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
MESSAGE = b"From: someone@good.example\r\nSubject: hello\r\n\r\nhello\r\n"
# Every byte that smtpd takes in a line, dots to be stuffed, a line at RFC 5321's limit and one
# beyond.
ODD = (
    b"From: someone@good.example\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\n"
    b"Message-ID: <1@good.example>\r\nSubject: hello\r\n\r\n"
    b".\r\n..\r\n.hidden\r\n\r\n \t\r\n"
    + bytes(range(1, 10)) + bytes(range(11, 13)) + bytes(range(14, 256)) + b"\r\n"
    + b"x" * 998 + b"\r\n" + b"y" * 5000 + b"\r\n"
)  # fmt: skip
ZONE = merge(
    host("mail.good.example", "127.0.0.9", "::1", "2001:db8::9"),
    host("192-0-2-8.dyn.example", "192.0.2.8"),
    {"7.0.0.127.in-addr.arpa": {"PTR": "liar.example"}, "liar.example": {"A": "127.0.0.99"}},
)
#: A filter in a file of its own, as an author writes it.
QUIET = """
from smtpd_filters import PROCEED, Decision, Filter, Session, Settings, option, run
from smtpd_filters.settings import table
from smtpd_filters.tables import NetworkTable

class Quiet(Filter):
    class Options(Settings):
        allow = option(table(NetworkTable), default=None, help="Friends.")

    def connect(self, session: Session) -> Decision:
        return PROCEED.because("friend") if session.address else PROCEED

raise SystemExit(run(Quiet))
"""


def send(server: Smtpd, source: str = "127.0.0.9", message: bytes = MESSAGE) -> None:
    with server.client(source) as client:
        assert client.sendmail(SENDER, [ALICE], message) == {}


def text(error: bytes | str) -> bytes:
    return error.encode() if isinstance(error, str) else error


# -- mail ------------------------------------------------------------------------------------------


def test_a_message_is_delivered_byte_for_byte(start: Start) -> None:
    server = start(zone=ZONE)
    send(server, message=ODD)
    [mail] = server.maildir("alice")
    assert mail.folder == ""
    assert mail.content.endswith(b"\n" + ODD.replace(b"\r\n", b"\n"))
    assert "mail.good.example [127.0.0.9]" in mail.message["Received"]
    assert server.maildir("bob") == []


def test_a_refused_recipient_gets_nothing(start: Start) -> None:
    server = start(users=["alice"])
    with server.client() as client, pytest.raises(smtplib.SMTPRecipientsRefused):
        client.sendmail(SENDER, ["bob@local.example"], MESSAGE)
    assert server.maildir("alice") == []


def test_messages_come_in_the_order_of_their_delivery(start: Start) -> None:
    server = start()
    for number in range(3):
        send(server, message=b"Subject: %d\r\n\r\n" % number)
        server.settle()
    subjects = [mail.message["Subject"] for mail in server.maildir("alice")]
    assert subjects == ["0", "1", "2"]


def test_fifty_clients_at_once(start: Start, spy: Spy) -> None:
    server = start(zone=ZONE, filters={"spy": spy()})
    with ThreadPoolExecutor(50) as pool:
        done = [pool.submit(send, server) for _ in range(50)]
    for future in done:
        future.result()
    assert len(server.maildir("alice")) == 50
    assert len(spy.seen(server, "link-connect")) == 50


# -- what a filter sees ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("127.0.0.9", "mail.good.example|pass|127.0.0.9:"),
        ("127.0.0.7", "liar.example|fail|127.0.0.7:"),
        ("127.0.0.6", "<unknown>|fail|127.0.0.6:"),
        ("192.0.2.8", "192-0-2-8.dyn.example|pass|192.0.2.8:"),
        ("::1", "mail.good.example|pass|[::1]:"),
        ("2001:db8::9", "mail.good.example|pass|[2001:db8::9]:"),
        ("2001:db8::8", "<unknown>|fail|[2001:db8::8]:"),
    ],
)
def test_a_filter_gets_the_clients_address(
    start: Start, spy: Spy, source: str, expected: str
) -> None:
    server = start(zone=ZONE, filters={"spy": spy()})
    send(server, source)
    [connect] = spy.seen(server, "link-connect")
    assert connect.rest.startswith(expected)
    assert len(server.maildir("alice")) == 1


def test_the_zone_may_change_while_the_server_runs(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy()})
    assert server.lab.dns.queries == []
    send(server)
    server.lab.dns.zone.update(ZONE)
    send(server)
    names = [line.rest.partition("|")[0] for line in spy.seen(server, "link-connect")]
    assert names == ["<unknown>", "mail.good.example"]
    assert server.lab.dns.asked("9.0.0.127.in-addr.arpa", "PTR") == 2


def test_a_filter_runs_unprivileged_and_gets_its_arguments_whole(start: Start, spy: Spy) -> None:
    odd = """two words "double" 'single' \\ $HOME * # ;"""
    server = start(filters={"spy": spy(odd)})
    head = spy.head(server)
    assert "uid=0 " not in head
    assert head.endswith(f"arguments={[odd]!r}")


@pytest.mark.parametrize(
    "arguments",
    [
        [r"\.exe$", r"\\", "\\", r"\d{2}\ ", "a\\"],
        ['\\"', '"', r"\\ \ b", "\\\t\\", "\t", " \\", "\\ "],
        [r"\'", "'\\", "'", "$x", "", "#", "\r", "é"],
        [bytes({*range(3, 256)} - {10}).decode("utf-8", "surrogateescape")],
        ["".join(each) for each in itertools.product("a\\\"' \t", repeat=3)],
    ],
)
def test_arguments_arrive_as_they_are(start: Start, spy: Spy, arguments: list[str]) -> None:
    head = spy.head(start(filters={"spy": spy(*arguments)}))
    assert head.endswith(f"arguments={arguments!r}")


def test_a_script_finds_the_project_what_it_needs_and_its_files(start: Start) -> None:
    script = (
        "import sys, dns.resolver, smtpd_filters\n"
        "print(open(sys.argv[1]).read(), smtpd_filters.__file__, file=sys.stderr)\n"
        "print('register|report|smtp-in|link-connect')\n"
        "print('register|ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = script_command("policy.py", file_path("sub/table"))
    server = start(filters={"policy": command}, files={"policy.py": script, "sub/table": "entry"})
    server.wait_for(rf"policy: entry {CODE}/smtpd_filters/__init__.py")
    server.write("sub/table", "other")
    table = server.lab.run("/bin/cat", file_path("sub/table"), user=NOBODY)
    assert table.stdout == b"other"


def test_filters_run_in_order_and_the_first_refusal_ends_it(start: Start, spy: Spy) -> None:
    second = script_command(f"{CODE}/tests/e2e/spy_filter.py", scratch_path("second"))
    server = start(filters={"spy": spy("mail-from=reject|550 no"), "second": second})
    with server.client() as client, pytest.raises(smtplib.SMTPSenderRefused) as refusal:
        client.sendmail(SENDER, [ALICE], MESSAGE)
    assert (refusal.value.smtp_code, text(refusal.value.smtp_error)) == (550, b"no")
    asked = [line for line in server.scratch("second").split(b"\n") if line.startswith(b"filter|")]
    assert not [line for line in asked if b"|mail-from|" in line]
    assert [line for line in asked if b"|ehlo|" in line]


def test_junk_is_filed_as_junk(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy("connect=junk")})
    send(server)
    [mail] = server.maildir("alice")
    assert mail.folder == "Junk"
    assert mail.message["X-Spam"] == "Yes"


def test_a_refused_connection(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy("connect=disconnect|421 4.7.0 go away")})
    with pytest.raises(smtplib.SMTPConnectError) as refusal:
        server.client()
    assert (refusal.value.smtp_code, text(refusal.value.smtp_error)) == (421, b"4.7.0 go away")
    [reply] = server.dialogue("127.0.0.9", ["EHLO x", "QUIT"])
    assert (reply.code, reply.text) == (421, "4.7.0 go away")


# -- ways in ---------------------------------------------------------------------------------------


def test_starttls(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy()})
    with server.client() as client:
        client.starttls()
        assert client.sendmail(SENDER, [ALICE], MESSAGE) == {}
    [tls] = spy.seen(server, "link-tls")
    assert tls.rest.startswith("TLSv1.")
    assert len(spy.seen(server, "ehlo")) == 1 + (client.ehlo_resp is not None)
    [mail] = server.maildir("alice")
    assert "ESMTPS" in mail.message["Received"]


def test_authentication(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy()})
    with server.client() as client:
        client.starttls()
        client.login("alice", password("alice"))
        assert client.sendmail(SENDER, [ALICE], MESSAGE) == {}
    with server.client() as client:
        client.starttls()
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("alice", password("bob"))
    fields = [set(line.rest.split("|")) for line in spy.seen(server, "link-auth")]
    assert {"alice", "pass"} in fields
    assert {"alice", "fail"} in fields


@pytest.mark.parametrize("user", [None, NOBODY])
def test_submission_through_the_socket(
    start: Start, spy: Spy, user: tuple[int, int] | None
) -> None:
    server = start(filters={"spy": spy()})
    server.submit(MESSAGE.replace(b"\r\n", b"\n"), SENDER, ALICE, user=user)
    [mail] = server.maildir("alice")
    assert mail.content.endswith(b"\n\nhello\n")
    [connect] = spy.seen(server, "link-connect")
    assert "|unix:/" in connect.rest


def test_a_dialogue_of_ones_own(start: Start) -> None:
    server = start()
    replies = server.dialogue(
        "127.0.0.9",
        [
            *("EHLO here", "BOGUS", f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{ALICE}>", "DATA"),
            *(b"Subject: pieces\r\n", b"\r\n", b"..\r\n", ".", "QUIT", "NOOP"),
        ],
    )
    assert [reply.code for reply in replies] == [220, 250, 500, 250, 250, 354, 250, 221]
    assert "8BITMIME" in replies[1].lines
    [mail] = server.maildir("alice")
    assert mail.content.endswith(b"\n\n.\n")


def test_a_raw_connection_can_start_tls_and_vanish(start: Start) -> None:
    server = start()
    with server.connection() as connection:
        assert connection.reply() is not None
        assert connection.command("EHLO x") is not None
        assert connection.starttls() is not None
        answer = connection.command("EHLO x")
        assert answer is not None
        assert any(line.startswith("AUTH ") for line in answer.lines)
    server.wait_for("smtp disconnected")


def test_a_configuration_of_ones_own(start: Start, spy: Spy) -> None:
    server = start(
        filters={"spy": spy()},
        declarations='filter "own" phase mail-from match mail-from regex "bad" reject "550 bad"',
        listeners="listen on 127.0.0.1 port 25 $tls filter own\n"
        "listen on 127.0.0.1 port 26 $filter\n",
    )
    with server.client() as client, pytest.raises(smtplib.SMTPSenderRefused):
        client.sendmail("bad@good.example", [ALICE], MESSAGE)
    assert spy.seen(server) == []
    with server.client(port=26) as client:
        client.sendmail("bad@good.example", [ALICE], MESSAGE)
    assert len(server.maildir("alice")) == 1


# -- life and death --------------------------------------------------------------------------------


def test_a_configuration_that_smtpd_refuses(start: Start) -> None:
    with pytest.raises(LabError, match=r"did not start\n.*syntax error"):
        start(declarations="nonsense")


def test_a_filter_that_fails_at_start(start: Start) -> None:
    with pytest.raises(LabError, match="did not start"):
        start(filters={"broken": "/bin/false"})


def test_a_server_that_died_fails_its_test(version: str, spy: Spy) -> None:
    with Smtpd(version, filters={"spy": spy("exit@mail-from")}) as server:
        replies = server.dialogue("127.0.0.9", ["EHLO x", f"MAIL FROM:<{SENDER}>", "QUIT"])
        assert [reply.code for reply in replies] == [220, 250]
        server.expect_end()
        server._end_expected = False
        with pytest.raises(LabError, match="ended by itself"):
            server.__exit__(None, None, None)
        server.terminate()


def test_a_death_that_was_expected(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy("exit@mail-from")})
    with server.connection() as connection:
        connection.reply()
        connection.command("EHLO x")
        assert connection.command(f"MAIL FROM:<{SENDER}>") is None
    server.expect_end()
    assert not server.alive()
    with pytest.raises(LabError, match="not in the log"):
        server.wait_for("no such line")


def test_a_failing_test_shows_the_log(version: str) -> None:
    with pytest.raises(ZeroDivisionError) as failure, Smtpd(version):
        raise ZeroDivisionError
    assert "the server's log:\ninfo: OpenSMTPD" in failure.value.__notes__[0]


def test_filters_are_processes_that_can_be_reached(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy()})
    [process] = server.find("spy_filter.py")
    os.kill(process.pid, signal.SIGKILL)
    server.expect_end()


def test_filters_end_with_their_server(start: Start, spy: Spy) -> None:
    server = start(filters={"spy": spy()})
    assert server.find("spy_filter.py")
    server.terminate()
    assert server.leftovers == []
    assert "Exiting" in server.log[-2:]  # one of its processes may log later
    assert spy.seen(server) == []  # the files are still there


def test_a_filter_that_outlives_its_server_is_named(version: str) -> None:
    lingering = "/bin/sh -c 'echo \"register|ready\"; exec sleep 1000'"
    with Smtpd(version, filters={"lingering": lingering}) as server:
        server.terminate(timeout=0.5)
        assert any("sleep 1000" in " ".join(process.arguments) for process in server.leftovers)
    assert server.lab.processes() == []


def test_nothing_is_left(version: str, spy: Spy) -> None:
    threads = set(threading.enumerate())
    descriptors = {path.name for path in Path("/proc/self/fd").iterdir()}
    mounts = Path("/proc/self/mounts").read_text("utf-8")
    with Smtpd(version, filters={"spy": spy()}) as server:
        send(server)
        server.lab.spawn("/bin/sleep", "1000")
        pids = [process.pid for process in server.lab.processes()]
    assert len(pids) > 7
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert set(threading.enumerate()) == threads
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == descriptors
    assert Path("/proc/self/mounts").read_text("utf-8") == mounts


def test_nothing_is_left_when_the_test_process_is_killed(version: str) -> None:
    program = (
        "import sys, time\n"
        "from smtpd_filters.testing.server import Smtpd, add_server\n"
        "with Smtpd(add_server(sys.argv[1])) as server:\n"
        "    print(server.lab.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, f"{root_of(version)}={version}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        holder = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        # A descriptor of a process is readable when it has ended; process 1 ends last.
        ended = select.select([holder], [], [], 10)[0]
        os.close(holder)
    assert ended


def stopped(processes: Iterable[int]) -> threading.Timer:
    """Stop nsenters, as they stop themselves with their children; the timer kills them."""

    def send(number: int) -> None:
        for pid in found:
            os.kill(pid, number)

    found = list(processes)
    send(signal.SIGSTOP)
    limit = threading.Timer(30, send, [signal.SIGKILL])
    limit.start()
    return limit


def test_a_process_has_its_arguments_while_it_executes_another_program() -> None:
    """Linux shows none of them for a moment."""
    again = 'exec /bin/sh -c "$0" "$0"'
    with Lab() as lab:
        lab.spawn("/bin/sh", "-c", again, again)
        seen = [process.arguments for _ in range(100) for process in lab.processes()]
    assert ["/bin/sh", "-c", again, again] in seen
    assert [""] not in seen


def test_a_lab_ends_with_an_nsenter_that_is_stopped() -> None:
    with Lab() as lab:
        limit = stopped([lab.spawn("sleep", "600").pid])
    assert limit.is_alive()
    limit.cancel()


@pytest.mark.parametrize("end", [Rspamd.stop, Rspamd.kill, Rspamd.close])
def test_a_daemon_ends_with_nsenters_that_are_stopped(end: Callable[[Rspamd], None]) -> None:
    need(unavailable())
    with Rspamd() as daemon:
        mine = {process.pid for process in daemon.processes()}
        limit = stopped(pid for pid in children(os.getpid()) if mine.intersection(children(pid)))
        end(daemon)
    assert limit.is_alive()
    limit.cancel()


@contextmanager
def guardian_of_orphans() -> Iterator[None]:
    """This process reaps orphans in place of the machine's init, which may be slow or fast."""

    def prctl(enabled: int) -> None:
        assert not ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, enabled, 0, 0, 0)

    prctl(1)
    try:
        yield
    finally:
        prctl(0)


def test_a_killed_daemon_has_been_reaped_before_it_is_started_again() -> None:
    # As policy servers are: it ends at SIGKILL, and only its nsenter may reap it.
    program = "import socket, signal; s = socket.create_server(('127.0.0.1', PORT)); signal.pause()"
    with (
        guardian_of_orphans(),
        Lab() as lab,
        Daemon(lab, ["/usr/bin/python3", "-c", program]) as daemon,
    ):
        (mine,) = daemon.inside.processes()
        limit = stopped([pid for pid in children(os.getpid()) if mine.pid in children(pid)])
        daemon.kill()
        with pytest.raises(ChildProcessError):  # no orphan
            os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOHANG)
        daemon.start()
    assert limit.is_alive()
    limit.cancel()


def test_nothing_gets_out(version: str) -> None:
    with Lab(root=root_of(version)) as lab:
        with pytest.raises(OSError, match="unreachable"):
            lab.connect(25, to="198.18.0.1")
        routes = Path(f"/proc/{lab.pid}/net/route").read_text("ascii").splitlines()
        assert len(routes) == 1  # the heading
        if root_of(version) != Path("/"):
            assert lab.run("/bin/touch", "/etc/x", check=False).returncode != 0


def test_two_servers_in_one_network(version: str) -> None:
    relay = 'action "out" relay host "smtp://127.0.0.1"\nmatch from any for any action "out"\n'
    with (
        Lab(ZONE) as lab,
        Smtpd(version, lab=lab) as server,
        Smtpd(
            version,
            lab=lab,
            listeners="listen on 127.0.0.2 port 25\nlisten on socket\n",
            matches=relay,
        ) as front,
    ):
        with front.client("127.0.0.9", to="127.0.0.2") as client:
            client.sendmail(SENDER, [ALICE], MESSAGE)
        front.settle()
        [mail] = server.maildir("alice")
        assert len(mail.message.get_all("Received", [])) == 2


# -- what is where ---------------------------------------------------------------------------------


def test_a_filter_of_the_project_is_named_as_its_executable() -> None:
    command = filter_command("dyndns", "--patterns", "{ a b }")
    assert command == "/srv/lab/bin/filter-dyndns --patterns '{ a b }'"


def test_the_documented_example_runs(version: str) -> None:
    documentation = harness.__doc__ or ""
    example = documentation.partition("::\n\n")[2].partition("\n\nBy default a server has")[0]
    assert '"7.6"' in example
    exec(textwrap.dedent(example).replace('"7.6"', repr(version)), {})  # noqa: S102  # our own documentation


def test_a_filter_of_the_project_runs_from_the_checkout(start: Start) -> None:
    server = start(filters={"dyndns": filter_command("dyndns")})
    server.signal_filter("dyndns", signal.SIGHUP)
    send(server)
    assert server.alive()
    with pytest.raises(LabError, match="filter-trace is not running"):
        server.signal_filter("trace", signal.SIGHUP)


def test_a_script_gets_signals_by_its_name(start: Start, spy: Spy) -> None:
    server = start(filters={"dyndns": filter_command("dyndns"), "spy": spy("x y", r"\.")})
    server.signal_filter("spy", signal.SIGKILL)
    server.expect_end()


@pytest.mark.parametrize("supervised", [(), ("--supervised",)])
def test_a_script_of_the_framework_gets_signals(start: Start, supervised: tuple[str, ...]) -> None:
    command = script_command("quiet.py", *supervised, "--allow", file_path("allow"))
    server = start(filters={"quiet": command}, files={"quiet.py": QUIET, "allow": "192.0.2.0/24\n"})
    send(server)
    server.write("allow", "192.0.2.0/25\n")
    server.signal_filter("quiet", signal.SIGHUP)
    server.wait_for("quiet reload table=allow result=ok")


def test_the_filter_of_a_supervisor_is_killed_alone(start: Start) -> None:
    command = script_command("quiet.py", "--supervised")
    server = start(filters={"quiet": command}, files={"quiet.py": QUIET})
    found = server.find("quiet.py")
    [process] = [each for each in found if "supervise" not in " ".join(each.arguments)]
    os.kill(process.pid, signal.SIGKILL)
    server.wait_for("supervise ended .*killed by signal 9")
    send(server)
    assert server.alive()


def test_the_package_is_the_one_door() -> None:
    assert sorted(harness.__all__) == sorted(set(harness.__all__))
    assert all(hasattr(harness, name) for name in harness.__all__)
