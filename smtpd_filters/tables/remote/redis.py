"""Tables on a server of Redis or Valkey: `redis:PATH` of a configuration file.

`url` is the address of a store (`redis://HOST`, `rediss://`, `unix://`, `redis+sentinel://`,
`redis+cluster://`). A table is a set (`set NAME`), a hash (`hash NAME`), or single keys with a
prefix (`prefix TEXT`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_filters.errors import ConfigError
from smtpd_filters.stores.address import parse as parse_address

from .backend import LIST_MAX, AnswerError, Backend, BackendError, value_of
from .configuration import TIMES, Configuration

if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.stores.address import Address

_FORMS = ("set", "hash", "prefix")
_MAPPINGS = frozenset({"alias", "credentials", "userinfo", "mailaddrmap", "mapping"})
#: Members that the server returns at a time, about.
_PAGE = 1000
#: Commands in flight, each of which takes a connection.
_PLACES = 8


def open_backend(text: str, service: str) -> tuple[Backend, dict[str, float]]:
    """Return the back-end and the times of its configuration. Raises ConfigError."""
    if text.startswith("//"):
        raise ConfigError("redis: needs the path of a configuration file, with a url in it")
    if not text:
        raise ConfigError("redis: needs the path of a configuration file")
    file = Configuration(text, ("url", "password", "password_file", "ca_file", *_FORMS))
    times = {name: file.seconds(name) for name in TIMES}
    return RedisTable(file, service, times["timeout"]), times


class RedisTable(Backend):
    """One table on a server. Raises ConfigError for a mistake in its file."""

    def __init__(self, file: Configuration, service: str, timeout: float) -> None:
        self.timeout = timeout
        self._mapping = service in _MAPPINGS
        forms = [form for form in _FORMS if file.get(form) is not None]
        if len(forms) != 1:
            raise ConfigError(f"{file.path}: expected one of {', '.join(_FORMS)}")
        self._form = forms[0]
        if self._mapping and self._form == "set":
            raise file.error("set", "a mapping needs a hash or a prefix")
        self._name = file.required(self._form)
        self.lists = self._form != "prefix"
        self._address = _address(file)
        self._settings: dict[str, Any] = {
            "timeout": timeout,
            "password": file.password(),
            "certificates": file.get("ca_file") or "",
        }
        _importable()
        self._connections: Any = None
        self._places: asyncio.Semaphore | None = None

    async def look_up(self, key: str) -> str | None:
        """Return the value of a key, or None. Raises BackendError."""
        if self._form == "set":
            return _whether(await self._command("SISMEMBER", self._name, key))
        if self._form == "hash":
            if self._mapping:
                return _value(await self._command("HGET", self._name, key))
            return _whether(await self._command("HEXISTS", self._name, key))
        if self._mapping:
            return _value(await self._command("GET", self._name + key))
        return _whether(await self._command("EXISTS", self._name + key))

    async def entries(self, seconds: float) -> list[tuple[str, str]]:
        """Return all entries. Raises BackendError."""
        del seconds  # the caller's limit suffices
        found: list[tuple[str, str]] = []
        cursor: Any = 0
        command = "SSCAN" if self._form == "set" else "HSCAN"
        while True:
            answer = await self._command(command, self._name, cursor, "COUNT", _PAGE)
            try:
                cursor, page = answer
                texts = [_text(each) for each in _flat(page)]
                if self._form == "set":
                    found += ((text, "") for text in texts)
                else:
                    found += zip(texts[::2], texts[1::2], strict=True)
                end = int(cursor) == 0
            except (TypeError, ValueError):
                raise BackendError(f"an invalid answer to {command}") from None
            if len(found) > LIST_MAX:
                raise BackendError(f"more than {LIST_MAX} entries")
            if end:
                return found

    async def _command(self, *words: object) -> Any:
        from smtpd_filters.stores.redis_client import Connections, cause

        if self._connections is None:
            self._connections = Connections(self._address, **self._settings)
            self._places = asyncio.Semaphore(_PLACES)
        assert self._places is not None  # noqa: S101  # made together
        encoded = [_bytes(each) for each in words]
        async with self._places:
            try:
                return await self._connections.command(encoded[1], *encoded)  # their key
            except Exception as error:  # noqa: BLE001  # redis-py raises many kinds
                text = cause(error).replace(" (--store-password-file)", "")
                if "WRONGTYPE" in str(error):
                    if self._form == "prefix":  # clients choose the key
                        raise AnswerError("the value of a key is not a string") from None
                    text = f"{self._name} is not a {self._form}"
                raise BackendError(f"{self._address.text}: {text}") from None

    def declare(self, needs: Needs) -> None:
        """Declare the servers."""
        self._address.declare(needs)
        needs.to_open(_PLACES)
        if certificates := self._settings["certificates"]:
            needs.to_reload(certificates)  # when it connects

    async def aclose(self) -> None:
        """Close the connections."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close(self.timeout)


def _address(file: Configuration) -> Address:
    file.required("url")
    try:
        address = parse_address(file.urls[0])
    except ValueError as error:
        raise file.error("url", str(error)) from None
    if address.scheme in {"sqlite", "memory"} or len(file.urls) > 1:
        raise file.error("url", "expected one address of Redis or Valkey")
    certificates = file.get("ca_file")
    if certificates is not None and not address.tls:
        raise file.error("ca_file", "requires TLS, such as rediss://HOST")
    if certificates is not None and not Path(certificates).is_file():
        raise file.error("ca_file", f"{certificates}: not a file")
    return address


def _importable() -> None:
    """Raise ConfigError if redis-py is missing, rather than with the first look-up."""
    try:
        import smtpd_filters.stores.redis_client  # noqa: F401  # at start
    except ImportError as error:
        raise ConfigError(f"redis: requires redis-py: {error}") from None


def _flat(page: Any) -> list[Any]:
    """Return the members of a page; redis-py makes a dict of a hash."""
    if isinstance(page, dict):
        return [each for pair in page.items() for each in pair]
    return list(page)


def _bytes(word: object) -> object:
    return word.encode("utf-8", "surrogateescape") if isinstance(word, str) else word


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, str | int | float):
        return str(value)
    raise BackendError(f"an answer of another type: {type(value).__name__}")


def _whether(answer: object) -> str | None:
    if isinstance(answer, int) and answer in {0, 1}:
        return "" if answer else None
    raise BackendError("an answer that is neither 0 nor 1")


def _value(value: object) -> str | None:
    return None if value is None else value_of([_text(value)], joined=False)
