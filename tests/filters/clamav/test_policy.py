from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.clamav import Clamav, main
from smtpd_filters.filters.clamav.quarantine import Quarantine
from smtpd_filters.filters.rspamd import Rspamd
from smtpd_filters.lookups.stream import Address
from smtpd_filters.message import SpoolError
from smtpd_filters.runtime.probes import ask
from smtpd_filters.scanning.intake import SMALL
from smtpd_filters.settings import from_mapping
from smtpd_filters.settings.flags import Checking
from smtpd_filters.testing import Conversation, Delivery
from smtpd_filters.testing.rspamd.stub import CLEAN as RSPAMD_CLEAN
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub
from tests.effort import brief
from tests.filters.clamav.stub import EICAR, FAULTS, Clamd
from tests.loading import loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smtpd_filters.filter import Filter
    from smtpd_filters.scanning.intake import Content

MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nbody\r\n"
INFECTED = MESSAGE + EICAR + b"\r\n"
LINE = b".0123456789" * 7 + b"\r\n"
NAME = "Own.Test.EICAR.UNOFFICIAL"
REFUSED = f"554 5.7.1 Virus found: {NAME}"
LATER = "451 4.7.1 Temporary failure, please try again later"


@pytest.fixture
def clamd() -> Iterator[Clamd]:
    with Clamd() as server:
        yield server


#: The log of the last `scanned`.
LOG: list[str] = []


def deliver(smtpd: Conversation, content: bytes = MESSAGE, user: str = "", **more: Any) -> Delivery:
    client = smtpd.connect(**more)
    client.ehlo()
    if user:
        client.auth(user)
    client.mail_from("bob@example.net")
    client.rcpt_to("anna@example.org")
    return client.message(content)


def scanned(*servers: Clamd, flags: tuple[str, ...] = (), **more: Any) -> Delivery:
    addresses = [word for each in servers for word in ("--clamd", each.address)]
    with Conversation(Clamav, *addresses, *flags) as smtpd:
        delivery = deliver(smtpd, **more)
        LOG[:] = smtpd.log
        return delivery


def log() -> str:
    """The log of the last `scanned`."""
    return "\n".join(LOG)


# -- what clamd says ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, SMALL, 3 << 20])
def test_a_clean_message_passes_as_it_came(clamd: Clamd, size: int) -> None:
    content = MESSAGE + LINE * (size // len(LINE))
    delivery = scanned(clamd, content=content)
    assert delivery.verb == "proceed"
    assert delivery.unchanged
    assert clamd.messages == [b"".join(line + b"\n" for line in delivery.sent)]
    assert log() == ""


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: x\r\n\r\n.\r\n..\r\n.dot\r\n",
        b"Subject: x\r\n\r\n" + bytes(sorted(set(range(256)) - {10, 13})) + b"\r\n",
        b"Subject: x\r\n\r\nbare\rreturn\r\n",
        b"Subject: x\r\n",
        b"",
        b"\r\nonly a body\r\n",
        b"Subject: x\r\n\r\n" + b"x" * 2000 + b"\r\n",
        b"Content-Type: multipart/mixed; boundary=\"\r\n\r\n--\r\n--\"\r\n",
    ],
)  # fmt: skip
def test_clamd_sees_every_byte(clamd: Clamd, content: bytes) -> None:
    delivery = scanned(clamd, content=content)
    assert delivery.unchanged
    assert clamd.messages == [b"".join(line + b"\n" for line in delivery.sent)]


def test_a_virus_is_refused(clamd: Clamd) -> None:
    delivery = scanned(clamd, content=INFECTED)
    assert delivery.reply == REFUSED
    assert f'clamav message result=reject reason="virus {NAME}"' in log()


def test_a_name_is_made_safe() -> None:
    with Clamd(b"stream: a\r\n250 \x1b]0;b\xff FOUND\0") as clamd:
        # A reply of two lines isn't one of clamd's.
        assert scanned(clamd).reply == LATER
    with Clamd(b"stream: a\r250 \x1b]0;b\xff FOUND\0") as clamd:
        delivery = scanned(clamd)
    assert delivery.reply == "554 5.7.1 Virus found: a 250 ?]0;b?"
    assert "\x1b" not in log()


