"""A filter that misbehaves, for tests of the promises that hold whatever a policy does.

    python -m tests.hostile_filter --mode MODE --phase PHASE... [--async | --first-step]
        [--on-error proceed|tempfail] [--deadline SECONDS]

It misbehaves in one mode (`MODES`) at each request of the given phases: names of smtpd's phases,
`headers`, `message`, or `all`. In every mode the process stays up, smtpd gets a legal answer in
time, and the next session is served normally. In modes with FALLBACK the answer is the filter's
`--on-error`. In modes with PROCEEDS the policy proceeds, and does its damage elsewhere.

With `--async` the handlers are coroutines that misbehave after they have waited, with
`--first-step` before; some modes need a coroutine (`NEEDS_LOOP`).
"""

# ruff: noqa: ARG001, T201, RUF006  # misbehaving is its purpose

from __future__ import annotations

import argparse
import asyncio
import inspect
import locale
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from smtpd_filters.errors import UnavailableError
from smtpd_filters.filter import Filter
from smtpd_filters.handlers import CONTENT
from smtpd_filters.main import run
from smtpd_filters.message import Headers, Message
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Disconnect, Proceed, Reject, Rewrite
from smtpd_filters.protocol.vocabulary import HANDLERS, PHASES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session

    Misdeed = Callable[[Session, object], object]

FALLBACK = "fallback"
PROCEEDS = "proceed"
#: By mode: the answer that smtpd gets.
MODES: dict[str, str] = {}
_MISDEEDS: dict[str, Misdeed] = {}
#: Modes that need coroutines.
NEEDS_LOOP: set[str] = set()
#: Modes in which each answer takes as long as --deadline allows.
SLOW = {"loop", "sleep", "read", "regex", "stubborn-loop", "await-forever", "swallow-cancel"}
#: Number of tasks at which "leak-blocking-task" stops leaking: the handler's, and one leaked.
MANY = 2
#: Modes that the sandbox would refuse: they fork.
FORKS = {"fork", "fork-exit", "multiprocessing"}
#: The mode that leaves a task behind, which blocks the process after the session has ended.
LEAK_BLOCKING_TASK = "leak-blocking-task"
#: Bytes that "memory" may allocate in addition, limited by RLIMIT_AS.
ROOM = 48 << 20


def _mode(name: str, outcome: str = FALLBACK) -> Callable[[Misdeed], Misdeed]:
    def kept(misdeed: Misdeed) -> Misdeed:
        MODES[name] = outcome
        _MISDEEDS[name] = misdeed
        if inspect.iscoroutinefunction(misdeed):
            NEEDS_LOOP.add(name)
        return misdeed

    return kept


# -- raising ------------------------------------------------------------------------------


class _Own(BaseException):
    pass


class _Mute(Exception):  # noqa: N818  # not an error of ours
    def __str__(self) -> str:
        raise _Own


def _raises(name: str, make: Callable[[], BaseException]) -> None:
    def misdeed(session: Session, subject: object) -> object:
        raise make()

    _mode(name)(misdeed)


_raises("raise", lambda: ValueError("first line\r\nfilter-result|0|0|proceed"))
_raises("raise-base", _Own)
_raises("raise-mute", _Mute)
_raises("raise-interrupt", KeyboardInterrupt)
_raises("raise-generator-exit", GeneratorExit)
_raises("raise-stop-iteration", StopIteration)
_raises("raise-cancelled", asyncio.CancelledError)


@_mode("exit")
def _exit(session: Session, subject: object) -> object:
    sys.exit(3)


@_mode("recursion")
def _recursion(session: Session, subject: object) -> object:
    return _recursion(session, subject)


@_mode("memory")
def _memory(session: Session, subject: object) -> object:
    import resource  # only here

    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    kept: list[object] = []
    try:
        while True:
            kept.append(bytearray(1 << 20))
    except MemoryError:
        while True:
            kept.append(bytearray(1 << 10))


# -- blocking -----------------------------------------------------------------------------


@_mode("loop")
def _loop(session: Session, subject: object) -> object:
    while True:
        pass


