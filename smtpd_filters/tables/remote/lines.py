"""The line protocol of OpenSMTPD's table programs, version 0.1 (since 7.6), without I/O.

smtpd is the host: it sends its configuration, the program registers services, then requests and
results follow, one per line. The same module serves a host (`Host`, for `proc:`) and a program
(`Program`, for `smtpd-filters table serve`).

Invariants
----------
*Bounded*: a line has at most `LINE_MAX` bytes.
*One line each*: neither a key nor a value may contain a line break or NUL.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LINE_MAX = 1 << 16
#: Bytes of a value, at most: smtpd parses it in a buffer of LINE_MAX (expand.c), and a part of an
#: alias is another alias.
VALUE_MAX = 2047
VERSION = "0.1"
#: What a host says it is: the newest version of smtpd whose protocol this is.
SMTPD = "7.8.0-portable"
#: What programs may offer (smtpd 7.8).
SERVICES = (
    "alias", "domain", "credentials", "netaddr", "userinfo", "source", "mailaddr", "addrname",
    "mailaddrmap", "relayhost", "string", "regex", "auth",
)  # fmt: skip
FOUND, NOT_FOUND, ERROR = "found", "not-found", "error"


class LineError(Exception):
    """The other side doesn't speak the protocol; the text says how."""


class _Lines:
    """Splits bytes into lines."""

    __slots__ = ("_rest", "_skips")

    def __init__(self) -> None:
        self._rest = b""
        #: Whether the rest of a line that is too long has to be skipped.
        self._skips = False

    def lines(self, data: bytes) -> Iterator[str]:
        """Yield the lines that are complete.

        Raises LineError for one that is too long, behind the others; it is dropped.
        """
        *lines, rest = (self._rest + data).split(b"\n")
        if self._skips and lines:
            del lines[0]
            self._skips = False
        self._rest = b"" if self._skips else rest
        long = len(self._rest) > LINE_MAX
        if long:
            self._skips, self._rest = True, b""
        for line in lines:
            if len(line) > LINE_MAX:
                long = True
            else:
                yield line.decode("utf-8", "surrogateescape")
        if long:
            raise LineError("a line that is too long")


class Answer:
    """The result of a request: `FOUND` with a value, `NOT_FOUND`, or `ERROR` with a text."""

    __slots__ = ("number", "status", "value", "verb")

    def __init__(self, verb: str, number: str, status: str, value: str) -> None:
        self.verb = verb
        self.number = number
        self.status = status
        self.value = value


class Host:
    """The side of smtpd."""

    __slots__ = ("_lines", "_number", "ready", "services")

    def __init__(self) -> None:
        self._lines = _Lines()
        self._number = 0
        #: The services that the program has registered, and whether it is ready.
        self.services: set[str] = set()
        self.ready = False

    @staticmethod
    def configuration(table: str) -> bytes:
        """Return the first lines for a program."""
        settings = (f"smtpd-version|{SMTPD}", f"protocol|{VERSION}", f"tablename|{table}", "ready")
        return "".join(f"config|{each}\n" for each in settings).encode()

    def request(
        self, seconds: float, table: str, verb: str, service: str, key: str
    ) -> tuple[str, bytes]:
        """Return the number and the line of a `lookup` or `check`. The key is one line."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        number = f"{self._number:08x}"
        head = f"table|{VERSION}|{seconds:.6f}|{table}|{verb}|{service}|{number}|"
        return number, (head + key).encode("utf-8", "surrogateescape") + b"\n"

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Yield results; registrations are noted. Raises LineError."""
        for line in self._lines.lines(data):
            verb, _, rest = line.partition("|")
            if verb == "register":
                if rest == "ready":
                    self.ready = True
                elif rest in SERVICES and not self.ready:
                    self.services.add(rest)
                continue
            number, _, result = rest.partition("|")
            status, _, value = result.partition("|")
            if not verb.endswith("-result") or status not in {FOUND, NOT_FOUND, ERROR, "ok"}:
                raise LineError(f"an invalid line, {line[:60]!r}")
            yield Answer(verb.removesuffix("-result"), number, status, value)


class Request:
    """A request of smtpd; `verb` is lookup, check, fetch or update. `key` may contain bars."""

    __slots__ = ("key", "number", "service", "verb")

    def __init__(self, verb: str, service: str, number: str, key: str) -> None:
        self.verb = verb
        self.service = service
        self.number = number
        self.key = key

    def answer(self, status: str, value: str = "") -> bytes:
        """Return the line of a result. A value that smtpd can't take is an error."""
        if "\n" in value or "\0" in value:
            status, value = ERROR, "the value is not one line"
        if self.verb == "check" and status == FOUND:
            value = ""
        if status == FOUND and len(value.encode("utf-8", "surrogateescape")) > VALUE_MAX:
            status, value = ERROR, f"the value is longer than {VALUE_MAX} bytes"
        rest = f"|{value}" if value else ""
        line = f"{self.verb}-result|{self.number}|{status}{rest}\n"
        return line.encode("utf-8", "surrogateescape")


class Program:
    """The side of a table program."""

    __slots__ = ("_lines", "configured", "invalid", "table")

    def __init__(self) -> None:
        self._lines = _Lines()
        #: Whether smtpd has sent its whole configuration, and the table's name.
        self.configured = False
        self.table = ""
        #: What was wrong with the last line that was no request; "" if all were.
        self.invalid = ""

    @staticmethod
    def registration(services: Iterable[str]) -> bytes:
        """Return the lines that register services."""
        lines = [f"register|{each}\n" for each in services]
        return "".join((*lines, "register|ready\n")).encode()

    def receive(self, data: bytes) -> Iterator[Request]:
        """Yield requests; a line without a number to answer is noted in `invalid`.

        Raises LineError for a line that is too long.
        """
        for line in self._lines.lines(data):
            if line.startswith("config|"):
                name, _, value = line[7:].partition("|")
                if name == "tablename":
                    self.table = value
                self.configured |= name == "ready"
                continue
            try:
                request = _request(line)
            except LineError as error:
                self.invalid = str(error)
            else:
                yield request


def _request(line: str) -> Request:
    fields = line.split("|", 5)
    if len(fields) < 6 or fields[0] != "table":
        raise LineError(f"an invalid request, {line[:60]!r}")
    verb, rest = fields[4], fields[5]
    if verb == "update":
        return Request(verb, "", rest, "")
    service, _, rest = rest.partition("|")
    number, _, key = rest.partition("|")
    if verb not in {"lookup", "check", "fetch"} or not number:
        raise LineError(f"an invalid request, {line[:60]!r}")
    return Request(verb, service, number, key)
