"""A mistake in the policy of any filter reaches nothing that its settings don't name."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.authentication.dkim.keys import ED25519
from smtpd_filters.authentication.dkim.private_keys import new_private_key
from smtpd_filters.cli.listing import discover
from smtpd_filters.protocol.events import Result
from tests.runtime.process import FilterProcess, sid
from tests.sandbox import intruder
from tests.sandbox.kernel import STRICT

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = str(Path(intruder.__file__))
#: The filters, with flags by which a handler is called at each request of `PHASES`, or for each
#: message.
FILTERS = {
    "dyndns:Dyndns": ("connect", ["--phase", "connect"]),
    "fcrdns:Fcrdns": ("connect", ["--phase", "connect"]),
    "fcrdns:Fcrdns --verify": ("connect", ["--phase", "connect", "--verify"]),
    "helo:Helo": ("ehlo", ["--phase", "helo"]),
    "dnsbl.policy:Dnsbl": ("connect", ["--client", "bl.example", "--phase", "connect"]),
    "senderscore:Senderscore": ("connect", ["-blockBelow", "1", "-blockPhase", "connect"]),
    "sender:Sender": ("mail-from", []),
    "rcpt:Rcpt": ("rcpt-to", ["--max-recipients", "1"]),
    "greylist.policy:Greylist": ("rcpt-to", ["--store", "memory:"]),
    "correspondents:CorrespondentsFilter": ("rcpt-to", ["--store", "memory:"]),
    "limit.policy:Limit": ("mail-from", ["--limit", "sender messages 99/1h", "--store", "memory:"]),
    "mailfrom.policy:Mailfrom": ("mail-from", ["--domains", "example.org"]),
    "rspamd.policy:Rspamd": ("message", ["-url", "http://127.0.0.1:9"]),
    "rspamd.policy:Rspamd by name": ("message", ["-url", "http://localhost:9"]),
    "rspamd.policy:Rspamd by socket": ("message", ["-url", "/nonexistent/socket"]),
    "clamav.policy:Clamav": ("message", ["--clamd", "127.0.0.1:9"]),
    "spamd.policy:Spamd": ("message", ["--spamd", "127.0.0.1:9"]),
    "milter.policy:Milter": ("mail-from", ["--milter", "inet:9@127.0.0.1"]),
    "policy.policy:Policy": ("rcpt-to", ["--server", "127.0.0.1:9"]),
    "policy.policy:Policy by program": ("rcpt-to", ["--server", "exec:/bin/true"]),
    "auth.policy:Auth": ("mail-from", []),
    "dkimsign.policy:Dkimsign": ("message", ["--keys", "{ example.org = 's KEYS/key' }"]),
    "rewrite.policy:Rewriter": ("mail-from", ["--canonical", "{ a@b.example = c@d.example }"]),
    "content.policy:Content": ("message", []),
    "tls.policy:Tls": ("mail-from", ["--require", "any"]),
    "trace:Trace": ("message", ["--detail", "headers"]),
}
#: Of what Python does, what only the kernel refuses: there are no events for it, or no rules.
KERNEL = {intruder.signals_others, intruder.changes_user, intruder.listens}
#: A filter with a unix socket can connect to others in C: no kernel's rule names them yet.
BEYOND = ("rspamd.policy:Rspamd by socket", intruder.connects_to_a_socket_in_c)
MESSAGE = [b"From: bob@example.net", b"Subject: x", b"", b"x"]
PARAMETERS = {"ehlo": b"mx.example.org", "mail-from": b"a@example.org", "rcpt-to": b"b@example.org"}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file, and servers that would answer, which no filter declares."""
    (tmp_path / "spool").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spool"))
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret"
    secret.write_text("secret")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0)
        monkeypatch.setenv("ELSEWHERE", str(secret))
        monkeypatch.setenv("TCP", str(tcp.getsockname()[1]))
        monkeypatch.setenv("UDP", str(udp.getsockname()[1]))
        yield secret
        tcp.settimeout(0)
        with pytest.raises(BlockingIOError):
            tcp.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)
    assert secret.read_text() == "secret"
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    assert list((tmp_path / "spool").iterdir()) == []


def start(name: str, *flags: str) -> FilterProcess:
    module = f"smtpd_filters.filters.{name.partition(' ')[0]}"
    own = FILTERS[name][1]
    # No name server is there.
    if name in DNS:
        own = [*own, "--nameserver", "127.0.0.1:9"]
    if "--keys" in own:
        folder = Path(os.environ["TMPDIR"]).with_name("keys")
        folder.mkdir()
        (folder / "key").write_bytes(new_private_key(ED25519, 0))
        (folder / "key").chmod(0o600)
        own = [word.replace("KEYS", str(folder)) for word in own]
    return FilterProcess([SCRIPT, module, *own, "--on-error", "tempfail", *flags])


DNS = {
    "fcrdns:Fcrdns --verify", "dnsbl.policy:Dnsbl", "senderscore:Senderscore", "sender:Sender",
    "helo:Helo", "auth.policy:Auth", "greylist.policy:Greylist",
}  # fmt: skip


def ask(process: FilterProcess, phase: str, number: int) -> Result:
    session = sid(number)
    process.connect(session)
    if phase != "message":
        return process.ask(phase, session, PARAMETERS.get(phase, b""))
    process.report("tx-begin", session, b"1ef1c203")
    process.report("tx-mail", session, b"1ef1c203", b"ok", b"a@example.net")
    process.message(session, MESSAGE)
    return process.ask("commit", session)


def test_every_filter_is_tried() -> None:
    modules = {cls.__module__.removeprefix("smtpd_filters.filters.") for cls in discover()[0]}
    assert modules == {name.partition(":")[0] for name in FILTERS}


@STRICT
@pytest.mark.parametrize("name", FILTERS)
def test_no_mistake_gets_out(name: str, elsewhere: Path) -> None:
    phase, _ = FILTERS[name]
    with start(name, "--sandbox", "strict") as process:
        process.hand_shake()
        for number, misdeed in enumerate(intruder.MISDEEDS):
            said = ask(process, phase, number)
            if (name, misdeed) == BEYOND:
                continue
            assert (said.verb, (said.argument or b"")[:2]) in {
                (b"reject", b"45"),
                (b"disconnect", b"42"),
            }, misdeed.__name__
            # One line, after its answer.
            process.until_logged(sid(number).decode())
            [line] = [
                line
                for line in process.logged.splitlines()
                if line.startswith(sid(number).decode()) and "PermissionError" in line
            ]
            assert re.search(rf"intruder\.py:\d+:(mistaken|{misdeed.__name__})", line), line
            if not misdeed.__name__.endswith("_in_c"):
                assert "--sandbox: not declared: " in line or misdeed in KERNEL, line
        assert elsewhere.read_text() == "secret"
        process.finish()


def test_without_the_sandbox_each_of_them_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ELSEWHERE", str(tmp_path / "secret"))
        monkeypatch.setenv("TCP", str(tcp.getsockname()[1]))
        monkeypatch.setenv("UDP", str(udp.getsockname()[1]))
        with start("dyndns:Dyndns", "--sandbox", "off") as process:
            process.hand_shake()
            for number, misdeed in enumerate(intruder.MISDEEDS):
                assert ask(process, "connect", number).verb == b"proceed", misdeed.__name__
            assert udp.recv(1) == b"x"
            assert process.logged == ""
            process.finish()
