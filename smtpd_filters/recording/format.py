"""The file format of recorded filter traffic, which `record` writes and `replay` reads.

A recording consists of lines that end with LF. Bodies contain 8-bit bytes, so lines are bytes and
never decoded as a whole.

- `# key: value` lines at the top are the head: the server, the actions of the client, the policy of
  the filter. The first line of another form ends it.
- `< ` begins a line that smtpd wrote to the filter, `> ` a line that the filter wrote, in the order
  in which they passed. The rest is the line, byte for byte, without its LF.
- `# ` after the head begins a remark; `# EOF on stdin` marks the end of smtpd's output.

This module parses only as much of the protocol as it needs for versions and session ids.

Invariants
----------
*Reversible*: `to_bytes()` returns exactly the bytes that `read()` parsed; a line for which this
can't hold is rejected with its number.
"""

from __future__ import annotations

import os
import re
import stat

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings.files import open_input

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FROM_SMTPD = "<"
FROM_FILTER = ">"
REMARK = "#"

RECORDER = "recorder"
"""The key in the head of filter-trace's recordings, whose own answers are not the decisions."""

END = b"EOF on stdin"
"""The remark at the end of smtpd's output."""

LOOKUP = b"look-up "
"""The start of a remark with the outcome of a look-up in the DNS, as JSON: the type of the records,
the name, and what `smtpd_filters.lookups.dns.records` makes of the outcome."""

_MARKS = {b"< ": FROM_SMTPD, b"> ": FROM_FILTER, b"# ": REMARK}
_META = re.compile(rb"# ([A-Za-z][A-Za-z0-9_-]*): (.*)", re.DOTALL)
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

# The order is `session|token` since protocol 0.5, and `token|session` before.
_SESSION_FIRST = (0, 5)


def encode_entry(direction: str, line: bytes) -> bytes:
    r"""Return a line of a recording, with its LF.

    Raises ValueError if `line` contains a LF, which would be read back as two lines, or `direction`
    is not one of FROM_SMTPD, FROM_FILTER, REMARK.
    """
    if direction not in {FROM_SMTPD, FROM_FILTER, REMARK}:
        raise ValueError(f"invalid direction: {direction!r}")
    if b"\n" in line:
        raise ValueError("a recorded line contains a line break")
    return b"%s %s\n" % (direction.encode(), line)


def encode_meta(meta: Mapping[str, str]) -> bytes:
    """Return the head of a recording. Raises ValueError for an invalid key or value."""
    head = bytearray()
    for key, value in meta.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"invalid key of a recording's head: {key!r}")
        if "\n" in value:
            raise ValueError(f"the value of {key!r} contains a line break")
        head += b"# %s: %s\n" % (key.encode(), value.encode("utf-8", "surrogateescape"))
    return bytes(head)


class Recording:
    """A recorded conversation between smtpd and a filter.

    `meta` is the head, in its order ("server", "client", "policy", ...). `entries` are pairs of
    direction and line without LF, remarks included, in the order in which they passed.
    """

    __slots__ = ("entries", "meta")

    def __init__(
        self,
        meta: Mapping[str, str] | None = None,
        entries: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        self.meta: dict[str, str] = dict(meta or {})
        self.entries: list[tuple[str, bytes]] = list(entries)

    @classmethod
    def read(cls, source: str | os.PathLike[str] | bytes, name: str = "recording") -> Recording:
        """Read a file, or the bytes of one; then `name` identifies it in errors.

        Raises ConfigError if the file can't be read, or with the number of an invalid line.
        """
        if not isinstance(source, bytes):
            name = os.fspath(source)
            try:
                with open_input(name) as file:
                    if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):  # it may be endless
                        raise ConfigError(f"{name}: not a regular file")
                    source = file.read()
            except OSError as error:
                raise ConfigError(f"{name}: {os_reason(error)}") from error
        recording = cls()
        lines = source.split(b"\n")
        cut_off = lines.pop()
        in_head = True
        for number, line in enumerate(lines, 1):
            if in_head and (field := _META.fullmatch(line)):
                key = field[1].decode()
                if key not in recording.meta:
                    recording.meta[key] = field[2].decode("utf-8", "surrogateescape")
                    continue
            in_head = False
            direction = _MARKS.get(line[:2])
            if direction is None:
                raise ConfigError(
                    f"{name}:{number}: not a recording: expected a line that begins with "
                    "'# ', '< ' or '> '"
                )
            recording.entries.append((direction, line[2:]))
        if cut_off:
            raise ConfigError(f"{name}:{len(lines) + 1}: the last line is cut off (no line end)")
        return recording

    def to_bytes(self) -> bytes:
        """Return the content of the file. Raises ValueError for an invalid entry or key."""
        if self.entries and not self._ends_head(*self.entries[0]):
            raise ValueError("a remark of the form 'key: value' directly after the head")
        lines = [encode_entry(direction, line) for direction, line in self.entries]
        return encode_meta(self.meta) + b"".join(lines)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a file. Raises ConfigError if that fails, and ValueError as `to_bytes` does."""
        content = self.to_bytes()
        try:
            with open(path, "wb") as file:  # noqa: PTH123  # pathlib costs start-up
                file.write(content)
        except OSError as error:
            raise ConfigError(f"{os.fspath(path)}: {os_reason(error)}") from error

    def to_filter(self) -> list[bytes]:
        """Return the lines that smtpd wrote."""
        return [line for direction, line in self.entries if direction == FROM_SMTPD]

    def from_filter(self) -> list[bytes]:
        """Return the lines that the filter wrote."""
        return [line for direction, line in self.entries if direction == FROM_FILTER]

    @property
    def by_recorder(self) -> bool:
        """Whether filter-trace wrote it, beside the filters that decided."""
        return RECORDER in self.meta

    @property
    def server_version(self) -> str | None:
        """The server's version, such as "7.8.0p1": from the head, else from smtpd's own line."""
        if server := self.meta.get("server"):
            return server.rpartition(" ")[2]
        return self._config(b"smtpd-version")

    @property
    def protocol(self) -> str | None:
        """The protocol version, such as "0.7": from smtpd's configuration, else its first event.

        6.8 and older send it in events only.
        """
        if version := self._config(b"protocol"):
            return version
        for line in self.to_filter():
            if line.startswith((b"report|", b"filter|")):
                return line.split(b"|", 2)[1].decode("utf-8", "surrogateescape")
        return None

    def sessions(self) -> list[str]:
        """Return the session ids in smtpd's lines, in order of first appearance."""
        found: dict[bytes, None] = {}
        for line in self.to_filter():
            fields = line.split(b"|", 7)
            if fields[0] == b"report" and len(fields) > 5:
                found[fields[5]] = None
            elif fields[0] == b"filter" and len(fields) > 6:
                found[fields[5] if _session_first(fields[1]) else fields[6]] = None
        return [session.decode("utf-8", "surrogateescape") for session in found]

    def _config(self, key: bytes) -> str | None:
        for line in self.to_filter():
            fields = line.split(b"|", 2)
            if fields[:2] == [b"config", key] and len(fields) > 2:
                return fields[2].decode("utf-8", "surrogateescape")
        return None

    def _ends_head(self, direction: str, line: bytes) -> bool:
        field = _META.fullmatch(b"# " + line) if direction == REMARK else None
        return field is None or field[1].decode() in self.meta


def _session_first(version: bytes) -> bool:
    try:
        major, minor = version.split(b".", 1)
        return (int(major), int(minor)) >= _SESSION_FIRST
    except ValueError:
        return True
