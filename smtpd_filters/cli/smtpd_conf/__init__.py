"""A parser of smtpd.conf(5) for filters: the programs that smtpd starts, errors and warnings.

Words, strings, macros, includes and line ends are parsed as in smtpd's own parser (usr.sbin/smtpd/
parse.y, in this respect unchanged from 6.8 to 7.8), and so are the statements `filter` and `proc`.
Of `listen` and `action` only the filters are parsed; other statements are skipped, since `smtpd -n`
checks them.

Invariants
----------
*Accepted*: a file that smtpd accepts has no errors here, and the commands are those that smtpd
runs. A statement that smtpd accepts but that is probably a mistake is a warning.
"""

from .lexer import Place
from .statements import Configuration, Problem, Program, read

__all__ = ["Configuration", "Place", "Problem", "Program", "read"]
