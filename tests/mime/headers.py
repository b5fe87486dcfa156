"""RAR, 7z and cab archives that tests build header by header, with right checksums."""

from __future__ import annotations

import lzma
import zlib
from struct import pack

RAR_4, RAR_5 = b"Rar!\x1a\x07\x00", b"Rar!\x1a\x07\x01\x00"

# -- RAR 4 ---------------------------------------------------------------------------------


def block(kind: int, flags: int = 0, fields: bytes = b"", data: bytes = b"") -> bytes:
    """Return a block of a RAR 4 archive; `fields` begin with the size of `data`, if it has some."""
    head = pack("<BHH", kind, flags, 7 + len(fields)) + fields
    return pack("<H", zlib.crc32(head) & 0xFFFF) + head + data


MAIN_4, END_4 = block(0x73, 0, bytes(6)), block(0x7B, 0x4000)


def file_4(name: bytes, data: bytes = b"x", flags: int = 0, *, kind: int = 0x74) -> bytes:
    """Return a member of a RAR 4 archive that is stored."""
    crc = zlib.crc32(data)
    size = len(data)
    fields = pack(
        "<LLBLLBBHL", size, size, 3, crc, 0x5A000000 | 0x210000, 20, 0x30, len(name), 0o100644
    )
    high = bytes(8) if flags & 0x100 else b""
    salt = bytes(8) if flags & 0x400 else b""
    return block(kind, 0x8000 | flags, fields + high + name + salt, data)


def unicode_4(name: str, plain: bytes) -> bytes:
    """Return the name of a member in both forms: plain, and packed in Unicode by every step."""
    codes = memoryview(name.encode("utf-16-le")).cast("H")
    high = next((code >> 8 for code in codes if code > 0xFF), 0)
    steps: list[tuple[int, bytes]] = []
    at = 0
    while at < len(codes):
        same = 0
        while at + same < min(len(codes), len(plain)) and codes[at + same] == plain[at + same]:
            same += 1
        code = codes[at]
        if same > 1:
            steps.append((3, bytes((min(same, 129) - 2,))))
            at += min(same, 129)
            continue
        step = 0 if code <= 0xFF else 1 if code >> 8 == high else 2
        steps.append((step, pack("<H", code) if step == 2 else bytes((code & 0xFF,))))
        at += 1
    packed = bytes((high,))
    for first in range(0, len(steps), 4):
        four = steps[first : first + 4]
        packed += bytes((sum(step << 6 - 2 * place for place, (step, _) in enumerate(four)),))
        packed += b"".join(each for _, each in four)
    return plain + b"\0" + packed


def rar_4(*blocks: bytes, main: bytes = MAIN_4) -> bytes:
    """Return a RAR 4 archive."""
    return RAR_4 + main + b"".join(blocks) + END_4


# -- RAR 5 ---------------------------------------------------------------------------------


def number(value: int) -> bytes:
    """Return a number of variable length."""
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*digits, value))


def header(kind: int, fields: bytes = b"", extra: bytes = b"", data: bytes = b"") -> bytes:
    """Return a header of a RAR 5 archive with its data."""
    flags = (1 if extra else 0) | (2 if data else 0)
    head = number(kind) + number(flags)
    head += (number(len(extra)) if extra else b"") + (number(len(data)) if data else b"")
    head += fields + extra
    head = number(len(head)) + head
    return pack("<L", zlib.crc32(head)) + head + data


MAIN_5, END_5 = header(1, b"\0"), header(5, b"\0")
#: Records of the extra area: of the time, and of an encryption.
TIME = b"\x06\x03\x03" + bytes(4)
LOCKED = number(49) + b"\x01\x00\x00\x0f" + bytes(45)


def file_5(name: bytes, data: bytes = b"x", extra: bytes = b"", *, kind: int = 2) -> bytes:
    """Return a member of a RAR 5 archive, or a service, that is stored."""
    size = len(data)
    fields = number(4) + number(size) + number(0o100644) + pack("<L", zlib.crc32(data))
    fields += number(0) + number(1) + number(len(name)) + name
    return header(kind, fields, extra, data)


