"""The notations of Postfix and of milters for one address."""

from __future__ import annotations

import pytest

from smtpd_filters.filters.milter.endpoints import ENDPOINT
from smtpd_filters.lookups.stream import Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("inet:mail.example:8891", Address("mail.example", 8891)),
        ("inet:[::1]:8891", Address("::1", 8891)),
        ("inet:8891@mail.example", Address("mail.example", 8891)),
        ("inet6:8891@::1", Address("::1", 8891)),
        ("inet6:8891@[::1]", Address("::1", 8891)),
        ("inet:8891", Address("localhost", 8891)),
        ("mail.example:8891", Address("mail.example", 8891)),
        ("8891@mail.example", Address("mail.example", 8891)),
        ("unix:/run/milter", Address(path="/run/milter")),
        ("local:/run/milter", Address(path="/run/milter")),
        ("/run/milter", Address(path="/run/milter")),
        ("unix:/run/a@b:c", Address(path="/run/a@b:c")),
    ],
)
def test_an_address(text: str, address: Address) -> None:
    assert ENDPOINT.parse(text) == address
    assert ENDPOINT.parse(ENDPOINT.show(address)) == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:run/milter", "the absolute path of a socket"),
        ("local:", "the absolute path of a socket"),
        *(
            (text, f'inet:HOST:PORT, inet:PORT@HOST or unix:PATH, not "{text}"')
            for text in (
                "", "inet:", "8891", "inet:mail.example", "inet:0@mail.example", "inet:8891@",
                "inet:70000@mail.example", "inet:a:b@c", "inet:8891@a@b", "inet:::1:8891",
                "inet:8891 @mail.example", "run/milter",
            )
        ),
    ],
)  # fmt: skip
def test_no_address(text: str, expected: str) -> None:
    """The error names what was written."""
    with pytest.raises(ValueError, match="expected") as caught:
        ENDPOINT.parse(text)
    assert f"expected {expected}" in str(caught.value)
