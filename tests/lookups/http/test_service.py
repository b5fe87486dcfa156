from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import (
    PROCEED,
    ConfigError,
    Decision,
    Filter,
    Needs,
    Reject,
    Session,
    Settings,
    UnavailableError,
)
from smtpd_filters.lookups.http import Service
from smtpd_filters.testing import Conversation
from smtpd_filters.testing.http import BEHAVIOURS, Answer, HTTPStub
from tests.effort import brief

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK = {"verdict": "ok"}
NO = {"verdict": "no"}
#: Seconds for what is not to time out; the machine may be busy.
PATIENCE = 60
TOKEN = "t"  # noqa: S105  # of a stub


class Asks(Filter):
    """Refuses the greetings that a service says no to."""

    on_error = "tempfail"
    service = Service.setting()

    async def ehlo(self, session: Session, identity: str) -> Decision:
        answer = await self.service.ask({"name": identity, "of": session.address}, path=("greet",))
        # A change of it may not reach the cache.
        return PROCEED if answer.pop("verdict") == "ok" else Reject("550 5.7.1 No")


class Also(Asks):
    """Another filter."""


class Reads(Asks):
    """The same with a function for answers."""

    async def ehlo(self, _session: Session, identity: str) -> Decision:
        ok = await self.service.ask(identity, lambda answer: bool(answer["ok"]))
        return PROCEED if ok else Reject("550 5.7.1 No")


@pytest.fixture
def stub() -> Iterator[HTTPStub]:
    with HTTPStub(OK) as server:
        yield server


def greet(smtpd: Conversation, name: str = "mail.example.com") -> str:
    return smtpd.connect().ehlo(name).reply


def test_a_question_and_its_answer(stub: HTTPStub) -> None:
    with Conversation(Asks, "--service", f"{stub.url}/v1") as smtpd:
        assert greet(smtpd) == ""
        stub.answer = NO
        assert greet(smtpd, "other.example.com") == "550 5.7.1 No"
    request = stub.requests[0]
    assert (request.method, request.path) == ("POST", "/v1/greet")
    assert request.body == b'{"name": "mail.example.com", "of": "192.0.2.1"}'
    assert request.get("Content-Type") == "application/json"
    assert request.get("Authorization") is None


class Gets(Filter):
    """Refuses recipients whose mailboxes are full."""

    on_error = "tempfail"
    service = Service.setting()

    async def rcpt_to(self, _session: Session, address: str) -> Decision:
        full = await self.service.get("quota", address, read=lambda answer: bool(answer["full"]))
        return Reject("452 4.2.2 Full") if full else PROCEED


#: Addresses of clients, and the path that asks about them.
ADDRESSES = {
    "bob@example.org": "/v1/quota/bob@example.org",
    '"x HTTP/1.0 "@example.org': "/v1/quota/%22x%20HTTP%2F1.0%20%22@example.org",
    '"a\tb"@x': "/v1/quota/%22a%09b%22@x",
    "\udcff@example.org": "/v1/quota/%FF@example.org",
    "\u00fc\u2028@example.org": "/v1/quota/%C3%BC%E2%80%A8@example.org",
    "\x01\x7f@example.org": "/v1/quota/%01%7F@example.org",
    "..@example.org": "/v1/quota/..@example.org",
    "a%2e+b=c&d@example.org": "/v1/quota/a%252e%2Bb%3Dc%26d@example.org",
    "x?y#z@[::1]": "/v1/quota/x%3Fy%23z@%5B::1%5D",
    "a/b\\c@example.org": "/v1/quota/a%2Fb%5Cc@example.org",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_in_a_path_is_asked_about_as_it_is(stub: HTTPStub, address: str) -> None:
    stub.answer = {"full": True}
    with Conversation(Gets, "--service", f"{stub.url}/v1/") as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.com")
        client.mail_from("a@example.net")
        assert client.rcpt_to(address).reply == "452 4.2.2 Full"
        assert client.rcpt_to(address).reply == "452 4.2.2 Full"
    [request] = stub.requests
    line, *fields = request.head.decode().split("\r\n")
    assert line == f"GET {ADDRESSES[address]} HTTP/1.1"
    assert sorted(field.partition(":")[0] for field in fields) == ["Accept", "Host"]
    assert request.body == b""


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        *((address, "a segment of the path is empty or dots") for address in (
            "../x@y", "a/./b", "a//b@c", "/a", "a/", "..", ".", "a\\..\\b",
        )),
        *((address, "a segment of the path has a semicolon or a NUL") for address in (
            "..;/x@y", "a/..;b/c", ";", "boss@example.org;@example.net", "b\0@x",
        )),
    ],
)  # fmt: skip
def test_a_path_that_a_server_could_misread_is_not_sent(
    stub: HTTPStub, address: str, cause: str
) -> None:
    with Conversation(Gets, "--service", stub.url) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.com")
        client.mail_from("a@example.net")
        assert client.rcpt_to(address).reply.startswith("451 4.3.0 ")
        assert f"not asked: {cause}" in smtpd.log[0]
    assert not stub.requests


