from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from smtpd_filters.chain import Chain
from smtpd_filters.cli import VERBS, chain_use, listing, main, overview, player
from smtpd_filters.filter import Filter
from smtpd_filters.main import run
from smtpd_filters.protocol.decisions import PROCEED, Proceed
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.recording import Recording
from smtpd_filters.runtime.log import Log
from smtpd_filters.session import Session
from smtpd_filters.settings import TEXT, Settings, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Capture = pytest.CaptureFixture[str]
    Install = Callable[..., None]

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "fixtures" / "protocol" / "7.8.0p1" / "ehlo-message.session"
TOOL = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]

#: The flags that `auth` requires.
AUTH = ["--client", "192.0.2.1", "--helo", "a.example", "--mail-from", ""]

#: A filter of an operator's own.
OWN = """
from smtpd_filters import PROCEED, Filter, Proceed, Session

class Own(Filter):
    def connect(self, session: Session) -> Proceed:
        return PROCEED
"""


def fails(capsys: Capture, *words: str) -> str:
    """The one line that a call fails with, status 2."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


# -- in general --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: smtpd-filters {verb} [option ...]")
    assert main(["help", verb]) == 0
    assert capsys.readouterr().out == shown
    assert max(map(len, shown.splitlines())) < 80


@pytest.mark.parametrize("path", ["./filter-own.py", "filter-own.py", "filter-own.py:Own"])
def test_a_file_is_named_by_its_path_from_here(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "filter-own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["help", path])
    assert "usage: filter-own" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", path, "--help"])
    assert "usage: filter-own" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["own.py", "{}/own.py", "{}/own.py:Own"])
def test_a_file_that_smtpd_cannot_execute_is_reported_on_a_terminal(
    path: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    path = path.format(tmp_path)
    name = path.removesuffix(":Own")
    hint = (
        f"smtpd-filters run: {name}: not executable; to name it in proc-exec, run chmod 755 {name}"
    )
    for mode, lines in ((0o644, 2), (0o755, 1)):
        file.chmod(mode)
        ours, theirs = os.openpty()
        done = subprocess.run(
            [*TOOL, "run", path],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            check=False,
        )
        os.close(ours)
        os.close(theirs)
        said = done.stderr.splitlines()
        assert (done.returncode, len(said)) == (0, lines)
        assert ": flags and files are right, as user " in said[0]
        assert all(line == hint for line in said[1:])


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"]])
def test_the_verbs_are_shown(words: list[str], capsys: Capture) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown == overview.overview()
    for verb in VERBS:
        assert f"\n  {verb} " in shown
    assert (
        "\n  list List the filters, with the phases and reports that they register at smtpd\n"
        in (re.sub("(?<=[a-z]) +", " ", shown))
    )


@pytest.mark.parametrize("name", ["fcrdns", "filter-fcrdns", "chain", "supervise"])
def test_a_filter_has_help(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", name])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: filter-{name.removeprefix('filter-')} ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "VERB is required: auth, check, dkim, dmarc, "),
        (["xyzzy"], 'unknown verb "xyzzy" (there is auth, check, dkim, dmarc, '),
        (["reply"], 'unknown verb "reply", did you mean "replay"?'),
        (["--verison"], 'unknown flag --verison, did you mean "--version"?'),
        (["--verison", "list"], 'unknown flag --verison, did you mean "--version"?'),
        (["help", "chek"], 'help: no verb and no filter "chek", did you mean "check"?'),
        (["help", "fcrdn"], 'help: no verb and no filter "fcrdn", did you mean "fcrdns"?'),
        (["--xyzzy"], "unknown flag --xyzzy (there is --help, --version)"),
        (["help", "filter-fcrnds"], 'no filter "filter-fcrnds", did you mean "fcrdns"?'),
        (["help", "xyzzy"], 'help: no verb and no filter "xyzzy" (verbs: auth, check, '),
        (["help", "xyzzy"], "; filters: chain, supervise, auth, clamav, "),
        (["help", "xyzzy"], ", trace); name a file of your own by its path"),
        (["help", "/no/such.py"], "help: /no/such.py: No such file"),
        (["run"], "run: NAME is required"),
        (["run", "fcrdn"], 'run: no filter "fcrdn", did you mean "fcrdns"?'),
        (["run", "filter-fcrnds"], 'run: no filter "fcrnds", did you mean "fcrdns"?'),
        (["run", "xyzzy"], 'run: no filter "xyzzy" (there is chain, supervise, auth, clamav, '),
        (["run", "chian"], 'run: no filter "chian", did you mean "chain"?'),
        (["run", "supervize"], 'run: no filter "supervize", did you mean "supervise"?'),
        (["run", "supervise"], "filter-supervise: COMMAND is required"),
        (["run", "--verbose"], "run: unknown flag --verbose"),
        (["run", "dyndns", "--actoin"], "filter-dyndns: unknown flag --actoin"),
        (["list", "--jsn"], 'list: unknown flag --jsn, did you mean "--json"?'),
        (["check", "a", "b"], 'unexpected argument "b" (check one file at a time)'),
        (["list", "--xyzzy"], "list: unknown flag --xyzzy (there is --json, --help, --version)"),
        (["list", "x"], 'list: unexpected argument "x"'),
        (["list", "--", "x"], "list: takes no command"),
        (["record"], "DIR"),
        (["replay"], "FILE"),
        (["replay", "/etc/passwd", "--", "true"], "/etc/passwd:1: not a recording"),
        (["replay", sys.executable, "--", "true"], f"{sys.executable}:1: not a recording"),
        (["replay", str(PLAIN)], "no command"),
        (["replay", str(PLAIN), "--"], "no command"),
        (["replay", str(PLAIN), "--timeout", "soon", "--", "true"], "--timeout"),
        (["replay", str(PLAIN), "--protocol", "0.4", "--", "true"], "--protocol"),
        (["replay", str(PLAIN), "--", "no-such-filter"], "no-such-filter: no such program"),
        (["replay", "/no/such/file", "--", "true"], "/no/such/file: No such file"),
        (["replay", str(PLAIN.parent / "no"), "--", "true"], "No such file"),
        (["replay", str(ROOT / "docs"), "--", "true"], "no recording"),
        (["replay", str(ROOT / "README.md"), "--", "true"], "README.md:"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line(words: list[str], said: str, capsys: Capture) -> None:
    line = fails(capsys, *words)
    assert line.startswith(("smtpd-filters", "filter-dyndns", "filter-supervise"))
    assert said in line


def test_a_recording_without_sessions_is_invalid(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "empty.session"
    path.write_bytes(b"< config|ready\n")
    assert "no session in it" in fails(capsys, "replay", str(path), "--", "true")


def test_a_recording_of_an_ancient_server_is_refused(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "old.session"
    path.write_bytes(b"< report|0.4|1|smtp-in|timeout|7641df9771b4ed00\n")
    assert "protocol 0.4 is too old" in fails(capsys, "replay", str(path), "--", "true")


@pytest.mark.processes
def test_a_program_that_cannot_be_run_is_reported(tmp_path: Path, capsys: Capture) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert "No such file" in fails(capsys, "replay", str(PLAIN), "--", str(script))


def test_a_closed_pipe_is_not_an_error() -> None:
    source, sink = os.pipe()
    os.close(source)
    with subprocess.Popen(
        [*TOOL, "list"], stdout=sink, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        os.close(sink)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def run_without(number: int | None, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the tool with a descriptor closed."""

    def close() -> None:
        if number is not None:
            os.close(number)

    return subprocess.run(
        [*TOOL, *words], cwd=ROOT, preexec_fn=close, timeout=60, check=False, **how
    )


