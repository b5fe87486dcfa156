"""The Dovecot of the end-to-end tests: Debian's, with Debian's configuration, in a lab.

It is set up exactly as in `packaging/dovecot/README`: the shipped files are installed where it
says, and the settings of the script are those of an operator. Beside Debian's files there are two
of the tests: users and their mail, and the addresses and the log.
"""

from __future__ import annotations

import contextlib
import functools
import imaplib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from smtpd_filters.testing.server import Lab, LabError
from smtpd_filters.testing.server.lab import ENVIRONMENT, send_signal, wait_ended
from smtpd_filters.testing.server.output import Output
from smtpd_filters.testing.server.programs import PACKAGE, Programs
from smtpd_filters.testing.server.releases import release_root

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

SHIPPED = PACKAGE.parent / "packaging" / "dovecot"
# Each version, and the release of Debian whose package it is.
VERSIONS = {"2.3": "bookworm", "2.4": "trixie"}
SIEVE = ("report-spam.sieve", "report-ham.sieve")
SCRIPT = "rspamd-learn"
# As the server sees it.
ETC = "/etc/dovecot"
LEARN = f"{ETC}/learn"
PASSWORD_FILE = f"{LEARN}/password"
BIN = "/usr/local/sbin"  # in the PATH of each shell and each service manager
MAIL, STATE = "/srv/mail", "/srv/state"
PORT = 143
PASSWORD = "secret"  # noqa: S105  # of a server that lives for a test
VMAIL = 2000  # whose all mail is
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0

# Where mail is, and a mailbox beside Junk from which one learns also what is appended: the README
# says how.
LAB = {
    "2.3": f"""\
mail_location = maildir:~/Maildir
mail_privileged_group =
disable_plaintext_auth = no
ssl = no
namespace inbox {{
  mailbox Papierkorb {{
    special_use = \\Trash
  }}
}}
plugin {{
  imapsieve_mailbox3_name = Reported
  imapsieve_mailbox3_causes = COPY APPEND
  imapsieve_mailbox3_before = file:{LEARN}/report-spam.sieve
}}
""",
    "2.4": f"""\
mail_driver = maildir
mail_path = ~/Maildir
mail_inbox_path =
mail_privileged_group =
auth_allow_cleartext = yes
ssl = no
namespace inbox {{
  mailbox Papierkorb {{
    special_use = \\Trash
  }}
}}
mailbox Reported {{
  sieve_script learn-reported {{
    type = before
    cause = copy append
    path = {LEARN}/report-spam.sieve
  }}
}}
""",
}
BOTH = f"""\
protocols = imap
listen = 127.0.0.1
log_path = /dev/stderr
state_dir = {STATE}
"""
# In the place of PAM and of the system's users: anybody, with PASSWORD.
USERS = {
    "2.3": f"""\
passdb {{
  driver = static
  args = password={PASSWORD}
}}
userdb {{
  driver = static
  args = uid={VMAIL} gid={VMAIL} home={MAIL}/%u
}}
""",
    "2.4": f"""\
passdb static {{
  password = {PASSWORD}
}}
userdb static {{
  fields {{
    uid = {VMAIL}
    gid = {VMAIL}
    home = {MAIL}/%{{user}}
  }}
}}
""",
}


@functools.cache
def unavailable(version: str) -> str | None:
    """Return in one line why this version can't be run here, None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it takes Linux and root"
    root = release_root(VERSIONS[version])
    for needed in ("usr/sbin/dovecot", "usr/lib/dovecot/imap", "usr/bin/sievec"):
        if not (root / needed).exists():
            return f"no {root / needed} (the packages dovecot-imapd and dovecot-sieve)"
    shown = subprocess.run(
        ["chroot", root, "/usr/sbin/dovecot", "--version"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if not shown.stdout.startswith(f"{version}."):
        return f"the Dovecot of {root} is not {version}"
    return None


class Imap(imaplib.IMAP4):
    """A client in the lab's network, logged in; a context manager.

    Each command that isn't answered with OK raises `imaplib.IMAP4.error`.
    """

    def __init__(self, lab: Lab, user: str) -> None:
        self._lab = lab
        super().__init__("127.0.0.1", PORT)
        self.login(user, PASSWORD)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return self._lab.connect(PORT, timeout=timeout or 60)

    def put(self, mailbox: str, message: bytes) -> None:
        """Append a message, byte for byte; the mailbox is made if there is none."""
        self.create(_quoted(mailbox))
        # imaplib's own append would make CRLF of each line end.
        self.literal = message  # type: ignore[assignment]
        self._done(*self._simple_command("APPEND", _quoted(mailbox)))

    def move(self, source: str, target: str, messages: str = "1", how: str = "MOVE") -> None:
        """Move messages from one mailbox to another, which is made if there is none."""
        self.create(_quoted(target))
        self._done(*self.select(_quoted(source)))
        self._done(*self._simple_command(how, messages, _quoted(target)))

    def count(self, mailbox: str) -> int:
        """Return how many messages are in a mailbox."""
        status, [number] = self.select(_quoted(mailbox))
        self._done(status, [number])
        return int(cast("bytes", number))

    def _done(self, status: str, said: object) -> None:
        if status != "OK":
            raise self.error(f"{status} {said}")


def _quoted(mailbox: str) -> str:
    """Return a mailbox's name as RFC 3501 has it."""
    return f'"{mailbox}"'


