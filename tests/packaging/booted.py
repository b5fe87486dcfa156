"""Debian roots with systemd as process 1, in namespaces of their own."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.packaging.roots import ENVIRONMENT, enter, skip_or_fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.packaging.roots import Machine

#: Seconds for the start, which takes about two.
PATIENCE = 60.0
_NAMESPACES = ("--mount", "--pid", "--cgroup", "--net", "--uts", "--ipc")
#: $1: the root; $2: the control group of all its processes; further words are for unshare(1).
_GROUP = """
root=$1
echo $$ > "$2/cgroup.procs"
shift 2
exec unshare --propagation private --fork --kill-child "$@" sh -euc "$BOOT" sh "$root"
"""
_BOOT = """
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mountpoint -q "$root/sys/fs/cgroup" || mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
exec env -i PATH="$PATH" LC_ALL=C.UTF-8 container=test NOTIFY_SOCKET=/srv/notify \
    chroot "$root" /sbin/init --unit=multi-user.target --log-target=null --show-status=0
"""


class Booted:
    """A machine that systemd runs on."""

    def __init__(self, init: int) -> None:
        self._init = init

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command; what it printed."""
        entry = ("nsenter", "--target", str(self._init), *_NAMESPACES, "--root", "--wd")
        return enter(entry, command, check=check).stdout


def _control_groups() -> Path:
    """Return where control groups of version 2 are mounted; skip the test if nowhere."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = [mount[4] for mount in mounts if mount[mount.index("-") + 1] == "cgroup2"]
    places = [place for place in places if os.access(place, os.W_OK)]
    if not places:
        skip_or_fail("no control groups of version 2")
    return Path(places[0])


@contextmanager
def booted(machine: Machine) -> Iterator[Booted]:
    """Start systemd on a machine that has it, and wait until all its services run."""
    root = machine.root
    (root / "usr/sbin/policy-rc.d").unlink()  # services are started here
    # Files may be links to those of another machine.
    (root / "etc/machine-id").unlink(missing_ok=True)
    (root / "etc/machine-id").touch()
    group = _control_groups() / f"smtpd-filters-{os.getpid()}"
    group.mkdir()
    init = -1
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    told.settimeout(PATIENCE)
    directory = os.open(root / "srv", os.O_PATH)
    told.bind(f"/proc/self/fd/{directory}/notify")  # the whole path may be too long
    os.close(directory)
    started = subprocess.Popen(
        ["/bin/sh", "-euc", _GROUP, "sh", str(root), str(group), *_NAMESPACES],
        env={**ENVIRONMENT, "BOOT": _BOOT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        try:
            number = _ready(told)
        finally:
            told.close()  # systemd would wait for a reader of what it says later
        init = os.pidfd_open(number)
        yield Booted(number)
    finally:
        started.kill()  # and with it systemd, whose end is that of all its processes
        started.wait()
        if init >= 0:
            select.select([init], [], [])
            os.close(init)
        for place, _, _ in os.walk(group, topdown=False):
            Path(place).rmdir()
        (root / "srv/notify").unlink()


def _ready(told: socket.socket) -> int:
    """Wait until systemd says that it is ready (sd_notify(3)); return its number."""
    while True:
        text, more, _, _ = told.recvmsg(4096, 4096)
        if b"READY=1" in text.split(b"\n"):
            [(_, _, sender)] = more
            number: int = struct.unpack("3i", sender)[0]
            return number
