"""Every filter that adds a field of its own removes a client's copies of it, in any reading."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import smtpd_filters
from smtpd_filters.checks.exemptions import Exempt
from smtpd_filters.cli.listing import discover
from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.auth import Auth
from smtpd_filters.filters.clamav import Clamav
from smtpd_filters.filters.content import Content
from smtpd_filters.filters.correspondents import CorrespondentsFilter
from smtpd_filters.filters.dkimsign import Dkimsign
from smtpd_filters.filters.dnsbl import Dnsbl
from smtpd_filters.filters.dyndns import Dyndns
from smtpd_filters.filters.fcrdns import Fcrdns
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.filters.helo import Helo
from smtpd_filters.filters.limit import Limit
from smtpd_filters.filters.mailfrom import Mailfrom
from smtpd_filters.filters.milter import Milter
from smtpd_filters.filters.policy import Policy
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.filters.rewrite import Rewriter
from smtpd_filters.filters.rspamd import Rspamd
from smtpd_filters.filters.sender import Sender
from smtpd_filters.filters.senderscore import Senderscore
from smtpd_filters.filters.spamd import Spamd
from smtpd_filters.filters.tls import Tls
from smtpd_filters.filters.trace import Trace
from smtpd_filters.message import Headers, SpoolError
from smtpd_filters.milter import Agreement, Quarantine, vocabulary
from smtpd_filters.milter import Verdict as MilterVerdict
from smtpd_filters.protocol.decisions import Decision
from smtpd_filters.scoring.rules import Rules, RuleSettings
from smtpd_filters.stores.address import MEMORY
from smtpd_filters.testing import Conversation, DNSServer
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub
from tests.effort import brief
from tests.filters.clamav.stub import Clamd
from tests.filters.dnsbl.zones import addresses
from tests.filters.milter.stub import milter
from tests.filters.spamd.stub import Answer as SpamdAnswer
from tests.filters.spamd.stub import SpamdStub, spam
from tests.loading import loaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.filter import Filter, OnError
    from smtpd_filters.message import Message
    from smtpd_filters.session import Session

ADDRESS, SENDER = "203.0.113.7", "friend@example.net"
ZONES: dict[str, dict[str, Any]] = {
    **addresses("bl.example", {ADDRESS: "127.0.0.2"}),
    "7.113.0.203.score.senderscore.com": {"A": "127.0.4.50"},
}
#: Writings of a field's name that some reader takes for the name.
DISGUISES: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda name: name + b":",
    "upper case": lambda name: name.upper() + b":",
    "blanks": lambda name: name + b" \t :",
    "folded before the colon": lambda name: name + b"\r\n :",
    "folded": lambda name: name[:4] + b"\r\n " + name[4:] + b":",
    "NUL": lambda name: name[:3] + b"\0" + name[3:] + b":",
    "control characters": lambda name: b"\x01" + name + b"\x7f:",
    "8-bit": lambda name: name[:5] + b"\xa0" + name[5:] + b"\xff:",
    "behind a bare CR": lambda name: b"X-Other: a\r" + name + b":",
}
Serving = Callable[[ExitStack], Conversation]


def talk(cls: type[Filter], *flags: str) -> Serving:
    """A conversation with a filter that needs no server."""
    return lambda _: Conversation(cls, *flags)


def asking(cls: type[Filter], *flags: str) -> Serving:
    """One with a filter that asks a name server."""

    def serve(stack: ExitStack) -> Conversation:
        zone = stack.enter_context(DNSServer(ZONES))
        return Conversation(cls, *flags, nameserver=(zone.address, zone.port))

    return serve


def scored(_: ExitStack) -> Conversation:
    rules = Rules(RuleSettings(score_header=True))
    filter_ = CorrespondentsFilter(CorrespondentsFilter.Options(points=-2.5, store=MEMORY))
    return Conversation([filter_], rules=rules)


def clamd(stack: ExitStack) -> Conversation:
    daemon = stack.enter_context(Clamd(b"stream: Own.Test FOUND\0"))
    return Conversation(Clamav, "--clamd", daemon.address, "--action=header")


def spamd(stack: ExitStack) -> Conversation:
    daemon = stack.enter_context(SpamdStub(SpamdAnswer(spam)))
    return Conversation(Spamd, "--spamd", daemon.server)


def rspamd(**answer: Any) -> Serving:
    def serve(stack: ExitStack) -> Conversation:
        daemon = stack.enter_context(RspamdStub())
        daemon.answer = Answer(json.dumps({"score": 9, "required_score": 15, **answer}).encode())
        return Conversation(Rspamd, "-url", daemon.url, "--headers=extended")

    return serve


def quarantining(stack: ExitStack) -> Conversation:
    answers = Quarantine(b"virus").encode(), MilterVerdict(vocabulary.ACCEPT).encode()
    at_end: dict[bytes, bytes | None] = {vocabulary.END_OF_BODY: b"".join(answers)}
    one = stack.enter_context(milter(Agreement(), answers=at_end))
    return Conversation(Milter, "--milter", one.address)


#: By filter, its fields and a conversation in which it adds them.
ADDING: dict[type[Filter] | None, list[tuple[str, Serving]]] = {
    Greylist: [("X-Greylist", talk(Greylist, "--store=memory:", "--only-if=no-rdns", "--header"))],
    Dnsbl: [("X-Spam-DNSBL", asking(Dnsbl, "--client=bl.example", "--header", "--junk-at=9",
                                    "--untested=bl.example"))],
    Senderscore: [("X-SenderScore", asking(Senderscore, "-scoreHeader"))],
    CorrespondentsFilter: [
        ("X-Correspondent", talk(CorrespondentsFilter, "--store=memory:", "--header"))
    ],
    None: [("X-Smtpd-Filters-Score", scored)],  # the chain itself
    Auth: [("Authentication-Results", asking(Auth, "--authserv-id=mx.example.org"))],
    Clamav: [("X-Virus-Status", clamd), ("X-Virus-Scanned", clamd)],
    Spamd: [("X-Spam-Status", spamd)],
    Rspamd: [
        ("X-Spam-Status", rspamd(action="add header")),
        ("X-Spam-Score", rspamd(action="add header")),
        ("X-Spam", rspamd(action="add header")),
        ("X-Rspamd-Action", rspamd(action="add header", milter={"no_action": True})),
    ],
    Milter: [("X-Milter-Quarantine", quarantining)],
    Rewriter: [("X-Folder", talk(Rewriter, "--tag-field=X-Folder", "--tags=strip"))],
}  # fmt: skip
#: Filters that add no field for which they would have to remove others of the name.
ADDING_NONE = {
    Content,  # rules decide which fields are added and removed
    Dkimsign,  # a signature is believed for what it verifies
    Policy,  # the server names the field, and may prepend to what others have prepended
    *(Dyndns, Fcrdns, Helo, Limit, Mailfrom, Rcpt, Sender, Tls, Trace),
}
CASES = [(name, serve) for each in ADDING.values() for name, serve in each]


@contextmanager
def serving(serve: Serving) -> Iterator[Conversation]:
    with ExitStack() as stack:
        yield stack.enter_context(serve(stack))


def test_every_filter_is_known_to_this_test() -> None:
    own = {cls for cls in discover()[0] if cls.__module__.startswith(smtpd_filters.__name__)}
    assert own == (ADDING.keys() - {None}) | ADDING_NONE


@pytest.mark.parametrize(("name", "serve"), CASES, ids=[name for name, _ in CASES])
def test_copies_that_a_client_sent_are_removed(name: str, serve: Serving) -> None:
    with serving(serve) as smtpd:
        user = smtpd.connect()
        user.ehlo()
        user.auth("anna")
        user.mail_from("anna@example.org")
        user.rcpt_to(SENDER)
        user.message()
        there = smtpd.connect(address=ADDRESS, rdns="mail.example.net")
        there.ehlo()
        for what, disguise in {"": None, **DISGUISES}.items():
            forged = b""
            if disguise is not None:
                forged = disguise(name.encode()) + b" mx.example.org; forged\r\n"
            there.mail_from(SENDER)
            there.rcpt_to("anna+list@example.org" if name == "X-Folder" else "anna@example.org")
            delivery = there.message(
                b"From: a@b.example\r\n" + forged + b"To: c@d.example\r\n\r\nhi\r\n"
            )
            assert delivery.verb == "proceed", what
            # Programs disagree about a bare CR. It ends lines here; a filter may replace it.
            left = [line for line in delivery.bytes.splitlines() if b"forged" in line]
            assert left in ([], [b"X-Other: a %s: mx.example.org; forged" % name.encode()]), what
            assert len(delivery.headers.get_all(name)) == 1, what
            assert delivery.headers.get("To") == "c@d.example", what


# -- filters that fail -----------------------------------------------------------------------


def _failing(handler: Any, fault: str, *, after: bool) -> Any:
    """Return a handler of a message that fails before or after the work of another."""

    async def fails(self: Filter, session: Session, edited: Headers | Message) -> Decision:
        (edited if isinstance(edited, Headers) else edited.headers).prepend("X-Half", "done")
        if after:
            decided = handler(self, session, edited)
            if not isinstance(decided, Decision):
                await decided
        match fault:
            case "unavailable":
                raise UnavailableError("no answer")
            case "deadline":
                await asyncio.Event().wait()
            case "spool":
                raise SpoolError("no space left")
            case "error":
                raise SystemExit(1)
        return "no decision"  # type: ignore[return-value]

    return fails


FAULTS = ("unavailable", "deadline", "spool", "error", "nothing")
FAILING = [(cls, *case) for cls, of in ADDING.items() if cls is not None for case in of]


@pytest.mark.parametrize("on_error", ["proceed", "junk"])
@pytest.mark.parametrize("after", [False, True], ids=["at once", "after its work"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("cls", "name", "serve"), FAILING, ids=[case[1] for case in FAILING])
def test_copies_are_removed_by_a_filter_that_fails(  # noqa: PLR0913
    cls: type[Filter],
    name: str,
    serve: Serving,
    fault: str,
    *,
    after: bool,
    on_error: OnError,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = "headers" if "headers" in cls.handlers and cls is not Auth else "message"
    monkeypatch.setattr(cls, handler, _failing(getattr(cls, handler), fault, after=after))
    monkeypatch.setattr(cls, "on_error", on_error)
    if fault == "deadline":
        monkeypatch.setattr(cls, "deadline", brief(0.3))
    with serving(serve) as smtpd:
        there = smtpd.connect(address=ADDRESS, rdns="mail.example.net")
        there.ehlo()
        for disguise in (DISGUISES["plain"], DISGUISES["NUL"]):
            there.mail_from(SENDER)
            there.rcpt_to("anna+list@example.org")
            forged = disguise(name.encode()) + b" mx.example.org; forged\r\n"
            delivery = there.message(
                b"From: a@b.example\r\n" + forged + b"To: c@d.example\r\n\r\nhi\r\n"
            )
            assert not delivery.refused
            assert b"forged" not in delivery.bytes
            assert "X-Half" not in delivery.headers
            assert (delivery.headers.get("X-Spam") == "Yes") is (on_error == "junk")
            assert delivery.headers.get("To") == "c@d.example"
        smtpd.errors.clear()


def _cannot_be_read(_exempt: Exempt, _session: Session) -> str:
    raise UnavailableError("redis:/etc/mail/friends.conf: connection refused", "4.4.3")


@pytest.mark.parametrize(("cls", "name", "serve"), FAILING, ids=[case[1] for case in FAILING])
def test_copies_are_removed_while_a_table_of_exempt_clients_cannot_be_read(
    cls: type[Filter], name: str, serve: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exempt, "reason", _cannot_be_read)
    monkeypatch.setattr(cls, "on_error", "proceed")
    with serving(serve) as smtpd:
        there = smtpd.connect(address=ADDRESS, rdns="mail.example.net")
        there.ehlo()
        there.mail_from(SENDER)
        there.rcpt_to("anna+list@example.org")
        delivery = there.message(f"{name}: mx.example.org; forged\r\n\r\nhi\r\n".encode())
        assert not delivery.refused
        assert b"forged" not in delivery.bytes


CLIENTS: dict[str, dict[str, Any]] = {
    "loopback": {"address": "127.0.0.1"},
    "user": {"address": ADDRESS, "rdns": "mail.example.net"},
    "socket": {"local": True},
}


@pytest.mark.parametrize("who", CLIENTS)
@pytest.mark.parametrize(("cls", "name", "serve"), FAILING, ids=[case[1] for case in FAILING])
def test_a_filter_that_fails_leaves_the_fields_that_it_always_leaves(
    cls: type[Filter], name: str, serve: Serving, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    handler = "headers" if "headers" in cls.handlers and cls is not Auth else "message"
    monkeypatch.setattr(cls, "on_error", "proceed")
    for fault in "", "unavailable":
        if fault:
            monkeypatch.setattr(cls, handler, _failing(getattr(cls, handler), fault, after=False))
        with serving(serve) as smtpd:
            there = smtpd.connect(**CLIENTS[who])
            there.ehlo()
            if who == "user":
                there.auth("anna")
            there.mail_from(SENDER)
            there.rcpt_to("anna@example.org")
            delivery = there.message(f"{name}: mx.example.org; forged\r\n\r\nhi\r\n".encode())
            assert not delivery.refused
            kept.append(b"forged" in delivery.bytes)
    assert kept[0] == kept[1]


def test_a_filter_that_adds_no_field_reads_no_message() -> None:
    modules = ("greylist.policy", "dnsbl.policy", "senderscore", "correspondents", "rewrite.policy")
    code = ", ".join(f"smtpd_filters.filters.{each}" for each in modules)
    assert "smtpd_filters.message" not in loaded(f"import smtpd_filters.scoring.chain, {code}")
    assert "smtpd_filters.message.disguise" in loaded("import smtpd_filters.message")


#: The functions that add fields without `OwnField`, and why that is right.
OTHERWISE = {
    "combining.made_mark": "smtpd's own mark",
    "filters.auth.policy.Auth.message": "`results.remove_forged` leaves those of other servers",
    # Trace fields: several are legal, and readers believe the uppermost (RFC 7208 section 9.1).
    "filters.auth.policy.Auth._write": "`results.remove_forged`, or a trace field",
    "filters.content.edits.set_fields": "describes the content, and replaces each",
    "filters.dkimsign.policy.Dkimsign._add_signatures": "a signature is verified",
    "filters.dkimsign.policy.Dkimsign._seal": "a seal is verified",
    "filters.policy.policy.Policy._prepend": "named by the server",
    "filters.rspamd.edits._edit": "removed by `_own_fields`",
    "scanning.edits.Edits.add": "named by the daemon",
    "scanning.edits.Edits._add_on_top": "removed before by `Edits.remove_foreign`",
}


def test_every_field_is_added_by_the_shared_mechanism() -> None:
    root = Path(smtpd_filters.__file__).parent
    parts = ("filters", "scoring", "scanning")
    files = [each for part in parts for each in (root / part).rglob("*.py")]
    found = {
        f"{'.'.join(path.relative_to(root).with_suffix('').parts)}.{where}"
        for path in [*files, root / "combining.py"]
        for where in adders(ast.parse(path.read_text()))
    }
    assert found == OTHERWISE.keys()


def adders(tree: ast.AST, where: str = "") -> Iterator[str]:
    """Yield the names of the functions in which a field is added to a header block."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            receiver = ast.unparse(node.func.value)
            adds = node.func.attr in {"prepend", "append", "insert"}
            # A list of headers is appended to with one argument.
            several = len(node.args) > 1 or any(isinstance(arg, ast.Starred) for arg in node.args)
            if adds and several and receiver.rpartition(".")[2].strip("_") == "headers":
                yield where
        named = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            named = f".{node.name}"
        yield from adders(node, f"{where}{named}".strip("."))
