"""No bytes from an LDAP server raise anything but `EngineError`, or are held beyond the limit.

The first byte is the size of the pieces in which the rest arrives.
"""

from __future__ import annotations

from contextlib import suppress

from smtpd_filters.tables.remote.ldap_client.ber import boolean, element, integer, octets
from smtpd_filters.tables.remote.ldap_client.engine import MESSAGE_MAX, Engine, EngineError
from smtpd_filters.tables.remote.ldap_client.messages import PAGED, Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

#: Requests that are open.
OPEN = 3


def fuzz(data: bytes) -> None:
    """Give the bytes to an engine with open requests."""
    size, stream = data[:1], data[1:]
    step = (size[0] if size else 0) or len(stream) or 1
    engine = Engine()
    numbers = {engine.number() for _ in range(OPEN)}
    with suppress(EngineError):
        for at in range(0, len(stream), step):
            for message in engine.receive(stream[at : at + step]):
                assert message.number in numbers
                if isinstance(message, Entry):
                    assert all(map(message.values, message.attributes)) or message.attributes
            assert engine.pending <= min(MESSAGE_MAX + step, len(stream))


def seeds() -> list[bytes]:
    """Return valid inputs: an entry, results, a reference, and a page's end."""
    done = (integer(0, 0x0A), octets(b""), octets(b""))
    mail = element(0x30, octets(b"mail"), element(0x31, octets(b"a"), octets(b"b")))
    cookie = octets(element(0x30, integer(0), octets(b"next")))
    control = element(0x30, octets(PAGED), boolean(value=False), cookie)
    messages = (
        element(0x30, integer(1), element(0x64, octets(b"uid=a"), element(0x30, mail))),
        element(0x30, integer(1), element(0x73, octets(b"ldap://h/"))),
        element(0x30, integer(1), element(0x65, *done)),
        element(0x30, integer(2), element(0x65, *done), element(0xA0, control)),
        element(0x30, integer(3), element(0x78, *done)),
        element(0x30, integer(0), element(0x78, *done)),
    )
    return [bytes((size,)) + b"".join(messages) for size in (0, 1, 7)]


def corpus(folder: Path) -> None:
    """Write the seeds to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"ldap-{number}").write_bytes(seed)