def test_no_output_with_stdout_closed() -> None:
    done = run_without(1, "list", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["greylist", "import", "--store", "sqlite:STORE"], 2, b"greylist: stdin is closed\n"),
        (["web", "password", "ann", "--passwords", "STORE"], 2, b"web: stdin is closed\n"),
        (["learn", "spam"], 66, b"stdin: is closed\n"),
        (["auth", "check", "-", *AUTH], 2, b"auth: stdin is closed\n"),
    ],
)
def test_stdin_that_is_closed(words: list[str], status: int, text: bytes, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.touch()
    words = [word.replace("STORE", str(store)) for word in words]
    done = run_without(0, *words, stderr=subprocess.PIPE)
    assert done.returncode == status
    assert done.stderr.endswith(text)
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["table", "check", "file:/nonexistent"], 2),
        (["learn", "spam", "/nonexistent"], 66),
        (["nosuch"], 2),
        (["run", "fcrdns", "--allow", "/nonexistent"], 2),
        (["reload", "nosuch"], 1),
    ],
)
@pytest.mark.parametrize("stderr", ["closed", "full"])
def test_errors_that_can_not_be_written_keep_the_status(
    words: list[str], status: int, stderr: str
) -> None:
    if stderr == "closed":
        assert run_without(2, *words, stdin=subprocess.DEVNULL).returncode == status
        return
    with open("/dev/full", "wb") as full:  # noqa: PTH123  # a device
        done = run_without(None, *words, stdin=subprocess.DEVNULL, stderr=full)
    assert done.returncode == status


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_errors_are_written_at_once(unbuffered: str) -> None:
    code = (
        "import os, sys; from smtpd_filters.cli.streams import prepare; prepare()\n"
        "sys.stderr.write('at once\\n'); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=60,
        check=False,
    )
    assert done.stderr == b"at once\n"