class Dovecot:
    """A server beside the others of a lab; a context manager.

    version   one of VERSIONS
    lab       the lab in whose network it listens
    settings  what is set in rspamd-learn
    password  what PASSWORD_FILE holds

    Raises LabError with the log if it doesn't start.
    """

    def __init__(
        self, version: str, lab: Lab, *, settings: Mapping[str, str], password: str
    ) -> None:
        self.version = version
        self._settings = dict(settings)
        self._password = password
        self._network = lab
        self._root = release_root(VERSIONS[version])
        self._programs = Programs(self._root)
        self._output = Output()
        self.log = self._output.lines
        self._closing = contextlib.ExitStack()
        self._folder = Path()
        self.lab = lab

    def __enter__(self) -> Self:
        if reason := unavailable(self.version):
            raise LabError(reason)
        with contextlib.ExitStack() as stack:
            self._folder = Path(tempfile.mkdtemp(prefix="dovecot-"))
            stack.callback(shutil.rmtree, self._folder)
            self._furnish()
            self.lab = Lab(
                root=self._root,
                binds={
                    **self._programs.binds,
                    ETC: self._folder / "etc",
                    BIN: self._folder / "bin",
                },
                exposed=self._programs.exposed,
                directories={MAIL: 0o777, STATE: 0o755},
                beside=self._network,
            )
            stack.enter_context(self.lab)
            self._compile()
            stack.callback(self._end)
            self._start()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @contextlib.contextmanager
    def client(self, user: str) -> Iterator[Imap]:
        """Give a client that is this user's; in the end it logs out, and all is in the log."""
        since = len(self.log)
        client = Imap(self.lab, user)
        try:
            yield client
        finally:
            client.logout()
            self.wait_for(rf"imap\({re.escape(user)}\).* Disconnected: ", since=since)

    @contextlib.contextmanager
    def script(self, **settings: str) -> Iterator[None]:
        """Have other settings in rspamd-learn for a while."""
        script = self.etc("learn") / SCRIPT
        before = script.read_text()
        script.write_text(with_settings(before, settings))
        try:
            yield
        finally:
            script.write_text(before)

    def etc(self, name: str) -> Path:
        """Return where this side finds a file of ETC, which can be changed here."""
        return self._folder / "etc" / name

    def wait_for(self, pattern: str, timeout: float = 60, *, since: int = 0) -> re.Match[str]:
        """Wait for a line of the log in which the regular expression is found; return the match.

        Lines before number `since` (take `len(server.log)`) don't count. Raises LabError.
        """
        found = self._output.find(pattern, timeout, since)
        if found is None:
            raise LabError(f"not in the log of Dovecot: {pattern}\n" + "\n".join(self.log[-50:]))
        return found

    def complaints(self, since: int) -> list[str]:
        """Return the lines of the log, from this number on, that tell of something wrong."""
        return [line for line in self.log[since:] if re.search(r": (Warn|Err|Fatal|Panic)", line)]

    # -- set-up ------------------------------------------------------------------------------------

    def _furnish(self) -> None:
        stock, etc = self._root / "usr/share/dovecot", self._folder / "etc"
        self._folder.chmod(0o755)
        shutil.copytree(stock / "conf.d", etc / "conf.d")
        shutil.copy(stock / "dovecot.conf", etc)
        (etc / "private").mkdir()
        for name in ("dovecot.key", "dovecot.pem"):  # of the configuration; nobody uses them
            (etc / "private" / name).touch()
        (etc / "conf.d/auth-system.conf.ext").write_text(USERS[self.version])
        (etc / "conf.d/98-lab.conf").write_text(LAB[self.version] + BOTH)
        # The README's first step.
        learn = etc / "learn"
        learn.mkdir()
        for name in SIEVE:
            shutil.copy(SHIPPED / name, learn)
        shutil.copy(SHIPPED / SCRIPT, learn)
        (learn / SCRIPT).write_text(with_settings((learn / SCRIPT).read_text(), self._settings))
        shutil.copy(SHIPPED / f"dovecot-{self.version}.conf", etc / "conf.d/95-learn.conf")
        # And its third.
        password = learn / "password"
        password.write_text(self._password)
        password.chmod(0o640)
        os.chown(password, 0, VMAIL)
        # Where it is when smtpd-filters has been installed.
        (self._folder / "bin").mkdir()
        program = self._folder / "bin/smtpd-filters"
        program.write_text(self._programs.launchers()[program.name])
        program.chmod(0o755)

    def _compile(self) -> None:
        self.lab.run("mount", "-o", "remount,bind,rw", ETC)
        for name in SIEVE:
            self.lab.run("sievec", f"{LEARN}/{name}")
        self._programs.compile(self.lab)

    def _start(self) -> None:
        process = self.lab.spawn(
            *("/usr/sbin/dovecot", "-F"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Without what moves the clock: it complains of files that are not of its own time.
            env=ENVIRONMENT,
        )
        self._output.follow(process.stdout, "dovecot-log")
        self.wait_for("starting up for imap", START_TIMEOUT)

    def _end(self) -> None:
        processes = self.lab.processes()
        send_signal(processes, signal.SIGKILL)
        wait_ended(processes, STOP_TIMEOUT)
        self._output.close()


def with_settings(script: str, settings: Mapping[str, str]) -> str:
    """Return rspamd-learn with settings at its top."""
    for name, value in settings.items():
        script, found = re.subn(rf"(?m)^{name}=.*", lambda _, new=f"{name}={value}": new, script)  # type: ignore[misc]
        assert found == 1
    return script
