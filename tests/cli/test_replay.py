from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from smtpd_filters.cli import main
from smtpd_filters.cli.replay import _Progress
from smtpd_filters.recording import Recording
from tests.effort import some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "fixtures" / "protocol" / "7.8.0p1"
PLAIN = RECORDED / "ehlo-message.session"
MODULE = "smtpd_filters.filters"
# Every filter that is asked is started.
pytestmark = pytest.mark.processes


def own(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"{MODULE}.{name}", *flags]


TRACE = own("trace", "--detail=none")
#: The clients of the recordings are local.
LOCALHOST = ("--extra-patterns", "^localhost$", "--exempt=authenticated")


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Make a filter that registers everything, and does this with each line."""

    def make(body: str, *, begin: str = "register()") -> list[str]:
        path = tmp_path / "filter.py"
        path.write_text(
            dedent(
                """
                import os, sys, time
                def say(line):
                    os.write(1, line.encode("latin-1") + b"\\n")
                def proceed():
                    if phase == "data-line":
                        say(f"filter-dataline|{session}|{token}|{argument}")
                    else:
                        say(f"filter-result|{session}|{token}|proceed")
                def register():
                    for name in "connect ehlo mail-from rcpt-to data data-line commit quit".split():
                        say(f"register|filter|smtp-in|{name}")
                    say("register|ready")
                def handle():
                """
            )
            + "    "
            + dedent(body).strip().replace("\n", "\n    ")
            + dedent(
                f"""
                for line in sys.stdin.buffer:
                    line = line.decode("latin-1").rstrip("\\n")
                    if line == "config|ready":
                        {begin}
                    elif line.startswith("filter|"):
                        phase, session, token, argument = line.split("|", 7)[4:]
                        handle()
                """
            )
        )
        return [sys.executable, str(path)]

    return make


def replayed(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    """The status and what comes as JSON."""
    cut = words.index("--")
    status = main([*words[:cut], "--json", *words[cut:]])
    out, err = capsys.readouterr()
    assert err == ""
    result: dict[str, Any] = json.loads(out)
    assert result["same"] == (status == 0)
    return status, result


# -- verdicts ----------------------------------------------------------------------------


def test_no_difference_is_reported(capsys: Capture) -> None:
    assert main(["replay", str(PLAIN), "--", *own("trace", "--detail=all")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, head, connect, *_, last = out.splitlines()
    assert first == str(PLAIN)
    assert head.split() == ["session", "phase", "client", "recorded", "now"]
    assert connect.split()[1:] == ["connect", "localhost|127.0.0.1", "proceed", "proceed"]
    assert "unchanged, 9 lines  unchanged, 9 lines" in out
    assert last == "1 recording, 8 decisions, none differ"


def test_a_phase_that_is_not_asked_for_proceeds(capsys: Capture) -> None:
    status, result = replayed(capsys, "replay", str(PLAIN), "--", *TRACE)
    assert status == 0
    for decision in result["recordings"][0]["decisions"]:
        assert decision["now"]["asked"] is False
        assert decision["differs"] is False


def test_what_differs_is_shown(capsys: Capture) -> None:
    path = str(RECORDED / "reject-at-mail-from.session")
    assert main(["replay", str(PLAIN), path, "--diff", "--", *TRACE]) == 1
    out = capsys.readouterr().out
    assert str(PLAIN) not in out
    row = out.splitlines()[2]
    assert row.startswith(" * 99e13cb0dbda4a3c  mail-from  s@lab.test  reject 550 5.7.1 rejected")
    assert row.endswith("(proceed)")
    assert out.splitlines()[-1] == "2 recordings, 12 decisions, 1 differs"


def test_a_policy_decides_as_it_does_in_smtpd(capsys: Capture) -> None:
    command = own("dyndns", *LOCALHOST, "--action=disconnect")
    status, result = replayed(capsys, "replay", str(PLAIN), "--diff", "--", *command)
    assert status == 1
    connect, *others = result["recordings"][0]["decisions"]
    assert connect["recorded"]["verb"] == "proceed"
    assert connect["now"]["verb"] == "disconnect"
    assert connect["now"]["reply"].startswith("554 5.7.1")
    # The client has disconnected: nothing else follows.
    assert len(others) == 7
    assert all(decision["now"] is None for decision in others)


def test_unreached_steps_are_reported(capsys: Capture) -> None:
    command = own("dyndns", *LOCALHOST, "--action=disconnect")
    assert main(["replay", str(PLAIN), "--", *command]) == 1
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 6
    assert "  (7 steps not reached)\n" in out
    assert out.splitlines()[-1] == "1 recording, 8 decisions, 1 differs, 7 not reached"


def test_a_changed_message_is_shown(script: Any, capsys: Capture) -> None:
    command = script(
        """
        if argument == "hello":
            say(f"filter-dataline|{session}|{token}|" + "caf\\xe9 " * 40)
        elif argument == ".":
            for at in range(30):
                say(f"filter-dataline|{session}|{token}|more {at}")
            proceed()
        else:
            proceed()
        """
    )
    assert main(["replay", str(PLAIN), "--diff", "--", *command]) == 1
    out = capsys.readouterr().out
    assert "unchanged, 9 lines  changed, 39 lines" in out
    assert "       -hello\n       +caf\\xe9 caf\\xe9 " in out
    assert "       +more 17\n       ... 12 more lines\n" in out
    assert max(map(len, out.splitlines())) < 140


def test_long_cells_are_cut(script: Any, capsys: Capture) -> None:
    command = script("say(f'filter-result|{session}|{token}|disconnect|550 ' + 'x' * 100)")
    assert main(["replay", str(PLAIN), "--", *command]) == 1
    assert f"disconnect 550 {'x' * 26}...\n" in capsys.readouterr().out


def test_a_command_may_be_one_word_as_in_proc_exec(capsys: Capture) -> None:
    command = f"{sys.executable} -m {MODULE}.trace --detail none"
    assert main(["replay", str(PLAIN), "--", command]) == 0
    assert "none differ" in capsys.readouterr().out


def test_rewritten_parameters_are_shown(capsys: Capture) -> None:
    path = RECORDED / "rewrite-at-ehlo.session"
    status, result = replayed(capsys, "replay", str(path), "--diff", "--", *TRACE)
    (decision,) = result["recordings"][0]["decisions"]
    assert (status, decision["recorded"]["parameter"]) == (1, "rewritten.ehlo")


def test_credentials_are_not_shown(capsys: Capture) -> None:
    paths = [str(RECORDED / f"{stem}.session") for stem in ("auth-plain-fail", "rewrite-at-auth")]
    secrets = ["AHVzZXIAd3Jvbmc=", "AG5vYm9keXx4AHdyb25n", "####"]
    for path in paths:
        for direction, line in Recording.read(path).entries:
            fields = line.split(b"|")
            rewritten = direction == ">" and b"rewrite" in fields
            if rewritten or (fields[0] == b"filter" and fields[4] == b"auth"):
                secrets.append(fields[-1].partition(b" ")[2].decode())
    assert len(secrets) > 5
    main(["replay", *paths, "--", *TRACE])
    main(["replay", *paths, "--json", "--", *TRACE])
    out = capsys.readouterr().out
    assert "PLAIN ********" in out
    assert not [secret for secret in secrets if secret in out]


def test_directories_are_searched(capsys: Capture, tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.session").write_bytes(PLAIN.read_bytes())
    os.mkfifo(tmp_path / "c.session")
    _, result = replayed(capsys, "replay", str(tmp_path), "--", *TRACE)
    assert [Path(each["file"]).parent.name for each in result["recordings"]] == ["a", "b"]


def test_where_nothing_was_answered_nothing_is_compared(capsys: Capture, tmp_path: Path) -> None:
    lines = PLAIN.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.session"
    cut.write_bytes(
        b"".join(
            line
            for line in lines
            if not line.startswith(b"> filter") and b"|filter-response|" not in line
        )
    )
    status, result = replayed(capsys, "replay", str(cut), "--", *own("trace", "--detail=all"))
    assert status == 0
    assert {each["recorded"] is None for each in result["recordings"][0]["decisions"]} == {True}


@pytest.mark.parametrize("protocol", ["0.5", "0.6", "0.7"])
@pytest.mark.parametrize("server", ["6.8.0p2", "7.8.0p1"])
def test_protocols_are_converted(
    protocol: str, server: str, tmp_path: Path, capsys: Capture
) -> None:
    original = ROOT / "fixtures" / "protocol" / server / "auth-login-ok.session"
    command = own("trace", "--detail=none", "--record", str(tmp_path))
    status, _ = replayed(capsys, "replay", str(original), "--protocol", protocol, "--", *command)
    assert status == 0
    (path,) = tmp_path.iterdir()
    told = Recording.read(path)
    assert told.protocol == protocol
    rows = told.to_filter()
    assert (b"config|protocol|0.7" in rows) == (protocol == "0.7")
    (auth,) = [row for row in rows if b"|link-auth|" in row]
    assert auth.endswith(b"|pass|user" if protocol == "0.7" else b"|user|pass")
    (mail,) = [row for row in rows if b"|tx-mail|" in row]
    assert mail.endswith(b"|s@lab.test|ok" if protocol == "0.5" else b"|ok|s@lab.test")


# -- against what the live filters decided ---------------------------------------------------


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A recording of filter-trace in front of a filter that marks at connect."""
    head, _, rest = PLAIN.read_bytes().partition(b"# policy: ")
    recorded = head + b"# recorder: filter-trace\n# policy: " + rest
    was, now = b"|connected|proceed\n", b"|connected|junk\n"
    assert recorded.count(was) == 1
    path = tmp_path / "live.session"
    path.write_bytes(recorded.replace(was, now))
    return path


