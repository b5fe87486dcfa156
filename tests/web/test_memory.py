"""The pages on what filters remember."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.filters.greylist.triplets import (
    ALLOWED,
    PASSED,
    WAITING,
    client_key,
    triplet_key,
)
from smtpd_filters.filters.limit.subjects import BLOCK, key
from smtpd_filters.stores import Add, Get, Put
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.web.bounds import Bounds
from smtpd_filters.web.guard import Access
from smtpd_filters.web.memory import Stores

from .visitor import Visitor, visit

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.stores import Store
    from smtpd_filters.stores.operations import Operation

HOSTILE = "<b onclick=x>\u202e"
WAITS: Add = Add(triplet_key("example.com", "ann@example.com", "bob@example.net"), WAITING, ttl=99)


class Kept(MemoryStore):
    """A store that outlives the page."""

    def __init__(self, *operations: Operation[object]) -> None:
        super().__init__()
        for each in operations:
            asyncio.run(self.ask(each))

    async def aclose(self) -> None:
        """Do nothing."""

    def get(self, of: bytes) -> bytes | None:
        found = asyncio.run(self.ask(Get(of)))
        return found.value if found is not None else None


async def form_of(visitor: Visitor, path: str) -> str:
    """The token of the first form of a page, "" without one."""
    page = await visitor.get(path)
    return next(
        (
            str(attrs["value"])
            for tag, attrs in page.tags
            if tag == "input" and attrs.get("name") == "form"
        ),
        "",
    )


async def send(visitor: Visitor, path: str, **fields: str) -> int:
    headers = {"Origin": visitor.base}
    async with visitor.session.post(
        visitor.base + path, data=fields, headers=headers, allow_redirects=False
    ) as response:
        return response.status


async def post(visitor: Visitor, path: str, **fields: str) -> int:
    return await send(visitor, path, form=await form_of(visitor, path), **fields)


def shown(*, greylist: Store | None = None, limits: Store | None = None) -> Stores:
    return Stores(
        (lambda: greylist) if greylist is not None else None,
        (lambda: limits) if limits is not None else None,
    )


def test_clients_are_let_in_and_forgotten(tmp_path: Path) -> None:
    store = Kept(WAITS, Put(triplet_key(HOSTILE, HOSTILE, HOSTILE), PASSED, ttl=99))

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/greylist")
        for text in ("example.com", "ann@example.com", "bob@example.net", "waiting"):
            assert text in page.text
        assert "\u202e" not in page.text
        assert "Greylist" in (await visitor.get("/")).text
        assert HOSTILE[:8] not in (await visitor.get("/greylist?q=example.com")).text
        assert "No entry fits" in (await visitor.get("/greylist?q=nobody")).text
        assert await post(visitor, "/greylist", client="example.com", action="allow") == 303
        assert await post(visitor, "/greylist", client="example.com", action="erase") == 400
        assert await post(visitor, "/greylist", client="", action="allow") == 400

    visit(tmp_path, visiting, stores=shown(greylist=store), user="ann")
    assert store.get(client_key("example.com")) == ALLOWED

    async def forgetting(visitor: Visitor) -> None:
        assert await post(visitor, "/greylist", client="example.com", action="forget") == 303

    visit(tmp_path, forgetting, stores=shown(greylist=store), user="ann")
    assert store.get(client_key("example.com")) is None
    assert store.get(WAITS.key) is None


@pytest.mark.parametrize(
    "client", ["\udcff.example", "a\x00\u202eb%41", "fe80::1%em0", "2001:db8::/64"]
)
def test_odd_clients_are_forgotten_by_the_form(client: str, tmp_path: Path) -> None:
    store = Kept(Put(triplet_key(client, "a@b.example", "c@d.example"), PASSED, ttl=99))

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/greylist")
        [name] = [attrs["value"] for _, attrs in page.tags if attrs.get("name") == "client"]
        assert await post(visitor, "/greylist", client=str(name), action="forget") == 303

    visit(tmp_path, visiting, stores=shown(greylist=store), user="ann")
    assert store.get(triplet_key(client, "a@b.example", "c@d.example")) is None


def test_users_are_blocked_and_released(tmp_path: Path) -> None:
    store = Kept(Put(key("user=ann", BLOCK), b"300 messages", ttl=99))

    async def releasing(visitor: Visitor) -> None:
        page = await visitor.get("/limits")
        assert "blocked" in page.text
        assert "300 messages" in page.text
        assert await post(visitor, "/limits", subject="user=ann", action="release") == 303

    visit(tmp_path, releasing, stores=shown(limits=store), user="ann")
    assert store.get(key("user=ann", BLOCK)) is None

    async def blocking(visitor: Visitor) -> None:
        fields = {"subject": "user=bob", "action": "block"}
        assert await send(visitor, "/limits", form="", **fields) == 403

    visit(tmp_path, blocking, stores=shown(limits=store), user="ann")
    assert store.get(key("user=bob", BLOCK)) is None


@pytest.mark.parametrize("name", ["a" * 300, "a\udcffb", "a\0b", "a\x1b[m", r"a\x1b", "<b>'\"&"])
def test_the_form_of_a_subject_releases_it(tmp_path: Path, name: str) -> None:
    of = key(f"user={name}", BLOCK)
    store = Kept(Put(of, b"300 messages", ttl=99))

    async def releasing(visitor: Visitor) -> None:
        page = await visitor.get("/limits")
        (subject,) = {
            str(attrs["value"])
            for tag, attrs in page.tags
            if tag == "input" and attrs.get("name") == "subject"
        }
        assert await post(visitor, "/limits", subject=subject, action="release") == 303

    visit(tmp_path, releasing, stores=shown(limits=store), user="ann")
    assert store.get(of) is None


def test_a_page_shows_a_part_of_many(tmp_path: Path) -> None:
    store = Kept(
        *(Put(triplet_key(f"c{n}.example", "a@b", "c@d"), PASSED, ttl=99) for n in range(9))
    )

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/greylist")
        assert page.text.count(".example") == 3
        assert "There are more" in page.text
        assert "c7.example" in (await visitor.get("/greylist?q=c7.ex")).text

    visit(
        tmp_path,
        visiting,
        stores=shown(greylist=store),
        user="ann",
        bounds=Bounds(shown=3),
    )


def test_forms_of_others_change_nothing(tmp_path: Path) -> None:
    store = Kept(WAITS)

    async def visiting(visitor: Visitor) -> None:
        for headers in ({}, {"Origin": "https://evil.example"}):
            async with visitor.session.post(
                f"{visitor.base}/greylist",
                data={"client": "example.com", "action": "allow"},
                headers=headers,
            ) as response:
                assert response.status == 403

    visit(tmp_path, visiting, stores=shown(greylist=store), user="ann")
    assert store.get(client_key("example.com")) is None


@pytest.mark.parametrize("path", ["/greylist", "/limits"])
def test_a_user_of_the_machine_reads_and_changes_nothing(tmp_path: Path, path: str) -> None:
    greylist, limits = Kept(WAITS), Kept(Put(key("user=ann", BLOCK), b"300 messages", ttl=99))

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get(path)
        assert ("ann@example.com" if path == "/greylist" else "300 messages") in page.text
        assert "Change" not in page.text
        assert not [tag for tag, attrs in page.tags if attrs.get("method") == "post"]
        fields = {"client": "example.com", "subject": "user=ann"}
        for action in ("allow", "forget", "block", "release"):
            # With the token of any other form of the page, such as that to log in.
            form = await form_of(visitor, "/login")
            assert await send(visitor, path, form=form, action=action, **fields) == 403

    visit(tmp_path, visiting, stores=shown(greylist=greylist, limits=limits))
    assert greylist.get(client_key("example.com")) is None
    assert greylist.get(WAITS.key) is not None
    assert limits.get(key("user=ann", BLOCK)) == b"300 messages"


def test_who_reaches_a_unix_socket_may_change_stores(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Kept(WAITS)

    async def visiting(visitor: Visitor) -> None:
        assert await post(visitor, "/greylist", client="example.com", action="allow") == 303

    socket = tmp_path_factory.mktemp("s") / "s"
    visit(tmp_path, visiting, stores=shown(greylist=store), socket=socket)
    assert store.get(client_key("example.com")) == ALLOWED


def test_without_stores_there_are_no_such_pages(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        await visitor.get("/greylist", 404)
        await visitor.get("/limits", 404)
        assert "Greylist" not in (await visitor.get("/")).text

    visit(tmp_path, visiting, Access())
