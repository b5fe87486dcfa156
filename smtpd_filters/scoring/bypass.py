"""Sessions, messages and recipients that bypass a chain: by tables, or by a filter's verdict."""

from __future__ import annotations

from .tally import ORDER

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


class BypassState:
    """Whether a session, its message and its recipients bypass a chain, and why."""

    __slots__ = ("_message", "_others", "_recipients", "_seen", "_session", "recipient")

    def __init__(self) -> None:
        #: Why the session bypasses the chain; "" if it does not.
        self._session = ""
        #: Whether the client has been looked up in the tables.
        self._seen = False
        self.end_message()

    def end_message(self) -> None:
        """Forget the message and its recipients."""
        #: Why the message bypasses the chain; "" if it does not.
        self._message = ""
        #: The numbers of its recipients that bypass the chain, and of the others.
        self._recipients = self._others = 0
        #: Whether the recipient that smtpd has not reported yet bypasses it.
        self.recipient = False

    def reason(self, order: int) -> str:
        """Return why the chain is bypassed at a phase, given by its place in `ORDER`, or ""."""
        why = self._session or self._message
        if not why and order > ORDER["rcpt-to"] and self._recipients and not self._others:
            why = "all recipients"
        return why

    def look_up(self, tables: BypassTables, session: Session, order: int) -> str:
        """Look up the client, and from mail-from on its user; return an entry found just now."""
        before = self._session
        if not self._seen:
            self._session = tables.of_client(session)
            self._seen = True
        if order >= ORDER["mail-from"] and not self._session:
            self._session = tables.of_user(session)
        return "" if self._session == before else self._session

    def end_by(self, filter_: str, order: int) -> None:
        """Note that the verdict of a filter at a phase ends the chain."""
        if order == ORDER["rcpt-to"]:
            self.recipient = True
        elif order < ORDER["mail-from"]:
            self._session = f"verdict of {filter_}"
        else:
            self._message = f"verdict of {filter_}"

    def count_recipient(self, session: Session) -> None:
        """Count a recipient that smtpd has accepted.

        smtpd does not ask the programs behind one that marks at rcpt-to or replaces the recipient:
        a recipient about which the chain was not asked does not bypass it.
        """
        bypasses, self.recipient = self.recipient, False
        if session.tx is not None and len(session.tx.recipients) > self._recipients + self._others:
            self._recipients += bypasses
            self._others += not bypasses
