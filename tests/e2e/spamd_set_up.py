"""A real spamd for the end-to-end tests: Debian's daemon and rules, with its own configuration.

    with Lab(ZONE) as lab, Spamd(lab, users={"anna": "report_safe 1"}) as daemon:
        command = filter_command("spamd", "--spamd", daemon.server)

It listens on the loopback of the lab's network, and on a unix socket, which programs outside of the
lab reach as well; its name server is the lab's. Each user whom a request names has preferences and
a classifier of their own, so one daemon serves a module of tests. It ends with the context or with
this process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Self

from smtpd_filters.testing.server.lab import (
    PATH,
    Lab,
    LabError,
    Process,
    environment,
    send_signal,
    wait_ended,
    wait_reaped,
)
from smtpd_filters.testing.server.output import Output
from tests.e2e.sending import SENDER

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping, Sequence

    from smtpd_filters.testing.dns import DNSServer

USER = "nobody"
LOOPBACK = "127.0.0.1"
#: Of each message, which is the same whenever it is made.
DATE = formatdate()
#: Seconds that the daemon may take for anything; it starts in two.
PATIENCE = 60.0
#: The generic test for unsolicited bulk email, in two parts, so that no scanner finds it here.
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
#: A domain that lists of domains in messages have for tests, and its entry in one of them.
LISTED = "surbl-org-permanent-test-point.com"
URIBL = {f"{LISTED}.multi.uribl.com": {"A": "127.0.0.2", "TXT": "Blacklisted"}}
#: Quick and alike everywhere: no other tests of the network than by DNS, and none that judge how a
#: test's mail looks.
CONFIGURATION = """\
dns_available yes
dns_server {nameserver}
rbl_timeout 2 1
skip_rbl_checks 0
use_bayes 1
bayes_auto_learn 0
bayes_min_ham_num 1
bayes_min_spam_num 1
bayes_auto_expire 0
report_safe 0
header LOCAL_SPAM X-Test-Spam =~ /yes/
score LOCAL_SPAM 6.5
header LOCAL_SENDER EnvelopeFrom =~ /^someone\\@good\\.example$/
score LOCAL_SENDER 0.01
header LOCAL_CLIENT X-Spam-Relays-External =~ /^\\[ ip=192\\.0\\.2\\.9 .* helo=client\\.example /
score LOCAL_CLIENT 0.01
body LOCAL_SLOW /^(?:(?:(a+)+)+)+\\1b/
score LOCAL_SLOW 0.01
score RCVD_ILLEGAL_IP 0
"""
#: The body of a message for which SpamAssassin takes longer than any limit.
SLOW = b"a" * 200 + b"\r\n"


def unavailable() -> str | None:
    """Return in one line why spamd can't run here, or None if it can."""
    if os.geteuid() != 0:
        return "root is required"
    if shutil.which("spamd", path=PATH) is None:
        return "no spamd (install the package)"
    return None


class Spamd:
    """A context manager that runs a daemon; the module describes it.

    `users` are the preferences of users by name; `cf` are further lines of the configuration, and
    `plugins` modules beside it, by name. Raises LabError with the log if the daemon doesn't start.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each with a default
        self,
        lab: Lab,
        *,
        users: Mapping[str, str] | None = None,
        cf: Sequence[str] = (),
        plugins: Mapping[str, str] | None = None,
        tell: bool = True,
        children: int = 2,
    ) -> None:
        self._lab = lab
        self._users = dict(users or {})
        self._cf = cf
        self._plugins = dict(plugins or {})
        self._options = ["--allow-tell"] if tell else []
        self._children = children
        self._output = Output()
        self.log = self._output.lines
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = contextlib.ExitStack()
        self.directory = Path()
        self.port = 0

    @property
    def server(self) -> str:
        """Its address in the lab."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def socket(self) -> Path:
        """Its socket."""
        return self.directory / "socket"

    @property
    def dns(self) -> DNSServer:
        """The name server that the daemon uses."""
        return self._lab.dns

    def __enter__(self) -> Self:
        if reason := unavailable():
            raise LabError(reason)
        with contextlib.ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix="spamd-"))
            stack.callback(shutil.rmtree, self.directory)
            # The lab's network, processes of its own, and the system's files.
            self._inside = stack.enter_context(Lab(beside=self._lab))
            stack.callback(self.kill)
            kept = stack.enter_context(self._lab.new_socket())
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((LOOPBACK, 0))
            self.port = kept.getsockname()[1]
            self._set_up()
            self.start()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _set_up(self) -> None:
        nameserver = f"[{self.dns.address}]:{self.dns.port}"
        (self.directory / "site").mkdir()
        for path in Path("/etc/spamassassin").glob("*.pre"):
            (self.directory / "site" / path.name).write_bytes(path.read_bytes())
        text = CONFIGURATION.format(nameserver=nameserver)
        (self.directory / "site/local.cf").write_text("\n".join([text, *self._cf, ""]))
        for name, text in self._plugins.items():
            (self.directory / "site" / name).write_text(text)
        for name, preferences in {"": "", **self._users}.items():
            home = self.directory / "users" / (name or "nobody")
            home.mkdir(parents=True)
            (home / "user_prefs").write_text(preferences + "\n")
        entry = pwd.getpwnam(USER)
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        self.directory.chmod(0o755)

    def start(self) -> None:
        """Start it, after `stop` or `kill` at the same address, and wait until it listens."""
        since = len(self.log)
        self.socket.unlink(missing_ok=True)
        arguments = [
            "spamd", "--nouser-config", f"--virtual-config-dir={self.directory}/users/%u",
            "--listen", self.server, "--listen", str(self.socket), "--socketmode", "0666",
            "--siteconfigpath", str(self.directory / "site"), "--username", USER,
            "--min-children", str(self._children), "--max-children", str(self._children),
            "--min-spare", "1", "--max-spare", str(self._children),
            "--syslog", "stderr", "--pidfile", str(self.directory / "pid"), *self._options,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [  # noqa: S607  # wherever the system has it
                "nsenter",
                f"--target={self._inside.pid}",
                "--net",
                "--pid",
                "--",
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={**environment(), "HOME": str(self.directory)},
        )
        self._output.follow(self._process.stdout, "spamd-log")
        self.wait_for("server started on", since=since)
        for _ in range(self._children):
            self.wait_for("child process", since=since)

    def processes(self) -> list[Process]:
        """Return the daemon and its children."""
        return self._inside.processes()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon and its children, the daemon first."""
        send_signal(self.processes(), number)

    def kill(self) -> None:
        """Kill the daemon and its children."""
        mine = self.processes()
        self.signal(signal.SIGKILL)
        wait_ended(mine, PATIENCE)
        if self._process is not None:
            wait_reaped(self._process, PATIENCE)
            self._output.close()
            self._process = None

    def wait_for(self, pattern: str, *, since: int = 0) -> re.Match[str]:
        """Wait for a line of the log in which the regular expression matches; return the match.

        Raises LabError.
        """
        found = self._output.find(pattern, PATIENCE, since)
        if found is None:
            last = "\n".join(self.log[-50:])
            raise LabError(f"not in the log of spamd: {pattern}\n{last}")
        return found


def mail(*fields: str, body: bytes = b"hello\r\n", subject: str = "hello") -> bytes:
    """A message that scores little by itself, with these fields further."""
    head = [
        f"From: {SENDER}",
        "To: alice@local.example",
        f"Subject: {subject}",
        f"Date: {DATE}",
        "Message-ID: <20.1.300.tests@good.example>",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        *fields,
    ]
    return "".join(f"{field}\r\n" for field in head).encode() + b"\r\n" + body
