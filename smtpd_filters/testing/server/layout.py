"""The paths inside a lab, and the command lines of filters there."""

from __future__ import annotations

import shlex

# Paths inside the lab.
CODE = "/srv/smtpd-filters"  # the folder that holds the package: a checkout
LIBRARIES = "/srv/site-packages"
BIN = "/srv/lab/bin"
FILES = "/srv/lab/files"
SCRATCH = "/srv/lab/scratch"  # filters may write here
MAIL = "/srv/mail"
CONF = "/srv/lab/smtpd.conf"
QUEUE = "/var/spool/smtpd/queue"

# The address of a listener without filters: when it greets, the filters are ready as well.
PROBE = "127.0.0.254"
# The client's address. From PROBE itself, the kernel could assign it the very port on which smtpd
# is going to listen, and connect it to itself.
PROBER = "127.0.0.253"
FIRST_UID = 2000


def filter_command(name: str, *arguments: str) -> str:
    """Return the command line of a filter of this project, `dyndns` for `filter-dyndns`."""
    return shlex.join([f"{BIN}/filter-{name}", *arguments])


def script_command(script: str, *arguments: str) -> str:
    """Return the command line of a Python script: an absolute path inside, or one of `files`."""
    return shlex.join([f"{BIN}/python", file_path(script), *arguments])


def file_path(name: str) -> str:
    """Return the path of one of `files` inside the lab."""
    return name if name.startswith("/") else f"{FILES}/{name}"


def scratch_path(name: str) -> str:
    """Return a path that filters may write to."""
    return f"{SCRATCH}/{name}"
