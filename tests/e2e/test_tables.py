"""Remote tables of a filter under a real server: SQLite, slapd, a table program, each failing."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import filter_command, versions
from smtpd_filters.testing.server.layout import BIN, file_path
from smtpd_filters.testing.server.releases import root_of
from tests.e2e.sending import ALICE, BOB, GOOD, SENDER, greeted, logged
from tests.e2e.slapd import BASE, SLAPD, Slapd, person
from tests.effort import brief
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

PROGRAM = Path(__file__).parents[1] / "tables" / "remote" / "table_program.py"
LIBEXEC = "/usr/libexec/opensmtpd"
TRAPPED = "550 5.7.1 Refused by local policy"
#: Seconds for a source to be asked again.
PATIENCE = 30.0
FAILED = "451 4.4.3 Temporary failure, please try again later"


def rcpt(start: Start, table: str, files: dict[str, str | bytes]) -> Smtpd:
    command = filter_command(
        *("rcpt", "--traps", table, "--trapped", "reject", "--on-error", "tempfail")
    )
    return start(filters={"rcpt": command}, files=files)


def says(server: Smtpd, recipient: str) -> str:
    with greeted(server.connection(GOOD)) as connection:
        connection.command(f"MAIL FROM:<{SENDER}>")
        reply = connection.command(f"RCPT TO:<{recipient}>")
        assert reply is not None
        return f"{reply.code} {reply.text}"


def soon(server: Smtpd, recipient: str, reply: str) -> None:
    """Ask until the reply is this one: a source that has failed rests for 2 s."""
    until = monotonic() + PATIENCE
    while not (said := says(server, recipient)).startswith(reply):
        assert monotonic() < until, said
        sleep(0.1)


def database(*traps: str) -> bytes:
    """A database with a table of traps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE traps (address TEXT PRIMARY KEY)")
        connection.executemany("INSERT INTO traps VALUES (?)", [(trap,) for trap in traps])
        connection.commit()
        connection.close()
        return path.read_bytes()


def test_sqlite(start: Start) -> None:
    lines = (
        f"dbpath {file_path('traps.db')}",
        "query_mailaddr SELECT address FROM traps WHERE address = ?",
        *("cache 0", "cache_missing 0"),
    )
    files: dict[str, str | bytes] = {"sqlite.conf": "\n".join(lines), "traps.db": database(ALICE)}
    server = rcpt(start, f"sqlite:{file_path('sqlite.conf')}", files)
    assert says(server, ALICE) == TRAPPED
    assert says(server, BOB).startswith("250 ")
    server.write("traps.db", database(BOB))
    assert says(server, BOB) == TRAPPED
    server.write("traps.db", b"not a database")
    assert says(server, BOB) == FAILED
    server.path(file_path("traps.db")).unlink()
    assert says(server, ALICE) == FAILED
    server.write("traps.db", database())
    soon(server, BOB, "250 ")
    assert server.alive()


@contextmanager
def directory(server: Smtpd) -> Iterator[Slapd]:
    """A slapd whose socket is among the files of a server."""
    folder = Path(tempfile.mkdtemp(prefix="ldap"))
    link = folder / "inside"
    link.symlink_to(server.path(file_path("x")).parent)
    try:
        with Slapd(folder, person("alice", [ALICE]), at=link / "ldapi") as running:
            running.socket.chmod(0o777)
            yield running
    finally:
        shutil.rmtree(folder)


def test_ldap(start: Start) -> None:
    need("no slapd" if SLAPD is None else None)
    url = "ldapi://" + file_path("ldapi").replace("/", "%2F")
    configuration = (
        f"url {url}\nbasedn {BASE}\nmailaddr_filter (mail=%u)\n"
        f"cache 0\ncache_missing 0\ntimeout {brief(1.5) * 1000:.0f}ms\n"
    )
    server = rcpt(start, f"ldap:{file_path('ldap.conf')}", {"ldap.conf": configuration})
    assert says(server, ALICE) == FAILED
    with directory(server) as slapd:
        soon(server, ALICE, TRAPPED)
        assert says(server, BOB).startswith("250 ")
        slapd.pause()
        assert says(server, BOB) == FAILED
        slapd.resume()
        soon(server, ALICE, TRAPPED)
    assert says(server, ALICE) == FAILED
    assert server.alive()
    assert len(logged(server, "unavailable:", 3)) == 3


def test_a_table_program(start: Start) -> None:
    files: dict[str, str | bytes] = {"program.py": PROGRAM.read_bytes()}
    server = rcpt(start, f"proc:python3 {file_path('program.py')}", files)
    assert says(server, BOB).startswith("250 ")
    assert says(server, "trap@example.org") == TRAPPED
    assert len(server.find("program.py")) >= 1
    server.terminate()
    assert server.find("program.py") == []