class GetsLong(Filter):
    """Asks about the names of clients, which a filter may lengthen."""

    on_error = "tempfail"
    service = Service.setting()

    async def helo(self, _session: Session, name: str) -> Decision:
        await self.service.get("names", name * 100, read=bool)
        return PROCEED


@pytest.mark.parametrize("name", ["x" * 81, "\u00fc" * 20])
def test_a_long_path_is_not_sent(stub: HTTPStub, name: str) -> None:
    with Conversation(GetsLong, "--service", stub.url) as smtpd:
        assert smtpd.connect().helo(name).reply.startswith("451 4.3.0 ")
        assert "not asked: more than 8000 bytes of path and query" in smtpd.log[0]
    assert not stub.requests


def test_paths_and_queries(stub: HTTPStub) -> None:
    import asyncio

    stub.answer = {"ok": 1}

    async def work() -> None:
        service = Service(
            [stub.url], timeout=PATIENCE, deadline=PATIENCE, keep=9, connections=1, token=TOKEN
        )
        for _ in range(2):
            assert await service.get() == {"ok": 1}
            assert await service.get(query={"a": "b c+\udcff&", "d": ""}) == {"ok": 1}
            assert await service.get("x", query={"a": "@"}, read=lambda found: found["ok"]) == 1
            assert await service.ask("q", path=("x", "y z")) == {"ok": 1}
        with pytest.raises(UnavailableError):
            await service.ask("q", path=("",))
        wrong: Any = "/x"
        with pytest.raises(TypeError, match="expected a tuple of segments, not '/x'"):
            await service.ask("q", path=wrong)
        for query in ({"x": "\ud800"}, {"x" * 8000: ""}, {"x": "\u00fc" * 2000}):
            with pytest.raises(UnavailableError, match="not asked: "):
                await service.get("y", query=query)
        with pytest.raises(UnavailableError, match="not asked: a lone surrogate"):
            await service.get("\ud800")
        with pytest.raises(UnavailableError, match="not asked: "):
            await service.ask("q", path=("x;y",))
        for number in range(200):
            await service.get(str(number))
        assert len(service._client.hosts[0]._urls) < 100
        await service.aclose()

    asyncio.run(work())
    assert [(each.method, each.path) for each in list(stub.requests)[:4]] == [
        ("GET", "/"),
        ("GET", "/?a=b%20c%2B%FF%26&d="),
        ("GET", "/x?a=@"),
        ("POST", "/x/y%20z"),
    ]
    assert {each.get("Authorization") for each in stub.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS.keys() - {"trickle"}))
