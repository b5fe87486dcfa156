"""smtpd's rules for filters, as tables, with its reaction to a violation.

`RULES` lists every complaint of the oracle. Each rule was observed on OpenSMTPD 6.8.0p2 and
7.8.0p1, or read in smtpd's source (`lka_filter.c`, `lka_proc.c`). `UNFIT` and `NEEDS` list the
decisions that smtpd misinterprets, by phase.

Nothing of `smtpd_filters.protocol` is used here, so that the two can be checked against each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """The consequence of a violation for the mail server, the worst first."""

    ENDS_SERVER = "smtpd exits: no mail until it is restarted"
    HANGS_SERVER = "every session hangs for good"
    HANGS_SESSION = "one session hangs for good"
    WRECKS_SESSION = "one session is stuck in a wrong state"
    DAMAGES_MAIL = "the message is damaged"
    LEAKS = "the log gets the client's password"
    MISLEADS = "smtpd does something other than the filter intended"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its name, the kind of consequence, and smtpd's reaction."""

    name: str
    kind: Kind
    why: str


_DEADLY = Kind.ENDS_SERVER
_MISLEADING = Kind.MISLEADS
_DAMAGING = Kind.DAMAGES_MAIL
_HANGING = Kind.HANGS_SESSION

_TABLE: Final = (
    # Lines
    Rule("line-too-long", Kind.HANGS_SERVER, "a line of 65,536 bytes or more hangs every session"),
    Rule("line-unknown", _DEADLY, "an unknown or an empty line, or one ending in CR, ends smtpd"),
    Rule("line-report", _DEADLY, "a report|... line ends smtpd (7.8 can't parse its own format)"),
    Rule("line-incomplete", _DEADLY, "an answer without session, token or decision ends smtpd"),
    Rule("line-unfinished", _HANGING, "a last line without a line end is never read"),
    # Registration
    Rule("register-unknown", _DEADLY, "an unknown event, or a filter on smtp-out, ends smtpd"),
    Rule("register-not-ready", Kind.HANGS_SERVER, "smtpd waits for register|ready of each filter"),
    # The session and the token
    Rule("id-not-hex", _DEADLY, "a token or session that isn't hexadecimal ends smtpd"),
    Rule("session-unknown", _HANGING, "a wrong session is ignored; the real one hangs"),
    Rule("token-unknown", _DEADLY, "an answer with an unknown token ends smtpd"),
    Rule("token-unchecked", _MISLEADING, "a wrong token is accepted: it isn't checked here"),
    # The time
    Rule("answer-unasked", _DEADLY, "a second answer to a request ends smtpd"),
    Rule("result-in-data-line", _DEADLY, "filter-result while in data-line ends smtpd"),
    Rule("dataline-outside", _DEADLY, "filter-dataline outside data-line ends smtpd"),
    Rule("dataline-at-commit", _DEADLY, "a data-line that arrives during commit ends smtpd"),
    Rule("dataline-after-dot", _DAMAGING, "a data-line after the final dot is ignored"),
    Rule("never-answered", _HANGING, "a request without an answer hangs its session"),
    Rule("never-ended", _HANGING, "a message without its final dot hangs its session"),
    # The decision
    Rule("decision-malformed", _DEADLY, "a malformed or unknown decision ends smtpd"),
    Rule("junk-at-commit", _DEADLY, "junk at commit ends smtpd"),
    Rule("junk-without-effect", _MISLEADING, "junk has no effect at rset and quit"),
    Rule("reject-at-connect", _MISLEADING, "reject at connect leaves a session without a banner"),
    Rule("reject-at-quit", _MISLEADING, "reject at quit keeps the session open"),
    Rule("rewrite-at-connect", _MISLEADING, "rewrite at connect is a proceed"),
    Rule(
        "rewrite-at-commit",
        Kind.WRECKS_SESSION,
        "rewrite at commit leaves the session stuck in DATA",
    ),
    Rule("rewrite-refused", _MISLEADING, "rewrite of a command without argument becomes 50x"),
    Rule(
        "rewrite-no-brackets", _MISLEADING, "an address without angle brackets becomes 553 or 501"
    ),
    Rule("rewrite-no-name", _MISLEADING, "rewrite at helo and ehlo requires a bare name"),
    Rule("rewrite-no-mechanism", _MISLEADING, "rewrite at auth requires PLAIN or LOGIN"),
    Rule("refusal-at-auth", Kind.LEAKS, "a refused AUTH is logged with its credentials"),
    Rule("report-before-7", _DEADLY, "report ends a server without support: Invalid directive"),
    Rule("report-as-parameter", _MISLEADING, "the text of report becomes the command's parameter"),
    Rule("report-as-response", _MISLEADING, "report appears as filter-response, not filter-report"),
    # The text
    Rule("reply-no-code", _MISLEADING, "a reply without a 4xx or 5xx code and a text becomes 421"),
    Rule("reply-too-long", _DEADLY, "a reply of 20,000 characters ends smtpd (5,000 pass)"),
    Rule("text-control", _MISLEADING, "NUL truncates a text; CR is sent to the client and the log"),
    # The message
    Rule("mail-cut", _DAMAGING, "a server before 7.4 truncates a data-line after 1,997 bytes"),
    Rule("mail-nul", _DAMAGING, "NUL truncates a data-line"),
    Rule("mail-cr", _DAMAGING, "a CR that the client didn't send is delivered"),
    Rule("mail-dot-lost", _DAMAGING, "an unescaped leading dot loses the dot"),
    Rule("mail-cut-short", _DAMAGING, "lines after the filter's final dot are lost"),
    Rule("mail-head-broken", _DAMAGING, "a broken header block gives the client a 550"),
)