@pytest.mark.parametrize(("action", "changed"), [("junk", 0), ("disconnect", 1)])
def test_the_unchanged_live_filters_show_no_difference(
    action: str, changed: int, live: Path, capsys: Capture
) -> None:
    command = own("dyndns", *LOCALHOST, f"--action={action}")
    status, result = replayed(capsys, "replay", str(live), "--", *command)
    assert status == changed
    connect = result["recordings"][0]["decisions"][0]
    assert connect["recorded"]["verb"] == "junk"
    assert connect["now"]["verb"] == action
    status, _ = replayed(capsys, "replay", str(live), "--", *own("dyndns"))
    assert status == 1


def test_what_the_live_filters_made_of_a_message_is_not_known(
    script: Any, live: Path, capsys: Capture
) -> None:
    """The recorder sees a message before they do."""
    command = script(
        """
        if argument == "hello":
            say(f"filter-dataline|{session}|{token}|changed")
        elif phase == "connect":
            say(f"filter-result|{session}|{token}|junk")
        else:
            proceed()
        """
    )
    status, result = replayed(capsys, "replay", str(live), "--", *command)
    assert status == 0
    (message,) = [
        each for each in result["recordings"][0]["decisions"] if each["phase"] == "data-line"
    ]
    assert message["recorded"] is None
    assert message["now"]["verb"] == "changed"
    assert main(["replay", str(live), "--diff", "--", *command]) == 0
    last = "none differ, 1 message not compared (--old filter-trace shows edits)\n"
    assert capsys.readouterr().out == f"1 recording, 8 decisions, {last}"


