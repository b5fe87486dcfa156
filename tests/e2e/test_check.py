"""`smtpd-filters check` beside the real smtpd: what it reads, and what it finds before a start."""

from __future__ import annotations

import random
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli.smtpd_conf import read
from smtpd_filters.testing.server import BIN, LabError, Smtpd, file_path, filter_command
from smtpd_filters.testing.server.layout import CONF
from smtpd_filters.testing.server.releases import root_of
from tests.cli.configurations import ACCEPTED, REFUSED, RULES, Case

if TYPE_CHECKING:
    from pathlib import Path

LIBEXEC = "/usr/libexec/opensmtpd"
CHECK = (f"{BIN}/smtpd-filters", "check", "--config", CONF)
# Logs its arguments and is ready.
SHOW = f"""\
#!{BIN}/python
import os, sys
from smtpd_filters import Filter, run
os.write(2, b"given " + b"|".join(map(os.fsencode, sys.argv[1:])) + b"\\n")
class Show(Filter):
    "Do nothing."
run(Show, [])
"""


@pytest.fixture
def libexec(version: str, tmp_path: Path) -> Path:
    """A copy of the libexec directory of a release."""
    copy = tmp_path / "libexec"
    shutil.copytree(f"{root_of(version)}{LIBEXEC}", copy, symlinks=True)
    for path in (tmp_path, copy):
        path.chmod(0o755)
    return copy


class Prepared(Smtpd):
    """A server with a filter of the operator's own."""

    def _furnish(self) -> None:
        super()._furnish()
        self.path(file_path("show.py")).chmod(0o755)


def checked(server: Smtpd) -> tuple[int, list[str]]:
    """What a check of the server's own file prints."""
    done = server.lab.run(*CHECK, check=False)
    assert done.stderr == b""
    return done.returncode, done.stdout.decode("utf-8", "replace").splitlines()


def test_smtpd_reads_the_same(version: str) -> None:
    """It accepts what we read without an error, and refuses what we find an error in."""
    with Smtpd(version) as server:
        path = server.path(file_path("case.conf"))

        def accepts(case: Case) -> bool:
            path.write_bytes((case.text + RULES).encode())
            test = ("/usr/sbin/smtpd", "-n", "-f", file_path("case.conf"))
            return server.lab.run(*test, check=False).returncode == 0

        assert ACCEPTED
        assert REFUSED
        for case in (*ACCEPTED, *REFUSED):
            if case.newer and version == "6.8":
                continue
            accepted = accepts(case)
            assert accepted == (case.commands is not None), case.name
            assert accepted == (not read(str(path)).errors), case.name


PIECES = ['"', "'", "\\", "\n", " ", "{", "}", ",", "$", "=", "#", "-", "\t", "/", ":", "_", "\\\n"]
PIECES += [
    '"a"',
    "f",
    "filter ",
    "proc ",
    "proc-exec ",
    "chain ",
    "12",
    "$c",
    "user ",
    "(",
    ">",
    "@",
]


def changed(case: Case, chance: random.Random) -> str:
    """The case with some mistakes in its statements on filters."""
    text, listen, rest = case.text.partition("listen")
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text) + 1)
        behind = at + chance.choice([0, 0, chance.randint(1, 3)])
        text = text[:at] + chance.choice(["", text[at : at + 5], *PIECES]) + text[behind:]
    return f"{text}{listen}{rest}"


def test_smtpd_reads_changed_files_the_same(version: str) -> None:
    """What stands in other statements is smtpd's own business."""
    others = ("include", "queue", "table", "action", "socket")
    cases = [
        case
        for case in (*ACCEPTED, *REFUSED)
        if not any(word in case.text for word in others)
        # There 6.8 takes no line end.
        and not (version == "6.8" and "{" in case.text)
    ]
    chance = random.Random(7)  # noqa: S311  # for nothing secret
    with Smtpd(version) as server:
        path = server.path(file_path("case.conf"))
        results = set()
        for _ in range(250):
            text = changed(chance.choice(cases), chance)
            if version == "6.8" and "{" in text:
                continue
            path.write_bytes((text + RULES).encode())
            test = ("/usr/sbin/smtpd", "-n", "-f", file_path("case.conf"))
            accepted = server.lab.run(*test, check=False).returncode == 0
            assert accepted == (not read(str(path)).errors), text
            results.add(accepted)
        assert results == {True, False}


