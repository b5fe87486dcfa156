"""What a server of the lab consists of: where things are, its smtpd.conf's parts, its secrets."""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.testing.server.lab import HOSTNAME

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSIONS = ("6.8", "7.6")
DOMAIN = "local.example"

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

# The number of the recipe in tests/e2e/setup-roots.
RECIPE = "trixie-3"
# Behind a listener without filters: when it greets, the filters have said that they are ready too.
PROBE = "127.0.0.254"
# Who asks there comes from elsewhere: from the same address the kernel may give it the very port
# that smtpd is going to listen on, and then it is connected to itself.
PROBER = "127.0.0.253"
FIRST_UID = 2000

LISTENERS = """\
listen on socket $filter
listen on 127.0.0.1 port 25 $tls auth-optional <credentials> $filter
listen on ::1 port 25 $tls auth-optional <credentials> $filter
"""
MATCHES = """\
match from any for domain <domains> action "deliver"
match from local for local action "deliver"
"""


def root_of(version: str) -> Path:
    """Return the folder of the file system in which this version of smtpd is installed."""
    if version == "6.8":
        return Path("/")
    cache = os.environ.get("XDG_CACHE_HOME") or "/var/cache"
    return Path(cache) / "smtpd-filters" / RECIPE


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


def password(user: str) -> str:
    """Return the password of a user of the lab."""
    return f"{user}'s secret"


def quote(text: str) -> str:
    """Return a string of smtpd.conf(5)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def mapping(name: str, entries: Mapping[str, str]) -> str:
    """Return the declaration of a table that is a mapping."""
    inside = ", ".join(f"{quote(key)} = {quote(value)}" for key, value in entries.items())
    return f"table {name} {{ {inside} }}"


@functools.cache
def hashes(users: tuple[str, ...]) -> list[str]:
    """Return the crypt(3) hashes of the users' passwords."""
    words = "".join(f"{password(user)}\n" for user in users)
    return _openssl("passwd", "-6", "-stdin", words=words).split()


@functools.cache
def certificate() -> tuple[str, str]:
    """Return a self-signed certificate and its key, as PEM."""
    made = _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={HOSTNAME}", "-keyout", "-", "-out", "-"),
    )
    key, mark, rest = made.partition("-----END PRIVATE KEY-----\n")
    return rest, key + mark


def _openssl(*arguments: str, words: str = "") -> str:
    done = subprocess.run(  # noqa: S603 - the arguments are this module's
        ["openssl", *arguments],  # noqa: S607 - wherever the system has it
        input=words,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
