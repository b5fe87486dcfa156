"""Answers of a server that doesn't do what Redis does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.tables.remote.backend import BackendError
from smtpd_filters.tables.remote.redis import RedisTable, open_backend

if TYPE_CHECKING:
    from pathlib import Path


def table(folder: Path, form: str, service: str, answer: object) -> RedisTable:
    """Return a table whose server gives this answer to everything."""
    path = folder / "redis.conf"
    path.write_text(f"url redis://127.0.0.1\n{form} x\n")
    path.chmod(0o600)
    backend, _ = open_backend(str(path), service)
    assert isinstance(backend, RedisTable)

    async def command(*_words: object) -> object:
        return answer

    backend._command = command  # type: ignore[method-assign]
    return backend


@pytest.mark.parametrize("form", ["set", "hash", "prefix"])
@pytest.mark.parametrize("answer", ["OK", b"0", None, [], 2, -1])
def test_neither_present_nor_absent(tmp_path: Path, form: str, answer: object) -> None:
    with pytest.raises(BackendError):
        asyncio.run(table(tmp_path, form, "domain", answer).look_up("a"))


@pytest.mark.parametrize("answer", [[], [b"a"], {}])
def test_values_that_are_no_texts(tmp_path: Path, answer: object) -> None:
    with pytest.raises(BackendError, match="another type"):
        asyncio.run(table(tmp_path, "hash", "mapping", answer).look_up("a"))


@pytest.mark.parametrize(
    "answer", [1, None, (0,), (b"x", [b"a", b"b"]), (0, [b"a"]), (0, None), (0, [[], []])]
)
def test_pages_of_a_list(tmp_path: Path, answer: object) -> None:
    with pytest.raises(BackendError):
        asyncio.run(table(tmp_path, "hash", "mapping", answer).entries(1))
