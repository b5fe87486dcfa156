"""The address of a store, as an operator writes it."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from smtpd_filters.settings import ENDPOINT

if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs

#: The forms, for help and errors.
FORMS = (
    "sqlite:PATH, redis://HOST[:PORT][/DB], rediss://..., unix://PATH[?db=DB], "
    "redis+sentinel://HOST[:PORT][,HOST...]/MASTER[/DB], redis+cluster://HOST[:PORT][,HOST...] or "
    "memory:"
)
PORT = 6379
SENTINEL_PORT = 26379
#: The parameter of an address whose sentinels have no TLS, though the server has.
_PLAIN = "sentinel-tls=no"


class Address(NamedTuple):
    """A store's address.

    `scheme` is "sqlite", "memory", "redis", "unix", "sentinel" or "cluster"; `path` is the file or
    the socket; `hosts` are the servers, in their order. With `tls`, the sentinels have it as well
    as the server, unless they are `plain_sentinels`.
    """

    scheme: str
    path: str = ""
    hosts: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    username: str = ""
    db: int = 0
    master: str = ""
    plain_sentinels: bool = False

    @property
    def text(self) -> str:
        """The address as `parse` takes it."""
        if self.scheme in {"sqlite", "memory"}:
            return f"{self.scheme}:{self.path}"
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        if self.scheme == "unix":
            return f"unix://{user}{quote(self.path)}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(map(ENDPOINT.show, self.hosts))
        kind = "" if self.scheme == "redis" else f"+{self.scheme}"
        path = f"/{self.master}" if self.master else ""
        path += f"/{self.db}" if self.db else ""
        path += f"?{_PLAIN}" if self.plain_sentinels else ""
        return f"{'rediss' if self.tls else 'redis'}{kind}://{user}{hosts}{path}"

    @property
    def label(self) -> str:
        """The address for the log, without the user."""
        return self._replace(username="").text

    def declare(self, needs: Needs) -> None:
        """Declare the directory of a file, or the servers."""
        if self.scheme == "sqlite":
            # Files beside it have its name: -wal, -shm and -journal.
            needs.to_write(str(PurePath(self.path).parent))
        elif self.scheme == "unix":
            needs.to_connect_unix(self.path)
        elif self.scheme in {"sentinel", "cluster"}:
            needs.to_connect_anywhere()  # they name the servers
        for server in self.hosts:
            needs.to_connect(*server)


#: The store in a process's own memory.
MEMORY = Address("memory")


def parse(text: str) -> Address:
    """Parse an address; raise ValueError with the reason."""
    if text == "memory:":
        return MEMORY
    if text.startswith("sqlite:"):
        path = text.removeprefix("sqlite:")
        if not path.startswith("/"):
            raise ValueError("the path after sqlite: must be absolute")
        return Address("sqlite", path)
    scheme, colon, rest = text.partition("://")
    if not colon or scheme not in _SCHEMES:
        raise ValueError(f"expected {FORMS}")
    return _url(scheme, rest)


#: By the scheme of a URL: kind, TLS and default port.
_SCHEMES = {
    "redis": ("redis", False, PORT),
    "rediss": ("redis", True, PORT),
    "unix": ("unix", False, 0),
    "redis+sentinel": ("sentinel", False, SENTINEL_PORT),
    "rediss+sentinel": ("sentinel", True, SENTINEL_PORT),
    "redis+cluster": ("cluster", False, PORT),
    "rediss+cluster": ("cluster", True, PORT),
}


def _url(scheme: str, rest: str) -> Address:
    # Not `urlsplit`, which takes no second host.
    kind, tls, port = _SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    path = slash + path
    user, _, hosts = authority.rpartition("@")
    username, has_password, _ = user.partition(":")
    if has_password:
        raise ValueError("a password here could be read by others: write it to a file")
    if kind == "unix":
        if hosts or not path.startswith("/"):
            raise ValueError("the path after unix:// must be absolute")
        db = _db(_query(query))
        return Address(kind, unquote(path), username=unquote(username), db=db)
    parameter = _PLAIN if tls and kind == "sentinel" else ""
    if query not in {"", parameter}:
        allowed = f"no other parameter than {parameter}" if parameter else "no parameters"
        raise ValueError(f"has {allowed}")
    servers = tuple(map(ENDPOINT(port).parse, hosts.split(",")))
    if kind == "redis" and len(servers) > 1:
        raise ValueError("names several servers: use redis+sentinel or redis+cluster")
    master, number = "", path.strip("/")
    if kind == "sentinel":
        master, _, number = number.partition("/")
        if not master:
            raise ValueError("needs the name of the master, as in redis+sentinel://HOST/mymaster")
    if kind == "cluster" and number:
        raise ValueError("a cluster has no other database than 0")
    return Address(
        kind,
        hosts=servers,
        tls=tls,
        username=unquote(username),
        db=_db(number),
        master=master,
        plain_sentinels=bool(query),
    )


def _query(query: str) -> str:
    values = dict(parse_qsl(query, keep_blank_values=True))
    if set(values) - {"db"}:
        raise ValueError("has no other parameter than db")
    return values.get("db", "")


def _db(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise ValueError(f"{text!r} is not the number of a database")
    return int(text)
