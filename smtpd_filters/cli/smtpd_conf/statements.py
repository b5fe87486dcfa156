"""The parser of the statements of smtpd.conf(5) that declare or use filters."""

from __future__ import annotations

import re
from collections import deque

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings.declare import suggest
from smtpd_filters.settings.kinds import quote

from .lexer import MARK, NUMBER, STRING, WORD, Lexer, Place, StatementError, Token
from .model import Configuration, Filter, Listener, Problem, Program, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

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
        }
        if first.kind != WORD or first.text not in _STATEMENTS:
            raise StatementError(
                first.place, f"syntax error: {quote(first.text)} starts no statement"
            )
        if first.text in statements:
            statements[first.text](_Words(tokens))

    def _set_macro(self, tokens: list[Token]) -> None:
        words = _Words(tokens)
        name = tokens[0].text
        if [token[:2] for token in tokens[1:2]] != [(MARK, "=")]:
            near = suggest(name, _STATEMENTS)
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

    def _include(self, words: _Words) -> None:
        name = words.string()
        words.end()
        try:
            self._lexer.include(name)
        except ConfigError as error:
            raise StatementError(words.place, f"include: {error}") from None

    def _proc(self, words: _Words) -> None:
        name = words.string()
        if name in self._procs:
            raise StatementError(words.place, f"proc {quote(name)} is declared twice")
        self._add(words, "proc", name)
        self._procs[name] = words.place

    def _add(self, words: _Words, statement: str, name: str) -> None:
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
                text = (
                    f"{statement} {quote(name)}: ${macro} is not replaced: smtpd expands no macro "
                    "in quotes, and the shell does not know it; write its value"
                )
                self._made.problems.append(Problem(words.place, text, warning=True))

    def _filter(self, words: _Words) -> None:
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
                place, f"{why}no {what} {quote(name)} is declared above{suggest(name, known)}"
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

    def _builtin(self, name: str, words: _Words, declared: Filter) -> Filter:
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

    def _condition(self, words: _Words, known: Sequence[str]) -> bool:
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

    def _warn(self, words: _Words, text: str) -> None:
        self._made.problems.append(Problem(words.place, text, warning=True))

    def _table(self, words: _Words) -> None:
        """Note its name and its program; `smtpd -n` reports the errors of the statement."""
        tokens = list(words.rest())
        if not tokens or tokens[0].kind != STRING:
            return
        name = tokens[0].text
        self._tables.add(name)
        if [token.kind for token in tokens[1:]] == [STRING]:
            program = _table_program(tokens[1].text)
            if program is not None:
                self._made.tables.append(Table(words.place, name, program))

    def _listen(self, words: _Words) -> None:
        rest = list(words.rest())
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

    def _action(self, words: _Words) -> None:
        self._use(list(words.rest()))

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
            words = _Words(tokens[at:])
            following = tokens[at + 1] if at + 1 < len(tokens) else None
            if following is not None and following[:2] == (MARK, "{"):
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


class _Words:
    """The tokens of a statement, consumed one after the other."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._first = tokens[0]
        self._tokens = deque(tokens[1:])
        self._last = tokens[0]

    @property
    def place(self) -> Place:
        """The first line of the statement."""
        return self._first.place

    def wrong(self, text: str) -> StatementError:
        """Return the error for the last token."""
        return StatementError(self._last.place, f"syntax error: {text}")

    def rest(self) -> Iterator[Token]:
        """Return the remaining tokens."""
        yield from self._tokens

    def _next(self) -> Token | None:
        if not self._tokens:
            return None
        self._last = self._tokens.popleft()
        return self._last

    def string(self) -> str:
        """Return the next string; raise StatementError for another token."""
        token = self._next()
        if token is None:
            raise self._ended()
        if token.kind != STRING:
            hint = "; put it in quotes" if token.kind in (WORD, NUMBER) or token.text == "/" else ""
            raise self.wrong(f"expected a string, not {self._shown(token)}{hint}")
        return token.text

    def next_word(self) -> str | None:
        """Return the next keyword; None at the end."""
        token = self._next()
        if token is None:
            return None
        if token.kind != WORD:
            raise self.wrong(f"unexpected {self._shown(token)}")
        return token.text

    def expect(self, kind: str, text: str) -> None:
        """Consume this token; raise StatementError for another one."""
        token = self._next()
        if token is None or token[:2] != (kind, text):
            raise self.wrong(f"expected {text}")

    def take(self, kind: str, text: str) -> bool:
        """Consume this token if it is the next one; return whether it was."""
        if not self._tokens or self._tokens[0][:2] != (kind, text):
            return False
        self._next()
        return True

    def one_of(self, known: Iterable[str], what: str) -> str:
        """Return the next token, one of these keywords; raise StatementError for another one."""
        token = self._next()
        if token is None:
            raise self._ended()
        if token.kind != WORD or token.text not in known:
            raise self.wrong(
                f"unexpected {self._shown(token)}; expected {what}: {', '.join(known)}"
            )
        return token.text

    def table_follows(self) -> bool:
        """Return whether a table begins here: a text, a list, or the name of one."""
        return bool(self._tokens) and (
            self._tokens[0].kind == STRING or self._tokens[0][:2] in ((MARK, "{"), (MARK, "<"))
        )

    def entries(self, tables: Container[str]) -> list[str]:
        """Return the entries of a table that stands here, none of one that is named."""
        if self.take(MARK, "<"):
            name = self.string()
            self.expect(MARK, ">")
            if name not in tables:
                raise StatementError(self.place, f"no table {quote(name)} is declared above")
            return []
        if not self._tokens or self._tokens[0][:2] != (MARK, "{"):
            return [self.string()]
        entries = self.names("an entry", mapping=True)
        if not entries:
            raise self.wrong("at least one entry is required")
        return entries

    def names(self, what: str = "a name", *, mapping: bool = False) -> list[str]:
        """Return names in braces, with or without commas between them; the keys of a mapping."""
        self.expect(MARK, "{")
        names: list[str] = []
        separated = True
        while True:
            token = self._next()
            if token is None:
                raise self.wrong("no closing brace")
            if token[:2] == (MARK, "}") and not (names and separated):
                return names
            if token[:2] == (MARK, ",") and not separated:
                separated = True
                continue
            if token.kind != STRING:
                hint = "; put it in quotes" if token.kind in (WORD, NUMBER) else ""
                raise self.wrong(f"expected {what}, not {self._shown(token)}{hint}")
            if not names and mapping:
                mapping = bool(self._tokens) and self._tokens[0][:2] == (MARK, "=")
            if mapping:
                self.expect(MARK, "=")
                self.string()
            names.append(token.text)
            separated = False

    def _ended(self) -> StatementError:
        return self.wrong(f"the statement ends after {self._shown(self._last)}")

    def end(self) -> None:
        """Raise StatementError unless at the end."""
        token = self._next()
        if token is not None:
            raise self.wrong(f"unexpected {self._shown(token)}")

    @staticmethod
    def _shown(token: Token) -> str:
        return quote(token.text)
