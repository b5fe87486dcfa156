from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smtpd_filters.web.guard import Access
from smtpd_filters.web.logins import IDLE, LONGEST, MOST, PERIOD, TRIES, Attempts, Logins
from smtpd_filters.web.passwords import QUEUE, Hash, Passwords

from .test_memory import form_of
from .visitor import visit

if TYPE_CHECKING:
    from pathlib import Path

    from .visitor import Visitor


def test_a_login_is_found_by_its_token() -> None:
    logins = Logins()
    token = logins.begin("ann", 0)
    login = logins.find(token, 1)
    assert login is not None
    assert (login.user, login.form) == ("ann", logins.form(token))
    assert logins.find(f"{token}x", 1) is None
    assert logins.find("\udcff", 1) is None
    logins.end(token)
    assert logins.find(token, 1) is None


def test_it_ends_without_use() -> None:
    logins = Logins()
    token = logins.begin("ann", 0)
    assert logins.find(token, IDLE) is not None
    assert logins.find(token, 2 * IDLE) is not None
    assert logins.find(token, 3 * IDLE + 1) is None
    assert len(logins) == 0


def test_it_ends_after_a_day_of_use() -> None:
    logins = Logins()
    token = logins.begin("ann", 0)
    now = 0.0
    while now + IDLE <= LONGEST:
        now += IDLE
        assert logins.find(token, now) is not None
    assert logins.find(token, LONGEST + 1) is None


def test_only_so_many_are_kept() -> None:
    logins = Logins()
    first = logins.begin("ann", 0)
    for _ in range(MOST):
        logins.begin("bob", 1)
    assert len(logins) == MOST
    assert logins.find(first, 1) is None
    logins.begin("eve", IDLE + 2)
    assert len(logins) == 1


def test_tokens_of_forms_differ() -> None:
    logins = Logins()
    forms = {logins.form(each) for each in ("", "a", "b")} | {Logins().form("")}
    assert len(forms) == 4


def test_an_address_waits_after_wrong_passwords() -> None:
    attempts = Attempts()
    for at in range(TRIES):
        assert attempts.wait("192.0.2.1", at) == 0
        attempts.failed("192.0.2.1", at)
    assert attempts.wait("192.0.2.1", TRIES) == PERIOD - TRIES
    assert attempts.wait("192.0.2.2", TRIES) == 0
    assert attempts.wait("192.0.2.1", PERIOD) == 0
    attempts.passed("192.0.2.1")
    assert attempts.wait("192.0.2.1", TRIES) == 0


def test_only_so_many_addresses_are_kept() -> None:
    attempts = Attempts()
    for number in range(2 * MOST):
        attempts.failed(str(number), number / MOST)
    assert len(attempts._failures) == MOST


def test_tries_at_the_same_time_are_counted(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        fields = {"user": "ann", "password": "x", "form": await form_of(visitor, "/login")}

        async def guess() -> int:
            headers, address = {"Origin": visitor.base}, f"{visitor.base}/login"
            async with visitor.session.post(address, data=fields, headers=headers) as response:
                return response.status

        found = await asyncio.gather(*(guess() for _ in range(QUEUE)))
        assert sorted(found) == [403] * TRIES + [429] * (QUEUE - TRIES)

    visit(tmp_path, visiting, Access(passwords=Passwords({"ann": Hash.of("wonder")})))
