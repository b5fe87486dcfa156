"""Registrations: a program's, the one with smtpd, and whether a later program's is part of that."""

from __future__ import annotations

from smtpd_filters.protocol.codec import decode_answer
from smtpd_filters.protocol.credentials import with_later_phases
from smtpd_filters.protocol.events import Register
from smtpd_filters.protocol.versions import DIALECTS, NEWEST
from smtpd_filters.protocol.vocabulary import DATA_LINE, NEVER_REQUESTED, PHASES, REPORTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    #: kind, subsystem, name
    Entry = tuple[str, str, str]

SMTP_IN, SMTP_OUT = "smtp-in", "smtp-out"
#: Every report in place of a list of them.
EVERY = "*"
#: Reports without which sessions can't be tracked.
NEEDED = ("link-connect", "link-disconnect", "tx-reset")
_ALL_PHASES = frozenset({*PHASES, DATA_LINE})


class Registration:
    """The registrations of one program, as it writes them."""

    def __init__(self) -> None:
        #: The registrations, in order.
        self.entries: dict[Entry, None] = {}

    def add(self, line: bytes) -> bool:
        """Take a line of the program; return whether it was `register|ready`.

        Raise ValueError with the reason for a line that smtpd would exit on.
        """
        found = decode_answer(line, DIALECTS[NEWEST])
        if not isinstance(found, Register):
            raise ValueError("line that is not a registration")  # noqa: TRY004  # of the line, not of its type
        if found.kind == "ready":
            return True
        if found.kind == "report":
            valid = found.subsystem in (SMTP_IN, SMTP_OUT)
            valid = valid and (found.name in REPORTS or found.name == EVERY)
        else:
            valid = found.subsystem == SMTP_IN
            valid = valid and (found.name in _ALL_PHASES or found.name in NEVER_REQUESTED)
        if not valid:
            raise ValueError("registration of an unknown event")
        self.entries[found.kind, found.subsystem, found.name] = None
        return False

    def phases(self) -> frozenset[bytes]:
        """Return the names of the phases, `data-line` among them."""
        return frozenset(name.encode() for kind, _, name in self.entries if kind == "filter")

    def reports(self, subsystem: str) -> frozenset[bytes]:
        """Return the names of the reports of a subsystem."""
        return frozenset(
            each.encode()
            for kind, of, name in self.entries
            if kind == "report" and of == subsystem
            for each in (REPORTS if name == EVERY else (name,))
        )


class Registered:
    """The registration with smtpd, which is final."""

    def __init__(self, entries: Iterable[Entry], announced: Iterable[str]) -> None:
        subsystems = set(announced) or {SMTP_IN}
        #: The registrations, in order.
        self.entries: dict[Entry, None] = {}
        entries = [each for each in entries if each[1] in subsystems]
        for subsystem in (SMTP_IN, SMTP_OUT):
            if subsystem == SMTP_IN or any(each[1] == subsystem for each in entries):
                self.entries |= {("report", subsystem, name): None for name in NEEDED}
        self.entries |= dict.fromkeys(entries)
        phases = [name for kind, _, name in self.entries if kind == "filter"]
        self.entries |= {("filter", SMTP_IN, name): None for name in with_later_phases(phases)}
        if DATA_LINE in phases:
            # A message that is lost on its way is refused there.
            self.entries["filter", SMTP_IN, "commit"] = None

    @classmethod
    def all(cls, announced: Iterable[str]) -> Registered:
        """Return every report and phase that a program may register."""
        reports = [("report", of, name) for of in (SMTP_IN, SMTP_OUT) for name in REPORTS]
        return cls(
            [*reports, *(("filter", SMTP_IN, name) for name in sorted(_ALL_PHASES))], announced
        )

    def lines(self) -> list[bytes]:
        """Return the lines for smtpd."""
        return [
            *("|".join(("register", *each)).encode() + b"\n" for each in self.entries),
            b"register|ready\n",
        ]

    def missing(self, registration: Registration, announced: Iterable[str]) -> list[str]:
        """Return what a program registers beyond that, as the operator knows it."""
        subsystems = set(announced) or {SMTP_IN}
        return [
            f"{kind} {name}"
            for kind, subsystem, name in registration.entries
            if (kind, subsystem, name) not in self.entries
            and subsystem in subsystems
            and name not in NEVER_REQUESTED
            and not (
                name == EVERY and all(("report", subsystem, n) in self.entries for n in REPORTS)
            )
        ]