def test_a_get_succeeds_or_fails_as_a_post_does(
    stub: HTTPStub, behaviour: str, *, kept: bool
) -> None:
    import asyncio

    async def work(method: str) -> list[str]:
        timeout = brief(0.9)
        service = Service([stub.url], timeout=timeout, deadline=3 * timeout, connections=2)
        stub.answer = OK
        results = []
        for number in range(4 if kept else 3):
            if not kept or number == 1:
                stub.answer = Answer.of(OK, behaviour=behaviour)
            if number == 3:
                stub.answer = OK
            try:
                answer = await (service.get("x") if method == "get" else service.ask("x"))
            except UnavailableError as error:
                answer = str(error)
            results.append(str(answer))
        await service.aclose()
        return results

    assert asyncio.run(work("get")) == asyncio.run(work("ask"))


def test_what_a_service_does_not_know(stub: HTTPStub) -> None:
    import asyncio

    async def work() -> None:
        service = Service([stub.url], timeout=PATIENCE, deadline=PATIENCE, keep=9, connections=1)
        stub.answer = Answer(b"no such mailbox", status=404)
        for _ in range(2):
            assert await service.get("x", missing=None) is None
            assert await service.get("x", read=lambda found: found["full"], missing=False) is False
        assert len(stub.requests) == 1
        with pytest.raises(UnavailableError, match="status 404"):
            await service.get("x")
        stub.answer = {"full": True}
        assert await service.get("x", read=lambda found: bool(found["full"])) is True
        # The newer answer is the one that is kept.
        assert await service.get("x", missing=None) == {"full": True}
        assert len(stub.requests) == 3
        stub.answer = Answer(b"", status=410)
        with pytest.raises(UnavailableError, match="status 410"):
            await service.get("y", missing=None)
        await service.aclose()

    asyncio.run(work())


def test_a_service_that_is_asked_by_get_fails_over(stub: HTTPStub) -> None:
    stub.answer = {"full": True}
    with HTTPStub(Answer.of({}, behaviour="garbage")) as broken:
        flags = ("--service", broken.url, "--service", stub.url)
        with Conversation(Gets, *flags) as smtpd:
            client = smtpd.connect()
            client.ehlo("mail.example.com")
            client.mail_from("a@example.net")
            assert client.rcpt_to("b@example.org").refused
            assert smtpd.log[0].startswith(f"gets server failed server={broken.url} ")


class Tells(Filter):
    """Tells a service of each greeting."""

    on_error = "tempfail"
    hook = Service.setting("hook")

    async def ehlo(self, _session: Session, identity: str) -> Decision:
        await self.hook.tell({"name": identity}, path=("greeted",))
        return PROCEED


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"", status=204),
        Answer(b"ok", content_type="text/plain"),
        Answer(b"x" * 100_000, status=202),
        Answer(b"x" * 100, behaviour="stall"),
    ],
)
def test_a_notice_is_taken_whatever_the_reply_has(stub: HTTPStub, answer: Answer) -> None:
    stub.answer = answer
    with Conversation(Tells, "--hook", f"{stub.url}/v1", "--hook-timeout", f"{PATIENCE}s") as smtpd:
        for _ in range(2):  # not kept
            assert greet(smtpd) == ""
    [first, second] = stub.requests
    assert (first.method, first.path) == ("POST", "/v1/greeted")
    assert first.body == second.body == b'{"name": "mail.example.com"}'
    assert first.get("Content-Type") == "application/json"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(b"", status=302), "status 302"),
        (Answer(b"", status=500), "status 500"),
        (Answer(b"", behaviour="drop"), "timeout"),
    ],
)
def test_a_notice_that_is_not_taken(stub: HTTPStub, answer: Answer, cause: str) -> None:
    with HTTPStub(answer) as broken:
        flags = ("--hook", broken.url, "--hook-timeout", f"{brief(0.9)}s")
        with Conversation(Tells, *flags) as smtpd:
            assert greet(smtpd).startswith("451 4.3.0 ")
            assert cause in smtpd.log[0]
        with Conversation(Tells, *flags, "--hook", stub.url) as smtpd:
            assert greet(smtpd) == ""
    assert len(stub.requests) == 1


