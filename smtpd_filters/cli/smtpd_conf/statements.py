"""The parser of the statements of smtpd.conf(5) that declare or use filters."""

from __future__ import annotations

import re

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings.declare import nearest
from smtpd_filters.settings.quoting import quote

from .lexer import MARK, STRING, WORD, Lexer, Place, StatementError, Token
from .model import Configuration, Filter, Listener, Problem, Program, Table
from .words import Words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OF_CLIENTS = ("fcrdns", "rdns", "src")
_OF_GREETINGS = (*_OF_CLIENTS, "helo")
_OF_SENDERS = (*_OF_GREETINGS, "auth", "mail-from")
#: The conditions of smtpd's own filters by phase (parse.y, filter_phase_*_options).
_CONDITIONS = {
    "connect": _OF_CLIENTS,
    "helo": _OF_GREETINGS,
    "ehlo": _OF_GREETINGS,
    "auth": (*_OF_GREETINGS, "auth"),
    "mail-from": _OF_SENDERS,
    "rcpt-to": (*_OF_SENDERS, "rcpt-to"),
    "data": _OF_SENDERS,
    "commit": _OF_SENDERS,
}
#: Their actions, and whether a text follows.
_ACTIONS = {
    "bypass": False,
    "disconnect": True,
    "junk": False,
    "reject": True,
    "report": True,
    "rewrite": True,
}
#: Conditions without a table.
_PLAIN = frozenset({"auth", "fcrdns", "rdns"})
#: Networks and expressions that match every client.
_ALL_NETWORKS = frozenset({"0.0.0.0/0", "::/0"})
_ALL_TEXTS = frozenset({"", ".", ".*", ".+", "^", "^.*", "^.*$", "^.+$"})
_CODE = re.compile(r"[45][0-9]{2} .")
#: The kinds of tables that need no program (table.c, backends[]).
_OWN_TABLES = frozenset({"db", "file", "getpwnam", "static"})
#: A variable of the shell.
_VARIABLE = re.compile(r"\$\{?([A-Za-z0-9_]+)")
#: The first words of statements; any other first word sets a macro.
_STATEMENTS = (
    *("action", "admd", "bounce", "ca", "filter", "include", "listen", "match", "mda", "mta"),
    *("pki", "proc", "queue", "scheduler", "smtp", "srs", "table"),
)


def parse(path: str, macros: Mapping[str, str]) -> Configuration:
    """Parse a file; `macros` are as for smtpd's `-D`. Raises ConfigError if it can't be read."""
    return _Parser(path, macros).parse()


