"""The guard of the page: a middleware that every request passes before its handler.

A request is answered if its `Host` is one of ours (DNS rebinding), if its sender may read the page,
and if, when it could change something, it comes from the page itself (CSRF).

Invariants
----------
*Never open*: without passwords and without a proxy only connections of this machine are accepted,
which `check_exposure` ensures at start.
*Proxy named*: the header with a user's name is believed on connections of a named proxy only, and
only if there is one: of several, a proxy that adds its own has passed on the client's.
*Not by just anybody*: what changes a store needs a user with a log-in, or a unix socket, whose mode
limits who reaches it. A port on loopback is open to every user of the machine.
*Same origin*: a POST needs an `Origin`, or `Sec-Fetch-Site`, of the page, and its form's token.
*No leak*: every response has the headers of `HEADERS`; nothing is cached, framed, or loaded from
elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from hashlib import sha256
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from aiohttp import web

from smtpd_filters.errors import ConfigError

from .bounds import DEFAULT
from .logins import Attempts, Login, Logins

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from .bounds import Bounds
    from .passwords import Passwords

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: What the page may load, where it may send forms, and who may frame it: itself, and nobody.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With `no-referrer` browsers send `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: How the cookie's name begins; with TLS it is bound to the host and the path / by its prefix.
COOKIE, SECURE_COOKIE = "smtpd-filters-", "__Host-smtpd-filters-"
SAFE = frozenset({"GET", "HEAD"})
#: Paths, below the prefix, that need no log-in.
OPEN = ("/login", "/static/")
#: The path, below the prefix, that a bearer token may read as well.
METRICS = "/metrics"
#: Names of this machine that a browser on it uses.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: The address of clients of a unix socket.
UNIX = "unix"
#: Characters of a user's name in a proxy's header.
_USER_MAX = 200
#: An IPv6 address in brackets or an IPv4 address, behind which a port may be.
_WITHOUT_PORT = re.compile(r"^(?:\[([^\]]*)\]|([^:]*))(?::[0-9]*)?$")
#: The usual ports, which browsers leave out and some proxies write.
_PORTS = {"http": ":80", "https": ":443"}
_LOG = logging.getLogger(__name__)


class Access(NamedTuple):
    """Who may read the page.

    `hosts` are the names in `Host` that are ours, without a port; none for any, on a unix socket.
    `proxies` are the addresses of proxies, "unix" for those on a unix socket. Their header
    `user_header`, if there is one, names the user; and their `X-Forwarded-For` the client, whose
    wrong passwords are counted. `prefix` is the path of the page, "" for the root. `secure` is
    whether browsers reach it by TLS.
    """

    passwords: Passwords | None = None
    user_header: str = ""
    proxies: Collection[str] = ()
    hosts: Collection[str] = ()
    prefix: str = ""
    secure: bool = False
    #: What a client that reads metrics sends as a bearer token (RFC 6750); "" for none.
    token: str = ""

    @property
    def knows_users(self) -> bool:
        """Whether only those who have authenticated, here or at a proxy, may read the page."""
        return self.passwords is not None or bool(self.user_header and self.proxies)


def check_exposure(addresses: Sequence[str], access: Access) -> None:
    """Raise ConfigError if anybody could read the page.

    `addresses` are those that it listens on: IP addresses, or paths of unix sockets.
    """
    if access.knows_users:
        return
    for address in addresses:
        if not address.startswith("/") and not ip_address(address).is_loopback:
            raise ConfigError(
                f"--listen {address}: anybody could read the page; add --passwords, or "
                "--user-header and --proxy"
            )


def since_boot() -> float:
    """Return the seconds since the machine has started, with those in which it was suspended.

    The monotonic clock of Linux leaves those out, so that a log-in would last through a night.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Guard:
    """The guard; `middleware` is its entry for aiohttp."""

    def __init__(
        self,
        access: Access,
        clock: Callable[[], float] = since_boot,
        bounds: Bounds = DEFAULT,
    ) -> None:
        self.access = access
        self.bounds = bounds
        self.logins = Logins()
        self.attempts = Attempts()
        self._clock = clock

    @property
    def middleware(self) -> Any:
        """The middleware of an application."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                response = await self._answer(request, handler)
            except web.HTTPException as error:
                error.headers.update(HEADERS)
                raise
            except Exception:  # noqa: BLE001  # the reader gets no details
                _LOG.exception("%s %r", request.method, request.path)
                raise web.HTTPInternalServerError(headers=HEADERS) from None
            if not response.prepared:
                response.headers.update(HEADERS)
            return response

        return guarded

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._is_ours(_host(request)):
            raise web.HTTPMisdirectedRequest(
                text="The page has no such host name; --host adds one.\n"
            )
        login = self.login(request)
        path = request.path.removeprefix(self.access.prefix)
        if path == METRICS and self._has_token(request):
            return await handler(request)
        if login is None and not path.startswith(OPEN):
            if self.access.passwords is None:
                raise web.HTTPForbidden(
                    text="Not logged in: the page is for users that a proxy names in one field of "
                    "--user-header.\n"
                )
            if request.method not in SAFE:
                raise web.HTTPForbidden(text="Not logged in any more: load the page again.\n")
            if path == METRICS:  # a program would take the page of the log-in for metrics
                raise web.HTTPUnauthorized(
                    text="Not logged in: the bearer token is that of --metrics-token.\n",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            raise web.HTTPSeeOther(
                f"{self.access.prefix}/login?to={quote(request.path_qs, safe='')}"
            )
        if request.method not in SAFE:
            await self._check_origin(request)
        return await handler(request)

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return not self.access.hosts or name.lower() in self.access.hosts

    def _has_token(self, request: web.Request) -> bool:
        """Return whether a request has the token for metrics."""
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        expected = f"Bearer {self.access.token}".encode()
        return bool(self.access.token) and compare_digest(given, expected)

    def login(self, request: web.Request) -> Login | None:
        """Return the log-in of a request; None if its sender has to log in, or may not."""
        access, now = self.access, self._clock()
        if access.user_header:
            if self._peer(request) not in access.proxies:
                return None
            named = request.headers.getall(access.user_header, ())
            user = named[0][:_USER_MAX] if len(named) == 1 else ""
            return Login(user, "", now) if user else None
        if access.passwords is None:
            return Login("", "", now)
        token = self._token(request)
        login = self.logins.find(token, now)
        if login is not None and login.hashed != access.passwords.hash_of(login.user):
            self.logins.end(token)  # the user was removed, or has another password
            return None
        return login

    def user(self, request: web.Request) -> str:
        """Return the name of a request's user; "" without a log-in or a name."""
        login = self.login(request)
        return login.user if login is not None else ""

    def may_change(self, request: web.Request) -> bool:
        """Return whether the sender of a request may change stores."""
        return self.access.knows_users or self._peer(request) == UNIX

    def check_change(self, request: web.Request) -> None:
        """Raise HTTPForbidden unless the sender of a request may change stores."""
        if not self.may_change(request):
            raise web.HTTPForbidden(
                text="Nothing can be changed here without a log-in: the page requires --passwords, "
                "or --user-header and --proxy, or a unix socket.\n"
            )

    def form(self, request: web.Request) -> str:
        """Return the token that each form on the page of a request must have."""
        known = self.login(request) is not None
        return self.logins.form(self._token(request) if known else "")

    def _cookie(self, request: web.Request) -> str:
        """Return the name of the cookie, one for each address of a page.

        Browsers send cookies to all ports of a host: with one name, pages would end each other's
        log-ins.
        """
        address = f"{_host(request).lower()}{self.access.prefix}".encode("utf-8", "replace")
        head = SECURE_COOKIE if self.access.secure else COOKIE
        return f"{head}{sha256(address).hexdigest()[:16]}"

    def _token(self, request: web.Request) -> str:
        """Return the token of our cookie, "" without one.

        Cookies of others on this host are not our concern: some releases of http.cookies fail on
        names that browsers send.
        """
        ours = self._cookie(request)
        for each in ";".join(request.headers.getall("Cookie", ())).split(";"):
            name, _, value = each.partition("=")
            if name.strip() == ours:
                return value.strip()
        return ""

    def _client(self, request: web.Request) -> str:
        """Return whose wrong passwords are counted: an IPv4 address, or a network of IPv6.

        A proxy appends the address that it sees, some with the port, which a client can choose:
        what is before it comes from the client.
        """
        peer = self._peer(request)
        if peer in self.access.proxies:
            named = ",".join(request.headers.getall("X-Forwarded-For", ()))
            peer = _WITHOUT_PORT.sub(r"\1\2", named.rpartition(",")[2].strip()) or peer
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return peer[:_USER_MAX]
        if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
            return str(ip_network((address, 64), strict=False))  # what one client has
        return str(address)

    @staticmethod
    def _peer(request: web.Request) -> str:
        """Return the address of the connection's other end; "unix" for a unix socket."""
        peer: Any = request.transport.get_extra_info("peername") if request.transport else None
        return peer[0] if isinstance(peer, tuple) else UNIX

    async def _check_origin(self, request: web.Request) -> None:
        """Raise HTTPForbidden unless the request comes from a form of the page."""
        origin = request.headers.get("Origin")
        if origin is not None:
            same = _is_origin_of(origin, _host(request))
        else:
            same = request.headers.get("Sec-Fetch-Site") == "same-origin"
        if not same:
            raise web.HTTPForbidden(
                text="This form is not of this page, or a proxy does not pass on the Host that the "
                "browser sent, with its port.\n"
            )
        form = (await _fields(request, self.bounds.form)).get("form", "")
        expected = self.form(request)
        if not (isinstance(form, str) and compare_digest(form.encode(), expected.encode())):
            raise web.HTTPForbidden(text="This form is too old: load the page again.\n")

    # -- logging in --------------------------------------------------------------------------

    def wait(self, request: web.Request) -> float:
        """Return the seconds for which a client has to wait before its next attempt, or 0."""
        return self.attempts.wait(self._client(request), self._clock())

    async def log_in(
        self, request: web.Request, user: str, password: str
    ) -> web.HTTPSeeOther | None:
        """Return the redirection to the page for the right password, else None.

        Raises BusyError.
        """
        passwords, client = self.access.passwords, self._client(request)
        if passwords is None or not await passwords.check(
            user, password, lambda: self.wait(request) <= 0
        ):
            self.attempts.failed(client, self._clock())
            return None
        self.attempts.passed(client)
        self.logins.end(self._token(request))
        response = web.HTTPSeeOther(self.target(request.query.get("to", "")))
        self._set_cookie(
            request, response, self.logins.begin(user, self._clock(), passwords.hash_of(user))
        )
        return response

    def log_out(self, request: web.Request) -> web.HTTPSeeOther:
        """End the log-in of a request; return the redirection to the log-in page."""
        self.logins.end(self._token(request))
        response = web.HTTPSeeOther(f"{self.access.prefix}/login")
        self._set_cookie(request, response, "", max_age=0)
        return response

    def _set_cookie(
        self,
        request: web.Request,
        response: web.Response,
        token: str,
        max_age: int | None = None,
    ) -> None:
        """Set the cookie; with a `max_age` of 0 the browser deletes it.

        Browsers obey that only if it has the attributes that the name's prefix demands.
        """
        response.set_cookie(
            self._cookie(request),
            token,
            max_age=max_age,
            path="/",
            httponly=True,
            samesite="Strict",
            secure=self.access.secure,
        )

    def target(self, path: str) -> str:
        """Return a path of the page to go to after the log-in; the overview for any other text."""
        prefix = self.access.prefix
        inside = path.startswith(f"{prefix}/") and path[1:2] not in {"/", "\\"}
        plain = path.isascii() and path.isprintable() and "\\" not in path
        return path if inside and plain else f"{prefix}/"


