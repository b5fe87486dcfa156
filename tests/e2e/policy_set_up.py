"""The policy servers of the end-to-end tests: postgrey, Dovecot's quota-status and policyd-spf.

Each runs as its package has it, in the network of a lab.
"""

from __future__ import annotations

import importlib.machinery
import shlex
import shutil
from typing import TYPE_CHECKING

from smtpd_filters.testing.server.releases import release_root
from tests.e2e.daemon import FILES, LOOPBACK, STATE, Daemon
from tests.e2e.dovecot_set_up import VERSIONS
from tests.e2e.sending import ALICE, BOB

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Lab

POSTGREY, QUOTA = 10023, 12340
#: Bytes that a mailbox may have.
MAILBOX = 1 << 20
#: Seconds that a client waits.
DELAY = 1

QUOTA_STATUS = f"""\
base_dir = /run/dovecot
log_path = /dev/stderr
protocols =
ssl = no
mail_location = maildir:~/Maildir
mail_plugins = quota
first_valid_uid = 1
passdb {{
  driver = static
  args = password=x
}}
userdb {{
  driver = passwd-file
  args = {FILES}/users
}}
plugin {{
  quota = count:User quota
  quota_vsizes = yes
  quota_rule = *:bytes={MAILBOX}
  quota_grace = 0
  quota_status_success = DUNNO
  quota_status_nouser = DUNNO
  quota_status_overquota = "552 5.2.2 Mailbox is full"
}}
service quota-status {{
  executable = quota-status -p postfix
  inet_listener {{
    address = {LOOPBACK}
    port = PORT
  }}
}}
"""


def no_postgrey() -> str | None:
    """Return in one line why it can't be run here, None if it can."""
    return None if shutil.which("postgrey", path="/usr/sbin") else "postgrey is not installed"


def no_quota_status() -> str | None:
    """Return in one line why it can't be run here, None if it can."""
    program = release_root(VERSIONS["2.3"]) / "usr/lib/dovecot/quota-status"
    return None if program.exists() else f"no {program} (the package dovecot-core)"


def no_policyd_spf() -> str | None:
    """Return in one line why it can't be run here, None if it can."""
    packages = ["/usr/lib/python3/dist-packages"]
    found = importlib.machinery.PathFinder.find_spec("spf_engine", packages)
    return None if found else "python3-spf-engine is not installed"


def policyd_spf(configuration: str) -> str:
    """Return its command, with the path of its configuration.

    The package of the program itself requires another mail server; this is all that it adds to
    python3-spf-engine.
    """
    code = "from spf_engine.policyd_spf import main; main()"
    return shlex.join(["/usr/bin/python3", "-c", code, configuration])


def postgrey(lab: Lab, *options: str) -> Daemon:
    """Return postgrey at POSTGREY, with these options further."""
    arguments = ["postgrey", f"--inet={LOOPBACK}:PORT", f"--dbdir={STATE}", f"--delay={DELAY}"]
    user = ("--user=postgrey", "--group=postgrey")
    return Daemon(lab, [*arguments, *user, *options], port=POSTGREY)


def quota_status(lab: Lab) -> Daemon:
    """Return Dovecot with quota-status at QUOTA; the mailboxes of ALICE and BOB take MAILBOX.

    In its lab Dovecot's other programs can be run.
    """
    users = "".join(f"{user}::2000:2000::{STATE}/{user}::\n" for user in (ALICE, BOB))
    return Daemon(
        lab,
        ["/usr/sbin/dovecot", "-F", "-c", f"{FILES}/conf"],
        {"conf": QUOTA_STATUS, "users": users},
        port=QUOTA,
        root=release_root(VERSIONS["2.3"]),
    )
