"""The policy servers of the end-to-end tests: postgrey, Dovecot's quota-status and policyd-spf.

Each runs as its package has it, in the network of a lab.
"""

from __future__ import annotations

import importlib.machinery
import shlex
import shutil
import subprocess
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import Lab
from smtpd_filters.testing.server.lab import ENVIRONMENT, LabError
from smtpd_filters.testing.server.output import Output
from smtpd_filters.testing.server.releases import release_root
from tests.e2e.dovecot_set_up import VERSIONS
from tests.e2e.sending import ALICE, BOB

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that a server may take to start.
PATIENCE = 60.0
POSTGREY, QUOTA = 10023, 12340
#: Bytes that a mailbox may have.
MAILBOX = 1 << 20
#: Seconds that a client waits.
DELAY = 1

_DATABASE = "/srv/postgrey"
_DOVECOT = "/srv/dovecot"
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
  args = {_DOVECOT}/users
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
    address = 127.0.0.1
    port = {QUOTA}
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


@contextmanager
def postgrey(lab: Lab) -> Iterator[None]:
    """Run postgrey at POSTGREY."""
    with _beside(lab, {_DATABASE: 0o777}) as inside:
        process = inside.spawn(
            *("/usr/sbin/postgrey", f"--inet=127.0.0.1:{POSTGREY}", f"--dbdir={_DATABASE}"),
            *(f"--delay={DELAY}", "--user=postgrey", "--group=postgrey"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with _running(process):
            _await(lab, POSTGREY, process)
            yield


@contextmanager
def quota_status(lab: Lab) -> Iterator[Lab]:
    """Run Dovecot with quota-status at QUOTA; the mailboxes of ALICE and BOB take MAILBOX.

    Yields the lab of Dovecot, in which its other programs can be run.
    """
    directories = {_DOVECOT: 0o755, "/srv/sieve": 0o777}
    with _beside(lab, directories, root=str(release_root(VERSIONS["2.3"]))) as inside:
        users = "".join(f"{user}::2000:2000::{_DOVECOT}/{user}::\n" for user in (ALICE, BOB))
        for name, text in (("users", users), ("conf", QUOTA_STATUS)):
            inside.run("tee", f"{_DOVECOT}/{name}", input=text.encode())
        inside.run("chown", "2000", _DOVECOT)
        output = Output()
        process = inside.spawn(
            *("/usr/sbin/dovecot", "-F", "-c", f"{_DOVECOT}/conf"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )
        output.follow(process.stdout, "quota-log")
        with _running(process):
            try:
                _await(lab, QUOTA, process)
                yield inside
            except BaseException as error:
                error.add_note("\n".join(output.lines[-50:]))
                raise


@contextmanager
def _beside(lab: Lab, directories: dict[str, int], root: str = "/") -> Iterator[Lab]:
    with Lab(root=root, directories=directories, beside=lab) as inside:
        yield inside


@contextmanager
def _running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()  # its children end with their lab
        process.wait(PATIENCE)


def _await(lab: Lab, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server accepts connections."""
    ends = monotonic() + PATIENCE
    while monotonic() < ends:
        try:
            lab.connect(port).close()
        except OSError:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            break
        return
    raise LabError(f"nothing listens at port {port}")
