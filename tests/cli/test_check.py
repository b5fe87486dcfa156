from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from smtpd_filters.cli import check, main
from smtpd_filters.cli.starter import Conditions
from smtpd_filters.cli.verb import Verb
from smtpd_filters.errors import ConfigError, user_name
from smtpd_filters.testing.dns import DNSServer
from smtpd_filters.testing.rspamd.stub import RspamdStub
from tests.cli.configurations import used

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Capture = pytest.CaptureFixture[str]

ROOT = os.geteuid() == 0
ME = user_name()
#: smtpd's own user may not enter the directories of tests.
AS_ME = ("--user", ME) if ROOT else ()
# Every filter is started.
pytestmark = pytest.mark.processes
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")
#: Seconds that a test waits for anything.
PATIENCE = 60.0
DYNDNS = "from smtpd_filters.filters.dyndns import main\nraise SystemExit(main())\n"


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., str]:
    """Make an executable in Python; its path."""

    def make(text: str, name: str = "filter-own", mode: int = 0o755) -> str:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{dedent(text)}")
        path.chmod(mode)
        return str(path)

    return make


@pytest.fixture
def checked(tmp_path: Path, capsys: Capture) -> Callable[..., tuple[int, list[str]]]:
    """Check a file of this text: the status, and the lines without the file's name."""

    def run(text: str, *flags: str, **conditions: Any) -> tuple[int, list[str]]:
        path = tmp_path / "smtpd.conf"
        path.write_text(text)
        status = check_under(["--config", str(path), *AS_ME, *flags], **conditions)
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        assert all(line.startswith(f"{path}:") for line in lines)
        said = [line.removeprefix(f"{path}:") for line in lines]
        return status, [line for line in said if "warning: no `listen on socket" not in line]

    return run


def check_under(words: Sequence[str], **conditions: Any) -> int:
    """Run `smtpd-filters check` under these conditions of `Conditions`."""
    run = partial(check.run, conditions=Conditions(**conditions))
    return Verb("check", run, options=check.Options, description="Check.").run(words)


def about(
    checked: Callable[..., tuple[int, list[str]]], command: str, *flags: str, **conditions: Any
) -> str:
    """The one line on a filter with this command."""
    options = f' user "{ME}"' if "user" not in command else ""
    quoted = command.replace('"', '\\"')
    status, [line, *rest] = checked(
        used(f'filter f proc-exec "{quoted}"{options}'), *flags, **conditions
    )
    summary = [each for each in rest if each.startswith(" 1 filter, ")]
    assert summary == [f" 1 filter, {'1 error' if status else 'no errors'}"]
    prefix = '1: filter "f": '
    assert line.startswith(prefix)
    return f"{status} {line.removeprefix(prefix)}"


# -- filters of ours -------------------------------------------------------------------------


def test_a_filter_that_gets_ready(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    assert about(checked, program(DYNDNS)) == f"0 ok (as {ME})"


MESSAGES = """\
from smtpd_filters import PROCEED, Filter, Headers, Proceed, Session, run

class Own(Filter):
    {trait} = True

    def headers(self, session: Session, headers: Headers) -> Proceed:
        return PROCEED

raise SystemExit(run(Own))
"""


@pytest.mark.parametrize("supervised", ["", " --supervised"])
@pytest.mark.parametrize("order", [("signs", "edits_signed"), ("edits_signed", "signs")])
def test_a_filter_that_edits_what_is_signed(
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
    order: tuple[str, str],
    supervised: str,
) -> None:
    text = ""
    for trait in order:
        command = program(MESSAGES.format(trait=trait), trait) + supervised
        text += f'filter {trait} proc-exec "{command}" user "{ME}"\n'
    text += f"filter all chain {{ {', '.join(order)} }}\nlisten on socket filter all\n"
    status, lines = checked(text)
    assert status == 0
    assert lines[:2] == [f'{n}: filter "{each}": ok (as {ME})' for n, each in enumerate(order, 1)]
    warned = [line for line in lines if "signature" in line]
    pair = 'filter "edits_signed", behind "signs"'
    told = f"4: warning: listen on socket: {pair}, edits what the signature should cover; put it"
    assert warned == ([f"{told} ahead"] if order[0] == "signs" else [])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--actoin junk", 'filter-dyndns: unknown flag --actoin, did you mean "--action"?'),
        ("--allow file:/no/such", "filter-dyndns: --allow: /no/such: No such file or directory"),
        ("--reply '550 x y'", ""),
    ],
)
def test_a_filters_error_is_shown(
    flags: str,
    reason: str,
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
) -> None:
    """The shell reads the quotes."""
    expected = f"1 {reason} (as {ME})" if reason else f"0 ok (as {ME})"
    assert about(checked, f"{program(DYNDNS)} {flags}") == expected


SUPERVISE = "from smtpd_filters.supervise.program import main\nraise SystemExit(main())\n"


