"""The filter of system calls, run as the kernel would, for both machines."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.sandbox import Needs, seccomp
from tests.sandbox.kernel import ARM64, X86_64

if TYPE_CHECKING:
    from collections.abc import Callable

PID = 4711
ALLOW = 0x7FFF0000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
THREAD = 0x003D0F00  # pthread_create of glibc: CLONE_VM | ... | CLONE_THREAD | ...
FORK = 0x01200011  # fork of glibc: CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD
INET, INET6, UNIX, NETLINK, PACKET = 2, 10, 1, 16, 17
STREAM, DATAGRAM, RAW, CLOEXEC = 1, 2, 3, 0o2000000
MACHINES = pytest.mark.parametrize("machine", [X86_64, ARM64], ids=["x86_64", "aarch64"])
TABLES = (
    seccomp.ALWAYS, seccomp.PROGRAMS, seccomp.ATTRIBUTES, seccomp.LISTENING, seccomp.CONDITIONAL,
)  # fmt: skip


class Call(NamedTuple):
    """A system call as the kernel describes it to a filter."""

    arch: int
    number: int
    arguments: tuple[int, ...] = ()

    def word(self, offset: int) -> int:
        data = self.number.to_bytes(4, "little") + self.arch.to_bytes(4, "little") + bytes(8)
        for at in range(6):
            value = self.arguments[at] if at < len(self.arguments) else 0xDEAD
            data += (value % (1 << 64)).to_bytes(8, "little")
        return int.from_bytes(data[offset : offset + 4], "little")


def run(program: bytes, call: Call) -> int:
    """Return the result of a filter for a call, by the rules of linux/bpf_common.h."""
    loaded = at = 0
    while True:
        code, then, otherwise = program[at], program[at + 2], program[at + 3]
        assert program[at + 1] == 0
        value = int.from_bytes(program[at + 4 : at + 8], "little")
        at += 8
        if code == 0x20:
            loaded = call.word(value)
        elif code == 0x54:
            loaded &= value
        elif code == 0x06:
            return value
        else:
            true = {0x15: loaded == value, 0x25: loaded > value, 0x45: loaded & value != 0}[code]
            at += 8 * (then if true else otherwise)


def judge(
    machine: tuple[int, int], name: str, *arguments: int, needs: Needs | None = None
) -> int | None:
    """The result for a system call by its name; None if this machine has none of that name."""
    arch, column = machine
    number = next(table[name] for table in TABLES if name in table)[column]
    if number is None:
        return None
    program = seccomp.make(arch, column, needs or Needs(), PID)
    return run(program, Call(arch, number, arguments))


@MACHINES
@pytest.mark.parametrize("name", sorted({*seccomp.ALWAYS, *seccomp.PROGRAMS}))
def test_what_no_filter_does_is_refused(machine: tuple[int, int], name: str) -> None:
    assert judge(machine, name) in (EPERM, None)


@MACHINES
@pytest.mark.parametrize(
    ("table", "declare"),
    [
        (seccomp.PROGRAMS, Needs.to_run),
        (seccomp.ATTRIBUTES, lambda needs: needs.to_write("/var/db")),
        (seccomp.LISTENING, lambda needs: needs.to_listen(8080)),
    ],
    ids=["programs", "attributes", "listening"],
)
def test_what_is_declared_is_allowed(
    machine: tuple[int, int],
    table: seccomp.Table,
    declare: Callable[[Needs], None],
) -> None:
    needs = Needs()
    declare(needs)
    assert {judge(machine, name) for name in table} - {None} == {EPERM}
    assert {judge(machine, name, needs=needs) for name in table} - {None} == {ALLOW}


@MACHINES
def test_threads_start_and_processes_do_not(machine: tuple[int, int]) -> None:
    assert judge(machine, "clone", THREAD) == ALLOW
    assert judge(machine, "clone", FORK) == EPERM
    # The C library then tries clone.
    assert judge(machine, "clone3") == ENOSYS
    needs = Needs()
    needs.to_run()
    assert judge(machine, "clone", FORK, needs=needs) == ALLOW
    assert judge(machine, "clone3", needs=needs) == ALLOW


@MACHINES
def test_a_process_signals_only_itself(machine: tuple[int, int]) -> None:
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        assert judge(machine, name, PID, 6) == ALLOW
        for other in (1, 0, -1, PID + 1):
            assert judge(machine, name, other, 6) == EPERM
        needs = Needs()
        needs.to_run()
        assert judge(machine, name, PID + 1, 6, needs=needs) == ALLOW
    assert judge(machine, "prlimit64", 0, 7) == judge(machine, "prlimit64", PID, 7) == ALLOW
    assert judge(machine, "prlimit64", 1, 7) == EPERM


def _declared(*declarations: str) -> Needs:
    needs = Needs()
    if "address" in declarations:
        needs.to_connect("192.0.2.1", 53, udp=True)
    if "name" in declarations:
        needs.to_connect("mail.example", 80)
    if "unix" in declarations:
        needs.to_connect_unix("/run/x")
    return needs


@MACHINES
@pytest.mark.parametrize(
    ("declarations", "families"),
    [
        ((), set()),
        (("address",), {INET, INET6}),
        (("name",), {INET, INET6, NETLINK}),
        (("unix",), {UNIX}),
        (("unix", "address"), {UNIX, INET, INET6}),
    ],
)
def test_sockets_are_those_declared(
    machine: tuple[int, int], declarations: tuple[str, ...], families: set[int]
) -> None:
    needs = _declared(*declarations)
    for family in (UNIX, INET, INET6, NETLINK, PACKET, 0, 40):
        for kind in (STREAM, DATAGRAM, STREAM | CLOEXEC, DATAGRAM | 0o4000):
            allowed = ALLOW if family in families else EPERM
            assert judge(machine, "socket", family, kind, 0, needs=needs) == allowed
    for family in (INET, INET6, UNIX):
        assert judge(machine, "socket", family, RAW, 0, needs=needs) == EPERM
    # Of netlink only the protocol of routes, and that with any type.
    assert judge(machine, "socket", NETLINK, RAW, 16, needs=needs) == EPERM
    allowed = ALLOW if NETLINK in families else EPERM
    assert judge(machine, "socket", NETLINK, RAW | CLOEXEC, 0, needs=needs) == allowed


@MACHINES
@given(number=st.integers(0, 2**32 - 1), writes=st.booleans(), runs=st.booleans())
def test_any_other_call_is_allowed_if_it_is_known(
    machine: tuple[int, int],
    number: int,
    writes: bool,  # noqa: FBT001  # drawn
    runs: bool,  # noqa: FBT001  # drawn
) -> None:
    arch, column = machine
    needs = Needs()
    if writes:
        needs.to_write("/var/db")
    if runs:
        needs.to_run()
    listed = {each[column] for table in TABLES for each in table.values()}
    program = seccomp.make(arch, column, needs, PID)
    result = run(program, Call(arch, number))
    if number > seccomp.NEWEST:
        assert result == ENOSYS
    elif number not in listed:
        assert result == ALLOW
    # The calls of another machine, such as those of 32 bits, are unknown.
    assert run(program, Call(arch ^ 1, number)) == ENOSYS


def test_the_numbers_are_those_of_libseccomp() -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    resolve = library.seccomp_syscall_resolve_name_arch
    checked = 0
    for table in TABLES:
        for name, numbers in table.items():
            for (arch, _), ours in zip((X86_64, ARM64), numbers, strict=True):
                theirs: int = resolve(ctypes.c_uint32(arch), name.encode())
                if theirs == -1:
                    continue  # it is newer than the library
                assert (theirs if theirs >= 0 else None) == ours, (name, hex(arch))
                checked += 1
    assert checked > 200


def test_no_name_is_in_two_tables() -> None:
    names = [name for table in TABLES for name in table]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["riscv64", "i686", "armv7l"])
def test_another_machine_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    uname = os.uname_result(("Linux", "mx", "6.1", "#1", name))
    monkeypatch.setattr(os, "uname", lambda: uname)
    with pytest.raises(seccomp.UnknownMachineError, match=name):
        seccomp.machine()


@pytest.mark.parametrize("size", [255, 256])
def test_a_jump_goes_as_far_as_it_can(size: int) -> None:
    program = seccomp.Program()
    program.jump(0x15, 1, "end")
    for _ in range(size):
        program.load(0)
    program.result("end", ALLOW)
    if size > 255:
        with pytest.raises(ValueError, match="range"):
            program.assemble()
    else:
        assert run(program.assemble(), Call(0, 1)) == ALLOW


def test_no_jump_goes_back() -> None:
    program = seccomp.Program()
    program.result("begin", ALLOW)
    program.jump(0x15, 1, "begin")
    with pytest.raises(ValueError, match="range"):
        program.assemble()
