"""The verb dkim: keys made, records printed and compared with a real name server's."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.authentication.dkim import private_keys
from smtpd_filters.authentication.dkim.private_keys import parse_private_key
from smtpd_filters.cli import main
from smtpd_filters.cli.dkim import STRING, zone_record
from smtpd_filters.errors import ConfigError
from smtpd_filters.testing.dns import DNSServer

if TYPE_CHECKING:
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

FLAGS = ("-d", "example.org", "-s", "new")
NAME = "new._domainkey.example.org"


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    try:
        status = main(["dkim", *words])
    except SystemExit as end:
        status = int(str(end.code))
    out, err = capsys.readouterr()
    return status, out, err


def strings(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)


@pytest.mark.parametrize(("kind", "size"), [("rsa", 2048), ("rsa", 3072), ("ed25519", 256)])
def test_a_key_is_made_for_smtpd_and_its_record_printed(
    capsys: Capture, tmp_path: Path, kind: str, size: int
) -> None:
    path = tmp_path / "key"
    bits = ("--bits", str(size)) if size == 3072 else ()
    status, out, _ = run(capsys, "keygen", *FLAGS, "-k", str(path), "--type", kind, *bits)
    assert status == 0
    key = parse_private_key(path.read_bytes())
    assert (key.kind, key.bits) == (kind, size)
    mode = path.stat()
    assert stat.S_IMODE(mode.st_mode) == 0o640
    assert mode.st_uid == os.geteuid()
    assert out.startswith(f"{NAME}. IN TXT (")
    assert "".join(strings(out)) == key.record()
    assert all(len(each) <= STRING for each in strings(out))
    assert run(capsys, "dns", *FLAGS, "-k", str(path)) == (0, out, "")
    # It is never overwritten.
    before = path.read_bytes()
    status, _, err = run(capsys, "keygen", *FLAGS, "-k", str(path))
    assert (status, path.read_bytes()) == (2, before)
    assert "File exists" in err


def test_a_long_record_is_split() -> None:
    text = zone_record("s", "example.org", "v=DKIM1; p=" + "x" * 600)
    assert [len(each) for each in strings(text)] == [255, 255, 101]


def test_without_cryptography_openssl_makes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = parse_private_key(private_keys._by_openssl(2048))
    assert (key.kind, key.bits) == ("rsa", 2048)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="cryptography, or openssl"):
        private_keys._by_openssl(2048)


def test_a_key_is_compared_with_what_is_published(capsys: Capture, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one", "two")]
    for path in paths:
        run(capsys, "keygen", *FLAGS, "-k", path)
    one, two = (
        parse_private_key((tmp_path / name).read_bytes()).record() for name in ("one", "two")
    )
    for zone, status, text in (
        ({"TXT": one}, 0, "the published key is that of the file"),
        ({"TXT": one.replace("v=DKIM1;", "v=DKIM1; t=y:s;")}, 0, "the flag y"),
        ({"TXT": two}, 1, "the published key is another one"),
        ({"TXT": [one, two]}, 1, "several records"),
        ({"TXT": "v=DKIM1; p="}, 1, "key revoked"),
        ({"TXT": one.replace("k=rsa", "h=sha1")}, 1, "key not for this hash"),
        ({"TXT": "v=spf1 -all"}, 1, "key record of another version"),
        ({"A": "192.0.2.1"}, 1, "not published (nodata)"),
        ({"servfail": True}, 1, "can't be looked up"),
    ):
        with DNSServer({NAME: zone}) as server:
            given = ("--nameserver", f"{server.address}:{server.port}")
            found = run(capsys, "check", *FLAGS, "-k", paths[0], *given)
        assert found[0] == status
        assert text in found[1]


def test_a_rotation(capsys: Capture, tmp_path: Path) -> None:
    old = tmp_path / "old.key"
    run(capsys, "keygen", "-d", "example.org", "-s", "old", "-k", str(old))
    other = tmp_path / "other.key"
    run(capsys, "keygen", "-d", "example.net", "-s", "x", "-k", str(other), "--type", "ed25519")
    table = tmp_path / "keys"
    text = f"# keys\nexample.net x {other}\nExample.org  old  {old}\nexample.org e {other}\n"
    table.write_text(text)
    words = ("rotate", *FLAGS, "--keys", str(table))
    status, out, _ = run(capsys, *words)
    new = tmp_path / "example.org.new.key"
    record = parse_private_key(new.read_bytes()).record()
    assert (status, "".join(strings(out))) == (0, record)
    assert "run the same command again" in out
    assert table.read_text() == text
    with DNSServer({}) as server:
        given = ("--nameserver", f"{server.address}:{server.port}")
        status, out, _ = run(capsys, *words, *given)
        assert (status, table.read_text()) == (1, text)
        assert "not published (nxdomain)" in out
        again = f"smtpd-filters dkim dns -d example.org -s new -k {new}\n"
        assert out.endswith(f"{table} is unchanged. To print the record of {new} again: {again}")
    with DNSServer({NAME: {"TXT": record}}) as server:
        given = ("--nameserver", f"{server.address}:{server.port}")
        status, out, _ = run(capsys, *words, *given)
    assert status == 0
    assert "new replaces old" in out
    assert table.read_text() == text.replace(f"Example.org  old  {old}", f"example.org new {new}")
    assert old.exists()
    status, _, err = run(capsys, *words)
    assert (status, "new is in use already" in err) == (2, True)


def test_a_rotation_to_a_key_in_this_directory(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter, which runs elsewhere, finds the key."""
    monkeypatch.chdir(tmp_path)
    for name in ("old.key", "new.key"):
        run(capsys, "keygen", "-d", "example.org", "-s", "x", "-k", name)
    table = tmp_path / "keys"
    table.write_text(f"example.org old {tmp_path}/old.key\n")
    record = parse_private_key((tmp_path / "new.key").read_bytes()).record()
    words = ("rotate", *FLAGS, "--keys", str(table))
    with DNSServer({NAME: {"TXT": record}}) as server:
        given = ("--nameserver", f"{server.address}:{server.port}")
        assert run(capsys, *words, "-k", "new.key", *given)[0] == 0
    assert table.read_text() == f"example.org new {tmp_path}/new.key\n"
    status, _, err = run(capsys, *words[:4], "third", *words[5:], "-k", "x\ny")
    assert (status, "characters that can't be in a table" in err) == (2, True)


