"""OpenDKIM as a signer: its daemon, and what of the milter protocol is needed to have it sign."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds that the daemon may take for anything.
PATIENCE = 60.0
#: Bytes of a body that libmilter takes at once.
PIECE = 65535
#: Of the protocol: all that a filter may want to do.
VERSION, ACTIONS = 6, 0x1FF


@contextmanager
def daemon(program: str, folder: Path, key: bytes, form: str) -> Iterator[Path]:
    """Run the daemon; yield its socket. It signs as good.example with the selector rsa."""
    path = folder / "socket"
    (folder / "key").write_bytes(key)
    (folder / "key").chmod(0o600)
    conf = folder / "opendkim.conf"
    conf.write_text(
        f"Mode s\nSyslog no\nBackground no\nUserID root\nRequireSafeKeys no\nDomain good.example\n"
        f"Selector rsa\nKeyFile {folder / 'key'}\nCanonicalization {form}\nSocket local:{path}\n"
        f"InternalHosts 0.0.0.0/0\n"
    )
    process = subprocess.Popen([program, "-f", "-x", conf], stderr=subprocess.PIPE)
    try:
        _await(process, path)
        yield path
    finally:
        process.kill()  # it takes seconds to end by itself
        process.communicate(timeout=PATIENCE)


def _await(process: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until the daemon accepts connections."""
    ends = monotonic() + PATIENCE
    while monotonic() < ends:
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(path))
                return
        except OSError:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise
    raise TimeoutError("OpenDKIM does not answer")


def sign(path: Path, message: bytes) -> bytes:
    """Return a message with the signature that the daemon adds."""
    head, _, body = message.partition(b"\r\n\r\n")
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(PATIENCE)
        link.connect(str(path))
        _ask(link, b"O" + struct.pack(">III", VERSION, ACTIONS, 0))
        _ask(link, b"Cmail.good.example\x004" + struct.pack(">H", 25) + b"192.0.2.9\x00")
        _ask(link, b"Hmail.good.example\x00")
        _ask(link, b"M<joe@good.example>\x00")
        _ask(link, b"R<alice@local.example>\x00")
        for field in re.split(rb"\r\n(?![ \t])", head):
            name, _, value = field.partition(b":")
            # libmilter strips one blank, and puts it back.
            text = value.removeprefix(b" ").replace(b"\r\n", b"\n")
            _ask(link, b"L" + name + b"\x00" + text + b"\x00")
        _ask(link, b"N")
        for at in range(0, len(body), PIECE):
            _ask(link, b"B" + body[at : at + PIECE])
        added = b""
        reply = _ask(link, b"E")
        while reply[:1] not in b"ac":
            if reply[:1] in b"hi":  # add or insert a field
                at = 1 if reply[:1] == b"h" else 5
                name, value = reply[at:].split(b"\x00")[:2]
                added += name + b": " + value.replace(b"\n", b"\r\n") + b"\r\n"
            reply = _read(link)
        link.sendall(struct.pack(">I", 1) + b"Q")
    assert added.startswith(b"DKIM-Signature: ")
    return added + message


def _ask(link: socket.socket, packet: bytes) -> bytes:
    link.sendall(struct.pack(">I", len(packet)) + packet)
    return _read(link)


def _read(link: socket.socket) -> bytes:
    (length,) = struct.unpack(">I", _exactly(link, 4))
    return _exactly(link, length)


def _exactly(link: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = link.recv(length - len(data))
        assert piece, "OpenDKIM has closed the connection"
        data += piece
    return data
