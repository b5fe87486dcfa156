"""A real rspamd for tests: Debian's daemon with its own configuration, and a Redis.

    with Lab(ZONE) as lab, Rspamd(lab) as daemon:
        command = filter_command("rspamd", "-url", daemon.url)
        with Smtpd("7.6", lab=lab, filters={"rspamd": command}) as server:
            ...

With a lab, the daemon listens on the loopback of the lab's network, where smtpd's filters are, and
uses the lab's name server. Without one it listens on this process's 127.0.0.1 and uses its own name
server with `zone`, for clients in the test's process. In both cases:

- The daemon, its workers and Redis end with the context or with this process, however it ends: they
  run in their own PID namespace.
- The system's `/etc/rspamd/local.d` and `override.d` are not read. `local` and `override` are the
  files of the two folders (`{"greylist.conf": "timeout = 1h;"}`), `lua` is the `rspamd.local.lua`,
  `files` are others (keys, maps), which the daemon finds as `file_path(name)`.
- No other host is contacted: the modules that would are disabled (`OFFLINE`), unless `override`
  configures them.

It starts in less than a second, because the list of public suffixes, which rspamd compiles for
seven seconds, is a short one, and hyperscan isn't used. Still, one daemon for a module of tests is
enough: give it all the settings and select them by Settings-ID.

It requires Linux, root and the packages rspamd and redis-server; `unavailable()` returns what is
missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from smtpd_filters.testing.dns import DNSServer
from smtpd_filters.testing.server.lab import (
    PATH,
    Lab,
    LabError,
    Process,
    children,
    environment,
    send_signal,
    wait_ended,
    wait_reaped,
)
from smtpd_filters.testing.server.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

USER = "_rspamd"
LOOPBACK = "127.0.0.1"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0
# The value of the header "Password" for the controller.
PASSWORD = "the controller's secret"  # noqa: S105  # of a daemon that lives for a test

# Modules that contact other hosts or load maps from them.
OFFLINE = (
    *("asn", "fuzzy_check", "mid", "mime_types", "multimap", "neural", "phishing", "rbl"),
    *("reputation", "whitelist"),
)
# Enough of the public suffixes for the domains of tests (RFC 2606).
SUFFIXES = "com\nnet\norg\nexample\ninvalid\ntest\n"

CONFIGURATION = """\
.include "$CONFDIR/common.conf"
options {
  .include "$CONFDIR/options.inc"
  .include(priority=5) "$LOCAL_CONFDIR/options.inc"
  .include(try=true; priority=10) "$LOCAL_CONFDIR/override.d/options.inc"
}
logging {
  type = "console";
  .include "$CONFDIR/logging.inc"
  .include(try=true; priority=10) "$LOCAL_CONFDIR/override.d/logging.inc"
}
worker "normal" {
  bind_socket = "%(address)s:%(port)d";
  bind_socket = "%(socket)s mode=0666";
  .include "$CONFDIR/worker-normal.inc"
  .include(try=true; priority=10) "$LOCAL_CONFDIR/override.d/worker-normal.inc"
}
worker "controller" {
  bind_socket = "%(address)s:%(controller)d";
  bind_socket = "%(socket)s-controller mode=0666";
  password = "%(password)s";
  .include(try=true; priority=10) "$LOCAL_CONFDIR/override.d/worker-controller.inc"
}
"""
OPTIONS = """\
filters = "chartable,dkim,regexp";
url_tld = "$LOCAL_CONFDIR/suffixes";
disable_hyperscan = true;
dns { nameserver = "%(nameserver)s:1"; timeout = 1s; retransmits = 2; }
"""


@functools.cache
def unavailable() -> str | None:
    """Return in one line why rspamd can't run here, or None if it can."""
    if sys.platform != "linux":
        return "rspamd requires Linux namespaces"
    if os.geteuid() != 0:
        return "root is required"
    for program, package in (("rspamd", "rspamd"), ("redis-server", "redis-server")):
        if shutil.which(program, path=PATH) is None:
            return f"no {program} (install the {package} package)"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"no user {USER} (install the rspamd package)"
    return None


