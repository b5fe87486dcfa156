"""The process that holds a lab's namespaces open.

`lab` starts it as a program; no module imports it.

It creates the namespaces and mounts that its only argument describes (JSON, see `Plan`), writes one
JSON line to stdout, `{"pid": N}` or `{"error": "..."}`, and waits for the end of its input.

There are two processes: the outer one creates the namespaces, the inner one is process 1 of the new
PID namespace. When the lab's process closes the input or dies, the inner one ends; the kernel then
kills everything in the namespace and removes network and mounts, and only then the outer one ends.
After waiting for the outer one, nothing is left.

It runs with `python -I -S` and imports little, since every start of a server waits for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    class Plan(TypedDict):
        """The namespaces and mounts to create. Paths inside are absolute."""

        root: str  # the server's file system: "/" or the folder of another system's root
        net: int | None  # a process whose network is joined instead of making one
        hostname: str
        etc: dict[str, str]  # path -> content of the file that is put over it; "?" ahead: if there
        binds: list[tuple[str, str]]  # folder of this side -> where the server sees it, read-only
        exposed: list[str]  # folders the server must be able to read where they are
        directories: dict[str, int]  # path -> mode
        networks: list[str]  # every address of these is this host's own


# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG = 1

# Folders that smtpd writes to, or whose content must be hidden (such as sockets of another smtpd).
FRESH = {"/run": "755", "/srv": "755", "/tmp": "1777", "/var/spool": "755"}  # noqa: S108  # mount points

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call a C function. Raises OSError with its name and arguments if it fails."""
    converted = [
        os.fsencode(argument) if isinstance(argument, str) else argument for argument in arguments
    ]
    if getattr(libc, name)(*converted) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, data: str = ""
) -> None:
    """Mount a file system. Raises OSError."""
    call("mount", source, target, kind, ctypes.c_ulong(flags), data)


def bind(source: str, target: str, *, writable: bool = False) -> None:
    """Bind a file or folder over another, without the mounts below it."""
    mount(source, target, None, MS_BIND)
    if not writable:
        mount(source, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)


def network(plan: Plan) -> None:
    """Bring up the loopback interface and add the networks to it."""
    lines = ["link set lo up"]
    lines += [f"route add local {text} dev lo" for text in plan["networks"]]
    outcome = subprocess.run(
        ["ip", "-force", "-batch", "-"],  # noqa: S607  # /sbin or /usr/sbin, as the system has it
        input="\n".join(lines),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    # Without IPv6 in the kernel only its networks fail; without lo nothing works.
    with open("/sys/class/net/lo/flags", encoding="ascii") as file:  # noqa: PTH123  # pathlib is slow to import
        if not int(file.read(), 16) & 1:
            raise OSError(f"lo is not up: {outcome.stderr}")


def set_up(plan: Plan) -> None:
    """Create the file system of the lab, and enter it."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Opened first, since a fresh file system may hide the source of a bind.
    sources = [(os.open(source, os.O_PATH), target) for source, target in plan["binds"]]
    exposed = [(os.open(path, os.O_PATH), path) for path in plan["exposed"]]
    root = plan["root"]
    if root != "/":
        bind(root, root)
        mount("/dev", f"{root}/dev", None, MS_BIND | MS_REC)
        mount("/dev/shm", f"{root}/dev/shm", None, MS_BIND)  # noqa: S108  # a mount point
    mount("proc", f"{root}/proc".replace("//", "/"), "proc")
    os.chdir(root)
    if root != "/":
        os.chroot(".")
    os.chdir("/")
    for path, mode in FRESH.items():
        mount("tmpfs", path, "tmpfs", 0, f"mode={mode}")
    for path, permissions in plan["directories"].items():
        os.makedirs(path, exist_ok=True)  # noqa: PTH103
        os.chmod(path, permissions)  # noqa: PTH101
    for descriptor, path in exposed:
        expose(descriptor, path)
    for descriptor, target in sources:
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
        bind(f"/proc/self/fd/{descriptor}", target)
        os.close(descriptor)
    for path, content in plan["etc"].items():
        cover(path, content)


def expose(descriptor: int, path: str) -> None:
    """Make a folder readable for everybody at its own path, whatever the modes above it are."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts)):
        above = "/" + "/".join(parts[:depth])
        if not os.path.isdir(above) or not os.stat(above).st_mode & 0o001:  # noqa: PTH112, PTH116
            mount("tmpfs", above, "tmpfs", 0, "mode=755")
            os.makedirs(path)  # noqa: PTH103
            break
    if not os.path.isdir(path):  # noqa: PTH112
        os.makedirs(path)  # noqa: PTH103  # below a fresh file system
    bind(f"/proc/self/fd/{descriptor}", path)
    os.close(descriptor)


def cover(path: str, content: str) -> None:
    """Bind a file with this content over the one at `path`."""
    optional, path = path.startswith("?"), path.removeprefix("?")
    target = os.path.realpath(path)
    if not os.path.exists(target):  # noqa: PTH110
        if optional:
            return
        if target.startswith("/run/"):  # a symbolic link into what is now a fresh file system
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            open(target, "x").close()  # noqa: PTH123
    source = f"/srv/lab/etc/{os.path.basename(path)}"  # noqa: PTH119
    with open(source, "x", encoding="utf-8") as file:  # noqa: PTH123
        file.write(content)
    bind(source, target, writable=True)


def inner(plan: Plan, report: int) -> None:
    """Run as process 1: set up, report the result, and wait for the end of the input."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    # Process 1 reaps orphans; with the signal ignored, the kernel does it.
    try:
        if plan["net"] is None:
            network(plan)
        set_up(plan)
    except OSError as exc:
        os.write(report, str(exc).encode())
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.close(report)
    while os.read(0, 4096):
        pass


def main() -> int:
    """Create the namespaces, start process 1, report the result, and wait for its end."""
    plan: Plan = json.loads(sys.argv[1])
    try:
        flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID
        if plan["net"] is None:
            flags |= CLONE_NEWNET
        else:
            descriptor = os.open(f"/proc/{plan['net']}/ns/net", os.O_RDONLY)
            call("setns", descriptor, CLONE_NEWNET)
            os.close(descriptor)
        call("unshare", flags)
        call("sethostname", plan["hostname"], ctypes.c_size_t(len(plan["hostname"])))
    except OSError as exc:
        print(json.dumps({"error": str(exc)}), flush=True)  # noqa: T201  # the answer
        return 1
    failure, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(failure)
        inner(plan, report)
        os._exit(0)
    os.close(report)
    error = os.read(failure, 65536).decode(errors="replace")
    print(json.dumps({"error": error} if error else {"pid": pid}), flush=True)  # noqa: T201
    os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
