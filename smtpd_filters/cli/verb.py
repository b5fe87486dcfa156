"""A verb of `smtpd-filters`: its flags and operands, its help, and the function that runs it."""

from __future__ import annotations

import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import parse_command
from smtpd_filters.settings.declare import spellings
from smtpd_filters.settings.quoting import printable

from . import PROG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from smtpd_filters.settings import Settings

#: The exit status for a wrong command line.
USAGE = 2


class Verb:
    """A verb: `run` is called with its options and the words of another program.

    `run` returns the exit status.
    """

    def __init__(  # noqa: PLR0913  # keyword-only: one for each property of a verb
        self,
        name: str,
        run: Callable[[Any, list[str]], int],
        *,
        options: type[Settings],
        description: str,
        ending: str = "",
        behind: str = "",
        others: Callable[[], type[Settings]] | None = None,
        hands_over: bool = False,
        usage: int = USAGE,
        stray: str = "",
    ) -> None:
        self.name = name
        self.options = options
        #: The first sentence is its line in the overview.
        self.description = description
        #: The last paragraph of its help: the exit statuses.
        self.ending = ending
        #: The placeholder of the words after "--"; empty if none are allowed.
        self.behind = behind
        #: Returns the options of the other program, whose flags follow after "--".
        self.others = others
        #: Whether all words after its first operand belong to another program.
        self.hands_over = hands_over
        #: The exit status for a wrong command line.
        self.usage = usage
        #: A hint in the error about an unexpected argument.
        self.stray = stray
        self._run = run

    @property
    def prog(self) -> str:
        """The start of its errors."""
        return f"{PROG} {self.name}"

    @property
    def summary(self) -> str:
        """Its line in the overview."""
        return self.description.partition(". ")[0].rstrip(".")

    def note(self, text: str) -> None:
        """Write a line to stderr, at once."""
        sys.stderr.write(f"{self.prog}: {printable(text)}\n")
        sys.stderr.flush()

    def run(self, words: Sequence[str]) -> int:
        """Parse the words after the verb and run it; raise ConfigError for invalid words."""
        words, rest = self._split(list(words))
        if rest and not (self.behind or self.hands_over):
            raise ConfigError(f"{self.prog}: takes no command after --")
        self._refuse_misplaced(words, rest)
        options = parse_command(
            self.options, words, prog=self.prog, shown=self.help, stray=self.stray
        )
        return self._run(options, rest)

    def _refuse_misplaced(self, words: list[str], rest: list[str]) -> None:
        """Raise ConfigError for a flag on the wrong side of "--"."""
        if self.others is None:
            return
        own = spellings([self.options.options], self.name)
        theirs = spellings([self.others().options], self.name)
        for word in words:
            flag = word.partition("=")[0]
            if flag in theirs and flag not in own:
                raise ConfigError(f"{self.prog}: {flag} belongs behind --")
        for word in rest:
            flag = word.partition("=")[0]
            if flag in own and flag not in theirs:
                raise ConfigError(f"{self.prog}: {flag} belongs before --")

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Split off the words of another program."""
        if self.hands_over:
            at = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
            return words[: at + 1], words[at + 1 :]
        if "--" not in words:
            return words, []
        at = words.index("--")
        return words[:at], words[at + 1 :]

    def help(self) -> str:
        """Return the text of `--help`."""
        from smtpd_filters.settings.manual import command_text

        return command_text(
            self.options,
            prog=self.prog,
            description=self.description,
            behind=self.behind,
            ending=self.ending,
        )
