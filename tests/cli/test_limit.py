from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.cli import main
from smtpd_filters.cli.store_search import find_delimiter
from smtpd_filters.filters.limit import Limit
from smtpd_filters.filters.limit.subjects import key, part, read, read_key
from smtpd_filters.filters.limit.subjects import shown as shown_subject
from smtpd_filters.stores.setting import STORE
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RULES = (
    "user messages 4/1h action=block",
    "client connections 5",
    "client+sender recipients 10/1h",
)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/limit.sqlite"


def talk(store: str) -> Conversation:
    return Conversation(Limit, *(f"--limit={each}" for each in RULES), "--store", store)


def send(smtpd: Conversation, user: str, messages: int, address: str = "192.0.2.1") -> list[str]:
    """Send messages; return the replies of those that are refused."""
    client = smtpd.connect(address=address)
    client.ehlo("mail.example.com")
    client.auth(user, "secret")
    refused = []
    for _ in range(messages):
        reply = client.mail_from(f"{user}@example.com").reply
        if not reply:
            assert client.rcpt_to("a@example.org").verb == "proceed"
        refused += [reply] if reply else []
        client.rset()
    return refused


def limit(store: str, *words: str) -> int:
    return main(["limit", *words, "--store", store])


def shown(capsys: pytest.CaptureFixture[str], store: str, *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert limit(store, *words, "--json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_what_was_counted_is_shown(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with talk(store) as smtpd:
        send(smtpd, "alice", 3)
        send(smtpd, "bob", 1)
        uses = shown(capsys, store, "top")
        found = [(use["subject"], use["limit"], round(use["used"]), use["of"]) for use in uses]
        assert found == [
            ("user=alice", "user messages 4/1h", 3, 4),
            ("client=192.0.2.1", "client connections 5", 2, 5),
            ("client=192.0.2.1 sender=alice@example.com", "client+sender recipients 10/1h", 3, 10),
            ("user=bob", "user messages 4/1h", 1, 4),
            ("client=192.0.2.1 sender=bob@example.com", "client+sender recipients 10/1h", 1, 10),
        ]
        assert [use["subject"] for use in shown(capsys, store, "top", "--number", "1")] == [
            "user=alice"
        ]
        assert [use["subject"] for use in shown(capsys, store, "show", "alice")] == ["user=alice"]
        [use] = shown(capsys, store, "show", "client=192.0.2.1", "sender=Alice@EXAMPLE.com")
        assert round(use["used"]) == 3
        assert limit(store, "show", "alice") == 0
        assert capsys.readouterr().out.startswith(
            "user=alice: 3 of user messages 4/1h, back to 0 in "
        )


def test_a_user_is_blocked_until_released(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with talk(store) as smtpd:
        assert send(smtpd, "alice", 5)[0].startswith("450 4.7.1 Too many messages")
        assert shown(capsys, store, "show") == [
            {
                "subject": "user=alice",
                "limit": "",
                "used": 0.0,
                "of": 0.0,
                "seconds": None,
                "blocked": "user messages 4/1h",
            }
        ]
        assert limit(store, "reset", "alice") == 0
        assert send(smtpd, "alice", 1)[0].startswith("450 4.7.1 Sending is suspended")
        assert limit(store, "release", "Alice") == 0
        assert send(smtpd, "alice", 4) == []
        assert shown(capsys, store, "show") == []
        for also in (", and what was counted of it is forgotten", ""):
            assert limit(store, "release", "alice") == 1
            assert capsys.readouterr().err == f"user=alice was not blocked{also}\n"


def test_what_was_done_is_printed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert limit(store, *words) == status
        return capsys.readouterr().out

    with talk(store) as smtpd:
        assert printed("show") == "none is blocked\n"
        assert printed("top") == ""
        assert printed("show", "Alice", status=1) == "user=alice: not known\n"
        assert printed("show", "alice", "--json", status=1) == "[]\n"
        assert printed("block", "bob@example.org") == "user=bob@example.org: blocked\n"
        assert printed("block", "bob", "--json") == '{"blocked": "user=bob"}\n'
        assert printed("release", "bob") == "user=bob: released\n"
        assert limit(store, "reset", "alice") == 1
        assert capsys.readouterr().err == "user=alice: nothing is counted\n"
        send(smtpd, "alice", 1)
        assert printed("reset", "alice") == "user=alice: reset\n"
        assert printed("show", "all", status=1) == "all: not known\n"


def test_blocking_by_hand(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with talk(store) as smtpd:
        assert limit(store, "block", "alice", "--reason", "left us", "--duration", "1h") == 0
        assert limit(store, "block", "client=2001:db8:1:2:3::4") == 0
        assert send(smtpd, "alice", 1)
        assert 'reason="user=alice is blocked: left us"' in smtpd.log[-1]
        assert smtpd.connect(address="2001:db8:1:2::1").greeting.verb == "disconnect"
        assert send(smtpd, "bob", 1) == []
        blocked = {use["subject"]: use["blocked"] for use in shown(capsys, store, "show")}
        assert blocked == {"user=alice": "left us", "client=2001:db8:1:2::/64": "by hand"}
        limit(store, "show")
        printed = capsys.readouterr().out
        assert re.search(r"^user=alice: blocked for 3[56]\d\d s: left us$", printed, re.MULTILINE)


def test_a_reset_forgets_connections_as_well(store: str) -> None:
    with talk(store) as smtpd:
        clients = [smtpd.connect(address="192.0.2.9") for _ in range(6)]
        assert clients[-1].greeting.refused
        assert limit(store, "reset", "client=192.0.2.9") == 0
        assert smtpd.connect(address="192.0.2.9").greeting.verb == "proceed"


#: Names of users that are long, or not as an operator can type them.
ODD_NAMES = [
    "a" * 300,
    "é" * 200,
    "a\x1b[31mb",
    "a\u202eb",
    "a\udcffb",
    "a\x85b",
    "anna smith",
    "o'hara,x",
    r"domain\xavier",
    "user=user=x",
    "sha256=" + "0" * 64,
    "-x",
]


#: Names that look like escapes: only what is printed for them means them.
ESCAPES = [r"domain\x1b", r"jos\xe9", "\x1b" + r"\x1b\x5c"]


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        *((name, False) for name in ODD_NAMES),
        *((name, True) for name in ODD_NAMES + ESCAPES),
    ],
)
def test_a_subject_is_named_as_it_is_printed_or_as_it_is(
    store: str, capsys: pytest.CaptureFixture[str], name: str, *, printed: bool
) -> None:
    with talk(store) as smtpd:

        def send_some() -> bool:
            client = smtpd.connect(address="192.0.2.1")
            client.ehlo("mail.example.com")
            client.auth(name, "secret")
            replies = []
            for _ in range(5):
                replies.append(client.mail_from("x@example.com").reply)
                client.rset()
            return any(replies)

        assert send_some()
        capsys.readouterr()
        assert limit(store, "top") == 0
        line, _, _ = capsys.readouterr().out.partition(": blocked: ")
        assert line.startswith(("user=", "sha256="))
        assert line.isprintable()
        subject = line if printed else f"user={name}"
        assert limit(store, "show", subject) == 0
        assert f"{line}: blocked: user messages 4/1h\n" in capsys.readouterr().out
        assert limit(store, "reset", subject) == 0
        assert limit(store, "release", subject) == 0
        assert limit(store, "show", subject) == 1
        assert limit(store, "block", subject) == 0
        assert send_some()
        assert limit(store, "release", subject) == 0
        assert send_some()  # blocked again by its fifth message


def test_a_combination_may_be_one_word_as_it_is_printed(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with talk(store) as smtpd:
        send(smtpd, "alice", 1)
        limit(store, "top")
        assert "client=192.0.2.1 sender=alice@example.com: 1 of" in capsys.readouterr().out
        assert limit(store, "show", "client=192.0.2.1 sender=alice@example.com") == 0
        assert limit(store, "show", "client=192.0.2.1", "sender=alice@example.com") == 0


def test_a_local_part_with_quotes_is_named_as_it_is_printed(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with talk(store) as smtpd:
        client = smtpd.connect(address="192.0.2.1")
        client.ehlo("mail.example.com")
        client.mail_from(r'"\"a\""@example.com')
        assert client.rcpt_to("a@example.org").verb == "proceed"
        subject = 'client=192.0.2.1 sender="a"@example.com'
        limit(store, "top")
        assert f"{subject}: 1 of" in capsys.readouterr().out
        assert limit(store, "reset", subject) == 0
        assert limit(store, "reset", subject) == 1


@given(st.text())
def test_a_subject_is_read_as_it_was_shown(name: str) -> None:
    subject = part("user", name.encode("utf-8", "replace").decode())
    text = shown_subject(subject)
    assert text.isprintable()
    stored, _ = read_key(key(subject))
    assert read(text) == stored
    assert key(read(text)) == key(subject)


@pytest.mark.parametrize("name", ["\u202e", "\t"])
def test_a_user_without_a_visible_character_can_be_released(
    store: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with talk(store) as smtpd:
        send(smtpd, name, 1)
        limit(store, "top")
        printed = capsys.readouterr().out.partition(":")[0]
        assert printed == "user=_"
        for words in (("block", printed), ("show", printed), ("release", printed)):
            assert limit(store, *words) == 0


@pytest.mark.parametrize(
    ("limits", "subject", "noted"),
    [
        (["user messages 1/1h", {"by": "client", "of": "messages", "limit": "1/1h"}], "a", ""),
        (["user messages 1/1h", "nonsense", 5], "client=192.0.2.1", "by user, and none by client"),
        (["client+user messages 1/1h"], "a", "by client+user, and none by user"),
        (["user messages 1/1h"], "sha256=" + "0" * 64, ""),
        ([], "a", ""),
    ],
)
def test_a_block_without_effect_is_noted(  # noqa: PLR0913  # fixtures and a case
    store: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    limits: list[object],
    subject: str,
    noted: str,
) -> None:
    with talk(store):
        monkeypatch.setattr("smtpd_filters.cli.limit.find_values", lambda *_: iter(limits))
        assert limit(store, "block", subject) == 0
        assert capsys.readouterr().err == ""  # the store of another configuration
        monkeypatch.setattr(
            "smtpd_filters.cli.stores.find_store", lambda *_: {"store": STORE.parse(store)}
        )
        assert main(["limit", "block", subject]) == 0
        expected = f"smtpd-filters limit: this has no effect: filter-limit has limits {noted}\n"
        assert capsys.readouterr().err == (expected if noted else "")


@pytest.mark.parametrize(
    ("subject", "note"),
    [
        ("network=10.0.0.0/8", "filter-limit has a --network-prefix4 of 16"),
        ("user=a network=2001:db8::/32", "filter-limit has a --network-prefix6 of 48"),
        ("client=2001:db8::/48", "filter-limit has a --client-prefix6 of 64"),
        ("network=10.1.0.0/16", ""),
        ("network=10.1.2.3", ""),
        ("client=2001:db8::/64", ""),
        ("client=192.0.2.1", ""),
        ("user=a/b", ""),
    ],
)
def test_a_block_of_another_network_is_noted(
    store: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    subject: str,
    note: str,
) -> None:
    where = "smtpd_filters.cli.stores"
    with talk(store):
        monkeypatch.setattr("smtpd_filters.cli.limit.find_values", lambda *_: iter(()))
        monkeypatch.setattr(f"{where}.find_options", lambda *_: {"network_prefix4": 16})
        monkeypatch.setattr(f"{where}.find_store", lambda *_: {"store": STORE.parse(store)})
        assert main(["limit", "block", subject]) == 0
        noted = f"smtpd-filters limit: this has no effect: {note}\n" if note else ""
        assert capsys.readouterr() == (f"{_counted(subject)}: blocked\n", noted)


def test_tags_begin_as_in_smtpd_conf(
    store: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "smtpd.conf"
    path.write_text('smtp sub-addr-delim "-"\n')
    monkeypatch.setattr(
        "smtpd_filters.cli.limit.find_delimiter", lambda: find_delimiter((str(path),))
    )
    monkeypatch.setattr(TAGS, "delimiter", "+")
    with talk(store):
        assert limit(store, "block", "sender=A-b@Example.org") == 0
    assert capsys.readouterr().out == "sender=a@example.org: blocked\n"


def _counted(subject: str) -> str:
    return subject.replace("10.1.2.3", "10.1.0.0/16")


def test_a_reason_of_any_bytes(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with talk(store):
        assert limit(store, "block", "alice", "--reason", "\udcff") == 0
        assert shown(capsys, store, "show", "alice")[0]["blocked"] == "\ufffd"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["block"], "block requires a SUBJECT"),
        (["release"], "release requires a SUBJECT"),
        (["reset"], "reset requires a SUBJECT"),
        (["top", "alice"], "top has no SUBJECT (see show)"),
        (["show", "users=alice"], '"users=alice" is not user=NAME'),
        (["show", "users=alice"], "one of client=, network=, sender=, sender-domain=, recipient="),
        (["block", "all"], "all mail can't be blocked (a user of this name is user=all)"),
        (["block", "user=a", "user=b"], "user= is there twice"),
        (["show", "user="], '"user=" is not user=NAME'),
        (["show", "all=x"], '"all=x" is not user=NAME'),
        (["show", "client=alice"], "not an address"),
        (["block", "client=192.0.2.1/24"], "an IPv4 client is a single address"),
        (["block", "client=192.0.2.1/33"], "a prefix length is a number up to 32"),
        (["block", "client=192.0.2.1/x"], "a prefix length is a number up to 32"),
        (["block", "client=2001:db8::/129"], "a prefix length is a number up to 128"),
        (["block", "network=192.0.2.1/\u00b2"], "a prefix length is a number up to 32"),
        (["block", "network=192.0.2.1/"], "a prefix length is a number up to 32"),
        (["block", "sender=@"], "nothing is counted for it"),
        (["block", "sender-domain=."], "nothing is counted for it"),
    ],
)
def test_a_wrong_command_line(
    store: str, words: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with talk(store), pytest.raises(SystemExit) as raised:
        limit(store, *words)
    assert raised.value.code == 2
    assert reason in capsys.readouterr().err
