"""filter-auth: check who sent a message, by SPF, DKIM, ARC and DMARC, and state the results.

`authors` reads From, `evidence` finds out the results, `fields` writes them into the header, and
`judgement` makes the decision.

Invariants
----------
*Own fields only*: a field from outside that claims our id is removed before ours is added.
*Results first*: the results are those of the message as it arrived; the decision follows from them
and never changes one.
*Records only*: by default no message is marked or refused.
*Exempt clients pass*: local and authenticated clients are not checked. Forged fields of an
authenticated client are removed, and its field states the user.
"""

from __future__ import annotations

from smtpd_filters.addresses import canonical, path
from smtpd_filters.authentication import results
from smtpd_filters.checks.exemptions import (
    AUTHENTICATED,
    UNKNOWN,
    Exempt,
    exempt_option,
    exempted,
    known_address,
)
from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.main import run
from smtpd_filters.message.disguise import Name
from smtpd_filters.protocol.decisions import MAX_POINTS, PROCEED, Junk, Points, Proceed, Reject
from smtpd_filters.settings import SWITCH, TEXT, Settings, choice, option, table
from smtpd_filters.settings.quoting import quote
from smtpd_filters.stores.setting import STORE, StoreSetting
from smtpd_filters.tables import DomainTable

from .actions import ACTION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from smtpd_filters.authentication.spf import Verdict
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.session import Session

    from .evidence import Envelope, Evidence
    from .judgement import Actions, Judgement
    from .reporting import Reporter
    from .servers import NameServers

    Finder: TypeAlias = Callable[[str], str | None]

#: The beginning of the names of fields with a scanner's verdict.
SPAM = Name("X-Spam", prefix=True)
FORGED = Reject(f"550 5.7.1 {results.FIELD} field in the name of this server")
#: The options that have no effect with `--scrub-only`.
_CHECKING = (
    "arc_results", "received_spf", "spf_fail", "spf_softfail", "dkim_fail", "dmarc",
    "dmarc_quarantine", "dmarc_reject", "dmarc_error", "bad_from", "except_domains",
    "trusted_sealers", "nameserver", "timeout", "report_to", "store_password_file",
    "store_ca_file", "store_prefix", "store_timeout",
)  # fmt: skip
_STORE = ("store_password_file", "store_ca_file", "store_prefix", "store_timeout")


class ReportSetting(StoreSetting):
    """The flags `--report-to` and those of its servers, and the store that they configure."""

    address = "report_to"
    has_default = False

    def __init__(self) -> None:
        """Declare the flags."""
        super().__init__()
        store: Any = option(
            STORE,
            default=None,
            help="Record the results of DMARC in a store, for domains that ask for reports, so "
            "that `smtpd-filters dmarc report` can make aggregate reports of them: sqlite:PATH, a "
            "file; or servers of Redis or Valkey that several exchangers share: "
            "redis://[USER@]HOST[:PORT][/DB], rediss://... for TLS, unix://PATH, "
            "redis+sentinel://HOST[:PORT],HOST.../MASTER, redis+cluster://HOST[:PORT],HOST...",
        )
        self.options = {"report_to": store, **{name: self.options[name] for name in _STORE}}

    def check(self, filter_: Any) -> None:
        """Raise ConfigError for a store from which no report can be made."""
        super().check(filter_)
        if self._address(filter_).scheme == "memory":
            raise ConfigError("--report-to: memory: is lost before a report is made of it")


def _action_option(whom: str, actions: str = "") -> str:
    return option(ACTION, default="log", help=f"What to do with a message {whom}{actions}.")


