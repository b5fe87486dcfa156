"""The guard in front of an application of two pages and a form."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, CookieJar, web

from smtpd_filters.errors import ConfigError
from smtpd_filters.web.guard import HEADERS, LOCAL_NAMES, Access, Guard, check_exposure
from smtpd_filters.web.logins import TRIES
from smtpd_filters.web.passwords import Hash, Passwords, Work, with_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Visit = Callable[["Visitor"], Awaitable[None]]


LITTLE = Work(2, 8, 1)


class Visitor:
    """A browser at the page; `guard` is behind it."""

    def __init__(self, session: ClientSession, base: str, guard: Guard) -> None:
        self.session = session
        self.base = base
        self.guard = guard

    async def get(self, path: str, **headers: str) -> tuple[int, str, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(
            self.base + path, headers=named, allow_redirects=False
        ) as response:
            assert HEADERS.items() <= dict(response.headers).items()
            return response.status, await response.text(), response.headers

    async def post(
        self, path: str, fields: dict[str, str], origin: str | None = "", **headers: str
    ) -> tuple[int, Any]:
        if origin is not None:
            headers["Origin"] = origin or self.base
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(
            self.base + path, data=fields, headers=named, allow_redirects=False
        ) as response:
            assert HEADERS.items() <= dict(response.headers).items()
            return response.status, response.headers

    async def log_in(self, user: str, password: str) -> tuple[int, Any]:
        _, form, _ = await self.get("/login")
        fields = {"user": user, "password": password, "form": form}
        return await self.post("/login", fields)


def application(guard: Guard) -> web.Application:
    async def page(request: web.Request) -> web.Response:
        if request.query_string == "bug":
            raise ValueError("a bug")
        login = guard.login(request)
        return web.Response(text=login.user if login else None)

    async def form(request: web.Request) -> web.Response:
        return web.Response(text=guard.form(request))

    async def log_in(request: web.Request) -> web.Response:
        if guard.wait(request):
            raise web.HTTPTooManyRequests
        fields = await request.post()
        if redirection := await guard.log_in(request, str(fields["user"]), str(fields["password"])):
            raise redirection
        raise web.HTTPForbidden

    async def log_out(request: web.Request) -> web.Response:
        raise guard.log_out(request)

    app = web.Application(middlewares=[guard.middleware])
    prefix = guard.access.prefix
    app.router.add_get(f"{prefix}/", page)
    app.router.add_get(f"{prefix}/form", form)
    app.router.add_post(f"{prefix}/form", form)
    app.router.add_get(f"{prefix}/login", form)
    app.router.add_post(f"{prefix}/login", log_in)
    app.router.add_post(f"{prefix}/logout", log_out)
    return app


async def running(access: Access, visiting: Visit) -> None:
    guard = Guard(access)
    runner = web.AppRunner(application(guard))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
            base = f"http://127.0.0.1:{port}{access.prefix}"
            await visiting(Visitor(session, base, guard))
    finally:
        await runner.cleanup()


def visit(access: Access, visiting: Visit) -> None:
    asyncio.run(running(access, visiting))


def users(**known: str) -> Passwords:
    return Passwords({user: Hash.of(password, LITTLE) for user, password in known.items()})


def test_without_passwords_everybody_here_reads() -> None:
    async def visiting(visitor: Visitor) -> None:
        assert (await visitor.get("/"))[:2] == (200, "")
        assert (await visitor.get("/none"))[0] == 404
        status, text, _ = await visitor.get("/?bug")
        assert (status, "bug" in text) == (500, False)

    visit(Access(), visiting)


def test_a_password_is_asked_for() -> None:
    async def visiting(visitor: Visitor) -> None:
        status, _, headers = await visitor.get("/form?a=b")
        assert (status, headers["Location"]) == (303, "/login?to=/form?a%3Db")
        assert (await visitor.post("/form", {}))[0] == 403
        assert (await visitor.log_in("ann", "wrong"))[0] == 403
        status, headers = await visitor.log_in("ann", "wonder")
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
        assert (await visitor.get("/"))[:2] == (200, "ann")
        _, form, _ = await visitor.get("/form")
        assert (await visitor.post("/logout", {"form": form}))[0] == 303
        assert (await visitor.get("/"))[0] == 303

    visit(Access(passwords=users(ann="wonder")), visiting)


def test_a_log_in_ends_with_the_next_one() -> None:
    async def visiting(visitor: Visitor) -> None:
        await visitor.log_in("ann", "wonder")
        [first] = visitor.session.cookie_jar
        await visitor.log_in("ann", "wonder")
        assert (await visitor.get("/"))[:2] == (200, "ann")
        visitor.session.cookie_jar.clear()
        assert (await visitor.get("/", Cookie=f"{first.key}={first.value}"))[0] == 303

    visit(Access(passwords=users(ann="wonder")), visiting)


def test_two_pages_on_one_host_keep_their_log_ins() -> None:
    async def visiting(visitor: Visitor) -> None:
        async def visiting_another(other: Visitor) -> None:
            # A browser has one jar, and sends a cookie to every port of a host.
            both = Visitor(visitor.session, other.base, other.guard)
            await visitor.log_in("ann", "wonder")
            await both.log_in("bob", "builder")
            assert (await both.get("/"))[:2] == (200, "bob")
            assert (await visitor.get("/"))[:2] == (200, "ann")

        for prefix in ("", "/other"):
            access = Access(passwords=users(bob="builder"), prefix=prefix)
            await running(access, visiting_another)

    visit(Access(passwords=users(ann="wonder")), visiting)


def test_pages_below_paths_of_one_host_keep_their_log_ins() -> None:
    async def visiting(visitor: Visitor) -> None:
        host = {"Host": "mail.example"}
        _, form, _ = await visitor.get("/login", **host)
        fields = {"user": "ann", "password": "wonder", "form": form}
        _, headers = await visitor.post("/login", fields, "https://mail.example", **host)
        names.add(headers["Set-Cookie"].partition("=")[0])

    names: set[str] = set()
    for prefix in ("", "/one", "/two"):
        visit(Access(passwords=users(ann="wonder"), prefix=prefix), visiting)
    assert len(names) == 3


def test_with_tls_the_cookie_is_for_this_host_and_tls_only() -> None:
    async def visiting(visitor: Visitor) -> None:
        _, headers = await visitor.log_in("ann", "wonder")
        _, form, _ = await visitor.get("/form", Cookie=headers["Set-Cookie"].partition(";")[0])
        _, gone = await visitor.post(
            "/logout", {"form": form}, Cookie=headers["Set-Cookie"].partition(";")[0]
        )
        for each in (headers, gone):
            name, _, rest = each["Set-Cookie"].partition("=")
            assert name.startswith("__Host-")
            assert "; secure" in rest.lower()
            assert "; path=/" in rest.lower()
        assert "; max-age=0" in gone["Set-Cookie"].lower()

    visit(Access(passwords=users(ann="wonder"), secure=True), visiting)


def test_a_log_in_expires() -> None:
    async def visiting(visitor: Visitor) -> None:
        await visitor.log_in("ann", "wonder")
        now = visitor.guard._clock()
        visitor.guard._clock = lambda: now + 13 * 3600
        assert (await visitor.get("/"))[0] == 303

    visit(Access(passwords=users(ann="wonder")), visiting)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux has this clock")
def test_a_log_in_expires_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock stands still meanwhile."""
    real = time.clock_gettime
    suspended = [0.0]

    def clock_gettime(clock: int) -> float:
        return real(clock) + (suspended[0] if clock == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)

    async def visiting(visitor: Visitor) -> None:
        await visitor.log_in("ann", "wonder")
        assert (await visitor.get("/"))[0] == 200
        suspended[0] = 3600.0
        assert (await visitor.get("/"))[0] == 303

    visit(Access(passwords=users(ann="wonder")), visiting)


