"""Messages sent to filter-content, and what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.filters.content import Content
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing import Delivery


class Sent:
    """The verdict on one message, its fields without smtpd's own, and the log."""

    def __init__(self, mail: bytes, *flags: str, user: str = "", local: bool = False) -> None:
        with Conversation(Content, *flags) as smtpd:
            client = smtpd.connect(local=local)
            client.ehlo("mail.example.net")
            if user:
                client.auth(user, "secret")
            client.mail_from("a@example.net")
            client.rcpt_to("b@example.org")
            self.mail: Delivery = client.message(mail.replace(b"\n", b"\r\n"))
        self.log = list(smtpd.log)

    @property
    def reply(self) -> str:
        return self.mail.reply

    @property
    def head(self) -> list[str]:
        """The fields below smtpd's own, unfolded."""
        fields = [f"{each.name}: {each.value}" for each in self.mail.headers]
        own = next(at for at, each in enumerate(fields) if each.startswith("Received: from mail."))
        return fields[:own] + fields[own + 1 :]


def written(folder: Path, text: str, name: str = "file") -> str:
    """Write a file and return its path."""
    path = folder / name
    path.write_text(text)
    return str(path)