@pytest.mark.parametrize(
    "arguments",
    ["a b", r"'a b' c\ d", r"\"a b\" c\\d", "$0 $((1+1)) `echo x`", "{a,b} *.none #x", "x; exit"],
)
def test_a_command_is_split_the_same(arguments: str, version: str) -> None:
    declared = f'filter "own" proc-exec "{file_path("show.py")} {arguments}"\n'
    listener = 'listen on 127.0.0.1 filter "own"\n'
    with Prepared(
        version, declarations=declared, listeners=listener, files={"show.py": SHOW}
    ) as server:
        given = server.wait_for(r"own: (given .*)")[1]
        status, lines = checked(server)
        assert status == 0
        assert [line.partition("log: ")[2] for line in lines if "log: given" in line] == [given]


def test_what_would_keep_the_server_from_starting(version: str) -> None:
    filters = {
        "fcrdns": filter_command("fcrdns", "--allow", f"file:{file_path('friends')}"),
        "dyndns": filter_command("dyndns", "--action", "junk"),
        "others": "/bin/sh -c true",
    }
    files = {"friends": "192.0.2.1\n", "show.py": SHOW}
    server = Smtpd(version, filters={"fcrdns": filters["fcrdns"]}, files=files)
    with server:
        configuration = server.path(CONF)
        text = configuration.read_text().replace(
            'filter "all" chain',
            f'filter "dyndns" proc-exec "{filters["dyndns"]}"\n'
            'filter "others" proc-exec "/bin/sh -c true"\n'
            'filter "gone" proc-exec "filter-gone" user daemon\n'
            'filter "nobody" proc-exec "/bin/sh" user nonesuch\n'
            'filter "all" chain',
        )
        configuration.write_text(text)
        server.path(file_path("friends")).chmod(0o600)
        # As smtpd itself has it, nothing is wrong.
        server.lab.run("/usr/sbin/smtpd", "-n", "-f", CONF)
        status, lines = checked(server)
    assert status == 1
    at = {
        name: number
        for number, line in enumerate(text.splitlines(), 1)
        for name in re.findall('^filter "(\\w+)" proc', line)
    }
    found = {}
    for line in lines:
        place = re.fullmatch(rf'{CONF}:(\d+): filter "(\w+)": (.*)', line)
        if place:
            assert int(place[1]) == at[place[2]]
            found[place[2]] = place[3]
    user = re.escape(found["dyndns"].removeprefix("ok (as ").removesuffix(")"))
    assert user != "root"
    denied = f"filter-fcrdns: --allow: {file_path('friends')}: Permission denied for user {user}"
    assert found["fcrdns"] == f"{denied} (as {user})"
    assert found["others"] == (
        f"not checked: not a filter of this package; /bin/sh can be run (as {user})"
    )
    assert found["gone"].endswith("/filter-gone: No such file or directory (as daemon)")
    assert found["nobody"] == "no user nonesuch: smtpd will not start"
    assert lines[-1] == f"{CONF}: 5 filters, 3 errors"


def test_a_server_ends_where_a_check_has_an_error(version: str) -> None:
    command = filter_command("dyndns", "--actoin", "junk")
    with pytest.raises(LabError) as raised, Smtpd(version, filters={"dyndns": command}):
        pass
    said = 'filter-dyndns: unknown flag --actoin, did you mean "--action"?'
    assert said in str(raised.value)
    with Smtpd(version) as server:
        path = server.path(CONF)
        declared = f'filter "dyndns" proc-exec "{command}"\n'
        path.write_text(declared + path.read_text())
        status, lines = checked(server)
        assert status == 1
        assert any(line.startswith(f'{CONF}:1: filter "dyndns": {said} (as ') for line in lines)