@pytest.mark.parametrize("line", ["Example.org S1 {}", "example.org:s1 {}", "example.org\ts1\t{}"])
def test_a_rotation_in_any_writing_of_a_table(capsys: Capture, tmp_path: Path, line: str) -> None:
    old, new = tmp_path / "old.key", tmp_path / "new.key"
    for path in (old, new):
        run(capsys, "keygen", "-d", "example.org", "-s", "x", "-k", str(path))
    real = tmp_path / "real"
    before = b"# caf\xe9\r\n"
    real.write_bytes(before + line.format(old).encode() + b"\n")
    table = tmp_path / "keys"
    table.symlink_to(real)
    draft = tmp_path / "real.new"
    draft.write_text("of the operator")
    record = parse_private_key(new.read_bytes()).record()
    with DNSServer({NAME: {"TXT": record}}) as server:
        given = ("--nameserver", f"{server.address}:{server.port}")
        words = ("rotate", *FLAGS, "-k", str(new), "--keys", f"file:{table}", *given)
        status, out, _ = run(capsys, *words)
    assert (status, f"{table}: new replaces s1\n" in out) == (0, True)
    assert table.is_symlink()
    assert draft.read_text() == "of the operator"
    assert real.read_bytes() == before + f"example.org new {new}\n".encode()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "ACTION (keygen|dns|check|rotate) is required"),
        (("dns", *FLAGS, "-k", "k", "--bits", "2048"), "--bits has no effect with dns"),
        (
            ("keygen", *FLAGS, "-k", "k", "--type", "ed25519", "--bits", "2048"),
            "--bits has no effect",
        ),
        (("keygen",), "--domain is required"),
        (("keygen", "-d", "example.org"), "-s is required"),
        (("keygen", *FLAGS), "keygen requires -k"),
        (("dns", *FLAGS, "-k", "/nonexistent/key"), "-k: /nonexistent/key: No such file"),
        (("keygen", *FLAGS, "-k", "/nonexistent/key"), "/nonexistent/key: No such file"),
        (("rotate", *FLAGS), "rotate requires --keys file:PATH"),
        (("make", *FLAGS), "invalid choice"),
        (("keygen", *FLAGS, "--bits", "1024"), "--bits"),
    ],
)
def test_wrong_words(capsys: Capture, words: tuple[str, ...], text: str) -> None:
    status, _, err = run(capsys, *words)
    assert status == 2
    assert text in err
    assert err.count("\n") == 1


def test_a_key_in_a_directory_that_is_missing(capsys: Capture, tmp_path: Path) -> None:
    key = tmp_path / "dkim" / "key"
    status, _, err = run(capsys, "keygen", *FLAGS, "-k", str(key))
    assert status == 2
    assert f"{key}: No such file or directory (make the directory {key.parent} first)" in err


def test_rotate_needs_a_key_of_the_domain(capsys: Capture, tmp_path: Path) -> None:
    key = tmp_path / "key"
    run(capsys, "keygen", "-d", "example.net", "-s", "x", "-k", str(key))
    table = tmp_path / "keys"
    table.write_text(f"example.net x {key}\n")
    status, _, err = run(capsys, "rotate", *FLAGS, "--keys", str(table))
    assert status == 2
    assert f"{table}: no rsa key of example.org" in err
    status, _, err = run(capsys, "dns", *FLAGS, "-k", str(key), "--keys", str(table))
    assert (status, "--keys has no effect with dns" in err) == (2, True)
