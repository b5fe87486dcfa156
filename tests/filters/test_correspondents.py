from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.checks.correspondents import Correspondents
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.correspondents import DAY, FIELD, CorrespondentsFilter
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.scoring.rules import Rules, RuleSettings
from smtpd_filters.stores.address import MEMORY
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from smtpd_filters.testing import Client

ALICE, BOB, FRIEND = "alice@example.org", "bob@example.org", "friend@example.net"


@contextmanager
def serving(
    *flags: str,
    store: Any = None,
    kind: type[CorrespondentsFilter] = CorrespondentsFilter,
    **how: Any,
) -> Iterator[Conversation]:
    with Conversation(kind, "--store", "memory:", *flags, **how) as smtpd:
        if store is not None:
            [filter_] = smtpd.filters
            assert isinstance(filter_, CorrespondentsFilter)
            filter_._known._store = store  # in place of the one that was opened
        yield smtpd


def client(smtpd: Conversation, user: str = "") -> Client:
    there = smtpd.connect()
    there.ehlo("mail.example.com")
    if user:
        there.auth(user, "secret")
    return there


def write(smtpd: Conversation, sender: str, *recipients: str, user: str = "alice") -> None:
    """Send a user's message."""
    there = client(smtpd, user)
    there.mail_from(sender)
    for each in recipients:
        there.rcpt_to(each)
    there.message()
    there.quit()


def known(smtpd: Conversation, sender: str, *recipients: str) -> list[bool]:
    """Return which recipients know the sender."""
    there = client(smtpd)
    there.mail_from(sender)
    found = []
    for each in recipients:
        before = len(smtpd.log)
        assert there.rcpt_to(each).verb == "proceed"
        found.append(any("points=" in line for line in smtpd.log[before:]))
    return found


def test_users_teach_to_whom_they_write() -> None:
    with serving() as smtpd:
        assert known(smtpd, FRIEND, ALICE) == [False]
        write(smtpd, ALICE, FRIEND, "other@example.net")
        assert known(smtpd, FRIEND, ALICE, BOB) == [True, False]
        assert known(smtpd, "Other+tag@EXAMPLE.NET", "Alice+lists@Example.org") == [True]
        assert known(smtpd, "stranger@example.net", ALICE) == [False]
        assert known(smtpd, "", ALICE) == [False]
        line = next(line for line in smtpd.log if "points=" in line)
        assert f'points=-3 reason="{FRIEND} is a correspondent of {ALICE}"' in line


def test_those_of_any_user_count_if_the_scope_is_the_server() -> None:
    with serving("--scope", "server") as smtpd:
        write(smtpd, ALICE, FRIEND)
        assert known(smtpd, FRIEND, BOB) == [True]


def test_strangers_teach_nothing() -> None:
    with serving() as smtpd:
        write(smtpd, ALICE, FRIEND, user="")
        assert known(smtpd, FRIEND, ALICE) == [False]


@pytest.mark.parametrize(("recipients", "learnt"), [(3, True), (4, False)])
def test_bulk_teaches_nothing(recipients: int, *, learnt: bool) -> None:
    with serving("--max-recipients", "3") as smtpd:
        write(smtpd, ALICE, FRIEND, *(f"{n}@example.net" for n in range(recipients - 1)))
        assert known(smtpd, FRIEND, ALICE) == [learnt]


def test_a_bounce_teaches_nothing() -> None:
    with serving() as smtpd:
        write(smtpd, "", FRIEND)
        assert known(smtpd, FRIEND, ALICE) == [False]


def test_a_correspondent_is_forgotten_after_its_lifetime() -> None:
    with serving("--lifetime", "10d") as smtpd:
        write(smtpd, ALICE, FRIEND)
        smtpd.advance(9 * DAY)
        assert known(smtpd, FRIEND, ALICE) == [True]
        write(smtpd, ALICE, FRIEND)
        smtpd.advance(9 * DAY)
        assert known(smtpd, FRIEND, ALICE) == [True]
        smtpd.advance(1 * DAY)
        assert known(smtpd, FRIEND, ALICE) == [False]


def message(smtpd: Conversation, sender: str, *recipients: str) -> list[str]:
    """Send a stranger's message with a forged field; return the fields of its header."""
    there = client(smtpd)
    there.mail_from(sender)
    for each in recipients:
        there.rcpt_to(each)
    delivery = there.message(f"{FIELD}: known\r\nSubject: x\r\n\r\nx\r\n".encode())
    return delivery.headers.get_all(FIELD.name)


def test_the_header_field() -> None:
    with serving("--header") as smtpd:
        write(smtpd, ALICE, FRIEND)
        assert message(smtpd, FRIEND, ALICE) == ["known"]
        assert message(smtpd, FRIEND, ALICE, BOB) == []
        assert message(smtpd, FRIEND, BOB, ALICE) == []
        assert message(smtpd, "stranger@example.net", ALICE) == []


