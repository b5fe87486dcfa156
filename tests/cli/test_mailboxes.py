"""Tests of `mailboxes`: messages in files, mbox files, maildirs, and files that move meanwhile."""

from __future__ import annotations

import io
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.cli import learn, learn_rspamd, mailboxes
from smtpd_filters.testing.rspamd.stub import Answer
from tests.cli.learning import MAIL, bodies, maildir

if TYPE_CHECKING:
    from tests.cli.learning import Learn


def test_files(call: Learn, tmp_path: Path) -> None:
    names = []
    for n in range(20):
        (tmp_path / f"{n}").write_bytes(b"%d " % n + MAIL)
        names.append(str(tmp_path / f"{n}"))
    status, out, err = call("ham", *names)
    assert (status, err) == (0, "")
    assert out == "20 learned, 0 known already, 0 skipped, 0 not learned\n"
    assert bodies(call.rspamd) == sorted(b"%d " % n + MAIL for n in range(20))
    assert call.rspamd.most_at_once <= 4


def test_a_maildir(call: Learn, tmp_path: Path) -> None:
    box = maildir(tmp_path, one=b"1", two=b"2", three_S=b"3", four_S=b"From 4")
    (box / "tmp" / "five").write_bytes(b"5")
    (box / "cur" / ".hidden").write_bytes(b"6")
    (box / "dovecot-uidlist").write_bytes(b"7")
    (box / ".Junk").mkdir()
    status, out, err = call("spam", str(box), "--jobs", "2")
    assert (status, err) == (0, "")
    assert out.startswith("4 learned,")
    assert bodies(call.rspamd) == [b"1", b"2", b"3", b"From 4"]
    assert call.rspamd.most_at_once <= 2


