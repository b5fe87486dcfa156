from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from http.client import BadStatusLine, HTTPConnection, HTTPException, IncompleteRead
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.testing.rspamd.stub import BEHAVIOURS, CLEAN, Answer, Request, RspamdStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAILURES: dict[str, type[Exception]] = {
    "close": HTTPException,
    "reset": ConnectionResetError,
    "cut": IncompleteRead,
    "reset-half": ConnectionResetError,
    "garbage": BadStatusLine,
    "drop": TimeoutError,
    "stall": TimeoutError,
}


@pytest.fixture
def stub() -> Iterator[RspamdStub]:
    with RspamdStub() as server:
        yield server


@pytest.fixture
def client(stub: RspamdStub) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", stub.port, timeout=10)
    yield connection
    connection.close()


def post(client: HTTPConnection, body: bytes = b"body", **headers: str) -> tuple[int, bytes]:
    client.request("POST", "/checkv2", body, headers)
    response = client.getresponse()
    return response.status, response.read()


def test_it_sends_the_answer_and_keeps_the_request(
    stub: RspamdStub, client: HTTPConnection
) -> None:
    status, body = post(client, b"line\n", IP="192.0.2.1")
    assert (status, json.loads(body)) == (200, CLEAN)
    stub.answer = {"action": "reject"}
    assert post(client) == (200, b'{"action": "reject"}')
    stub.answer = Answer(b"oops", status=500)
    assert post(client) == (500, b"oops")
    assert stub.requests[0].get("ip") == "192.0.2.1"
    assert [request.body for request in stub.requests] == [b"line\n", b"body", b"body"]
    assert (stub.asked, stub.connections) == (3, 1)


def test_an_answer_can_depend_on_the_request(stub: RspamdStub, client: HTTPConnection) -> None:
    stub.answer = lambda request: Answer(request.body[::-1])
    assert post(client, b"abc") == (200, b"cba")


def test_a_function_may_return_a_mapping(stub: RspamdStub, client: HTTPConnection) -> None:
    stub.answer = lambda request: {"size": request.size}
    assert post(client, b"abc") == (200, b'{"size": 3}')


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda request: {"size": request.missing}, "AttributeError: 'Request' object has no"),
        (lambda _request: None, "TypeError: expected a mapping or an Answer, not None"),
        ({"size": object()}, "TypeError: Object of type object is not JSON"),
    ],
)
def test_an_answer_that_cannot_be_made_fails_the_test(answer: Any, error: str) -> None:
    def ask(*, failing: bool) -> None:
        with RspamdStub(answer) as stub:
            client = HTTPConnection("127.0.0.1", stub.port, timeout=10)
            assert post(client)[0] == 500
            client.close()
            if failing:
                raise KeyError

    with pytest.raises(AssertionError, match=error):
        ask(failing=False)
    with pytest.raises(KeyError) as caught:
        ask(failing=True)
    assert error in caught.value.__notes__[0]


def test_a_new_body_follows_the_json(stub: RspamdStub, client: HTTPConnection) -> None:
    stub.answer = Answer.of({"action": "no action"}, b"new\n")
    client.request("POST", "/checkv2", b"old\n")
    response = client.getresponse()
    offset = int(response.headers["Message-Offset"])
    body = response.read()
    assert (json.loads(body[:offset]), body[offset:]) == ({"action": "no action"}, b"new\n")


def test_bodies_in_chunks_and_pings(stub: RspamdStub, client: HTTPConnection) -> None:
    client.request("POST", "/checkv2", iter([b"x" * 10, b"y" * 70_000]), encode_chunked=True)
    client.getresponse().read()
    assert stub.requests[0].body == b"x" * 10 + b"y" * 70_000
    client.request("GET", "/ping")
    assert client.getresponse().read() == b"pong\r\n"
    assert stub.asked == 1


def test_other_gets_are_requests(stub: RspamdStub, client: HTTPConnection) -> None:
    stub.answer = lambda request: {"full": request.path == "/quota/a%20b@x?c=1"}
    client.request("GET", "/quota/a%20b@x?c=1")
    assert client.getresponse().read() == b'{"full": true}'
    assert [(each.method, each.path) for each in stub.requests] == [("GET", "/quota/a%20b@x?c=1")]
    stub.answer = Answer(b"{}", status=503, behaviour="early")
    client.request("GET", "/")
    assert client.getresponse().status == 503
    assert stub.asked == 2


@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS.keys() - {"endless"}))
def test_each_behaviour(stub: RspamdStub, client: HTTPConnection, behaviour: str) -> None:
    stub.answer = Answer(b"{}", behaviour=behaviour)
    if behaviour not in FAILURES:
        assert post(client) == (200, b"{}")
        return
    client.timeout = 0.1 if behaviour in {"drop", "stall"} else 10
    with pytest.raises(FAILURES[behaviour]):
        post(client)


def test_a_reply_that_never_ends(stub: RspamdStub, client: HTTPConnection) -> None:
    stub.answer = Answer(b"{}", behaviour="endless")
    client.request("POST", "/checkv2", b"body")
    assert len(client.getresponse().read(10 << 20)) == 10 << 20


def test_a_stopped_stub_refuses_connections(stub: RspamdStub) -> None:
    url = stub.url
    stub.stop()
    client = HTTPConnection("127.0.0.1", stub.port)
    with pytest.raises(ConnectionRefusedError):
        post(client)
    client.close()
    stub.start()
    assert stub.url == url
    assert post(client)[0] == 200
    client.close()


def test_a_stopped_stub_keeps_its_port(stub: RspamdStub) -> None:
    stub.stop()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", stub.port))
    stub.start()


def test_bodies_are_not_kept_without_keep() -> None:
    with RspamdStub(keep=0) as stub:
        client = HTTPConnection("127.0.0.1", stub.port)
        assert post(client)[0] == 200
        client.close()
        assert (list(stub.requests), stub.asked) == ([], 1)


def test_an_unknown_behaviour_is_rejected() -> None:
    with pytest.raises(ValueError, match="is not one of"):
        Answer(behaviour="explode")


def test_the_program(tmp_path: Path) -> None:
    reply = tmp_path / "reply.json"
    reply.write_text('{"action": "reject"}')
    command = [sys.executable, "-m", "smtpd_filters.testing.rspamd.stub", "--log"]
    with subprocess.Popen(
        [*command, "--reply", reply, "--status", "503", "--header", "X-Test: a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as stub:
        assert stub.stdout is not None
        port = int(stub.stdout.readline().removeprefix("ready http://127.0.0.1:"))
        client = HTTPConnection("127.0.0.1", port)
        client.request("POST", "/checkv2", b"body", {"IP": "192.0.2.1"})
        response = client.getresponse()
        assert (response.status, response.headers["X-Test"]) == (503, "a")
        assert response.read() == b'{"action": "reject"}'
        client.close()
        _, log = stub.communicate()
    assert stub.returncode == 0
    assert "IP: 192.0.2.1\n" in log
    assert "1 requests over 1 connections" in log


def test_a_request_finds_its_fields() -> None:
    fields = (("Rcpt", "a"), ("IP", "b"), ("rcpt", "c"))
    request = Request("POST", "/", fields, b"", 0, 1, b"")
    assert request.get_all("RCPT") == ["a", "c"]
    assert request.get("User") is None