@pytest.mark.parametrize(
    ("action", "marked", "fields"), [("junk", "Yes", True), ("header", None, True)]
)
def test_a_virus_may_be_marked(
    clamd: Clamd, action: str, marked: str | None, *, fields: bool
) -> None:
    delivery = scanned(clamd, content=INFECTED, flags=("--action", action))
    assert delivery.verb == "proceed"
    assert delivery.headers.get("X-Spam") == marked
    assert delivery.headers.get("X-Virus-Status") == f"Infected ({NAME})"
    assert fields == ("X-Virus-Scanned" in delivery.headers)
    assert delivery.headers.names().index("X-Virus-Status") < delivery.headers.names().index(
        "Received"
    )
    assert delivery.body.endswith(EICAR + b"\n")


@pytest.mark.parametrize(
    ("flags", "name", "result"),
    [
        ((), b"Heuristics.Phishing.Email", "junk"),
        ((), b"PUA.Win.Packer", "junk"),
        ((), b"Win.Heuristics.X", "reject"),
        (("--suspicious-action", "accept"), b"Heuristics.X", "accept"),
        (("--suspicious-action", "header"), b"PUA.X", "header"),
        (("--suspicious-action", "reject"), b"PUA.X", "reject"),
        (("--suspicious", r"\.unofficial$"), b"My.Sig.UNOFFICIAL", "junk"),
        (("--suspicious", r"\.unofficial$"), b"Heuristics.X", "reject"),
    ],
)
def test_suspicious_names(flags: tuple[str, ...], name: bytes, result: str) -> None:
    with Clamd(b"stream: " + name + b" FOUND\0") as clamd:
        delivery = scanned(clamd, flags=flags)
    assert (delivery.verb == "reject") == (result == "reject")
    assert ("X-Spam" in delivery.headers) == (result == "junk")
    assert ("X-Virus-Status" in delivery.headers) == (result in {"junk", "header"})
    assert name.decode() in log()


# -- fields ------------------------------------------------------------------------------------

FORGED = b"X-Virus-Status: Clean\r\nX-VIRUS-scanned: by me\r\n" + MESSAGE


def test_the_clients_own_results_are_removed(clamd: Clamd) -> None:
    delivery = scanned(clamd, content=FORGED)
    assert not [name for name in delivery.headers.names() if name.lower().startswith("x-virus")]
    assert delivery.body == b"body\n"


@pytest.mark.parametrize("outcome", ["proceed", "junk"])
def test_they_are_removed_from_mail_that_could_not_be_scanned(outcome: str) -> None:
    with Clamd(fault="close") as clamd:
        delivery = scanned(clamd, content=FORGED, flags=("--on-error", outcome))
    assert delivery.verb == "proceed"
    assert "X-Virus-Status" not in delivery.headers
    assert delivery.headers.get("X-Spam") == ("Yes" if outcome == "junk" else None)


def test_they_are_removed_from_mail_that_is_too_large(clamd: Clamd) -> None:
    flags = ("--max-size", "1k", "--larger", "skip")
    delivery = scanned(clamd, content=FORGED + b"x\r\n" * 1000, flags=flags)
    assert delivery.verb == "proceed"
    assert clamd.messages == []
    assert "X-Virus-Status" not in delivery.headers


def test_exempt_clients_keep_theirs(clamd: Clamd) -> None:
    delivery = scanned(clamd, content=FORGED, flags=("--exempt", "192.0.2.1"))
    assert delivery.unchanged


def test_every_message_may_have_the_fields(clamd: Clamd) -> None:
    delivery = scanned(clamd, content=FORGED, flags=("--headers", "all"))
    assert delivery.headers.get_all("X-Virus-Status") == ["Clean"]
    assert delivery.headers.get("X-Virus-Scanned") == "ClamAV using filter-clamav at mx.example.org"