def test_a_report_on_another_command_is_no_verdict(tmp_path: Path, capsys: Capture) -> None:
    odd = tmp_path / "odd.session"
    content = PLAIN.read_bytes().replace(b"|connected|proceed\n", b"|tls|reject|550 no\n")
    odd.write_bytes(content.replace(b"|ehlo|proceed\n", b"|ehlo\n"))
    assert main(["replay", str(odd), "--", *TRACE]) == 0
    assert "none differ" in capsys.readouterr().out


# -- two filters ---------------------------------------------------------------------------

REFUSES = shlex.join(own("dyndns", *LOCALHOST, "--action=disconnect"))
PASSES = shlex.join(own("dyndns"))


def test_two_filters_are_compared(capsys: Capture) -> None:
    assert main(["replay", "--old", PASSES, "--new", REFUSES, str(PLAIN)]) == 1
    first, head, connect, rest, _, last = capsys.readouterr().out.splitlines()
    assert first == str(PLAIN)
    assert head.split() == ["session", "phase", "client", "old", "new"]
    assert re.fullmatch(
        r" \* \w+  connect  localhost\|127\.0\.0\.1  proceed +disconnect .*", connect
    )
    assert rest.endswith("  (7 steps not reached with the new one)")
    assert last == "1 recording, 8 decisions, 1 differs, 7 not reached"
    assert main(["replay", "--old", REFUSES, str(PLAIN), "--", *own("dyndns")]) == 1
    assert "(7 steps not reached with the old one)" in capsys.readouterr().out


