"""Real milters for the end-to-end tests: Debian's daemons, each with its own configuration.

    with Lab(ZONE) as lab, opendkim(lab, "Mode v") as daemon:
        command = filter_command("milter", "--milter", daemon.address)

They listen on the loopback of the lab's network, and see its files, so that names resolve in its
zone. A daemon ends with the context or with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from smtpd_filters.testing.server.lab import PATH, Lab, LabError, wait_ended
from smtpd_filters.testing.server.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOOPBACK = "127.0.0.1"
#: Seconds that a daemon may take for anything.
PATIENCE = 60.0
#: Where its files are, as it sees them.
FILES = "/srv/milter"
#: Where it may write.
STATE = "/srv/state"


def unavailable(*programs: str) -> str | None:
    """Return in one line why these programs can't run here, or None if they can."""
    if os.geteuid() != 0:
        return "root is required"
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            return f"no {program} (install the package)"
    return None


class Daemon:
    """A context manager that runs a milter.

    In `arguments` and in the contents of `files`, PORT stands for its port. Raises LabError with
    the log if it doesn't start.
    """

    def __init__(
        self, lab: Lab, arguments: Sequence[str], files: Mapping[str, str] | None = None
    ) -> None:
        self._lab = lab
        self._arguments = arguments
        self._files = dict(files or {})
        self._output = Output()
        self.log = self._output.lines
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = contextlib.ExitStack()
        self.port = 0

    @property
    def address(self) -> str:
        """Its address in the notation of milters."""
        return f"inet:{self.port}@{LOOPBACK}"

    def __enter__(self) -> Self:
        if reason := unavailable(self._arguments[0]):
            raise LabError(reason)
        with contextlib.ExitStack() as stack:
            directory = Path(tempfile.mkdtemp(prefix="milter-"))
            stack.callback(shutil.rmtree, directory)
            directory.chmod(0o755)
            inside = Lab(beside=self._lab, binds={FILES: directory}, directories={STATE: 0o1777})
            self._inside = stack.enter_context(inside)
            stack.callback(self.kill)
            kept = stack.enter_context(self._lab.new_socket())
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((LOOPBACK, 0))
            self.port = kept.getsockname()[1]
            for name, content in self._files.items():
                path = directory / name
                path.write_text(self._filled(content))
                path.chmod(0o600 if name.endswith("key") else 0o644)
            self.start()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _filled(self, text: str) -> str:
        return text.replace("PORT", str(self.port))

    def start(self) -> None:
        """Start it, after `kill` at the same address, and wait until it accepts connections."""
        self._process = self._inside.spawn(
            *map(self._filled, self._arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._output.follow(self._process.stdout, "milter-log")
        until = PATIENCE
        while True:
            with self._lab.new_socket() as link:
                link.settimeout(PATIENCE)
                if not link.connect_ex((LOOPBACK, self.port)):
                    return
            until -= 0.02
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
                raise self._failure("has ended")
            if until < 0:
                raise self._failure("does not listen")

    def _failure(self, what: str) -> LabError:
        return LabError(f"{self._arguments[0]} {what}\n" + "\n".join(self.log[-50:]))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        for process in self._inside.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        if number == signal.SIGCONT and self._process is not None:
            self._process.send_signal(number)  # nsenter stops with its child

    def kill(self) -> None:
        """Kill it."""
        mine = self._inside.processes()
        self.signal(signal.SIGKILL)
        wait_ended(mine, PATIENCE)
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._output.close()
            self._process = None


def opendkim(lab: Lab, *settings: str, files: Mapping[str, str] | None = None) -> Daemon:
    """Return OpenDKIM with these settings."""
    text = "\n".join(
        (
            "Syslog no",
            "Background no",
            "UserID root",
            "RequireSafeKeys no",
            f"Socket inet:PORT@{LOOPBACK}",
            *settings,
            "",
        )
    )
    return Daemon(lab, ["opendkim", "-f", "-x", f"{FILES}/conf"], {"conf": text, **(files or {})})


def opendmarc(lab: Lab, *settings: str) -> Daemon:
    """Return OpenDMARC with these settings."""
    text = "\n".join(
        (
            "Syslog false",
            "Background false",
            "PublicSuffixList /usr/share/publicsuffix/public_suffix_list.dat",
            f"Socket inet:PORT@{LOOPBACK}",
            *settings,
            "",
        )
    )
    return Daemon(lab, ["opendmarc", "-f", "-c", f"{FILES}/conf"], {"conf": text})


def pymilter(lab: Lab, script: str) -> Daemon:
    """Return a program that uses the library pymilter, in the system's Python."""
    return Daemon(lab, ["/usr/bin/python3", f"{FILES}/script", "PORT"], {"script": script})


def clamav_milter(lab: Lab, clamd: int, *settings: str) -> Daemon:
    """Return clamav-milter with these settings, for the clamd at a port of the lab."""
    text = "\n".join(
        (
            f"MilterSocket inet:PORT@{LOOPBACK}",
            f"ClamdSocket tcp:{LOOPBACK}:{clamd}",
            "Foreground yes",
            "User root",
            *settings,
            "",
        )
    )
    return Daemon(lab, ["clamav-milter", "-c", f"{FILES}/conf"], {"conf": text})


#: SpamAssassin without the network, and a score of our own.
SPAMASSASSIN = """\
header LOCAL_TEST X-Test-Spam =~ /yes/
score LOCAL_TEST 50
dns_available no
use_bayes 0
report_safe 1
score RCVD_ILLEGAL_IP 0
score KHOP_HELO_FCRDNS 0
"""


def spamd(lab: Lab) -> Daemon:
    """Return SpamAssassin's daemon, which speaks no milter itself."""
    script = (
        f"cp -r /etc/spamassassin {STATE}/site; cp {FILES}/cf {STATE}/site/zz.cf; "
        f"export HOME={STATE}; "
        f"exec spamd --local --nouser-config --listen {LOOPBACK}:PORT --siteconfigpath "
        f"{STATE}/site --max-children 1 --min-children 1 --syslog stderr"
    )
    return Daemon(lab, ["/bin/sh", "-c", script], {"cf": SPAMASSASSIN})


def spamass_milter(lab: Lab, spamd_port: int, *options: str) -> Daemon:
    """Return spamass-milter for the spamd at a port of the lab."""
    address = f"inet:PORT@{LOOPBACK}"
    spamc = ("--", "-d", LOOPBACK, "-p", str(spamd_port))
    return Daemon(lab, ["spamass-milter", "-p", address, *options, *spamc])


#: amavisd without its scanners: what is banned is refused, the rest passes.
AMAVISD = f"""\
use strict;
$MYHOME = '{STATE}'; $TEMPBASE = '{STATE}'; $daemon_user = 'amavis'; $daemon_group = 'amavis';
$mydomain = 'local.example'; $myhostname = 'mx.local.example';
$max_servers = 1; $db_home = '{STATE}'; $pid_file = '{STATE}/pid'; $lock_file = '{STATE}/lock';
$enable_db = 0; $enable_zmq = 0; $do_syslog = 0; $log_level = 1;
$inet_socket_port = undef; $unix_socketname = '{STATE}/amavisd.sock'; $unix_socket_mode = 0666;
$interface_policy{{'SOCK'}} = 'AM.PDP-SOCK';
$policy_bank{{'AM.PDP-SOCK'}} = {{ protocol => 'AM.PDP' }};
@bypass_virus_checks_maps = (1); @bypass_spam_checks_maps = (1);
@local_domains_maps = (1);
$final_banned_destiny = D_REJECT; $QUARANTINEDIR = undef; $banned_files_quarantine_method = undef;
$banned_filename_re = new_RE(qr'.\\.(exe|scr)$'i);
$warnbannedsender = 0; $enable_dkim_verification = 0; $enable_dkim_signing = 0;
1;
"""


def amavisd_milter(lab: Lab) -> Daemon:
    """Return amavisd-milter, and an amavisd behind it."""
    script = (
        f"mkdir -m 700 {STATE}/work; amavisd -c {FILES}/conf foreground & "
        f"until [ -S {STATE}/amavisd.sock ]; do kill -0 $! || exit 1; sleep 0.1; done; "
        f"exec amavisd-milter -f -s inet:PORT@{LOOPBACK} -S {STATE}/amavisd.sock -w {STATE}/work"
    )
    user = ("setpriv", "--reuid=amavis", "--regid=amavis", "--init-groups")
    return Daemon(lab, [*user, "/bin/sh", "-c", script], {"conf": AMAVISD})
