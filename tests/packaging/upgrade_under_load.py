"""An upgrade of the installed package and its rollback, under mail: the program that runs inside.

    upgrade_under_load.py MAIL_PASSES OLD NEW [VENV [killed]]

MAIL_PASSES is Debian's test of that name, from which it takes the network. OLD is the .deb that is
installed, or the wheel that is installed in the virtual environment VENV, whose Python runs this
program; NEW is a later one whose filters answer a refused sender with `LATER`. A supervised chain
and a supervised filter of a user's own serve a real smtpd, to which clients send mail all the time.
Each session must be served to its end, each message delivered once, and the refusals must show that
the installed version answered.

With `killed` the filters are killed in the middle of each installation. Mail may be refused
temporarily then, until the installation is over and the filters have been reloaded.

Everything is in namespaces of its own.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import re
import signal
import smtplib
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Protocol

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
#: A filter of a user's own, which imports the package.
OWN = """\
from smtpd_filters import PROCEED, Decision, Filter, Reject, Session, run


class Own(Filter):
    on_error = "tempfail"

    def mail_from(self, session: Session, address: str) -> Decision:
        return Reject("550 5.7.1 Own refusal") if address == "own@else.example" else PROCEED


raise SystemExit(run(Own))
"""
CONFIGURATION = """\
table users {{ "alice" = "2000:2000:{home}" }}
filter "all" proc-exec "{directory}filter-chain --config {chain} --supervised"
filter "own" proc-exec "{python} {own} --supervised"
filter "in" chain {{ "all", "own" }}
listen on 127.0.0.1 port 25 filter "in"
action "deliver" maildir "{home}/Maildir" userbase <users>
match from any for domain "local.example" action "deliver"
"""
SUPERVISORS, MARK = 2, "smtpd-supervise"
#: A sender that each of them refuses.
REFUSED = ("boss@guarded.example", "own@else.example")
#: Starts that fail in a row until requests no longer wait for the next one.
FAILURES = 3
#: pip, which stops itself before it writes a file whose path ends like its first argument.
STOPPING = """\
import os, signal, sys
from pip._internal.cli.main import main

places = [sys.argv[1]]

def stop(event, arguments):
    if event == "open" and arguments[1] == "w" and str(arguments[0]).endswith(tuple(places)):
        places.clear()
        os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(stop)
sys.exit(main(sys.argv[2:]))
"""
#: Files that pip stops before: the first one, when there is no file of the package, and one when
#: there are some.
FIRST, MIDDLE = "/smtpd_filters/__init__.py", "/smtpd_filters/runtime/engine.py"
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
        #: Odd while filters are down; how many sessions were refused temporarily for that.
        self.period = self.deferred = 0

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

    def note_end(self, error: Exception, began: int) -> None:
        """Take note of a session that failed: only temporarily, and while filters are down."""
        with self.news:
            if is_temporary(error) and (self.period % 2 or began != self.period):
                self.deferred += 1
                self.news.notify_all()
                return
        self.note(wrong=f"a session: {error!r}")

    def turn(self) -> None:
        """Begin or end a period in which mail may be refused temporarily."""
        with self.news:
            self.period += 1

    def send(self) -> None:
        """Send sessions until it is over: two messages each, and senders that are refused."""
        while not self.over.is_set():
            began = self.period
            try:
                with connected() as client:
                    for _ in range(2):
                        self.transaction(client)
                    for sender in REFUSED:
                        self.refused(client, sender)
            except (OSError, smtplib.SMTPException) as error:
                self.note_end(error, began)

    def refused(self, client: smtplib.SMTP, sender: str) -> None:
        """Try a sender that a filter refuses."""
        code, text = client.mail(sender)
        if code // 100 == 4:
            raise smtplib.SMTPResponseException(code, text)
        if code == 550:
            self.note(refusal=text.decode())
        else:
            self.note(wrong=f"{code} {text!r} for a refused sender")

    def transaction(self, client: smtplib.SMTP) -> None:
        """Send a message."""
        number = self.number()
        client.sendmail("someone@else.example", [RECIPIENT], message(number))
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

    def wait(self, messages: int, refusal: str = "", deferred: int = 0) -> None:
        """Wait for so many more accepted messages and temporary refusals, and a text of another."""

        def known() -> int:
            return sum(count for text, count in self.refusals.items() if refusal in text)

        with self.news:
            wanted, before = len(self.accepted) + messages, known()
            late = self.deferred + deferred

            def arrived() -> bool:
                return (
                    len(self.accepted) >= wanted
                    and self.deferred >= late
                    and (not messages or known() > before)
                )

            came = self.news.wait_for(lambda: self.wrong or arrived(), 120)
        assert not self.wrong, self.wrong[:10]
        assert came, (len(self.accepted), self.deferred, self.refusals)


def is_temporary(error: Exception) -> bool:
    """Return whether an error is that of a temporary refusal, or of the disconnection after one."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code // 100 == 4 for code, _ in error.recipients.values())
    if isinstance(error, smtplib.SMTPResponseException):
        return error.smtp_code // 100 == 4
    return isinstance(error, smtplib.SMTPServerDisconnected)


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


