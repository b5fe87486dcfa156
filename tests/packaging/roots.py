"""The Debian roots in which packaging tests build and install packages.

`setup-roots` makes the roots, and no test writes to them. A command runs in one of them or in a
copy, with namespaces of its own: its mounts and all its processes end with it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOURCE = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SUITES = ("bookworm", "trixie")

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "smtpd-filters"
#: $1: the root; $2: how many binds follow, each as source, target; then the command.
_ENTER = """
root=$1 binds=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
while [ "$binds" -gt 0 ]; do
    mount --bind "$1" "$root$2"
    shift 2
    binds=$((binds - 1))
done
exec chroot "$root" "$@"
"""
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
#: What package management writes for itself, and where mounts go.
_BOOKKEEPING = (
    *("var/lib/dpkg", "var/lib/apt", "var/cache", "var/log", "tmp"),
    *("proc", "dev", "run", "etc/resolv.conf"),
)


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test that can't run here, or fail if it has to."""
    if os.environ.get("SMTPD_FILTERS_E2E") == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason.rpartition("\n")[2])


def need(suite: str, kind: str) -> Path:
    """The root of this suite; the test is skipped where it can't be made, or fails if it has to."""
    if os.geteuid() == 0:
        made = subprocess.run(
            [HERE / "setup-roots", suite, kind], capture_output=True, text=True, check=False
        )
        if made.returncode == 0:
            return Path(made.stdout.strip())
        reason = made.stderr.strip()
    else:
        reason = "it takes root"
    skip_or_fail(reason)


def enter(
    entry: Sequence[str],
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command by one that enters a root; standard output and error come together."""
    done = subprocess.run(
        [*entry, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT | dict(environment or {}),
        check=False,
    )
    if check and done.returncode != 0:
        pytest.fail(
            f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}", pytrace=False
        )
    return done


def run_in(
    root: Path,
    *command: str,
    binds: Mapping[Path, str] | None = None,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root; standard output and error come together."""
    bound = [text for source, target in (binds or {}).items() for text in (str(source), target)]
    own = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
    entry = ("sh", "-euc", _ENTER, "sh", str(root), str(len(bound) // 2))
    return enter(["/usr/bin/unshare", *own, *entry, *bound], command, environment, check=check)


class Machine:
    """A copy of a clean root, which packages may be installed in."""

    def __init__(self, suite: str, root: Path) -> None:
        self.suite = suite
        self.root = root
        self._archives = _CACHE / f"archives-{suite}"
        self._archives.mkdir(exist_ok=True)
        self._binds = {self._archives: "/var/cache/apt/archives"}

    @classmethod
    def clean(cls, suite: str, root: Path) -> Machine:
        """A new one."""
        subprocess.run(["/bin/cp", "-a", need(suite, "clean"), root], check=True)
        return cls(suite, root)

    def copy(self, root: Path) -> Machine:
        """Another one like this; its files are links to ours, which dpkg replaces, never writes."""
        subprocess.run(["/bin/cp", "-al", self.root, root], check=True)
        return Machine(self.suite, root)

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command; what it printed."""
        return run_in(self.root, *command, binds=self._binds, check=check).stdout

    def apt(self, *arguments: str) -> str:
        """Run apt-get; when the package lists are too old, with new ones."""
        command = ("apt-get", "-q", "-y", "--no-install-recommends", *arguments)
        # What was downloaded is shared with other test runs, and apt does not wait for its lock.
        with self._archives.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = run_in(self.root, *command, binds=self._binds, check=False)
            if done.returncode == 0:
                return done.stdout
            self.run("apt-get", "-q", "update")
            return self.run(*command)

    def put(self, file: Path, directory: str = "tmp") -> str:
        """Copy a file in; its path inside."""
        shutil.copy(file, self.root / directory)
        return f"/{directory}/{file.name}"

    def files(self) -> dict[str, tuple[object, ...]]:
        """Every path, with what tells whether it has changed."""
        found = {}
        for directory, below, names in os.walk(self.root):
            inside = os.path.relpath(directory, self.root)
            below[:] = [
                name for name in below if os.path.normpath(f"{inside}/{name}") not in _BOOKKEEPING
            ]
            for name in below + names:
                path = os.path.normpath(f"{inside}/{name}")
                if path in _BOOKKEEPING:
                    continue
                status = (self.root / path).lstat()
                content = (status.st_size, status.st_mtime_ns)
                found[path] = (
                    *(status.st_mode, status.st_uid, status.st_gid),
                    *(() if stat.S_ISDIR(status.st_mode) else content),
                )
        return found

    def installed(self, package: str) -> bool:
        """Whether a package is installed."""
        shown = self.run("dpkg-query", "-W", "-f", "${db:Status-Status}", package, check=False)
        return shown == "installed"