RULES: Final = {rule.name: rule for rule in _TABLE}

# smtpd-filters(7), REPORT AND FILTER: what a filter may register.
PHASES: Final = frozenset(
    b"connect helo ehlo starttls auth mail-from rcpt-to data data-line commit rset quit noop help"
    b" wiz".split()
)
REPORTS: Final = frozenset(
    b"link-connect link-disconnect link-greeting link-identify link-tls link-auth tx-reset tx-begin"
    b" tx-mail tx-rcpt tx-envelope tx-data tx-commit tx-rollback protocol-client protocol-server"
    b" filter-report filter-response timeout *".split()
)

# (decision, phase) pairs that smtpd misinterprets, whatever the parameter.
UNFIT: Final = {
    (b"junk", b"commit"): "junk-at-commit",
    (b"junk", b"rset"): "junk-without-effect",
    (b"junk", b"quit"): "junk-without-effect",
    (b"rewrite", b"connect"): "rewrite-at-connect",
    (b"rewrite", b"commit"): "rewrite-at-commit",
    (b"rewrite", b"starttls"): "rewrite-refused",
    (b"rewrite", b"data"): "rewrite-refused",
    (b"rewrite", b"rset"): "rewrite-refused",
    (b"rewrite", b"quit"): "rewrite-refused",
    (b"report", b"helo"): "report-as-parameter",
    (b"report", b"ehlo"): "report-as-parameter",
    (b"report", b"auth"): "report-as-parameter",
    (b"report", b"mail-from"): "report-as-parameter",
    (b"report", b"rcpt-to"): "report-as-parameter",
}
# (decision, phase) pairs that smtpd misinterprets unless the parameter matches.
NEEDS: Final = {
    # 421 closes the connection by itself.
    (b"reject", b"connect"): (re.compile(rb"421 "), "reject-at-connect"),
    (b"reject", b"quit"): (re.compile(rb"421 "), "reject-at-quit"),
    (b"rewrite", b"mail-from"): (re.compile(rb"<[^\0]*>"), "rewrite-no-brackets"),
    (b"rewrite", b"rcpt-to"): (re.compile(rb"<[^\0]*>"), "rewrite-no-brackets"),
    (b"rewrite", b"helo"): (re.compile(rb"[^\s\0]+\Z"), "rewrite-no-name"),
    (b"rewrite", b"ehlo"): (re.compile(rb"[^\s\0]+\Z"), "rewrite-no-name"),
    (b"rewrite", b"auth"): (re.compile(rb"(PLAIN|LOGIN)( \S+)?\Z"), "rewrite-no-mechanism"),
}
WITH_PARAMETER: Final = frozenset({b"reject", b"disconnect", b"rewrite", b"report"})
