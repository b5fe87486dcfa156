"""The lines of docs/migrating.md for users in LDAP and in SQLite, under real servers.

smtpd, its filters, slapd and Debian's table-sqlite get what the page has, except for what a lab
must name otherwise: interfaces, certificates, the delivery, and the place of the directory.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import filter_command
from smtpd_filters.testing.server.credentials import hashes
from smtpd_filters.testing.server.layout import BIN, FIRST_UID, MAIL, file_path
from smtpd_filters.testing.server.releases import root_of
from tests.e2e.sending import ALICE, BOB, GOOD6, NAMELESS, ZONE, attempt
from tests.e2e.slapd import BASE, PASSWORD, SLAPD, Slapd, person
from tests.e2e.test_tables import LIBEXEC, LINE_PROTOCOL, table_program
from tests.needed import need
from tests.test_moving import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Start

pytestmark = pytest.mark.parametrize("version", LINE_PROTOCOL, indirect=True)
TRAP = "trap@local.example"
CHAINS = "chains.toml"
PLACES = {"/etc/mail/": file_path("")}
TOOL = f"{BIN}/python -c 'from smtpd_filters.cli import main; raise SystemExit(main())'"


def blocks(heading: str) -> list[str]:
    """The blocks of a part of the page, in their order, with the places of files of the lab."""
    found = re.search(rf"(?ms)^### {heading}\n(.*?)(?=^##)", PAGE)
    assert found
    texts = re.findall(r"(?ms)^```\w*\n(.*?)^```$", found[1])
    return [each.replace("/etc/mail/", file_path("")) for each in texts]


def lines(text: str, pattern: str) -> str:
    """The lines that begin so."""
    return "".join(f"{line}\n" for line in text.splitlines() if re.match(pattern, line))


# -- users in LDAP -------------------------------------------------------------------------------

LDIF = (
    person("alice", [ALICE])
    + person("bob", [BOB])
    + f"""
dn: cn=mail,{BASE}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: mail
userPassword: {PASSWORD}

dn: ou=domains,{BASE}
objectClass: organizationalUnit
objectClass: domainRelatedObject
ou: domains
associatedDomain: local.example
"""
)


@contextmanager
def directory(link: Path) -> Iterator[Slapd]:
    """A slapd whose socket is in a folder of the server's."""
    folder = Path(tempfile.mkdtemp(prefix="ldap"))
    try:
        with Slapd(folder, LDIF, at=link / "ldapi") as running:
            running.socket.chmod(0o777)
            yield running
    finally:
        shutil.rmtree(folder)


def test_users_in_ldap(version: str, start: Start, tmp_path: Path) -> None:
    need("no slapd" if SLAPD is None else None)
    configuration, script, conf, chain = blocks("Postfix and Amavis with users in LDAP")
    libexec, run = tmp_path / "libexec", Path(tempfile.mkdtemp(prefix="run"))
    shutil.copytree(f"{root_of(version)}{LIBEXEC}", libexec, symlinks=True)
    program = libexec / "table-directory"
    program.write_text(script.replace("smtpd-filters table", f"{TOOL} table"))
    program.chmod(0o755)
    for path in (tmp_path, libexec, run):
        path.chmod(0o755)
    there, here = "url ldaps://ldap.example.org\n", "url ldapi://%2Frun%2Fldap%2Fldapi\n"
    assert configuration.startswith(there)
    chain = f'[chain.inbound]\nfilters = ["mailfrom"]\n{chain}'
    action = f'action "inbound" maildir "{MAIL}/%{{user.username}}" userbase <users> virtual'
    assert 'action "inbound" lmtp "/run/dovecot/lmtp" virtual' in conf
    try:
        with directory(run) as slapd:
            server = start(
                zone=ZONE,
                filters={
                    "inbound": filter_command(
                        "chain", "--config", file_path(CHAINS), "--chain=inbound"
                    )
                },
                files={
                    CHAINS: chain,
                    "ldap.conf": configuration.replace(there, here) + "cache 0\ncache_missing 0\n",
                    "ldap.password": PASSWORD,
                },
                binds={LIBEXEC: libexec, "/run/ldap": run},
                declarations=lines(conf, "table ")
                + lines(conf, "action ").replace(
                    'action "inbound" lmtp "/run/dovecot/lmtp" virtual', action
                ),
                matches=lines(conf, "match "),
            )
            assert attempt(server).stage == ""
            assert len(server.maildir("alice")) == 1
            assert attempt(server, recipients=["carol@local.example"]).code == 524
            assert attempt(server, recipients=["alice@other.example"]).code == 550
            assert attempt(server, sender=BOB).stage == "MAIL"
            own = f"From: {ALICE}\r\nSubject: x\r\n\r\nx\r\n".encode()
            other = own.replace(b"alice", b"bob")
            for sender, message, stage in (
                (ALICE, own, ""),
                (BOB, own, "MAIL"),
                (ALICE, other, "."),
            ):
                sent = attempt(server, GOOD6, sender=sender, message=message, user="alice")
                assert sent.stage == stage
            slapd.stop()
            assert attempt(server, GOOD6, sender=ALICE, message=own, user="alice").code in {
                421,
                451,
            }
            assert attempt(server).code in {421, 424, 451}
            slapd.start()
            slapd.socket.chmod(0o777)
        assert server.alive()
    finally:
        shutil.rmtree(run)


