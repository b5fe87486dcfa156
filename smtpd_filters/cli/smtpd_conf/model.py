"""The content of a smtpd.conf(5), as far as filters are concerned."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .lexer import Place


class Problem(NamedTuple):
    """An error, or a probable mistake (`warning`)."""

    place: Place
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {'warning: ' if self.warning else ''}{self.text}"


class Program(NamedTuple):
    """A command that smtpd starts: that of a `filter ... proc-exec`, or of a `proc`."""

    place: Place
    statement: str  # "filter" or "proc"
    name: str
    command: str
    user: str = ""
    group: str = ""
    chroot: str = ""


class Table(NamedTuple):
    """A `table` whose entries a program has: smtpd starts `table-PROGRAM` of its libexec."""

    place: Place
    name: str
    program: str


class Filter(NamedTuple):
    """A declared filter.

    `kind` is the word behind its name: proc-exec, proc, chain or phase. `members` are the filters
    of a chain, or the proc that runs it. `phase` and `action` are those of smtpd's own filters, and
    `everybody` says that such a filter acts on every client.
    """

    place: Place
    kind: str
    members: tuple[str, ...] = ()
    phase: str = ""
    action: str = ""
    everybody: bool = False


class Listener(NamedTuple):
    """A `listen` statement: its filters as written, and what clients can do there.

    That is to authenticate, to use TLS, and to present a certificate.
    """

    place: Place
    name: str  # what follows `listen on`: an interface, an address or "socket"
    filters: tuple[str, ...]
    authenticates: bool = False
    encrypts: bool = False
    verifies: bool = False


class Configuration:
    """The programs, tables of programs, filters, listeners and problems of a file."""

    def __init__(self, start: Place) -> None:
        #: The first line of the file.
        self.start = start
        self.programs: list[Program] = []
        self.tables: list[Table] = []
        self.problems: list[Problem] = []
        self.filters: dict[str, Filter] = {}
        self.procs: dict[str, Place] = {}
        self.listeners: list[Listener] = []
        #: The character of `smtp sub-addr-delim`.
        self.sub_addr_delim = "+"
        #: The filters, or chains, that listeners and relay actions name.
        self.used: set[str] = set()

    @property
    def warnings(self) -> list[Problem]:
        """The probable mistakes."""
        return [problem for problem in self.problems if problem.warning]

    def members(self, names: Iterable[str]) -> list[str]:
        """Return the filters, each chain replaced by its members, in the order of their calls."""
        return [
            member
            for name in names
            for member in (
                self.filters[name].members if self.filters[name].kind == "chain" else (name,)
            )
        ]

    def program(self, name: str) -> Program | None:
        """Return the program of a filter; None for smtpd's own filters and for chains."""
        declared = self.filters[name]
        statement, named = "filter", name
        if declared.kind == "proc":
            statement, named = "proc", declared.members[0]
        found = (each for each in self.programs if each[1:3] == (statement, named))
        return next(found, None)

    def command(self, name: str) -> str:
        """Return the command of a filter's program; "" for smtpd's own filters and for chains."""
        program = self.program(name)
        return "" if program is None else program.command

    @property
    def errors(self) -> list[Problem]:
        """The problems on which smtpd ends."""
        return [problem for problem in self.problems if not problem.warning]
