"""Helpers for the tests of filters: clients, and executables as smtpd starts them."""

from __future__ import annotations

import subprocess
import sys

from tests.loading import loaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any, TypeVar

    from smtpd_filters.filter import Filter
    from smtpd_filters.testing import Conversation, Verdict

    T = TypeVar("T")

HEAD = "0.7|1576146008.006099|smtp-in"
TOKEN = "1ef1c203cc576e5d"  # noqa: S105  # a token of the protocol
DEST = "198.51.100.25:25"


def come(  # noqa: PLR0913  # all that a client can say
    smtpd: Conversation,
    *,
    helo: str = "mail.example.net",
    method: str = "ehlo",
    user: str = "",
    sender: str = "bob@example.net",
    recipient: str = "anna@example.org",
    **client: Any,
) -> Verdict:
    """Send a message up to DATA: the first verdict that isn't to proceed, or the last."""
    there = smtpd.connect(**client)
    said = there.greeting
    steps: list[Callable[[], Verdict]] = [
        lambda: getattr(there, method)(helo),
        *([lambda: there.auth(user)] if user else []),
        lambda: there.mail_from(sender),
        lambda: there.rcpt_to(recipient),
        there.data,
    ]
    for step in steps:
        if said.verb != "proceed":
            break
        said = step()
    return said


def _run(
    name: str, flags: Iterable[str], lines: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"smtpd_filters.filters.{name}", *flags],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def complaint(name: str, *flags: str) -> str:
    """Return the error of a filter that doesn't start: one line, and nothing for smtpd."""
    done = _run(name, flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"filter-{name}: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def serve(name: str, *flags: str, clients: Iterable[tuple[str, str, str]]) -> tuple[list[str], str]:
    """Return the answers and the log of a filter that gets one request for each client.

    A client is what smtpd reports of it (`rdns|fcrdns|address:port`), a phase, and its parameter.
    """
    lines = ["config|protocol|0.7", "config|admd|mx.example.org", "config|ready"]
    for number, (link, phase, parameter) in enumerate(clients):
        session = f"7641df9771b4ed0{number}"
        lines.append(f"report|{HEAD}|link-connect|{session}|{link}|{DEST}")
        lines.append(f"filter|{HEAD}|{phase}|{session}|{TOKEN}|{parameter}")
    done = _run(name, flags, lines)
    assert done.returncode == 0, done.stderr
    _, answers = done.stdout.split("register|ready\n")
    # Those that are looked up for come in any order.
    return sorted(answers.splitlines()), done.stderr


def answered(number: int, decision: str) -> str:
    """The line in which a filter that was asked by `serve` answers about a client."""
    return f"filter-result|7641df9771b4ed0{number}|{TOKEN}|{decision}"


def loaded_to_set_up(filter_: type[Filter], *flags: str, waits: bool = False) -> set[str]:
    """The modules that are loaded for a filter with these flags, which waits or never does."""
    return loaded(
        f"from {filter_.__module__} import {filter_.__name__} as Kind\n"
        "from smtpd_filters.main import set_up\n"
        "from smtpd_filters.runtime.log import Log\n"
        "from smtpd_filters.settings import common_options, parse_flags\n"
        "own, _ = parse_flags(Kind.Options, sys.argv[1:], common=common_options(), prog='x')\n"
        "filter_ = Kind(own)\n"
        "set_up(filter_, Log())\n"
        f"assert filter_.waits is {waits}\n",
        *flags,
    )


def pending_work(smtpd: Conversation) -> list[object]:
    """Note from now on the work that a task is made for."""
    engine = smtpd._served.engine
    pending: list[object] = []
    spawn = engine.spawn
    assert spawn is not None

    def note(work: Any, done: Any, price: int) -> Any:
        pending.append(work)
        return spawn(work, done, price)

    engine.spawn = note
    return pending


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that doesn't wait."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()
    raise AssertionError("it waits")
