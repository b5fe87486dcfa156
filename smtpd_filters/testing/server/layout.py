"""Where a server and its filters find things, and how filters are named there."""

from __future__ import annotations

import shlex

# Where things are, as the server sees it.
CODE = "/srv/smtpd-filters"  # the folder that holds the package: a checkout
LIBRARIES = "/srv/site-packages"
BIN = "/srv/lab/bin"
FILES = "/srv/lab/files"
SCRATCH = "/srv/lab/scratch"  # filters may write here
PYCACHE = "/srv/lab/pycache"
MAIL = "/srv/mail"
CONF = "/srv/lab/smtpd.conf"
QUEUE = "/var/spool/smtpd/queue"

# Behind a listener without filters: when it greets, the filters have said that they are ready too.
PROBE = "127.0.0.254"
# Who asks there comes from elsewhere: from the same address the kernel may give it the very port
# that smtpd is going to listen on, and then it is connected to itself.
PROBER = "127.0.0.253"
FIRST_UID = 2000


def filter_command(name: str, *arguments: str) -> str:
    """Return the command line of a filter of this project, `dyndns` for `filter-dyndns`."""
    return shlex.join([f"{BIN}/filter-{name}", *arguments])


def script_command(script: str, *arguments: str) -> str:
    """Return the command line of a Python script: an absolute path inside, or one of `files`."""
    return shlex.join([f"{BIN}/python", file_path(script), *arguments])


def file_path(name: str) -> str:
    """Return where the server and its filters see one of `files`."""
    return name if name.startswith("/") else f"{FILES}/{name}"


def scratch_path(name: str) -> str:
    """Return a path that filters may write to."""
    return f"{SCRATCH}/{name}"
