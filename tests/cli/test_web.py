"""`smtpd-filters web`: what it says at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main
from smtpd_filters.cli.web import _proxy
from smtpd_filters.web import application
from smtpd_filters.web.passwords import with_user

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(*_: object) -> None:
        pass

    monkeypatch.setattr(application, "serve", serve)


@pytest.mark.parametrize(
    ("flags", "noted"),
    [
        ((), "on 127.0.0.1:8026 the stores of --greylist and --limits can't be changed"),
        (("--listen", "{}/socket", "--listen", "[::1]:80"), "on [::1]:80 the stores"),
        (("--listen", "{}/socket"), ""),
        (("--passwords", "{}/users"), ""),
        (("--user-header", "X-Remote-User", "--proxy", "127.0.0.1"), ""),
    ],
)
def test_the_log_says_that_stores_cant_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], noted: str
) -> None:
    with_user(str(tmp_path / "users"), "ann", "correct horse")
    (tmp_path / "store").touch()
    words = [each.format(tmp_path) for each in flags]
    assert main(["web", "--directory", str(tmp_path), *words]) == 0
    assert capsys.readouterr().err == ""
    assert main(["web", "--limits", f"sqlite:{tmp_path}/store", *words]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"smtpd-filters web: {noted}") if noted else said == ""


PROXY = ("--user-header", "X-Remote-User", "--proxy")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        *(
            (("--prefix", prefix), "--prefix: expected a path such as /filters, not ")
            for prefix in ("filters", "//x", "/{", "/a{b}", "/a b", "/a%20b", "/a#b", "/ä", "/../b",
                           "/a/..", "/a/./b", "/a?b", "/a//b", "/a\nb")
        ),
        *(
            (("--host", host), "--host: expected a name without a port, such as ")
            for host in ("mail.example:443", "https://mail.example/", "", "ä.example", "::1")
        ),
        *(
            (("--user-header", field, "--proxy", "unix"), "--user-header: expected the name of a ")
            for field in ("X User", "X-User:", "Ü")
        ),
        ((*PROXY, "mail.example"), "--proxy: expected an IP address or unix, not "),
    ],
)  # fmt: skip
def test_flags_that_would_fit_no_request(
    flags: tuple[str, ...], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["web", "--directory", str(tmp_path), *flags])
    said = capsys.readouterr().err
    assert said.startswith(f"smtpd-filters web: {error}")
    assert said.count("\n") <= 2


@pytest.mark.parametrize(
    "flags",
    [
        ("--prefix", "/filters/"),
        ("--prefix", "/mail/.well-known/a_b~c-d..e"),
        ("--host", "mail.example.org", "--host", "[2001:db8::1]", "--host", "mail_1"),
        (*PROXY, "unix", "--proxy", "::ffff:127.0.0.1", "--proxy", "2001:db8::1"),
    ],
)
def test_flags_that_fit(flags: tuple[str, ...], tmp_path: Path) -> None:
    assert main(["web", "--directory", str(tmp_path), *flags]) == 0


def test_a_proxy_by_an_address_within_ipv6() -> None:
    assert _proxy("::ffff:192.0.2.1") == "192.0.2.1"
