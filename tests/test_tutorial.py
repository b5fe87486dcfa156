"""The code of docs/writing-a-filter.md runs, and its tests pass."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from smtpd_filters.testing.server import BIN, Smtpd, file_path
from tests.type_check import type_check

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "writing-a-filter.md").read_text("utf-8")
FILES = {
    name: content
    for content, name in re.findall(
        r"^```python\n((?:#![^\n]*\n)?# (\w+\.py)\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
}
TESTS = sorted(name for name in FILES if name.startswith("test_"))
FILTERS = sorted(FILES.keys() - set(TESTS))
#: The flags without which a filter doesn't start here.
FLAGS = {
    "accounts.py": ("--accounts", "DE89370400440532013000"),
    "keep.py": ("--directory", "/tmp", "--subjects", "invoice"),  # noqa: S108  # in every root
    "partners.py": ("--partners", "{ example.net = mail.example.net }"),
    "quota.py": ("--service", "http://127.0.0.1:1"),
    "subject.py": ("--service", "http://127.0.0.1:1"),
    "lockout.py": ("--store", "memory:"),
    "recipients.py": ("--store", "memory:"),
}
SMTPD = "config|smtpd-version|7.6.0\nconfig|protocol|0.7\nconfig|admd|mx\nconfig|ready\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the page shows."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, "utf-8")
    for name in FILTERS:
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(folder: Path, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_of_code_is_a_file() -> None:
    assert len(FILES) == PAGE.count("```python\n")
    assert len(FILTERS) == 16
    assert len(TESTS) == 5


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_serves(name: str, folder: Path) -> None:
    assert "usage: filter-" in run(folder, name, "--help")
    assert run(folder, name, *FLAGS.get(name, ()), stdin=SMTPD).endswith("register|ready\n")


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_is_an_executable(name: str, folder: Path) -> None:
    """smtpd has a shell run the command, with one socket as stdin and stdout."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(SMTPD.encode())
        ours.shutdown(socket.SHUT_WR)
        done = subprocess.run(
            ["/bin/sh", "-c", f"exec {shlex.join([str(folder / name), *FLAGS.get(name, ())])}"],
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        theirs.close()
        answer = ours.makefile().read()
    assert done.returncode == 0, done.stderr
    assert answer.endswith("register|ready\n")


class Executables(Smtpd):
    """A server on which the files are executable, and whose python3 has the package."""

    def _furnish(self) -> None:
        super()._furnish()
        self.path(f"{BIN}/python3").symlink_to("python")
        for name in FILTERS:
            self.path(file_path(name)).chmod(0o755)


@pytest.mark.e2e
def test_a_real_smtpd_runs_them(version: str) -> None:
    path = f"{BIN}:/usr/bin:/bin"
    with Executables(
        version,
        filters={
            name.removesuffix(".py"): shlex.join(
                ["/usr/bin/env", f"PATH={path}", file_path(name), *FLAGS.get(name, ())]
            )
            for name in FILTERS
        },
        files={name: FILES[name] for name in FILTERS},
    ) as server:
        _, greeted = server.dialogue("127.0.0.1", ["EHLO mail.example.net"])
        assert greeted.code == 250


def test_the_settings_are_those_that_the_page_names(folder: Path) -> None:
    shown = run(folder, "quiet2.py", "--help")
    assert "--until N" in shown
    assert "--allow TABLE" in shown


def test_its_tests_pass(folder: Path) -> None:
    shown = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    tests = sum(FILES[name].count("\ndef test_") for name in TESTS)
    assert f"{tests} passed" in shown


BARE = """
from bare import Bare
from smtpd_filters.testing import Conversation


def test_bare() -> None:
    with Conversation(Bare, "--exempt", "198.51.100.0/24") as smtpd:
        client = smtpd.connect(rdns=None)
        client.ehlo()
        assert not client.mail_from("a@example.net").refused
        client.rset()
        assert client.mail_from("a@example.net").reply.startswith("450 ")
        smtpd.advance(61)
        assert not client.mail_from("a@example.net").refused
        exempt = smtpd.connect(rdns=None, address="198.51.100.1")
        exempt.ehlo()
        for _ in range(2):
            assert not exempt.mail_from("a@example.net").refused
            exempt.rset()
"""


def test_the_filter_with_exemptions_does_what_the_page_says(folder: Path) -> None:
    (folder / "test_bare.py").write_text(BARE, "utf-8")
    assert "1 passed" in run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bare.py")


PARTNERS = """
from partners import Partners
from smtpd_filters import Filter, Reject, Session
from smtpd_filters.scoring.rules import FilterRules, Rules
from smtpd_filters.testing import Conversation

RULES = Rules(filters={"partners": FilterRules(bypass=("exempt",))})


class Closed(Filter):
    def rcpt_to(self, session: Session, address: str) -> Reject:
        return Reject("550 5.7.1 Closed")


def test_partners() -> None:
    chain = [(Partners, "--partners", "{ example.net = mail.example.net }"), Closed]
    with Conversation(chain, rules=RULES) as smtpd:
        for name, refused in (("mail.example.net", False), ("mail.example.org", True)):
            client = smtpd.connect(name)
            client.ehlo()
            client.mail_from("a@example.net")
            assert client.rcpt_to("b@example.org").refused is refused
            assert client.rcpt_to("c@example.org").refused is refused
"""


def test_an_exemption_ends_the_chain_as_the_page_says(folder: Path) -> None:
    (folder / "test_partners.py").write_text(PARTNERS, "utf-8")
    run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_partners.py")


LOCKOUT = """
from lockout import Lockout
from smtpd_filters.testing import Client, Conversation, HTTPStub
from smtpd_filters.testing.http import Answer


def begin(smtpd: Conversation) -> Client:
    client = smtpd.connect()
    client.ehlo()
    return client


def test_lockout() -> None:
    with HTTPStub(Answer(b"", status=204)) as hook:
        with Conversation(Lockout, "--limit", "2", "--window", "60", "--hook", hook.url) as smtpd:
            client = begin(smtpd)
            for _ in range(3):  # successful logins don't count
                client.auth("bob", mechanism="LOGIN")
                client.mail_from("bob@example.org")
                client.quit()
                client = begin(smtpd)
            assert client.auth("bob", ok=False, mechanism="LOGIN").verb == "proceed"
            assert begin(smtpd).auth("eve", ok=False, mechanism="LOGIN").verb == "proceed"
            for _ in range(2):
                assert begin(smtpd).auth("bob", mechanism="LOGIN").reply.startswith("454 ")
            other = smtpd.connect(address="192.0.2.9")
            other.ehlo()
            assert not other.auth("bob", mechanism="LOGIN").refused
            smtpd.advance(61)
            assert not begin(smtpd).auth("bob", mechanism="LOGIN").refused
        [request] = hook.requests
        assert request.body == b'{"client": "192.0.2.1", "tried": 3}'


def test_a_hook_that_fails() -> None:
    with HTTPStub(Answer(b"", status=500)) as hook:
        with Conversation(Lockout, "--limit", "1", "--hook", hook.url) as smtpd:
            begin(smtpd).auth("bob", ok=False)
            assert begin(smtpd).auth("bob", mechanism="LOGIN").refused
        assert "hook failed" in smtpd.log[0]
"""


def test_the_filter_of_logins_does_what_the_page_says(folder: Path) -> None:
    (folder / "test_lockout.py").write_text(LOCKOUT, "utf-8")
    run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_lockout.py")


NAMES = """
import pytest
from names import Names
from smtpd_filters.testing import Conversation, Delivery


def send(field: str) -> Delivery:
    with Conversation(Names) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        return client.message(f"{field}\\r\\n\\r\\nhello\\r\\n".encode())


@pytest.mark.parametrize("field", [
    'From: "pay@bank.example" <x@evil.example>',
    "From: =?utf-8?q?pay=40bank.example?= <x@evil.example>",
    "From: pay@bank.example <x@evil.example>",
    "From: x@evil.example (pay@bank.example)",
    "Reply-To: Us: a@b.example, pay\\uff20bank.example <x@evil.example>;",
])
def test_refused(field: str) -> None:
    assert send(field).refused


@pytest.mark.parametrize("field", [
    'From: "x@evil.example" <x@evil.example>',
    "From: Bob @ Work <x@evil.example>",
    "To: pay@bank.example, x@evil.example",
])
def test_passed(field: str) -> None:
    assert not send(field).refused


def test_cut() -> None:
    field = "To: " + ",\\r\\n ".join(f"a{each}@b.example" for each in range(300))
    assert send(field).headers.get("X-Spam") == "Yes"
"""


def test_the_filter_of_names_does_what_the_page_says(folder: Path) -> None:
    (folder / "test_names.py").write_text(NAMES, "utf-8")
    run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_names.py")


ATTACHMENTS = """
from attachments import Attachments
from smtpd_filters import Decision, Message, Session, UnavailableError
from smtpd_filters.testing import Conversation

MAIL = (
    b"X-Large-Attachments: 7\\r\\nX-Large-\\0Attachments: 8\\r\\njunk\\r\\n"
    b'Content-Type: application/pdf; name="%b"\\r\\n\\r\\n%b\\r\\n'
)


def test_attachments() -> None:
    with Conversation(Attachments, "--above", "1k") as smtpd:
        client = smtpd.connect()
        client.ehlo()
        for name, text, count, mark in (
            (b"a.pdf", b"x", "0", None), (b"a.exe", b"x", "0", "Yes"),
            (b"a.pdf", b"x" * 1024, "1", None),
        ):
            client.mail_from("a@example.net")
            client.rcpt_to("b@example.org")
            mail = client.message(MAIL % (name, text))
            assert mail.headers.get_all("X-Large-Attachments") == [count]
            assert b"Attachments: 8" not in mail.bytes
            assert next(iter(mail.headers.names())) in {"X-Large-Attachments", "X-Spam"}
            assert mail.headers.get("X-Spam") == mark


class Failing(Attachments):
    async def message(self, session: Session, message: Message) -> Decision:
        await super().message(session, message)
        raise UnavailableError("no answer")


def test_one_that_fails() -> None:
    with Conversation(Failing) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        mail = client.message(MAIL % (b"a.exe", b"x"))
        assert mail.headers.names() == ["Received", "Content-Type"]
"""


def test_the_filter_of_attachments_does_what_the_page_says(folder: Path) -> None:
    (folder / "test_attachments.py").write_text(ATTACHMENTS, "utf-8")
    shown = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_attachments.py")
    assert "2 passed" in shown


ACCOUNTS = """
import base64
import pytest

from accounts import Accounts
from smtpd_filters.testing import Conversation

HTML = "<p>pay to \\uff24E89<b>37</b>04 0044&nbsp;0532<!-- x -->\\u200b0130 00 now</p>"
PAD = "<br>hello" * 10_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PAD + HTML + PAD, "de89370400440532013000"),
        ("no12 DE89  3704 0044 0532 0130 00", "de89370400440532013000"),
        (PAD, ""),
        ("x" * 2_000_000, "texts"),
    ],
)
def test_accounts(text: str, reason: str) -> None:
    fields = b"Content-Type: text/html; charset=utf-8\\nContent-Transfer-Encoding: base64\\n\\n"
    with Conversation(Accounts, "--accounts", "{ DE89370400440532013000 }") as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        mail = client.message(fields + base64.encodebytes(text.encode()))
        assert mail.refused == bool(reason)
        if not text.startswith("x"):
            client.mail_from("a@example.net")
            client.rcpt_to("b@example.org")
            subject = b"Subject: =?utf-8?q?DE89_3704_0044_0532_0130_00?="
            assert client.message(b"Subject: x\\n" + subject + b"\\n\\nhello\\n").refused
    assert not reason or reason in smtpd.log[0] or "too long" in smtpd.log[0]
"""


def test_the_filter_of_accounts_does_what_the_page_says(folder: Path) -> None:
    (folder / "test_accounts.py").write_text(ACCOUNTS, "utf-8")
    shown = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_accounts.py")
    assert "4 passed" in shown


def test_its_code_is_type_checked(folder: Path) -> None:
    done = type_check(folder, *FILTERS, *TESTS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["known.py", "strict.py"])
def test_a_forgotten_outcome_is_reported(name: str, folder: Path) -> None:
    code = re.sub(r" {12}case Unavailable\(\).*\n.*\n", "", FILES[name])
    assert code != FILES[name]
    (folder / name).write_text(code, "utf-8")
    done = type_check(folder, name)
    assert "error: Missing return statement  [return]" in done.stdout


def test_a_filter_is_installed_as_the_page_says(folder: Path, tmp_path: Path) -> None:
    [project] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "pyproject.toml").write_text(project, "utf-8")
    target = tmp_path / "installed"
    pip = ["-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    run(folder, *pip, "--disable-pip-version-check", "--target", str(target), ".")
    assert {file.name for file in target.glob("*.py")} == {"tag.py"}
    (tmp_path / "chain.toml").write_text('[chain.main]\nfilters = ["tag"]\n', "utf-8")
    module = "import sys; from smtpd_filters.cli{} import main; sys.exit(main())"
    chain = [module.format(".chain"), "--config", str(tmp_path / "chain.toml")]
    environment = {"PYTHONPATH": f"{target}:{ROOT}", "PATH": "/usr/bin:/bin"}
    for command, expected in (
        ([str(target / "bin" / "filter-tag"), "--help"], "usage: filter-tag"),
        ([sys.executable, "-c", module.format(""), "list"], "filter-tag"),
        ([sys.executable, "-c", *chain], "register|filter|smtp-in|data-line\n"),
    ):
        done = subprocess.run(
            command,
            cwd=tmp_path / "installed",
            env=environment,
            input=SMTPD,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
