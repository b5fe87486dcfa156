r"""Real servers for tests: smtpd in namespaces of its own, real clients, mail read back.

Two versions, each with its protocol: "6.8" is Debian 12's 6.8.0p2, "7.6" is Debian 13's 7.6.0p1.
On either release one is the system's own, and the other is in a root that `tests/e2e/setup-roots`
makes once and keeps; `add_server` adds others. It takes Linux, root and the packages opensmtpd,
iproute2 and openssl; `unavailable(version)` says what is missing.

A server takes well under a tenth of a second to start, so each test may have its own::

    from smtpd_filters.testing.dns import host
    from . import Smtpd, filter_command

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

What a server has, unless told otherwise:

- the users alice and bob, with maildirs, addresses at local.example and passwords (`password`);
  what is marked as junk goes to the folder "Junk";
- listeners on port 25 of 127.0.0.1 and ::1 and on the socket, with STARTTLS and optional AUTH, all
  of them with all filters in order (`declarations`, `listeners`, `matches` for another smtpd.conf);
- the clock of this process, also where datefudge(1) has moved it;
- a name server that answers from `zone` and nothing else, in the test's own process: `lab.dns.zone`
  may be changed while it runs, `lab.dns.queries` is what it was asked.

Clients come from any address of 127.0.0.0/8, the documentation networks (`lab.NETWORKS`), or ::1:
`client()` is an smtplib.SMTP, `connection()` and `dialogue()` say anything, `submit()` is sendmail
on the socket. All of them can be used from threads.

- `maildir(user)` waits until all that was accepted is delivered, so an empty list means "nothing".
- `log` is what smtpd and its filters have logged; `wait_for(regex)` waits for a line of it.
- Leaving the context fails if smtpd has died meanwhile; `expect_end()` says that it is to die. An
  exception that passes through gets the log as a note.
- After `terminate()`, `leftovers` lists what did not end by itself.

Commands of filters: `filter_command("dyndns", ...)` is one of this project, `script_command(...)` a
Python script, inside the checkout (`CODE`) or given as one of `files`; anything else is a shell
command line. Filters run as smtpd's unprivileged user and see the checkout read-only at `CODE`;
`file_path(name)` is where they read `files`, `scratch_path(name)` where they may write and
`server.scratch(name)` what they wrote. `signal_filter`, `find` and `lab.processes()` reach them as
processes; `lab.run` and `lab.spawn` run commands beside them (a Redis, say). Several servers share
one network and zone when they are given the same `lab`.
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
