"""The tokens of a statement of smtpd.conf(5), consumed one after the other."""

from __future__ import annotations

from collections import deque

from smtpd_filters.settings.quoting import quote

from .lexer import MARK, NUMBER, STRING, WORD, Place, StatementError, Token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence


class Words:
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

    def rest(self) -> list[Token]:
        """Return the remaining tokens."""
        return list(self._tokens)

    def _next(self) -> Token | None:
        if not self._tokens:
            return None
        self._last = self._tokens.popleft()
        return self._last

    def string(self, what: str = "a string") -> str:
        """Return the next string; raise StatementError for another token."""
        token = self._next()
        if token is None:
            raise self._ended()
        if token.kind != STRING:
            hint = "; put it in quotes" if token.kind in (WORD, NUMBER) or token.text == "/" else ""
            raise self.wrong(f"expected {what}, not {self._shown(token)}{hint}")
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

    def next_is(self, kind: str, text: str) -> bool:
        """Return whether this token is the next one."""
        return bool(self._tokens) and self._tokens[0][:2] == (kind, text)

    def take(self, kind: str, text: str) -> bool:
        """Consume this token if it is the next one; return whether it was."""
        found = self.next_is(kind, text)
        if found:
            self._next()
        return found

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
        if not self.next_is(MARK, "{"):
            return [self.string()]
        entries = self.names("an entry", mapping=True)
        if not entries:
            raise self.wrong("at least one entry is required")
        return entries

    def names(self, what: str = "a name", *, mapping: bool = False) -> list[str]:
        """Return names in braces, with or without commas between them; the keys of a mapping."""
        self.expect(MARK, "{")
        names: list[str] = []
        while not self.take(MARK, "}"):
            if names:
                self.take(MARK, ",")
            names.append(self.string(what))
            if len(names) == 1:
                mapping = mapping and self.next_is(MARK, "=")
            if mapping:
                self.expect(MARK, "=")
                self.string()
        return names

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
