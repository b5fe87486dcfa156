r"""Tables as in table(5): lists and mappings that clients, names and addresses are looked up in.

Specification
    `{ a, b }` is an inline list, `{ k = v, k2 = v2 }` an inline mapping. Commas, blanks or line
    breaks separate the entries, as in smtpd.conf(5); an entry in single or double quotes may
    contain any of these. `file:PATH`, or an absolute path, is a file. Anything else is a table
    with that text as its only entry.

    A file has one entry per line. In a mapping, blanks or a colon separate the key from the
    value, `alice 5` (a key in brackets, such as `[::1]`, may contain colons); `alice = 5` is an
    error, since smtpd reads its value as `= 5`. A hash mark at the start of a
    line or after a blank begins a comment. The option decides whether a file is a list or a
    mapping, not its first line; a line of the other form is an error. The entries of `Table.of`
    have the form of lines.

    `sqlite:`, `ldap:`, `redis:` and `proc:` are remote tables (`remote.source`). Other types, such
    as `db:` and `postgres:`, are not supported.

    An invalid line stops the filter at start, with an error that names the file and the line. So
    does a file without an entry or a comment; a comment marks a file as empty on purpose. On
    reload the error is logged and the table keeps its content.

    An entry that can never match, such as `http://example.org/` in a list of domains, is invalid:
    the list would appear to cover more than it does.

Letters
    Entries and keys are compared without regard to the case of ASCII letters. Keys are at most
    1,023 bytes long. Both are smtpd's rules.

Networks
    Addresses and networks of both families: `192.0.2.1`, `192.0.2.0/24`, `10/8`, `2001:db8::/32`,
    `[2001:db8::1]`, `ipv6:2001:db8::1`. `local` is a client on the server's socket. An
    IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) equals the IPv4 address.

Domains
    `example.org` is that name alone; a final dot is ignored, and so is a leading `@`, which
    smtpd's lists of addresses have. A star matches up to the first character that equals the one
    after the star, as in smtpd: `*.example.org` covers `a.example.org`, but neither
    `a.b.example.org` nor `example.org`; `*` alone covers every name. To cover all names below a
    domain, use a regular expression: `\.example\.org$`. An address literal, `[192.0.2.1]`, is a
    domain only in mail addresses.

    An internationalised domain matches in both forms, in either case, composed or decomposed:
    `bücher.example` equals `xn--bcher-kva.example` (`smtpd_filters.addresses.domains`).

Mail addresses
    `user@example.org`, `@example.org` (every user of the domain), `@*.example.org`, `user` or
    `user@` (that user at any domain), `@` or `*` (every address and the null sender). `user`
    covers `user+tag` as well, while `user+tag` covers only that. A user with a dot needs its `@`
    (`jane.doe@`), since `example.org` alone is more often a domain without its `@`. A local part
    with other characters is in quotes: `"jane doe"@example.org`.

Regular expressions
    POSIX extended regular expressions, as in regcomp(3), in the C locale; not Python's or Perl's.
    They match anywhere in the key unless anchored with `^` and `$`. Differences from Python's
    `re`:

    - `\d`, `\w`, `\s`, `\b`, back-references and any other backslash before a letter or digit are
      errors (POSIX leaves them undefined). Write `[[:digit:]]`, `[[:alnum:]_]`, `[[:space:]]`.
    - In brackets a backslash is an ordinary character: `[\.]` is a backslash or a dot. `[]a]` and
      `[^]a]` contain a bracket. `[[:alpha:]]` and `[[:xdigit:]]` are character classes; in Python
      they mean something else.
    - `*?`, `+?`, `??`, `*+`, `(?:...)`, `(?=...)`, `(?P<n>...)` are errors. A leading `(?i)` is
      allowed, as in smtpd, and has no effect: matching always ignores case.
    - `{` begins a repeat; `{,n}`, or a brace that doesn't begin a repeat, is an error: write
      `{0,n}` and `\{`. A repeat is at most 255.
    - An empty alternative or group, `a|` or `()`, is an error: it would match everything.
    - `$` matches only at the very end, not before a final line break; a dot matches any byte,
      line breaks included.
    - The pattern is converted to lower case, as in smtpd, so `[A-Z]` means `[a-z]`. Unlike in
      smtpd, where it can't match, `[[:upper:]]` is any letter.

    Matching a key takes time linear in its length, whatever the patterns: nothing backtracks, and
    `(a+)+$` costs no more than any other pattern. Only the pattern itself can grow large, by
    nested repeats (`((a?){50}){50}`): a pattern that needs more than 4,096 positions or more than
    300 operations a byte is rejected when it is loaded, and so is a table that needs more than
    8,000 operations a byte.

Strings
    Compared as a whole.
"""

from __future__ import annotations

from .domains import AddressTable, DomainTable, HostTable
from .networks import IPTable, NetworkTable
from .patterns import RegexTable
from .source import parse
from .table import MappingTable, StringTable, Table

__all__ = [
    "AddressTable",
    "DomainTable",
    "HostTable",
    "IPTable",
    "MappingTable",
    "NetworkTable",
    "RegexTable",
    "StringTable",
    "Table",
    "parse",
]
