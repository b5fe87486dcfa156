"""An upgrade of the installed package and its rollback, under mail: the program that runs inside.

    upgrade_under_load.py MAIL_PASSES OLD NEW

MAIL_PASSES is the package's test of that name, from which it takes the network. OLD is the .deb
that is installed, NEW a later one whose filters answer a refused sender with `LATER`. A supervised
chain serves a real smtpd, to which clients send mail all the time. Each session must be served to
its end, each message delivered once, and the refusals must show that the installed version
answered. Everything is in namespaces of its own.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import smtplib
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

#: How many clients send at a time, and sessions that last for the whole of an upgrade.
CLIENTS, LONG = 8, 4
#: Messages that are sent before, and after each change of the version.
MESSAGES = 100
LATER = "(later)"
SOURCE = "192.0.2.9"
#: The chain of the example, with two states: a store, and messages that are held.
CHAIN = """\
[chain.all]
filters = ["dyndns", "mailfrom", "limit", "content"]

[filter.mailfrom]
domains = "guarded.example"

[filter.limit]
limit = ["client messages 1000000/1h"]
store = "sqlite:/var/lib/smtpd-filters/limit.sqlite"
"""
CONFIGURATION = """\
table users {{ "alice" = "2000:2000:{home}" }}
filter "all" proc-exec "filter-chain --config {chain} --supervised"
listen on 127.0.0.1 port 25 filter "all"
action "deliver" maildir "{home}/Maildir" userbase <users>
match from any for domain "local.example" action "deliver"
"""
NUMBER = re.compile(rb"(?m)^X-Number: ([0-9]+)\r?$")
RECIPIENT = "alice@local.example"


def load(path: str) -> ModuleType:
    """Import the program MAIL_PASSES, which has no suffix."""
    loader = importlib.machinery.SourceFileLoader("mail_passes", path)
    spec = importlib.util.spec_from_loader("mail_passes", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


mail_passes = load(sys.argv[1])


class Mail:
    """Clients, and what became of their messages."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.news = threading.Condition()
        self.accepted: set[int] = set()
        #: The texts of refusals, and of all that should not have been answered.
        self.refusals: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.count = 0

    def number(self) -> int:
        """Return the number of the next message."""
        with self.news:
            self.count += 1
            return self.count

    def note(self, number: int = 0, refusal: str = "", wrong: str = "") -> None:
        """Take note of an accepted message, a refusal, or anything else."""
        with self.news:
            if number:
                self.accepted.add(number)
            if refusal:
                self.refusals[refusal] += 1
            if wrong:
                self.wrong.append(wrong)
            self.news.notify_all()

    def send(self) -> None:
        """Send sessions until it is over: two messages each, one refused."""
        while not self.over.is_set():
            try:
                with connected() as client:
                    for _ in range(2):
                        self.transaction(client)
                    code, text = client.mail("boss@guarded.example")
                    if code == 550:
                        self.note(refusal=text.decode())
                    else:
                        self.note(wrong=f"{code} {text!r} for a refused sender")
            except (OSError, smtplib.SMTPException) as error:
                self.note(wrong=f"a session: {error!r}")

    def transaction(self, client: smtplib.SMTP) -> None:
        """Send a message."""
        number = self.number()
        try:
            client.sendmail("someone@else.example", [RECIPIENT], message(number))
        except smtplib.SMTPException as error:
            self.note(wrong=f"message {number}: {error!r}")
            raise
        self.note(number)

    def span(self, begun: threading.Barrier, changed: threading.Event) -> None:
        """Send a message whose first half comes before a change, and a second one after it."""
        number = self.number()
        try:
            with connected() as client:
                client.mail("someone@else.example")
                client.rcpt(RECIPIENT)
                assert client.docmd("DATA")[0] == 354
                content = message(number).encode()
                client.send(content[:40])
                begun.wait()
                changed.wait()
                client.send(content[40:] + b".\r\n")
                code, text = client.getreply()
                if code == 250:
                    self.note(number)
                else:
                    self.note(wrong=f"message {number}: {code} {text!r}")
                self.transaction(client)
        except (OSError, smtplib.SMTPException, AssertionError) as error:
            begun.abort()
            self.note(wrong=f"a long session: {error!r}")

    def wait(self, messages: int, refusal: str = "") -> None:
        """Wait for so many more accepted messages, and a refusal with this in its text."""

        def known() -> int:
            return sum(count for text, count in self.refusals.items() if refusal in text)

        with self.news:
            wanted, before = len(self.accepted) + messages, known()
            came = self.news.wait_for(
                lambda: self.wrong or (len(self.accepted) >= wanted and known() > before), 120
            )
        assert not self.wrong, self.wrong[:10]
        assert came, (len(self.accepted), self.refusals)


