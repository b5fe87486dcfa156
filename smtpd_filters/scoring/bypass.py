"""The tables of clients, names, users and recipients that bypass a chain."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.session import Session

    from .rules import RuleSettings

#: The entry of a table of networks for clients on this machine, and of a table of users for all.
LOCAL, ALL = "local", "*"


class BypassTables:
    """The tables; each method returns the entry that matches, in words, or ""."""

    __slots__ = ("_clients", "_names", "recipients", "users")

    def __init__(self, settings: RuleSettings) -> None:
        self._clients = settings.bypass_clients
        self._names = settings.bypass_names
        self.users = settings.bypass_users
        self.recipients = settings.bypass_recipients

    def of_client(self, session: Session) -> str:
        """Look up the client's address, and its reverse name if that is confirmed."""
        if self._clients is not None:
            keys = [LOCAL] if session.local else []
            if address := session.address:
                keys.append(address)
            for key in keys:
                if entry := self._clients.match(key):
                    return f"client {entry}"
        # The owner of an address chooses its reverse name; only a confirmed one says who it is.
        name = session.rdns if session.fcrdns == "pass" else None
        if self._names is not None and name and (entry := self._names.match(name)):
            return f"name {entry}"
        return ""

    def of_user(self, session: Session) -> str:
        """Look up the authenticated user."""
        if self.users is None or not session.username:
            return ""
        entry = self.users.match(session.username) or self.users.match(ALL)
        return f"user {entry}" if entry else ""

    def of_recipient(self, address: str) -> str:
        """Look up a recipient."""
        if self.recipients is not None and (entry := self.recipients.match(address)):
            return f"recipient {entry}"
        return ""
