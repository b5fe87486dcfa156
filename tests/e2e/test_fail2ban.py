"""fail2ban with the shipped filter and jail, on a log that a real smtpd writes meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import filter_command
from tests.e2e.sending import GOOD, GOOD6, NAMELESS, attempt, greeted
from tests.e2e.test_limit import guess
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

PROGRAMS = {name: shutil.which(name) or "" for name in ("fail2ban-server", "fail2ban-client")}
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
#: The name of the shipped jail.
JAIL = "smtpd-filters"
#: Seconds for fail2ban to start, or to read a line; the machine may be busy.
PATIENCE = 60.0


class Fail2ban:
    """A server of fail2ban in a folder, whose action only writes addresses into a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "maillog"
        self.banned = folder / "banned"
        self.log.touch()
        self.banned.touch()
        files = {
            "fail2ban.conf": (
                f"[Definition]\nloglevel = INFO\nlogtarget = {folder}/fail2ban.log\n"
                "syslogsocket = auto\ndbfile = None\n"
            ),
            "jail.conf": "[DEFAULT]\nbackend = auto\n",
            # As the operator of a machine without journald changes it. The lab's addresses are
            # those of the machine for fail2ban, which it ignores by default.
            f"jail.d/{JAIL}.local": (
                f"[{JAIL}]\nbackend = polling\nlogpath = {self.log}\nignoreself = false\n"
                "action = note\n"
            ),
            "action.d/note.conf": (
                f"[Definition]\nactionban = echo <ip> >> {self.banned}\nactionunban =\n"
            ),
        }
        for name, text in files.items():
            path = folder / "etc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (folder / "etc" / "filter.d").mkdir()
        shutil.copy(EXAMPLES / "fail2ban-filter.conf", folder / "etc/filter.d" / f"{JAIL}.conf")
        shutil.copy(EXAMPLES / "fail2ban-jail.conf", folder / "etc/jail.d" / f"{JAIL}.conf")

    def _words(self, program: str, *words: str) -> list[str]:
        flags = ("-c", str(self.folder / "etc"), "-s", f"{self.folder}/socket")
        return [PROGRAMS[program], *flags, "-p", f"{self.folder}/pid", *words]

    @contextmanager
    def running(self) -> Iterator[None]:
        server = subprocess.Popen(
            self._words("fail2ban-server", "-f", "start"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            until = time.monotonic() + PATIENCE
            while JAIL not in self.client("status"):
                assert server.poll() is None, server.communicate()[0].decode()
                assert time.monotonic() < until
            yield
        finally:
            server.terminate()
            server.communicate()

    def client(self, *words: str) -> str:
        """Return what fail2ban-client prints."""
        done = subprocess.run(
            self._words("fail2ban-client", *words), capture_output=True, text=True, check=False
        )
        return done.stdout

    def wait(self, *addresses: str) -> None:
        """Wait until these addresses are banned, each once."""
        until = time.monotonic() + PATIENCE
        while sorted(self.banned.read_text().split()) != sorted(addresses):
            assert time.monotonic() < until, self.banned.read_text() + self.client("status", JAIL)


@contextmanager
def syslog(server: Smtpd, path: Path) -> Iterator[None]:
    """Write the server's log into a file while it grows, as syslog does."""
    ended = threading.Event()

    def write() -> None:
        at = 0
        with path.open("a") as file:
            while not ended.is_set():
                lines = server.log[at:]
                at += len(lines)
                stamp = time.strftime("%b %e %H:%M:%S")
                file.writelines(f"{stamp} mx smtpd[4711]: {line}\n" for line in lines)
                file.flush()
                ended.wait(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def test_who_guesses_is_banned(start: Start, tmp_path: Path) -> None:
    need(None if all(PROGRAMS.values()) else "fail2ban is not installed")
    rules = (
        "client failed-auth 2/1h",
        "client refused-recipients 2/1h",
        "sender messages 1/1h",
    )
    command = filter_command("limit", *(f"--limit={each}" for each in rules), "--store", "memory:")
    server = start(filters={"limit": command})
    fail2ban = Fail2ban(tmp_path)
    with syslog(server, fail2ban.log), fail2ban.running():
        # A limit that says nothing about guesses bans nobody.
        assert [attempt(server, GOOD).stage for _ in range(2)] == ["", "MAIL"]
        server.wait_for("limit breach .*sender messages")
        with server.connection(GOOD6) as connection:
            greeted(connection)
            assert connection.starttls() is not None
            assert connection.command("EHLO client.example") is not None
            replies = [guess(connection, 'x" address=192.0.2.66', "wrong") for _ in range(3)]
            assert replies[-1].startswith("501 ")
        fail2ban.wait(GOOD6)
        for number in range(3):
            attempt(
                server,
                NAMELESS,
                sender=f"g{number}@good.example",
                recipients=[f"x{number}@local.example"],
            )
        fail2ban.wait(GOOD6, NAMELESS)
        assert NAMELESS in fail2ban.client("status", JAIL)
