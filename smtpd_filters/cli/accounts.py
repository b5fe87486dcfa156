"""The accounts as which smtpd runs filters."""

from __future__ import annotations

import grp
import os
import pwd
from typing import NamedTuple

from smtpd_filters.settings.quoting import printable

#: The name of smtpd's unprivileged user: on the BSDs, on Debian, elsewhere.
USERS = ("_smtpd", "opensmtpd", "smtpd")


class UnknownError(Exception):
    """There is no such user or group."""


class Account(NamedTuple):
    """A user, with the only group that a filter has under smtpd."""

    name: str
    uid: int
    gid: int

    def enter(self) -> None:
        """Become this user."""
        os.setgroups([self.gid])
        os.setgid(self.gid)
        os.setuid(self.uid)


def filters_user(name: str = "", group: str = "") -> Account:
    """Return the account of a filter, by default smtpd's own. Raises UnknownError."""
    for each in [name] if name else USERS:
        try:
            user = pwd.getpwnam(each)
        except KeyError:
            continue
        return Account(each, user.pw_uid, _group(group) if group else user.pw_gid)
    wanted = printable(name) if name else f"{', '.join(USERS[:-1])} or {USERS[-1]}"
    raise UnknownError(f"no user {wanted}")


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UnknownError(f"no group {printable(name)}") from None
