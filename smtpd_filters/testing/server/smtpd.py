"""A real smtpd in a lab: its configuration, process, log, clients and delivered mail."""

from __future__ import annotations

import contextlib
import email
import email.policy
import functools
import itertools
import os
import re
import shlex
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from smtpd_filters.supervise.short_form import FLAG as SUPERVISED

from .client import HELO, SMTP_PORT, Client, Connection, Reply
from .configuration import DOMAIN, LISTENERS, MATCHES, configuration
from .credentials import certificate
from .lab import Lab, LabError, Process, children, send_signal, wait_ended, wait_reaped
from .layout import (
    BIN,
    CONF,
    FILES,
    FIRST_UID,
    MAIL,
    PROBE,
    PROBER,
    QUEUE,
    SCRATCH,
    file_path,
    scratch_path,
)
from .output import Output
from .programs import Programs
from .releases import (
    SYSTEM,
    VERSIONS,
    root_of,
    system_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from email.message import EmailMessage

# In seconds. Everything takes milliseconds, but the machine may be busy.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0
DELIVERY_TIMEOUT = 60.0
A_MINUTE = 60.0
# The field that smtpd adds at the top of an accepted message, with the message's id.
RECEIVED = re.compile(rb"^Received: .*\n\s+by .* with E?SMTPS?A? id ([0-9a-f]{8})\b", re.MULTILINE)


class Delivered(NamedTuple):
    """A message in a maildir: its `folder` ("" or "Junk") and its `content`, line ends as LF."""

    folder: str
    content: bytes

    @property
    def message(self) -> EmailMessage:
        """The message, parsed."""
        return email.message_from_bytes(self.content, policy=email.policy.default)


@functools.cache
def unavailable(version: str | None = None) -> str | None:
    """Return in one line why this version can't run here, or None if it can.

    Without a version, the reason is that of a lab.
    """
    if sys.platform != "linux":
        return "end-to-end tests require Linux namespaces"
    if os.geteuid() != 0:
        return "root is required"
    root = SYSTEM if version is None else root_of(version)
    if version is not None and not (root / "usr/sbin/smtpd").exists():
        own = version == system_version()
        how = "install the opensmtpd package" if own else "run tests/e2e/setup-roots of a checkout"
        return f"no smtpd {version} ({how})"
    try:
        with Lab(root=root) as lab:
            return _unsuitable(lab, version)
    except (LabError, OSError, subprocess.SubprocessError) as exc:
        return str(exc)


def _unsuitable(lab: Lab, version: str | None) -> str | None:
    """Return in one line why the file system of a lab is unsuitable, or None if it is suitable."""
    if version is not None:
        shown = lab.run("/usr/sbin/smtpd", "-h", check=False)
        if f"OpenSMTPD {version}".encode() not in shown.stdout + shown.stderr:
            return f"the smtpd of {root_of(version)} is not {version}"
    now = float(lab.run("date", "+%s").stdout)
    if abs(now - time.time()) > A_MINUTE:
        return "the clock is moved outside but not inside (is datefudge installed inside?)"
    return None


def _words(command: str) -> list[str]:
    """Return the words of a command line; none if the shell could not split it."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


class Smtpd:
    """A context manager that runs a server in its own lab; the package describes it.

    - `version`: one of `versions()`, by default the system's own;
    - `filters`: command lines by their names in smtpd.conf; all of them form the chain "all", in
      order;
    - `zone`: the DNS zone, see `smtpd_filters.testing.dns`;
    - `users`: each has a maildir, the addresses USER@DOMAIN, and `password(user)`;
    - `domains`: the domains for which mail is accepted;
    - `files`: contents by name; readable for filters as `file_path(name)`, and for all other users
      as well unless "password" is in the name;
    - `binds`: folders outside by their paths inside, read-only;
    - `declarations`: inserted into smtpd.conf before the listeners;
    - `listeners`: replace LISTENERS; the macros $tls and $filter have the values of the default;
    - `matches`: replace MATCHES;
    - `arguments`: further arguments of smtpd, such as "-v" or "-T", "filters";
    - `lab`: a lab whose network and zone are shared with others.

    `log` has the lines of the server and its filters, `leftovers` the processes that did not end at
    `terminate`. Raises LabError with the log if the server doesn't start, and on leaving the
    context if it has ended by itself (a filter died), unless `expect_end()` has been called.

    Raises ValueError for a script of `script_command` that is not one of `files`, and for a text
    that smtpd.conf can't have: a command with a line end, a NUL, or a character 1 or 2, or with a
    backslash at its end. Every other argument of a command reaches the filter as it is.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each with a default
        self,
        version: str | None = None,
        *,
        filters: Mapping[str, str] | None = None,
        zone: Mapping[str, Mapping[str, Any]] | None = None,
        users: Sequence[str] = ("alice", "bob"),
        domains: Sequence[str] = (DOMAIN,),
        files: Mapping[str, str | bytes] | None = None,
        binds: Mapping[str, Path] | None = None,
        declarations: str = "",
        listeners: str = LISTENERS,
        matches: str = MATCHES,
        arguments: Sequence[str] = (),
        lab: Lab | None = None,
    ) -> None:
        self.version = version = version or system_version() or VERSIONS[0]
        self.users = list(users)
        self._output = Output()
        self.log = self._output.lines
        self.leftovers: list[Process] = []
        self._filters = dict(filters or {})
        self._domains = list(domains)
        self._files = dict(files or {})
        self._declarations = declarations
        self._listeners = listeners
        self._matches = matches
        self._arguments = list(arguments)
        self._end_expected = False
        self._terminated = False
        self._owns_network = lab is None
        self._probe_port = 0
        self._process: subprocess.Popen[bytes] | None = None

        self._check_scripts()
        self.configuration()  # or ValueError
        self._programs = Programs(root_of(version))
        self.lab = Lab(
            zone,
            root=root_of(version),
            binds={**self._programs.binds, **(binds or {})},
            exposed=self._programs.exposed,
            directories={BIN: 0o755, FILES: 0o755, SCRATCH: 0o1777, MAIL: 0o755},
            beside=lab,
        )

    # -- life --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if reason := unavailable(self.version):
            raise LabError(reason)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lab)
            # smtpd looks up the prober's name before it greets; it must not depend on the zone.
            from smtpd_filters.testing.dns import host

            self.lab.dns.zone.update(host("probe.invalid", PROBER))
            self._furnish()
            stack.callback(self._end)
            self._start()
            if self._owns_network:
                self.lab.dns.queries.clear()
            stack.pop_all()
        return self

    def __exit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> None:
        died = not self.alive() and not self._end_expected
        self.close()
        if exc is not None:
            exc.add_note("the server's log:\n" + "\n".join(self.log[-200:]))
        elif died:
            raise self._failure("smtpd has ended by itself")

    def alive(self) -> bool:
        """Return whether smtpd is running."""
        return self._process is not None and self._process.poll() is None

    def expect_end(self, timeout: float = STOP_TIMEOUT) -> None:
        """Wait until smtpd ends by itself, which then isn't a failure."""
        try:
            cast("subprocess.Popen[bytes]", self._process).wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._failure(f"smtpd is still running after {timeout:g} s") from None
        self._end_expected = True

    def terminate(self, timeout: float = STOP_TIMEOUT) -> None:
        """End smtpd as an operator does; wait for it, its filters and its log's end.

        `timeout` is in seconds, for each of them.
        Files stay until the lab is closed. Processes that didn't end are in `leftovers`.
        """
        self._end_expected = True
        if self._process is None or self._terminated:
            return
        self._terminated = True
        family = self.lab.family(self._process)
        if self.alive():
            for pid in children(self._process.pid):
                os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.leftovers = wait_ended(family, timeout)
        if not self.leftovers:
            self._output.wait(timeout)

    def close(self) -> None:
        """Terminate the server, and close the lab."""
        self.terminate()
        self._end()
        self.lab.close()

    def _end(self) -> None:
        """Kill what is left and read the rest of the log; the lab stays open."""
        send_signal(self.lab.processes(), signal.SIGKILL)
        if self._process is not None:
            wait_reaped(self._process, STOP_TIMEOUT)
        self._output.close()

    def _start(self) -> None:
        with self._output.sink("smtpd-log") as sink:
            self._process = self.lab.spawn(
                *("/usr/sbin/smtpd", "-d", "-f", CONF, *self._arguments),
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._greets(deadline):
            if self._output.ended:
                raise self._failure("smtpd did not start")
            if time.monotonic() > deadline:
                raise self._failure(f"smtpd does not answer after {START_TIMEOUT:g} s")
            with self._output.news:
                self._output.news.wait(0.005)

    def _greets(self, deadline: float) -> bool:
        timeout = max(0.1, deadline - time.monotonic())
        try:
            with self.lab.connect(
                self._probe_port, source=PROBER, to=PROBE, timeout=timeout
            ) as probe:
                return bool(probe.recv(4) == b"220 ")
        except (ConnectionError, TimeoutError):
            return False

    def _failure(self, what: str) -> LabError:
        with self._output.news:
            self._output.news.wait_for(lambda: self._output.ended or self.alive(), 1)
        return LabError(what + "\n" + "\n".join(self.log[-50:]))

    # -- the log -----------------------------------------------------------------------------------

    def wait_for(self, pattern: str, timeout: float = 60, *, since: int = 0) -> re.Match[str]:
        """Wait for a line of the log in which the regular expression matches; return the match.

        Lines before number `since` (such as `len(server.log)`) are ignored. Raises LabError.
        """
        found = self._output.find(pattern, timeout, since)
        if found is None:
            raise self._failure(f"not in the log: {pattern}")
        return found

    # -- clients -----------------------------------------------------------------------------------

    @functools.cached_property
    def tls(self) -> ssl.SSLContext:
        """The TLS context for clients of this server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        if self.version == "6.8":
            # The ciphers without a certificate, see `configuration._security`.
            context.verify_mode = ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("aNULL:@SECLEVEL=0")
        else:
            context.load_verify_locations(cadata=certificate()[0])
        return context

    def client(
        self,
        source: str = "127.0.0.1",
        *,
        port: int = SMTP_PORT,
        to: str | None = None,
        helo: str = HELO,
        timeout: float = 60,
    ) -> Client:
        """Return a connected smtplib.SMTP with this source address (see `lab.NETWORKS`)."""
        return Client(
            self.lab, self.tls, source=source, port=port, to=to, helo=helo, timeout=timeout
        )

    def connection(
        self, source: str = "127.0.0.1", *, port: int = SMTP_PORT, timeout: float = 60
    ) -> Connection:
        """Return a raw connection from this address; its first reply is the banner."""
        return Connection(self.lab.connect(port, source=source, timeout=timeout), self.tls)

    def dialogue(self, source: str, lines: Iterable[str | bytes]) -> list[Reply]:
        """Send lines from this address; see `Connection.dialogue`."""
        with self.connection(source) as connection:
            return connection.dialogue(lines)

    def submit(
        self,
        message: bytes,
        sender: str,
        *recipients: str,
        user: tuple[int, int] | None = None,
    ) -> None:
        """Submit a message through the socket with sendmail(8), as root or as (uid, gid)."""
        self.lab.run(
            "/usr/sbin/sendmail", "-f", sender, "--", *recipients, input=message, user=user
        )

    # -- mail --------------------------------------------------------------------------------------

    def settle(self, timeout: float = DELIVERY_TIMEOUT) -> None:
        """Wait until the queue is empty, with all accepted mail delivered."""
        queue = self.lab.path(QUEUE)
        deadline = time.monotonic() + timeout
        with self._output.news:
            # Listed again if nothing is found: a message that is relayed to this smtpd itself may
            # have left one place and got another while the first list was made.
            while waiting := list(queue.glob("*/*")) or list(queue.glob("*/*")):
                if not self.alive():
                    raise self._failure("smtpd has ended by itself")
                if time.monotonic() > deadline:
                    names = ", ".join(path.name for path in waiting)
                    raise self._failure(f"still in the queue after {timeout:g} s: {names}")
                # A delivery is logged just before it leaves the queue.
                self._output.news.wait(0.005)

    def maildir(self, user: str, *, settle: bool = True) -> list[Delivered]:
        """Return the mail delivered to a user, in the order in which it was accepted.

        By default this first waits until all accepted mail is delivered.
        """
        if settle:
            self.settle()
        base = self.lab.path(f"{MAIL}/{user}")
        found = []
        for folder, below in (("", base), ("Junk", base / ".Junk")):
            found += [Delivered(folder, path.read_bytes()) for path in below.glob("new/*")]
        # The order of simultaneous deliveries is arbitrary.
        return sorted(found, key=self._accepted)

    def _accepted(self, mail: Delivered) -> int:
        """Return the number of the log line that reports the message as accepted."""
        written_in = RECEIVED.search(mail.content)
        if written_in is None:
            raise self._failure(f"a message without an id: {mail.content[:1000]!r}")
        accepted = re.compile(rf" smtp message .*\bmsgid={written_in[1].decode()}\b")
        self.wait_for(accepted.pattern)
        return next(at for at, line in enumerate(self.log) if accepted.search(line))

    # -- files and processes -----------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """Return the path outside of a file inside."""
        return self.lab.path(inside)

    def write(self, name: str, content: str | bytes) -> str:
        """Write or replace one of `files`; return its path inside."""
        inside = file_path(name)
        encoded = content.encode() if isinstance(content, str) else content
        new = self.path(f"{inside}.new")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(encoded)
        if "password" in name:
            os.chown(new, 0, self._group())
            new.chmod(0o640)
        else:
            new.chmod(0o644)
        new.replace(self.path(inside))
        return inside

    def _group(self) -> int:
        """Return the group of the user that filters run as."""
        rows = self.path("/etc/passwd").read_text().splitlines()
        groups = {row.split(":")[0]: int(row.split(":")[3]) for row in rows}
        return next(groups[user] for user in ("_smtpd", "opensmtpd", "smtpd") if user in groups)

    def scratch(self, name: str) -> bytes:
        """Return the content that a filter has written to `scratch_path(name)`."""
        return self.path(scratch_path(name)).read_bytes()

    def find(self, text: str) -> list[Process]:
        """Return the processes inside, such as filters, whose command line contains this text.

        That of a filter's supervisor contains the filter's, and "supervise" as well.
        """
        return [process for process in self.lab.processes() if text in " ".join(process.arguments)]

    def signal_filter(self, name: str, number: int) -> None:
        """Send a signal to each process of a filter, named as in `filter_command` or `filters`.

        A supervisor of the filter gets it as well. Raises LabError if there is none.
        """
        processes = self.find(f"filter-{name}")
        if not processes and name in self._filters:
            # A launcher in front of these words has replaced itself by an interpreter, and a
            # program with `--supervised` by a supervisor of the command without the flag.
            words = [each for each in _words(self._filters[name]) if each != SUPERVISED]
            words = words[1:] or words
            every = self.lab.processes()
            processes = [each for each in every if each.arguments[-len(words) :] == words]
        if not processes:
            raise self._failure(f"filter-{name} is not running")
        for process in processes:
            os.kill(process.pid, number)

    # -- set-up ------------------------------------------------------------------------------------

    def _check_scripts(self) -> None:
        """Raise ValueError for a script of `filters` that is not in `files`."""
        given = {file_path(name) for name in self._files}
        for name, command in self._filters.items():
            words = _words(command)
            for launcher, script in itertools.pairwise(words):
                below = script.startswith(f"{FILES}/")
                if launcher == f"{BIN}/python" and below and script not in given:
                    missing = script.removeprefix(f"{FILES}/")
                    raise ValueError(f"filters: {name}: files has no {missing!r}")

    def _furnish(self) -> None:
        for name, content in self._files.items():
            self.write(name, content)
        for name, content in self._programs.launchers().items():
            launcher = self.path(f"{BIN}/{name}")
            launcher.write_text(content, "utf-8")
            launcher.chmod(0o755)
        for number, user in enumerate(self.users):
            maildir = self.path(f"{MAIL}/{user}")
            maildir.mkdir()
            os.chown(maildir, FIRST_UID + number, FIRST_UID + number)
        for name, pem in zip(("certificate", "key"), certificate(), strict=True):
            file = self.path(f"/srv/lab/{name}.pem")
            file.write_text(pem, "ascii")
            file.chmod(0o600)
        with self.lab.new_socket() as free:
            free.bind((PROBE, 0))
            self._probe_port = free.getsockname()[1]
        conf = self.path(CONF)
        conf.write_text(self.configuration(), "utf-8", "surrogateescape")
        conf.chmod(0o600)
        if self._filters:
            self._programs.compile(self.lab)

    def configuration(self) -> str:
        """Return the text of smtpd.conf(5) that the server was started with."""
        return configuration(
            self.version,
            users=self.users,
            domains=self._domains,
            filters=self._filters,
            declarations=self._declarations,
            listeners=self._listeners,
            matches=self._matches,
            probe_port=self._probe_port,
        )
