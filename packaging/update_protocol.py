#!/usr/bin/env python3
"""The generator of the tables and state diagrams of docs/protocol.md.

The diagram of the order of requests comes from recorded sessions of two releases of smtpd
(`fixtures/protocol`), the diagram of a session's states from calling `FilterConnection` with every
sequence of steps (`Explorer`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from smtpd_filters.oracle.rules import RULES
from smtpd_filters.protocol.decisions import (
    PROCEED,
    Decision,
    Disconnect,
    Junk,
    Proceed,
    Reject,
    Rewrite,
)
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.versions import DIALECTS
from smtpd_filters.protocol.vocabulary import DATA_LINE, PHASES, REPORTS, Phase
from smtpd_filters.recording.format import Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_filters.protocol.events import Report

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "protocol.md"
BEGIN, END = "<!-- made from the code: begin -->\n", "<!-- made from the code: end -->\n"
#: The policy of the recordings in which the filter changes nothing.
PLAIN = "proceed / echo everything"
#: Requests that a client can cause at any time after the greeting.
ANY_TIME = ("noop", "rset", "quit")
SESSION = b"4cf865bc"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def phase_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row for each phase: its handler, decisions and failures."""
    kinds = (Proceed, Junk, Reject, Disconnect, Rewrite)
    for phase in PHASES.values():
        arguments = f"session, {phase.argument}" if phase.argument else "session"
        yield (
            f"`{phase.name}`",
            f"`{phase.handler}({arguments})`",
            *("yes" if kind in phase.legal else "" for kind in kinds),
            ", ".join(phase.fallbacks),
            phase.fallbacks["tempfail"].text,
        )


def report_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row for each report: its fields in each version of the protocol."""
    for name in REPORTS:
        fields = (dialect.reports[name.encode()].fields for dialect in DIALECTS.values())
        yield (f"`{name}`", *map(" ".join, fields))


def orders() -> set[tuple[str, str]]:
    """Return each request with the next one of its session, in the recordings."""
    found = set()
    for path in (ROOT / "fixtures" / "protocol").rglob("*.session"):
        recording = Recording.read(path)
        if recording.meta["policy"] != PLAIN:
            continue
        last: dict[bytes, str] = {}
        for _, line in recording.entries:
            if line.startswith(b"filter|"):
                phase, session = line.split(b"|")[4:6]
                found.add((last.get(session, "[*]"), phase.decode()))
                last[session] = phase.decode()
    return found


def order_diagram() -> str:
    """Return the diagram of the order of requests."""
    phases = ["[*]", *PHASES]
    phases.insert(phases.index("commit"), DATA_LINE)
    place = {name: number for number, name in enumerate(phases)}
    edges = sorted(orders(), key=lambda edge: (place[edge[0]], place[edge[1]]))
    drawn = [edge for edge in edges if not set(edge) & set(ANY_TIME)]
    ids = {name: name.replace("-", "_") for name in phases}
    names = [f'    state "{name}" as {ids[name]}\n' for name in phases if ids[name] != name]
    arrows = [f"    {ids[a]} --> {ids[b]}\n" for a, b in drawn]
    return diagram([*names, *arrows])


def diagram(lines: Sequence[str]) -> str:
    """Return a state diagram in Mermaid, which forges draw."""
    return f"```mermaid\nstateDiagram-v2\n{''.join(lines)}```\n"


class _Listener:
    """A listener without answers of its own."""

    connection: FilterConnection

    def configured(self, key: str, value: str) -> None:
        """Register everything."""
        del value
        if key == "ready":
            self.connection.register([*PHASES, DATA_LINE], [])

    def reported(self, report: Report) -> None:
        """Do nothing."""

    def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
        """Leave the request open."""

    def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
        """Leave the message with the filter."""


def _from_smtpd(line: str) -> Callable[[FilterConnection], None]:
    data = f"{line}\n".encode()
    return lambda connection: connection.receive(data)


def _request(phase: str, argument: str = "") -> Callable[[FilterConnection], None]:
    return _from_smtpd(f"filter|0.7|1|smtp-in|{phase}|{SESSION.decode()}|0f1e2d3c|{argument}")


class Explorer:
    """The states of one session in a `FilterConnection`, and the steps between them.

    A step is a call of a method of the connection. Steps that the connection reports as a mistake
    of smtpd or of the filter are left out.
    """

    #: Each step by its name in the diagram.
    STEPS: ClassVar[dict[str, Callable[[FilterConnection], None]]] = {
        "request": _request("mail-from", "<a@example.org>"),
        "commit": _request("commit"),
        "line": _request(DATA_LINE, "text"),
        "final dot": _request(DATA_LINE, "."),
        "answer()": lambda connection: connection.answer(SESSION, PROCEED),
        "send_lines()": lambda connection: connection.send_lines(SESSION, [b"text"]),
        "send_lines(end=True)": lambda connection: connection.send_lines(SESSION, [], end=True),
        "pass_through()": lambda connection: connection.pass_through(SESSION),
        "refuse()": lambda connection: connection.refuse(
            SESSION, PHASES["commit"].fallbacks["tempfail"]
        ),
    }
    #: Steps that are possible only while the filter has a message.
    OF_A_MESSAGE = frozenset({"send_lines()", "send_lines(end=True)", "pass_through()", "refuse()"})

    def __init__(self) -> None:
        #: By state and next state: the steps, with the lines that each writes to smtpd.
        self.edges: dict[tuple[str, str], list[str]] = {}
        paths: dict[str, tuple[str, ...]] = {"idle": ()}
        waiting = ["idle"]
        while waiting:
            state = waiting.pop(0)
            for step in self.STEPS:
                if not self._possible(state, step):
                    continue
                path = (*paths[state], step)
                after, written, mistake = self._play(path)
                if mistake:
                    continue
                label = f"{step} / {written}" if written else step
                self.edges.setdefault((state, after), []).append(label)
                if after not in paths:
                    paths[after] = path
                    waiting.append(after)

    def _possible(self, state: str, step: str) -> bool:
        """Return whether the step is possible in this state."""
        if "pending" in state:  # smtpd sends nothing for a session with a pending request
            return step == "answer()"
        return "message" in state or step not in self.OF_A_MESSAGE

    def _play(self, path: Sequence[str]) -> tuple[str, str, bool]:
        """Take these steps; return the state, the last step's output, and whether one is wrong."""
        listener = _Listener()
        connection = listener.connection = FilterConnection(listener)
        connection.receive(b"config|subsystem|smtp-in\nconfig|ready\n")
        sent = b""
        for step in path:
            connection.data_to_send()
            self.STEPS[step](connection)
            sent = connection.data_to_send()
        written = [line.split(b"|")[0].decode() for line in sent.splitlines()]
        if sent.endswith(b"|.\n"):
            written[-1] = "final dot"
        return self._state(connection), ", ".join(written), bool(connection.remarks.take())

    @staticmethod
    def _state(connection: FilterConnection) -> str:
        transit = connection._transit  # noqa: SLF001  # the diagram shows private state
        stream = transit.streams.get(SESSION)
        refused = ", refused" if SESSION in transit.refused else ""
        if SESSION in connection._open:  # noqa: SLF001  # as above
            return f"request pending{refused}"
        if stream is None:
            return f"idle{refused}"
        if stream.passing:
            return f"passing{refused}"
        return f"{'whole message' if stream.ended else 'message'}{refused}"

    def diagram(self) -> str:
        """Return the diagram."""
        states = list(dict.fromkeys(state for edge in self.edges for state in edge))
        ids = {state: state.replace(",", "").replace(" ", "_") for state in states}
        names = [f'    state "{state}" as {ids[state]}\n' for state in states]
        arrows = [
            f"    {ids[a]} --> {ids[b]}: {'; '.join(labels)}\n"
            for (a, b), labels in self.edges.items()
        ]
        return diagram([*names, "    [*] --> idle\n", *arrows])