def test_no_message_may_have_them(clamd: Clamd) -> None:
    flags = ("--headers", "none", "--action", "junk")
    delivery = scanned(clamd, content=INFECTED, flags=flags)
    assert delivery.headers.get("X-Spam") == "Yes"
    assert "X-Virus-Status" not in delivery.headers


# -- what is not scanned ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "client", "exempt"),
    [
        ((), {}, False),
        ((), {"user": "anna"}, False),
        (("--only", "untrusted"), {}, False),
        (("--only", "untrusted"), {"user": "anna"}, True),
        (("--only", "untrusted"), {"address": "127.0.0.1"}, True),
        (("--only", "untrusted", "--exempt", "192.0.2.0/24"), {}, True),
        (("--exempt", "authenticated"), {"address": "127.0.0.1"}, False),
        (("--exempt", "authenticated"), {"user": "anna"}, True),
    ],
)
def test_whose_mail_is_scanned(
    clamd: Clamd, flags: tuple[str, ...], client: dict[str, str], *, exempt: bool
) -> None:
    delivery = scanned(clamd, content=INFECTED, flags=flags, **client)
    assert (delivery.verb == "proceed") == exempt
    assert (clamd.messages == []) == exempt


@pytest.mark.parametrize(
    ("larger", "reply"),
    [
        ("reject", "552 5.3.4 Message too large to be scanned"),
        ("tempfail", "451 4.3.4 Message too large to be scanned, please try again later"),
        ("skip", ""),
    ],
)
def test_a_large_message(clamd: Clamd, larger: str, reply: str) -> None:
    flags = ("--max-size", "100k", "--larger", larger)
    delivery = scanned(clamd, content=INFECTED + LINE * 2000, flags=flags)
    assert delivery.reply == reply
    assert clamd.connections == 0
    assert "not scanned: " in log()


def test_by_default_it_is_refused(clamd: Clamd) -> None:
    assert scanned(clamd, content=INFECTED, flags=("--max-size", "1k")).reply == REFUSED
    content = INFECTED + b"x\r\n" * 1000
    assert scanned(clamd, content=content, flags=("--max-size", "1k")).reply.startswith("552 ")


# -- faults ------------------------------------------------------------------------------------

CAUSES = {
    "close": "closed the connection, but answers a ping",
    "reset": "closed the connection, but answers a ping",
    "half": "reply cut short",
    "flood": "oversized reply",
    "silent": "timeout",
    "limit": "clamd's StreamMaxLength is below --max-size",
    "limit-reset": "clamd's StreamMaxLength is below --max-size",
    "timed-out": "clamd waited longer than its CommandReadTimeout",
    "early-ok": "replied before it had the whole message",
    "two": "more than one reply",
    "deaf": "closed the connection",
}


def in_time(fault: str) -> tuple[str, ...]:
    """Flags for a short time-out if the fault is one: other replies take as long as they need."""
    return ("--timeout", f"{brief(1)}s") if CAUSES[fault] == "timeout" else ()


@pytest.mark.parametrize(
    ("fault", "content"),
    [
        (fault, content)
        for fault in CAUSES
        # Of a message that fits into the system's buffers (tcp_wmem: 4 MB) all is sent before the
        # reply can be seen.
        for content in (INFECTED, INFECTED + LINE * (100_000 if fault == "early-ok" else 5_000))
        if fault != "early-ok" or len(content) > SMALL
    ],
)
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_a_fault_is_never_a_clean_message(
    tmp_path: Path, over: str, fault: str, content: bytes
) -> None:
    with Clamd(fault=fault, path=str(tmp_path / "s") if over == "unix" else "") as clamd:
        delivery = scanned(clamd, content=content, flags=in_time(fault))
    assert delivery.reply == LATER
    assert f'cause="{clamd.address} {CAUSES[fault]}"' in log()


def test_every_fault_is_tested() -> None:
    assert {*CAUSES, "drip"} == set(FAULTS)


def test_a_slow_reply_is_a_reply() -> None:
    with Clamd(fault="drip") as clamd:
        assert scanned(clamd).verb == "proceed"
        assert scanned(clamd, content=INFECTED).reply == REFUSED


