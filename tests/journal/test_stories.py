"""The outcome of a message, by what filters decided and what smtpd answered."""

from __future__ import annotations

from typing import Any

import pytest

from smtpd_filters.journal.rollups import reason_of
from smtpd_filters.journal.stories import outcome, story

from .made import stored

LOOP = "500 5.4.6 Routing loop detected: Loop detected"
LONG_LINE = "500 5.0.0 Line too long"
WRONG = "503 5.5.1 Invalid command: Command not allowed at this point."
NO_RECIPIENT = "503 5.5.4 Invalid command arguments: No recipient specified"
UNKNOWN = "550 Invalid recipient: <x@example.net>"
NO, LATER, CONTENT = "550 5.7.1 No", "450 4.7.1 Later", "554 5.7.1 Bad content"
OK, TEMPORARY, PERMANENT = range(3)


def refusal(name: str, phase: str, reply: str, at: int = 0) -> list[Any]:
    return [name, phase, "reject", at, 10, 1, 0, "a reason", reply]


AT_RCPT = refusal("rcpt", "rcpt-to", NO)
NOT_YET = refusal("greylist", "rcpt-to", LATER)
REFUSES = refusal("rspamd", "message", CONTENT)


@pytest.mark.parametrize(
    ("rows", "results", "answers", "became", "by", "reply"),
    [
        # smtpd refused the message by itself.
        ([], [OK], [LOOP], "refused", "smtpd", LOOP),
        ([], [OK], [WRONG, LONG_LINE], "refused", "smtpd", LONG_LINE),
        ([], [OK], [WRONG, NO_RECIPIENT], "abandoned", "", ""),
        ([], [OK], ["530 5.7.0 Must issue STARTTLS"], "abandoned", "", ""),
        # After filters had refused some of the recipients.
        ([AT_RCPT], [PERMANENT, OK], [NO, LOOP], "refused", "smtpd", LOOP),
        ([NOT_YET], [TEMPORARY, OK], [LATER, LOOP], "refused", "smtpd", LOOP),
        ([NOT_YET], [OK, TEMPORARY], [LATER, WRONG], "deferred", "greylist", LATER),
        # A filter that judged the content decided, whatever came before.
        ([AT_RCPT, REFUSES], [PERMANENT, OK], [NO, CONTENT], "refused", "rspamd", CONTENT),
        # Recipients were refused in different ways: the last reply counts.
        ([AT_RCPT, NOT_YET], [PERMANENT, TEMPORARY], [NO, LATER], "deferred", "greylist", LATER),
        ([NOT_YET, AT_RCPT], [TEMPORARY, PERMANENT], [LATER, NO], "refused", "rcpt", NO),
        ([AT_RCPT, NOT_YET], [PERMANENT, TEMPORARY], [], "deferred", "greylist", LATER),
        ([], [PERMANENT, TEMPORARY], [UNKNOWN, "451 Later"], "refused", "smtpd", UNKNOWN),
        ([], [PERMANENT], [UNKNOWN, NO_RECIPIENT], "refused", "smtpd", UNKNOWN),
        # Of two filters in different processes, the client got one reply.
        (
            [REFUSES, refusal("clamav", "message", "451 4.7.1 Virus?", at=9)],
            [OK], [CONTENT], "refused", "rspamd", CONTENT,
        ),
    ],
)  # fmt: skip
def test_what_became_of_a_message(  # noqa: PLR0913  # a table
    rows: list[Any], results: list[int], answers: list[str], became: str, by: str, reply: str
) -> None:
    recipients = [[f"r{at}@example.net", result] for at, result in enumerate(results)]
    made = stored(1, rows, e="rollback", r=recipients, a=answers)
    told = story("id", made)
    assert (told.outcome, told.decided_by, told.reply) == (became, by, reply)
    # The overview counts for the same reason.
    number, deciding = outcome(made)
    reason = reason_of(made, number, deciding)
    assert (reason == "a reason") == (deciding is not None)
    assert (reason != "") == (by != "")
    assert deciding is not None or reason[:3] == reply[:3]


@pytest.mark.parametrize(
    ("answers", "became", "reply"),
    [
        ([WRONG], "none", ""),
        ([LONG_LINE], "none", ""),
        (["501 5.7.1 Your name is not yours"], "refused", "501 5.7.1 Your name is not yours"),
        (["535 Authentication failed", WRONG], "refused", "535 Authentication failed"),
    ],
)
def test_what_became_of_a_session(answers: list[str], became: str, reply: str) -> None:
    made = stored(1, [], k="session", m="", e="", f="", r=[], a=answers)
    told = story("id", made)
    assert (told.outcome, told.reply) == (became, reply)
    assert (reason_of(made, *outcome(made)) != "") == (reply != "")
