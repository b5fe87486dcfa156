"""The domains and keys of filter-dkimsign, and their files.

Invariants
----------
*All or nothing*: a table of keys is replaced as a whole, with every key in it; if a file is
unreadable or invalid, the old keys stay.
*Private*: a file that others may read isn't accepted as a private key.
"""

from __future__ import annotations

import os
import re
import stat
from hashlib import sha256
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from smtpd_filters.addresses import canonical
from smtpd_filters.authentication.dkim.private_keys import (
    MAX_FILE,
    PrivateKey,
    PrivateKeyError,
    parse_private_key,
)
from smtpd_filters.authentication.dkim.sign import SigningKey
from smtpd_filters.errors import ConfigError, unreadable
from smtpd_filters.settings import Kind
from smtpd_filters.settings.files import open_file
from smtpd_filters.tables import Table
from smtpd_filters.tables.source import REMOTE
from smtpd_filters.tables.table import Content

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from smtpd_filters.tables.source import Source

# RFC 6376 section 3.1: a selector has the form of a domain; section 3.5: a domain has two labels.
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


def domain_name(text: str) -> str:
    """Return a domain for d= in canonical form; raise ValueError if it is invalid."""
    domain = canonical(text)
    labels = domain.split(".")
    if len(labels) < 2 or len(domain) > 253 or not all(map(_NAME.fullmatch, labels)):
        raise ValueError(f"expected a domain, not {text[:80]!r}")
    return domain


def selector_name(text: str) -> str:
    """Return a selector in canonical form; raise ValueError if it is invalid."""
    selector = canonical(text)
    if len(selector) > 200 or not all(map(_NAME.fullmatch, selector.split("."))):
        raise ValueError(f"expected a selector, not {text[:80]!r}")
    return selector


#: The keys in use, by the hash of their files' content. A server with hundreds of domains has one
#: key for many of them, or changes few at a time, and libraries may take 0.1 s to check a key.
_IN_USE: WeakValueDictionary[bytes, PrivateKey] = WeakValueDictionary()


def read_key(path: str) -> tuple[bytes, PrivateKey]:
    """Read a private key; return it and the content of its file. Raises ValueError."""
    text = read_file(path)
    digest = sha256(text).digest()
    key = _IN_USE.get(digest)
    try:
        if key is None:
            key = _IN_USE[digest] = parse_private_key(text)
    except PrivateKeyError as error:
        raise ValueError(f"{path}: {error}") from None
    return text, key


def read_file(path: str) -> bytes:
    """Return the content of a file with a private key. Raises ValueError."""
    try:
        with open_file(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path}: {unreadable(error, path)}") from None
    if mode & stat.S_IROTH:
        raise ValueError(f"{path}: others may read this private key (chmod o= {path})")
    return text


class _Keys(Content):
    """Keys by domain, in the order of the table."""

    __slots__ = ("files", "keys", "paths")

    def __init__(self, size: int) -> None:
        del size
        self.keys: dict[str, list[SigningKey]] = {}
        #: The content of the files, and the path of each key.
        self.files: dict[str, bytes] = {}
        self.paths: dict[tuple[str, str], str] = {}

    def fill(self, source: Source) -> Iterator[None]:
        return source.pairs(self.add_pair)

    def add_pair(self, domain: str, value: str) -> int:
        """Add a key: a domain, and its selector and file."""
        words = value.split(None, 1)
        if len(words) < 2:
            raise ValueError("expected DOMAIN SELECTOR KEYFILE")
        selector, path = words[0], words[1].strip()
        self.add_key(domain_name(domain), selector_name(selector), path)
        return 1000

    def add_key(self, domain: str, selector: str, path: str) -> None:
        """Add a key. Raises ValueError."""
        self.files[path], key = read_key(path)
        self.paths[domain, selector] = path
        signing = SigningKey(domain, selector, key)
        others = self.keys.setdefault(domain, [])
        if any(each.selector == selector for each in others):
            raise ValueError(f"selector {selector} of {domain} twice")
        others.append(signing)

    def stale(self) -> Generator[None, None, bool]:
        """Return whether a file has changed, or can't be read. Yield after each file."""
        for path, text in self.files.items():
            try:
                if read_file(path) != text:
                    return True
            except ValueError:
                return True
            yield
        return False

    def find(self, key: str) -> str | None:
        return key if key in self.keys else None

    def release(self) -> Iterator[None]:
        yield from ()

    def __len__(self) -> int:
        return sum(map(len, self.keys.values()))