@pytest.mark.parametrize("reply", [b"UNKNOWN COMMAND\0", b"stream: Read timed out ERROR\0"])
def test_an_error_of_clamd_is_never_a_clean_message(reply: bytes) -> None:
    with Clamd(reply) as clamd:
        delivery = scanned(clamd)
    assert delivery.reply == LATER
    assert reply[:-1].decode() in log()


@pytest.mark.parametrize("fault", sorted({*CAUSES} - {"early-ok"}))
def test_the_next_daemon_is_asked(clamd: Clamd, fault: str) -> None:
    with Clamd(fault=fault) as bad:
        delivery = scanned(bad, clamd, content=INFECTED + LINE * 5000, flags=in_time(fault))
    assert delivery.reply == REFUSED
    assert f"virus {NAME}, after {bad.address} " in log()


def test_no_daemon_is_there(tmp_path: Path) -> None:
    with Conversation(Clamav, "--clamd", str(tmp_path / "none")) as smtpd:
        assert deliver(smtpd).reply == LATER
    assert f'cause="{tmp_path}/none no such file or directory"' in smtpd.log[0]


def test_on_error_decides() -> None:
    with Clamd(fault="limit") as clamd:
        assert scanned(clamd, flags=("--on-error", "proceed")).unchanged
        junk = scanned(clamd, flags=("--on-error", "junk"))
    assert junk.headers.get("X-Spam") == "Yes"


def test_a_dry_run_changes_nothing(clamd: Clamd) -> None:
    delivery = scanned(clamd, content=FORGED + EICAR + b"\r\n", flags=("--dry-run",))
    assert delivery.unchanged
    assert "would=reject" in log()


# -- the quarantine -----------------------------------------------------------------------------


def test_a_refused_message_is_kept(clamd: Clamd, tmp_path: Path) -> None:
    folder = tmp_path / "quarantine"
    delivery = scanned(clamd, content=INFECTED, flags=("--quarantine", str(folder)))
    assert delivery.reply == REFUSED
    [kept] = (folder / "new").iterdir()
    assert f", kept as {kept.name}" in log()
    head, _, rest = kept.read_bytes().partition(b"Received: ")
    assert head.decode() == (
        f"X-Virus-Status: Infected ({NAME})\n"
        "X-Envelope-From: <bob@example.net>\n"
        "X-Envelope-To: <anna@example.org>\n"
        "X-Client: 192.0.2.1 (mail.example.com)\n"
    )
    assert rest.endswith(b"\n\nbody\n" + EICAR + b"\n")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert folder.joinpath("new").stat().st_mode & 0o777 == 0o700
    assert not list((folder / "tmp").iterdir())


def test_a_clean_or_marked_message_is_not_kept(clamd: Clamd, tmp_path: Path) -> None:
    scanned(clamd, flags=("--quarantine", str(tmp_path)))
    scanned(clamd, content=INFECTED, flags=("--quarantine", str(tmp_path), "--action", "junk"))
    assert not list((tmp_path / "new").iterdir())


def test_a_dry_run_keeps_nothing(clamd: Clamd, tmp_path: Path) -> None:
    scanned(clamd, content=INFECTED, flags=("--quarantine", str(tmp_path), "--dry-run"))
    assert not list((tmp_path / "new").iterdir())


def test_a_body_that_cannot_be_read_is_not_kept(
    clamd: Clamd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(content: Content) -> Iterator[bytes]:
        del content
        yield b"half"
        raise SpoolError("the spool is broken")

    async def keep(self: Quarantine, about: Any, size: int, chunks: Any) -> str:
        del chunks
        return await kept(self, about, size, fails(None))  # type: ignore[arg-type]  # not read

    kept = Quarantine.keep
    monkeypatch.setattr(Quarantine, "keep", keep)
    delivery = scanned(clamd, content=INFECTED, flags=("--quarantine", str(tmp_path)))
    assert delivery.reply == REFUSED
    assert 'no copy kept cause="the spool is broken"' in log()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_check_makes_no_quarantine(tmp_path: Path) -> None:
    with Checking():
        assert Quarantine(str(tmp_path / "a" / "b"), 1).path == str(tmp_path / "a" / "b")
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="file/b: File exists"):
            Quarantine(str(tmp_path / "file" / "b"), 1)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    Quarantine(str(tmp_path / "a" / "b"), 1)
    assert (tmp_path / "a" / "b").is_dir()