class Auth(Filter):
    """Check messages by SPF, DKIM, ARC and DMARC, and state the results in the header."""

    name = "auth"
    points = (0, MAX_POINTS)  # `setup` returns closer bounds

    class Options(Settings):
        """The fields, the actions, and the exceptions."""

        authserv_id = option(
            TEXT,
            default="",
            help="The name of this server in Authentication-Results; by default that of smtpd (its "
            "admd). Fields of the same name from outside are removed.",
        )
        scrub_only = option(
            SWITCH,
            default=False,
            help="Only remove fields from outside that claim our name, and check nothing.",
        )
        refuse_forged = option(
            SWITCH,
            default=False,
            flags=("-r",),
            help="Refuse a message with a field from outside that claims our name, instead of "
            "removing the field. Authenticated clients are not refused.",
        )
        scrub_spam = option(
            SWITCH,
            default=False,
            flags=("-s",),
            help="Also remove the fields from outside whose names begin with X-Spam, in any "
            "spelling that a program could read so: those of other servers' scanners.",
        )
        arc_results = option(
            SWITCH,
            default=False,
            flags=("-A",),
            help="Write ARC-Authentication-Results, for a filter that seals the message, instead "
            "of Authentication-Results.",
        )
        received_spf = option(
            SWITCH,
            default=False,
            help="Write a Received-SPF field as well.",
        )
        spf_fail = _action_option(
            "whose sender's domain does not permit the client (SPF fail)",
            ": ignore, log, junk, tempfail, reject, or points=N for the score of a chain",
        )
        spf_softfail = _action_option(
            "whose sender's domain probably does not permit the client (SPF softfail)"
        )
        spf_helo_fail = option(
            ACTION,
            default="ignore",
            help="What to do with a message of a client whose greeting names a domain that doesn't "
            "permit it (SPF fail of HELO). With the null sender, --spf-fail decides.",
        )
        dkim_fail = _action_option("that has DKIM signatures, of which none is valid")
        dmarc = option(
            choice("record", "honour"),
            default="record",
            help="What to do with a message that fails DMARC: record the result and log it, or "
            "honour the policy of the author's domain. With honour, a message under the policy "
            "quarantine or reject is marked as junk, and so is one whose author can't be judged; "
            "see --dmarc-reject and --bad-from.",
        )
        dmarc_quarantine = option(
            ACTION,
            default=None,
            help="What to do with a message that fails DMARC under the policy quarantine. By "
            "default --dmarc decides.",
        )
        dmarc_reject = option(
            ACTION,
            default=None,
            help="What to do with a message that fails DMARC under the policy reject. By default "
            "--dmarc decides. Mailing lists break signatures: a message should not be refused "
            "because of the policy alone.",
        )
        dmarc_error = option(
            ACTION,
            default=None,
            help="What to do with a message whose result of DMARC is unknown because a look-up "
            "failed, if a known policy, quarantine or reject, would apply to it. By default it is "
            "refused temporarily (tempfail) if it would be marked or refused for failing, and "
            "otherwise logged; reject is not possible.",
        )
        bad_from = option(
            ACTION,
            default=None,
            help="What to do with a message without an author that DMARC could judge: with no "
            "From field, several, one without an address, with an invalid domain or with many "
            "domains or addresses, or in a header of more than 1 MiB. By default --dmarc decides, "
            "so that such a message does not escape the policy of the domain that it shows.",
        )
        except_domains = option(
            table(DomainTable),
            default=None,
            help="Domains of authors, senders and signatures whose failures are only logged.",
        )
        trusted_sealers = option(
            table(DomainTable),
            default=None,
            help="Domains of servers whose ARC seals are trusted: if one of them states that "
            "DMARC passed before it forwarded the message, a failure is only logged.",
        )
        exempt = exempt_option("local", "authenticated", what="Clients whose mail is not checked")

    settings: Options
    dns = Resolver.setting(
        takes="SPF may need ten look-ups in a row; results that are missing after four fifths of "
        "--deadline are temperror"
    )

    reports = ReportSetting()

    #: The part of `--deadline` in which the results have to be there; the rest is for the decision.
    share = 0.8
    #: Whether the verdicts of SPF have their traces: for the operator's tool.
    _explains = False
    _exempt: Exempt
    _actions: Actions
    _reporter: Reporter | None = None
    _servers: NameServers | None = None

    def setup(self) -> Registration:
        """Check that the settings are consistent, and import what evaluates."""
        settings = self.settings
        self._exempt = settings.exempt
        if settings.authserv_id and not results.is_name(settings.authserv_id):
            raise ConfigError(f"--authserv-id {quote(settings.authserv_id)}: expected a name")
        reports = {"link-auth", "link-greeting"}
        if settings.scrub_only:
            self._refuse_unused()
            return Registration(
                {"headers"}, reports=reports, events=(), junk=False, waits=False, points=(0, 0)
            )
        try:
            from . import authors, evidence, fields, judgement, servers  # noqa: F401  # all of them now

            missing = evidence.load()
        except ImportError as error:
            raise ConfigError(f"the filter requires pyspf and dkimpy: {error}") from None
        if missing:
            self.log.event("signatures of Ed25519 are not verified", reason=missing)
        if settings.dmarc_error == "reject":
            raise ConfigError("--dmarc-error reject: a failed look-up is temporary; use tempfail")
        honours = "junk" if settings.dmarc == "honour" else "log"
        self._actions = judgement.Actions(
            spf_fail=settings.spf_fail,
            spf_softfail=settings.spf_softfail,
            dkim_fail=settings.dkim_fail,
            quarantine=settings.dmarc_quarantine or honours,
            reject=settings.dmarc_reject or honours,
            bad_from=settings.bad_from or honours,
            dmarc_error=settings.dmarc_error or "",
            spf_helo_fail=settings.spf_helo_fail,
        )
        return Registration(
            {"mail_from", "message"},
            reports={*reports, "link-identify", "tx-begin"},
            opens={"dns", *self._reporting()},
            points=(0, self._actions.points),
        )

    def _reporting(self) -> tuple[str, ...]:
        """Prepare to record results, and return what is to be opened for that."""
        if vars(self.settings)["report_to"] is None:
            for name in _STORE:
                if name in self.settings.given:
                    raise ConfigError(f"{self.settings.options[name].shown} requires --report-to")
            return ()
        from .reporting import Reporter

        self._reporter = Reporter(self.log)
        return ("reports",)

    async def close(self) -> None:
        """Wait until the results are recorded."""
        if self._servers is not None:
            await self._servers.aclose()
        if self._reporter is not None:
            await self._reporter.aclose()

    def _refuse_unused(self) -> None:
        """Raise ConfigError for an option without effect beside `--scrub-only`."""
        for name in _CHECKING:
            if name in self.settings.given:
                flag = self.settings.options[name].shown
                raise ConfigError(f"{flag} has no effect with --scrub-only")

    # -- ahead of need -------------------------------------------------------------------

    def link_identify(self, session: Session) -> None:
        """Evaluate SPF for the name in the client's greeting."""
        envelope = self._envelope(session)
        if envelope is not None:
            envelope.greeted(session.identity or "")

    def mail_from(self, session: Session, address: str) -> Proceed:
        """Evaluate SPF for the sender."""
        envelope = self._envelope(session)
        if envelope is not None:
            envelope.sent_from(session.identity or "", _completed(session, address))
        return PROCEED

    def link_disconnect(self, session: Session) -> None:
        """End the evaluations of a session."""
        envelope: Envelope | None = session.scratch.pop(self, None)
        if envelope is not None:
            envelope.cancel()

    def _envelope(self, session: Session) -> Envelope | None:
        """Return the evaluations of a session; None for an exempt client or without an address."""
        if self._exempt.reason(session):
            self.link_disconnect(session)
            return None
        from .evidence import Envelope

        envelope: Envelope | None = session.scratch.get(self)
        if envelope is None and (address := known_address(session)):
            envelope = Envelope(self.dns, address, self._id(session), explain=self._explains)
            session.scratch[self] = envelope
        return envelope

    # -- messages ------------------------------------------------------------------------

    def headers(self, session: Session, headers: Headers) -> Proceed | Reject:
        """Remove forged fields, with `--scrub-only`."""
        if why := self._exempt.reason(session):
            if why == AUTHENTICATED:
                self._scrub(session, headers)
            return exempted(self, why)
        removed = self._scrub(session, headers)
        if removed and self.settings.refuse_forged:
            return FORGED.because(_forged(removed))
        return PROCEED.because(f"removed {_forged(removed)}") if removed else PROCEED

    def remove_forged(self, session: Session, headers: Headers) -> None:
        """Remove forged fields of clients that aren't exempt, and of authenticated ones."""
        if self._exempt.known_reason(session) in {"", AUTHENTICATED}:
            self._scrub(session, headers)

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject | Points:
        """Check a message, state the results in its header, and decide."""
        if why := self._exempt.reason(session):
            if why == AUTHENTICATED:
                from .fields import envelope_results

                self._scrub(session, message.headers)
                own = results.write(self._id(session), envelope_results(session))
                message.headers.prepend(results.FIELD, own)
            return exempted(self, why)
        evidence, judgement = await self._judge(session, message)
        if known_address(session):
            self._note(failed=evidence.failed)
        removed = self._scrub(session, message.headers)
        decision = judgement.decision(self.on_error)
        if removed and self.settings.refuse_forged and not isinstance(decision, Reject):
            reasons = filter(None, (decision.reason, _forged(removed)))
            decision = FORGED.because("; ".join(reasons))
        self._report(session, evidence, judgement, decision)
        if isinstance(decision, Reject):
            return decision
        self._write(session, message.headers, evidence, judgement)
        if removed:
            both = (decision.reason, f"removed {_forged(removed)}")
            decision = decision.because("; ".join(filter(None, both)))
        return decision

    def _note(self, *, failed: bool) -> None:
        """Note whether the look-ups for a message have failed, all of them."""
        if self._servers is None:
            from .servers import NameServers

            self._servers = NameServers(self.dns, self.log)
        self._servers.note(failed=failed)

    def _report(
        self, session: Session, evidence: Evidence, judgement: Judgement, decision: Decision
    ) -> None:
        """Record the results of DMARC; not those of a message that will come again."""
        if self._reporter is None or decision.text.startswith("4"):
            return
        from .reporting import rows_of

        try:
            for published, row in rows_of(session, evidence, judgement, dry=self.dry_run):
                self._reporter.note(self.reports, published, row)
        except Exception as error:  # noqa: BLE001  # a report decides no message
            self._reporter.failed(f"{type(error).__name__}: {error}")

    async def _judge(self, session: Session, message: Message) -> tuple[Evidence, Judgement]:
        """Find out the results for a message, and judge them."""
        from .authors import authors_of
        from .evidence import collect
        from .judgement import Judgement

        envelope = self._envelope(session)
        if envelope is not None:
            envelope.received(session.identity or "", _completed(session, _sender(session)))
        evidence = await collect(
            message,
            authors_of(message.headers, session.server_name),
            envelope or _unknown(session),
            self.dns,
            self.share * self.deadline,
        )
        judgement = Judgement(
            self._actions,
            evidence,
            excepts=_finder(self.settings.except_domains),
            trusts=_finder(self.settings.trusted_sealers),
        )
        return evidence, judgement

    def _write(
        self, session: Session, headers: Headers, evidence: Evidence, judgement: Judgement
    ) -> None:
        """Add the fields with the results at the top of the header."""
        from . import fields

        own = self._id(session)
        verdict = evidence.mail
        if self.settings.received_spf and verdict is not None:
            value = fields.received_spf(
                verdict,
                client=session.address or "",
                helo=session.identity or "",
                sender="" if evidence.null else _sender(session),
                receiver=own,
            )
            headers.prepend(fields.RECEIVED_SPF, value)
        seals = self.settings.arc_results
        found = fields.results(session, evidence, judgement.overridden, sealed=seals)
        if seals:
            instance = len(evidence.verified.arc.sets) + 1
            headers.prepend(fields.SEALED, fields.sealed(own, instance, found))
        else:
            headers.prepend(results.FIELD, results.write(own, found))

    def _scrub(self, session: Session, headers: Headers) -> int:
        """Remove forged fields; return the number of those that claim our name."""
        if self.settings.scrub_spam:
            SPAM.remove_foreign(headers)
        return results.remove_forged(headers, self._id(session))

    def _id(self, session: Session) -> str:
        """Return our authserv-id."""
        return self.settings.authserv_id or self.smtpd.get("admd") or session.server_name or ""


def _sender(session: Session) -> str:
    """Return the sender of a message; "" is the null sender."""
    return (session.tx and session.tx.sender) or ""


def _completed(session: Session, sender: str) -> str:
    """Return a sender as smtpd completes it: one without a domain has the server's name."""
    if sender and session.server_name and not path(sender).domain:
        return f"{sender}@{session.server_name}"
    return sender


def _unknown(session: Session) -> Verdict | None:
    """Return SPF's result for a client whose address smtpd has not reported."""
    if session.by_socket:
        return None
    from smtpd_filters.authentication.spf import Verdict

    sender = _sender(session) or session.identity or ""
    return Verdict("temperror", canonical(sender.rpartition("@")[2]), problem=UNKNOWN)


def _finder(domains: DomainTable | None) -> Finder:
    """Return a function that returns the entry of a table that covers a domain, or None."""
    return (lambda _: None) if domains is None else domains.match


def _forged(count: int) -> str:
    return f"{count} forged {results.FIELD}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-auth."""
    return run(Auth, argv=argv)
