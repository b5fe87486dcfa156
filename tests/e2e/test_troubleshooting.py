"""Tests that the log has the lines of the troubleshooting page."""

from __future__ import annotations

import re
import smtplib
import ssl
from pathlib import Path

import pytest

from smtpd_filters.testing.server import LabError, Smtpd, file_path
from smtpd_filters.testing.server.layout import BIN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
FILE = "x.py"
SHELL = "from smtpd_filters import run\nclass Quiet(Filter):\n    pass\n"
PYTHON = "#!/usr/bin/env python3\n"


class Prepared(Smtpd):
    """A server with a filter of somebody's own, of this mode."""

    mode = 0o755

    def _furnish(self) -> None:
        super()._furnish()
        self.path(file_path(FILE)).chmod(self.mode)


class Forgotten(Prepared):
    """The same, before it was made executable."""

    mode = 0o644


def fails(server: Smtpd) -> str:
    """What the log of a server says that doesn't start."""
    with pytest.raises(LabError) as raised, server:
        pass
    return str(raised.value)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (Prepared, "\n" + SHELL, "x.py: 2: from: not found"),
        (Prepared, SHELL, 'Syntax error: "(" unexpected'),
        (
            Prepared,
            f"{PYTHON}import sys\nsys.path.clear()\nimport smtpd_filters\n",
            "ModuleNotFound",
        ),
        (Prepared, "#!/root/filters/bin/python3\n", "x.py: Permission denied"),
        (Forgotten, PYTHON, "x.py: Permission denied"),
    ],
    ids=["shell", "syntax", "package", "root", "mode"],
)
def test_a_filter_of_ones_own(kind: type[Smtpd], text: str, said: str, version: str) -> None:
    assert said in PAGE
    assert said in fails(kind(version, filters={"own": file_path(FILE)}, files={FILE: text}))


def test_a_user_that_does_not_exist(version: str) -> None:
    said = {"6.8": "smtpd: getpwnam: Success"}.get(version, "smtpd: getpwnam")
    assert f"`{said}`" in PAGE
    lines = 'filter "own" proc-exec "/bin/cat" user nobodyx\n'
    listener = 'listen on 127.0.0.1 filter "own"\n'
    assert f"{said}\n" in fails(Smtpd(version, declarations=lines, listeners=listener)) + "\n"


def test_tls_with_a_certificate(version: str) -> None:
    with Smtpd(version, declarations='smtp ciphers "HIGH"\n') as server:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for newest in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context.maximum_version = newest
            client = server.client("192.0.2.1")
            client.ehlo()
            if version != "6.8":
                client.starttls(context=context)
                client.quit()
                continue
            with pytest.raises((ssl.SSLError, smtplib.SMTPException)):
                client.starttls(context=context)
            client.close()
        if version == "6.8":
            for text in re.findall(r"error:0A[0-9A-F]+:SSL routines::[\w ]+", PAGE):
                server.wait_for(re.escape(text))


def test_a_command_is_tried_by_hand(version: str) -> None:
    [tried] = re.findall(
        r"^    (runuser -u \w+ -- )smtpd-filters run fcrdns (?=--allow)", PAGE, re.MULTILINE
    )
    with Smtpd(version, files={"friends": "192.0.2.1\n"}) as server:
        command = f"{BIN}/smtpd-filters run fcrdns --allow file:{file_path('friends')}"
        # script(1) has a terminal.
        shown = server.lab.run("script", "-qec", f"{tried}{command}", "/dev/null")
        [said] = re.findall("`(flags and files are right.*?)`", PAGE)
        assert said in shown.stdout.decode()
        server.path(file_path("friends")).chmod(0o600)
        as_root = server.lab.run("script", "-qec", command, "/dev/null")
        assert b"as user root" in as_root.stdout
        failed = server.lab.run("script", "-qec", f"{tried}{command}", "/dev/null", check=False)
        assert failed.returncode == 2
        assert b"Permission denied for user opensmtpd" in failed.stdout
    assert "Permission denied for user opensmtpd" in PAGE


def test_from_a_message_in_junk_to_its_session(version: str) -> None:
    filters = {"fcrdns": f"{BIN}/filter-fcrdns"}
    with Smtpd(version, filters=filters) as server:
        with server.client("192.0.2.1") as client:
            client.sendmail("a@example.net", ["alice@local.example"], b"Subject: x\r\n\r\nx\r\n")
        [mail] = server.maildir("alice")
        assert mail.folder == "Junk"
        found = re.search(r"with ESMTP id ([0-9a-f]{8})", mail.message["Received"])
        assert found
        session = server.wait_for(rf"(\S+) smtp message msgid={found[1]}")[1]
        server.wait_for(rf"{session} fcrdns connect result=junk reason=")
