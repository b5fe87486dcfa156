"""Types by content: what the first bytes of a file say that it is, whatever its name.

The table has what is dangerous or can hide something, and a few harmless types to tell them from
text. Numbers are from the formats' specifications and from file(1)'s magic.
"""

from __future__ import annotations

import re

#: Kinds by their first bytes; the first that matches counts.
_BEGINNINGS = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PK00PK\x03\x04", "zip"),
    (b"PK\x07\x08PK\x03\x04", "zip"),
    (b"Rar!\x1a\x07", "rar"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x1f\x9d", "compress"),
    (b"LZIP", "lzip"),
    (b"\x60\xea", "arj"),
    (b"MSCF", "cab"),
    (b"ISc(", "cab"),
    (b"xar!", "xar"),
    (b"ITSF", "chm"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole"),
    (b"\x4c\x00\x00\x00\x01\x14\x02\x00", "lnk"),
    (b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d\xae\xb1\x53\x78\xd0\x29\x96\xd3", "onenote"),
    (b"\x7fELF", "elf"),
    (b"\xfe\xed\xfa\xce", "mach-o"),
    (b"\xfe\xed\xfa\xcf", "mach-o"),
    (b"\xce\xfa\xed\xfe", "mach-o"),
    (b"\xcf\xfa\xed\xfe", "mach-o"),
    (b"\xca\xfe\xba\xbe", "class"),
    (b"dex\n", "dex"),
    (b"\x00asm", "wasm"),
    (b"#!", "script"),
    (b"regf", "reg"),
    (b"REGEDIT4", "reg"),
    (b"Windows Registry Editor", "reg"),
    (b"[InternetShortcut]", "url"),
    (b"conectix", "disk"),
    (b"vhdxfile", "disk"),
    (b"KDMV", "disk"),
    (b"QFI\xfb", "disk"),
    (b"FWS", "flash"),
    (b"CWS", "flash"),
    (b"ZWS", "flash"),
    (b"{\\rt", "rtf"),
    (b"\x78\x9f\x3e\x22", "tnef"),
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF87a", "image"),
    (b"GIF89a", "image"),
)
#: Kinds by bytes elsewhere.
_ELSEWHERE = (
    (257, b"ustar", "tar"),
    (7, b"**ACE**", "ace"),
    (2, b"-lh", "lzh"),
    (0x8001, b"CD001", "iso"),
)
#: Where a scanner has to look behind the head for an ISO 9660 file system.
_TAR = 512
ISO_AT, ISO = 0x8001, b"CD001"

_TEXTS = re.compile(
    rb"(?i)\s*+(?:(@echo\s|powershell(?:\.exe)?\s+-|cmd(?:\.exe)?\s*/c|on\s+error\s+resume\s+next|"
    rb"set\s+\w+\s*=\s*createobject|<job\b|<scriptlet\b|<script\b)|(<svg\b)|(<hta:)|(<!doctype\s+html|<html\b|<head\b|<body\b)|(mime-version:))"
)
_TEXT_KINDS = ("script", "svg", "hta", "html", "mhtml")
_HTA = re.compile(rb"(?i)<hta:application")
_SVG = re.compile(rb"(?i)<svg[\s>]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")

ARCHIVES = frozenset(
    {"zip", "rar", "7z", "gzip", "xz", "bzip2", "zstd", "lzma", "compress", "lzip", "arj", "cab"}
    | {"ace", "lzh", "tar", "xar", "iso", "disk"}
)
#: Archives of which only the names of members are read.
LISTED = frozenset({"rar", "7z", "cab"})
#: Archives that are looked into; the others can't be read.
READABLE = LISTED | {"zip", "gzip", "xz", "bzip2", "lzma", "tar"}
#: Extensions by which programs open a file as an archive that begins behind other data.
BEHIND_DATA = {"zip": "zip", "zipx": "zip", "rar": "rar", "r00": "rar", "cbr": "rar"}
#: Kinds that are shown as text if a part is declared as text and has no name.
TEXTUAL = frozenset({"", "text", *_TEXT_KINDS, "url", "reg", "rtf"})
#: What a rule may ask for in place of a kind.
GROUPS = {
    "executable": frozenset({"exe", "elf", "mach-o", "class", "dex", "wasm"}),
    "script": frozenset({"script", "hta", "reg"}),
    "archive": ARCHIVES,
    "office": frozenset({"ole", "ooxml", "rtf", "odf", "onenote"}),
    "dangerous": frozenset(
        {"exe", "elf", "mach-o", "class", "dex", "wasm", "script", "hta", "reg", "lnk", "url"}
        | {"chm", "onenote", "flash", "iso", "disk", "jar", "apk"}
    ),
}
KINDS = frozenset(
    {kind for _, kind in _BEGINNINGS}
    | {kind for _, _, kind in _ELSEWHERE}
    | set(_TEXT_KINDS)
    | {"exe", "pdf", "ooxml", "odf", "jar", "apk", "text", "data"}
)


def sniff(head: bytes) -> str:
    """Return the kind of a file by its first bytes: one of KINDS, "" if it is empty.

    `data` is anything that isn't recognised and isn't text.
    """
    if not head:
        return ""
    text = not _CONTROL.search(head)
    if kind := _by_signature(head, text=text):
        return kind
    return _text(head.removeprefix(b"\xef\xbb\xbf")) if text else _wide(head)


def _by_signature(head: bytes, *, text: bool) -> str:
    if head[:2] == b"MZ" and not text:
        return "exe"
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    for at, mark, kind in _ELSEWHERE:
        if head.startswith(mark, at):
            return kind
    if len(head) >= _TAR and _is_tar(head):
        return "tar"
    return "pdf" if b"%PDF-" in head[:1024] else ""


def _is_tar(head: bytes) -> bool:
    """Return whether a file begins with a tar header by its checksum: the oldest have no mark."""
    digits = head[148:156].strip(b" \0")
    if not head[0] or head[257:262] != bytes(5) or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(head[:148]) + 8 * 0x20 + sum(head[156:_TAR])


def _text(head: bytes) -> str:
    if _HTA.search(head):
        return "hta"
    match = _TEXTS.match(head)
    if match is not None and match.lastindex:
        return _TEXT_KINDS[match.lastindex - 1]
    if head.lstrip().startswith(b"<?xml") and _SVG.search(head):
        return "svg"
    return "text"


def _wide(head: bytes) -> str:
    """Return the kind of what may be text in UTF-16, as Windows writes scripts."""
    for mark, other in ((b"\xff\xfe", 1), (b"\xfe\xff", 0)):
        if head.startswith(mark):
            narrow = head[2:][1 - other :: 2]
            return _text(narrow) if not _CONTROL.search(narrow) else "data"
    return "data"
