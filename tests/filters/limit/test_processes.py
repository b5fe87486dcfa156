"""Processes with one store: races, a kill, a damaged file, and a file that goes away."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from tests.runtime.process import FilterProcess, sid

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.protocol.events import Result


def process(path: Path, *rules: str) -> FilterProcess:
    words = ["-m", "smtpd_filters.filters.limit", "--store", f"sqlite:{path}"]
    words += ["--store-timeout", "60", "--deadline", "120"]
    return FilterProcess([*words, *(f"--limit={rule}" for rule in rules)])


def request(phase: str, session: bytes, filter_: FilterProcess) -> None:
    """Send a request without waiting for its answer."""
    argument = b"a@example.org" if phase == "mail-from" else b"mail.example.net|192.0.2.1"
    data = filter_.smtpd.request(
        phase, session, b"1ef1c203cc576e5d", argument, b"1700000000.000001"
    )
    filter_.send(data)


def answers(filter_: FilterProcess, count: int) -> list[Result]:
    """Wait for a number of answers."""
    filter_.until(lambda: len(filter_.answers) >= count)
    return [filter_.answer_of(answer.session) for answer in list(filter_.answers)]


def test_several_processes_pass_as_much_as_one(tmp_path: Path) -> None:
    """Sessions of three processes ask at the same time: the limit holds to the message."""
    with ExitStack() as stack:
        path = tmp_path / "limit.sqlite"
        several = [
            stack.enter_context(process(path, "all messages 40/365d", "client messages 99/1h"))
            for _ in range(3)
        ]
        for each in several:
            each.hand_shake()
            for number in range(30):
                each.connect(sid(number))
        for number in range(30):
            for each in several:
                request("mail-from", sid(number), each)
        said = [answer for each in several for answer in answers(each, 30)]
        assert [answer.verb for answer in said].count(b"proceed") == 40
        for each in several:
            each.finish()


def test_a_killed_process_forgets_nothing_that_it_has_answered(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    passed = 0
    for kill in (1, 2, 3):
        with process(path, "all messages 12/365d") as each:
            each.hand_shake()
            for number in range(6):
                each.connect(sid(number))
                request("mail-from", sid(number), each)
            # Of those that are not answered, any number has counted.
            passed += [answer.verb for answer in answers(each, kill)].count(b"proceed")
            each.child.kill()
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with process(path, "all messages 12/365d") as each:
        each.hand_shake()
        for number in range(12):
            each.connect(sid(number))
            request("mail-from", sid(number), each)
        passed += [answer.verb for answer in answers(each, 12)].count(b"proceed")
        each.finish()
    assert passed <= 12


def test_the_connections_of_a_killed_process_count_until_they_expire(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    rule = "client connections 1"
    with process(path, rule) as each:
        each.hand_shake()
        each.connect(sid(1))
        request("connect", sid(1), each)
        assert answers(each, 1)[0].verb == b"proceed"
        each.child.kill()
    with process(path, rule) as each:
        each.hand_shake()
        each.connect(sid(2))
        request("connect", sid(2), each)
        assert answers(each, 1)[0].verb == b"disconnect"
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("UPDATE members SET expires = expires - 181")
        each.connect(sid(3))
        request("connect", sid(3), each)
        assert answers(each, 1)[0].verb == b"proceed"
        each.finish()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    path.write_bytes(b"damage" * 3000)
    with process(path, "all messages 1/1h") as each:
        each.hand_shake()
        each.connect(sid(1))
        request("mail-from", sid(1), each)
        assert answers(each, 1)[0].verb == b"proceed"
        request("mail-from", sid(1), each)
        assert answers(each, 1)[0].verb == b"reject"
        assert "is damaged" in each.logged
        each.finish()
    assert (tmp_path / "limit.sqlite.damaged-1").read_bytes().startswith(b"damage")


def test_a_file_that_is_deleted_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "limit.sqlite"
    with process(path, "all messages 1/1h") as each:
        each.hand_shake()
        each.connect(sid(1))
        verbs = []
        for _ in range(2):
            request("mail-from", sid(1), each)
            verbs += [answer.verb for answer in answers(each, 1)]
        for file in tmp_path.iterdir():
            file.unlink()
        request("mail-from", sid(1), each)
        verbs += [answer.verb for answer in answers(each, 1)]
        assert verbs == [b"proceed", b"reject", b"proceed"]
        each.finish()