def test_answers_are_kept_and_expire(stub: HTTPStub) -> None:
    with Conversation(Asks, "--service", stub.url, "--service-keep", "1m") as smtpd:
        assert [greet(smtpd) for _ in range(3)] == ["", "", ""]
        assert len(stub.requests) == 1
        stub.answer = NO
        smtpd.advance(61)
        assert greet(smtpd) == "550 5.7.1 No"


def test_answers_are_not_kept(stub: HTTPStub) -> None:
    with Conversation(Asks, "--service", stub.url, "--service-keep", "0") as smtpd:
        assert [greet(smtpd) for _ in range(3)] == ["", "", ""]
    assert len(stub.requests) == 3


def test_filters_of_a_chain_share_the_answers(stub: HTTPStub) -> None:
    flags = ("--service", stub.url)
    with Conversation([(Asks, *flags), (Also, *flags)]) as smtpd:
        greet(smtpd)
        greet(smtpd)
        first, second = smtpd.filters
        assert isinstance(first, Asks)
        assert isinstance(second, Asks)
        assert first.service is second.service
    # Those of the first greeting were on the way at the same time.
    assert len(stub.requests) <= 2
    with Conversation([(Asks, *flags), (Also, *flags, "--service-keep", "1h")]) as smtpd:
        first, second = smtpd.filters
        assert isinstance(first, Asks)
        assert isinstance(second, Asks)
        assert first.service is not second.service


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(b"{", status=200), "invalid JSON"),
        (Answer(b"[" * 60_000), "invalid JSON"),
        (Answer(b"9" * 60_000), "invalid JSON"),
        (Answer(b"\xff"), "invalid JSON"),
        (Answer(b'{"ok": NaN}'), "invalid JSON"),
        (Answer(b'{"ok": -Infinity}'), "invalid JSON"),
        (Answer('{"ok": true}'.encode("utf-16")), "invalid JSON"),
        (Answer(b'"\xed\xa0\x80"'), "invalid JSON"),
        (Answer(b""), "invalid JSON"),
        (Answer(b'"' + b"x" * (64 << 10) + b'"'), "oversized reply"),
        (Answer(b"{}", status=404), "status 404"),
        (Answer.of(OK, behaviour="garbage"), "invalid HTTP response"),
        (Answer.of(OK, behaviour="drop"), "timeout"),
        (Answer(b"null"), "unusable answer"),
        (Answer(b"[]"), "unusable answer"),
        (Answer(b"{}"), "unusable answer"),
    ],
)
def test_a_failure_is_left_to_on_error(stub: HTTPStub, answer: Answer, cause: str) -> None:
    stub.answer = answer
    flags = ("--service", stub.url, "--service-timeout", f"{brief(0.6)}s")
    with Conversation(Reads, *flags) as smtpd:
        assert greet(smtpd).startswith("451 4.3.0 ")
        assert cause in smtpd.log[0]
        stub.answer = Answer(b'{"ok": true}')
        # A failure isn't kept.
        assert greet(smtpd) == ""
    stub.answer = answer
    with Conversation(Reads, *flags, "--on-error", "proceed") as smtpd:
        assert greet(smtpd) == ""


def test_a_mark_of_the_byte_order_is_ignored(stub: HTTPStub) -> None:
    stub.answer = Answer(b'\xef\xbb\xbf{"ok": false}')
    with Conversation(Reads, "--service", stub.url) as smtpd:
        assert greet(smtpd) == "550 5.7.1 No"


@pytest.mark.parametrize("kept", [True, False])
def test_a_number_or_a_depth_that_a_function_cannot_use(stub: HTTPStub, *, kept: bool) -> None:
    import asyncio

    def overflow(answer: Any) -> int:
        return int(answer["ok"])

    def recursion(_answer: Any) -> int:
        raise RecursionError

    async def work() -> None:
        service = Service([stub.url], timeout=PATIENCE, deadline=PATIENCE, keep=9, connections=1)
        for read in (overflow, recursion):
            if kept:
                await service.get("x")
            with pytest.raises(UnavailableError, match="unusable answer"):
                await service.get("x", read=read)
        await service.aclose()

    stub.answer = Answer(b'{"ok": 1e999}')
    asyncio.run(work())