# -- users in SQLite -----------------------------------------------------------------------------


def database(path: Path) -> None:
    """A database for the queries of the page."""
    uid = str(FIRST_UID)
    [password] = hashes(("alice",))
    tables: dict[str, list[tuple[str, ...]]] = {
        "domains (name)": [("local.example",)],
        "aliases (address, target)": [(ALICE, "alice"), (TRAP, "alice")],
        "users (name, password, uid, gid, home)": [("alice", password, uid, uid, f"{MAIL}/alice")],
        "senders (user, address)": [("alice", ALICE)],
        "traps (address)": [(TRAP,)],
        "trusted (network)": [(f"{NAMELESS}/32",)],
    }
    connection = sqlite3.connect(path)
    for table, rows in tables.items():
        connection.execute(f"CREATE TABLE {table}")
        marks = ", ".join("?" * len(rows[0]))
        name = table.split()[0]
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)  # noqa: S608
    connection.commit()
    connection.close()


def test_users_in_sqlite(version: str, start: Start, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    table_program(version, "sqlite")
    configuration, conf, chain = blocks("OpenSMTPD with users in SQLite")
    data = tmp_path / "mail.db"
    database(data)
    place = "dbpath /run/mail/mail.db"
    assert configuration.startswith(f"dbpath {file_path('mail.db')}\n")
    [command] = re.findall(r'^filter "inbound" proc-exec "filter-(\S+) (.*)"$', conf, re.MULTILINE)
    listeners = lines(conf, "listen ")
    for there, here in (
        (
            "on egress port submission tls-require pki mail.example.org auth ",
            "on ::1 port 25 $tls auth-optional ",
        ),
        ("on egress ", "on 127.0.0.1 port 25 "),
    ):
        assert there in listeners
        listeners = listeners.replace(there, here)
    assert '"/var/vmail/' in conf
    server = start(
        zone=ZONE,
        filters={
            "inbound": filter_command(
                command[0], "--config", file_path(CHAINS), *command[1].split()
            )
        },
        files={
            CHAINS: chain,
            "sqlite.conf": configuration.replace(f"dbpath {file_path('mail.db')}", place),
        },
        binds={"/run/mail": tmp_path},
        declarations=lines(conf, "table |action ").replace("/var/vmail", MAIL),
        listeners=listeners,
        matches=lines(conf, "match "),
    )
    assert attempt(server).stage == ""
    assert len(server.maildir("alice")) == 1
    assert attempt(server, recipients=["carol@local.example"]).code == 524
    assert attempt(server, recipients=["alice@other.example"]).code == 550
    assert attempt(server, recipients=[TRAP]).said == "550 5.7.1 Refused by local policy"
    assert attempt(server, NAMELESS, recipients=[TRAP]).stage == ""
    assert attempt(server, sender=ALICE).stage == "MAIL"
    for sender, stage in ((ALICE, ""), ("alice@elsewhere.example", "MAIL")):
        assert attempt(server, GOOD6, sender=sender, user="alice").stage == stage
    connection = sqlite3.connect(data)
    connection.execute("INSERT INTO aliases VALUES ('carol@local.example', 'alice')")
    connection.commit()
    connection.close()
    assert attempt(server, recipients=["carol@local.example"]).stage == ""
