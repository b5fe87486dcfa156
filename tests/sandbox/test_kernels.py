"""Tests of the calls of each kernel: those of OpenBSD and FreeBSD end at the boundary of libc."""

from __future__ import annotations

import _thread
import errno
import os
import resource
import struct
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.sandbox import Needs, confinement, landlock, openbsd
from smtpd_filters.sandbox.libc import Libc
from tests.sandbox.kernel import LANDLOCK, SECCOMP, FakeLibc

if TYPE_CHECKING:
    from pathlib import Path

CREATE, ADD, RESTRICT = LANDLOCK
PR_SET_NO_NEW_PRIVS = 38


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "mx", "6.12", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    # The test runner may have threads.
    monkeypatch.setattr(_thread, "_count", lambda: 0)


class Kernel(FakeLibc):
    """A Linux with a version of Landlock, whose rulesets are real descriptors."""

    def __init__(self, abi: int, fails: dict[str | int, int] | None = None) -> None:
        super().__init__(fails, {CREATE: abi})

    def call(self, name: str, *arguments: int | bytes | None) -> int:
        result = super().call(name, *arguments)
        if name == "syscall" and arguments[0] == CREATE and arguments[1] is not None:
            return os.open(os.devnull, os.O_RDONLY)
        return result

    def of(self, number: int) -> list[tuple[Any, ...]]:
        """The arguments of a system call, without those that ask for its version."""
        return [
            call[2:]
            for call in self.calls
            if call[:2] == ("syscall", number) and call[2] is not None
        ]

    def ruleset(self) -> tuple[int, ...]:
        [(attributes, size, flags)] = self.of(CREATE)
        assert (size, flags) == (len(attributes), 0)
        return struct.unpack(f"={size // 8}Q", attributes)

    def ports(self) -> set[tuple[int, int]]:
        rules = [arguments for arguments in self.of(ADD) if arguments[1] == 2]
        return {struct.unpack("=QQ", rule) for _, _, rule, _ in rules}


def linux(kernel: FakeLibc, needs: Needs | None = None) -> list[str]:
    libc: Any = kernel
    return confinement.use_kernel(libc, needs or Needs(), "Linux")


def connecting() -> Needs:
    needs = Needs()
    needs.to_connect("192.0.2.1", 53)
    needs.to_connect("192.0.2.1", 53, udp=True)
    return needs


ALL_1 = (1 << 13) - 1