@_mode("stubborn-loop")
def _stubborn_loop(session: Session, subject: object) -> object:
    for _ in range(2):
        with suppress(BaseException):
            while True:
                pass
    return None


@_mode("sleep")
def _sleep(session: Session, subject: object) -> object:
    time.sleep(3600)
    return PROCEED


@_mode("read")
def _read(session: Session, subject: object) -> object:
    ends = os.pipe()
    try:
        os.read(ends[0], 1)
    finally:
        for end in ends:
            os.close(end)
    return PROCEED


@_mode("regex")
def _regex(session: Session, subject: object) -> object:
    return re.match(r"(a+)+$", "a" * 64 + "b")


@_mode("await-forever")
async def _await_forever(session: Session, subject: object) -> object:
    await asyncio.Event().wait()
    return PROCEED


@_mode("swallow-cancel")
async def _swallow_cancel(session: Session, subject: object) -> object:
    event = asyncio.Event()
    for _ in range(3):
        with suppress(asyncio.CancelledError):
            await event.wait()
    return PROCEED


@_mode("cancel-self")
async def _cancel_self(session: Session, subject: object) -> object:
    task = asyncio.current_task()
    if task is not None:
        task.cancel()
    await asyncio.sleep(0)
    return PROCEED


@_mode("cancel-all")
async def _cancel_all(session: Session, subject: object) -> object:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)
    return PROCEED


@_mode("stop-loop")
async def _stop_loop(session: Session, subject: object) -> object:
    asyncio.get_running_loop().stop()
    raise ValueError


# -- nonsense -----------------------------------------------------------------------------


class _Sneaky(Reject):
    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("550 5.7.1 No")
        object.__setattr__(self, "wire", b"reject|550 no\nfilter-result|0|0|proceed")


def _tampered() -> Reject:
    decision = Reject("550 5.7.1 No")
    object.__setattr__(decision, "wire", b"reject|550 no\nfilter-result|0|0|proceed")
    return decision


class _Trap:
    @property
    def close(self) -> object:
        raise SystemExit(9)

    def __eq__(self, other: object) -> bool:
        raise SystemExit(9)

    def __hash__(self) -> int:
        raise SystemExit(9)


def _returns(name: str, make: Callable[[Session, object], object]) -> None:
    _mode(name)(make)


async def _agen() -> AsyncIterator[Proceed]:
    yield PROCEED


def _generator() -> Iterator[Proceed]:
    yield PROCEED


async def _coroutine() -> Proceed:
    return PROCEED


_returns("return-none", lambda *_: None)
_returns("return-text", lambda *_: "proceed")
_returns("return-number", lambda *_: 250)
_returns("return-class", lambda *_: Proceed)
_returns("return-generator", lambda *_: _generator())
_returns("return-async-generator", lambda *_: _agen())
_returns("return-coroutine", lambda *_: _coroutine())
_returns("return-trap", lambda *_: _Trap())
_returns("return-session", lambda session, _: session)
_returns("subclass", lambda *_: _Sneaky())
_returns("tamper", lambda *_: _tampered())
_returns("empty-reply", lambda *_: Reject(""))
_returns("multi-line-reply", lambda *_: Reject("550-5.7.1 No\r\n550 5.7.1 No"))
_returns("no-code-reply", lambda *_: Disconnect("Go away"))
_returns("rewrite-break", lambda *_: Rewrite("a@example.org>\nfilter-result|0|0|proceed"))


@_mode("wrong-phase")
def _wrong_phase(session: Session, subject: object) -> object:
    """Junk and rewrite, one of which every phase forbids; handlers say that they proceed only."""
    return JUNK


# -- damage elsewhere ---------------------------------------------------------------------


@_mode("header-break", PROCEEDS)
def _header_break(session: Session, subject: object) -> object:
    headers = subject.headers if isinstance(subject, Message) else subject
    if isinstance(headers, Headers):
        headers.append("X-Break", "1\r\nX-Injected: 1\n\nbody\n.\n")
        headers.prepend("X-Null", b"a\0b\r.\r\n.\r\n")
    return PROCEED