TABLES = (
    ("x:/etc/passwd", 0o644, "#!/bin/sh\n", "not a file that can be executed"),
    ("x:/etc/passwd", 0o700, "#!/bin/sh\n", "not a file that can be executed"),
    ("x:/etc/passwd", 0o755, "#!/no/such\n", "its interpreter /no/such: No such file or directory"),
    ("proc:/bin/sh", 0o755, "", "No such file or directory; smtpd takes"),
)


@pytest.mark.parametrize("case", TABLES)
def test_a_server_ends_at_a_program_of_a_table(
    case: tuple[str, int, str, str], version: str, libexec: Path
) -> None:
    """`smtpd -n` accepts it, and no rule uses the table."""
    source, mode, text, error = case
    (libexec / "table-x").write_text(text)
    (libexec / "table-x").chmod(mode)
    declared = f"table t {source}\n"
    with (
        pytest.raises(LabError, match="execl: /usr/libexec/opensmtpd/table-"),
        Smtpd(version, declarations=declared, binds={LIBEXEC: libexec}),
    ):
        pass
    with Smtpd(version, binds={LIBEXEC: libexec}) as server:
        path = server.path(CONF)
        path.write_text(declared + path.read_text())
        server.lab.run("/usr/sbin/smtpd", "-n", "-f", CONF)
        status, lines = checked(server)
        assert status == 1
        assert lines[0].startswith(f'{CONF}:1: table "t": {LIBEXEC}/table-')
        assert error in lines[0]


def test_a_program_of_a_table_that_can_be_run(version: str, libexec: Path) -> None:
    """It isn't started. If it is missing, `smtpd -n` finds the same error."""
    program = libexec / "table-x"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with Smtpd(version, binds={LIBEXEC: libexec}) as server:
        path = server.path(CONF)
        path.write_text("table t x:/etc/passwd\n" + path.read_text())
        assert checked(server)[0] == 0
        program.unlink()
        done = server.lab.run("/usr/sbin/smtpd", "-n", "-f", CONF, check=False)
        assert done.returncode == 1
        assert checked(server)[0] == 1


def test_a_check_leaves_the_server_alone(version: str) -> None:
    """What it starts ends, and the filters that run are not asked."""
    with Smtpd(version, filters={"dyndns": filter_command("dyndns")}) as server:
        before = {process.pid for process in server.lab.processes()}
        assert checked(server)[0] == 0
        assert {process.pid for process in server.lab.processes()} == before


def test_a_chain_file_is_checked_as_smtpds_user(version: str) -> None:
    chains = f'[filter.dyndns]\nallow = "file:{file_path("friends")}"\n'
    chains += '[chain.x]\nfilters = ["dyndns"]\n'
    command = filter_command("chain", "--config", file_path("chains.toml"))
    files = {"friends": "192.0.2.1\n", "chains.toml": chains}
    with Smtpd(version, filters={"chain": command}, files=files) as server:
        check = (f"{BIN}/smtpd-filters", "check", "--chains", file_path("chains.toml"))
        done = server.lab.run(*check, check=False)
        assert done.returncode == 0
        assert re.fullmatch(rb"configuration OK: \S+ \(dyndns\), as (?!root)\w+\n", done.stdout)
        server.path(file_path("friends")).chmod(0o600)
        done = server.lab.run(*check, check=False)
        assert done.returncode == 1
        denied = rb"\[filter.dyndns\]: allow: \S+: Permission denied for user (?!root)\w+\n"
        assert re.search(denied, done.stdout)
        # And so says the line of smtpd.conf that runs this file.
        status, lines = checked(server)
        assert status == 1
        assert [line for line in lines if 'filter "chain": filter-chain: ' in line]
