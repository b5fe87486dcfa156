"""The connections that a listener has not accepted yet are counted."""

from __future__ import annotations

import contextlib
import socket

import pytest

from smtpd_filters.testing.server.backlog import DIAGNOSIS, count_waiting


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["4", "6"]
)
def test_waiting_connections_are_counted(family: int, host: str) -> None:
    with contextlib.ExitStack() as stack:
        diagnosis = stack.enter_context(socket.socket(*DIAGNOSIS))
        listener, other = (
            stack.enter_context(socket.create_server((host, 0), family=family)) for _ in range(2)
        )
        port, elsewhere = listener.getsockname()[1], other.getsockname()[1]
        for expected in (1, 2, 3):
            stack.enter_context(socket.create_connection((host, port), 10))
            assert count_waiting(diagnosis, family, port) == expected
        assert count_waiting(diagnosis, family, elsewhere) == 0
        listener.accept()[0].close()
        assert count_waiting(diagnosis, family, port) == 2


def test_many_listeners_are_told_in_several_parts() -> None:
    with contextlib.ExitStack() as stack:
        diagnosis = stack.enter_context(socket.socket(*DIAGNOSIS))
        ports = []
        for _ in range(300):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(listener.getsockname()[1])
            stack.enter_context(socket.create_connection(listener.getsockname(), 10))
        assert {count_waiting(diagnosis, socket.AF_INET, port) for port in ports} == {1}


def test_without_a_listener_none_waits() -> None:
    with socket.socket(*DIAGNOSIS) as diagnosis, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert count_waiting(diagnosis, socket.AF_INET, bound.getsockname()[1]) == 0
