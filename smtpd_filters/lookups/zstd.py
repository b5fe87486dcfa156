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
    from collections.abc import Iterable, Iterator
    from typing import Any, Protocol

    class Codec(Protocol):
        """One of the libraries."""

        def compress(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
            """One frame of all chunks, in pieces that are not empty."""
            ...

        def decompress(self, data: bytes, limit: int) -> bytes:
            """What the frame stands for; ValueError if it is broken or more than `limit` bytes."""
            ...


#: The library's default, too: beyond, mail hardly gets smaller and takes much longer.
LEVEL = 3
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

    def _compressor(self) -> Any:
        raise NotImplementedError


class _Standard(_Library):
    """By the standard library."""

    def _compressor(self) -> Any:
        return self._library.ZstdCompressor(level=LEVEL)

    def decompress(self, data: bytes, limit: int) -> bytes:
        decompressor = self._library.ZstdDecompressor()
        try:
            plain: bytes = decompressor.decompress(data, limit + 1)
        except self._library.ZstdError:
            raise ValueError(_BROKEN) from None
        return _checked(plain, limit, whole=decompressor.eof)


class _Package(_Library):
    """By the package zstandard."""

    def _compressor(self) -> Any:
        return self._library.ZstdCompressor(level=LEVEL).compressobj()

    def decompress(self, data: bytes, limit: int) -> bytes:
        decompressor = self._library.ZstdDecompressor()
        try:
            with decompressor.stream_reader(data) as reader:
                plain: bytes = reader.read(limit + 1)
            if len(plain) > limit:
                return _checked(plain, limit, whole=False)
            # The reader gives what there is of a frame that ends too early; this tells.
            counted = decompressor.decompressobj()
            counted.decompress(data)
        except self._library.ZstdError:
            raise ValueError(_BROKEN) from None
        return _checked(plain, limit, whole=counted.eof)


def _checked(plain: bytes, limit: int, *, whole: bool) -> bytes:
    if len(plain) > limit:
        raise ValueError(_TOO_LARGE)
    if not whole:
        raise ValueError(_BROKEN)
    return plain
