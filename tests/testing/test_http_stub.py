from __future__ import annotations

import socket
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import PROCEED, Filter, Proceed, Service, Session
from smtpd_filters.testing import Conversation
from smtpd_filters.testing.http import Answer, HTTPStub, Request
from tests.effort import brief

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def asked(stub: HTTPStub, *methods: str) -> list[tuple[int, bytes]]:
    """Send requests over one connection; their statuses and contents."""
    connection = HTTPConnection("127.0.0.1", stub.port, timeout=10)
    answers = []
    for method in methods:
        connection.request(method, "/x")
        response = connection.getresponse()
        answers.append((response.status, response.read()))
    connection.close()
    return answers


@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_to_head_has_no_content(*, chunked: bool) -> None:
    answer = Answer(b"{}", chunked=chunked)
    with HTTPStub(answer) as stub, socket.create_connection(("127.0.0.1", stub.port)) as client:
        client.sendall(b"HEAD /x HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            received = file.read()
    whole = answer.wire()
    assert received == whole[: whole.index(b"\r\n\r\n") + 4] + whole


def test_a_mapping_that_is_changed_in_place() -> None:
    answer: dict[str, Any] = {"full": 1}
    with HTTPStub(answer) as stub:
        assert asked(stub, "GET") == [(200, b'{"full": 1}')]
        answer["full"] = True
        assert asked(stub, "GET") == [(200, b'{"full": true}')]


def test_a_function_that_fails_the_test() -> None:
    def answer(request: Request) -> Mapping[str, Any]:
        pytest.fail(f"asked for {request.path}")

    with pytest.raises(AssertionError, match="asked for /x"), HTTPStub(answer) as stub:
        assert asked(stub, "GET")[0][0] == 500


@pytest.mark.parametrize("unix", [True, False])
def test_it_has_read_what_was_sent_when_it_is_counted(*, unix: bool, tmp_path: Path) -> None:
    family = socket.AF_UNIX if unix else socket.AF_INET
    listen = str(tmp_path / "socket") if unix else "127.0.0.1:0"
    with HTTPStub(Answer(behaviour="drop"), listen=listen) as stub, ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(family)) for _ in range(100)]
        for client in clients:
            client.connect(listen if unix else ("127.0.0.1", stub.port))
        assert (stub.connections, stub.connected) == (100, 100)
        for client in clients:
            client.sendall(b"GET /x HTTP/1.1\r\n\r\n")
        assert stub.asked == 100
        assert len(stub.requests) == stub.waiting == stub.most_at_once == 100
        stack.close()
        assert stub.connected == 0
        assert (stub.waiting, stub.most_at_once) == (0, 100)


def test_a_stub_that_could_not_listen_was_asked_nothing() -> None:
    with HTTPStub({}) as stub:
        other = HTTPStub({}, listen=f"127.0.0.1:{stub.port}")
        with pytest.raises(OSError, match="in use"):
            other.start()
    assert other.asked == 0


class Asks(Filter):
    """Ask a service about each sender."""

    name = "asks"
    on_error = "tempfail"
    service = Service.setting(keep=0)

    async def mail_from(self, session: Session, address: str) -> Proceed:
        await self.service.ask([address, session.rdns])
        return PROCEED


@pytest.mark.parametrize(("pings", "asked_for"), [(True, 5), (False, 3)])
def test_a_service_that_answers_no_ping_is_no_longer_asked(*, pings: bool, asked_for: int) -> None:
    with HTTPStub(Answer.of({}, behaviour="drop")) as stub:
        stub.pings = pings
        flags = ("--service", stub.url, "--service-timeout", f"{brief(0.2)}s")
        with Conversation(Asks, *flags) as smtpd:
            for _ in range(5):
                client = smtpd.connect()
                client.ehlo()
                assert client.mail_from("a@example.net").reply.startswith("451 ")
        assert stub.asked == asked_for