def test_points_in_a_chain() -> None:
    rules = Rules(RuleSettings(score_header=True))
    filter_ = CorrespondentsFilter(CorrespondentsFilter.Options(points=-2.5, store=MEMORY))
    with Conversation([filter_], rules=rules) as smtpd:
        write(smtpd, ALICE, FRIEND)
        there = client(smtpd)
        there.mail_from(FRIEND)
        there.rcpt_to(ALICE)
        [score] = there.message().headers.get_all("X-Smtpd-Filters-Score")
        assert score.startswith("-2.5 ")


class Broken(MemoryStore):
    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        del operations
        raise UnavailableError("sqlite:/x: disk full")


def test_a_broken_store_refuses_nothing() -> None:
    with serving(store=Broken()) as smtpd:
        for _ in range(3):
            write(smtpd, ALICE, FRIEND)
            assert known(smtpd, FRIEND, ALICE) == [False]
        assert [line for line in smtpd.log if "correspondents store error=" in line]


class Breaking(MemoryStore):
    broken = False

    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        if self.broken:
            raise UnavailableError("sqlite:/x: disk full")
        return await super()._apply(operations)


@pytest.mark.parametrize("fails_first", [False, True])
def test_a_recipient_whose_look_up_fails_does_not_know_the_sender(*, fails_first: bool) -> None:
    store = Breaking()
    with serving("--header", store=store) as smtpd:
        write(smtpd, ALICE, FRIEND)
        there = client(smtpd)
        there.mail_from(FRIEND)
        for store.broken in (fails_first, not fails_first):
            assert there.rcpt_to(BOB if store.broken else ALICE).verb == "proceed"
        assert there.message().headers.get_all(FIELD.name) == []
        store.broken = False
        assert message(smtpd, FRIEND, ALICE) == ["known"]


class Overwhelmed(CorrespondentsFilter):
    """It has no room for a message to learn."""

    name = "correspondents"
    max_learning = 0


def test_what_is_learnt_at_a_time_is_bounded() -> None:
    with serving(kind=Overwhelmed) as smtpd:
        write(smtpd, ALICE, FRIEND)
        assert known(smtpd, FRIEND, ALICE) == [False]
        assert "too many messages are pending" in smtpd.log[-1]


def test_no_address_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "correspondents.sqlite"
    with Conversation(CorrespondentsFilter, "--store", f"sqlite:{path}") as smtpd:
        write(smtpd, ALICE, FRIEND)
        assert known(smtpd, FRIEND, ALICE) == [True]
    content = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert b"correspondent:" in content
    for word in (b"alice", b"friend", b"example"):
        assert word not in content


# -- greylisting -----------------------------------------------------------------------------


def greylisted(smtpd: Conversation, sender: str, *recipients: str) -> list[bool]:
    """Return which recipients are refused."""
    there = client(smtpd)
    there.mail_from(sender)
    return [there.rcpt_to(each).refused for each in recipients]


@pytest.mark.parametrize(
    ("scope", "refused"), [("user", [False, True]), ("server", [False, False])]
)
def test_correspondents_are_not_greylisted(scope: str, refused: list[bool], tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path}/correspondents.sqlite"
    with Conversation(CorrespondentsFilter, "--store", store) as smtpd:
        write(smtpd, ALICE, FRIEND)
    flags = ("--store=memory:", "--key=network", f"--correspondents={store}")
    with Conversation(Greylist, *flags, f"--correspondents-of={scope}", "-v") as smtpd:
        assert greylisted(smtpd, "stranger@example.net", ALICE, BOB) == [True, True]
        assert greylisted(smtpd, FRIEND, ALICE, BOB) == refused
        assert any('reason="exempt: a correspondent"' in line for line in smtpd.log)
        assert greylisted(smtpd, "", ALICE) == [False], "a bounce is refused at data"


def test_a_store_that_no_filter_fills_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--correspondents: memory: is empty"):
        Conversation(Greylist, "--store=memory:", "--key=network", "--correspondents=memory:")


def test_a_known_client_is_accepted_though_its_correspondents_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> bool:
        raise UnavailableError("sqlite: disk full")

    flags = ("--store=memory:", "--key=network", "--on-error=tempfail")
    store = f"--correspondents=sqlite:{tmp_path}/correspondents.sqlite"
    with Conversation(Greylist, *flags, store) as smtpd:

        def reply() -> str:
            there = client(smtpd)
            there.mail_from(FRIEND)
            return there.rcpt_to(ALICE).reply

        assert reply().startswith("451 4.7.1 Greylisted")
        monkeypatch.setattr(Correspondents, "knows", fail)
        assert reply().startswith("451 4.3.0")
        smtpd.advance(301)
        assert reply() == ""
        assert 'greylist store error="sqlite: disk full"' in smtpd.log