class Rspamd:
    """A context manager that runs a daemon; the module describes it.

    lab       the lab in whose network it listens; by default this process's network
    zone      without a lab: the zone of its name server
    local     name in local.d -> content: merged with the defaults
    override  name in override.d -> content: replaces them
    lua       rspamd.local.lua
    files     name -> content
    workers   further sections of rspamd.conf; %(socket)s, %(address)s, %(port)d are the worker's
    redis     whether it has a Redis

    Raises LabError with the log if the daemon doesn't start.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each with a default
        self,
        lab: Lab | None = None,
        *,
        zone: Mapping[str, Mapping[str, Any]] | None = None,
        local: Mapping[str, str] | None = None,
        override: Mapping[str, str] | None = None,
        lua: str = "",
        files: Mapping[str, str | bytes] | None = None,
        workers: str = "",
        redis: bool = True,
    ) -> None:
        if lab is not None and zone is not None:
            raise ValueError("a daemon in a lab uses the lab's name server")
        self._network: Lab = _LocalNetwork(zone) if lab is None else lab
        self._owns_network = lab is None
        self._local = dict(local or {})
        self._override = {f"{name}.conf": "enabled = false;" for name in OFFLINE}
        self._override.update(override or {})
        self._lua = lua
        self._files = dict(files or {})
        self._configuration = CONFIGURATION + workers
        self._with_redis = redis
        self._output = Output()
        self.log = self._output.lines
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = contextlib.ExitStack()
        self._port = self._controller_port = 0
        self.directory = Path()
        self.password = PASSWORD

    # -- addresses and files -----------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL of the normal worker, without a path and a final slash."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def controller_url(self) -> str:
        """The URL of the controller, which requires `password`."""
        return f"http://{LOOPBACK}:{self._controller_port}"

    @property
    def socket(self) -> Path:
        """The normal worker's socket, below `directory`, which isn't visible in a lab.

        `Smtpd(binds={"/srv/rspamd": daemon.socket.parent})` makes it visible.
        """
        return self.directory / "sockets/normal"

    @property
    def controller_socket(self) -> Path:
        """The controller's socket."""
        return self.directory / "sockets/normal-controller"

    @property
    def redis(self) -> Path:
        """The socket of Redis."""
        return self.directory / "sockets/redis"

    @property
    def dns(self) -> DNSServer:
        """The name server that the daemon uses."""
        return self._network.dns

    def file_path(self, name: str) -> str:
        """Return the daemon's path of one of `files`; in `local` also `$LOCAL_CONFDIR/files`."""
        return str(self.directory / "files" / name)

    # -- life --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if reason := unavailable():
            raise LabError(reason)
        with contextlib.ExitStack() as stack:
            if self._owns_network:
                stack.enter_context(self._network)
            self.directory = Path(tempfile.mkdtemp(prefix="rspamd-"))
            stack.callback(shutil.rmtree, self.directory)
            # Its namespaces except that of files: all processes use the same sockets and files.
            self._inside = stack.enter_context(Lab(beside=self._network))
            stack.callback(self._end)
            self._port, self._controller_port = self._reserve_port(stack), self._reserve_port(stack)
            self._set_up()
            if self._with_redis:
                self._start_redis(stack)
            self.start()
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            exc.add_note("the daemon's log:\n" + "\n".join(self.log[-100:]))
        self.close()

    def close(self) -> None:
        """End the daemon and its other processes, and wait for their end."""
        self.stop()
        self._closing.close()

    def alive(self) -> bool:
        """Return whether the daemon is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, after `stop` or `kill` at the same addresses; wait until it answers."""
        if self.alive():
            raise LabError("the daemon is already running")
        since = len(self.log)
        variables = {"DBDIR": "db", "RUNDIR": "db", "LOGDIR": "db", "LOCAL_CONFDIR": "etc"}
        self._process = self._spawn(
            *("rspamd", "-f", "-c", str(self.directory / "etc/rspamd.conf")),
            *(f"--var={key}={self.directory / below}" for key, below in variables.items()),
        )
        self._output.follow(self._process.stdout, "rspamd-log")
        for worker in ("controller", "normal"):
            self.wait_for(f"starting {worker} process", START_TIMEOUT, since=since)
        for port in (self._port, self._controller_port):
            self._ping(port)
        # Each worker first connects to its name server, which is a thread of this process.
        self._network.dns.catch_up()

    def stop(self) -> None:
        """End the daemon as an operator does; Redis keeps running."""
        if self.alive():
            send_signal(_program(cast("subprocess.Popen[bytes]", self._process)), signal.SIGTERM)
        self._wait_ended()

    def kill(self) -> None:
        """Kill the daemon and its workers; Redis keeps running."""
        mine = [
            found
            for found in self.processes()
            if not any("redis-server" in word for word in found.arguments[:1])
        ]
        # The main process first: it would restart its workers.
        mine.sort(key=lambda found: "main process" not in found.arguments[0])
        send_signal(mine, signal.SIGKILL)
        wait_ended(mine, STOP_TIMEOUT)
        self._wait_ended()

    def restart(self) -> None:
        """Stop it, if it is running, and start it again at the same addresses."""
        self.stop()
        self.start()

    def processes(self) -> list[Process]:
        """Return the processes of the daemon and Redis."""
        return self._inside.processes()

    def _wait_ended(self) -> None:
        """Wait for the end of a terminated daemon and of its output."""
        if self._process is None:
            return
        send_signal(wait_ended(_program(self._process), STOP_TIMEOUT), signal.SIGKILL)
        wait_reaped(self._process, STOP_TIMEOUT)
        self._output.close()
        self._process = None

    def _end(self) -> None:
        """Kill what is left if the context is left without `close`."""
        send_signal(self.processes(), signal.SIGKILL)
        self._wait_ended()

    # -- the log -----------------------------------------------------------------------------------

    def wait_for(self, pattern: str, timeout: float = 60, *, since: int = 0) -> re.Match[str]:
        """Wait for a line of the log in which the regular expression matches; return the match.

        Lines before number `since` (such as `len(daemon.log)`) are ignored. Raises LabError.
        """
        found = self._output.find(pattern, timeout, since)
        if found is None:
            last = "\n".join(self.log[-50:])
            raise LabError(f"not in the log of rspamd: {pattern}\n{last}")
        return found

    # -- set-up ------------------------------------------------------------------------------------

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program as the daemon's user, its output in a pipe."""
        entry = pwd.getpwnam(USER)
        return subprocess.Popen(  # noqa: S603  # the arguments are this module's
            [
                *("nsenter", f"--target={self._inside.pid}", "--net", "--pid"),
                *(f"--setuid={entry.pw_uid}", f"--setgid={entry.pw_gid}", "--", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=environment(),
        )

    def _reserve_port(self, stack: contextlib.ExitStack) -> int:
        """Reserve a port until the end, so that it stays free while the daemon is stopped.

        Several sockets may be bound to one port if all set SO_REUSEADDR and only one listens.
        """
        kept = stack.enter_context(self._network.new_socket())
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((LOOPBACK, 0))
        port: int = kept.getsockname()[1]
        return port

    def _set_up(self) -> None:
        address, port = self._network.dns.address, self._network.dns.port
        values = {
            "address": LOOPBACK,
            "port": self._port,
            "controller": self._controller_port,
            "socket": self.socket,
            "password": self.password,
            "nameserver": f"{address}:{port}",
        }
        if self._with_redis:
            self._local.setdefault("redis.conf", f'servers = "{self.redis}";')
        contents: dict[str, str | bytes] = {
            "etc/rspamd.conf": self._configuration % values,
            "etc/options.inc": OPTIONS % values,
            "etc/suffixes": SUFFIXES,
            "etc/rspamd.local.lua": self._lua,
            **{f"etc/local.d/{name}": content for name, content in self._local.items()},
            **{f"etc/override.d/{name}": content for name, content in self._override.items()},
            **{f"files/{name}": content for name, content in self._files.items()},
        }
        for name, content in contents.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        (self.directory / "etc/files").symlink_to("../files")
        owner = pwd.getpwnam(USER)
        for name in ("db", "sockets"):
            (self.directory / name).mkdir()
            os.chown(self.directory / name, owner.pw_uid, owner.pw_gid)
        self.directory.chmod(0o755)

    def _start_redis(self, stack: contextlib.ExitStack) -> None:
        process = self._spawn(
            *("redis-server", "--port", "0", "--unixsocket", str(self.redis)),
            *("--unixsocketperm", "666", "--save", "", "--appendonly", "no"),
            *("--dir", str(self.directory / "db"), "--daemonize", "no"),
        )
        output = Output()
        output.follow(process.stdout, "redis-log")
        stack.callback(output.close)
        stack.callback(wait_reaped, process, STOP_TIMEOUT)
        stack.callback(lambda: send_signal(_program(process), signal.SIGKILL))
        # Redis 7.0 and 8.0 use different words.
        if output.find("[Rr]eady to accept connections", START_TIMEOUT) is None:
            raise LabError("Redis did not start\n" + "\n".join(output.lines))

    def _ping(self, port: int) -> None:
        """Wait until a worker answers: rspamd's protocol, GET /ping."""
        with self._network.connect(port, source=LOOPBACK, timeout=START_TIMEOUT) as connection:
            connection.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
            answer = connection.makefile("rb").read()
        if b"pong" not in answer:
            raise LabError(f"rspamd answers a ping with {answer!r}")


def _program(nsenter: subprocess.Popen[bytes]) -> list[Process]:
    """Return the child of nsenter, which doesn't forward signals."""
    return [Process(pid, []) for pid in children(nsenter.pid)]


class _LocalNetwork(Lab):
    """This process's own network, with a name server on a free port, in place of a lab."""

    def __init__(self, zone: Mapping[str, Mapping[str, Any]] | None) -> None:
        super().__init__(zone)
        self.dns = DNSServer(self.dns.zone)

    def __enter__(self) -> Self:
        self.dns.__enter__()
        self.pid = os.getpid()
        return self

    def close(self) -> None:
        """Stop the name server."""
        self.dns.__exit__(None, None, None)
        self.pid = 0

    def new_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """Return a new socket."""
        return socket.socket(family, kind, protocol)
