"""The words of the protocol: phases with what may be answered, reports with their fields.

Law
---
1. Every rule about a phase or a report is a row here; no other module knows one by heart.
2. A phase's row lists the decisions that do there what they say.  What smtpd would exit on
   (junk at ``commit``), what wrecks the session (rewrite at ``commit``), and what has no
   effect (junk at ``quit``) is not in the row, and so cannot be sent.
3. Every phase has an answer for each of the outcomes an operator may choose for a failure,
   or the outcome is not offered there.

The rows follow smtpd-filters(7) and what was measured on real servers where that is silent;
the recordings in ``fixtures/protocol`` show it.
"""

from __future__ import annotations

from .decisions import JUNK, PROCEED, Decision, Disconnect, Junk, Proceed, Reject, Rewrite

PLAIN = (Proceed, Junk, Reject, Disconnect)
PARAMETER = (*PLAIN, Rewrite)


#: What smtpd takes for the argument of a command that has one; what it takes for none is refused
#: to the client in the name of the filter.
FORMS = {
    "identity": "one word",
    "credentials": "PLAIN or LOGIN, and one word at most",
    "address": "an address, or one in angle brackets",
}


class Phase:
    """Where in the SMTP dialogue a request stands.

    ``name`` is smtpd's word, ``handler`` the method of a filter that answers,
    ``argument`` what that method gets besides the session ("" for nothing), and
    ``legal`` the kinds of decision it may return.
    """

    __slots__ = ("argument", "fallbacks", "handler", "legal", "name", "wire")

    def __init__(
        self,
        name: str,
        argument: str,
        legal: tuple[type[Decision], ...],
        tempfail: Decision,
    ) -> None:
        self.name = name
        self.wire = name.encode()
        self.handler = name.replace("-", "_")
        self.argument = argument
        self.legal = frozenset(legal)
        self.fallbacks: dict[str, Decision] = {
            "proceed": PROCEED,
            **({"junk": JUNK} if Junk in legal else {}),
            "tempfail": tempfail,
        }

    def takes(self, parameter: str) -> bool:
        """Whether smtpd takes this for the argument of the phase's command (`FORMS`)."""
        words = parameter.split(" ")
        match self.argument:
            case "identity":
                return len(words) == 1 and parameter != ""
            case "credentials":
                return words[0] in ("PLAIN", "LOGIN") and len(words) <= 2 and words[-1] != ""
            case "address":
                return not parameter.startswith("<") or ">" in parameter
        return False

    def __repr__(self) -> str:
        return f"<phase {self.name}>"


_LATER = Reject("451 4.3.0 Temporary failure, please try again later")
_GOODBYE = Disconnect("421 4.3.0 Temporary failure, please try again later")

#: All phases smtpd asks about, but for ``data-line``, which is answered in kind.
#: - connect: a bare reject leaves the connection open and without a banner, so it is sent as
#:   disconnect; rewrite does nothing there.
#: - starttls, data, rset, noop: rewrite puts text where the command takes none.
#: - auth: 454 is RFC 4954's temporary failure, as it is RFC 3207's for STARTTLS.
#: - commit: smtpd exits on junk, and a rewrite leaves the client stuck in DATA.
#: - rset, quit: junk has no effect.  quit: reject keeps open what the client closes.
PHASES: dict[str, Phase] = {
    phase.name: phase
    for phase in (
        Phase("connect", "", PLAIN, _GOODBYE),
        Phase("helo", "identity", PARAMETER, _LATER),
        Phase("ehlo", "identity", PARAMETER, _LATER),
        Phase("starttls", "", PLAIN, Reject("454 4.3.0 TLS not available, try again later")),
        Phase("auth", "credentials", PARAMETER, Reject("454 4.7.0 Temporary failure")),
        Phase("mail-from", "address", PARAMETER, _LATER),
        Phase("rcpt-to", "address", PARAMETER, _LATER),
        Phase("data", "", PLAIN, _LATER),
        Phase("commit", "", (Proceed, Reject, Disconnect), _LATER),
        Phase("rset", "", (Proceed, Reject, Disconnect), _LATER),
        Phase("noop", "text", PLAIN, _LATER),
        Phase("quit", "", (Proceed, Disconnect), _GOODBYE),
    )
}
DATA_LINE = "data-line"
PHASES_ON_WIRE = {phase.wire: phase for phase in PHASES.values()}
HANDLERS = {phase.handler: phase for phase in PHASES.values()}
#: Known to smtpd's grammar but never asked: they may be registered, to no use.
UNASKED = frozenset({"help", "wiz"})


class ReportForm:
    """The fields of one kind of report, in smtpd's words.

    ``wide`` is the place of the one field that may hold a bar; fields before it are
    cut off from the left, those behind it from the right.
    """

    __slots__ = ("fields", "name", "optional", "wide", "wire")

    def __init__(self, name: str, fields: str = "", *, wide: str = "", optional: int = 0) -> None:
        self.name = name
        self.wire = name.encode()
        self.fields = tuple(fields.split())
        self.wide = self.fields.index(wide) if wide else max(len(self.fields) - 1, 0)
        #: How many of the last fields may be missing.
        self.optional = optional

    def __repr__(self) -> str:
        return f"<report {self.name}>"


#: The reports of the newest protocol, 0.7; `versions` has what differed before.
#: - link-connect: a reverse name is the DNS's text, the other fields are smtpd's.
#: - tx-reset, tx-rollback: without a transaction there is no message id.
REPORTS: dict[str, ReportForm] = {
    report.name: report
    for report in (
        ReportForm("link-connect", "rdns fcrdns src dest", wide="rdns"),
        ReportForm("link-greeting", "hostname"),
        ReportForm("link-identify", "method identity"),
        ReportForm("link-tls", "tls"),
        ReportForm("link-auth", "result username"),
        ReportForm("link-disconnect"),
        ReportForm("tx-reset", "msgid", optional=1),
        ReportForm("tx-begin", "msgid"),
        ReportForm("tx-mail", "msgid result address"),
        ReportForm("tx-rcpt", "msgid result address"),
        ReportForm("tx-envelope", "msgid evpid"),
        ReportForm("tx-data", "msgid result"),
        ReportForm("tx-commit", "msgid size"),
        ReportForm("tx-rollback", "msgid", optional=1),
        ReportForm("protocol-client", "command"),
        ReportForm("protocol-server", "response"),
        ReportForm("filter-report", "kind name message"),
        ReportForm("filter-response", "phase response parameter", optional=1),
        ReportForm("timeout"),
    )
}
