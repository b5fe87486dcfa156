"""The reports of `smtpd-filters check`: lines for people, as results arrive, or JSON at the end."""

from __future__ import annotations

import sys

from smtpd_filters.settings.quoting import printable, quote

from .streams import has_colours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from smtpd_filters.runtime.probes import Answer

    from .smtpd_conf import Problem, Program
    from .starter import Result

#: SGR parameters (ECMA-48) by the word that is coloured.
_RED, _GREEN, _YELLOW = "31", "32", "33"


class TextReport:
    """A report of one line for each result, in colour on a terminal unless NO_COLOR is set."""

    def __init__(self) -> None:
        self._coloured = has_colours()

    def line(self, text: str, colour: str = "") -> None:
        """Write a line; an empty `colour` is the terminal's own."""
        text = printable(text)
        sys.stdout.write(
            f"\033[{colour}m{text}\033[m\n" if colour and self._coloured else f"{text}\n"
        )

    def problem(self, problem: Problem) -> None:
        """Write an error or a warning about the file."""
        self.line(str(problem), _YELLOW if problem.warning else _RED)

    def program(self, program: Program, result: Result) -> None:
        """Write the result of trying a program."""
        where = f"{program.place}: {program.statement} {quote(program.name)}"
        as_user = f" (as {result.user})" if result.user else ""
        if result.error:
            self.line(f"{where}: {result.error}{as_user}", _RED)
        elif result.untried:
            self.line(f"{where}: not checked: {result.untried}{as_user}", _YELLOW)
        else:
            self.line(f"{where}: ok{as_user}", _GREEN)
        if result.remains:
            text = "a process that it started in a session of its own still runs"
            self.line(f"{where}: warning: {text}", _YELLOW)
        for line in result.logged:
            self.line(f"{where}: log: {line}")
        for answer in result.services:
            self.service(where, answer)

    def service(self, where: str, answer: Answer) -> None:
        """Write the answer of a service."""
        text = f"{where}: {answer.subject}: "
        taken = f"{answer.seconds * 1000:.0f} ms"
        if answer.fault:
            self.line(f"{text}{answer.fault} ({taken})", _RED)
        else:
            self.line(f"{text}ok, {taken}", _GREEN)

    def chains(self, lines: list[str], *, fine: bool) -> None:
        """Write the results about a chain file."""
        for line in lines:
            warned = fine and ": warning: " in line
            self.line(line, _YELLOW if warned else "" if fine else _RED)

    def summary(self, path: str, programs: int, wrong: int) -> None:
        """Write the number of filters and of errors."""
        errors = f"{wrong or 'no'} error{'' if wrong == 1 else 's'}"
        filters = f"{programs or 'no'} filter{'' if programs == 1 else 's'}"
        self.line(f"{path}: {filters}, {errors}", _RED if wrong else _GREEN)

    def flush(self) -> None:
        """Show the results so far, since the next check may take a while."""
        sys.stdout.flush()

    def close(self, status: int) -> None:
        """End the report; `status` is the exit status."""


class JsonReport(TextReport):
    """A report of one JSON object, written at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[str] = []
        self._problems: list[dict[str, Any]] = []
        self._programs: list[dict[str, Any]] = []
        self._chains: list[dict[str, Any]] = []

    def line(self, text: str, colour: str = "") -> None:  # noqa: ARG002  # JSON has none
        """Note what is neither a problem nor a program."""
        self._notes.append(text)

    def problem(self, problem: Problem) -> None:
        """Note an error or a warning about the file."""
        self._problems.append(
            {
                "file": problem.place.file,
                "line": problem.place.line,
                "severity": "warning" if problem.warning else "error",
                "text": problem.text,
            }
        )

    def program(self, program: Program, result: Result) -> None:
        """Note the result of trying a program."""
        self._programs.append(
            {
                "file": program.place.file,
                "line": program.place.line,
                "statement": program.statement,
                "name": program.name,
                "command": program.command,
                "user": result.user,
                "result": "error" if result.error else "unchecked" if result.untried else "ok",
                "text": result.error or result.untried,
                "log": list(result.logged),
                "phases": sorted(result.phases),
                "services": [_service(each) for each in result.services],
            }
        )

    def chains(self, lines: list[str], *, fine: bool) -> None:
        """Note the results about a chain file."""
        self._chains.append({"ok": fine, "lines": lines})

    def service(self, where: str, answer: Answer) -> None:
        """Note the answer of a service of a chain."""
        self._chains[-1].setdefault("services", []).append({"chain": where, **_service(answer)})

    def summary(self, path: str, programs: int, wrong: int) -> None:
        """Write nothing: the numbers follow from the lists."""

    def close(self, status: int) -> None:
        """Write the object."""
        from json import dumps

        content = {
            "ok": status == 0,
            "problems": self._problems,
            "programs": self._programs,
            "chains": self._chains,
            "notes": self._notes,
        }
        sys.stdout.write(f"{dumps(content, indent=2)}\n")


def _service(answer: Answer) -> dict[str, Any]:
    return {"subject": answer.subject, "seconds": answer.seconds, "fault": answer.fault}