@_mode("header-garbage")
def _header_garbage(session: Session, subject: object) -> object:
    headers = subject.headers if isinstance(subject, Message) else subject
    if not isinstance(headers, Headers):
        raise TypeError
    garbage: Any = headers
    garbage._lines = [None, b"\n.\n", 3]
    garbage._entries = None
    garbage._changed = True
    return PROCEED


@_mode("session", FALLBACK)
def _session(session: Session, subject: object) -> object:
    for name in session.__slots__:
        with suppress(AttributeError):
            delattr(session, name)
    return PROCEED


@_mode("leak-tasks", PROCEEDS)
async def _leak_tasks(session: Session, subject: object) -> object:
    async def leaked() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def raises() -> None:
        raise SystemExit(5)

    loop = asyncio.get_running_loop()
    for work in (leaked, raises):
        loop.create_task(work())
    loop.call_soon(sys.exit, 6)
    return PROCEED


@_mode(LEAK_BLOCKING_TASK, PROCEEDS)
async def _leak_blocking_task(session: Session, subject: object) -> object:
    gone = _gone.setdefault(session.key, asyncio.Event())

    async def blocks() -> None:
        # By then nobody waits for an answer.
        await gone.wait()
        while True:
            pass

    if len(asyncio.all_tasks()) < MANY:
        asyncio.get_running_loop().create_task(blocks())
    return PROCEED


#: For each session of "leak-blocking-task", what happens when it is gone.
_gone: dict[bytes, asyncio.Event] = {}


def _disconnect(_filter: Filter, session: Session) -> None:
    if event := _gone.pop(session.key, None):
        event.set()


@_mode("leak-threads", PROCEEDS)
def _leak_threads(session: Session, subject: object) -> object:
    def fails() -> None:
        raise ValueError("in a thread")

    threading.Thread(target=threading.Event().wait).start()
    threading.Thread(target=fails).start()
    return PROCEED


@_mode("close-descriptors", PROCEEDS)
def _close_descriptors(session: Session, subject: object) -> object:
    for number in (0, 1, 2):
        with suppress(OSError):
            os.close(number)
    return PROCEED


@_mode("stdout", PROCEEDS)
def _stdout(session: Session, subject: object) -> object:
    print("filter-result|0|0|proceed", flush=True)
    os.write(1, b"register|ready\n")
    sys.stdout.buffer.write(b"\0\n" * 100)
    return PROCEED


@_mode("stderr", PROCEEDS)
def _stderr(session: Session, subject: object) -> object:
    for _ in range(100):
        sys.stderr.write("x" * 1000 + "\n")
    return PROCEED


@_mode("time", PROCEEDS)
def _time(session: Session, subject: object) -> object:
    def broken(*_: object) -> float:
        raise ValueError("no time")

    for name in ("monotonic", "time", "sleep", "perf_counter"):
        setattr(time, name, broken)
    return PROCEED


@_mode("finaliser", PROCEEDS)
def _finaliser(session: Session, subject: object) -> object:
    class Dying:
        def __del__(self) -> None:
            raise SystemExit(4)

    Dying()
    return PROCEED


@_mode("reason", PROCEEDS)
def _reason(session: Session, subject: object) -> object:
    return PROCEED.because(ValueError("first line\r\nfilter-result|0|0|proceed"))


@_mode("mute-reason")
def _mute_reason(session: Session, subject: object) -> object:
    return PROCEED.because(_Mute())


class _MuteUnavailableError(UnavailableError):
    """Fails at everything that is asked of it."""

    def __init__(self) -> None:
        Exception.__init__(self)

    def __str__(self) -> str:
        raise _Own

    @property
    def status(self) -> str:  # type: ignore[override]
        raise _Own


_raises("unavailable", _MuteUnavailableError)
_raises("unavailable-status", lambda: UnavailableError("x", "5.1\r\nfilter-result|0|0|proceed"))
_raises("raise-group", lambda: BaseExceptionGroup("x", [KeyboardInterrupt()]))


@_mode("fork", PROCEEDS)
def _fork(session: Session, subject: object) -> object:
    """The child returns to the framework, as smtpd's second partner."""
    child = os.fork()
    if not child:
        return Reject("550 5.7.1 I am the child")
    os.waitpid(child, 0)
    return PROCEED