def test_the_quarantine_has_a_bound(clamd: Clamd, tmp_path: Path) -> None:
    (tmp_path / "cur").mkdir(0o700)
    (tmp_path / "cur" / "old").write_bytes(b"x" * ((1 << 20) - 100))
    flags = ("--quarantine", str(tmp_path), "--quarantine-size", "1M")
    delivery = scanned(clamd, content=INFECTED, flags=flags)
    assert delivery.reply == REFUSED
    assert "no copy kept: the quarantine is full" in log()
    assert not list((tmp_path / "new").iterdir())


def keep(folder: Quarantine, *pieces: bytes, meanwhile: Callable[[], object] = bool) -> str:
    """Keep a copy of a message; call a function before its last piece."""

    def chunks() -> Iterator[bytes]:
        *first, last = pieces
        yield from first
        meanwhile()
        yield last

    return asyncio.run(folder.keep([], sum(map(len, pieces)), chunks()))


def test_what_the_operator_deletes_makes_room(tmp_path: Path) -> None:
    folder = Quarantine(str(tmp_path), 1000)
    kept = keep(folder, b"x" * 600)
    assert kept
    (tmp_path / "new" / kept).unlink()
    assert keep(folder, b"x" * 600) == "", "it is counted again later"
    folder = Quarantine(str(tmp_path), 1000, recount=0.0)
    kept = keep(folder, b"x" * 600)
    (tmp_path / "new" / kept).unlink()
    assert keep(folder, b"x" * 600)
    assert keep(folder, b"x" * 600) == ""


def test_files_are_counted_in_steps_while_copies_are_made(tmp_path: Path) -> None:
    folder = Quarantine(str(tmp_path), 1 << 20)
    for number in range(250):
        (tmp_path / "new" / str(number)).write_bytes(b"x")
    count = folder._count()
    steps = [next(count)]
    assert keep(folder, b"y" * 1000)
    steps += count
    assert len(steps) == 3
    assert (folder._files, folder._bytes) == (251, 1250)
    half = b"z" * 1000
    assert keep(folder, half, half, meanwhile=lambda: list(folder._count()))
    assert (folder._files, folder._bytes) == (252, 3250)
    with pytest.raises(ZeroDivisionError):
        keep(folder, half, half, meanwhile=lambda: [*folder._count(), 1 / 0])
    assert (folder._files, folder._bytes) == (252, 3250)


def test_a_copy_that_fails_changes_nothing(clamd: Clamd, tmp_path: Path) -> None:
    with Conversation(
        Clamav, "--clamd", clamd.address, "--quarantine", str(tmp_path / "q")
    ) as smtpd:
        for part in ("tmp", "new", "cur"):
            (tmp_path / "q" / part).rmdir()
        assert deliver(smtpd, INFECTED).reply == REFUSED
    assert any('no copy kept cause="No such file or directory"' in line for line in smtpd.log)


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "address"),
    [
        ([], Address("localhost", 3310)),
        (["127.0.0.1:3311"], Address("127.0.0.1", 3311)),
        (["clamd.example"], Address("clamd.example", 3310)),
    ],
)
def test_the_argument_of_the_filter_in_go(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], address: Address
) -> None:
    servers = []

    def run(cls: type[Clamav], argv: list[str]) -> int:
        with Conversation(cls, *argv) as smtpd:
            servers.extend(smtpd.filters[0].settings.clamd)  # type: ignore[attr-defined]
        return 0

    monkeypatch.setattr("smtpd_filters.filters.clamav.policy.run", run)
    assert main(argv) == 0
    assert servers == [address]


