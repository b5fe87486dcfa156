from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.authentication.dkim.keys import ED25519
from smtpd_filters.authentication.dkim.private_keys import new_private_key
from smtpd_filters.chain import Chain
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.dkimsign import Dkimsign
from smtpd_filters.filters.rewrite import Rewriter
from smtpd_filters.filters.rewrite.policy import ADDRESSES_MAX
from smtpd_filters.runtime.log import Log
from smtpd_filters.settings import common_options, parse_flags
from smtpd_filters.testing import Conversation
from tests.filters.executables import complaint, loaded_to_set_up
from tests.filters.test_dkimsign import checked, pem, records, written

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing import Client, Delivery, Verdict

QUERY = "SELECT new FROM canonical WHERE old = ?"
LAN = "regexp:{ '/(.*)@(.*)\\.lan/ ${1}-${2}.lan@example.org' }"
MESSAGE = (
    b'From: "Root, the" <root@h.lan>\r\nTo: joe@x.lan (Joe),\r\n Ann <ann@example.net>\r\n'
    b"Reply-To: root@h.lan\r\nX-Other: root@h.lan\r\nSubject: hello\r\n\r\nroot@h.lan\r\n"
)


def client(smtpd: Conversation, *, user: str = "", address: str = "192.0.2.1") -> Client:
    there = smtpd.connect(address=address)
    there.ehlo("mail.example.net")
    if user:
        there.auth(user, "secret")
    return there


def sender(address: str, *flags: str, user: str = "") -> Verdict:
    with Conversation(Rewriter, *flags) as smtpd:
        return client(smtpd, user=user).mail_from(address)


def recipient(address: str, *flags: str) -> str:
    """The recipient as smtpd gets it."""
    with Conversation(Rewriter, *flags) as smtpd:
        there = client(smtpd)
        there.mail_from("a@example.net")
        said = there.rcpt_to(address)
        return said.parameter if said.verb == "rewrite" else address


def delivered(*flags: str, user: str = "joe", to: str = "b@example.org") -> Delivery:
    with Conversation(Rewriter, *flags) as smtpd:
        there = client(smtpd, user=user)
        there.mail_from("root@h.lan")
        there.rcpt_to(to)
        return there.message(MESSAGE)


def test_senders() -> None:
    said = sender("root@h.lan", "--sender-canonical", LAN)
    assert (said.verb, said.parameter) == ("rewrite", "<root-h.lan@example.org>")
    for kept in ("", "root@h.lan.example", "root@example.org"):
        assert sender(kept, "--sender-canonical", LAN).verb == "proceed"
    assert sender("root@h.lan", "--recipient-canonical", LAN).verb == "proceed"


def test_recipients() -> None:
    flags = "--recipient-canonical", "{ joe@a.example = joe.doe@b.example }"
    assert recipient("joe@a.example", *flags) == "<joe.doe@b.example>"
    assert recipient("jim@a.example", *flags) == "jim@a.example"
    assert recipient("root", "--canonical={ root = admin@b.example }") == "<admin@b.example>"


def test_own_tables_come_first() -> None:
    flags = (
        "--sender-canonical={ a@x.example = b@x.example }",
        "--canonical={ a@x.example = no@x.example, b@x.example = c@x.example }",
    )
    assert sender("a@x.example", *flags).parameter == "<c@x.example>"
    assert sender("b@x.example", *flags).parameter == "<c@x.example>"
    # One pass: the result of a table is not looked up in it again.
    again = "--canonical={ a@x.example = b@x.example, b@x.example = a@x.example }"
    assert sender("a@x.example", again).parameter == "<b@x.example>"


def test_an_invalid_result_is_not_used() -> None:
    table = "regexp:{ '/^(.*)@(.*)$/ $1-$2@$1.example' }"
    with Conversation(Rewriter, "--canonical", table) as smtpd:
        said = client(smtpd).mail_from("under score@x.example")
        assert said.verb == "proceed"
        assert client(smtpd).mail_from(f"{'a' * 60}@x.example").verb == "proceed"
    assert "rewrite kept address=" in smtpd.log[0]