def test_a_supervised_filter_is_checked_without_its_supervisor(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    """The supervisor itself gets ready although the filter doesn't."""
    dyndns = program(DYNDNS)
    reason = "filter-dyndns: --allow: /no/such: No such file or directory"
    assert about(checked, f"{dyndns} --supervised") == f"0 ok (as {ME})"
    wrong = f"{dyndns} --allow file:/no/such"
    assert about(checked, f"{wrong} --supervised") == f"1 {reason} (as {ME})"
    supervise = program(SUPERVISE, "filter-supervise")
    assert about(checked, f"{supervise} --workers 2 {dyndns}") == f"0 ok (as {ME})"
    assert about(checked, f"{supervise} {wrong}") == f"1 {reason} (as {ME})"
    error = 'filter-supervise: --workers: must be at least 1, not "0"'
    assert about(checked, f"{supervise} --workers 0 {dyndns}") == f"1 {error} (as {ME})"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import smtpd_filters\nraise SystemExit(7)", "ends with status 7 before it is ready"),
        (
            "import smtpd_filters.nowhere",
            "FILE:2: ModuleNotFoundError: No module named 'smtpd_filters.no",
        ),
        ("import smtpd_filters\ndef f()\n  pass", "FILE:3: SyntaxError: expected ':'"),
        ("import json, smtpd_filters\n\njson.loads('{')", "FILE:4: json.decoder.JSONDecodeError:"),
        (
            "from smtpd_filters import Filter\nclass X(Filter):\n  def x(self): pass",
            "FILE:3: TypeError: filter 'x' (__main__.X): 'x' is not the handler of a phase",
        ),
        (
            "import sys\nsys.exit('filter-x: --y: wrong\\nmore of smtpd_filters')",
            "filter-x: --y: wrong",
        ),
        ("import smtpd_filters, time\ntime.sleep(60)", "not ready within 0.5 s"),
        (
            # Its children end with it.
            "import smtpd_filters, subprocess\nsubprocess.run(['sleep', '60'])",
            "not ready within 0.5 s",
        ),
        (
            "import smtpd_filters, os\nos.close(0), os.close(1)\nos.read(os.pipe()[0], 1)",
            "ends with status -9 before it is ready",
        ),
    ],
)
def test_a_filter_that_does_not_get_ready(
    text: str,
    reason: str,
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
) -> None:
    flags = ("--timeout", "500ms") if "not ready" in reason else ()
    path = program(text)
    expected = f"1 {reason.replace('FILE', path)}"
    assert about(checked, path, *flags, ending=0.1).startswith(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("while True: os.write(1, bytes(65536))", "writes more than 131072 bytes"),
        (
            "while True: os.write(1, b'register|filter|smtp-in|ehlo\\n' * 1000)",
            "writes more than 131072 bytes",
        ),
        (
            "while True: os.write(1, b'r'), time.sleep(0.01)",
            "not ready within 0.5 s",
        ),
        (
            "os.write(1, b'register|filter|smtp-in|nonsense\\nregister|ready\\n')",
            'invalid output "register|filter|smtp-in|nonsense": ',
        ),
        (
            "os.write(1, b'register|ready\\nfilter-result|0|0|proceed\\n')",
            'invalid output "filter-result|0|0|proceed": ',
        ),
        (
            "os.write(1, b'register|ready\\n'), sys.stdin.read(), os.write(1, b'x\\n')",
            'invalid output "x": ',
        ),
    ],
)
def test_invalid_output(
    text: str,
    reason: str,
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
) -> None:
    path = program(f"import smtpd_filters, os, sys, time\n{text}")
    flags = ("--timeout", "500ms") if "not ready" in reason else ()
    assert about(checked, path, *flags).startswith(f"1 {reason}")


def test_a_process_that_leaves_the_process_group_is_reported(
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
    tmp_path: Path,
) -> None:
    pid = tmp_path / "pid"
    text = f"""
    import smtpd_filters, os, subprocess
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    open({str(pid)!r}, "w").write(str(left.pid))
    os.write(1, b"register|ready\\n")
    os._exit(0)
    """
    try:
        configuration = used(f'filter f proc-exec "{program(text)}"')
        status, lines = checked(configuration, ending=0.1, closing=0.1)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert status == 0
    assert "warning: a process that it started in a session of its own still runs" in lines[1]