def copied(head: bytes) -> bytes:
    """Return a copy of a header for quick opening."""
    record = number(0) + number(9) + number(len(head)) + head
    record = number(len(record)) + record
    return pack("<L", zlib.crc32(record)) + record


def rar_5(*headers: bytes) -> bytes:
    """Return a RAR 5 archive."""
    return RAR_5 + MAIN_5 + b"".join(headers) + END_5


# -- cabinets ------------------------------------------------------------------------------


def cab(*names: bytes, attributes: int = 0x20) -> bytes:
    """Return a cabinet whose members have a byte each, not packed."""
    files = b"".join(
        pack("<LLHHHH", 1, place, 0, 0x5A21, 0, attributes) + name + b"\0"
        for place, name in enumerate(names)
    )
    data = b"x" * len(names)
    at = 36 + 8 + len(files)
    total = at + 8 + len(data)
    folder = pack("<LHH", at, 1, 0)
    head = pack("<4sLLLLLBBHHHHH", b"MSCF", 0, total, 0, 44, 0, 3, 1, 1, len(names), 0, 0, 0)
    return head + folder + files + pack("<LHH", 0, len(data), len(data)) + data


# -- 7z ------------------------------------------------------------------------------------


def sized(value: int) -> bytes:
    """Return a number of 7z archives, in as few bytes as it needs."""
    for count in range(8):
        if value < 1 << 7 * (count + 1):
            first = 0xFF & ~(0xFF >> count) | value >> 8 * count
            return bytes((first,)) + (value & (1 << 8 * count) - 1).to_bytes(count, "little")
    return b"\xff" + value.to_bytes(8, "little")


def streams_7z(
    at: int, sizes: tuple[int, int], coder: bytes, digest: int, more: bytes = b""
) -> bytes:
    """Return the description of one stream; `sizes` are those packed and unpacked."""
    packed, unpacked = sizes
    text = b"\x06" + sized(at) + b"\x01\x09" + sized(packed) + b"\0"
    text += b"\x07\x0b\x01\0\x01" + coder + b"\x0c" + sized(unpacked)
    return text + b"\x0a\x01" + pack("<L", digest) + b"\0" + more + b"\0"


COPY, AES = b"\x01\x00", b"\x24\x06\xf1\x07\x01\x02\x00\x00"


def seven_zip(*names: str, packed: bool = False, coder: bytes = COPY, before: bytes = b"") -> bytes:
    """Return a 7z archive whose members have a byte each; `before` is a property of its files."""
    count = len(names)
    data = b"x" * count
    parts = b"\x08\x0d" + sized(count)
    parts += b"\x09" + b"\x01" * (count - 1) if count > 1 else b""
    if count > 1:
        parts += b"\x0a\x01" + pack("<L", zlib.crc32(b"x")) * count
    header = b"\x01\x04" + streams_7z(0, (count, count), coder, zlib.crc32(data), parts + b"\0")
    text = b"\0" + "".join(name + "\0" for name in names).encode("utf-16-le")
    header += b"\x05" + sized(count) + before + b"\x11" + sized(len(text)) + text + b"\0\0"
    if packed:
        options = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20}
        short = lzma.compress(header, lzma.FORMAT_RAW, filters=[options])
        coder = b"\x23\x03\x01\x01\x05\x5d" + pack("<L", 1 << 20)
        sizes = len(short), len(header)
        header, data = (
            b"\x17" + streams_7z(len(data), sizes, coder, zlib.crc32(header)),
            data + short,
        )
    start = pack("<QQL", len(data), len(header), zlib.crc32(header))
    return b"7z\xbc\xaf\x27\x1c\0\x04" + pack("<L", zlib.crc32(start)) + start + data + header
