"""Tables in LDAP, and entries of servers that name or cut attributes in their own way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.tables.remote import ldap
from smtpd_filters.tables.remote.backend import SOME, AnswerError, BackendError
from smtpd_filters.tables.remote.ldap_client.messages import DONE, Entry, Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SUCCESS = Result(1, DONE, 0, "", b"")


def table(folder: Path, service: str, entries: list[Entry], *lines: str) -> ldap.LDAP:
    """Return a table whose searches find these entries."""
    path = folder / "ldap.conf"
    path.write_text("\n".join(("url ldap://127.0.0.1", "basedn x", "filter (a=%u)", *lines)))
    backend, _ = ldap.open_backend(str(path), service)
    assert isinstance(backend, ldap.LDAP)

    async def search(*_: object) -> tuple[list[Entry], Result]:
        return entries, SUCCESS

    async def pages(*_: object) -> list[Entry]:
        return entries

    client: Any = backend._client
    client.search, client.pages = search, pages
    return backend


def entry(attributes: Mapping[str, Sequence[str]]) -> Entry:
    return Entry(1, {name: [each.encode() for each in found] for name, found in attributes.items()})


RENAMED = "the server returns 'uid' in place of 'userid'"
PART = "a part of the values of an attribute"


@pytest.mark.parametrize(
    ("attribute", "found", "value"),
    [
        ("uid", {"uid": ["alice"]}, "alice"),
        ("uid", {}, None),
        ("uid", {"uid": []}, None),
        ("userid", {}, None),
        ("cn;lang-de", {"cn;lang-de": ["Alice"]}, "Alice"),
    ],
)
def test_values(
    tmp_path: Path, attribute: str, found: Mapping[str, Sequence[str]], value: str | None
) -> None:
    backend = table(tmp_path, "alias", [entry(found)], f"attributes {attribute}")
    assert asyncio.run(backend.look_up("key")) == value


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        ({"uid": ["alice"]}, RENAMED),
        ({"member": [], "member;range=0-1499": ["a"]}, PART),
        ({"userid;range=0-1499": ["a"]}, PART),
    ],
)
def test_an_attribute_of_another_name_or_a_part_makes_no_key_absent(
    tmp_path: Path, found: Mapping[str, Sequence[str]], cause: str
) -> None:
    lines = ("attributes userid", "list_attributes mail, userid")
    backend = table(tmp_path, "alias", [entry(found)], *lines)
    with pytest.raises(AnswerError, match=cause):
        asyncio.run(backend.look_up("key"))
    entries = [entry({"mail": ["a@b"], "userid": ["a"]}), entry({"mail": ["c@d"], **found})]
    backend = table(tmp_path, "alias", entries, *lines)
    with pytest.raises(BackendError, match=cause):
        asyncio.run(backend.entries(1))


def test_a_list_has_every_key_of_an_entry_in_order(tmp_path: Path) -> None:
    entries = [
        entry({"mail": ["a@b", "c@d"], "uid": ["x", "y"]}),
        entry({"mail": ["e@f"]}),
        entry({"uid": ["z"]}),
        entry({"mail": ["g@h"], "uid": ["w"]}),
    ]
    backend = table(tmp_path, "alias", entries, "attributes uid", "list_attributes mail uid")
    rows = [("a@b", "x, y"), ("c@d", "x, y"), ("g@h", "w")]
    assert asyncio.run(backend.entries(1)) == rows


def test_a_list_of_entries_with_many_values_does_not_hold_the_loop(tmp_path: Path) -> None:
    values = [f"{number}@example.org" for number in range(SOME)]
    backend = table(
        tmp_path, "mailaddr", [entry({"mail": values}) for _ in range(20)], "list_attributes mail"
    )
    turns = 0

    async def main() -> None:
        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        beside = asyncio.create_task(other())
        assert len(await backend.entries(1)) == 20 * SOME
        beside.cancel()

    asyncio.run(main())
    assert turns >= 15


def test_the_values_of_a_list_are_bounded(tmp_path: Path) -> None:
    entries = [entry({"mail": [f"{number}@b" for number in range(10)]}) for _ in range(4)]
    backend = table(tmp_path, "mailaddr", entries, "list_attributes mail")
    backend.max_listed = 30
    with pytest.raises(BackendError, match="more than 30 entries"):
        asyncio.run(backend.entries(1))
    assert entries == []
