"""Log-ins: who has one, for how long, and how many wrong passwords an address may try.

The cookie is a random token, of which the service keeps the hash alone. The token of forms is
derived from it, so that another site can't make a browser send one (CSRF).

Invariants
----------
*Expires*: a log-in ends after `IDLE` seconds without a request, and after `LONGEST` in any case.
*Bounded*: there are at most `MOST` log-ins, of which the oldest is dropped, and as many addresses
with failures are remembered.

Times are passed in, in seconds of any monotonic clock.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from .passwords import Hash

#: Seconds without a request, and in all, after which a log-in ends.
IDLE: Final = 30 * 60.0
LONGEST: Final = 12 * 3600.0
#: Log-ins, and addresses with failures, that are remembered.
MOST: Final = 1000
#: Wrong passwords of an address within `PERIOD` seconds after which it has to wait.
TRIES: Final = 5
PERIOD: Final = 15 * 60.0


class Login:
    """A log-in of a user; `form` is the token that each form must have.

    `hashed` is the hash of the user's password at the time.
    """

    __slots__ = ("began", "form", "hashed", "seen", "user")

    def __init__(self, user: str, form: str, now: float, hashed: Hash | None = None) -> None:
        self.user = user
        self.form = form
        self.hashed = hashed
        self.began = self.seen = now

    def expired(self, now: float) -> bool:
        """Return whether it has ended."""
        return now - self.seen > IDLE or now - self.began > LONGEST


class Logins:
    """The log-ins of a service, by the hash of their token."""

    def __init__(self) -> None:
        self._logins: dict[bytes, Login] = {}
        self._key = secrets.token_bytes(32)

    def __len__(self) -> int:
        return len(self._logins)

    def begin(self, user: str, now: float, hashed: Hash | None = None) -> str:
        """Begin a log-in; return the token of its cookie."""
        token = secrets.token_urlsafe(32)
        for old in [key for key, login in self._logins.items() if login.expired(now)]:
            del self._logins[old]
        while len(self._logins) >= MOST:
            del self._logins[next(iter(self._logins))]
        self._logins[_hash(token)] = Login(user, self.form(token), now, hashed)
        return token

    def find(self, token: str, now: float) -> Login | None:
        """Return the log-in of a token, and note its use; None if there is none any more."""
        key = _hash(token)
        login = self._logins.get(key)
        if login is None:
            return None
        if login.expired(now):
            del self._logins[key]
            return None
        login.seen = now
        return login

    def end(self, token: str) -> None:
        """End the log-in of a token."""
        self._logins.pop(_hash(token), None)

    def form(self, token: str) -> str:
        """Return the token of forms for a log-in's token, or for any other text."""
        return hmac.new(self._key, token.encode("utf-8", "replace"), sha256).hexdigest()


class Attempts:
    """The wrong passwords of each address."""

    def __init__(self) -> None:
        self._failures: dict[str, list[float]] = {}

    def wait(self, address: str, now: float) -> float:
        """Return the seconds for which an address has to wait before its next attempt, or 0."""
        recent = [at for at in self._failures.get(address, ()) if now - at < PERIOD]
        return PERIOD - (now - recent[-TRIES]) if len(recent) >= TRIES else 0.0

    def failed(self, address: str, now: float) -> None:
        """Note a wrong password."""
        recent = [at for at in self._failures.pop(address, []) if now - at < PERIOD]
        self._failures[address] = [*recent[1 - TRIES :], now]
        while len(self._failures) > MOST:
            del self._failures[next(iter(self._failures))]

    def passed(self, address: str) -> None:
        """Forget the failures of an address."""
        self._failures.pop(address, None)


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "replace")).digest()