def connected() -> smtplib.SMTP:
    """Return a client that has said EHLO."""
    client = smtplib.SMTP("127.0.0.1", 25, "client.example", 60, source_address=(SOURCE, 0))
    client.ehlo_or_helo_if_needed()
    return client


def message(number: int) -> str:
    """Return message `number`."""
    lines = "".join(f"line {line} of {number}\r\n" for line in range(200))
    return f"X-Number: {number}\r\nSubject: upgrade\r\n\r\n{lines}"


def number_of(mail: bytes) -> int:
    """Return the number of a delivered message, whose body must be whole."""
    found = NUMBER.search(mail)
    assert found, mail
    number = int(found[1])
    # smtpd adds fields below the header.
    body = message(number).replace("\r\n", "\n").partition("\n\n")[2]
    assert mail.replace(b"\r\n", b"\n").partition(b"\n\n")[2] == body.encode(), mail
    return number


def change(mail: Mail, deb: str, log: Path, pool: ThreadPoolExecutor) -> None:
    """Install a version, with sessions that are open from before it until after it."""
    begun, changed = threading.Barrier(LONG + 1), threading.Event()
    spans = [pool.submit(mail.span, begun, changed) for _ in range(LONG)]
    try:
        begun.wait(60)
        before = reloads(log)
        subprocess.run(["/usr/bin/dpkg", "-i", deb], check=True, timeout=300)
        mail_passes.until("reloaded", lambda: reloads(log) > before)
    finally:
        changed.set()  # the pool waits for the sessions even if this fails
    for each in spans:
        each.result()


def reloads(log: Path) -> int:
    """Return how often the chain has been replaced."""
    return log.read_text().count("supervise reload result=ok")


def served(scratch: Path, old: str, new: str) -> None:
    """Run the server, the clients, and the two changes."""
    home = scratch / "alice"
    home.mkdir()
    os.chown(home, 2000, 2000)
    chain, configuration, log = (scratch / name for name in ("chain.toml", "smtpd.conf", "log"))
    chain.write_text(CHAIN)
    configuration.write_text(CONFIGURATION.format(home=home, chain=chain))
    mail_passes.furnish(scratch)
    mail = Mail()
    with log.open("wb") as file:
        smtpd = subprocess.Popen(
            ["/usr/sbin/smtpd", "-d", "-f", configuration], stderr=file, stdout=file
        )
    try:
        mail_passes.until("smtpd greets", lambda: smtpd.poll() is not None or mail_passes.greets())
        assert smtpd.poll() is None
        with ThreadPoolExecutor(CLIENTS + 2 * LONG) as pool:
            clients = [pool.submit(mail.send) for _ in range(CLIENTS)]
            try:
                mail.wait(MESSAGES)
                assert LATER not in str(mail.refusals)
                change(mail, new, log, pool)
                mail.wait(MESSAGES, LATER)
                change(mail, old, log, pool)
                mail.wait(MESSAGES, "Sender")
            finally:
                mail.over.set()
            for each in clients:
                each.result()
        with connected() as client:
            assert LATER not in client.mail("boss@guarded.example")[1].decode()
        assert not mail.wrong, mail.wrong[:10]
        assert smtpd.poll() is None
        inbox = home / "Maildir"
        mail_passes.until(
            "all delivered", lambda: len(list(inbox.glob("new/*"))) >= len(mail.accepted)
        )
        found = [number_of(path.read_bytes()) for path in inbox.glob("new/*")]
        assert sorted(found) == sorted(mail.accepted)
        sys.stdout.write(
            f"{len(found)} messages, {mail.refusals.total()} refused, 2 changes of the version\n"
        )
    except BaseException:
        sys.stdout.write("".join(log.read_text().splitlines(keepends=True)[-100:]))
        raise
    finally:
        smtpd.kill()  # and with us end all others in our namespace
        smtpd.wait()


def main() -> None:
    """Enter the namespaces, with a name server."""
    _, old, new, *inside = sys.argv[1:]
    if not inside:
        own = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        command = ["/usr/bin/unshare", *own, sys.executable, *sys.argv, "--inside"]
        sys.exit(subprocess.run(command, check=False).returncode)
    from smtpd_filters.testing.dns import DNSServer, host

    with (
        tempfile.TemporaryDirectory() as directory,
        DNSServer(host("mail.good.example", SOURCE), listen=[("127.0.0.1", 53)]),
    ):
        Path(directory).chmod(0o755)
        served(Path(directory), old, new)


if __name__ == "__main__":
    main()