ORDER = """\
## The order of requests

The requests of OpenSMTPD 6.8 and 7.8 had this order in {recordings} recorded sessions in which each
request was answered with proceed. `noop`, `rset` and `quit` can come between any two of the others.
After a refused command the client may repeat it or try another one.

"""
STATES = """\
## The states of a session

The state of one session in `FilterConnection`, which keeps what smtpd waits for. A step is a line
of smtpd or a call of a method; after the slash is what the filter writes. In *passing*, a message
is sent back as it arrives; in a *refused* state, `commit` is answered without calling a policy.

"""


def made() -> str:
    """Return the generated part of the page."""
    words = ("proceed", "junk", "reject", "disconnect", "rewrite")
    phases = ("phase", "handler", *words, "`--on-error`", "its tempfail")
    reports = ("report", *(f"protocol {dialect.name}" for dialect in DIALECTS.values()))
    mistakes = [(rule.kind.name.lower().replace("_", " "), rule.why) for rule in RULES.values()]
    return "\n".join(
        (
            "## Phases and their legal decisions\n",
            table(phases, list(phase_rows())),
            ORDER.format(recordings=plain()) + order_diagram(),
            STATES + Explorer().diagram(),
            "## Reports and their fields\n",
            table(reports, list(report_rows())),
            "## How smtpd reacts to a filter's mistakes\n",
            table(("effect", "mistake"), mistakes),
        )
    )


def plain() -> int:
    """Return the number of recordings in which the filter changes nothing."""
    paths = (ROOT / "fixtures" / "protocol").rglob("*.session")
    return sum(Recording.read(path).meta["policy"] == PLAIN for path in paths)


def page(text: str) -> str:
    """Return the page with its generated part replaced."""
    return text[: text.index(BEGIN)] + BEGIN + made() + text[text.index(END) :]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
