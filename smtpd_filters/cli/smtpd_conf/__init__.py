"""smtpd.conf(5), as far as it concerns filters: which programs smtpd starts, and what is wrong.

Words, strings, macros, includes and line ends are read as smtpd's own parser does (usr.sbin/smtpd/
parse.y, in this respect the same from 6.8 to 7.8), and so are the statements `filter` and `proc`.
Of `listen` and `action` only the filters are read; other statements are skipped, for `smtpd -n`
checks them.

Invariants
----------
ACCEPTED: a file that smtpd accepts has no errors here, and the commands are those that smtpd runs.
What smtpd accepts and its operator will regret is a warning.
"""

from .lexer import Place
from .statements import Configuration, Problem, Program, read

__all__ = ["Configuration", "Place", "Problem", "Program", "read"]