class Package(Protocol):
    """A way to install a version. `directory` is that of executables, with a slash."""

    directory: str

    def install(self, file: str) -> None:
        """Install a version and have supervised filters reloaded."""


class Debian:
    """Debian's package, which has filters reloaded by itself; smtpd finds them by their names."""

    directory = ""

    def install(self, file: str) -> None:
        """Install a version."""
        subprocess.run(["/usr/bin/dpkg", "-i", file], check=True, timeout=300)


class Venv:
    """A virtual environment with the wheel."""

    def __init__(self, path: str) -> None:
        self.directory = f"{path}/bin/"

    def pip(self, file: str) -> list[str]:
        """Return the arguments of pip that install a version."""
        return ["install", "--no-index", "--disable-pip-version-check", file]

    def install(self, file: str) -> None:
        """Install a version, as README.md says."""
        subprocess.run([f"{self.directory}pip", *self.pip(file)], check=True, timeout=300)
        self.reload()

    def reload(self) -> None:
        """Have supervised filters start again."""
        subprocess.run([f"{self.directory}smtpd-filters", "reload"], check=True, timeout=60)


def change(mail: Mail, package: Package, file: str, log: Path, pool: ThreadPoolExecutor) -> None:
    """Install a version, with sessions that are open from before it until after it."""
    begun, changed = threading.Barrier(LONG + 1), threading.Event()
    spans = [pool.submit(mail.span, begun, changed) for _ in range(LONG)]
    try:
        begun.wait(60)
        before = count_of("reload result=ok", log)
        package.install(file)
        mail_passes.until(
            "reloaded", lambda: count_of("reload result=ok", log) >= before + SUPERVISORS
        )
    finally:
        changed.set()  # the pool waits for the sessions even if this fails
    for each in spans:
        each.result()


def killed(mail: Mail, venv: Venv, file: str, log: Path, place: str) -> None:
    """Install a version, and kill the filters before pip writes the file at this place."""
    command = [f"{venv.directory}python", "-c", STOPPING, place, *venv.pip(file)]
    mail_passes.until("no others run", lambda: len(filters()) == SUPERVISORS)
    with subprocess.Popen(command) as pip:
        try:
            mail_passes.until("pip stops", lambda: status(pip.pid)[1] in "TZ")
            assert status(pip.pid)[1] == "T", f"pip has written no {place}"
            mail.turn()
            before = count_of("ended", log)
            for each in filters():
                os.kill(each, signal.SIGKILL)
            # Both have ended, and so have what was started in their places.
            expected = before + SUPERVISORS * (1 + FAILURES)
            mail_passes.until("given up for now", lambda: count_of("ended", log) >= expected)
            mail.wait(0, deferred=2 * CLIENTS)
            pip.send_signal(signal.SIGCONT)
            assert pip.wait(300) == 0
        finally:
            pip.kill()
    before = reloads(log)
    venv.reload()
    mail_passes.until("reloaded", lambda: reloads(log) >= before + SUPERVISORS)
    mail.turn()  # from now on requests wait for a program that starts