@_mode("fork-exit", PROCEEDS)
def _fork_exit(session: Session, subject: object) -> object:
    child = os.fork()
    if not child:
        sys.exit(3)
    os.waitpid(child, 0)
    return PROCEED


@_mode("multiprocessing", PROCEEDS)
def _multiprocessing(session: Session, subject: object) -> object:
    """A worker that is stopped again, and one that never ends while this process lives."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_stay, args=(os.getpid(),))
    child.start()
    child.terminate()
    child.join()
    if not multiprocessing.active_children():
        context.Process(target=_stay, args=(os.getpid(),)).start()
    return PROCEED


def _stay(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.05)


@_mode("signals", PROCEEDS)
def _signals(session: Session, subject: object) -> object:
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(0)
    signal.set_wakeup_fd(-1)
    return PROCEED


@_mode("environment", PROCEEDS)
def _environment(session: Session, subject: object) -> object:
    os.chdir("/")
    os.umask(0o777)
    os.environ.clear()
    locale.setlocale(locale.LC_ALL, "C")
    tempfile.tempdir = "/nonexistent"
    sys.stdin = sys.stdout = sys.stderr = None
    sys.setrecursionlimit(200)
    return PROCEED


# -- the filter ---------------------------------------------------------------------------

#: What may be given for --phase.
PLACES = (*PHASES, *CONTENT)


def _handler(misdeed: Misdeed, *, later: bool, first: bool, argument: bool, returns: str) -> object:
    async def do_later(session: Session, subject: object) -> object:
        if not first:
            await asyncio.sleep(0)
        done = misdeed(session, subject)
        return await cast("Any", done) if inspect.iscoroutinefunction(misdeed) else done

    if later and argument:

        async def made(self: object, session: Session, subject: object) -> object:
            return await do_later(session, subject)

    elif later:

        async def made(self: object, session: Session) -> object:  # type: ignore[misc]
            return await do_later(session, None)

    elif argument:

        def made(self: object, session: Session, subject: object) -> object:  # type: ignore[misc]
            return misdeed(session, subject)

    else:

        def made(self: object, session: Session) -> object:  # type: ignore[misc]
            return misdeed(session, None)

    made.__annotations__["return"] = returns
    return made


def _needs(_filter: Filter, needs: Needs) -> None:
    needs.to_run()


def hostile(
    mode: str, phases: Sequence[str], *, later: bool = False, first: bool = False
) -> type[Filter]:
    """Make a filter that misbehaves in this manner at these phases (of `PLACES`).

    `later`: in a coroutine, behind its first step; `first`: in its first step. Raises KeyError for
    a mode that there is not.
    """
    misdeed = _MISDEEDS[mode]
    members: dict[str, object] = {
        "__module__": __name__,
        "__doc__": f"Misbehaves: {mode}.",
        "name": "hostile",
    }
    for place in phases:
        phase = PHASES.get(place)
        name = phase.handler if phase else place
        legal = [kind.__name__ for kind in phase.legal] if phase else ["Answer"]
        members[name] = _handler(
            misdeed,
            later=later or first or mode in NEEDS_LOOP,
            first=first,
            argument=bool(phase.argument if phase else True),
            returns="Proceed" if mode == "wrong-phase" else " | ".join(legal),
        )
    if mode == LEAK_BLOCKING_TASK:
        members["link_disconnect"] = _disconnect
    if mode in FORKS:
        members["needs"] = _needs
    assert members.keys() & (HANDLERS.keys() | CONTENT.keys())  # there are some
    return type("Hostile", (Filter,), members)


def main(argv: Sequence[str] | None = None) -> int:
    """Be that filter."""
    parser = argparse.ArgumentParser(prog="hostile", allow_abbrev=False, add_help=False)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--phase", choices=(*PLACES, "all"), nargs="+", default=["all"])
    parser.add_argument("--async", dest="later", action="store_true")
    parser.add_argument("--first-step", dest="first", action="store_true")
    own, rest = parser.parse_known_args(argv)
    phases = PLACES if "all" in own.phase else own.phase
    return run(hostile(own.mode, phases, later=own.later, first=own.first), argv=rest)


if __name__ == "__main__":
    sys.exit(main())
