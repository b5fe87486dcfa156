"""The work of filters goes on under `--sandbox strict`, and on lesser kernels."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.authentication.dkim.keys import ED25519, RSA
from smtpd_filters.authentication.dkim.private_keys import new_private_key, parse_private_key
from smtpd_filters.filters.dkimsign.workers import Workers
from smtpd_filters.runtime.log import FilterLog, Log
from tests.filters.clamav.stub import EICAR, Clamd
from tests.runtime.process import ROOT, FilterProcess, sid
from tests.sandbox.kernel import LANDLOCK, SECCOMP, STRICT, without

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_filters.protocol.events import Result

WORKER = str(Path(__file__).with_name("worker.py"))
pytestmark = STRICT


def start(name: str, *flags: str, sandbox: str = "strict", **process: object) -> FilterProcess:
    arguments = [WORKER, name, "--sandbox", sandbox, *flags]
    return FilterProcess(arguments, **process)  # type: ignore[arg-type]


def ask(process: FilterProcess, phase: str, argument: bytes, number: int = 1) -> Result:
    process.connect(sid(number))
    return process.ask(phase, sid(number), argument)


def replace(path: Path, content: str) -> None:
    """Replace a file as an editor or a deployment does."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.replace(path)


# -- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Tabled"])
def test_a_table_that_is_replaced_is_reloaded(name: str, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text("a@example.org\n")
    with start(name, "--names", f"file:{names}") as process:
        process.hand_shake()
        assert ask(process, "rcpt-to", b"b@example.org").verb == b"proceed"
        for times in (1, 2):
            replace(names, f"b@example.org\nc{times}@example.org\n")
            process.kill(signal.SIGHUP)
            process.until_logged("result=ok " if times == 1 else "entries=2")
            assert ask(process, "rcpt-to", b"b@example.org", 1 + times).verb == b"junk"
        process.finish()


def test_a_table_behind_a_link_that_is_changed_is_reloaded(tmp_path: Path) -> None:
    """As in a mounted ConfigMap: a link leads to another directory."""
    for version, name in (("1", "a"), ("2", "b")):
        (tmp_path / "tables" / f"..{version}").mkdir(parents=True)
        (tmp_path / "tables" / f"..{version}" / "names").write_text(f"{name}@example.org\n")
    data = tmp_path / "tables" / "..data"
    data.symlink_to("..1")
    names = tmp_path / "tables" / "names"
    names.symlink_to("..data/names")
    with start("Tabled", "--names", f"file:{names}") as process:
        process.hand_shake()
        assert ask(process, "rcpt-to", b"b@example.org").verb == b"proceed"
        data.unlink()
        data.symlink_to("..2")
        process.kill(signal.SIGHUP)
        process.until_logged("result=ok")
        assert ask(process, "rcpt-to", b"b@example.org", 2).verb == b"junk"
        process.finish()


def test_a_key_that_a_rotation_adds_is_read(tmp_path: Path) -> None:
    for name in ("a.key", "b.key"):
        (tmp_path / name).write_bytes(new_private_key(ED25519, 0))
        (tmp_path / name).chmod(0o600)
    (tmp_path / "b.key").rename(tmp_path / "later")
    keys = tmp_path / "keys"
    keys.write_text(f"example.org a {tmp_path}/a.key\n")
    words = [
        "-m",
        "smtpd_filters.filters.dkimsign",
        "--sandbox",
        "strict",
        "--keys",
        f"file:{keys}",
    ]
    with FilterProcess(words) as process:
        process.hand_shake()
        (tmp_path / "later").rename(tmp_path / "b.key")
        replace(keys, f"example.org b {tmp_path}/b.key\n")
        process.kill(signal.SIGHUP)
        process.until_logged("reload table=keys")
        assert "result=ok" in process.logged
        process.finish()


OUT_OF_REACH = (
    "Permission denied by the sandbox: its directory was replaced or added after the start; "
    "restart smtpd"
)


@pytest.mark.parametrize("what", ["table", "key"])
def test_a_directory_that_is_replaced_is_out_of_reach(what: str, tmp_path: Path) -> None:
    """The log names the sandbox, and not a user who may read the file."""
    directory, new = tmp_path / "directory", tmp_path / "new"
    directory.mkdir()
    file = directory / what
    if what == "table":
        file.write_text("a@example.org\n")
        words = [WORKER, "Tabled", "--names"]
    else:
        file.write_bytes(new_private_key(ED25519, 0))
        words = ["-m", "smtpd_filters.filters.dkimsign", "-d", "example.org", "-s", "a", "-k"]
    file.chmod(0o600)
    shutil.copytree(directory, new)
    with alone([*words, str(file)], tmp_path) as process:
        process.hand_shake()
        directory.rename(tmp_path / "old")
        new.rename(directory)
        process.kill(signal.SIGHUP)
        process.until_logged("reload table=")
        process.finish()
        assert f'error="{file}: {OUT_OF_REACH}" result=kept' in process.logged


def test_a_database_in_a_directory_that_is_replaced_is_out_of_reach(tmp_path: Path) -> None:
    """SQLite's own error is that of a database in WAL mode, for whose files there is no right."""
    directory, new = tmp_path / "directory", tmp_path / "new"
    directory.mkdir()
    with closing(sqlite3.connect(directory / "mail.db")) as database:
        database.execute("CREATE TABLE names (name)")
    rows = (f"dbpath {directory}/mail.db", "list SELECT * FROM names", "refresh 1", "")
    (tmp_path / "names").write_text("\n".join(rows))
    shutil.copytree(directory, new)
    with start("Tabled", "--names", f"sqlite:{tmp_path}/names") as process:
        process.hand_shake()
        directory.rename(tmp_path / "old")
        new.rename(directory)
        process.until_logged("unavailable: ")
        process.finish()
        assert f"unavailable: {OUT_OF_REACH}" in process.logged


def test_a_key_in_a_further_directory_is_out_of_reach(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_bytes(new_private_key(ED25519, 0))
        (tmp_path / name / "key").chmod(0o600)
    tables = tmp_path / "tables"
    tables.mkdir()
    keys = tables / "keys"
    keys.write_text(f"example.org a {tmp_path}/one/key\n")
    words = ["-m", "smtpd_filters.filters.dkimsign", "--keys", f"file:{keys}"]
    with alone(words, tmp_path) as process:
        process.hand_shake()
        replace(keys, f"example.org b {tmp_path}/two/key\n")
        process.kill(signal.SIGHUP)
        process.until_logged("reload table=")
        process.finish()
        assert f"{tmp_path}/two/key: {OUT_OF_REACH}" in process.logged
        assert "result=kept" in process.logged


def renew(directory: Path) -> None:
    """Put another directory in the place of this one."""
    directory.rename(directory.with_name("replaced"))
    directory.mkdir()


def test_a_directory_of_recordings_that_is_replaced_is_out_of_reach(tmp_path: Path) -> None:
    directory = tmp_path / "recorded"
    words = ["-m", "smtpd_filters.filters.trace", "--record", str(directory)]
    with alone(words, tmp_path) as process:
        process.hand_shake()
        renew(directory)
        number = 0
        while "recording paused" not in process.logged:  # by the thread that writes files
            number += 1
            assert number < 1000
            process.connect(sid(number))
            process.until_logged(f"{sid(number).decode()} trace link-connect")
        process.finish()
        assert f'error="{OUT_OF_REACH}"' in process.logged


def test_a_quarantine_that_is_replaced_is_out_of_reach(tmp_path: Path) -> None:
    directory = tmp_path / "quarantine"
    with Clamd() as clamd:
        words = ["-m", "smtpd_filters.filters.clamav", "--clamd", clamd.address]
        with alone([*words, "--quarantine", str(directory)], tmp_path) as process:
            process.hand_shake()
            renew(directory)
            for part in ("new", "cur", "tmp"):
                (directory / part).mkdir()
            process.connect(sid(1))
            process.report("tx-begin", sid(1), b"1ef1c203")
            process.report("tx-mail", sid(1), b"1ef1c203", b"ok", b"a@example.net")
            process.message(sid(1), [b"Subject: x", b"", EICAR])
            assert process.ask("commit", sid(1)).verb == b"reject"
            process.finish()
            assert f'no copy kept cause="{OUT_OF_REACH}"' in process.logged


def test_a_directory_of_spools_that_is_replaced_is_out_of_reach(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    directory.mkdir()
    lines = [b"Subject: x", b"", *[b"x" * 900] * 2000]
    with start("Whole", "--on-error", "proceed", env={"TMPDIR": str(directory)}) as process:
        process.hand_shake()
        renew(directory)
        process.connect(sid(1))
        process.message(sid(1), lines)
        process.ask("commit", sid(1))
        process.finish()
        assert f"cannot spool the message: {OUT_OF_REACH}" in process.logged


def alone(words: Sequence[str], path: Path) -> FilterProcess:
    """Start a filter whose temporary files are in a directory of their own, not beside others."""
    (path / "spool").mkdir()
    return FilterProcess([*words, "--sandbox", "strict"], env={"TMPDIR": str(path / "spool")})


# -- stores ----------------------------------------------------------------------------------


def test_a_store_in_a_file_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    words = [
        *("-m", "smtpd_filters.filters.greylist", "--sandbox", "strict"),
        *(
            "--store",
            f"sqlite:{folder}/greylist.sqlite",
            "--store-timeout",
            "25",
            "--nameserver",
            "127.0.0.1:9",
        ),
        *("--key", "spf", "--only-if", "dynamic", "--timeout", "0.05", "--on-error", "junk"),
    ]
    with FilterProcess(words) as process:
        process.hand_shake()
        name = b"192-0-2-1.dsl.example.net"
        for number, address in ((1, b"192.0.2.1:25"), (2, b"192.0.2.1:26")):
            session = sid(number)
            process.report("link-connect", session, name, b"pass", address, b"198.51.100.25:25")
            process.report("tx-begin", session, b"1ef1c203")
            process.report("tx-mail", session, b"1ef1c203", b"ok", b"a@missing.example")
            said = process.ask("rcpt-to", session, b"b@example.org")
            assert (said.argument or b"").startswith(b"451 4.7.1 Greylisted")
        process.until_logged("retried too early")
        process.finish()
    assert [each.name for each in folder.iterdir()] == ["greylist.sqlite"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_store_in_a_directory_that_is_replaced_is_out_of_reach(
    tmp_path: Path, *, kept: bool
) -> None:
    """As by a purge of the package and its installation again."""
    directory = tmp_path / "state"
    directory.mkdir()
    words = [
        *("-m", "smtpd_filters.filters.limit", "--sandbox", "strict"),
        *("--store", f"sqlite:{directory}/limit.sqlite", "--limit", "client messages 9/1h"),
    ]
    with FilterProcess(words) as process:
        process.hand_shake()
        assert ask(process, "mail-from", b"a@example.org").verb == b"proceed"
        old = directory.rename(tmp_path / "old")
        if kept:
            shutil.copytree(old, directory)
        else:
            directory.mkdir()
        assert ask(process, "mail-from", b"a@example.org", 2).verb == b"proceed"
        process.until_logged("limit mail-from result=proceed")
        process.finish()
        assert f'cause="sqlite:{directory}/limit.sqlite: {OUT_OF_REACH}"' in process.logged


def test_a_notice_is_given_from_outside_the_sandbox(tmp_path: Path) -> None:
    """The store is in the sandbox, the command that a notice runs is not."""
    folder = tmp_path / "state"
    folder.mkdir()
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/told\necho told >&2\n')
    program.chmod(0o755)
    words = [
        *("-m", "smtpd_filters.filters.limit", "--sandbox", "strict"),
        *("--store", f"sqlite:{folder}/limit.sqlite", "--notify-command", str(program)),
        *("--limit", "client messages 1/1h action=block"),
    ]
    with FilterProcess(words) as process:
        process.hand_shake()
        process.connect(sid(1))
        assert process.ask("mail-from", sid(1), b"a@example.org").verb == b"proceed"
        assert process.ask("mail-from", sid(1), b"a@example.org").verb == b"reject"
        process.until_logged("told")
        process.finish()
    assert (tmp_path / "told").read_text().startswith("client=")


def children_with(word: str, parent: int) -> list[int]:
    """Return the ids of a process's children that have this word in their command.

    The process that stands by has the same command as the one that waits for it.
    """
    found = []
    for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{each}/cmdline").read_text()
        if word in words and ("spawner.py" in words) == (word == "spawner.py"):
            found.append(int(each))
    return found


def test_a_policy_server_that_is_a_program_is_started_from_outside_the_sandbox(
    tmp_path: Path,
) -> None:
    program = tmp_path / "program"
    told = tmp_path / "told"
    program.write_text(
        f'#!/bin/sh\nwhile read -r line; do [ -n "$line" ] && continue\n'
        f'echo told >>{told}; printf "action=550 told\\n\\n"; done\n'
    )
    program.chmod(0o755)
    server = ["--server", f"exec:{program}"]
    words = ["-m", "smtpd_filters.filters.policy", "--sandbox", "strict", *server]
    with FilterProcess(words) as process:
        process.hand_shake()
        process.connect(sid(1))
        process.report("tx-begin", sid(1), b"1ef1c203")
        process.report("tx-mail", sid(1), b"1ef1c203", b"ok", b"a@example.org")
        for _ in range(2):
            said = process.ask("rcpt-to", sid(1), b"b@example.org")
            assert said.argument == b"550 5.7.1 told"
        # What starts programs is killed, and the program with it: both are replaced.
        [serving] = children_with("spawner.py", process.child.pid)
        [started] = children_with(str(program), serving)
        os.kill(started, signal.SIGKILL)
        os.kill(serving, signal.SIGKILL)
        said = process.ask("rcpt-to", sid(1), b"b@example.org")
        assert said.argument == b"550 5.7.1 told"
        process.finish()
        assert "replaced a process that starts programs" in process.logged
    assert told.read_text() == "told\n" * 3


# -- messages --------------------------------------------------------------------------------


def test_a_message_goes_to_disk(tmp_path: Path) -> None:
    lines = [b"Subject: x", b"", *[b"x" * 900] * 2000]
    with start("Whole", env={"TMPDIR": str(tmp_path)}) as process:
        process.hand_shake()
        process.connect(sid(1))
        assert process.message(sid(1), lines) == lines
        assert process.ask("commit", sid(1)).verb == b"proceed"
        process.finish()
        assert process.logged == ""
    assert list(tmp_path.iterdir()) == []


# -- what is loaded late ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["modules", "codecs", "time", "machine", "thread", "traceback", "file"]
)
def test_what_is_used_late_is_there(what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("declared")
    with start("Late", "--on-error", "tempfail", "--file", str(tmp_path / "file")) as process:
        process.hand_shake()
        said = ask(process, "helo", what.encode())
        assert said.verb == b"proceed", process.logged
        process.finish()


@pytest.mark.parametrize("what", ["names", "connection"])
def test_a_server_is_reached_by_its_name(what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"localhost:{server.getsockname()[1]}"
        with start("Late", "--on-error", "tempfail", "--server", where) as process:
            process.hand_shake()
            said = ask(process, "ehlo", what.encode())
            assert said.verb == b"proceed", process.logged
            process.finish()


def test_asyncio_is_loaded_at_the_end(tmp_path: Path) -> None:
    with start("Closing", "--notes", str(tmp_path)) as process:
        process.hand_shake()
        assert ask(process, "helo", b"x").verb == b"proceed"
        process.finish()
        assert process.logged == ""
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("name", ["Running", "Listening"])
def test_what_is_declared_is_done(name: str) -> None:
    with start(name, "--on-error", "tempfail") as process:
        process.hand_shake()
        said = ask(process, "helo", b"x")
        assert said.verb == b"proceed", process.logged
        process.finish()


# -- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "error"), [("memory", "MemoryError"), ("descriptors", "Too many open files")]
)
def test_a_leak_ends_at_the_limit(what: str, error: str) -> None:
    with start("Leaking", "--on-error", "tempfail") as process:
        process.hand_shake()
        assert ask(process, "helo", what.encode()).verb == b"reject"
        assert error in process.logged
        # Everybody else is served, and so is everybody later.
        assert ask(process, "noop", b"", 2).verb == b"proceed"
        assert ask(process, "helo", what.encode(), 3).verb == b"reject"
        assert ask(process, "noop", b"", 4).verb == b"proceed"
        process.finish()


# -- lesser kernels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "missing"),
    [
        (partial(without, *LANDLOCK), "Landlock: this kernel has none"),
        (
            partial(without, *LANDLOCK, error=errno.EOPNOTSUPP),
            "Landlock: this kernel was started without it (lsm=)",
        ),
        (partial(without, *LANDLOCK, error=errno.EPERM), "Landlock: Operation not permitted"),
        (partial(without, *SECCOMP, error=errno.EPERM), "seccomp: Operation not permitted"),
        (
            partial(without, *LANDLOCK, *SECCOMP),
            "Landlock: this kernel has none; seccomp: this kernel has none",
        ),
    ],
)
@pytest.mark.parametrize("name", ["Tabled", "Late"])
def test_a_kernel_without_a_part(name: str, kernel: Callable[[], None], missing: str) -> None:
    """As in a container with a filter of system calls of its own."""
    with start(name, sandbox="on", before=kernel) as process:
        process.hand_shake()
        phase, parameter = ("rcpt-to", b"a@example.org") if name == "Tabled" else ("helo", b"time")
        assert ask(process, phase, parameter).verb == b"proceed"
        process.finish()
        assert process.logged == f'smtpd-filters sandbox is incomplete missing="{missing}"\n'
    with start(name, before=kernel) as process:
        process.finish(2)
        assert process.logged == f"filter-{name.lower()}: --sandbox strict: {missing}\n"


def test_a_thread_that_was_there_before() -> None:
    missing = "Landlock: not for 1 threads that were started during setup"
    with start("Threaded", sandbox="on") as process:
        process.hand_shake()
        process.until_logged(missing)
        process.finish()
    with start("Threaded") as process:
        process.finish(2)
        assert missing in process.logged


@pytest.mark.parametrize("sandbox", ["on", "strict"])
def test_a_mistake_in_a_declaration_ends_the_start(sandbox: str) -> None:
    with start("Mistaken", sandbox=sandbox) as process:
        process.finish(2)
        assert process.logged.startswith(
            "filter-mistaken: cannot be set up: ValueError: a mistake ["
        )
        assert process.logged.count("\n") == 1


def test_what_a_declaration_cannot_start_is_no_mistake_in_it() -> None:
    with start("Unstarted", sandbox="on") as process:
        process.finish(2)
        assert process.logged == "filter-unstarted: /bin/x: can't be started\n"


@pytest.mark.parametrize("sandbox", ["off", "on"])
def test_nothing_is_loaded_for_nothing(sandbox: str) -> None:
    done = subprocess.run(
        [
            sys.executable, "-X", "importtime", "-m", "smtpd_filters.filters.rcpt",
            "--sandbox", sandbox,
        ],
        input=b"config|protocol|0.7\nconfig|ready\n",
        capture_output=True,
        cwd=ROOT,
        check=True,
    )  # fmt: skip
    loaded = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}
    ours = {name.rpartition(".")[2] for name in loaded if ".sandbox." in name}
    kernel = {"landlock", "seccomp", "libc"}
    assert ours == ({"needs", "confinement", "audit", *kernel} if sandbox == "on" else set())
    assert ("_ctypes" in loaded) is (sandbox == "on")
    assert not {"ctypes", "struct", "_socket", "threading"} & loaded


@pytest.mark.processes
def test_the_processes_that_sign_are_confined_before_they_get_a_key() -> None:
    key = parse_private_key(new_private_key(RSA, 2048))

    async def sign() -> bytes:
        workers = Workers(1, FilterLog(Log(fd=2), "dkimsign"))
        try:
            workers.confine()
            workers.confine()
            assert await workers.sign(key, bytes(32)) == key.sign(bytes(32))
            (worker,) = workers._workers
            assert not worker.ended
            with open(f"/proc/{worker._process.pid}/status", "rb") as file:  # noqa: PTH123, ASYNC230  # it is in memory
                return file.read()
        finally:
            await workers.aclose()

    status = asyncio.run(sign())
    assert b"NoNewPrivs:\t1\n" in status
    assert b"Seccomp:\t2\n" in status
