"""No message makes the reader of MIME raise, leave something stored, or depend on its blocks.

`python -m tests.fuzz mime` runs it under atheris, from the messages of `tests.mime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.mime import limits
from smtpd_filters.parts.part import described
from tests.mime.headers import cab, copied, file_4, file_5, rar_4, rar_5, seven_zip, unicode_4
from tests.mime.reading import EXE, Memory, attached, read, zipped
from tests.mime.test_corpus import MESSAGES

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.mime.content import Content

KEPT = 1 << 13


def fuzz(data: bytes) -> None:
    """Read a message in blocks of two sizes; the first byte is one of them."""
    size, message = data[0] + 1 if data else 1, data[1:]
    whole = read(message, keep_fields=True, keep_texts=KEPT)
    cut = read(message, size, keep_fields=True, keep_texts=KEPT)
    assert whole.parts == cut.parts
    assert set(whole.oddities) == set(cut.oddities)
    assert whole.fields == cut.fields
    assert len(whole.parts) <= limits.PARTS
    assert all(len(part.names) <= limits.NAMES for part in whole.parts)
    assert Memory.kept == 0
    assert texts(whole) == texts(cut)


def texts(content: Content) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the texts of the parts."""
    work = described(content, KEPT)
    try:
        while True:
            next(work)
    except StopIteration as end:
        return [(part.texts, part.shown) for part in end.value]


def corpus(folder: Path) -> None:
    """Write the messages of the tests to files."""
    folder.mkdir(parents=True, exist_ok=True)
    messages = [
        *MESSAGES.values(),
        attached(zipped(("a.exe", EXE), ("b.zip", zipped(("c.exe", EXE))))),
    ]
    messages += [attached(rar_4(file_4(unicode_4("a.exe", b"b"), flags=0x200)))]
    messages += [attached(rar_5(file_5(b"a.exe"), file_5(b"QO", copied(file_5(b"b")), kind=3)))]
    messages += [attached(cab(b"a.exe")), attached(seven_zip("a.exe", "b", packed=True))]
    for number, message in enumerate(messages):
        (folder / str(number)).write_bytes(b"\x20" + message)
