"""Files of smtpd.conf(5): what smtpd makes of them.

`tests/cli/test_smtpd_conf.py` holds our reader to it, `tests/e2e/test_check.py` the real smtpd.
"""

from __future__ import annotations

from typing import NamedTuple

#: Without a rule smtpd takes no file.
RULES = """
action "local" maildir
match for local action "local"
"""
USED = "listen on 127.0.0.1 port 2525 filter "


class Case(NamedTuple):
    """A file; the commands that smtpd runs, by name, or None if it refuses the file."""

    name: str
    text: str
    commands: dict[str, str] | None
    #: What our error says.
    error: str = ""
    #: Whether 6.8 refuses it.
    newer: bool = False


def used(text: str, name: str = "f") -> str:
    """A file with this filter in use."""
    return f"{text}\n{USED}{name}\n"


ACCEPTED = [
    Case("plain", used('filter f proc-exec "filter-x -v"'), {"f": "filter-x -v"}),
    Case("single quotes", used("filter 'f' proc-exec 'filter-x'"), {"f": "filter-x"}),
    Case("no quotes", used("filter f proc-exec filter-x"), {"f": "filter-x"}),
    Case("odd name", used('filter "a b" proc-exec "x"', '"a b"'), {"a b": "x"}),
    Case("keyword in quotes", used('filter "rdns" proc-exec "x"', '"rdns"'), {"rdns": "x"}),
    Case("digit first", used("filter 1f proc-exec x-1", "1f"), {"1f": "x-1"}),
    Case("underscore", used("filter _f:1 proc-exec x", "_f:1"), {"_f:1": "x"}),
    Case("escaped quote", used(r'filter f proc-exec "x \"a b\""'), {"f": 'x "a b"'}),
    Case("other quotes", used("""filter f proc-exec "x 'a b'" """), {"f": "x 'a b'"}),
    Case("escaped blank", used('filter f proc-exec "x\\ y\\\tz"'), {"f": "x y\tz"}),
    Case("kept backslash", used(r'filter f proc-exec "x \d+\\.\n"'), {"f": r"x \d+\\.\n"}),
    Case(
        "backslashes before blanks and quotes",
        used('filter f proc-exec "x \\\\ a\\\\\\\tb \\\\\\"c"'),
        {"f": 'x \\ a\\\\\tb \\\\"c'},
    ),
    Case("marks of macros", used('filter f proc-exec "x\x01 a\x02"'), {"f": "x a"}),
    Case("line break in quotes", used('filter f proc-exec "x\n  -v"'), {"f": "x  -v"}),
    Case("escaped line break", used('filter f proc-exec "x \\\n  -v"'), {"f": "x   -v"}),
    Case("dollar in quotes", used('x = "1"\nfilter f proc-exec "e $x"'), {"f": "e $x"}),
    Case("continued", used('filter \\\n f \\\n proc-exec \\\n\t"x"'), {"f": "x"}),
    Case("comments", used('# a\nfilter f proc-exec "x" # b "'), {"f": "x"}),
    Case(
        "comment goes on", used('# a \\\nfilter g proc-exec "y"\nfilter f proc-exec x'), {"f": "x"}
    ),
    Case("backslash and blank", used('# a \\ \nfilter f proc-exec "x"'), {"f": "x"}),
    Case("hash in quotes", used('filter f proc-exec "x #1"'), {"f": "x #1"}),
    Case("hash ends a word", used("filter f proc-exec x#1"), {"f": "x"}),
    Case("macro", used('c = "\\"filter-x -v\\""\nfilter f proc-exec $c'), {"f": "filter-x -v"}),
    Case("macro of a word", used('c = "filter-x"\nfilter f proc-exec $c'), {"f": "filter-x"}),
    Case("macro joined", used('d = "filter"\nfilter f proc-exec $d-x'), {"f": "filter-x"}),
    Case("macro set again", used('c = "a"\nc = "b"\nfilter f proc-exec $c'), {"f": "b"}),
    Case("macro in a word", used('d = "1"\nfilter f proc-exec x$d'), {"f": "x$d"}),
    Case("macro for a name", used('n = "f"\nfilter $n proc-exec "x"'), {"f": "x"}),
    Case("macro of many words", 's = "filter f proc-exec x"\n$s\n' + USED + "f\n", {"f": "x"}),
    Case("no macro in a macro", used('a = "b"\nb = "$a"\nfilter f proc-exec "x"'), {"f": "x"}),
    Case(
        "options",
        used('filter f proc-exec "x" group nogroup user nobody chroot "/var/empty"'),
        {"f": "x"},
    ),
    Case("proc", used('proc p "x -v" user nobody\nfilter f proc p'), {"p": "x -v"}),
    Case("proc for two", used('proc p "x"\nfilter g proc p\nfilter f proc p'), {"p": "x"}),
    Case(
        "chain",
        used('filter a proc-exec "x"\nfilter b proc-exec "y"\nfilter f chain { a, b }'),
        {"a": "x", "b": "y"},
    ),
    Case(
        "chain in quotes",
        used('filter "a" proc-exec "x"\nfilter "b" proc-exec "y"', '{ "a", "b" }'),
        {"a": "x", "b": "y"},
    ),
    Case(
        "chain without commas",
        used("filter a proc-exec x\nfilter b proc-exec y", "{ a b }"),
        {"a": "x", "b": "y"},
    ),
    Case(
        "chain on lines",
        used("filter a proc-exec x\nfilter b proc-exec y\nfilter f chain {\n  a,\n  b\n}"),
        {"a": "x", "b": "y"},
        newer=True,
    ),
    Case(
        "chain with a proc twice",
        used("proc p x\nfilter a proc p\nfilter b proc p\nfilter f chain { a, b }"),
        {"p": "x"},
    ),
    Case(
        "builtin",
        used('filter f phase connect match rdns regex { "x" } disconnect "550 no"'),
        {},
    ),
    Case("builtin junk", used("filter f phase mail-from match !auth junk"), {}),
    Case(
        "builtin of an inline list",
        used('filter f phase helo match src { 192.0.2.1, 2001:db8::1 } reject "550 no"'),
        {},
    ),
    *(
        Case(
            f"builtin at {phase} of {condition}",
            used(f"filter f phase {phase} match {condition}"),
            {},
        )
        for phase, condition in (
            ("connect", 'fcrdns disconnect "550 no"'),
            ("connect", 'rdns { "a", "b" } junk'),
            ("connect", "rdns { a b } bypass"),
            ("connect", 'src "192.0.2.0/24" reject "550 no"'),
            ("connect", 'src regex { "^192" } report "x"'),
            ("helo", 'helo "a" rewrite "b"'),
            ("ehlo", '!helo regex "a" junk'),
            ("auth", "auth junk"),
            ("mail-from", 'mail-from "@example.org" rewrite "a@example.org"'),
            ("rcpt-to", 'rcpt-to regex "x" reject "550 no"'),
            ("rcpt-to", '!mail-from "a@b" junk'),
            ("data", '!auth reject "550 no"'),
            ("commit", 'rdns regex { "x" } reject "550 no"'),
        )
    ),
    Case(
        "builtin of a named table",
        'table t { "a", "b" }\n' + used('filter f phase helo match helo <t> reject "550 no"'),
        {},
    ),
    Case(
        "builtin of a mapping",
        used('filter f phase connect match src { "a" = "b", "c" = "d" } junk'),
        {},
    ),
    Case(
        "socket",
        'filter f proc-exec "x"\nlisten on socket filter f\n',
        {"f": "x"},
    ),
    Case(
        "relay",
        'filter f proc-exec "x"\naction out relay helo mail.example.org filter f\n'
        "match for any action out\n",
        {"f": "x"},
    ),
    Case("unused", 'filter f proc-exec "x"\n', {"f": "x"}),
    Case(
        "numbers elsewhere",
        used('queue ttl 4d\nsmtp max-message-size "35M"\nfilter f proc-exec x'),
        {"f": "x"},
    ),
    Case(
        "tables elsewhere",
        used('table t { "a" = "b", "filter" = "c" }\nfilter f proc-exec x'),
        {"f": "x"},
    ),
    Case("brace in quotes", used('filter f proc-exec "x {"'), {"f": "x {"}),
    Case("8-bit", used('filter f proc-exec "x --reply \xe4"'), {"f": "x --reply \xe4"}),
    Case("blank lines", used('\n\n  \n\tfilter f proc-exec "x"\n\n'), {"f": "x"}),
]
REFUSED = [
    Case("undefined macro", used("filter f proc-exec $nope"), None, 'macro "nope" not defined'),
    Case("macro of two words", used('c = "x -v"\nfilter f proc-exec $c'), None, 'unexpected "-"'),
    Case("whole path without quotes", used("filter f proc-exec /usr/bin/x"), None, 'not "/"'),
    Case(
        "keyword as a name", used('filter rdns proc-exec "x"', '"rdns"'), None, "put it in quotes"
    ),
    Case("number as a name", used('filter 12 proc-exec "x"', "12"), None, "put it in quotes"),
    Case("open quote", used('filter f proc-exec "x'), None, 'unexpected "local'),
    Case("no command", used("filter f proc-exec"), None, "the statement ends"),
    Case("no kind", used("filter f"), None, "expected proc-exec, proc, phase or chain"),
    Case("odd kind", used('filter f exec "x"'), None, 'unexpected "exec"'),
    Case("odd statement", used('fliter f proc-exec "x"'), None, 'did you mean "filter"?'),
    Case("odd option", used('filter f proc-exec "x" usr nobody'), None, 'unexpected "usr"'),
    Case(
        "keyword for an option", used('filter f proc-exec "x" tag y'), None, '"tag"; expected user'
    ),
    Case("option twice", used('filter f proc-exec "x" user a user b'), None, "user is given twice"),
    Case("twice", used('filter f proc-exec "x"\nfilter f proc-exec "y"'), None, "declared twice"),
    Case("proc twice", used('proc p "x"\nproc p "y"\nfilter f proc p'), None, "declared twice"),
    Case("no such proc", used("filter f proc p"), None, 'no proc "p" is declared above'),
    Case("no such filter", used('filter g proc-exec "x"'), None, 'no filter "f" is declared above'),
    Case(
        "below",
        USED + 'f\nfilter f proc-exec "x"\n',
        None,
        'no filter "f" is declared above',
    ),
    Case(
        "chain of unknown filters",
        used('filter spam proc-exec "x"\nfilter f chain { spam, spum }'),
        None,
        'chain "f": no filter "spum" is declared above, did you mean "spam"?',
    ),
    Case(
        "chain in a chain",
        used("filter a proc-exec x\nfilter c chain { a }\nfilter f chain { c }"),
        None,
        '"c" is a chain itself',
    ),
    Case(
        "chain with one twice", used("filter a proc-exec x\nfilter f chain { a, a }"), None, "twice"
    ),
    Case("comma at the end", used("filter a proc-exec x", "{ a, }"), None, 'not "}"'),
    Case("two commas", used("filter a proc-exec x", "{ a,, a }"), None, 'not ","'),
    Case("comma first", used("filter a proc-exec x", "{ , a }"), None, 'not ","'),
    Case("empty chain", used("filter f chain { }"), None, "at least one filter is required"),
    Case(
        "open chain",
        'filter a proc-exec "x"\nfilter f chain { a\n',
        None,
        "no closing brace",
    ),
    Case("filter twice", used("filter f proc-exec x", "f filter f"), None, "filter is given twice"),
    Case("carriage return", used('filter f proc-exec "x"\r'), None, 'unexpected "\\r"'),
    Case("bar behind", used('filter f proc-exec "x" "y"'), None, 'unexpected "y"'),
    Case("brace first", used("{\nfilter f proc-exec x"), None, "no closing brace"),
    Case("brace behind", used("}\nfilter f proc-exec x"), None, '"}" starts no statement'),
    Case("keyword first", used("filter f proc-exec x\nchain"), None, '"chain" starts no statement'),
    Case("number first", used("12 = x\nfilter f proc-exec x"), None, '"12" starts no statement'),
    Case("missing include", 'include "/nonexistent/x"\n', None, "include: /nonexistent/x: No such"),
    *(
        Case(f"builtin {wrong}", used(f"filter f phase {wrong}"), None, error)
        for wrong, error in (
            ("", "the statement ends"),
            ("connect", "expected match"),
            ("connect match", "the statement ends"),
            ("connect match fcrdns", "the statement ends"),
            ("connect match all junk", "expected a condition of this phase: fcrdns, rdns, src"),
            ('connect match helo "x" junk', 'unexpected "helo"'),
            ('data match rcpt-to "x" junk', 'unexpected "rcpt-to"'),
            ('helo match helo reject "550 x"', "expected a string"),
            ("connect match !!rdns junk", 'unexpected "!"'),
            ('connect match rdns !src "192.0.2.1" junk', "after one condition"),
            ("connect match rdns reject", "the statement ends"),
            ("connect match rdns junk junk", 'unexpected "junk"'),
            ("connect match src {} junk", "at least one entry is required"),
            ('connect match src { "a", "b" = "c" } junk', 'not "="'),
            ('connect match src { "a" = "b", "c" } junk', "expected ="),
            ("connect match rdns <t> junk", 'no table "t" is declared above'),
            ("commit match rdns junk", "expected an action at commit"),
            *(
                (f"{phase} match rdns junk", "expected a phase of smtpd's own filters")
                for phase in ("data-line", "quit", "rset", "noop", "starttls")
            ),
        )
    ),
]