def test_parameters_are_kept() -> None:
    with Conversation(Rewriter, "--canonical={ a@x.example = b@x.example }") as smtpd:
        there = client(smtpd)
        said = there.mail_from("a@x.example", parameters="BODY=8BITMIME AUTH=<> RET=HDRS")
        assert said.parameter == "<b@x.example> BODY=8BITMIME AUTH=<> RET=HDRS"
        said = there.rcpt_to("a@x.example", parameters="NOTIFY=NEVER")
        assert said.parameter == "<b@x.example> NOTIFY=NEVER"
        there.rset()
        said = there.mail_from("a@x.example", parameters=f"X={'y' * 60_000}")
        assert said.parameter == "<b@x.example>"


def test_the_header_of_a_user() -> None:
    mail = delivered("--canonical", LAN)
    assert mail.headers.get("From") == '"Root, the" <root-h.lan@example.org>'
    lines = mail.headers.lines()
    at = lines.index(b"To: joe-x.lan@example.org (Joe),")
    assert lines[at + 1] == b" Ann <ann@example.net>"
    assert mail.headers.get("Reply-To") == "root-h.lan@example.org"
    assert mail.headers.get("X-Other") == "root@h.lan"
    assert mail.body == b"root@h.lan\n"


def test_the_header_of_others_is_kept() -> None:
    """Their signatures would become invalid."""
    assert delivered("--canonical", LAN, user="").headers.get("Reply-To") == "root@h.lan"
    of_all = delivered("--canonical", LAN, "--for", "all", user="")
    assert of_all.headers.get("Reply-To") == "root-h.lan@example.org"
    assert delivered("--canonical", LAN, "--where=envelope").headers.get("Reply-To") == "root@h.lan"


@pytest.mark.parametrize(
    ("whom", "covered"),
    [
        ("all", {"stranger", "joe", "local", "partner"}),
        ("inbound", {"stranger", "partner"}),
        ("outbound", {"joe", "local"}),
        ("local", {"local"}),
        ("authenticated", {"joe"}),
        ("198.51.100.0/24", {"partner"}),
    ],
)
def test_for_whom(whom: str, covered: set[str]) -> None:
    with Conversation(Rewriter, "--canonical", LAN, "--for", whom) as smtpd:
        there = {
            "stranger": client(smtpd),
            "joe": client(smtpd, user="joe"),
            "local": client(smtpd, address="127.0.0.1"),
            "partner": client(smtpd, address="198.51.100.7"),
        }
        assert covered == {
            name for name, each in there.items() if each.mail_from("a@h.lan").verb == "rewrite"
        }


def test_users() -> None:
    flags = "--canonical", LAN, "--users", "{ joe, ann }"
    assert sender("a@h.lan", *flags, user="Joe").verb == "rewrite"
    assert sender("a@h.lan", *flags, user="jim").verb == "proceed"
    assert sender("a@h.lan", *flags).verb == "proceed"


def test_masquerading() -> None:
    flags = (
        "--masquerade=!lab.example.org", "--masquerade=example.org", "--masquerade-except=root"
    )  # fmt: skip
    assert sender("joe@pc.example.org", *flags).parameter == "<joe@example.org>"
    assert sender("joe@x.lab.example.org", *flags).verb == "proceed"
    assert sender("root@pc.example.org", *flags).verb == "proceed"
    assert sender("joe@example.org", *flags).verb == "proceed"
    assert recipient("joe@pc.example.org", *flags) == "joe@pc.example.org"
    assert delivered("--masquerade=h.lan").headers.get("From") == '"Root, the" <root@h.lan>'


MAILBOXES = "--mailboxes={ joe@example.org, jane-doe@example.org, e-mail@example.org }"


@pytest.mark.parametrize(
    ("mode", "address", "expected"),
    [
        ("strip", "joe+list@example.org", "joe@example.org"),
        ("strip", "joe-list@example.org", "joe@example.org"),
        ("strip", "joe@example.org", "joe@example.org"),
        ("strip", "ann-list@example.org", "ann-list@example.org"),
        ("strip", "joe-list@example.net", "joe-list@example.net"),
        ("plus", "joe-list@example.org", "joe+list@example.org"),
        ("plus", "jane-doe-list-2@example.org", "jane-doe+list-2@example.org"),
        ("plus", "e-mail@example.org", "e-mail@example.org"),
        ("plus", "joe+list@example.org", "joe+list@example.org"),
        ("plus", "-x@example.org", "-x@example.org"),
    ],
)
def test_tags(mode: str, address: str, expected: str) -> None:
    flags = "--tags", mode, "--tag-delimiters=+-", MAILBOXES
    assert recipient(address, *flags).strip("<>") == expected


