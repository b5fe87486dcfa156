from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.http import zstd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smtpd_filters.lookups.http.zstd import Codec

try:
    CODEC: Codec | None = zstd.load()
except ConfigError:
    CODEC = None
needs_it = pytest.mark.skipif(CODEC is None, reason="needs Python 3.14 or the package zstandard")


def plain(data: bytes, limit: int, *, piece: int = 1 << 20) -> bytes:
    """What a frame stands for, decompressed as it comes."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), piece):
            yield data[at : at + piece]

    async def whole() -> bytes:
        return b"".join([part async for part in codec().decompress(pieces(), limit)])

    return asyncio.run(whole())


def codec() -> Codec:
    assert CODEC is not None
    return CODEC


@needs_it
@given(st.lists(st.binary(max_size=1000)))
def test_what_is_compressed_comes_back(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    pieces = list(codec().compress(iter(chunks)))
    assert all(pieces)
    assert plain(b"".join(pieces), len(whole)) == whole


@needs_it
def test_it_gets_smaller_and_is_made_as_it_goes() -> None:
    read = 0

    def large() -> list[bytes]:
        nonlocal read
        read += 1
        return [b"the same line\n" * 5000] * 50

    frame = b"".join(codec().compress(large()))
    assert frame.startswith(b"\x28\xb5\x2f\xfd")  # RFC 8878 section 3.1.1: Magic_Number
    assert len(frame) < 10_000


@needs_it
@pytest.mark.parametrize("limit", [0, 1000, 69_999])
def test_what_is_decompressed_is_bounded(limit: int) -> None:
    frame = b"".join(codec().compress([bytes(70_000)]))
    assert len(frame) < 100
    with pytest.raises(ValueError, match="too large"):
        plain(frame, limit)
    assert plain(frame, 70_000) == bytes(70_000)


@needs_it
def test_a_frame_that_is_cut_or_none_is_broken() -> None:
    frame = b"".join(codec().compress([b"some text", bytes(1000)]))
    for end in range(len(frame)):
        with pytest.raises(ValueError, match="broken"):
            plain(frame[:end], 1 << 20)
    with pytest.raises(ValueError, match="broken"):
        plain(b"{}", 1 << 20)


def test_a_lack_of_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"Python 3\.14 or the package zstandard"):
        zstd.load()
