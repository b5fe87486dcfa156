r"""Real servers for tests: smtpd in its own namespaces, real clients, and mail that is read back.

There are two versions with different protocols: "6.8" is Debian 12's 6.8.0p2, "7.6" is Debian 13's
7.6.0p1. On either release one is the system's own, and the other is in a root that
`tests/e2e/setup-roots` of a checkout creates once; `add_server` adds others. Servers require
Linux, root and the packages opensmtpd, iproute2 and openssl; `unavailable(version)` returns what is
missing.

A server starts in well under a tenth of a second, so each test may have its own::

    from smtpd_filters.testing.dns import host
    from smtpd_filters.testing.server import Smtpd, filter_command

    with Smtpd(
        "7.6",
        zone=host("192-0-2-7.dyn.example", "192.0.2.7"),
        filters={"dyndns": filter_command("dyndns", "--action", "junk")},
    ) as server:
        with server.client("192.0.2.7") as client:
            client.sendmail("a@b.example", ["alice@local.example"], b"Subject: hello\r\n\r\nhi\r\n")
        [mail] = server.maildir("alice")
        assert mail.folder == "Junk"
        assert mail.message["Subject"] == "hello"

By default a server has:

- the users alice and bob, with maildirs, addresses at local.example and passwords (`password`);
  mail marked as junk is delivered to the folder "Junk";
- listeners on port 25 of 127.0.0.1 and ::1 and on the socket, with STARTTLS and optional AUTH, each
  with all filters in order (`declarations`, `listeners`, `matches` for another smtpd.conf). 6.8
  can't use a certificate, so here it offers ciphers without one, and `server.tls` accepts these;
- the clock of this process, including an offset by datefudge(1);
- a name server in the test's process that answers only from `zone`: `lab.dns.zone` may be changed
  at any time, `lab.dns.queries` are its questions.

Clients may use any address of 127.0.0.0/8, the documentation networks (`lab.NETWORKS`), or ::1:
`client()` is an smtplib.SMTP, `connection()` and `dialogue()` send anything, `submit()` is sendmail
on the socket. All of them can be used from threads.

- `maildir(user)` waits until all accepted mail is delivered, so an empty list means "nothing".
- `log` has the lines that smtpd and its filters have logged; `wait_for(regex)` waits for a line.
- Leaving the context fails if smtpd has exited, unless `expect_end()` was called. An exception that
  leaves the context gets the log as a note.
- After `terminate()`, `leftovers` lists the processes that did not end by themselves.

The command of a filter is `filter_command("dyndns", ...)` for one of this project,
`script_command(...)` for a Python script in `files` or below `CODE`, or any other shell command
line. Filters run as smtpd's unprivileged user. `CODE` is the folder with this package, read-only: a
checkout, or the site-packages of its Python.
`file_path(name)` is their path of one of `files`, `scratch_path(name)` a path that they may write
to, and `server.scratch(name)` what they wrote there. `signal_filter`, `find` and `lab.processes()`
access their processes; `lab.run` and `lab.spawn` run other commands beside them, such as Redis.
Servers with the same `lab` share one network and zone.
"""

from .client import Client, Connection, Reply
from .configuration import DOMAIN, LISTENERS, MATCHES
from .credentials import password
from .lab import Lab, LabError, Process
from .layout import (
    BIN,
    CODE,
    file_path,
    filter_command,
    scratch_path,
    script_command,
)
from .releases import (
    VERSIONS,
    add_server,
    root_of,
    system_version,
    versions,
)
from .smtpd import Delivered, Smtpd, unavailable

__all__ = [
    "BIN",
    "CODE",
    "DOMAIN",
    "LISTENERS",
    "MATCHES",
    "VERSIONS",
    "Client",
    "Connection",
    "Delivered",
    "Lab",
    "LabError",
    "Process",
    "Reply",
    "Smtpd",
    "add_server",
    "file_path",
    "filter_command",
    "password",
    "root_of",
    "scratch_path",
    "script_command",
    "system_version",
    "unavailable",
    "versions",
]
