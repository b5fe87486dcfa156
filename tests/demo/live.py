"""The demonstration on a real smtpd."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from smtpd_filters.testing.rspamd.daemon import Rspamd
from smtpd_filters.testing.server import Lab, Smtpd, password, root_of
from tests.demo.configuration import CONF, ZONE, commands, laboratory
from tests.demo.log import outcome, read_log
from tests.demo.neighbours import (
    END_OF_DATA,
    INBOX,
    NEIGHBOURS,
    USERS,
    Answered,
    Neighbour,
    Outcome,
)

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Connection, Reply

# Actions of a client besides commands: connecting, and ending a message.
CONNECT, END = "", "."
#: Has Rspamd know the text that it marks, beside the one that it refuses.
TEST_PATTERNS = "enable_test_patterns = true;"


class DemoSmtpd(Smtpd):
    """A server with the operator's configuration, in place of the one that tests have."""

    rspamd = ""

    def configuration(self) -> str:
        """Return the lines that the laboratory needs, and the operator's."""
        # Those of the tests' configuration which declare users, their passwords and ciphers, and
        # the listener by which the start is found out.
        own = [
            line
            for line in super().configuration().splitlines()
            if line.startswith(("table users", "table credentials", "smtp ciphers"))
            or line.split()[:3:2] == ["listen", "127.0.0.254"]
        ]
        return (
            "\n".join([*own[:-1], laboratory(CONF.read_text("utf-8"), self.rspamd), own[-1]]) + "\n"
        )


# -- a real server ---------------------------------------------------------------------------------


def serve(server: str) -> list[Outcome]:
    """Let all neighbours send their mail to a real smtpd; raises LabError if it doesn't run."""
    zone = json.loads(ZONE.read_text("utf-8"))
    conf = CONF.read_text("utf-8")
    with (
        Lab(zone, root=root_of(server)) as lab,
        Rspamd(lab, override={"options.inc": TEST_PATTERNS}, redis=False) as daemon,
    ):
        smtpd = DemoSmtpd(
            server,
            lab=lab,
            users=USERS,
            filters=commands(conf),
            files={"aliases": "postmaster: alice\n"},
        )
        smtpd.rspamd = daemon.url
        answers, places = exchange(smtpd)
    # Read when the server has ended: the log is complete then.
    sessions, said = read_log(smtpd.log)
    return [
        outcome(neighbour, sessions, said, answer, places.get(neighbour.id, ""))
        for neighbour, answer in zip(NEIGHBOURS, answers, strict=True)
    ]


def exchange(smtpd: Smtpd) -> tuple[list[Answered], dict[str, str]]:
    """Send all mail; return the last reply to each message, and where it was delivered."""
    with smtpd:
        answers = [send(smtpd, neighbour) for neighbour in NEIGHBOURS]
        places = {
            str(mail.message["Message-ID"]): mail.folder or INBOX
            for user in USERS
            for mail in smtpd.maildir(user)
        }
    return answers, places


def send(server: Smtpd, neighbour: Neighbour) -> Answered:
    """Send a message; return the refusal, or the reply to the message."""
    plain = base64.b64encode(f"\0{neighbour.user}\0{password(neighbour.user)}".encode()).decode()
    login = ["STARTTLS", "EHLO client", f"AUTH PLAIN {plain}"] if neighbour.user else []
    dialogue = [
        CONNECT,
        "EHLO client",
        *login,
        f"MAIL FROM:<{neighbour.sender}>",
        f"RCPT TO:<{neighbour.recipient}>",
        "DATA",
        END,
    ]
    with server.connection(neighbour.address, port=neighbour.port) as connection:
        for command in dialogue:
            if command == END:
                connection.send(neighbour.message)
            reply = _say(connection, command)
            if reply is None:
                return Answered(_name(command), "(connection closed)")
            last = Answered(_name(command), f"{reply.code} {reply.lines[-1]}")
            if reply.code >= 400:
                break
        if command != CONNECT:
            connection.command("QUIT")
    return last


def _say(connection: Connection, command: str) -> Reply | None:
    if command == CONNECT:
        return connection.reply()
    return connection.starttls() if command == "STARTTLS" else connection.command(command)


def _name(command: str) -> str:
    """Return the name of a command: the part before its parameter."""
    names = {CONNECT: "connect", END: END_OF_DATA}
    return names.get(command) or command.partition(":")[0].partition(" PLAIN")[0]
