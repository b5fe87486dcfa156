"""The handshake: smtpd's configuration, given to each program, and the registration with smtpd.

Invariants
----------
*One registration*: smtpd gets a registration once. A program that needs more is at fault.
"""

from __future__ import annotations

from smtpd_filters.protocol.versions import OLDEST, cuts_lines, version

from .ledger import KEPT
from .registration import SMTP_IN, SMTP_OUT, Registered
from .transit import NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_filters.runtime.log import Log

    from .link import Link
    from .registration import Entry

_IN, _OUT = SMTP_IN.encode(), SMTP_OUT.encode()


class Handshake:
    """What precedes the sessions, with smtpd and with each program.

    `own` are registrations beyond those of the program. The lines for smtpd are appended to
    `answers`; `server_cuts` is called if the server truncates long lines.
    """

    def __init__(
        self,
        log: Log,
        answers: list[bytes],
        *,
        own: Sequence[Entry],
        register_all: bool,
        server_cuts: Callable[[], None],
    ) -> None:
        self._log, self._answers = log, answers
        self._own, self._register_all = own, register_all
        self._server_cuts = server_cuts
        self._config: list[bytes] = []
        #: smtpd's configuration is complete.
        self._configured = False
        self._subsystems: set[str] = set()
        #: The registration with smtpd, or None before.
        self.registered: Registered | None = None
        #: Programs that have not registered yet.
        self.starting: dict[Link, None] = {}

    @property
    def overdue(self) -> bool:
        """Whether smtpd waits for a registration, and no program is about to register."""
        return self.registered is None and self._configured and not self.starting

    def attach(self, link: Link) -> None:
        """Give a program that was started the configuration so far."""
        self.starting[link] = None
        link.out += self._config

    def configure(self, row: bytes, fields: list[bytes]) -> None:
        """Process a line of smtpd's configuration."""
        self._config.append(row)
        for link in self.starting:
            link.out.append(row)
        key = fields[1] if len(fields) > 1 else b""
        value = fields[2].decode("utf-8", "replace") if len(fields) > 2 else ""
        if key == b"subsystem":
            self._subsystems.add(value)
        elif key == b"smtpd-version" and cuts_lines(value):
            self._server_cuts()
        elif key == b"protocol" and (version(value) or OLDEST) < OLDEST:
            self._log.event(NAME, "unsupported", protocol=value)
        elif key == b"ready":
            self._configured = True
            for link in list(self.starting):
                if link.complete:
                    self.complete(link)

    def complete(self, link: Link) -> None:
        """Register with smtpd, or compare the program's registration, now complete, with that."""
        link.complete = True
        if not self._configured:
            return
        self.starting.pop(link, None)
        registration = link.registration
        if self.registered is None and self._register_all:
            self.register_all()
        elif self.registered is None:
            self._register(Registered([*registration.entries, *self._own], self._subsystems))
        elif missing := self.registered.missing(registration, self._subsystems):
            link.fault = (
                f"registers {', '.join(missing)}, which was not registered with smtpd at its "
                'start: restart smtpd; with "filter-supervise --register all -- COMMAND" in '
                "smtpd.conf a reload is enough"
            )
            return
        link.phases = registration.phases()
        link.reports = {_IN: registration.reports(SMTP_IN), _OUT: registration.reports(SMTP_OUT)}
        link.replayed = any(KEPT & names for names in link.reports.values())
        link.ready = True

    def register_all(self) -> None:
        """Register every report and phase with smtpd."""
        self._register(Registered.all(self._subsystems))

    def _register(self, registered: Registered) -> None:
        self.registered = registered
        self._answers += registered.lines()