def test_links_in_a_directory_are_not_followed(call: Learn, tmp_path: Path) -> None:
    """Root may be asked to learn a maildir whose owner has put links to files of others in it."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "one").write_bytes(b"secret")
    box = maildir(tmp_path, one=b"1")
    (box / "new" / "two").symlink_to(secret / "one")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "three").symlink_to(secret / "one")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "new").mkdir()
    (linked / "cur").symlink_to(secret)
    (linked / "uidlist").write_bytes(b"7")
    (linked / "new" / "four").write_bytes(b"4")
    status, _, err = call("spam", str(box), str(plain), str(linked))
    assert (status, err) == (0, "")
    assert bodies(call.rspamd) == [b"1", b"4"]
    # One that was put there since the directory was read.
    [mail] = mailboxes.messages([str(box)])
    assert isinstance(mail, mailboxes.Mail)
    (box / "new" / "one").unlink()
    (box / "new" / "one").symlink_to(secret / "one")
    with pytest.raises(OSError, match="symbolic"):
        mail.open()
    # A link that the operator names is followed.
    assert call("spam", str(box / "new" / "one"))[0] == 0
    assert bodies(call.rspamd)[-1] == b"secret"


def test_a_directory_of_messages(call: Learn, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(b"1")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.eml").write_bytes(b"2")
    assert call("spam", str(tmp_path))[1].startswith("1 learned,")


def test_what_cannot_be_read(call: Learn, tmp_path: Path) -> None:
    # Nobody writes into it: to open it would wait.
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "good").write_bytes(MAIL)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    with listening:
        names = [f"{tmp_path}/{name}" for name in ("socket", "fifo", "none", "good")]
        status, out, err = call("spam", *names, "/dev/null")
    assert status == 66
    assert out.startswith("1 learned, ")
    assert err.count("\n") == 4
    assert f"{tmp_path}/none: No such file or directory" in err
    assert f"{tmp_path}/fifo: Not a regular file, nor a directory" in err
    assert "/dev/null: Not a regular file, nor a directory" in err


@pytest.mark.parametrize("moved", [False, True])
def test_a_file_that_is_another_kind_by_now(tmp_path: Path, *, moved: bool) -> None:
    box = maildir(tmp_path, one=b"1")
    (found,) = mailboxes.messages([str(box)])
    assert isinstance(found, mailboxes.Mail)
    (box / "new" / "one").unlink()
    os.mkfifo(box / "cur" / "one:2,S" if moved else box / "new" / "one")
    with pytest.raises(OSError, match="not a regular file"):
        found.open()


def test_counting(tmp_path: Path) -> None:
    box = str(maildir(tmp_path / "box", one=b"1", two_S=b"2"))
    (tmp_path / "mail").write_bytes(MAIL)
    mail, none = str(tmp_path / "mail"), str(tmp_path / "none")
    assert mailboxes.count([box, mail, none]) == 4
    (tmp_path / "mbox").write_bytes(MBOX)
    assert mailboxes.count([box, str(tmp_path / "mbox")]) is None


# -- mbox ----------------------------------------------------------------------------------------

DATE = b"Sat Nov 21 06:00:00 2026"
MBOX = (
    b"From bob " + DATE + b"\nSubject: 1\n\n>From here\n>>From there\n> From\n\n"
    b"From anna@example.org Sat Nov  1 6:00 +0000 2026\nSubject: 2\n\n"
    b"A line that only looks like one:\n\nFrom now on, Sat Nov 21, 6:00 is late\n\n"
    b"From x " + DATE + b"\n\n"
    b"From \nSubject: 4\n\nbody\nFrom inside " + DATE + b"\nno newline at the end"
)


@pytest.mark.parametrize("stdin", [False, True])
def test_an_mbox(call: Learn, tmp_path: Path, *, stdin: bool) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(MBOX)
    if stdin:
        status, out, err = call("spam", "--mbox", stdin=MBOX)
        assert (status, out) == (65, "")
        assert err == "smtpd-filters: stdin:3: an empty message\n"
    else:
        status, out, err = call("spam", str(path), "--jobs", "1")
        assert (status, err) == (65, f"smtpd-filters: {path}:3: an empty message\n")
        assert out == "3 learned, 0 known already, 0 skipped, 1 not learned\n"
    assert [request.body for request in call.rspamd.requests] == [
        b"Subject: 1\n\nFrom here\n>From there\n> From\n",
        MBOX[MBOX.index(b"Subject: 2") : MBOX.index(b"\nFrom x")],
        b"Subject: 4\n\nbody\nFrom inside " + DATE + b"\nno newline at the end",
    ]


@pytest.mark.parametrize(
    "data",
    [MBOX, b"From here on\nSubject: x\n\nbody\n\nFrom y " + DATE + b"\nno header\n"],
)
def test_a_message_from_stdin_is_one(data: bytes, call: Learn) -> None:
    assert call("spam", stdin=data) == (0, "", "")
    assert [request.body for request in call.rspamd.requests] == [data]


def test_a_file_that_begins_as_no_mbox_does(call: Learn, tmp_path: Path) -> None:
    data = b"From the start, " + DATE[:-4] + b"was late\n\nFrom y " + DATE + b"\nbody\n"
    (tmp_path / "mail").write_bytes(data)
    assert call("spam", str(tmp_path / "mail"))[0] == 0
    assert [request.body for request in call.rspamd.requests] == [data]


@pytest.mark.parametrize("data", [b"", MAIL, b"\n" + MBOX])
def test_an_invalid_mbox(data: bytes, call: Learn) -> None:
    assert call("spam", "--mbox", stdin=data) == (65, "", "smtpd-filters: stdin: not an mbox\n")
    assert not call.rspamd.requests


@pytest.mark.parametrize(
    ("line", "separates"),
    [
        (b"From bob@example.net Sat Nov 21 06:00:00 2026\n", True),
        (b"From bob@example.net Sat Nov 21 06:00:00 2026\r\n", True),
        (b"From - Sat Nov 21 06:00:00 2026\n", True),
        (b"From Sat Nov 21 06:00:00 2026\n", True),
        (b'From "a b"@example.net  Sun Nov  1 06:00 2026\n', True),
        (b"From bob Sat Nov 21 06:00:00 CET 2026\n", True),
        (b"From bob Sat Nov 21 06:00:00 2026 +0100\n", True),
        (b"From bob Sat Nov 21 06:00:00 2026 remote from mx\n", True),
        (b"From \n", True),
        (b"From \r\n", True),
        (b"From bob\n", False),
        (b"From bob@example.net Saturday 21 Nov\n", False),
        (b"From Mon to Fri we are here.\n", False),
        (b"From: bob@example.net Sat Nov 21 06:00:00 2026\n", False),
        (b"from bob Sat Nov 21 06:00:00 2026\n", False),
        (b">From bob Sat Nov 21 06:00:00 2026\n", False),
        (b" From bob Sat Nov 21 06:00:00 2026\n", False),
        (b"From bob Sat Nov 21 06:00:00 20261\n", False),
        (b"From bob Sat Nov 21 06:00:00 2026", False),
    ],
)
def test_what_separates(line: bytes, *, separates: bool, tmp_path: Path) -> None:
    path = tmp_path / "box"
    path.write_bytes(line)
    assert mailboxes.is_mbox(str(path)) == separates
    data = b"From x " + DATE + b"\n1\n\n" + line + b"2\n"
    assert len(list(mailboxes.split("x", io.BytesIO(data)))) == 1 + separates


def test_a_large_message_of_an_mbox(call: Learn, tmp_path: Path) -> None:
    separator = b"From x " + DATE + b"\n"
    limit = mailboxes.MEMORY_LIMIT
    # Also lines that are longer than what is read at once, whose rest looks like a line of its own.
    odd = b"x" * (64 << 10) + b"From y " + DATE + b"\n" + b"y" * (64 << 10) + b"\n\n"
    mails = [b"1\n", odd * (2 * limit // len(odd)) + b"2\n", b"3\n", b"z" * limit, b"\n\n"]
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(separator + mail + b"\n" for mail in mails[:3]))
    with path.open("ab") as file:
        file.write(separator + mails[3] + b"\n\n" + separator + mails[4] + b"\n")
    mails[3] += b"\n"
    # One at a time: a spooled message that is never learned would be an open file.
    assert call("spam", str(path), "--jobs", "1")[:2] == (
        0,
        "5 learned, 0 known already, 0 skipped, 0 not learned\n",
    )
    assert [request.body for request in call.rspamd.requests] == mails


LINES = st.sampled_from(
    [
        *(b"From x", b">From x", b">>From", b"", b"body", b" From", b"\r", b"\xff"),
        *(b"From x " + DATE, b"From ", b"From \r", b">From x " + DATE),
    ]
)


@given(st.lists(st.lists(LINES, min_size=1, max_size=5), min_size=1, max_size=4))
def test_an_mbox_gives_back_what_was_put_into_it(contents: list[list[bytes]]) -> None:
    mails = [b"".join(line + b"\n" for line in lines) for lines in contents]
    box = b""
    for mail in mails:
        quoted = re.sub(rb"(?m)^(>*From )", rb">\1", mail)
        box += b"From a@example.net " + DATE + b"\n" + quoted + b"\n"
    found = []
    for one in mailboxes.split("x", io.BytesIO(box)):
        file, size = one.open()
        with file:
            found.append(file.read())
            assert size == len(found[-1])
    assert found == mails


def test_an_mbox_of_nothing() -> None:
    assert list(mailboxes.split("x", io.BytesIO(b""))) == []
    assert list(mailboxes.split("x", io.BytesIO(b"no separator\n"))) == []
    assert list(mailboxes.split("x", io.BytesIO(b"no date\n\nFrom x " + DATE + b"\n1"))) == []


# -- mail that moves meanwhile -------------------------------------------------------------------


def test_mail_that_moves_meanwhile(call: Learn, tmp_path: Path) -> None:
    box = maildir(tmp_path, one=b"1", two=b"2", three_S=b"3")
    mails = {
        Path(mail.name).name: mail
        for mail in mailboxes.messages([str(box)])
        if isinstance(mail, mailboxes.Mail)
    }
    (box / "new" / "one").rename(box / "cur" / "one:2,S")
    (box / "cur" / "three:2,S").rename(box / "cur" / "three:2,RS")
    (box / "new" / "two").unlink()
    for name, content in (("one", b"1"), ("three:2,S", b"3")):
        file, size = mails[name].open()
        with file:
            assert (file.read(), size) == (content, 1)
    with pytest.raises(mailboxes.Gone):
        mails["two"].open()
    tally = learn.Tally(None)
    daemon = learn_rspamd.Controller(call.rspamd.url, "spam", password="", user="", timeout=5)
    learn._learn_one(daemon, mails["two"], tally)
    assert (tally.done, tally.status) == (0, 0)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    for directory in ("new", "old"):
        with pytest.raises(mailboxes.Gone):
            mailboxes.Mail("x", path=str(tmp_path / directory / "x")).open()


def test_another_file_of_the_same_name(tmp_path: Path) -> None:
    box = maildir(tmp_path, one_S=b"1")
    with pytest.raises(mailboxes.Gone):
        mailboxes.Mail("x", path=str(box / "old" / "one")).open()


def test_what_is_seen_meanwhile_is_learned(call: Learn, tmp_path: Path) -> None:
    box = maildir(tmp_path, one=b"1")
    mails = mailboxes.messages([str(box)])
    first = next(mails)
    assert isinstance(first, mailboxes.Mail)
    (box / "new" / "two").write_bytes(b"2")
    (box / "new" / "two").rename(box / "cur" / "two:2,S")
    assert [mail.name for mail in mails if isinstance(mail, mailboxes.Mail)] == [
        str(box / "cur" / "two:2,S")
    ]
    assert not call.rspamd.requests


def test_a_file_that_gets_shorter(call: Learn, tmp_path: Path) -> None:
    path = tmp_path / "mail"
    path.write_bytes(MAIL)

    class Shrinking(mailboxes.Mail):
        def open(self) -> tuple[Any, int]:
            file, size = super().open()
            return file, size + 1

    call.rspamd.answer = Answer(b"", behaviour="drop")
    daemon = learn_rspamd.Controller(call.rspamd.url, "spam", password="", user="", timeout=5)
    with pytest.raises(learn_rspamd.Refused, match="truncated"):
        daemon.learn(Shrinking("x", path=str(path)))
