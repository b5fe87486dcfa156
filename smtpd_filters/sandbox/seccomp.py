"""seccomp: the system calls that a process on Linux gives up.

A filter, a small program for the kernel, returns an error for each of them; it never kills. What is
listed is what is refused, and calls newer than `NEWEST` are refused as unknown (ENOSYS), so that
the C library falls back to older ones. Together that is a list of what is allowed, except that an
unforeseen call of a library still works (docs/decisions/sandbox.md).

Numbers are those of x86-64 and of AArch64, whose numbers are the generic ones of newer machines.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    from .libc import Libc
    from .needs import Needs

    #: Names of system calls, with their numbers on both machines.
    Table: TypeAlias = Mapping[str, tuple[int, int | None]]

#: The last system call that is known here: mseal(2), of Linux 6.10. Those of the ABI x32 are above.
NEWEST = 462
#: The architecture's number in a filter, and its column in the tables.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
#: The number of seccomp(2) itself, by column.
_SECCOMP = (317, 277)
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

#: Programs and processes.
PROGRAMS: Table = {
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "pidfd_open": (434, 434),
}  # fmt: skip
#: Attributes of files by their path, which Landlock doesn't limit.
ATTRIBUTES: Table = {
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
}  # fmt: skip
LISTENING: Table = {"listen": (50, 201)}
#: What no filter does.
ALWAYS: Table = {
    # Other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # Memory and queues shared with other processes.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Large parts of the kernel that mail has no use for.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42), "modify_ldt": (154, None), "personality": (135, 92),
    "syslog": (103, 116), "uselib": (134, None), "sysfs": (139, None),
    # Users, namespaces, mounts, the system.
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "setgroups": (116, 159), "capset": (126, 91), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "open_tree": (428, 428), "move_mount": (429, 429),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58),
}  # fmt: skip
#: Calls that are refused depending on their arguments.
CONDITIONAL: Table = {
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "kill": (62, 129),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
}  # fmt: skip
#: Flag of clone(2): the new thread belongs to this process.
_THREAD = 0x00010000

# Families of sockets that may be declared, and their types; flags are above the type.
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16
_TYPES, _STREAM, _DATAGRAM = 0xF, 1, 2

# Instructions, see linux/bpf_common.h: load a word, and with a mask; jump if equal, above, or with
# common bits; return.
_LOAD, _AND, _EQUAL, _ABOVE, _COMMON, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
# Offsets of the number, the architecture and the arguments (their lower half).
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


class UnknownMachineError(Exception):
    """The numbers of this machine's system calls are not known here; the text is its name."""


class Program:
    """A filter under construction. A jump is forwards, to a place that is marked later."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str, str]] = []
        self._places = {"": 0}

    def load(self, offset: int, mask: int = 0) -> None:
        """Load a word of the call's description, or some of its bits."""
        self._code.append((_LOAD, offset, "", ""))
        if mask:
            self._code.append((_AND, mask, "", ""))

    def jump(self, if_: int, value: int, then: str, otherwise: str = "") -> None:
        """Go to one of two places, by default on with the next instruction."""
        self._code.append((if_, value, then, otherwise))

    def jump_if_any(self, numbers: Iterable[int], then: str) -> None:
        """Go to a place if any of the numbers is loaded."""
        self._code += [(_EQUAL, number, then, "") for number in numbers]

    def result(self, place: str, value: int) -> None:
        """End with a result, at a place."""
        self.mark(place)
        self._code.append((_RETURN, value, "", ""))

    def mark(self, place: str) -> None:
        """Name the place of the next instruction."""
        self._places[place] = len(self._code)

    def assemble(self) -> bytes:
        """Return the instructions as the kernel reads them.

        Raises ValueError for a jump backwards, or over more than 255 instructions.
        """
        places = self._places
        return b"".join(
            [
                # struct sock_filter: 16 bits, twice 8, and 32; both machines are little-endian.
                bytes(
                    (
                        operation,
                        0,
                        places[then] - at if then else 0,
                        places[otherwise] - at if otherwise else 0,
                    )
                )
                + value.to_bytes(4, "little")
                for at, (operation, value, then, otherwise) in enumerate(self._code, 1)
            ]
        )