def test_no_file_has_the_number_of_a_closed_stream() -> None:
    code = (
        "import os; from smtpd_filters.cli import load, main\n"
        "load('list')._run = lambda *_: os.open('/dev/zero', os.O_RDONLY)\n"
        "raise SystemExit(main(['list']))"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code],
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode > 2


@pytest.mark.parametrize("words", [["list"], ["list", "--help"]])
def test_output_that_can_not_be_written_is_an_error(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123  # a device
        done = subprocess.run(
            [*TOOL, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
            timeout=60,
            check=False,
        )
    text = b"smtpd-filters: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, text)


def test_the_version_is_shown(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("smtpd-filters")


def test_an_interrupt_ends_it_quietly(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing.VERB, "_run", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr() == ("", "")


# -- run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["dyndns", "--phase", "helo"], "dyndns"),
        (["filter-trace", "--detail=none"], "trace"),
        (["dnsbl", "-w", "-d", "list.example"], "dnsbl"),  # in the manner of the older filter
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_filter_is_run_as_its_executable(words: list[str], own: str) -> None:
    handshake = SmtpdConnection().configure()

    def registered(*command: str) -> bytes:
        done = subprocess.run(
            command, input=handshake, capture_output=True, check=True, cwd=ROOT, timeout=60
        )
        assert done.stdout.endswith(b"register|ready\n")
        return done.stdout + done.stderr

    module = f"smtpd_filters.filters.{own}"
    expected = registered(sys.executable, "-m", module, *words[1:])
    assert registered(*TOOL, "run", *words) == expected


def test_a_chain_is_run(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "chain", "-n", "-f", str(tmp_path / "none.toml"), "--chian"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("filter-chain: unknown flag --chian")


def test_a_filter_of_others_is_run(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "others", sys.modules[__name__])
    with pytest.raises(SystemExit):
        main(["run", "others:Needy", "--help"])
    assert capsys.readouterr().out.startswith("usage: filter-needy --secret TEXT")


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["stats"], "cli.stats"),
        (
            ["auth", "check", "-", "--client=::1", "--helo=a", "--mail-from="],
            "cli.auth.examination",
        ),
    ],
)
def test_a_missing_module_is_one_line(
    words: list[str], module: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Such as sqlite3, which is a package of its own on FreeBSD."""
    monkeypatch.setitem(sys.modules, f"smtpd_filters.{module}", None)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "can't run: " in line
    assert module in line


# -- list --------------------------------------------------------------------------------


def test_the_filters_are_listed(capsys: Capture) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "filter-dyndns: Mark or refuse clients whose reverse name looks dynamically" in said
    assert "    phases   connect\n    reports  link-connect link-disconnect\n" in said


def test_the_list_is_what_the_executables_register(capsys: Capture) -> None:
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"dyndns", "trace"} <= {each["name"] for each in listed}
    (trace,) = [each for each in listed if each["name"] == "trace"]
    handshake = b"".join(line + b"\n" for line in Recording.read(PLAIN).to_filter()[:6])
    process = subprocess.run(
        [sys.executable, "-m", trace["module"]],
        input=handshake,
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
    )
    rows = [line.split("|") for line in process.stdout.decode().splitlines()]
    assert {row[3] for row in rows if row[1] == "report"} == set(trace["reports"])
    assert {row[3] for row in rows if row[1] == "filter"} == set(trace["phases"])


class Needy(Filter):
    """Needs a setting."""

    class Options(Settings):
        """What it needs."""

        secret = option(TEXT, required=True, help="A word.")

    def rcpt_to(self, _session: Session, _address: str) -> Proceed:
        """Let it pass."""
        return PROCEED


def test_a_filter_with_required_settings_is_listed() -> None:
    listed = listing.describe(Needy)
    assert listed.phases == ["rcpt-to"]
    assert "secret" in listed.remark


@pytest.mark.parametrize("words", [["help", "scripted"], ["run", "scripted", "--help"]])
def test_a_packaged_filter_is_run_as_its_script(
    words: list[str], install: Install, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Scripted(Filter):
        """Accept everything."""

        def connect(self, session: Session) -> Proceed:  # noqa: ARG002  # its handler
            return PROCEED

    # The script of a distribution calls `main` without arguments.
    module: Any = ModuleType("scripted")
    module.main = lambda: run(Scripted)
    monkeypatch.setitem(sys.modules, "scripted", module)
    monkeypatch.setattr(Scripted, "__module__", "scripted")
    module.Scripted = Scripted
    monkeypatch.setattr(sys, "argv", ["smtpd-filters", *words])
    install("scripted=scripted:Scripted")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    assert "usage: filter-scripted" in capsys.readouterr().out


def test_help_says_why_a_packaged_filter_cannot_be_loaded(
    install: Install, capsys: Capture
) -> None:
    install("lacking=no.such.module:X")
    with pytest.raises(SystemExit):
        main(["help", "lacking"])
    assert "smtpd-filters help: lacking: No module named 'no'\n" in capsys.readouterr().err


def test_filters_of_others_are_listed(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "others", sys.modules[__name__])
    install("needy=others:Needy")
    assert main(["list"]) == 0
    assert "filter-needy: Needs a setting.\n" in capsys.readouterr().out


def test_a_filter_that_cannot_be_loaded_is_reported(install: Install, capsys: Capture) -> None:
    install("lacking=no.such.module:X", "odd=os:getcwd")
    assert main(["list"]) == 1
    out, err = capsys.readouterr()
    assert "filter-dyndns" in out
    assert "entry point lacking: ModuleNotFoundError" in err
    assert "entry point odd: TypeError" in err
    assert err.count("\n") == 2


@pytest.mark.parametrize("text", ["[smtpd_filters.filters]\nneedy\n", "needy=\xff"])
def test_a_distribution_whose_entry_points_cannot_be_read(
    text: str, install: Install, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The filters of others are found nevertheless."""
    monkeypatch.setitem(sys.modules, "others", sys.modules[__name__])
    install("needy=others:Needy")
    install(name="broken", text=text)
    assert main(["list"]) == 1
    out, err = capsys.readouterr()
    assert "filter-needy: Needs a setting.\n" in out
    assert err.startswith("smtpd-filters: distribution broken: ")
    assert err.count("\n") == 1
    assert chain_use.find("needy") is Needy


# -- record ------------------------------------------------------------------------------


def record_then(directory: Path, *flags: str) -> Recording:
    """What `record` makes of a session that smtpd plays to it."""
    command = [*TOOL, "record", str(directory), *flags]
    assert main(["replay", str(PLAIN), "--", *command]) == 0
    (path,) = directory.iterdir()
    return Recording.read(path)


def test_what_is_recorded_replays(tmp_path: Path, capsys: Capture) -> None:
    recording = record_then(tmp_path, "--max-size=1M", "--max-files", "2")
    assert recording.sessions() == Recording.read(PLAIN).sessions()
    capsys.readouterr()
    command = [sys.executable, "-m", "smtpd_filters.filters.trace", "--detail=all"]
    assert main(["replay", str(tmp_path), "--diff", "--", *command]) == 0
    assert capsys.readouterr().out == (
        "1 recording, 8 decisions, none differ, 1 message not compared (--old filter-trace shows "
        "edits)\n"
    )


@pytest.mark.parametrize("flag", ["--no-body", "--anonymise"])
def test_what_is_to_be_left_out_is(flag: str, tmp_path: Path) -> None:
    recording = record_then(tmp_path, flag)
    assert not any(line.endswith(b"|hello") for line in recording.to_filter())
    named = any(b"s@lab.test" in line for line in recording.to_filter())
    assert named == (flag == "--no-body")


def test_wrong_flags_end_the_recorder_at_start(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["record", str(tmp_path), "--max-size", "large"])
    assert ended.value.code == 2
    assert "--max-size" in capsys.readouterr().err


def test_phases_are_in_smtpds_order() -> None:
    phases = [name for name, _ in sorted(listing._ORDER.items(), key=lambda each: each[1])]
    order: Callable[[str], int] = phases.index
    assert order("connect") < order("mail-from") < order("data-line") < order("commit")
    assert listing._place("unheard-of")[0] > order("commit")


def test_programs_are_found_where_smtpd_looks(tmp_path: Path) -> None:
    script = tmp_path / "filter-mine"
    script.touch(0o755)
    found = player.find(["filter-mine", "-x"], libexec=(str(tmp_path),))
    assert found == [str(script), "-x"]


def test_no_filter_is_in_two_modules() -> None:
    found, broken = listing.discover()
    assert not broken
    # One with a required setting can't be made without it.
    made = [cls for cls in found if not any(each.required for each in cls.Options.options.values())]
    assert len(made) >= 15
    chain = Chain([(cls(cls.Options()), cls.on_error, 1.0) for cls in made], Log())
    assert len(chain.filters) == len(made)
    assert len({cls.name for cls in found}) == len(found)