def _host(request: web.Request) -> str:
    """Return the only `Host` of a request, else "".

    `Request.host` asks name servers for this machine's name if there is none, and waits for them.
    """
    hosts = request.headers.getall("Host", ())
    return hosts[0] if len(hosts) == 1 else ""


def _is_origin_of(origin: str, host: str) -> bool:
    """Return whether an `Origin` is that of a page on a `Host`; the port may be the usual one."""
    try:
        scheme, authority, *_ = urlsplit(origin.lower())
    except ValueError:
        return False
    port = _PORTS.get(scheme, "")
    return authority.removesuffix(port) == host.lower().removesuffix(port) != ""


async def _fields(request: web.Request, seconds: float) -> Mapping[str, object]:
    """Return the fields of a form. Raises HTTPBadRequest if it can't be read in so many seconds.

    aiohttp reports what is wrong with a form by exceptions of any kind, its own assertions among
    them: a client causes those, so that they are not logged.
    """
    try:
        async with asyncio.timeout(seconds):
            fields = await request.post()
        for each in fields.values():
            if isinstance(each, str):
                each.encode()  # text with lone surrogates can't be stored or shown
    except web.HTTPException:
        raise
    except Exception:  # noqa: BLE001  # see above
        raise web.HTTPBadRequest(text="This form can't be read.\n") from None
    return fields
