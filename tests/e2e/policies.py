"""Filters of the end-to-end tests, each as an author would write it: policies.py NAME ..."""

from __future__ import annotations

import sys
from pathlib import Path

from smtpd_filters.chain import run
from smtpd_filters.filter import Filter
from smtpd_filters.protocol.decisions import PROCEED, Proceed
from smtpd_filters.session import Session
from smtpd_filters.settings import PATH, Settings, option


class Seen(Filter):
    """Write down what is known of the session."""

    name = "seen"

    class Settings(Settings):
        """Where."""

        into = option(PATH, required=True, help="The file.")

    settings: Settings

    def _note(self, text: str) -> Proceed:
        with Path(self.settings.into).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        return PROCEED

    def mail_from(self, session: Session, _address: str) -> Proceed:
        return self._note(
            f"mail-from tls={session.tls} username={session.username} "
            f"{session.method} {session.identity}"
        )

    def commit(self, session: Session) -> Proceed:
        tx = session.tx
        assert tx is not None
        return self._note(f"commit sender={tx.sender} recipients={tx.recipients}")


if __name__ == "__main__":
    which = {kind.name: kind for kind in Filter.__subclasses__()}
    name, *arguments = sys.argv[1:]
    sys.exit(run(which[name], argv=arguments))
