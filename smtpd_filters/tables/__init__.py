r"""Tables, as in table(5): what a filter compares clients, names and addresses with.

How a table is given
    `{ a, b }` lists entries in place, `{ k = v, k2 = v2 }` is a mapping in place. Entries are
    separated by commas, blanks or line breaks, as in smtpd.conf(5); in quotes, single or double,
    they may hold any of these. `file:PATH`, or an absolute path, is a file. Anything else is a
    table of that one entry.

    A file has an entry on each line; in a mapping, the key is followed by a blank or a colon,
    then the value (a key in brackets, such as `[::1]`, may hold colons). A hash mark at the start
    of a line or after a blank begins a comment. Which of the two a file is depends on what asks
    for it, not on its first line; a line of the wrong form is an error. Other types of smtpd's
    tables (`db:`, `sqlite:` and so on) are not supported.

    A line that can't be understood stops the filter at its start, with the file and the line, and
    so does a file with neither an entry nor a comment: one that is meant to be empty says so in a
    comment. When tables are reloaded, it is logged, and the table keeps the content it had.

    An entry that could never match, such as `http://example.org/` among domains, can't be
    understood: a list with it would seem to cover what it doesn't.

Letters
    ASCII letters are the same in upper and lower case, in entries and in what is compared with
    them. Keys are at most 1,023 bytes long. Both are smtpd's rules.

Networks
    Addresses and networks of both families: `192.0.2.1`, `192.0.2.0/24`, `10/8`, `2001:db8::/32`,
    `[2001:db8::1]`, `ipv6:2001:db8::1`. `local` is a client on the server's socket. An
    IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) is taken for the IPv4 address.

Domains
    `example.org` is that name alone; a final dot, or an `@` in front as in smtpd's lists of
    addresses, is no part of it. A star runs up to the first character that equals the one
    behind it, as in smtpd: `*.example.org` covers `a.example.org`, but neither `a.b.example.org`
    nor `example.org`; `*` alone covers every name. To cover all names below a domain, use a
    regular expression: `\.example\.org$`. An address literal, `[192.0.2.1]`, is a domain only in
    mail addresses.

    An internationalised domain is the same in both forms, in upper and lower case, composed or
    decomposed: `bücher.example` is `xn--bcher-kva.example` (`smtpd_filters.addresses.domains`).

Mail addresses
    `user@example.org`, `@example.org` (everybody there), `@*.example.org`, `user` or `user@`
    (that user, anywhere), `@` or `*` (everything, even the null sender). `user` covers
    `user+tag` as well, while `user+tag` covers only that. A user with a dot needs its `@`
    (`jane.doe@`), since `example.org` alone is more often a domain that lacks one. A local part
    with other characters is in quotes: `"jane doe"@example.org`.

Regular expressions
    POSIX extended ones, as regcomp(3) reads them, in the C locale: not Python's or Perl's. They
    match anywhere in the key unless anchored with `^` and `$`. Where Python's `re` differs:

    - `\d`, `\w`, `\s`, `\b` and any other backslash before a letter or digit, hence also
      back-references: an error here (POSIX leaves them undefined). Write `[[:digit:]]`,
      `[[:alnum:]_]`, `[[:space:]]`.
    - In brackets a backslash is a character of its own: `[\.]` is a backslash or a dot. `[]a]`
      and `[^]a]` hold a bracket. There are classes: `[[:alpha:]]`, `[[:xdigit:]]`; in Python
      this means something else.
    - `*?`, `+?`, `??`, `*+`, `(?:...)`, `(?=...)`, `(?P<n>...)`: an error. A leading `(?i)` is
      allowed, as in smtpd, and changes nothing, since case never counts.
    - `{` begins a repeat; `{,n}`, and a brace that isn't a repeat, is an error: write `{0,n}`
      and `\{`. A repeat counts to 255.
    - An empty alternative or group, `a|` and `()`, is an error: it would match everything.
    - `$` is the very end, never before a last line break; a dot is any byte, line breaks too.
    - Lower-casing is done to the pattern, as in smtpd, so that `[A-Z]` is `[a-z]`. Other than in
      smtpd, `[[:upper:]]` is any letter; there it can match nothing.

    Whatever the patterns, a key takes a time that grows with its length only: nothing here
    backtracks, and a pattern such as `(a+)+$` is as cheap as any other. What can grow large is
    the pattern itself, by repeats within repeats (`((a?){50}){50}`): one that would need more
    than 4,096 positions, or cost more than 300 operations a byte, is refused when it is loaded,
    and so is a table that would cost more than 8,000.

Strings
    Compared whole.
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