class _Parser:
    """The parser of a file."""

    def __init__(self, path: str, macros: Mapping[str, str]) -> None:
        self._lexer = Lexer(path, macros)
        self._made = Configuration(self._lexer.place())
        self._filters = self._made.filters
        self._procs = self._made.procs
        self._tables: set[str] = set()

    def parse(self) -> Configuration:
        """Parse the whole file."""
        while True:
            try:
                tokens = self._statement()
                if tokens is None:
                    break
                if tokens:
                    self._take(tokens)
            except StatementError as error:
                self._made.problems.append(Problem(error.place, str(error)))
        for place in self._lexer.swallowed:
            text = "is part of the comment on the line before, which ends with a backslash"
            self._made.problems.append(Problem(place, text, warning=True))
        return self._made

    def _statement(self) -> list[Token] | None:
        """Return the tokens up to a line end outside of braces; None at the end."""
        tokens: list[Token] = []
        depth = 0
        while True:
            try:
                token = self._lexer.token()
            except StatementError:
                self._lexer.skip_line()
                raise
            if token is None:
                if depth > 0:
                    raise StatementError(tokens[0].place, "syntax error: no closing brace")
                return tokens or None
            if token.kind == MARK:
                if token.text == "\n":
                    if depth <= 0:
                        return tokens
                    continue
                depth += {"{": 1, "}": -1}.get(token.text, 0)
            tokens.append(token)

    def _take(self, tokens: list[Token]) -> None:
        first = tokens[0]
        if first.kind == STRING:
            self._set_macro(tokens)
            return
        statements = {
            "include": self._include,
            "filter": self._filter,
            "proc": self._proc,
            "listen": self._listen,
            "action": self._action,
            "table": self._table,
            "smtp": self._smtp,
        }
        if first.kind != WORD or first.text not in _STATEMENTS:
            raise StatementError(
                first.place,
                f"syntax error: {quote(first.text)} starts no statement"
                f"{nearest(first.text, _STATEMENTS)}",
            )
        if first.text in statements:
            statements[first.text](Words(tokens))

    def _set_macro(self, tokens: list[Token]) -> None:
        words = Words(tokens)
        name = tokens[0].text
        if not words.next_is(MARK, "="):
            near = nearest(name, _STATEMENTS)
            raise words.wrong(f"{quote(name)} starts no statement{near}")
        words.expect(MARK, "=")
        value = words.string()
        words.end()
        if any(char.isspace() for char in name):
            raise StatementError(
                tokens[0].place, f"the name of the macro {quote(name)} has a blank"
            )
        if name not in self._lexer.fixed:
            self._lexer.macros[name] = value

    def _include(self, words: Words) -> None:
        name = words.string()
        words.end()
        try:
            self._lexer.include(name)
        except ConfigError as error:
            raise StatementError(words.place, f"include: {error}") from None

    def _proc(self, words: Words) -> None:
        name = words.string()
        if name in self._procs:
            raise StatementError(words.place, f"proc {quote(name)} is declared twice")
        self._add(words, "proc", name)
        self._procs[name] = words.place

    def _add(self, words: Words, statement: str, name: str) -> None:
        """Parse a command and its options."""
        command = words.string()
        options: dict[str, str] = {}
        while (word := words.next_word()) is not None:
            if word not in ("user", "group", "chroot"):
                raise words.wrong(f"{quote(word)}; expected user, group or chroot")
            if word in options:
                raise words.wrong(f"{word} is given twice")
            options[word] = words.string()
        words.end()
        self._made.programs.append(Program(words.place, statement, name, command, **options))
        for macro in dict.fromkeys(_VARIABLE.findall(command)):
            if macro in self._lexer.macros:
                self._warn(
                    words,
                    f"{statement} {quote(name)}: ${macro} is not replaced: smtpd expands no macro "
                    "in quotes, and the shell does not know it; write its value",
                )

    def _filter(self, words: Words) -> None:
        name = words.string()
        if name in self._filters:
            raise StatementError(words.place, f"filter {quote(name)} is declared twice")
        kind = words.next_word()
        declared = Filter(words.place, kind or "")
        if kind == "proc-exec":
            self._add(words, "filter", name)
        elif kind == "proc":
            declared = declared._replace(members=(words.string(),))
            words.end()
            self._known(declared.members[0], self._procs, "proc", words.place)
        elif kind == "chain":
            declared = declared._replace(members=tuple(words.names()))
            words.end()
            self._check_chain(name, declared.members, words.place)
        elif kind == "phase":
            self._filters[name] = declared  # as smtpd does, even if the rest is wrong
            declared = self._builtin(name, words, declared)
        else:
            raise words.wrong("expected proc-exec, proc, phase or chain after the filter's name")
        self._filters[name] = declared

    def _known(
        self, name: str, known: Mapping[str, object], what: str, place: Place, why: str = ""
    ) -> None:
        if name not in known:
            raise StatementError(
                place, f"{why}no {what} {quote(name)} is declared above{nearest(name, known)}"
            )

    def _check_chain(self, name: str, members: Sequence[str], place: Place) -> None:
        of = f"chain {quote(name)}: " if name else ""
        if not members:
            raise StatementError(place, f"{of}at least one filter is required")
        for at, member in enumerate(members):
            self._known(member, self._filters, "filter", place, of)
            declared = self._filters[member]
            if declared.kind == "chain":
                raise StatementError(place, f"{of}{quote(member)} is a chain itself")
            if member in members[:at]:
                raise StatementError(place, f"{of}{quote(member)} is given twice")

    def _builtin(self, name: str, words: Words, declared: Filter) -> Filter:
        """Parse one of smtpd's own filters; warn of probable mistakes."""
        phase = words.one_of(_CONDITIONS, "a phase of smtpd's own filters")
        words.expect(WORD, "match")
        everybody = self._condition(words, _CONDITIONS[phase])
        known = [each for each in _ACTIONS if (phase, each) != ("commit", "junk")]
        action = words.one_of(known, f"an action at {phase}, after one condition")
        text = words.string() if _ACTIONS[action] else ""
        words.end()
        if phase == "auth":
            self._warn(
                words,
                f"filter {quote(name)}: smtpd runs `phase auth` when a client connects, before "
                "any client can have authenticated; use `phase mail-from`",
            )
        if action in ("reject", "disconnect") and not _CODE.match(text):
            self._warn(
                words,
                f"filter {quote(name)}: {action} {quote(text)}: without a code from "
                '400 to 599 and a text clients get "421 Internal server error"',
            )
        return declared._replace(phase=phase, action=action, everybody=everybody)

    def _condition(self, words: Words, known: Sequence[str]) -> bool:
        """Parse the condition of one of smtpd's own filters; return whether everybody meets it."""
        negated = words.take(MARK, "!")
        condition = words.one_of(known, "a condition of this phase")
        if condition == "fcrdns":
            return False
        regex = words.take(WORD, "regex")
        if condition in _PLAIN and not regex and not words.table_follows():
            return False
        entries = set(words.entries(self._tables))
        if negated or condition == "auth":
            return False
        if regex:
            return bool(entries & _ALL_TEXTS)
        return condition == "src" and entries >= _ALL_NETWORKS

    def _warn(self, words: Words, text: str) -> None:
        self._made.problems.append(Problem(words.place, text, warning=True))

    def _table(self, words: Words) -> None:
        """Note its name and its program; `smtpd -n` reports the errors of the statement."""
        tokens = words.rest()
        if not tokens or tokens[0].kind != STRING:
            return
        name = tokens[0].text
        self._tables.add(name)
        if [token.kind for token in tokens[1:]] == [STRING]:
            program = _table_program(tokens[1].text)
            if program is not None:
                self._made.tables.append(Table(words.place, name, program))

    def _smtp(self, words: Words) -> None:
        """Note the delimiter of tags; `smtpd -n` reports the errors of the statement."""
        if words.take(WORD, "sub-addr-delim"):
            for value in words.rest():
                self._made.sub_addr_delim = value.text

    def _listen(self, words: Words) -> None:
        rest = words.rest()
        names = self._use(rest)
        given = {token.text for token in rest if token.kind == WORD}
        name = " ".join(token.text for token in rest[1:2])
        self._made.listeners.append(
            Listener(
                words.place,
                name,
                tuple(names),
                authenticates=bool(given & {"auth", "auth-optional"}),
                encrypts=bool(given & {"tls", "tls-require", "smtps"}),
                verifies="verify" in given,
            )
        )

    def _action(self, words: Words) -> None:
        self._use(words.rest())

    def _use(self, tokens: list[Token]) -> list[str]:
        """Parse the filters of a listener or an action; return their names."""
        seen = False
        names: list[str] = []
        for at, token in enumerate(tokens):
            if token[:2] != (WORD, "filter"):
                continue
            if seen:
                raise StatementError(token.place, "filter is given twice")
            seen = True
            words = Words(tokens[at:])
            if words.next_is(MARK, "{"):
                names = words.names()
                self._check_chain("", names, token.place)
            else:
                names = [words.string()]
                self._known(names[0], self._filters, "filter", token.place)
            self._made.used.update(names)
        return names


def _table_program(source: str) -> str | None:
    """Return the name of a table's program, as table_create() and fork_proc_backend() of smtpd do.

    None if it needs none, or if `smtpd -n` reports an error of it.
    """
    kind, colon, config = source.partition(":")
    if source.startswith("/") or kind in _OWN_TABLES or (colon and not config.startswith("/")):
        return None
    # smtpd's own name for all programs; what follows is the name of one, as if it were a file's.
    return config.partition(":")[0] if kind == "proc" else kind
