"""Zstandard (RFC 8878), by whichever library there is.

The standard library has one from Python 3.14 on (`compression.zstd`); before, it takes the package
zstandard (Debian's python3-zstandard), which is imported by nobody who doesn't ask for it.

What comes in is decompressed to a bounded size: a few bytes can stand for gigabytes.
"""

from __future__ import annotations

from importlib import import_module

from smtpd_filters.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from typing import Any, Protocol

    class Codec(Protocol):
        """One of the libraries."""

        def compress(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
            """One frame of all chunks, in pieces that are not empty."""
            ...

        def decompress(self, pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
            """What a frame stands for, in pieces of bounded size.

            Raises ValueError if it is broken or stands for more than `limit` bytes.
            """
            ...


#: The library's default, too: beyond, mail hardly gets smaller and takes much longer.
LEVEL = 3
#: Bytes that are decompressed at a time.  Of a block, which stands for at most 128 KiB (RFC 8878
#: section 3.1.1.2.4), they hold at least four each.
_STEP = 128
#: Bytes in which they are handed on, at least.
_PIECE = 1 << 16
_TOO_LARGE = "too large when decompressed"
_BROKEN = "broken zstd data"


def load() -> Codec:
    """The codec; ConfigError if there is no library."""
    for name, codec in (("compression.zstd", _Standard), ("zstandard", _Package)):
        try:
            library = import_module(name)
        except ImportError:
            continue
        return codec(library)
    raise ConfigError("zstd needs Python 3.14 or the package zstandard (Debian: python3-zstandard)")


class _Library:
    """What both have in common."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def compress(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        compressor = self._compressor()
        for chunk in chunks:
            if piece := compressor.compress(chunk):
                yield piece
        yield compressor.flush()

    async def decompress(self, pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
        decompressor = self._decompressor()
        made: list[bytes] = []
        size = total = 0
        async for piece in pieces:
            for at in range(0, len(piece), _STEP):
                if decompressor.eof:
                    raise ValueError(_BROKEN)
                try:
                    plain: bytes = decompressor.decompress(piece[at : at + _STEP])
                except self._error:
                    raise ValueError(_BROKEN) from None
                made.append(plain)
                size += len(plain)
                total += len(plain)
                if total > limit:
                    raise ValueError(_TOO_LARGE)
                if size >= _PIECE:
                    yield b"".join(made)
                    made, size = [], 0
        if not decompressor.eof:
            raise ValueError(_BROKEN)
        if size:
            yield b"".join(made)

    def _compressor(self) -> Any:
        raise NotImplementedError

    def _decompressor(self) -> Any:
        raise NotImplementedError

    @property
    def _error(self) -> type[Exception]:
        error: type[Exception] = self._library.ZstdError
        return error


class _Standard(_Library):
    """By the standard library."""

    def _compressor(self) -> Any:
        return self._library.ZstdCompressor(level=LEVEL)

    def _decompressor(self) -> Any:
        return self._library.ZstdDecompressor()


class _Package(_Library):
    """By the package zstandard."""

    def _compressor(self) -> Any:
        return self._library.ZstdCompressor(level=LEVEL).compressobj()

    def _decompressor(self) -> Any:
        return self._library.ZstdDecompressor().decompressobj()
