"""The available versions of smtpd, and the file system in which each is installed.

Each version belongs to a release of Debian. On that release it is the system's own, and the Python
that runs the tests also runs the filters; elsewhere it runs in a root of the release, created by
`tests/e2e/setup-roots`, with that root's Python. So both versions run on either release.
`add_server` adds others.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from pathlib import Path

SYSTEM = Path("/")
# The release of each version of smtpd. Their protocols are 0.6 and 0.7.
RELEASES = {"6.8": "bookworm", "7.6": "trixie"}
VERSIONS = tuple(RELEASES)
# The number of the recipe in tests/e2e/setup-roots.
RECIPE = 5
_added: dict[str, Path] = {}


def versions() -> tuple[str, ...]:
    """Return VERSIONS and the added ones."""
    return tuple(dict.fromkeys((*VERSIONS, *_added)))


def root_of(version: str) -> Path:
    """Return the root of the file system in which this version of smtpd is installed.

    Raises ValueError if it isn't one of `versions()`.
    """
    if version in _added:
        return _added[version]
    if version not in RELEASES:
        raise ValueError(f"no smtpd {version} among {', '.join(versions())}")
    return release_root(RELEASES[version])


def release_root(release: str) -> Path:
    """Return the root of a release of Debian, which is "/" for the system's own."""
    if release == system_release():
        return SYSTEM
    cache = os.environ.get("XDG_CACHE_HOME") or "/var/cache"
    return Path(cache) / "smtpd-filters" / f"{release}-{RECIPE}"


def system_version() -> str | None:
    """Return the system's own version of smtpd, or None."""
    return next((version for version in versions() if root_of(version) == SYSTEM), None)


@functools.cache
def system_release() -> str:
    """Return the code name of the system's release (os-release(5)), or ""."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def add_server(given: str) -> str:
    """Add or replace the server of `ROOT` or `ROOT=VERSION`; return its version.

    ROOT is a file system like those of setup-roots. Raises ValueError with the reason if the
    version can't be determined.
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
            ["chroot", root, "/usr/sbin/smtpd", "-h"],  # noqa: S607  # in /sbin or /usr/sbin
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as exc:
        raise ValueError(f"{root}: {exc}") from None
    output = shown.stdout + shown.stderr
    found = re.search(r"OpenSMTPD (\d+\.\d+)", output)
    if not found:
        raise ValueError(f"{root}: can't determine smtpd's version: {output.strip()}")
    return found[1]