@pytest.mark.parametrize(
    ("abi", "ruleset"),
    [
        (1, (ALL_1,)),
        (2, (ALL_1 | 1 << 13,)),
        (3, (ALL_1 | 3 << 13,)),
        (4, (ALL_1 | 3 << 13, 3)),
        (5, (ALL_1 | 7 << 13, 3)),
        (6, (ALL_1 | 7 << 13, 3, 3)),
        (9, (ALL_1 | 7 << 13, 3, 3)),
    ],
)
def test_each_version_of_landlock_is_asked_for_all_it_has(
    abi: int, ruleset: tuple[int, ...]
) -> None:
    kernel = Kernel(abi)
    assert linux(kernel) == []
    assert kernel.ruleset() == ruleset
    assert kernel.calls[0] == ("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    assert len(kernel.of(RESTRICT)) == 1
    # No rule has rights that this version doesn't know.
    for _, kind, rule, flags in kernel.of(ADD):
        rights, _ = struct.unpack("=Qi", rule)
        assert (kind, flags, rights & ~ruleset[0]) == (1, 0, 0)
        assert rights
    [(mode, all_threads, program)] = kernel.of(SECCOMP[0])
    assert (mode, all_threads) == (1, 1)
    [code] = [call[1] for call in kernel.calls if call[0] == "address"]
    assert struct.unpack("=H6xQ", program) == (len(code) // 8, 0x1234_5678_9ABC)


def test_ports_are_limited_where_the_kernel_can() -> None:
    for abi in (3, 4):
        kernel = Kernel(abi)
        missing = linux(kernel, connecting())
        assert kernel.ports() == ({(2, 53)} if abi == 4 else set())
        assert missing == ([] if abi == 4 else ["Landlock: no limit on TCP ports before Linux 6.7"])


def test_listening_is_a_right_of_its_own() -> None:
    needs = Needs()
    needs.to_listen(8080)
    kernel = Kernel(6)
    assert linux(kernel, needs) == []
    assert kernel.ports() == {(1, 8080)}


def test_servers_that_are_known_later_may_be_anywhere() -> None:
    needs = Needs()
    needs.to_connect_anywhere()
    needs.to_listen(8080)
    kernel = Kernel(6)
    assert linux(kernel, needs) == []
    assert kernel.ruleset()[1] == 1  # listening only
    assert kernel.ports() == {(1, 8080)}
    assert set(openbsd.promises(needs)) >= {"inet", "dns"}


def test_names_are_resolved_over_tcp_too() -> None:
    needs = Needs()
    needs.to_connect("mail.example", 11333)
    kernel = Kernel(6)
    assert linux(kernel, needs) == []
    assert kernel.ports() == {(2, 11333), (2, 53)}


def test_an_abstract_socket_lifts_their_limit() -> None:
    needs = Needs()
    needs.to_connect_unix("\0daemon")
    kernel = Kernel(6)
    assert linux(kernel, needs) == []
    assert kernel.ruleset()[2] == 2  # signals only


def test_paths_have_the_rights_that_their_kind_can_have(tmp_path: Path) -> None:
    needs = Needs()
    (tmp_path / "file").write_text("")
    needs.to_write(str(tmp_path))
    needs.to_read(str(tmp_path / "file"))
    needs.to_read(str(tmp_path / "none"))
    rights = landlock.rights(needs)
    assert rights[str(tmp_path)] == landlock.WRITE
    assert rights["/dev/null"] == landlock.READ_FILE | landlock.WRITE_FILE
    kernel = Kernel(6)
    assert linux(kernel, needs) == []
    seen = {struct.unpack("=Qi", rule)[0] for _, _, rule, _ in kernel.of(ADD)}
    assert landlock.READ_FILE in seen
    assert landlock.WRITE in seen


@pytest.mark.parametrize(
    ("fails", "missing"),
    [
        ({CREATE: errno.ENOSYS}, ["Landlock: this kernel has none"]),
        (
            {CREATE: errno.EOPNOTSUPP},
            ["Landlock: this kernel was started without it (lsm=)"],
        ),
        ({ADD: errno.EINVAL}, ["Landlock: no"]),
        ({RESTRICT: errno.EPERM}, ["Landlock: no"]),
        ({SECCOMP[0]: errno.EINVAL}, ["seccomp: no"]),
        (
            {CREATE: errno.ENOSYS, SECCOMP[0]: errno.ENOSYS},
            ["Landlock: this kernel has none", "seccomp: this kernel has none"],
        ),
        ({"prctl": errno.EINVAL}, ["no_new_privs: no"]),
    ],
)
def test_each_part_that_a_kernel_lacks_is_named(
    fails: dict[str | int, int], missing: list[str]
) -> None:
    kernel = Kernel(6, fails)
    assert linux(kernel) == missing
    # One that is missing costs the others nothing.
    if not fails.keys() & {SECCOMP[0], "prctl"}:
        assert kernel.of(SECCOMP[0])
    if not fails.keys() & {CREATE, ADD, "prctl"}:
        assert kernel.of(RESTRICT)


def test_threads_of_a_set_up_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_thread, "_count", lambda: 2)
    assert linux(Kernel(6)) == ["Landlock: not for 2 threads that were started during setup"]


def test_a_thread_with_a_filter_of_its_own_is_named() -> None:
    kernel = Kernel(6)
    kernel._results[SECCOMP[0]] = 4712
    assert linux(kernel) == ["seccomp: thread 4712 has a filter of its own"]


def test_an_unknown_machine_keeps_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "mx", "6.12", "#1", "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    kernel = Kernel(6)
    assert linux(kernel) == ["seccomp: not known for riscv64"]
    assert kernel.of(RESTRICT)


# -- OpenBSD ---------------------------------------------------------------------------------


def on_openbsd(libc: FakeLibc, needs: Needs) -> list[str]:
    fake: Any = libc
    return confinement.use_kernel(fake, needs, "OpenBSD")


def pledged(libc: FakeLibc) -> set[str]:
    [promises] = [call[1:] for call in libc.calls if call[0] == "pledge"]
    assert promises[1] is None  # no promises for programs
    return set(promises[0].decode().split())


def test_openbsd_shows_a_filter_without_look_ups_only_software() -> None:
    libc = FakeLibc()
    assert on_openbsd(libc, Needs()) == []
    assert pledged(libc) == {"stdio", "rpath", "prot_exec", "error"}
    unveiled = [call[1:] for call in libc.calls if call[0] == "unveil"]
    assert unveiled[-1] == (None, None)
    assert libc.calls[-1][0] == "pledge"  # which unveil would need a promise after
    shown = dict(unveiled[:-1])
    assert shown[b"/usr/lib"] == b"r"
    assert shown[b"/dev/null"] == b"rw"
    assert not {b"/etc", b"/", b"/var/tmp"} & shown.keys()


@pytest.mark.parametrize(
    ("declare", "promises"),
    [
        (lambda needs: needs.to_connect("192.0.2.1", 53, udp=True), {"inet"}),
        (lambda needs: needs.to_connect("mail.example", 80), {"inet", "dns"}),
        (lambda needs: needs.to_listen(80), {"inet"}),
        (lambda needs: needs.to_connect_unix("/run/x"), {"unix"}),
        (lambda needs: needs.to_write("/tmp"), {"wpath", "cpath", "flock", "fattr"}),  # noqa: S108
        (lambda needs: needs.to_receive_descriptors(), {"recvfd"}),
        (lambda needs: needs.to_run(), {"proc", "exec"}),
    ],
)
def test_openbsd_is_promised_what_is_declared(declare: Any, promises: set[str]) -> None:
    needs = Needs()
    declare(needs)
    assert set(openbsd.promises(needs)) - set(openbsd.promises(Needs())) == promises


def test_openbsd_shows_what_is_declared(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tmp_path / "table-1")
    (tmp_path / "table-1").write_text("x\n")
    needs = Needs()
    needs.to_reload(str(tmp_path / "current"))
    needs.to_write(str(tmp_path / "spool"))
    needs.to_connect_unix(str(tmp_path / "socket"))
    needs.to_read(str(tmp_path / "no" / "directory" / "of"))
    needs.to_run("/opt/tool")
    libc = FakeLibc()
    assert on_openbsd(libc, needs) == []
    shown = {call[1]: call[2] for call in libc.calls if call[0] == "unveil"}
    here = os.fsencode(tmp_path)
    assert shown[here + b"/current"] == shown[here + b"/table-1"] == b"r"
    assert shown[here + b"/spool"] == b"rwc"
    assert shown[here + b"/socket"] == b"rw"
    assert shown[b"/usr/lib"] == b"r"
    assert shown[b"/usr"] == b"rx"
    assert here + b"/no/directory/of" not in shown


@pytest.mark.parametrize("function", ["pledge", "unveil"])
def test_openbsd_may_refuse(function: str) -> None:
    libc = FakeLibc({function: errno.EINVAL})
    assert on_openbsd(libc, Needs()) == [f"{function}(2): no"]


# -- FreeBSD and others -------------------------------------------------------------------------

CAPSICUM = "files, connections and system calls: FreeBSD has no limits that fit (capsicum(4))"


def on_freebsd(libc: FakeLibc, needs: Needs) -> list[str]:
    fake: Any = libc
    return confinement.use_kernel(fake, needs, "FreeBSD")


def test_freebsd_gives_no_new_privileges() -> None:
    libc = FakeLibc()
    assert on_freebsd(libc, Needs()) == [CAPSICUM]
    assert libc.calls == [("procctl", 0, os.getpid(), 19, b"\1\0\0\0")]


def test_freebsd_leaves_them_to_programs() -> None:
    needs = Needs()
    needs.to_run()
    libc = FakeLibc()
    assert on_freebsd(libc, needs) == [CAPSICUM]
    assert libc.calls == []


def test_an_older_freebsd() -> None:
    libc = FakeLibc({"procctl": errno.EINVAL})
    assert on_freebsd(libc, Needs()) == [CAPSICUM, "procctl(2): no"]


def test_another_system_is_named() -> None:
    fake: Any = FakeLibc()
    missing = confinement.use_kernel(fake, Needs(), "NetBSD")
    assert missing == ["the kernel's parts: none known for NetBSD"]


# -- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "runs", "processes"),
    [("Linux", False, None), ("OpenBSD", False, 1), ("FreeBSD", False, 1), ("FreeBSD", True, None)],
)
def test_processes_are_limited_where_threads_do_not_count(
    system: str, processes: int | None, monkeypatch: pytest.MonkeyPatch, *, runs: bool
) -> None:
    limits: dict[int, int] = {}
    monkeypatch.setattr(confinement, "_lower", limits.__setitem__)
    needs = Needs()
    if runs:
        needs.to_run()
    assert confinement._limit(needs, system) == []
    assert limits.pop(resource.RLIMIT_NPROC, None) == processes
    assert limits.keys() == {resource.RLIMIT_AS, resource.RLIMIT_NOFILE}


# -- the boundary itself ------------------------------------------------------------------------


def test_functions_of_the_c_library_are_called() -> None:
    libc = Libc()
    assert libc.call("getpid") == os.getpid()
    assert libc.call("strlen", b"four") == 4


def test_a_failed_call_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        Libc().call("close", 1 << 20)
    assert (raised.value.errno, raised.value.filename) == (errno.EBADF, "close")


def test_a_function_that_is_missing_is_an_error() -> None:
    with pytest.raises(OSError, match="no such function") as raised:
        Libc().call("pledge", b"stdio", None)
    assert raised.value.errno == errno.ENOSYS


def test_data_has_an_address() -> None:
    import ctypes

    data = bytearray(b"here\0")
    assert ctypes.string_at(Libc().address(data)) == b"here"
