"""Reading MIME: our scanner beside the standard library's parser, by processor time.

python -m tests.bench.choices mime
"""

from __future__ import annotations

import base64
import email
import email.policy
import io
import time
import zipfile
from typing import TYPE_CHECKING

from smtpd_filters.mime.limits import BLOCK
from smtpd_filters.mime.scanner import Scanner
from tests.mime.reading import Memory, blocks

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = b"From: a@example.net\nContent-Type: multipart/mixed; boundary=b\n"
_MB = 1 << 20


def _attached(data: bytes) -> bytes:
    return (
        _HEAD + b"\n--b\nContent-Type: x/y; name=a\nContent-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(data) + b"--b--\n"
    )  # fmt: skip


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number in range(1000):
            archive.writestr(f"{number}.txt", bytes(15_000))
    return file.getvalue()


def messages() -> dict[str, bytes]:
    """Return messages by their kind."""
    part = b"--b\nContent-Type: text/plain; name=a.txt\n\nhello\n"
    return {
        "an attachment of 20 MB in base64": _attached(bytes(20 * _MB)),
        "a zip file of 15 MB, 1,000 members": _attached(_zip()),
        "20 MB of text": _HEAD + b"\n--b\n\n" + b"a line of a long text\n" * (_MB * 20 // 22),
        "10,000 parts": _HEAD + b"\n" + part * 10_000 + b"--b--\n",
        "lines that begin with dashes, 5 MB": _HEAD + b"\n--b\n\n" + b"--\n" * (5 * _MB // 3),
        "To with 8,000 addresses": _HEAD + b"To: " + b"a@example.net,\n " * 8_000 + b"b@x\n\nx\n",
    }


def scan(message: bytes, *, slowest: list[float] | None = None) -> int:
    """Scan a message and return the number of its parts; note the slowest step."""
    head, _, body = message.partition(b"\n\n")
    scanner = Scanner(head.split(b"\n"), Memory)
    last = time.process_time()

    def step() -> None:
        nonlocal last
        now = time.process_time()
        if slowest is not None:
            slowest.append(now - last)
        last = now

    for block in blocks(body, BLOCK):
        scanner.feed(block)
        step()
        for _ in scanner.work():
            step()
    scanner.close()
    for _ in scanner.work():
        step()
    return len(scanner.content.parts)


def compat32(message: bytes) -> int:
    """Parse a message with the standard library and decode its parts."""
    parts = list(email.message_from_bytes(message).walk())
    for part in parts:
        part.get_filename()
        part.get_payload(decode=True)
    return len(parts)


def default(message: bytes) -> int:
    """Do the same with the policy that the documentation advises."""
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    dict(parsed.items())
    return sum(1 for _ in parsed.walk())


def spent(what: Callable[[bytes], int], message: bytes) -> float:
    """Return the least processor time of three runs, in seconds."""
    found = []
    for _ in range(3):
        begin = time.process_time()
        what(message)
        found.append(time.process_time() - begin)
    return min(found)


def run() -> None:
    """Measure and print."""
    for name, message in messages().items():
        slowest: list[float] = []
        scan(message, slowest=slowest)
        size = len(message) / _MB
        ours = spent(scan, message)
        print(
            f"{name} ({size:.1f} MB): ours {ours * 1000:.0f} ms, {ours * 1000 / size:.1f} ms/MB, "
            f"slowest step {max(slowest) * 1000:.1f} ms; "
            f"email {spent(compat32, message) * 1000:.0f} ms"
        )
        if name.startswith(("10,000", "To with")):
            print(f"  email with policy.default {spent(default, message) * 1000:.0f} ms")
