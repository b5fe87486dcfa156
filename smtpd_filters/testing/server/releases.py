"""Which servers can be run, by version, and the file system in which each is installed.

A version is at home in a release of Debian. On that release it is the system's own, with the
filters run by the Python that runs the tests; elsewhere it runs in a root of the release, which
`tests/e2e/setup-roots` makes, with that root's Python. So both versions run on either release.
Others join them by `add_server`.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from pathlib import Path

SYSTEM = Path("/")
# Each version of smtpd, and the release whose package it is. One protocol each: 0.6 and 0.7.
RELEASES = {"6.8": "bookworm", "7.6": "trixie"}
VERSIONS = tuple(RELEASES)
# The number of the recipe in tests/e2e/setup-roots.
RECIPE = 4
_added: dict[str, Path] = {}


def versions() -> tuple[str, ...]:
    """Return VERSIONS and those that have been added."""
    return tuple(dict.fromkeys((*VERSIONS, *_added)))


def root_of(version: str) -> Path:
    """Return the folder of the file system in which this version of smtpd is installed.

    Raises ValueError if it is not one of `versions()`.
    """
    if version in _added:
        return _added[version]
    if version not in RELEASES:
        raise ValueError(f"no smtpd {version} among {', '.join(versions())}")
    return release_root(RELEASES[version])


def release_root(release: str) -> Path:
    """Return the root of a release of Debian: the system's own if it is that one."""
    if release == system_release():
        return SYSTEM
    cache = os.environ.get("XDG_CACHE_HOME") or "/var/cache"
    return Path(cache) / "smtpd-filters" / f"{release}-{RECIPE}"


def system_version() -> str | None:
    """Return the version of smtpd that is the system's own, None if there is no such version."""
    return next((version for version in versions() if root_of(version) == SYSTEM), None)


@functools.cache
def system_release() -> str:
    """Return the code name of the system's release; empty if it has none. os-release(5)."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def add_server(given: str) -> str:
    """Add the server of `ROOT` or `ROOT=VERSION`, or put it in another's place; return its version.

    ROOT is a file system like those of setup-roots. Raises ValueError, saying why, for one in which
    no smtpd tells its version.
    """
    folder, _, version = given.partition("=")
    root = Path(folder).resolve()
    version = version or _installed(root)
    _added[version] = root
    return version


def _installed(root: Path) -> str:
    """Return the first two numbers of the version of a root's smtpd."""
    try:
        shown = subprocess.run(  # noqa: S603  # the caller has named the root
            ["chroot", root, "/usr/sbin/smtpd", "-h"],  # noqa: S607  # /sbin or /usr/sbin
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as exc:
        raise ValueError(f"{root}: {exc}") from None
    said = shown.stdout + shown.stderr
    found = re.search(r"OpenSMTPD (\d+\.\d+)", said)
    if not found:
        raise ValueError(f"{root}: no smtpd that tells its version: {said.strip()}")
    return found[1]