#: The releases whose table programs speak the line protocol.
LINE_PROTOCOL = [each for each in versions() if not each.startswith("6.")]


def table_program(version: str, name: str) -> str:
    """Return the path of a table program of the distribution."""
    path = f"{LIBEXEC}/table-{name}"
    need(
        None if Path(f"{root_of(version)}{path}").exists() else f"no {path} for OpenSMTPD {version}"
    )
    return path


@pytest.mark.parametrize("version", LINE_PROTOCOL, indirect=True)
def test_table_sqlite_of_the_distribution(version: str, start: Start) -> None:
    lines = (
        f"dbpath {file_path('traps.db')}",
        "query_mailaddr SELECT address FROM traps WHERE address = ?",
    )
    files: dict[str, str | bytes] = {"sqlite.conf": "\n".join(lines), "traps.db": database(ALICE)}
    path = table_program(version, "sqlite")
    server = rcpt(start, f"proc:{path} {file_path('sqlite.conf')}", files)
    assert says(server, ALICE) == TRAPPED
    assert says(server, BOB).startswith("250 ")
    [program] = [each for each in server.find("table-sqlite") if each.arguments[0] == path]
    os.kill(program.pid, signal.SIGKILL)
    soon(server, "bob+news@local.example", "250 ")
    assert says(server, ALICE) == TRAPPED
    server.terminate()
    assert server.find("table-sqlite") == []


class _Socketmap(StreamRequestHandler):
    """A server for table-socketmap(5): a line with table and key, and one with the reply."""

    def handle(self) -> None:
        for line in self.rfile:
            key = line.decode().split()[-1]
            self.wfile.write(b"OK bob@local.example\n" if key == ALICE else b"NOTFOUND \n")


@contextmanager
def socketmap(server: Smtpd) -> Iterator[None]:
    """A socketmap server whose socket is among the files of a server."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "inside"
        link.symlink_to(server.path(file_path("x")).parent)
        path = link / "socketmap"
        with ThreadingUnixStreamServer(str(path), _Socketmap) as running:
            running.block_on_close = False  # for the connection that the program keeps
            path.chmod(0o777)
            Thread(target=running.serve_forever, daemon=True).start()
            try:
                yield
            finally:
                running.shutdown()
                path.unlink()


@pytest.mark.parametrize("version", LINE_PROTOCOL, indirect=True)
def test_table_socketmap_of_the_distribution(version: str, start: Start) -> None:
    """It offers a look-up, but no check: it is for mappings."""
    table = f"proc:{table_program(version, 'socketmap')} {file_path('socketmap')}"
    command = filter_command("rewrite", "--recipient-canonical", table, "--on-error", "tempfail")
    server = start(filters={"rewrite": command})
    assert says(server, ALICE) == FAILED
    with socketmap(server):
        soon(server, ALICE, "250 ")
        soon(server, "bob+news@local.example", "250 ")
    logged(server, f'rewrite rcpt-to result=rewrite reason="{ALICE} -> {BOB}"', 1)
    assert server.alive()


SCRIPT = f"""#!/bin/sh
exec {BIN}/python -c 'from smtpd_filters.cli import main; raise SystemExit(main())' \\
    table serve "sqlite:$1" --kind domains --service domain
"""


@pytest.mark.parametrize("version", LINE_PROTOCOL, indirect=True)
def test_our_table_is_one_of_smtpd(version: str, start: Start, tmp_path: Path) -> None:
    """smtpd asks `smtpd-filters table serve`, and survives that its database goes away."""
    libexec = tmp_path / "libexec"
    shutil.copytree(f"{root_of(version)}{LIBEXEC}", libexec, symlinks=True)
    script = libexec / "table-names"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    for path in (tmp_path, libexec):
        path.chmod(0o755)
    lines = (
        f"dbpath {file_path('domains.db')}",
        "query_domain SELECT address FROM traps WHERE address = ?",
        *("cache 0", "cache_missing 0", "timeout 500ms"),
    )
    server = start(
        files={"sqlite.conf": "\n".join(lines), "domains.db": database("local.example")},
        binds={LIBEXEC: libexec},
        declarations=f"table ours names:{file_path('sqlite.conf')}",
        matches='match from any for domain <ours> action "deliver"\n',
    )
    assert says(server, ALICE).startswith("250 ")
    assert says(server, "x@other.example").startswith("550 ")
    server.write("domains.db", database())
    assert says(server, ALICE).startswith("550 ")
    server.path(file_path("domains.db")).unlink()
    assert says(server, ALICE).startswith("4")
    server.write("domains.db", database("local.example"))
    soon(server, ALICE, "250 ")
    assert server.alive()
    server.terminate()
    assert server.find("table serve") == []