def test_answers_that_arrive_together_are_parsed_at_the_pace_of_look_ups(stub: HTTPStub) -> None:
    import asyncio

    from smtpd_filters.runtime.pace import pace

    admitted = []

    async def work() -> None:
        budget = pace()
        admit = budget.admit

        async def record(work: int) -> None:
            admitted.append(work)
            await admit(work)

        budget.admit = record  # type: ignore[method-assign]
        service = Service([stub.url], timeout=PATIENCE, deadline=PATIENCE, keep=9, connections=8)
        for name in ("x", "x", "y"):
            await service.get(name)
        await service.aclose()

    stub.answer = Answer(b"[" + b"1," * 2000 + b"1]")
    asyncio.run(work())
    # Parsing this takes 200 microseconds, also if it was kept.
    assert [work for work in admitted if work >= 200] == [200] * 3


def test_the_next_server_is_asked(stub: HTTPStub) -> None:
    with HTTPStub({}) as broken:
        with Conversation(Reads, "--service", broken.url, "--service", stub.url) as smtpd:
            stub.answer = Answer(b'{"ok": false}')
            assert greet(smtpd) == "550 5.7.1 No"
        assert len(broken.requests) == 1


def test_a_server_that_fails_is_logged_once_and_when_it_answers_again(stub: HTTPStub) -> None:
    stub.answer = {"ok": True}
    with HTTPStub(Answer(b"", status=500)) as broken:
        flags = ("--service", broken.url, "--service", stub.url, "--service-keep", "0")
        with Conversation(Reads, *flags) as smtpd:
            for _ in range(5):
                assert greet(smtpd) == ""
            # It is alive, so it is asked first each time.
            assert len(broken.requests) == 5
            assert smtpd.log == [f'reads server failed server={broken.url} cause="status 500"']
            broken.answer = {"ok": True}
            assert [greet(smtpd) for _ in range(3)] == [""] * 3
            assert smtpd.log[1:] == [f"reads answers again server={broken.url}"]
            broken.answer = {}
            assert [greet(smtpd) for _ in range(3)] == [""] * 3
            assert len(smtpd.log) == 2  # once a minute


def test_a_dead_server_is_passed_over(stub: HTTPStub) -> None:
    stub.answer = {"ok": True}
    with HTTPStub(Answer.of({"ok": True}, behaviour="cut")) as broken:
        flags = ("--service", broken.url, "--service", stub.url, "--service-keep", "0")
        with Conversation(Reads, *flags) as smtpd:
            for _ in range(5):
                assert greet(smtpd) == ""
            assert len(broken.requests) == 3
            assert len(smtpd.log) == 1


def test_a_token(stub: HTTPStub, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    with Conversation(Asks, "--service", stub.url, "--service-token-file", str(file)) as smtpd:
        greet(smtpd)
    assert stub.requests[0].get("Authorization") == "Bearer s3cret"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ((), "--service is required"),
        (("--service", "ftp://x"), "--service: expected http://HOST:PORT, https://HOST or"),
        (("--service", "http://x:99999"), "--service: the port must be 1 to 65535: 'http://x:99999'"),
        (("--service", "http://x", "--service-token-file", "FOLDER/missing"),
         "--service-token-file: FOLDER/missing: No such file"),
    ],
)  # fmt: skip
def test_a_wrong_flag(flags: tuple[str, ...], error: str, tmp_path: Path) -> None:
    *words, error = (text.replace("FOLDER", str(tmp_path)) for text in (*flags, error))
    with pytest.raises(ConfigError, match=re.escape(error)):
        Conversation(Asks, *words)