def test_two_filters_that_decide_alike(capsys: Capture) -> None:
    assert main(["replay", "--old", REFUSES, "--new", REFUSES, str(PLAIN), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recordings"][0]["decisions"] == []
    assert main(["replay", "--old", REFUSES, "--new", REFUSES, str(PLAIN)]) == 0
    assert capsys.readouterr().out == "1 recording, 8 decisions, none differ\n"


def test_two_filters_as_json(capsys: Capture) -> None:
    assert main(["replay", "--old", PASSES, "--new", REFUSES, str(PLAIN), "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["recordings"][0]["decisions"][0]
    assert (first["old"]["verb"], first["new"]["verb"]) == ("proceed", "disconnect")
    assert first["differs"] is True


def test_two_messages_are_compared(script: Any, capsys: Capture) -> None:
    command = script(
        """
        if argument == "hello":
            say(f"filter-dataline|{session}|{token}|good bye")
        else:
            proceed()
        """
    )
    words = ["--old", PASSES, "--new", shlex.join(command)]
    assert main(["replay", *words, str(PLAIN)]) == 1
    assert "       -hello\n       +good bye\n" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["old", "new"])
def test_one_of_two_that_smtpd_would_not_survive(which: str, script: Any, capsys: Capture) -> None:
    dies = shlex.join(script("if phase == 'rcpt-to':\n    os._exit(7)\nproceed()"))
    words = {"old": PASSES, "new": PASSES, which: dies}
    assert main(["replay", "--old", words["old"], "--new", words["new"], str(PLAIN)]) == 3
    out = capsys.readouterr().out
    assert f" ! {which}: exited with status 7, which ends smtpd" in out
    assert "not reached" not in out


def test_a_filter_that_does_not_start_differs_in_nothing(capsys: Capture) -> None:
    wrong = shlex.join([*own("dyndns"), "--wrong"])
    assert main(["replay", "--old", PASSES, "--new", wrong, str(PLAIN)]) == 3
    out = capsys.readouterr().out
    assert "unknown flag --wrong" in out
    assert out.endswith(
        "1 recording, 8 decisions, none differ, in 1 smtpd would have ended or hung\n"
    )
    assert " * " not in out


def test_two_chain_files_are_compared(tmp_path: Path, capsys: Capture) -> None:
    chains = '[chain.a]\nfilters = ["trace"]\n[chain.b]\nfilters = ["dyndns"]\n'
    settings = '[filter.dyndns]\nextra-patterns = "^localhost$"\nexempt = ["authenticated"]\n'
    for name, action in (("old", "junk"), ("new", "reject")):
        path = tmp_path / f"{name}.toml"
        path.write_text(f'{chains}{settings}action = "{action}"\n')
    words = ["--old", str(tmp_path / "old.toml"), "--new", str(tmp_path / "new.toml")]
    assert main(["replay", *words, "--chain", "b", str(PLAIN)]) == 1
    assert re.search(r"connect .*  junk +disconnect 554", capsys.readouterr().out)
    assert main(["replay", *words, "--chain", "a", str(PLAIN)]) == 0
    capsys.readouterr()
    # The error of filter-chain, for the file has two.
    assert main(["replay", *words, str(PLAIN)]) == 3
    assert "--chain is required, there are several" in capsys.readouterr().out


def test_a_chain_with_a_score_is_replayed(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "scored.toml"
    path.write_text(
        '[filter.dyndns]\nextra-patterns = "^localhost$"\nexempt = ["authenticated"]\n'
        'score = 4\n[chain.a]\nfilters = ["dyndns"]\nreject-at = 4\nscore-at = "rcpt-to"\n'
    )
    assert main(["replay", "--new", str(path), str(PLAIN)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"rcpt-to .*  proceed +reject 550 5.7.1 Refused as probable spam", out)
    assert "disconnect" not in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--old", "filter-dyndns"], "no command: put it after -- at the end, or give --new"),
        (["--new", "x", "--", "y"], "--new and a command after -- exclude each other"),
        (["--old", "no-such-filter", "--new", "true"], "--old: no-such-filter: no such program"),
        (["--new", "no-such-filter"], "--new: no-such-filter: no such program"),
        (["--new", "filter 'x"], "--new: No closing quotation"),
        (["--new", " "], "--new: empty command"),
        (["--new", "/no/such.toml"], "--new: /no/such.toml: no such program"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_commands(words: list[str], line: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(PLAIN), *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"smtpd-filters replay: {line}")


def test_a_filter_that_is_not_executable(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "mine.py"
    path.write_text("#!/usr/bin/env python3\n")
    with pytest.raises(SystemExit):
        main(["replay", str(PLAIN), "--", str(path)])
    assert f"{path}: not executable, run chmod 755 {path}" in capsys.readouterr().err


def test_steps_that_interleaved_sessions_did_not_reach(tmp_path: Path, capsys: Capture) -> None:
    """A line for each session, however they stand."""
    lines = PLAIN.read_bytes().splitlines(keepends=True)
    [session] = Recording.read(PLAIN).sessions()
    start = next(at for at, line in enumerate(lines) if session.encode() in line)
    second = [line.replace(session.encode(), b"0" * 16) for line in lines[start:]]
    pairs = zip(lines[start:], second, strict=True)
    path = tmp_path / "two.session"
    path.write_bytes(b"".join([*lines[:start], *(line for pair in pairs for line in pair)]))
    assert main(["replay", "--diff", str(path), "--", REFUSES]) == 1
    assert capsys.readouterr().out.count("  (7 steps not reached)\n") == 2


# -- filters that smtpd would not survive ------------------------------------------------

BAD = {
    "dies": ("if phase == 'rcpt-to':\n    os._exit(7)\nproceed()", "exited with status 7"),
    "is killed": ("os.kill(os.getpid(), 9)", "exited with signal 9"),
    "closes": ("os.close(0); os.close(1); time.sleep(60)", "closed its output"),
    "hangs": ("if phase != 'rcpt-to':\n    proceed()", "no answer for 3 s at rcpt-to of session"),
    "junk at commit": (
        "if phase == 'commit':\n    say(f'filter-result|{session}|{token}|junk')\nelse: proceed()",
        "ENDS_SERVER",
    ),
    "answers twice": ("proceed()\nproceed()", "ENDS_SERVER"),
    "talks": ("print('hello', flush=True)\nproceed()", "ENDS_SERVER line-unknown"),
    "long line": (
        """
        if argument == 'hello':
            say(f'filter-dataline|{session}|{token}|' + 'x' * 70000)
        proceed()
        """,
        "HANGS_SERVER line-too-long",
    ),
    "wrong token": ("say(f'filter-result|{session}|{token[::-1]}|proceed')", "ENDS_SERVER"),
}


@pytest.mark.parametrize("name", some(BAD))
def test_what_would_end_smtpd_is_reported(name: str, script: Any, capsys: Capture) -> None:
    body, said = BAD[name]
    command = script(body)
    timeout = "3" if name in {"hangs", "closes"} else "30"
    status, result = replayed(capsys, "replay", str(PLAIN), "--timeout", timeout, "--", *command)
    assert status == 3
    assert said in result["recordings"][0]["fatal"]
    assert result["recordings"][0]["complaints"] == []


def test_the_last_line_of_the_log_is_shown(capsys: Capture) -> None:
    command = own("trace", "--detali", "all")
    assert main(["replay", str(PLAIN), "--", *command]) == 3
    out = capsys.readouterr().out
    assert "exited with status 2, which ends smtpd: filter-trace: unknown flag --detali" in out
    assert "in 1 smtpd would have ended or hung\n" in out
    assert "(not reached)" not in out


def test_the_log_is_shown_on_request(capfd: Capture) -> None:
    assert main(["replay", str(PLAIN), "--log", "--", *own("trace")]) == 0
    assert "trace link-connect rdns=localhost" in capfd.readouterr().err
    assert main(["replay", str(PLAIN), "--log", "--", *own("trace", "--wrong")]) == 3


def test_a_filter_that_never_registers_hangs_smtpd(script: Any, capsys: Capture) -> None:
    command = script("pass", begin="pass")
    assert main(["replay", str(PLAIN), "--timeout=300ms", "--", *command]) == 3
    assert (
        "no answer for 0.3 s in the hand-shake: smtpd would wait forever" in capsys.readouterr().out
    )


def test_a_filter_that_does_not_read_hangs_smtpd(tmp_path: Path, capsys: Capture) -> None:
    large = tmp_path / "large.session"
    prefix = b"< filter|0.7|1.0|smtp-in|data-line|7641df9771b4ed00|1ed8ad9ef3440500|"
    lines = b"".join(prefix + b"x" * 1000 + b"\n" for _ in range(2000)) + prefix + b".\n"
    large.write_bytes(b"< config|protocol|0.7\n< config|ready\n" + lines)
    body = "print('register|filter|smtp-in|data-line\\nregister|ready', flush=True);"
    command = [sys.executable, "-c", f"import time; {body} time.sleep(60)"]
    assert main(["replay", str(large), "--timeout=3s", "--", *command]) == 3
    assert "no data read for 3 s at data-line of session" in capsys.readouterr().out


def test_a_filter_that_outlives_its_input_is_ended(script: Any, capsys: Capture) -> None:
    command = script("proceed()")
    Path(command[1]).write_text(Path(command[1]).read_text() + "time.sleep(60)\n")
    assert main(["replay", str(PLAIN), "--timeout=3s", "--", *command]) == 3
    assert "still runs 3 s after the end of its input" in capsys.readouterr().out


def test_what_only_harms_a_session_is_a_complaint(script: Any, capsys: Capture) -> None:
    command = script(
        "if phase == 'mail-from':\n"
        "    say(f'filter-result|{session}|{token}|reject|no code')\n"
        "else: proceed()"
    )
    assert main(["replay", str(PLAIN), "--diff", "--", *command]) == 1
    out = capsys.readouterr().out
    assert " ! " in out
    assert "reply-no-code" in out
    assert "1 complaint\n" in out


def test_no_process_is_left_behind(
    script: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Started)
    command = script("time.sleep(60)")
    assert main(["replay", str(PLAIN), "--timeout=300ms", "--", *command]) == 3
    assert "no answer" in capsys.readouterr().out
    assert [process.returncode for process in started] == [-9]


# -- progress ----------------------------------------------------------------------------


def test_the_names_of_files_reach_no_terminal(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "\x1b[2J\u202e.session"
    path.write_bytes(PLAIN.read_bytes())
    main(["replay", str(tmp_path), "--", *TRACE])
    shown = capsys.readouterr().out
    assert f"{tmp_path}/\\x1b[2J\\u202e.session" in shown.splitlines()
    progress = _Progress(1, wanted=True, interval=0)
    progress.begin("\x1b[2J")
    progress.tick()
    assert capsys.readouterr().err.count("\x1b") == 1  # that of the progress itself


def test_an_endless_file_is_refused(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "/dev/zero", "--", *TRACE])
    assert "/dev/zero: not a regular file" in capsys.readouterr().err


def test_a_fifo_that_nobody_writes_is_not_waited_for(tmp_path: Path, capsys: Capture) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SystemExit):
        main(["replay", str(tmp_path / "fifo"), "--", *TRACE])
    assert f"{tmp_path}/fifo: no session in it" in capsys.readouterr().err


def test_a_recording_may_come_from_a_pipe(capsys: Capture) -> None:
    with subprocess.Popen(["/bin/cat", str(PLAIN)], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert main(["replay", f"/dev/fd/{cat.stdout.fileno()}", "--", *TRACE]) == 0
    assert "8 decisions, none differ" in capsys.readouterr().out


def test_progress_is_shown_and_taken_away(capsys: Capture) -> None:
    progress = _Progress(3, wanted=True, interval=0.0)
    progress.begin("x" * 200)
    progress.tick()
    progress.clear()
    progress.clear()
    said = capsys.readouterr().err
    assert said.startswith("\r\033[K1/3 xxx")
    assert said.endswith("\r\033[K")
    assert len(said) < 100


def test_without_a_terminal_there_is_no_progress(capsys: Capture) -> None:
    progress = _Progress(1, wanted=False)
    progress.begin("x")
    progress.tick()
    progress.clear()
    assert capsys.readouterr() == ("", "")
