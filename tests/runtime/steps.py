"""The steps of two sessions that smtpd writes, for the programs that let allocations fail."""

from __future__ import annotations

from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from tests.runtime.process import TOKENS, sid

SMTPD = SmtpdConnection()
ONE, TWO = sid(1), sid(2)
MAIL = [b"Subject: x", b"From: y@z", b"", b"body", b"", b"..more", *(b"x%d" % n for n in range(40))]


def asked(phase: str, session: bytes, argument: bytes = b"") -> bytes:
    return SMTPD.request(phase, session, TOKENS[phase], argument)


def sent(session: bytes, lines: list[bytes], *, end: bool = False) -> bytes:
    return SMTPD.lines(session, TOKENS["data-line"], lines, end=end)


WHERE = (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")
STEPS = [
    SMTPD.report("link-connect", ONE, *WHERE) + SMTPD.report("link-connect", TWO, *WHERE),
    asked("mail-from", ONE, b"a@b") + asked("mail-from", TWO),
    SMTPD.report("tx-begin", ONE, b"0a0b0c0d")
    + SMTPD.report("tx-mail", ONE, b"0a0b0c0d", b"ok", b"a@b"),
    sent(ONE, MAIL[:2]) + sent(TWO, MAIL[:2]),
    sent(ONE, MAIL[2:20]) + sent(TWO, MAIL[2:10]) + sent(ONE, MAIL[20:], end=True),
    sent(TWO, MAIL[10:], end=True),
    asked("commit", ONE) + asked("commit", TWO),
]