def test_two_services_have_flags_of_their_own(stub: HTTPStub) -> None:
    class Both(Asks):
        """Asks two services."""

        other = Service.setting("second", keep=5)

        async def ehlo(self, _session: Session, identity: str) -> Decision:
            await self.service.ask(identity)
            await self.other.ask(identity)
            return PROCEED

    with HTTPStub(OK) as second:
        with Conversation(Both, "--service", stub.url, "--second", second.url) as smtpd:
            greet(smtpd)
            assert vars(smtpd.filters[0].settings)["second_keep"] == 5
        assert (len(stub.requests), len(second.requests)) == (1, 1)


class May(Filter):
    """Asks a service if there is one."""

    service = Service.setting(required=False)

    async def ehlo(self, _session: Session, identity: str) -> Decision:
        if self.service is not None and not await self.service.ask(identity):
            return Reject("550 5.7.1 No")
        return PROCEED


def test_a_service_that_may_be_left_out(stub: HTTPStub) -> None:
    with Conversation(May) as smtpd:
        assert greet(smtpd) == ""
        assert list(smtpd.filters[0].all_probes()) == []
        smtpd.filters[0].declare(Needs())
    with Conversation(May, "--service", stub.url) as smtpd:
        stub.answer = {}
        assert greet(smtpd) == "550 5.7.1 No"
    with pytest.raises(ConfigError, match="--service-token-file requires --service"):
        Conversation(May, "--service-token-file", "/etc/token")


def test_a_question_that_json_cannot_express(stub: HTTPStub) -> None:
    class Wrong(Asks):
        """Asks nonsense."""

        async def ehlo(self, _session: Session, identity: str) -> Decision:
            await self.service.ask({"bytes": b"x", "name": identity})
            return PROCEED

    with Conversation(Wrong, "--service", stub.url, errors=True) as smtpd:
        assert greet(smtpd).startswith("451 ")
        assert "TypeError" in smtpd.errors[0]


def test_an_answer_that_one_function_can_use_and_another_cannot(stub: HTTPStub) -> None:
    class Twice(Asks):
        """Asks the same twice."""

        async def ehlo(self, _session: Session, identity: str) -> Decision:
            value: Any = await self.service.ask(identity)
            assert value == OK
            await self.service.ask(identity, lambda answer: answer["missing"])
            return PROCEED

    with Conversation(Twice, "--service", stub.url) as smtpd:
        assert greet(smtpd).startswith("451 ")
    assert len(stub.requests) == 2


def test_it_declares_its_servers_and_is_probed(stub: HTTPStub) -> None:
    with Conversation(Asks, "--service", stub.url, "--service", "http://192.0.2.9:81/x") as smtpd:
        needs = Needs()
        smtpd.filters[0].declare(needs)
        assert needs.tcp[1:] == [("192.0.2.9", 81)]
        probes = list(smtpd.filters[0].all_probes())
        assert [probe.subject for probe in probes] == [
            f"service {stub.url}",
            "service http://192.0.2.9:81/x",
        ]


def test_only_the_framework_closes_it(stub: HTTPStub) -> None:
    class Closes(Asks):
        """Closes what others use."""

        async def ehlo(self, _session: Session, _identity: str) -> Decision:
            with pytest.raises(RuntimeError, match="the framework does"):
                await self.service.aclose()
            return PROCEED

    with Conversation(Closes, "--service", stub.url) as smtpd:
        assert greet(smtpd) == ""


def test_after_its_end_it_is_unavailable(stub: HTTPStub) -> None:
    import asyncio

    async def work() -> None:
        service = Service([stub.url], timeout=PATIENCE, deadline=PATIENCE, connections=1)
        await service.aclose()
        with pytest.raises(UnavailableError):
            await service.ask("x")

    asyncio.run(work())


def test_a_setting_is_an_option_of_the_filter() -> None:
    assert issubclass(Asks.Options, Settings)
    assert list(Asks.Options.options) == [
        "service",
        "service_timeout",
        "service_keep",
        "service_token_file",
    ]
