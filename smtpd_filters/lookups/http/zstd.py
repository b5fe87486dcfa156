"""Zstandard (RFC 8878), by the available library.

The standard library has one from Python 3.14 on (`compression.zstd`); earlier versions need the
package zstandard (Debian's python3-zstandard). Either is imported by `load` only.

Invariants
----------
*Bounded*: the decompressed size is limited, since a few bytes can expand to gigabytes.
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
            """Yield one frame of all chunks, in non-empty pieces."""
            ...

        def decompress(self, pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
            """Yield the content of a frame, in pieces of limited size.

            Raises ValueError if the frame is invalid or expands to more than `limit` bytes.
            """
            ...


#: The library's default as well: higher levels take much longer and save little on mail.
LEVEL = 3
#: Compressed bytes per step. A block takes at least four and expands to at most 128 KiB (RFC 8878
#: section 3.1.1.2.4).
_STEP = 128
#: The least size of a decompressed piece in bytes, except for the last.
_PIECE = 1 << 16
_TOO_LARGE = "too large when decompressed"
_BROKEN = "broken zstd data"


def load() -> Codec:
    """Return the codec; raise ConfigError without a library."""
    for name, codec in (("compression.zstd", _Standard), ("zstandard", _Package)):
        try:
            library = import_module(name)
        except ImportError:
            continue
        return codec(library)
    raise ConfigError("zstd needs Python 3.14 or the package zstandard (Debian: python3-zstandard)")


class _Library:
    """The code shared by both libraries."""

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
    """The codec of the standard library."""

    def _compressor(self) -> Any:
        return self._library.ZstdCompressor(level=LEVEL)

    def _decompressor(self) -> Any:
        return self._library.ZstdDecompressor()


class _Package(_Library):
    """The codec of the package zstandard."""

    def _compressor(self) -> Any:
        return self._library.ZstdCompressor(level=LEVEL).compressobj()

    def _decompressor(self) -> Any:
        return self._library.ZstdDecompressor().decompressobj()