def test_log_ins_end_if_the_user_is_removed_or_changed(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    for user in ("ann", "bob"):
        with_user(path, user, "wonder", LITTLE)
    passwords = Passwords.read(path)

    def remove_all() -> None:
        Path(path).write_text("# nobody\n")

    async def visiting(visitor: Visitor) -> None:
        await visitor.log_in("ann", "wonder")
        with_user(path, "bob", "builder", LITTLE)
        assert passwords.reload() == 2
        assert (await visitor.get("/"))[:2] == (200, "ann")
        with_user(path, "ann", "other", LITTLE)
        assert (await visitor.get("/"))[:2] == (200, "ann")
        passwords.reload()
        assert (await visitor.get("/"))[0] == 303
        assert len(visitor.guard.logins) == 0
        assert (await visitor.log_in("ann", "wonder"))[0] == 403
        assert (await visitor.log_in("ann", "other"))[0] == 303
        remove_all()
        assert passwords.reload() == 0
        assert (await visitor.get("/"))[0] == 303
        assert (await visitor.log_in("bob", "builder"))[0] == 403

    visit(Access(passwords=passwords), visiting)


def test_a_password_that_is_changed_during_the_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, changed, fits = str(tmp_path / "users"), threading.Event(), Hash.fits
    with_user(path, "ann", "wonder", LITTLE)

    def fits_after_the_change(hashed: Hash, password: str) -> bool:
        return changed.wait(60) and fits(hashed, password)

    monkeypatch.setattr(Hash, "fits", fits_after_the_change)

    async def log_in() -> bool:
        passwords = Passwords.read(path)
        checking = asyncio.create_task(passwords.check("ann", "wonder"))
        await asyncio.sleep(0)  # it has the hash
        with_user(path, "ann", "other", LITTLE)
        passwords.reload()
        changed.set()
        return await checking

    assert not asyncio.run(log_in())


def test_wrong_passwords_have_to_wait() -> None:
    async def visiting(visitor: Visitor) -> None:
        for _ in range(TRIES):
            assert (await visitor.log_in("ann", "wrong"))[0] == 403
        assert (await visitor.log_in("ann", "wonder"))[0] == 429

    visit(Access(passwords=users(ann="wonder")), visiting)


def test_forms_of_others() -> None:
    async def visiting(visitor: Visitor) -> None:
        _, form, _ = await visitor.get("/form")
        assert (await visitor.post("/form", {"form": form}))[0] == 200
        for origin in ("http://evil.example", "null", "http://127.0.0.1", None):
            assert (await visitor.post("/form", {"form": form}, origin))[0] == 403
        assert (await visitor.post("/form", {"form": form}, None, Sec_Fetch_Site="cross-site"))[
            0
        ] == 403
        same = {"Sec_Fetch_Site": "same-origin"}
        assert (await visitor.post("/form", {"form": form}, None, **same))[0] == 200
        for wrong in ({}, {"form": "x"}, {"form": "ä"}, {"form": form + "0"}):
            assert (await visitor.post("/form", wrong))[0] == 403

    visit(Access(), visiting)


async def answer(visitor: Visitor, request: bytes) -> bytes:
    """Return the first line of the answer to a request as it stands."""
    host, _, port = visitor.base.partition("//")[2].partition("/")[0].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await reader.readline()
    finally:
        writer.close()


MULTIPART = "multipart/form-data; boundary=a"


@pytest.mark.parametrize(
    ("kind", "body", "encoding"),
    [
        ("application/x-www-form-urlencoded", b"form=\xff", ""),
        ("application/x-www-form-urlencoded; charset=none", b"form=x", ""),
        ("application/x-www-form-urlencoded; charset=zlib", b"form=x", ""),
        ("application/x-www-form-urlencoded; charset=unicode_escape", b"form=\\ud800", ""),
        ("application/x-www-form-urlencoded", b"form=x", "gzip"),
        ("multipart/form-data", b"form=x", ""),
        (MULTIPART, b"x", ""),
        (MULTIPART, b"--a\r\n\r\nx\r\n--a--\r\n", ""),
        (MULTIPART, b"--a\r\n" + b"X: y\r\n" * 5000 + b"\r\nx\r\n--a--\r\n", ""),
        (MULTIPART, (b"--a\r\nContent-Disposition: form-data; name=form\r\n"
         b"Content-Type: text/plain; charset=none\r\n\r\nx\r\n--a--\r\n"), ""),
        (MULTIPART, (b"--a\r\nContent-Disposition: form-data; name=form\r\n"
         b"Content-Transfer-Encoding: none\r\n\r\nx\r\n--a--\r\n"), ""),
    ],
)  # fmt: skip
def test_forms_that_are_none(
    kind: str, body: bytes, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def visiting(visitor: Visitor) -> None:
        host = visitor.base.partition("//")[2]
        request = (
            f"POST /form HTTP/1.1\r\nHost: {host}\r\nOrigin: {visitor.base}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        )
        request += f"Content-Encoding: {encoding}\r\n" if encoding else ""
        status = (await answer(visitor, request.encode() + b"\r\n" + body)).split()[1]
        assert status == b"400"

    visit(Access(), visiting)
    assert not [each for each in caplog.records if each.name.startswith("smtpd_filters")]


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://mail.example", "mail.example", 200),
        ("https://mail.example", "mail.example:443", 200),
        ("https://mail.example:443", "MAIL.example", 200),
        ("http://mail.example", "mail.example:80", 200),
        ("https://[2001:db8::1]", "[2001:db8::1]:443", 200),
        ("https://mail.example", "mail.example:80", 403),
        ("http://mail.example", "mail.example:443", 403),
        ("https://mail.example:8443", "mail.example", 403),
        ("https://mail.example", "mail.example:4430", 403),
        ("https://:443", ":443", 403),
        ("https://evil.example", "mail.example", 403),
    ],
)
def test_a_proxy_may_write_the_usual_port(origin: str, host: str, status: int) -> None:
    async def visiting(visitor: Visitor) -> None:
        _, form, _ = await visitor.get("/form", Host=host)
        assert (await visitor.post("/form", {"form": form}, origin, Host=host))[0] == status

    visit(Access(), visiting)


def test_origins_that_are_none() -> None:
    async def visiting(visitor: Visitor) -> None:
        _, form, _ = await visitor.get("/form")
        for origin in ("http://[", "http://x@[::1", "http://", "x"):
            assert (await visitor.post("/form", {"form": form}, origin))[0] == 403

    visit(Access(), visiting)


def test_cookies_of_others_on_this_host() -> None:
    async def visiting(visitor: Visitor) -> None:
        await visitor.log_in("ann", "wonder")
        [ours] = visitor.session.cookie_jar
        visitor.session.cookie_jar.clear()
        for other in ("a@b=1", "{}=1", "a,b=1", '"', "=", "smtpd-filters2=x"):
            cookie = f"{other}; {ours.key}={ours.value}; {other}"
            assert (await visitor.get("/", Cookie=cookie))[:2] == (200, "ann")
            assert (await visitor.get("/", Cookie=other))[0] == 303

    visit(Access(passwords=users(ann="wonder")), visiting)


def test_a_request_without_a_name_asks_nobody_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("a name server was asked")

    monkeypatch.setattr("socket.getfqdn", ask)

    async def visiting(visitor: Visitor) -> None:
        assert b" 421 " in await answer(visitor, b"GET / HTTP/1.0\r\n\r\n")

    visit(Access(hosts=LOCAL_NAMES), visiting)


def test_who_has_to_wait_behind_a_proxy() -> None:
    async def visiting(visitor: Visitor) -> None:
        async def log_in(password: str, forwarded: str) -> int:
            _, form, _ = await visitor.get("/login")
            fields = {"user": "ann", "password": password, "form": form}
            return (await visitor.post("/login", fields, "", X_Forwarded_For=forwarded))[0]

        # What the client itself writes is in front of the address that the proxy saw.
        for at in range(TRIES):
            assert await log_in("wrong", f"192.0.2.{at}, 203.0.113.1") == 403
            assert await log_in("wrong", f"2001:db8::{at}") == 403
            assert await log_in("wrong", f"198.51.100.7:{5000 + at}") == 403  # with its port
            assert await log_in("wrong", f"[2001:db8:1::{at}]:{5000 + at}") == 403
        assert await log_in("wonder", "198.51.100.7:25") == 429
        assert await log_in("wonder", "2001:db8:1::1") == 429
        assert await log_in("wonder", "203.0.113.1") == 429
        assert await log_in("wonder", "2001:db8::ffff:1") == 429
        assert await log_in("wonder", "203.0.113.2") == 303

    visit(Access(passwords=users(ann="wonder"), proxies={"127.0.0.1"}), visiting)

    async def from_elsewhere(visitor: Visitor) -> None:
        for at in range(TRIES):
            _, form, _ = await visitor.get("/login")
            fields = {"user": "ann", "password": "wrong", "form": form}
            more = {"X_Forwarded_For": f"192.0.2.{at}"}
            assert (await visitor.post("/login", fields, "", **more))[0] == 403
        assert (await visitor.log_in("ann", "wonder"))[0] == 429

    visit(Access(passwords=users(ann="wonder")), from_elsewhere)


def test_names_of_others() -> None:
    async def visiting(visitor: Visitor) -> None:
        assert (await visitor.get("/"))[0] == 200
        for host in ("localhost", "LOCALHOST:99", "[::1]:8025"):
            assert (await visitor.get("/", Host=host))[0] == 200
        for host in ("evil.example", "evil.example:8025", "127.0.0.1.evil.example", "::1"):
            assert (await visitor.get("/", Host=host))[0] == 421

    visit(Access(hosts=LOCAL_NAMES), visiting)


def test_the_user_that_a_proxy_names() -> None:
    named = {"X_Remote_User": "ann"}

    async def visiting(visitor: Visitor) -> None:
        assert (await visitor.get("/", **named))[:2] == (200, "ann")
        assert (await visitor.get("/", x_remote_user="ann"))[:2] == (200, "ann")
        assert (await visitor.get("/"))[0] == 403
        assert (await visitor.get("/", X_Remote_User=""))[0] == 403

    visit(Access(user_header="X-Remote-User", proxies={"127.0.0.1"}), visiting)

    async def from_elsewhere(visitor: Visitor) -> None:
        assert (await visitor.get("/", **named))[0] == 403

    visit(Access(user_header="X-Remote-User", proxies={"192.0.2.1"}), from_elsewhere)


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Remote-User: ann\r\nX-Remote-User: bob",  # of a client, and what its proxy adds
        b"X-Remote-User: ann\r\nx-remote-user: bob",
        b"X-Remote-User: ann\r\nX-Remote-User:",
        b"X_Remote_User: ann",
    ],
)
def test_a_user_that_two_name_is_nobody(fields: bytes) -> None:
    async def visiting(visitor: Visitor) -> None:
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n\r\n"
        assert b" 403 " in await answer(visitor, request)

    visit(Access(user_header="X-Remote-User", proxies={"127.0.0.1"}), visiting)


