"""A parser of smtpd.conf(5) for filters: the programs that smtpd starts, errors and warnings.

Words, strings, macros, includes and line ends are parsed as in smtpd's own parser (usr.sbin/smtpd/
parse.y, in this respect unchanged from 6.8 to 7.8), and so are the statements `filter` and `proc`.
Of `listen` and `action` only the filters are parsed, and of `table` the program; other statements
are skipped, since `smtpd -n` checks them.

Invariants
----------
*Accepted*: a file that smtpd accepts has no errors here, and the commands are those that smtpd
runs. A statement that smtpd accepts but that is probably a mistake is a warning.
"""

from __future__ import annotations

from .advice import about_program, advise, behind_signers, crowded, unasked
from .commands import chain_run_by
from .lexer import Place
from .model import Configuration, Problem, Program, Table
from .statements import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Configuration",
    "Place",
    "Problem",
    "Program",
    "Table",
    "about_program",
    "behind_signers",
    "chain_run_by",
    "crowded",
    "read",
    "unasked",
]


def read(path: str, macros: Mapping[str, str] | None = None) -> Configuration:
    """Parse a file, and add warnings of probable mistakes; `macros` are as for smtpd's `-D`.

    Warnings are behind the errors, of which they may be a consequence.

    Raises ConfigError if the file can't be read.
    """
    made = parse(path, macros or {})
    made.problems += advise(made)
    made.problems.sort(key=lambda problem: problem.warning)
    return made
