"""The name of a filter in the log and the journal: --filter-name."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.fcrdns import Fcrdns
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.main import make, named
from smtpd_filters.settings import FILTER_NAME, common_options, parse_flags
from smtpd_filters.testing import Conversation
from tests.journal.made import parse_all

if TYPE_CHECKING:
    from pathlib import Path

SESSION = (
    b"config|smtpd-version|7.8.0\nconfig|protocol|0.7\nconfig|subsystem|smtp-in\nconfig|ready\n"
    b"report|0.7|1.0|smtp-in|link-connect|7641df9771b4ed00|<unknown>|fail|192.0.2.1:1|192.0.2.2:25\n"
    b"filter|0.7|1.0|smtp-in|connect|7641df9771b4ed00|1ef1c203cc576e5d|<unknown>|192.0.2.1\n"
    b"report|0.7|1.1|smtp-in|link-disconnect|7641df9771b4ed00\n"
)


def test_the_log_has_it() -> None:
    with Conversation(Fcrdns, "--filter-name", "rdns", "--require", "rdns") as smtpd:
        smtpd.connect(rdns=None)
        assert " rdns connect result=" in smtpd.log[0]


def test_the_journal_has_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        flags = ["--filter-name=rdns", f"--journal={tmp_path}/socket", "--action=reject"]
        code = "from smtpd_filters.filters.fcrdns import main; main()"
        subprocess.run(
            [sys.executable, "-c", code, *flags], input=SESSION, capture_output=True, check=True
        )
        journal.setblocking(False)  # noqa: FBT003  # its only parameter
        parts: list[dict[str, Any]] = []
        while not parts:
            data = journal.recv(1 << 14)
            parts = [] if b'"state"' in data else parse_all(data)
    assert parts[0]["p"] == "rdns"
    assert [row[0] for row in parts[0]["w"]] == ["rdns"]


def test_the_default_store_stays_that_of_the_kind() -> None:
    flags = ["--filter-name", "second", "--key", "network"]
    own, general = parse_flags(Greylist.Options, flags, common=common_options(), prog="x")
    filter_ = named(make(Greylist, own), general)
    assert filter_.name == "second"
    assert filter_.store_name == "greylist"


@pytest.mark.parametrize("name", ["", "-x", "a b", "a|b", "x" * 65, "é", "two\nlines"])
def test_names_that_the_journal_would_replace_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of at most 64"):
        FILTER_NAME.parse(name)
    assert FILTER_NAME.parse("rdns-2.example") == "rdns-2.example"
