"""A verb of `smtpd-filters`: its flags and operands, its help, and the function that runs it."""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import parse_command

from . import PROG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from smtpd_filters.settings import Settings

#: The exit status for a wrong command line.
USAGE = 2


class Verb:
    """A verb: `run` gets its options and the words for another program, and returns a status."""

    def __init__(  # noqa: PLR0913  # keyword-only: what there is to know of a verb
        self,
        name: str,
        run: Callable[[Any, list[str]], int],
        *,
        options: type[Settings],
        description: str,
        ending: str = "",
        behind: str = "",
        hands_over: bool = False,
        usage: int = USAGE,
    ) -> None:
        self.name = name
        self.options = options
        #: Its first sentence is its line in the overview.
        self.description = description
        #: The end of its help: its exit statuses.
        self.ending = ending
        #: What may follow "--"; empty if nothing may.
        self.behind = behind
        #: Whether all words after its first operand are those of another program.
        self.hands_over = hands_over
        #: The exit status for a wrong command line.
        self.usage = usage
        self._run = run

    @property
    def prog(self) -> str:
        """What its errors begin with."""
        return f"{PROG} {self.name}"

    @property
    def summary(self) -> str:
        """Its line in the overview."""
        return self.description.partition(". ")[0].rstrip(".")

    def run(self, words: Sequence[str]) -> int:
        """Read the words behind the verb and run it; ConfigError if the words are wrong."""
        words, rest = self._split(list(words))
        if rest and not (self.behind or self.hands_over):
            raise ConfigError(f"{self.prog}: takes no command after --")
        options = parse_command(self.options, words, prog=self.prog, shown=self.help)
        return self._run(options, rest)

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Part its own words from those of another program."""
        if self.hands_over:
            at = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
            return words[: at + 1], words[at + 1 :]
        if "--" not in words:
            return words, []
        at = words.index("--")
        return words[:at], words[at + 1 :]

    def help(self) -> str:
        """The text of `--help`."""
        from smtpd_filters.settings.manual import command_text

        return command_text(
            self.options,
            prog=self.prog,
            description=self.description,
            behind=self.behind,
            ending=self.ending,
        )