def test_what_a_filter_logs_at_the_start(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    path = program(DYNDNS.replace("dyndns", "senderscore"))
    status, [first, second, *_] = checked(used(f'filter f proc-exec "{path}"'))
    assert status == 0
    assert first == f'1: filter "f": ok (as {ME})'
    assert second.startswith('1: filter "f": log: senderscore nothing to do')


def test_a_filter_that_outlives_its_input_is_ended(
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
) -> None:
    text = "import smtpd_filters, time\nprint('register|ready', flush=True)\ntime.sleep(60)\n"
    assert about(checked, program(text), ending=0.1) == f"0 ok (as {ME})"


def test_it_gets_what_smtpd_gives_it(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    text = """
    import os, stat, sys, smtpd_filters
    line = ""
    while line != "config|ready":
        line = sys.stdin.readline().strip()
    one, two = os.fstat(0), os.fstat(1)
    print(sys.argv[1:], os.getcwd(), sorted(os.environ), file=sys.stderr)
    print(stat.S_ISSOCK(one.st_mode), os.path.samestat(one, two), file=sys.stderr)
    print(os.getsid(0) == os.getpid(), os.getgroups() == [os.getgid()], file=sys.stderr)
    print("register|ready", flush=True)
    """
    command = f"{program(text)} \\\"a b\\\" 'c' $HOME; exit"
    status, lines = checked(used(f'filter f proc-exec "{command}"'))
    assert status == 0
    logged = [line.partition("log: ")[2] for line in lines if "log: " in line]
    own = "'SMTPD_FILTERS_CHECK'"
    seen = {
        f"['a b', 'c'] / ['LC_CTYPE', 'PATH', 'PWD', {own}]",
        f"['a b', 'c'] / ['PATH', 'PWD', {own}]",
    }
    assert logged[0] in seen | {each.replace(", 'PWD'", "") for each in seen}
    assert logged[1] == "True True"
    assert logged[2].split()[0] == "True"
    if ROOT:
        assert logged[2] == "True True"


@pytest.mark.parametrize(
    "before", ["{python} {path}", "/usr/bin/env {path}", "/usr/bin/env -i {path}"]
)
def test_an_interpreter_in_front_of_a_filter(
    before: str,
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
) -> None:
    command = before.format(python=sys.executable, path=program(DYNDNS))
    assert about(checked, f"{command} --actoin junk").startswith("1 filter-dyndns: unknown flag")


def test_a_command_without_a_path_is_in_libexec(
    tmp_path: Path,
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
) -> None:
    libexec = ("/no/such", str(tmp_path), "/usr")
    program(DYNDNS, "filter-mine")
    assert about(checked, "filter-mine", libexec=libexec) == f"0 ok (as {ME})"
    missing = f"{tmp_path}/filter-yours: No such file or directory"
    assert about(checked, "filter-yours -v", libexec=libexec) == f"1 {missing} (as {ME})"
    near = f'{tmp_path}/filter-mien: No such file or directory, did you mean "filter-mine"?'
    assert about(checked, "filter-mien", libexec=libexec) == f"1 {near} (as {ME})"
    own = Path(sys.executable).with_name("filter-supervise")
    missing = f"{tmp_path}/filter-supervise: No such file or directory; its whole path is {own}"
    supervised = "filter-supervise filter-mine"
    assert about(checked, supervised, libexec=libexec) == f"1 {missing} (as {ME})"
    nowhere = ("/no/such", "/nor/this")
    assert about(checked, "filter-mine", libexec=nowhere).startswith(
        "1 /no/such/filter-mine: No such file"
    )


def test_a_proc_is_checked(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    text = used(f'proc p "{program(DYNDNS)}"\nfilter f proc p\n')
    assert checked(text)[1][0] == f'1: proc "p": ok (as {ME})'


# -- services --------------------------------------------------------------------------------

DNSBL = DYNDNS.replace("dyndns", "dnsbl")
GREYLIST = DYNDNS.replace("dyndns", "greylist")
LISTED = {"2.0.0.127.good.example": {"A": ["127.0.0.2"]}}


def answers(lines: list[str]) -> list[str]:
    """The lines about services, without their times."""
    return [re.sub(r"[0-9]+ ms", "T ms", line) for line in lines if " ms" in line]


def test_services_are_asked(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    with DNSServer(LISTED) as server:
        flags = f"--nameserver {server.address}:{server.port} --client good.example"
        text = used(f'filter f proc-exec "{program(DNSBL)} {flags}"')
        status, lines = checked(text, "--online")
        assert status == 0
        where = '1: filter "f": '
        assert answers(lines) == [
            f"{where}name server {server.address} port {server.port}: ok, T ms",
            f"{where}list good.example of addresses: ok, T ms",
        ]
        assert answers(checked(text)[1]) == []


def test_services_that_fail(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    path = program(DNSBL)
    with DNSServer({}) as server:
        address = f"{server.address}:{server.port}"
    # Nothing is listening there any more.
    text = used(f'filter f proc-exec "{path} --nameserver {address} --client good.example"')
    status, lines = checked(text, "--online")
    assert status == 1
    faults = [line for line in lines if " ms)" in line]
    assert len(faults) == 2
    assert all("refused" in line for line in faults), faults
    assert lines[-1] == " 1 filter, 2 errors"


def test_rspamd_is_pinged(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    path = program(DYNDNS.replace("dyndns", "rspamd"))
    with RspamdStub() as stub:
        text = used(f'filter f proc-exec "{path} -url {stub.url}"')
        status, lines = checked(text, "--online")
        assert (status, answers(lines)) == (0, [f'1: filter "f": Rspamd {stub.url}: ok, T ms'])


def test_hung_services_are_waited_for_side_by_side(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    """Each filter's name server waits until those of the others have been asked."""
    count = 4
    path = program(DYNDNS.replace("dyndns", "fcrdns"))
    everyone = threading.Barrier(count + 1)

    def answer(server: socket.socket) -> None:
        query, client = server.recvfrom(4096)
        everyone.wait(PATIENCE)
        server.sendto(query[:2] + b"\x81\x83" + query[4:12] + query[12:], client)

    servers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    threads = []
    lines = ""
    for number, server in enumerate(servers):
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        threads.append(threading.Thread(target=answer, args=(server,)))
        threads[-1].start()
        where = f"127.0.0.1:{server.getsockname()[1]}"
        lines += f'filter f{number} proc-exec "{path} --verify --nameserver {where}"\n'
    names = ", ".join(f"f{number}" for number in range(count))
    lines += f"filter all chain {{ {names} }}\nlisten on lo filter all\n"
    together = threading.Thread(target=everyone.wait, args=(PATIENCE,))
    together.start()
    status, report = checked(lines, "--online")
    for each in (*threads, together):
        each.join()
    for server in servers:
        server.close()
    assert not everyone.broken
    assert len([line for line in report if "name server 127.0.0.1" in line]) == count, report
    assert status in {0, 1}


@pytest.mark.parametrize(
    ("does", "fault"),
    [
        ("return None", 'own: TypeError: a probe returns "" or why '),
        ("raise SystemExit(3)", "own: SystemExit: 3"),
        ("import os; os.write(2, b'so\\n'); os._exit(3)",
         "services: the filter that asks them ended with status 3: so (T ms)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
         "services: the filter that asks them ended with status -9 (T ms)"),
    ],
)  # fmt: skip
def test_a_filter_that_fails_while_it_asks_is_not_fine(
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
    does: str,
    fault: str,
) -> None:
    path = program(f"""
        from smtpd_filters import PROCEED, Filter, Probe, Proceed, run

        class Own(Filter):
            "Asks a service by itself."

            def helo(self, session, identity) -> Proceed:
                return PROCEED

            def probes(self):
                return [Probe("own", self._ask)]

            async def _ask(self):
                {does}

        raise SystemExit(run(Own))
    """)
    status, lines = checked(used(f'filter f proc-exec "{path}"'), "--online")
    assert status == 1
    [line] = answers(lines)
    assert line.startswith(f'1: filter "f": {fault}')


def test_the_journals_socket_is_tried(
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    text = used(f'filter f proc-exec "{program(DYNDNS)} --journal {path}"')
    status, lines = checked(text, "--online")
    assert status == 1
    where = f'1: filter "f": journal {path}: '
    reason = "No such file or directory; does smtpd-filters journal run?"
    assert answers(lines) == [f"{where}{reason} (T ms)"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        path.chmod(0o666)
        assert answers(checked(text, "--online")[1]) == [f"{where}ok, T ms"]
    _, lines = checked(text, "--online")
    assert answers(lines) == [f"{where}Connection refused; does smtpd-filters journal run? (T ms)"]


def test_a_report_in_json(program: Callable[..., str], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "smtpd.conf"
    store = tmp_path / "s.sqlite"
    command = f"{program(GREYLIST)} --key network --store sqlite:{store}"
    path.write_text(used(f'filter f proc-exec "{command}"\nfilter g proc-exec "/no/such"'))
    words = ["--config", str(path), *AS_ME, "--json", "--online"]
    assert check_under(words) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert {each["severity"] for each in report["problems"]} == {"warning"}
    one, two = report["programs"]
    assert (one["name"], one["result"], one["phases"]) == ("f", "ok", ["data", "rcpt-to"])
    [service] = one["services"]
    assert (service["subject"], service["fault"]) == (f"store sqlite:{store}", "")
    assert (two["result"], two["text"]) == ("error", "/no/such: No such file or directory")
    assert [each.name for each in tmp_path.glob("s.sqlite*")] == []


def test_services_of_a_chain(tmp_path: Path, capsys: Capture) -> None:
    path, store = tmp_path / "chains.toml", tmp_path / "s.sqlite"
    path.write_text(
        f'[filter.greylist]\nkey = "network"\nstore = "sqlite:{store}"\n'
        '[chain.x]\nfilters = ["greylist"]\n'
    )
    path.chmod(0o644)
    words = ["--chains", str(path), *AS_ME]
    assert check_under([*words, "--online"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert answers(lines) == [f"{path}: store sqlite:{store}: ok, T ms"]
    assert check_under([*words, "--online", "--json"]) == 0
    [about] = json.loads(capsys.readouterr().out)["chains"]
    assert about["services"][0]["subject"] == f"store sqlite:{store}"
    assert check_under(words) == 0
    assert answers(capsys.readouterr().out.splitlines()) == []
    assert [each.name for each in tmp_path.glob("s.sqlite*")] == []


def test_colours_on_a_terminal(
    program: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "smtpd.conf"
    path.write_text(used(f'filter f proc-exec "{program(DYNDNS)}"'))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    check_under(["--config", str(path), *AS_ME])
    assert "\033[32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    check_under(["--config", str(path), *AS_ME])
    assert "\033" not in capsys.readouterr().out


# -- programs of others, and what smtpd does not find ----------------------------------------


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("/bin/sh -c true", "0 not checked: not a filter of this package; /bin/sh can be run"),
        ("/no/such -x", "1 /no/such: No such file or directory"),
        ("/etc/passwd", "1 /etc/passwd: not a file that can be executed"),
        ("/etc", "1 /etc: not a file that can be executed"),
        ("/$X/filter-x", "0 not checked: only the shell can expand the program's name"),
        ("/'bin/sh", "0 not checked: only the shell can expand the program's name"),
        ("/'bin'/sh", "0 not checked: not a filter of this package; /bin/sh can be run"),
    ],
)
def test_programs_of_others(
    command: str, line: str, checked: Callable[..., tuple[int, list[str]]]
) -> None:
    assert about(checked, command) == f"{line} (as {ME})"


@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize(
    "broken", ["", "odd", "[smtpd_filters.filters]\nodd = !!\n[console_scripts]\nodd = !!\n"]
)
def test_the_script_of_another_distribution(
    *, filters: bool, broken: str, tmp_path: Path, checked: Callable[..., tuple[int, list[str]]]
) -> None:
    """A virtual environment with a script as pip writes it, which only imports its own module."""
    site = tmp_path / f"lib/python3.{sys.version_info.minor}/site-packages"
    (site / "policies-1.0.dist-info").mkdir(parents=True)
    entries = "[console_scripts]\nfilter-own = policies.own:main\n"
    if filters:
        entries += "[smtpd_filters.filters]\nown = policies.own:Own\n"
    (site / "policies-1.0.dist-info/entry_points.txt").write_text(entries)
    (site / "broken-1.0.dist-info").mkdir()
    (site / "broken-1.0.dist-info/entry_points.txt").write_text(broken)
    (site / "this.pth").write_text("\n".join(path for path in sys.path if path))
    (site / "policies").mkdir()
    (site / "policies/own.py").write_text("from smtpd_filters.filters.dyndns import main\n")
    (tmp_path / "bin").mkdir()
    interpreter = tmp_path / "bin/python3"
    interpreter.symlink_to(sys.executable)
    base = Path(sys._base_executable).parent  # type: ignore[attr-defined]
    (tmp_path / "pyvenv.cfg").write_text(f"home = {base}\n")
    script = tmp_path / "bin/filter-own"
    script.write_text(
        f"#!{interpreter}\nimport sys\nfrom policies.own import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    untried = f"not checked: not a filter of this package; {script} can be run"
    assert about(checked, str(script)) == f"0 {'ok' if filters else untried} (as {ME})"
    if filters:
        wrong = about(checked, f"{script} --no-such")
        assert wrong.startswith("1 filter-dyndns: unknown flag --no-such ")


def test_a_command_that_is_too_long(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    # Linux allows a word of 128 KiB (MAX_ARG_STRLEN).
    path, long = program(DYNDNS), "x" * (1 << 17)
    declared = [
        f'filter {name} proc-exec "{path}{args}"' for name, args in (("f", f" {long}"), ("g", ""))
    ]
    declared.append(f'filter h proc-exec "/{long}"')
    _, lines = checked("\n".join([*declared, "listen on socket filter { f, g, h }", ""]))
    assert lines[0] == f'1: filter "f": the command can\'t be run: Argument list too long (as {ME})'
    assert lines[1] == f'2: filter "g": ok (as {ME})'
    assert lines[2].startswith('3: filter "h": the command can\'t be run: ')


def test_a_filter_that_is_not_executable(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    path = program(DYNDNS, mode=0o644)
    assert about(checked, path) == f"1 {path}: not a file that can be executed (as {ME})"


def test_an_interpreter_that_cannot_be_run(
    tmp_path: Path, checked: Callable[..., tuple[int, list[str]]]
) -> None:
    path, interpreter = tmp_path / "filter-own", tmp_path / "python3"
    path.write_text(f"#!{interpreter}\n{DYNDNS}")
    path.chmod(0o755)
    missing = f"{path}: its interpreter {interpreter}: No such file or directory"
    assert about(checked, str(path)) == f"1 {missing} (as {ME})"
    interpreter.touch(mode=0o644)
    closed = f"1 {path}: this user can't run its interpreter, {interpreter}; a directory"
    assert about(checked, str(path)).startswith(closed)
    # In a virtual environment it is a link, and what is closed is the directory of the other one.
    other = tmp_path / "other" / "python3.13"
    other.parent.mkdir()
    interpreter.rename(other)
    interpreter.symlink_to(other)
    closed = f"1 {path}: this user can't run its interpreter, {interpreter} ({other}); a directory"
    assert about(checked, str(path)).startswith(closed)


def test_a_fifo_among_the_words_of_a_command(
    tmp_path: Path, checked: Callable[..., tuple[int, list[str]]]
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # to open it would wait
    expected = f"0 not checked: not a filter of this package; /usr/bin/env can be run (as {ME})"
    assert about(checked, f"/usr/bin/env filter-own {fifo}") == expected


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("user nonesuch", "no user nonesuch: smtpd will not start"),
        (f"user {ME} group nonesuch", "no group nonesuch: smtpd will not start"),
    ],
)
def test_users_and_groups_that_do_not_exist(
    options: str, line: str, checked: Callable[..., tuple[int, list[str]]]
) -> None:
    status, lines = checked(used(f'filter f proc-exec "/bin/sh" {options}'))
    assert (status, lines[0]) == (1, f'1: filter "f": {line}')


@needs_root
def test_a_program_in_another_root(
    tmp_path: Path, program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    command = f'filter f proc-exec "{program(DYNDNS)}" chroot'
    assert checked(used(f'{command} "/"'))[1][0] == f'1: filter "f": ok (as {ME})'
    status, [line, *_] = checked(used(f'{command} "{tmp_path}"'))
    assert status == 1
    assert f"chroot {tmp_path}: no /bin/sh in it, which runs the command" in line


@needs_root
def test_a_program_of_another_user(checked: Callable[..., tuple[int, list[str]]]) -> None:
    text = used(
        "filter f proc-exec /bin/sh user nobody group daemon".replace("/bin/sh", '"/bin/sh"')
    )
    assert checked(text)[1][0].endswith("/bin/sh can be run (as nobody)")


def test_another_user_than_root_tries_as_itself(
    program: Callable[..., str],
    checked: Callable[..., tuple[int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.cli.test_check.AS_ME", ())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 12345)
    text = used(
        f'filter f proc-exec "{program(DYNDNS)}" user {ME}\nfilter g proc-exec x chroot "/"'
    )
    status, lines = checked(text)
    assert status == 0
    assert lines[0] == f'1: filter "f": ok (as {user_name()})'
    assert lines[1] == '2: filter "g": not checked: only root can try it in its chroot'
    assert lines[3] == " only root can try filters as smtpd's user, whose rights may differ"


# -- the file --------------------------------------------------------------------------------


def test_what_is_wrong_with_the_file(checked: Callable[..., tuple[int, list[str]]]) -> None:
    status, lines = checked("filter f proc-exec\nlisten on lo filter g\n")
    assert status == 1
    assert lines[0].startswith("1: syntax error: the statement ends after ")
    assert lines[1] == '2: no filter "g" is declared above'
    assert lines[2].endswith(" checks the rest of the file")
    assert lines[-1] == " no filters, 2 errors"


def test_programs_of_tables(
    tmp_path: Path, program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    program("", "table-fine")
    closed = program("", "table-closed", 0o644)
    Path(program("", "table-stray")).write_text("#!/no/such/sh\n")
    stray = f"{tmp_path}/table-stray: its interpreter /no/such/sh"
    taken = 'smtpd takes what follows "proc:" for a name: write NAME:/CONFIGURATION'
    lines = [
        ("fine:/x", ""),
        ("fine", ""),
        ("proc:/x", f"{tmp_path}/table-/x: No such file or directory; {taken}"),
        ('"proc:/x:/y"', f"{tmp_path}/table-/x: No such file or directory; {taken}"),
        ('"proc"', f"{tmp_path}/table-: No such file or directory"),
        ("closed:/x", f"{closed}: not a file that can be executed"),
        ("stray:/x", f"{stray}: No such file or directory"),
        ("none:/x", f"{tmp_path}/table-none: No such file or directory"),
        # smtpd's own, and what `smtpd -n` reports.
        *(("file:/x", ""), ("db:/x", ""), ("getpwnam", ""), ("/x", ""), ('{ "a:/b" }', "")),
        *(("none:x", ""), ("none:/x none:/y", ""), ("", "")),
    ]
    text = "".join(f"table t{at} {source}\n" for at, (source, _) in enumerate(lines))
    status, found = checked(f"{text}table\n", libexec=(str(tmp_path),))
    assert status == 1
    assert [line.removesuffix(f" (as {ME})") for line in found if "table" in line] == [
        f'{at + 1}: table "t{at}": {error}' for at, (_, error) in enumerate(lines) if error
    ]
    assert found[-1] == " no filters, 6 errors"
    long = f"table-{'n' * 300}"
    status, found = checked(f"table t {long[6:]}:/x\n", libexec=(str(tmp_path),))
    assert status == 1
    assert found[0].startswith(f'1: table "t": {tmp_path}/{long}: ')
    # Of an unknown system, and of one with several such directories.
    assert checked("table t none:/x\n", libexec=("/no/such",))[0] == 0
    assert checked("table t fine:/x\n", libexec=("/usr", str(tmp_path)))[0] == 0


def test_a_table_without_a_user(
    checked: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("tests.cli.test_check.AS_ME", ())
    monkeypatch.setattr("smtpd_filters.cli.accounts.USERS", ("none", "nonesuch"))
    _, lines = checked("table t fine:/x\n", libexec=("/usr",))
    assert lines[0] == '1: table "t": no user none or nonesuch: smtpd will not start'


def test_another_delimiter_of_tags_than_smtpds(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    rcpt = program(
        "from smtpd_filters.filters.rcpt import main\nraise SystemExit(main())", "filter-rcpt"
    )
    chain = program(
        "from smtpd_filters.cli.chain import main\nraise SystemExit(main())", "filter-chain"
    )
    file = tmp_path / "chains.toml"
    file.write_text('sub-addr-delim = "="\n[chain.x]\nfilters = ["dyndns"]\n')
    text = 'smtp sub-addr-delim "-"\n'
    for name, command in {
        "a": f"{rcpt} --domains x.example",
        "b": f"{rcpt} --domains x.example --sub-addr-delim=-",
        "c": f"{rcpt} --domains x.example --sub-addr-delim %",
        "d": f"{chain} --config {file}",
        "e": "/bin/sh",
    }.items():
        text += f'filter {name} proc-exec "{command}"\n'
    status, lines = checked(f"{text}listen on lo filter {{ a, b, c, d, e }}\n")
    assert status == 0, lines
    takes = (
        'for the beginning of a tag, but smtpd takes "-" (smtp sub-addr-delim); give it the same'
    )
    assert [line for line in lines if " takes " in line] == [
        f'2: warning: filter "a": takes "+" {takes} --sub-addr-delim',
        f'4: warning: filter "c": takes "%" {takes} --sub-addr-delim',
        f'5: warning: filter "d": takes "=" {takes} sub-addr-delim of its chain',
    ]


def test_a_warning_is_no_error(checked: Callable[..., tuple[int, list[str]]]) -> None:
    status, lines = checked('filter f proc-exec "/bin/sh"\n')
    assert status == 0
    assert lines[1] == '1: warning: filter "f" is not used: no listener or action names it'


def test_errors_are_before_warnings(
    program: Callable[..., str], checked: Callable[..., tuple[int, list[str]]]
) -> None:
    wrong = program(DYNDNS, mode=0o644)
    text = f'filter f proc-exec "/bin/sh"\nfilter g proc-exec "{wrong}"\nlisten on lo filter h\n'
    _, lines = checked(text)
    order = [line.partition(":")[2].partition(" ")[2] for line in lines if ": " in line]
    assert order[0].startswith("no filter")
    assert order[2].startswith('filter "g": ')
    assert order[3].startswith("warning: ")


def test_macros_of_the_command_line(checked: Callable[..., tuple[int, list[str]]]) -> None:
    text = used('c = "/no/such"\nfilter f proc-exec $c')
    assert checked(text)[0] == 1
    status, lines = checked(text, "-D", 'c="/bin/sh"', "--macro", "d=e")
    assert status == 0
    assert "/bin/sh can be run" in lines[0]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--config", "/no/such.conf"], "/no/such.conf: No such file or directory"),
        (["--chain", "x"], "--chain requires --chains"),
        (["--chains", "x", "--config", "y"], "--chains and --config exclude each other"),
        (["x", "-f", "y"], '"x": check one file at a time'),
        (["x.toml", "--chains", "y"], '"x.toml": check one file at a time'),
        (["smtpd.conf", "--chain", "x"], "--chain requires --chains"),
        (["/no/such.conf"], "/no/such.conf: No such file or directory"),
        (["-f", "/dev/null", "-D", "x"], '--macro: expected NAME=VALUE, not "x"'),
        (["--timeout", "0"], "--timeout: must be at least 1ms"),
        pytest.param(["--user", "nonesuch"], "--user: no user nonesuch", marks=needs_root),
    ],
)
def test_wrong_flags(flags: list[str], line: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", *flags])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"smtpd-filters check: {line}")
    assert err.count("\n") == 1


def test_only_root_may_become_another(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SystemExit):
        main(["check", "--user", "nobody"])
    assert "--user: only root can check as another user" in capsys.readouterr().err


# -- files of filter-chain -------------------------------------------------------------------

GOOD = '[chain.x]\nfilters = ["dyndns"]\n[chain.y]\nfilters = ["dyndns"]\n'
BAD = '[filter.dyndns]\nacton = "junk"\n[filter.fcrdns]\nphase = "x"\n' + GOOD


@pytest.fixture
def chains(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "smtpd-filters.toml"
        path.write_text(text)
        return str(path)

    return write


def test_a_chain_file(chains: Callable[[str], str], capsys: Capture) -> None:
    path = chains(GOOD)
    assert main(["check", "--chains", path, *AS_ME]) == 0
    assert capsys.readouterr() == (f"configuration OK: {path} (dyndns), as {ME}\n", "")
    assert main(["check", "--chains", path, "--chain", "z", *AS_ME]) == 1
    assert capsys.readouterr().out == f"{path}: no [chain.z] (there is x, y)\n"


def test_all_that_is_wrong_with_a_chain_file(chains: Callable[[str], str], capsys: Capture) -> None:
    path = chains(BAD)
    assert main(["check", "--chains", path, *AS_ME]) == 1
    one, two = capsys.readouterr().out.splitlines()
    assert one == f'{path}:2: [filter.dyndns]: unknown key "acton", did you mean "action"?'
    assert two.startswith(f'{path}:4: [filter.fcrdns]: phase: invalid choice "x"')


def test_a_chain_file_with_a_relative_path(
    chains: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = chains(GOOD)
    monkeypatch.chdir(Path(path).parent)
    assert main(["check", "--chains", Path(path).name, *AS_ME]) == 0
    assert path in capsys.readouterr().out


def test_a_chain_file_that_takes_too_long(
    tmp_path: Path, chains: Callable[[str], str], capsys: Capture
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    path = chains(f'[filter.slow]\nuse = "{slow}"\n[chain.x]\nfilters = ["slow"]\n')
    assert main(["check", "--chains", path, "--timeout", "1s", *AS_ME]) == 1
    assert capsys.readouterr().out == f"{path}: not checked within 1 s\n"


@pytest.mark.parametrize(
    ("of_x", "of_y"),
    [("--chain x", "--chain=y"), ("--chain x", ""), ("--chain x", "--chain z")],
)
def test_services_of_a_chain_are_asked_once(
    tmp_path: Path, chains: Callable[[str], str], capsys: Capture, of_x: str, of_y: str
) -> None:
    """The second chain may not be run, or its program may fail."""
    store = tmp_path / "s.sqlite"
    path = chains(
        f'[filter.greylist]\nkey = "network"\nstore = "sqlite:{store}"\n'
        '[chain.x]\nfilters = ["greylist"]\n[chain.y]\nfilters = ["greylist"]\n'
    )
    program = tmp_path / "filter-chain"
    code = "from smtpd_filters.cli.chain import main; main()"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    configuration = tmp_path / "smtpd.conf"
    commands = [f"{program} -f {path} {flags}" for flags in (of_x, of_y) if flags]
    text = "".join(f'filter f{at} proc-exec "{each}"\n' for at, each in enumerate(commands))
    configuration.write_text(f"{text}listen on lo\n")
    run = partial(check.run, places=(str(configuration),), chain_places=(path,))
    verb = Verb("check", run, options=check.Options, description="Check.")
    verb.run([*AS_ME, "--online"])
    places = [
        line.partition(": store")[0] for line in answers(capsys.readouterr().out.splitlines())
    ]
    fine = [flags for flags in (of_x, of_y) if flags and not flags.endswith("z")]
    assert places == [f'{configuration}:{at + 1}: filter "f{at}"' for at in range(len(fine))]


def test_failing_services_of_a_chain_leave_no_other_line(
    tmp_path: Path, chains: Callable[[str], str], capsys: Capture
) -> None:
    table = tmp_path / "redis.conf"
    table.write_text("url redis://127.0.0.1:1\nset traps\n")
    path = chains(f'[filter.rcpt]\ntraps = "redis:{table}"\n[chain.x]\nfilters = ["rcpt"]\n')
    assert check_under(["--chains", path, *AS_ME, "--online"]) == 1
    fine, service = capsys.readouterr().out.splitlines()
    assert fine.startswith("configuration OK: ")
    assert service.startswith(f"{path}: table redis:{table}: ")


def test_a_chains_filters_are_closed_after_their_probes(
    tmp_path: Path, chains: Callable[[str], str], capsys: Capture
) -> None:
    closed = tmp_path / "closed"
    file = tmp_path / "own.py"
    file.write_text(f"""
from smtpd_filters import PROCEED, Filter, Probe, Proceed, UnavailableError

class Own(Filter):
    "Asks a service by itself."

    def helo(self, session, identity) -> Proceed:
        return PROCEED

    def probes(self):
        return [Probe("own http://192.0.2.1", self._ask)]

    async def _ask(self):
        raise UnavailableError("status 503")

    async def close(self):
        open({str(closed)!r}, "w").close()
""")
    path = chains(f'[filter.own]\nuse = "{file}:Own"\n[chain.x]\nfilters = ["own"]\n')
    assert check_under(["--chains", path, *AS_ME, "--online"]) == 1
    fine, service = capsys.readouterr().out.splitlines()
    assert fine.startswith("configuration OK: ")
    assert service.startswith(f"{path}: own http://192.0.2.1: status 503 (")
    assert closed.exists()


def test_an_error_of_a_chain_is_reported_once(
    tmp_path: Path, chains: Callable[[str], str], capsys: Capture
) -> None:
    configuration = tmp_path / "smtpd.conf"
    path = chains('[filter.dyndns]\nacton = "junk"\n' + GOOD)
    program = tmp_path / "filter-chain"
    code = "from smtpd_filters.cli.chain import main; main()"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    configuration.write_text(
        f'filter "x" proc-exec "{program} --config {path} --chain x"\nlisten on lo\n'
    )
    run = partial(check.run, places=(str(configuration),), chain_places=(path,))
    verb = Verb("check", run, options=check.Options, description="Check.")
    fault = "[filter.dyndns]: unknown key"
    assert verb.run(AS_ME) == 1
    out = capsys.readouterr().out
    assert out.count(fault) == 1
    assert f"{path}: no further errors\n" in out
    chains(BAD)
    assert verb.run([*AS_ME, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert fault in found["programs"][0]["text"]
    [lines] = [each["lines"] for each in found["chains"]]
    assert len(lines) == 1
    assert "[filter.fcrdns]" in lines[0]


def test_both_files_where_they_usually_are(
    tmp_path: Path,
    chains: Callable[[str], str],
    capsys: Capture,
) -> None:
    configuration = tmp_path / "smtpd.conf"
    nowhere = str(tmp_path / "nowhere")
    run = partial(
        check.run,
        places=(nowhere, str(configuration)),
        chain_places=(nowhere, str(tmp_path / "smtpd-filters.toml")),
    )
    verb = Verb("check", run, options=check.Options, description="Check.")
    with pytest.raises(ConfigError) as raised:
        verb.run(AS_ME)
    said = f"no such file: {nowhere}, {configuration}; name one with --config"
    assert str(raised.value) == said
    configuration.write_text("listen on lo\n")
    assert verb.run(AS_ME) == 0
    path = chains(BAD)
    assert verb.run(AS_ME) == 1
    out = capsys.readouterr().out
    assert f"{configuration}: no filters, no errors\n" in out
    assert f"{path}:2: [filter.dyndns]: unknown key" in out
    # The chain file alone, and the other alone.
    configuration.unlink()
    chains(GOOD)
    assert verb.run(AS_ME) == 0
    configuration.write_text("listen on lo\n")
    chains(BAD)
    assert verb.run(["-f", str(configuration), *AS_ME]) == 0
    # Files without a flag.
    assert verb.run([str(configuration), *AS_ME]) == 0
    assert verb.run([str(path), *AS_ME]) == 1
    chains(GOOD)
    assert verb.run([str(path), "--chain", "x", *AS_ME]) == 0