class KeyTable(Table):
    """A mapping from domains to selectors and files of keys; a domain may occur several times."""

    __slots__ = ()
    _content: _Keys
    contents = _Keys

    def __init__(self, spec: str) -> None:
        if spec.lstrip().partition(":")[0] in REMOTE:
            raise ConfigError("the keys can't be in a database or on a server")
        super().__init__(spec)

    @property
    def keys(self) -> dict[str, list[SigningKey]]:
        """The keys by domain, in the order of the table."""
        return self._content.keys

    @property
    def table_path(self) -> str:
        """The path of the table itself; "" for an inline table."""
        return self._from.path

    def path_of(self, key: SigningKey) -> str:
        """Return the path of a key."""
        return self._content.paths[key.domain, key.selector]

    @property
    def is_file(self) -> bool:
        """Whether it can be reloaded: always, since the keys are in files."""
        return True

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the table and of the keys."""
        own = (self._from.path,) if self._from.is_file else ()
        return (*own, *self._content.files)

    @property
    def directories(self) -> frozenset[str]:
        """The directories of the keys, where a rotation adds others."""
        return frozenset(os.path.dirname(path) for path in self._content.files)  # noqa: PTH120  # as open

    def reload(self) -> Generator[None, None, bool]:
        """Read the table and all keys again, as `Table.reload` does."""
        changed = yield from self._from.changed()
        if not (changed or (yield from self._content.stale())):
            return False
        yield from self._load()
        return True


class _Domains(Content):
    """Domains in the order of the table."""

    __slots__ = ("names",)

    def __init__(self, size: int) -> None:
        del size
        self.names: dict[str, None] = {}

    def add(self, text: str) -> int:
        try:
            name = domain_name(text)
        except ValueError:
            raise ValueError("expected a domain") from None  # the text is added to it
        self.names[name] = None
        return 0

    def find(self, key: str) -> str | None:
        return key if key in self.names else None

    def release(self) -> Iterator[None]:
        yield from ()

    def __len__(self) -> int:
        return len(self.names)


class DomainList(Table):
    """A list of domains in which the order counts."""

    __slots__ = ()
    _content: _Domains
    contents = _Domains

    @property
    def names(self) -> dict[str, None]:
        """The domains, in their order."""
        return self._content.names


class KeyFile:
    """The private key in a file."""

    def __init__(self, path: str) -> None:
        self.source = path
        self._text, self.key = read_key(path)

    is_file = True
    entries = 1

    @property
    def files(self) -> tuple[str, ...]:
        """The path."""
        return (self.source,)

    def reload(self) -> Generator[None, None, bool]:
        """Read the file again, as `Table.reload` does."""
        yield
        try:
            text, key = read_key(self.source)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if text == self._text:
            return False
        if key.kind != self.key.kind:
            raise ConfigError(f"{self.source}: a key of another type; restart the server")
        self._text, self.key = text, key
        return True


class _KeyKind(Kind[KeyFile]):
    metavar = "PATH"
    noun = "the path of a private key"

    def parse(self, text: str) -> KeyFile:
        if not text or "\0" in text:
            raise ValueError(f"expected {self.noun}")
        return KeyFile(text)

    def show(self, value: KeyFile) -> str:
        return value.source

    def check(self, value: KeyFile) -> None:
        if not isinstance(value, KeyFile):
            raise ValueError("expected a KeyFile")  # noqa: TRY004  # as every kind does


KEY = _KeyKind()
