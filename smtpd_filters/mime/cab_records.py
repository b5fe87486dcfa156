"""The headers of cabinet files: the names of their members.

The format is that of Microsoft's specification (MS-CAB section 2): CFHEADER, and a CFFILE for each
member.
"""

from __future__ import annotations

from struct import unpack_from

from . import zip_records
from .content import Entry
from .limits import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .content import Storage

_HEADER, _FILE = 36, 16
#: Bytes of a name at most, by the specification, and its NUL.
_NAME = 257


def entries(store: Storage) -> Iterator[Entry]:
    """Yield the members of a cabinet, as far as they are sound."""
    head = store.read(0, _HEADER)
    if len(head) < _HEADER or not head.startswith(b"MSCF"):
        return
    (at,) = unpack_from("<L", head, 16)
    (count,) = unpack_from("<H", head, 28)
    for _ in range(count):
        raw, nul, _ = store.read(at + _FILE, _NAME).partition(b"\0")
        if not nul:
            raw, nul, _ = store.read(at + _FILE, READ).partition(b"\0")
        if not raw and not nul:
            return
        # A flag says whether the name is in UTF-8; without it, in the system's code page.
        yield Entry(tuple(zip_records.names(raw, b"", 0)), cost=40 + len(raw) // 50)
        at += _FILE + len(raw) + 1
