"""The secrets of a server and its users: passwords, a certificate and its key."""

from __future__ import annotations

import functools
import subprocess

from .lab import HOSTNAME


def password(user: str) -> str:
    """Return the password of a user of the lab."""
    return f"{user}'s secret"


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
    done = subprocess.run(  # noqa: S603  # the arguments are this module's
        ["openssl", *arguments],  # noqa: S607  # wherever the system has it
        input=words,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