def test_tags_without_mailboxes() -> None:
    assert recipient("joe+a+b@example.org", "--tags=strip") == "<joe@example.org>"
    assert recipient("+a@example.org", "--tags=strip") == "+a@example.org"


def folder(*recipients: str, forged: bytes = b"") -> str | None:
    flags = "--tag-field=X-Folder", "--tags=strip"
    with Conversation(Rewriter, *flags) as smtpd:
        there = client(smtpd)
        there.mail_from("a@example.net")
        for each in recipients:
            there.rcpt_to(each)
        return there.message(forged + b"Subject: x\r\n\r\nx\r\n").headers.get("X-Folder")


def test_a_field_with_the_tag() -> None:
    assert folder("joe+list@example.org") == "list"
    assert folder("joe@example.org", forged=b"X-Folder: evil\r\n") is None
    assert folder("joe+a@example.org", "ann+b@example.org") is None  # a tag is its user's own
    assert folder("joe+../etc@example.org") is None
    assert folder(f"joe+{'x' * 65}@example.org") is None


def test_a_subject_prefix() -> None:
    flags = "--subject-prefix", "[EXTERN]", "--for", "inbound"
    assert delivered(*flags, user="").headers.get("Subject") == "[EXTERN] hello"
    assert delivered(*flags).headers.get("Subject") == "hello"


def test_a_signer_ahead_is_refused_at_start(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(new_private_key(ED25519, 0))
    key.chmod(0o600)
    with Conversation(Rewriter, "--subject-prefix=[X]") as smtpd:
        [rewriter] = smtpd.filters
    with Conversation(
        Dkimsign, "-d", "example.org", "-s", "s", "-k", str(key), "-a", "ed25519-sha256"
    ) as smtpd:
        [dkimsign] = smtpd.filters
    with pytest.raises(ConfigError, match="rewrite must be ahead of dkimsign"):
        Chain([(dkimsign, "tempfail", 5.0), (rewriter, "tempfail", 5.0)], Log())
    Chain([(rewriter, "tempfail", 5.0), (dkimsign, "tempfail", 5.0)], Log())


def test_what_is_signed_behind_it_is_valid(tmp_path: Path) -> None:
    key = written(tmp_path / "rsa.key", pem())
    of_signer = ["-k", key, "-s", "sel", "-d", "example.org"]
    of_rewriter = ["--canonical", LAN, "--subject-prefix", "[für]"]
    signing, _ = parse_flags(Dkimsign.Options, of_signer, common=common_options(), prog="x")
    rewriting, _ = parse_flags(Rewriter.Options, of_rewriter, common=common_options(), prog="x")
    with Conversation([Rewriter(rewriting), Dkimsign(signing)]) as smtpd:
        there = client(smtpd, user="joe")
        there.mail_from("root@h.lan")
        there.rcpt_to("b@example.org")
        mail = there.message(MESSAGE)
    [result] = checked(mail, records("sel"))
    assert (result.result, result.domain) == ("pass", "example.org")
    assert mail.headers.get("From") == '"Root, the" <root-h.lan@example.org>'


WORDS = st.text('abcXYZ019.+-_="\\ @\u00fc', max_size=70)


@given(WORDS, WORDS)
@example('"a b', '"@h.lan')
@example("x" * 64, "h.lan")
def test_every_decision_is_legal(local: str, domain: str) -> None:
    """The kit fails at the end if smtpd would not take what is answered."""
    flags = "--canonical", LAN, "--masquerade=example.org", "--tags=strip", "--tag-delimiters=+-"
    with Conversation(Rewriter, *flags) as smtpd:
        there = client(smtpd)
        there.mail_from(f"{local}@{domain}.lan")
        said = there.rcpt_to(f"{local}@{domain}.example.org")
    assert said.verb == "proceed" or (len(said.parameter) <= 256 and said.parameter.isascii())


def test_many_addresses_are_bounded() -> None:
    with Conversation(Rewriter, "--canonical", LAN) as smtpd:
        there = client(smtpd, user="joe")
        there.mail_from("joe@example.org")
        there.rcpt_to("b@example.org")
        many = b",\r\n ".join(b"a%d@h.lan" % number for number in range(2 * ADDRESSES_MAX))
        mail = there.message(b"To: " + many + b"\r\n\r\nx\r\n")
        value = mail.headers.get("To", "")
        assert value.startswith("a0-h.lan@example.org, a1-h.lan@example.org")
        assert value.endswith(f"a{2 * ADDRESSES_MAX - 1}@h.lan")
    assert "too many addresses in the header" in smtpd.log[-1]


def test_tables_are_reloaded(tmp_path: Path) -> None:
    table = tmp_path / "canonical"
    table.write_text("/^a@/ b@x.example\n")
    with Conversation(Rewriter, "--canonical", f"regexp:{table}") as smtpd:
        assert client(smtpd).mail_from("a@y.example").parameter == "<b@x.example>"
        table.write_text("/^a@/ c@x.example\n")
        smtpd.reload()
        assert client(smtpd).mail_from("a@y.example").parameter == "<c@x.example>"


def test_only_what_is_needed_is_registered() -> None:
    with Conversation(Rewriter, "--subject-prefix=[X]") as smtpd:
        [filter_] = smtpd.filters
    assert filter_.registered == {"headers"}
    assert "protocol-client" not in filter_.required_reports()


def test_what_is_not_anchored_is_logged() -> None:
    with Conversation(Rewriter, "--canonical", LAN) as smtpd:
        pass
    assert "patterns without ^ and $ match whole addresses only count=1" in smtpd.log[0]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "nothing to rewrite"),
        (["--where=header", "--tags=strip"], "--where has no effect"),
        (["--masquerade-except=root", "--tags=strip"], "requires --masquerade"),
        (["--mailboxes=a@b.example", "--subject-prefix=x"], "--mailboxes has no effect"),
        (["--tags=plus"], "--tags plus requires --mailboxes"),
        (["--tags=strip", "--tag-delimiters=a"], "--tag-delimiters"),
        (["--tag-field=X Folder"], "--tag-field"),
        (["--subject-prefix= x"], "--subject-prefix"),
        (["--subject-prefix", "[ext] "], 'at the beginning or end, not "[ext] "'),
        (["--canonical=file:/nonexistent/x"], "--canonical"),
        (["--for=sometimes", "--tags=strip"], "--for"),
        (["--masquerade=org"], "--masquerade"),
    ],
)
def test_wrong_flags(flags: list[str], reason: str) -> None:
    assert reason in complaint("rewrite", *flags)


