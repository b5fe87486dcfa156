"""The tables of the protocol: phases with their legal decisions, reports with their fields.

Invariants
----------
*One table*: every rule about a phase or a report is a row here and is stated nowhere else.
*Effective*: a phase's row lists the decisions that have their meaning there. A decision is left
out, and so can't be sent, if smtpd exits on it (junk at `commit`), if it breaks the session
(rewrite at `commit`), or if it has no effect (junk at `quit`).
*Failures answered*: every phase has a decision for each outcome that an operator may choose for a
failure, or the outcome is not offered there.

The rows follow smtpd-filters(7), and measurements on real servers where the manual is silent (the
recordings in `fixtures/protocol`).
"""

from __future__ import annotations

from .decisions import JUNK, PROCEED, Decision, Disconnect, Junk, Proceed, Reject, Rewrite

PLAIN = (Proceed, Junk, Reject, Disconnect)
PARAMETER = (*PLAIN, Rewrite)


#: The valid arguments of commands, in words. For an invalid one smtpd refuses the client's command
#: as if the filter had.
FORMS = {
    "identity": "one word",
    "credentials": "PLAIN or LOGIN, and one word at most",
    "address": "an address, or one in angle brackets",
}


class Phase:
    """A phase of the SMTP dialogue in which smtpd sends a request.

    `name` is smtpd's name, `handler` the method of a filter that answers, `argument` the kind of
    argument that this method gets besides the session ("" for none), and `legal` the decisions
    that it may return.
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
        """Return whether this is a valid argument of the phase's command (`FORMS`)."""
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


_TEMPFAIL = Reject("451 4.3.0 Temporary failure, please try again later")
_CLOSE = Disconnect("421 4.3.0 Temporary failure, please try again later")

#: All phases with requests, except `data-line`, which is answered with lines.
#: - connect: after a reject the connection stays open, without a banner, so it is sent as
#:   disconnect; rewrite has no effect.
#: - starttls, data, rset, noop: rewrite would add an argument to a command that has none.
#: - auth: 454 is the temporary failure of RFC 4954, and of RFC 3207 for STARTTLS.
#: - commit: smtpd exits on junk, and a rewrite leaves the client stuck in DATA.
#: - rset, quit: junk has no effect. quit: after a reject the connection stays open.
PHASES: dict[str, Phase] = {
    phase.name: phase
    for phase in (
        Phase("connect", "", PLAIN, _CLOSE),
        Phase("helo", "identity", PARAMETER, _TEMPFAIL),
        Phase("ehlo", "identity", PARAMETER, _TEMPFAIL),
        Phase("starttls", "", PLAIN, Reject("454 4.3.0 TLS not available, try again later")),
        Phase("auth", "credentials", PARAMETER, Reject("454 4.7.0 Temporary failure")),
        Phase("mail-from", "address", PARAMETER, _TEMPFAIL),
        Phase("rcpt-to", "address", PARAMETER, _TEMPFAIL),
        Phase("data", "", PLAIN, _TEMPFAIL),
        Phase("commit", "", (Proceed, Reject, Disconnect), _TEMPFAIL),
        Phase("rset", "", (Proceed, Reject, Disconnect), _TEMPFAIL),
        Phase("noop", "text", PLAIN, _TEMPFAIL),
        Phase("quit", "", (Proceed, Disconnect), _CLOSE),
    )
}
DATA_LINE = "data-line"
PHASES_ON_WIRE = {phase.wire: phase for phase in PHASES.values()}
HANDLERS = {phase.handler: phase for phase in PHASES.values()}
#: Phases that smtpd accepts in a registration but never sends a request for.
NEVER_REQUESTED = frozenset({"help", "wiz"})


class ReportForm:
    """The fields of one kind of report, with smtpd's names.

    `wide` is the index of the one field that may contain bars: the fields before it are split off
    from the left, the fields after it from the right.
    """

    __slots__ = ("fields", "name", "optional", "wide", "wire")

    def __init__(self, name: str, fields: str = "", *, wide: str = "", optional: int = 0) -> None:
        self.name = name
        self.wire = name.encode()
        self.fields = tuple(fields.split())
        self.wide = self.fields.index(wide) if wide else max(len(self.fields) - 1, 0)
        #: How many fields at the end may be missing.
        self.optional = optional

    def __repr__(self) -> str:
        return f"<report {self.name}>"


#: The reports of the newest protocol, 0.7; `versions` has the differences of older ones.
#: - link-connect: the reverse name is text from the DNS, the other fields are smtpd's own.
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
