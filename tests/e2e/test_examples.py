"""Tests that every example of smtpd.conf in the documentation is valid, and its commands start."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from smtpd_filters.settings import CHECKING
from smtpd_filters.testing.server import Lab, root_of

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/man/*.[358]")),
    *sorted(ROOT.glob("docs/examples/*.conf")),
]
#: What the files hold that examples name, by the last part of their paths.
FILES = {
    "domains": "example.org\n",
    "friends": "*.example.net\n",
    "lists": "zen.example=127.0.0.[2..11]*3\nlist.example=127.0.[0..255].[1..3]*-2\n",
    "ours": "192.0.2.0/24\n",
    "canonical": "joe@pc.example.org joe@example.org\n",
    "sender_canonical": "/(.*)@(.*)\\.lan/ $1-$2.lan@example.org\n",
    "mailboxes": "joe@example.org\n",
    "partner-domains": "bank.example\n",
    "partners": "192.0.2.7\n",
    "pools": "\\.pool\\.example\\.net$\n",
    "senders": "anna anna@example.org, info@example.org\n",
    "spamtraps": "trap@example.org\n",
    "users": "anna secret\n",
    "aliases": "postmaster: anna\n",
    "passwd": "anna:secret\n",
    "smtpd-filters.toml": (ROOT / "docs" / "examples" / "smtpd-filters.toml").read_text("utf-8"),
}
CHECK = 'f=$(mktemp) && trap \'rm -f "$f"\' EXIT && cat >"$f" && smtpd -n -f "$f"'


class Example(NamedTuple):
    """A piece of smtpd.conf."""

    where: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The command lines of its filters."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        found = re.findall(r'proc-exec "((?:[^"\\]|\\.)*)"', joined)
        return [shlex.split(command.replace('\\"', '"')) for command in found]


def examples() -> list[Example]:
    """Those of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        if page.suffix == ".md":
            blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        elif page.suffix == ".conf":
            blocks = [text]
        else:
            blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", text, re.MULTILINE | re.DOTALL)
            blocks = [re.sub(r"\\[e&]", lambda e: "\\" * (e[0] == "\\e"), each) for each in blocks]
        found += [
            Example(f"{page.name}:{at}", block)
            for at, block in enumerate(blocks, 1)
            if re.search(r"^\s*filter \S+ proc-exec ", block, re.MULTILINE)
        ]
    return found


EXAMPLES = examples()
#: Filters whose stores are in the package's directory, which a laboratory lacks.
WITH_STORES = {"filter-correspondents", "filter-greylist", "filter-limit"}
#: Filters of others that may stand beside ours.
OTHERS = {"filter-dkimsign"}
COMMANDS = {
    shlex.join(command): command
    for each in EXAMPLES
    for command in each.commands
    if command[0] not in OTHERS and not command[0].endswith(".py")
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the files that examples name."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(local(content, tmp_path), "utf-8")
        (tmp_path / name).chmod(0o600 if name in ("users", "passwd") else 0o644)
    return tmp_path


def local(text: str, files: Path) -> str:
    """Return the text with what a lab lacks replaced by what it has."""

    def name(match: re.Match[str]) -> str:
        assert match[1] in FILES, f"say in FILES what {match[0]} holds"
        return str(files / match[1])

    text = text.replace("/var/lib/smtpd-filters/", f"{files}/")
    text = text.replace("/usr/bin/policyd-spf", "/bin/true")
    return re.sub(r"/etc/mail/([\w.-]+)", name, text)


def plain(text: str) -> str:
    """The same without what the operator has and a laboratory has not."""
    # Groups of interfaces are OpenBSD's.
    text = re.sub(r"^listen on (egress|all)\b", "listen on lo", text, flags=re.MULTILINE)
    # Certificates, and users to authenticate, which need them.
    text = re.sub(r"^pki .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(
        r" (tls|smtps)(-require)?( verify)?\b| pki \S+| auth(-optional)?( <\w+>)?(?= )", "", text
    )
    # Files, and tables of other packages, which `tests.e2e.test_from_tables` has.
    lists = set(re.findall(r" for domain <(\w+)>", text))

    def content(match: re.Match[str]) -> str:
        return f"table {match[1]} {{ {'a' if match[1] in lists else 'a = b'} }}"

    return re.sub(r"^table (\S+) (?:file|sqlite):\S+", content, text, flags=re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 20
    assert {example.where.partition(":")[0] for example in EXAMPLES} > {"README.md"}


def test_smtpd_takes_each_example(version: str) -> None:
    failures = []
    with Lab(root=root_of(version)) as lab:
        for example in EXAMPLES:
            text = plain(example.text)
            if not re.search(r"^action ", text, re.MULTILINE):
                text += 'action "local" maildir\nmatch from any for local action "local"\n'
            done = lab.run("sh", "-c", CHECK, input=text.encode(), check=False)
            if done.returncode:
                failures.append((example.where, done.stderr.decode(), text))
    assert not failures


@pytest.mark.parametrize("command", list(COMMANDS.values()), ids=list(COMMANDS))
def test_each_command_of_an_example_starts(command: list[str], files: Path) -> None:
    program, *words = [local(word, files) for word in command]
    if "filter-chain" in (program, *words) and "--config" not in words:
        words += ["--config", str(files / "smtpd-filters.toml")]
    if program in WITH_STORES and "--store" not in words:
        words += ["--store", f"sqlite:{files}/store.sqlite"]
    installed = Path(sys.executable).parent / Path(program).name
    if not installed.exists():
        pytest.fail(f"{program} is none of the executables")
    done = subprocess.run(
        [str(installed), *words],
        input="config|smtpd-version|7.6.0\nconfig|protocol|0.7\nconfig|subsystem|smtp-in\n"
        "config|admd|mx.example.org\nconfig|ready\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=files,
        # A supervisor ends with its input, before its program has registered.
        env={**os.environ, CHECKING: "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("register|ready\n")