def count_of(words: str, log: Path) -> int:
    """Return how many lines supervisors have logged with these words."""
    return log.read_text().count(f" supervise {words}")


def reloads(log: Path) -> int:
    """Return how many reloads have replaced a program, or have started one where none ran."""
    return count_of("reload result=ok", log) + count_of("reload result=started", log)


def status(process: int | str) -> tuple[str, str, int]:
    """Return the name of a process, its state and its parent."""
    name, _, rest = Path(f"/proc/{process}/stat").read_text().partition("(")[2].rpartition(")")
    state, parent, *_ = rest.split()
    return name, state, int(parent)


def filters() -> list[int]:
    """Return the processes of the filters, which are children of their supervisors."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(path.name)] = status(path.name)
    return [
        pid
        for pid, (_, state, parent) in found.items()
        if state != "Z" and parent in found and found[parent][0] == MARK
    ]


def served(scratch: Path, package: Package, old: str, new: str, *, kill: bool) -> None:
    """Run the server, the clients, and the two changes."""
    home = scratch / "alice"
    home.mkdir()
    os.chown(home, 2000, 2000)
    chain, own, configuration, log = (
        scratch / name for name in ("chain.toml", "own.py", "smtpd.conf", "log")
    )
    chain.write_text(CHAIN)
    own.write_text(OWN)
    configuration.write_text(
        CONFIGURATION.format(
            home=home, chain=chain, own=own, python=sys.executable, directory=package.directory
        )
    )
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
                for version, place, text in ((new, FIRST, LATER), (old, MIDDLE, "Sender")):
                    if kill:
                        assert isinstance(package, Venv)
                        killed(mail, package, version, log, place)
                    else:
                        change(mail, package, version, log, pool)
                    mail.wait(MESSAGES, text)
            finally:
                mail.over.set()
            for each in clients:
                each.result()
        with connected() as client:
            assert LATER not in client.mail(REFUSED[0])[1].decode()
        assert not mail.wrong, mail.wrong[:10]
        assert smtpd.poll() is None
        inbox = home / "Maildir"
        mail_passes.until(
            "all delivered", lambda: len(list(inbox.glob("new/*"))) >= len(mail.accepted)
        )
        found = [number_of(path.read_bytes()) for path in inbox.glob("new/*")]
        assert sorted(found) == sorted(mail.accepted)
        sys.stdout.write(
            f"{len(found)} messages, {mail.refusals.total()} refused, 2 changes of the version,"
            f" {mail.deferred} sessions refused temporarily\n"
        )
    except BaseException:
        sys.stdout.write("".join(log.read_text().splitlines(keepends=True)[-100:]))
        raise
    finally:
        smtpd.kill()  # and with us end all others in our namespace
        smtpd.wait()


def main() -> None:
    """Enter the namespaces, with a name server."""
    _, _, old, new, *rest = sys.argv
    if rest[-1:] != ["inside"]:
        own = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        command = ["/usr/bin/unshare", *own, sys.executable, *sys.argv, "inside"]
        sys.exit(subprocess.run(command, check=False).returncode)
    from smtpd_filters.testing.dns import DNSServer, host

    venv, kill = rest[:-1][:1], "killed" in rest
    package = Venv(*venv) if venv else Debian()
    with (
        tempfile.TemporaryDirectory() as directory,
        DNSServer(host("mail.good.example", SOURCE), listen=[("127.0.0.1", 53)]),
    ):
        Path(directory).chmod(0o755)
        served(Path(directory), package, old, new, kill=kill)


if __name__ == "__main__":
    main()