def test_it_needs_no_event_loop() -> None:
    assert "asyncio" not in loaded_to_set_up(Rewriter, "--canonical", LAN, "--subject-prefix=x")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with a canonical address."""
    path = tmp_path / "db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE canonical (old TEXT PRIMARY KEY, new TEXT)")
        connection.execute("INSERT INTO canonical VALUES ('joe@a.example', 'doe@b.example')")
        connection.execute("INSERT INTO canonical VALUES ('bad@a.example', 'no address')")
        connection.commit()
    return path


def test_a_table_in_a_database(database: Path) -> None:
    flags = "--canonical", f"sqlite:{database}?query={QUERY}"
    with Conversation(Rewriter, *flags) as smtpd:
        there = client(smtpd, user="joe")
        assert there.mail_from("joe@a.example").parameter == "<doe@b.example>"
        assert there.rcpt_to("joe+x@a.example").parameter == "<doe+x@b.example>"
        mail = there.message(b"From: <Joe@A.example>\r\nTo: bad@a.example\r\n\r\nx\r\n")
        assert mail.headers.get("From") == "<doe@b.example>"
        assert mail.headers.get("To") == "bad@a.example"
    assert "rewrite kept address=bad@a.example" in smtpd.log[-1]


def test_a_database_that_is_gone_is_no_missing_entry(database: Path) -> None:
    flags = "--canonical", f"sqlite:{database}?query={QUERY}"
    with Conversation(Rewriter, *flags) as smtpd:
        assert client(smtpd).mail_from("joe@a.example").verb == "rewrite"
        database.unlink()
        assert client(smtpd).mail_from("ann@a.example").reply.startswith("451 4.4.3 ")