def machine() -> tuple[int, int]:
    """Return the architecture's number and column; raise UnknownMachineError without one."""
    name = os.uname().machine
    if name not in _MACHINES or sys.maxsize < 1 << 32:
        raise UnknownMachineError(name)
    return _MACHINES[name]


def confine(libc: Libc, needs: Needs) -> None:
    """Give up the system calls that are not needed, in all threads.

    Raises OSError without seccomp, and UnknownMachineError.
    """
    arch, column = machine()
    install(libc, make(arch, column, needs, os.getpid()), column)


def make(arch: int, column: int, needs: Needs, pid: int) -> bytes:
    """Return the filter for the process `pid`."""
    program = Program()
    program.load(_ARCH)
    program.jump(_EQUAL, arch, "", "unknown")
    program.load(_NUMBER)
    program.jump(_ABOVE, NEWEST, "unknown")
    for table in _refused(needs):
        numbers = [each[column] for each in table.values()]
        program.jump_if_any([each for each in numbers if each is not None], "refuse")
    checks = {"socket": "socket", "prlimit64": "own or 0"}
    if not needs.runs:
        # Otherwise it may signal its children; Landlock excludes other processes.
        checks |= dict.fromkeys(("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"), "own")
        # The flags of clone3 are in memory, where a filter can't see them.
        checks |= {"clone": "thread", "clone3": "unknown"}
    for name, place in checks.items():
        number = CONDITIONAL[name][column]
        assert number is not None  # noqa: S101  # all machines have these
        program.jump(_EQUAL, number, place)
    program.result("allow", _ALLOW)
    program.mark("socket")
    program.load(_ARGUMENT)
    for family in _families(needs):
        program.jump(_EQUAL, family, "netlink" if family == NETLINK else "type")
    program.result("refuse", _ERROR | errno.EPERM)
    program.mark("type")
    program.load(_ARGUMENT + 8, _TYPES)
    program.jump(_EQUAL, _STREAM, "allowed")
    program.jump(_EQUAL, _DATAGRAM, "allowed", "forbidden")
    program.mark("netlink")
    # Only the protocol of routes.
    program.load(_ARGUMENT + 16)
    program.jump(_EQUAL, 0, "allowed", "forbidden")
    if not needs.runs:
        program.mark("thread")
        program.load(_ARGUMENT)
        program.jump(_COMMON, _THREAD, "allowed", "forbidden")
    program.mark("own or 0")
    program.load(_ARGUMENT)
    program.jump(_EQUAL, 0, "allowed")
    program.mark("own")
    program.load(_ARGUMENT)
    program.jump(_EQUAL, pid, "allowed")
    program.result("forbidden", _ERROR | errno.EPERM)
    program.result("allowed", _ALLOW)
    program.result("unknown", _ERROR | errno.ENOSYS)
    return program.assemble()


def _refused(needs: Needs) -> list[Table]:
    """Return the tables of what is not needed."""
    optional: list[tuple[object, Table]] = [
        (needs.runs, PROGRAMS),
        (needs.write, ATTRIBUTES),
        (needs.listening, LISTENING),
    ]
    return [ALWAYS, *(table for needed, table in optional if not needed)]


def _families(needs: Needs) -> list[int]:
    families = [UNIX] if needs.sockets else []
    if needs.internet:
        families += [INET, INET6]
    # By netlink the C library learns which addresses this machine has, to sort those of a name.
    return [*families, NETLINK] if needs.resolves else families


def install(libc: Libc, program: bytes, column: int) -> None:
    """Install a filter in all threads. Raises OSError."""
    code = bytearray(program)
    length = len(program) // 8
    # struct sock_fprog: a length of 16 bits, and after 6 bytes a pointer.
    described = length.to_bytes(8, "little") + libc.address(code).to_bytes(8, "little")
    failed = libc.call("syscall", _SECCOMP[column], _SET_MODE_FILTER, _ALL_THREADS, described)
    if failed:
        raise OSError(errno.EBUSY, f"thread {failed} has a filter of its own")