def test_a_page_below_a_path() -> None:
    async def visiting(visitor: Visitor) -> None:
        status, _, headers = await visitor.get("/")
        assert (status, headers["Location"]) == (303, "/mail/login?to=/mail/")
        status, headers = await visitor.log_in("ann", "wonder")
        assert (status, headers["Location"]) == (303, "/mail/")
        assert (await visitor.get("/"))[:2] == (200, "ann")

    visit(Access(passwords=users(ann="wonder"), prefix="/mail"), visiting)


@pytest.mark.parametrize(
    "path",
    ["//evil.example", "/\\evil.example", "https://evil.example/", "", "x", "/a\r\nb: c", "/ä",
     "/x\\y", "\t//x"],
)  # fmt: skip
def test_no_redirection_to_others(path: str) -> None:
    assert Guard(Access()).target(path) == "/"


def test_a_redirection_to_a_page_of_ours() -> None:
    assert Guard(Access()).target("/story/1?x=y") == "/story/1?x=y"
    assert Guard(Access(prefix="/mail")).target("/mail/story") == "/mail/story"
    assert Guard(Access(prefix="/mail")).target("/other") == "/mail/"


def test_it_refuses_to_be_open() -> None:
    check_exposure(["127.0.0.1", "::1", "/run/web.sock"], Access())
    check_exposure(["192.0.2.1"], Access(passwords=users(ann="wonder")))
    check_exposure(["192.0.2.1"], Access(user_header="X-User", proxies={"192.0.2.2"}))
    for address in ("192.0.2.1", "0.0.0.0", "::"):  # noqa: S104  # refused
        with pytest.raises(ConfigError, match="anybody could read the page"):
            check_exposure([address], Access())
    with pytest.raises(ConfigError):
        check_exposure(["192.0.2.1"], Access(user_header="X-User"))
