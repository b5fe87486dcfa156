from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters import PROCEED, Filter, Proceed
from smtpd_filters.errors import UnavailableError
from smtpd_filters.runtime.probes import MARK, Answer, Probe, ask, end
from tests.effort import part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import Any

    from smtpd_filters import Session


def says(fault: str) -> Callable[[], Awaitable[str]]:
    async def answer() -> str:
        return fault

    return answer


async def fails() -> str:
    raise OSError("no route")


async def never() -> str:
    await asyncio.get_running_loop().create_future()
    return ""


def test_all_are_asked() -> None:
    probes = [Probe("a", says("")), Probe("b", says("refused")), Probe("c", fails)]
    a, b, c = asyncio.run(ask(probes))
    assert (a.subject, a.fault) == ("a", "")
    assert (b.subject, b.fault) == ("b", "refused")
    assert c.fault.startswith("OSError: no route")


async def lacks() -> str:
    raise UnavailableError("status 503")


async def lacks_silently() -> str:
    raise UnavailableError("")


def test_of_a_service_that_is_unavailable_the_cause_is_shown() -> None:
    probes = [Probe("quota http://192.0.2.1", lacks), Probe("b", lacks_silently)]
    assert [each.fault for each in asyncio.run(ask(probes))] == ["status 503", "unavailable"]


def test_a_service_that_never_answers() -> None:
    [answer] = asyncio.run(ask([Probe("a", never)], seconds=0.01))
    assert answer.fault == "no answer within 0.01 s"


def raises(error: BaseException) -> Callable[[], Awaitable[str]]:
    async def answer() -> str:
        raise error

    return answer


def test_a_mistake_in_a_probe_is_its_fault_and_the_others_are_asked() -> None:
    nothing: Any = None
    probes = [
        Probe("a", says(nothing)),
        Probe("b", raises(asyncio.CancelledError())),
        Probe("c", raises(SystemExit(3))),
        Probe("d", lambda: nothing),
        Probe("e", says("")),
    ]
    a, b, c, d, e = (each.fault for each in asyncio.run(ask(probes)))
    assert a.startswith('TypeError: a probe returns "" or why the service can\'t be used, not None')
    assert b.startswith("CancelledError")
    assert c.startswith("SystemExit: 3")
    assert d.startswith("TypeError: ")
    assert e == ""


def test_probes_that_are_cancelled_end() -> None:
    async def work() -> None:
        task = asyncio.ensure_future(ask([Probe("a", never)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(work())


class Own(Filter):
    """Has probes."""

    def helo(self, _session: Session, _identity: str) -> Proceed:
        return PROCEED

    def probes(self) -> Any:
        if not self.more:
            raise OSError("no route")
        return [Probe("fine", says("")), *self.more]

    more: tuple[Any, ...] = ()


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ((), "OSError: no route"),
        (("x",), "TypeError: expected a Probe, not 'x'"),
        ((("x", fails),), "TypeError: expected a Probe, not ('x', "),
        ((Probe(1, fails),), "TypeError: expected a text as the subject, not 1"),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_in_the_list_of_probes_is_told(more: tuple[Any, ...], fault: str) -> None:
    filter_ = Own()
    filter_.more = more
    [answer] = asyncio.run(ask(filter_.all_probes()))
    assert answer.subject == "probes of own"
    assert answer.fault.startswith(fault)


def test_a_filter_that_never_closes_ends() -> None:
    async def close() -> None:
        await never()

    asyncio.run(end(close(), seconds=0.01))


@pytest.mark.parametrize(
    ("subject", "fault", "shown"),
    [
        (
            "daemon 127.0.0.1:783",
            "127.0.0.1:783 connection refused",
            "connection refused; does it run, and listen there?",
        ),
        (
            "daemon /run/clamd.ctl",
            "/run/clamd.ctl no such file or directory",
            "no such file or directory; does it run, and listen there?",
        ),
        ("daemon 127.0.0.1:783", "replied 'x'", "replied 'x'"),
        ("table ldap:/etc/x", "Permission denied", "Permission denied"),
    ],
)
def test_a_fault_says_what_to_do(subject: str, fault: str, shown: str) -> None:
    [answer] = asyncio.run(ask([Probe(subject, says(fault))]))
    assert answer.fault == shown


def test_a_socket_of_another_group_names_the_remedy() -> None:
    [answer] = asyncio.run(ask([Probe("milter /run/o.sock", says("permission denied"))]))
    assert answer.fault.startswith("permission denied; smtpd gives a filter the primary group")
    assert "group NAME" in answer.fault


@pytest.mark.parametrize(
    ("kind", "fault", "advice"),
    [
        ("file", "permission denied", "it is no socket"),
        ("directory", "connection refused", "it is no socket"),
        ("socket 600", "permission denied", "the socket has mode 0600"),
        ("socket 660", "permission denied", "smtpd gives a filter the primary group"),
        ("socket 660", "connection refused", "does it run, and listen there?"),
        ("socket 600", "connection refused", "does it run, and listen there?"),
    ],
)
def test_the_remedy_fits_what_is_there(tmp_path: Path, kind: str, fault: str, advice: str) -> None:
    path = tmp_path / "s"
    what, _, mode = kind.partition(" ")
    if what == "file":
        path.touch()
    elif what == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        path.chmod(int(mode, 8))
    [answer] = asyncio.run(ask([Probe(f"daemon {path}", says(f"{path} {fault}"))]))
    assert answer.fault.startswith(f"{fault}; {advice}")


def test_each_service_is_asked_once() -> None:
    answers = asyncio.run(ask([Probe("a", says("first")), Probe("a", says("second"))]))
    assert [each.fault for each in answers] == ["first"]


@settings(max_examples=part(200), deadline=None)
@given(st.builds(Answer, st.text(), st.floats(0, 100), st.text()))
def test_an_answer_is_read_back(answer: Answer) -> None:
    line = answer.line()
    assert line.isascii()
    assert "\n" not in line
    assert Answer.parse(line) == answer


@settings(max_examples=part(200), deadline=None)
@given(st.text())
def test_other_lines_are_no_answers(text: str) -> None:
    found = Answer.parse(f"{MARK}{text}")
    assert found is None or isinstance(found, Answer)
    assert Answer.parse(f"x{text}") is None


def test_a_line_that_is_nearly_one() -> None:
    for text in ("", "{}", "[]", "1", '{"subject": 1, "seconds": "x", "fault": ""}', "[" * 100_000):
        assert Answer.parse(f"{MARK}{text}") is None
