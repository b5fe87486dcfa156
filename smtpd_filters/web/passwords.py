"""The password file of the page: a line `USER:HASH` for each user, hashed by scrypt (RFC 7914).

Invariants
----------
*No hint*: an unknown user takes as long to refuse as a wrong password, of the user whose hash takes
longest.
*Bounded*: passwords are hashed in a thread, one at a time, since each takes 16 MiB and a fifth of
a second. Further log-ins than `QUEUE` are refused at once.
*Private*: a file that others may read or write is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import secrets
import stat
from functools import partial
from hashlib import scrypt
from hmac import compare_digest
from math import prod
from typing import NamedTuple

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings.files import no_directory, read_file, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

#: The limits of a file's hashes: memory is 128 * N * r bytes.
MAX_COST, MAX_BLOCK, MAX_PARALLEL = 1 << 17, 8, 16
_SALT, _LENGTH = 16, 32
#: Log-ins that may wait for their turn.
QUEUE = 8
#: Characters of a password; more than any manager makes.
MAX_PASSWORD = 1024
_LET = "chgrp to the page's group, and chmod 0640"
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Work(NamedTuple):
    """The parameters of a hash: N, the cost, r, the block size, and p, the parallelisation."""

    cost: int
    block: int
    parallel: int


#: That of new hashes: OWASP's recommendation for 16 MiB of memory.
USUAL = Work(1 << 14, 8, 5)


class Hash(NamedTuple):
    """A hash with its parameters (RFC 7914 section 2)."""

    cost: int
    block: int
    parallel: int
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str, work: Work = USUAL) -> Self:
        """Return the hash of a password, with a new salt."""
        salt = secrets.token_bytes(_SALT)
        return cls(*work, salt, _hashed(password, *work, salt, _LENGTH))

    @classmethod
    def of_nobody(cls, users: Iterable[Hash]) -> Self:
        """Return a hash of no password, which takes as much work as the most of any of these."""
        most = max((Work(*each[:3]) for each in users), key=prod, default=USUAL)
        return cls(*most, secrets.token_bytes(_SALT), bytes(_LENGTH))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `scrypt$N$r$p$SALT$DIGEST`; raise ValueError."""
        name, *fields = text.split("$")
        if name != "scrypt" or len(fields) != 5:
            raise ValueError("expected scrypt$N$r$p$SALT$DIGEST")
        *numbers, salt, digest = fields
        if not all(each.isascii() and each.isdecimal() and len(each) < 8 for each in numbers):
            raise ValueError("N, r and p must be numbers")
        cost, block, parallel = map(int, numbers)
        if not 1 < cost <= MAX_COST or cost & (cost - 1) or not 1 <= block <= MAX_BLOCK:
            raise ValueError(f"N must be a power of 2 up to {MAX_COST}, r at most {MAX_BLOCK}")
        if not 1 <= parallel <= MAX_PARALLEL:
            raise ValueError(f"p must be at most {MAX_PARALLEL}")
        try:
            parts = [base64.b64decode(each, validate=True) for each in (salt, digest)]
        except binascii.Error:
            raise ValueError("salt and digest must be base64") from None
        if not all(8 <= len(each) <= 64 for each in parts):
            raise ValueError("salt and digest must have 8 to 64 bytes")
        return cls(cost, block, parallel, *parts)

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(each).decode() for each in (self.salt, self.digest))
        return f"scrypt${self.cost}${self.block}${self.parallel}${salt}${digest}"

    def fits(self, password: str) -> bool:
        """Return whether it is the hash of this password; takes a fifth of a second."""
        size = len(self.digest)
        found = _hashed(password, self.cost, self.block, self.parallel, self.salt, size)
        return compare_digest(found, self.digest)


def _hashed(password: str, cost: int, block: int, parallel: int, salt: bytes, size: int) -> bytes:  # noqa: PLR0913  # of scrypt
    memory = 128 * block * (cost + parallel) + (1 << 20)
    data = password.encode("utf-8", "surrogatepass")
    return scrypt(data, salt=salt, n=cost, r=block, p=parallel, maxmem=memory, dklen=size)


class BusyError(Exception):
    """Too many log-ins wait for their turn, or this one may not be tried any more."""


class Passwords:
    """The users of a file, of the path `path` if it is to be read again."""

    def __init__(self, users: dict[str, Hash], path: str = "") -> None:
        self._users = users
        self._nobody = Hash.of_nobody(users.values())
        self.path = path
        self._turn = asyncio.Lock()
        self._waiting = 0

    @classmethod
    def read(cls, path: str) -> Self:
        """Read a file; raise ConfigError, with the file and the line, for a mistake in it."""
        users = _entries(path)
        if not users:
            raise ConfigError(f"{path}: no user; add one with smtpd-filters web password USER")
        return cls(users, path)

    def reload(self) -> int:
        """Read the file again; return the number of users, which may be 0.

        Raises ConfigError as `read` does; then the users stay.
        """
        self._users = _entries(self.path)
        self._nobody = Hash.of_nobody(self._users.values())
        return len(self._users)

    def __contains__(self, user: str) -> bool:
        return user in self._users

    def hash_of(self, user: str) -> Hash | None:
        """Return the hash of a user's password; None for an unknown user."""
        return self._users.get(user)

    async def check(
        self, user: str, password: str, allowed: Callable[[], bool] = lambda: True
    ) -> bool:
        """Return whether this is the password of the user.

        `allowed` is asked when its turn has come: others may have failed meanwhile. Raises
        BusyError.
        """
        if self._waiting >= QUEUE:
            raise BusyError
        self._waiting += 1
        try:
            async with self._turn:
                if not allowed():
                    raise BusyError
                hashed = self._users.get(user, self._nobody)
                fits = await asyncio.to_thread(hashed.fits, password[:MAX_PASSWORD])
        finally:
            self._waiting -= 1
        return fits and self._users.get(user) == hashed  # not changed or removed meanwhile


def _readable(path: str) -> bool:
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def _require_private(path: str, status: os.stat_result) -> None:
    if status.st_mode & 0o037:
        raise ConfigError(
            f"{path}: mode {stat.S_IMODE(status.st_mode):o}: others may read or change it; "
            f"run chmod 0640 {path}"
        )


def _entries(path: str) -> dict[str, Hash]:
    try:
        data = read_file(path, check=partial(_require_private, path))
    except ConfigError as error:
        if os.access(path, os.F_OK) and not _readable(path):
            raise ConfigError(f"{error}; let its group read it: {_LET}") from None
        raise
    found: dict[str, Hash] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, text = line.strip().partition(":")
        try:
            if not colon or not _USER.fullmatch(user):
                raise ValueError("expected USER:HASH")  # noqa: TRY301  # the place is added below
            if user in found:
                raise ValueError(f"a second line for {user}")  # noqa: TRY301
            found[user] = Hash.parse(text)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
    return found


def with_user(path: str, user: str, password: str, work: Work = USUAL) -> None:
    """Add a user to a file, or change the password; the file is made if it is missing.

    Raises ConfigError.
    """
    if not _USER.fullmatch(user):
        raise ConfigError(f"USER: expected letters, digits and any of ._@-, not {user!r}")
    users = _entries(path) if os.path.lexists(path) else {}
    users[user] = Hash.of(password, work)
    text = "".join(f"{name}:{hashed}\n" for name, hashed in users.items())
    try:
        owner = os.stat(path) if os.path.lexists(path) else None  # noqa: PTH116  # as the rest
        replace_file(path, text.encode(), 0o600, owner)
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}{no_directory(path)}") from None