@pytest.mark.parametrize("words", [["127.0.0.1:3311"], ["--clamd", "127.0.0.1:3311"]])
def test_supervised(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """The supervisor runs the same command without its own flag."""
    ran: list[list[str]] = []

    def execv(program: str, argv: list[str]) -> None:
        ran.append(argv[argv.index("--") + 1 :])
        raise OSError(2, f"{program} is gone")

    given = [*words, "--supervised"]
    monkeypatch.setattr(sys, "argv", ["filter-clamav", *given])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "/usr/bin/filter-clamav", *given])
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        main()
    own = ["/usr/bin/filter-clamav", "--clamd", "127.0.0.1:3311"]
    assert ran == [[sys.executable, *own]]


def test_the_word_of_the_filter_in_go(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["version"])
    assert ended.value.code == 0
    assert re.match(r"filter-clamav \(smtpd-filters [\d.]+", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--clamd", "host:x"), "--clamd: "),
        (("--clamd", "relative/path"), "--clamd: "),
        (("--quarantine", "/proc/nothing"), "--quarantine: /proc/nothing: "),
        (("--quarantine-size", "10M"), "--quarantine-size requires --quarantine"),
        (("--suspicious", "("), "--suspicious: "),
    ],
)
def test_errors_at_start(flags: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError) as caught, Conversation(Clamav, *flags):
        pass
    assert what in str(caught.value)


def test_settings_from_a_file() -> None:
    settings = from_mapping(
        Clamav.Options, {"clamd": ["/run/clamd", "[::1]:1"], "only": "untrusted"}, "filters.toml"
    )
    assert settings.clamd == (Address(path="/run/clamd"), Address("::1", 1))


def test_importing_it_does_not_import_what_is_heavy() -> None:
    modules = loaded("import smtpd_filters.filters.clamav")
    assert not {"asyncio", "aiohttp", "ssl"} & modules


def test_check_asks_the_daemon(clamd: Clamd) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{reserved.getsockname()[1]}"
        with Conversation(Clamav, "--clamd", clamd.address, "--clamd", dead) as smtpd:
            found = asyncio.run(ask(smtpd.filters[0].all_probes()))
    assert {each.subject: each.fault for each in found} == {
        f"daemon {clamd.address}": "",
        f"daemon {dead}": "connection refused; does it run, and listen there?",
    }


# -- beside other scanners ------------------------------------------------------------------------


def beside(clamd: Clamd, rspamd: RspamdStub, *names: str, **flags: Any) -> Delivery:
    """Deliver a message with a virus through a chain of filters of these names."""
    filters: dict[str, Callable[[], Filter]] = {
        "clamav": lambda: Clamav(
            Clamav.Options(clamd=(Address.parse(clamd.address),), action="header")
        ),
        "rspamd": lambda: Rspamd(Rspamd.Options(url=(rspamd.url,), **flags)),
    }
    with Conversation([filters[name]() for name in names]) as smtpd:
        return deliver(smtpd, INFECTED)


def test_they_scan_side_by_side(clamd: Clamd) -> None:
    """The first gets no answer, and refuses; the second was asked all the same."""
    with RspamdStub(Answer.of(RSPAMD_CLEAN, behaviour="drop")) as rspamd:
        delivery = beside(clamd, rspamd, "rspamd", "clamav", timeout=brief(0.5))
    assert delivery.reply.startswith("451 ")
    assert len(clamd.messages) == 1


def test_rspamd_scans_again_what_was_edited(clamd: Clamd) -> None:
    with RspamdStub() as rspamd:
        delivery = beside(clamd, rspamd, "clamav", "rspamd")
    assert delivery.headers.get("X-Virus-Status") == f"Infected ({NAME})"
    bodies = [request.body for request in rspamd.requests]
    assert [b"X-Virus-Status" in each for each in bodies] == [False, True]


def test_fields_change_no_verdict_about_a_virus(clamd: Clamd) -> None:
    reply = {**RSPAMD_CLEAN, "milter": {"add_headers": {"X-Added": "yes"}}}
    with RspamdStub(Answer.of(reply)) as rspamd:
        delivery = beside(clamd, rspamd, "rspamd", "clamav")
    assert delivery.headers.names()[0] == "X-Virus-Scanned"
    assert "X-Added" in delivery.headers
    assert len(clamd.messages) == len(rspamd.requests) == 1
