"""Remote tables of a filter under a real server: SQLite, slapd, a table program, each failing."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import filter_command
from smtpd_filters.testing.server.layout import file_path
from tests.e2e.sending import ALICE, BOB, GOOD, SENDER, greeted
from tests.e2e.slapd import BASE, SLAPD, Slapd, person
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

PROGRAM = Path(__file__).parents[1] / "tables" / "remote" / "table_program.py"
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
        "cache 0\ncache_missing 0\ntimeout 500ms\n"
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
    server.terminate()
    assert sum("unavailable:" in line for line in server.log) == 3


def test_a_table_program(start: Start) -> None:
    files: dict[str, str | bytes] = {"program.py": PROGRAM.read_bytes()}
    server = rcpt(start, f"proc:python3 {file_path('program.py')}", files)
    assert says(server, BOB).startswith("250 ")
    assert says(server, "trap@example.org") == TRAPPED
    assert len(server.find("program.py")) >= 1
    server.terminate()
    assert server.find("program.py") == []
