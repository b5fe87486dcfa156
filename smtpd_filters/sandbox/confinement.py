"""Takes from the process what its filters did not declare."""

from __future__ import annotations

import os
import resource
import sys
from errno import ENOSYS, EOPNOTSUPP

from smtpd_filters.errors import sandboxed

from . import audit
from .needs import LINUX, THREAD, readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .libc import Libc
    from .needs import Needs

#: The least limit of memory in bytes, whatever the machine has.
LEAST = 256 << 20
#: The share of the machine's memory that one process may take: three quarters.
_SHARE = (3, 4)
_PR_SET_NO_NEW_PRIVS = 38
_ABSENT = {
    ENOSYS: "this kernel has none",
    EOPNOTSUPP: "this kernel was started without it (lsm=)",
}


def confine(needs: Needs) -> list[str]:
    """Take away what is not needed, as far as this system can; return what it lacks, for the log.

    Never raises an error of the system. It can't be undone.
    """
    system = os.uname().sysname
    missing = _limit(needs, system)
    try:
        from .libc import Libc

        libc = Libc()
    except (OSError, ImportError) as error:
        missing.append(f"the kernel's parts: {error}")
    else:
        missing += use_kernel(libc, needs, system)
    # A compiled module can't be written any more.
    sys.dont_write_bytecode = True
    audit.install(needs, (*readable(needs), *LINUX))
    sandboxed.add(os.getpid())
    return missing


def use_kernel(libc: Libc, needs: Needs, system: str) -> list[str]:
    """Have the kernel take away what is not needed; return what it lacks."""
    if system == "Linux":
        return _use_linux(libc, needs)
    if system == "OpenBSD":
        from . import openbsd

        return openbsd.confine(libc, needs)
    if system == "FreeBSD":
        from . import freebsd

        return freebsd.confine(libc, needs)
    return [f"the kernel's parts: none known for {system}"]


def _use_linux(libc: Libc, needs: Needs) -> list[str]:
    from . import landlock, seccomp

    missing = []
    try:
        libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError as error:
        return [f"no_new_privs: {_reason(error)}"]  # the others depend on it
    try:
        missing += landlock.confine(libc, needs)
    except OSError as error:
        missing.append(f"Landlock: {_reason(error)}")
    try:
        seccomp.confine(libc, needs)
    except seccomp.UnknownMachineError as error:
        missing.append(f"seccomp: not known for {error}")
    except OSError as error:
        missing.append(f"seccomp: {_reason(error)}")
    return missing


def _reason(error: OSError) -> str:
    return _ABSENT.get(error.errno or 0, error.strerror or str(error))


# -- limits ----------------------------------------------------------------------------------
#
# A limit is never raised. When one is reached an operation fails in the process, which handles that
# (docs/architecture.md, Out of memory), and the rest of the machine has what it needs.


def _limit(needs: Needs, system: str) -> list[str]:
    """Set the limits, setrlimit(2); return those that could not be set, for the log."""
    memory = "RLIMIT_AS" if hasattr(resource, "RLIMIT_AS") else "RLIMIT_DATA"  # OpenBSD
    wanted = {
        memory: _room(needs.memory) + _taken() + needs.threads * THREAD,
        "RLIMIT_NOFILE": needs.descriptors,
    }
    # On Linux a thread counts as a process, and those of all processes of the user count together.
    if not (needs.runs or system == "Linux"):
        wanted["RLIMIT_NPROC"] = 1
    failed = []
    for name, value in wanted.items():
        try:
            _lower(getattr(resource, name), value)
        except (OSError, ValueError) as error:
            failed.append(f"{name}: {error}")
    return failed


def _lower(which: int, value: int) -> None:
    soft, hard = resource.getrlimit(which)
    if soft == resource.RLIM_INFINITY or soft > value:
        # Limits are for leaks: code that wants to could raise them again, up to the hard ones.
        resource.setrlimit(which, (value, hard))


def _room(declared: int) -> int:
    """Return the bytes to allow: what is declared, but not most of this machine's memory."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return declared
    share, of = _SHARE
    return min(declared, max(LEAST, physical * share // of))


def _taken() -> int:
    """Return the bytes of address space in use; 0 where it is unknown."""
    try:
        fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 100).split()[0]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(fd)
