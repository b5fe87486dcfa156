"""filter-content: rules on the header, the attachments and the text of messages.

`rules` has the rules of the operator and `judge` applies them, `header_checks` reads Postfix's
files; the message is read by `smtpd_filters.parts`.

Invariants
----------
*All readings*: a rule on attachments applies if any mail program might show what it describes.
*In steps*: reading and judging wait for the pace of the loop, block by block.
*Users only*: fields are removed for privacy from the mail of users alone.
*Never unread*: if a message can't be read or judged in time, `--on-error` decides, by default 451.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.checks.exemptions import exempt_option, exempted
from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.parts.reader import read_content
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Decision, Points, Reject
from smtpd_filters.runtime.pace import paced
from smtpd_filters.settings import LIST, PATH, REPLY, SWITCH, Settings, choice, option

from .header_checks import CHECKS, IGNORE, REPLACE, STRIP, Checks
from .inspection import TOO_COMPLEX, Inspection
from .privacy import FIELD, REPLACEMENT, Privacy
from .rules import HEADER as ADD_HEADER
from .rules import JUNK as MARK
from .rules import LOG, NOTE, ON_PARTS, POINTS, REMOVE, RENAME, SUBJECT, Rules
from .rules import REJECT as REFUSE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from smtpd_filters.filter import OnError
    from smtpd_filters.message import Message
    from smtpd_filters.session import Session

    from .judge import Hit

    T = TypeVar("T")
    V = TypeVar("V")

#: The values of `--dangerous`, beside "off".
DANGEROUS = (REFUSE, MARK, REMOVE, RENAME, LOG)


class Content(Filter):
    """Apply rules to the header, attachments and text of messages."""

    name = "content"
    on_error: OnError = "tempfail"  # Never unread
    deadline = 60.0
    points = (-1000, 1000)  # `setup` returns closer bounds

    class Options(Settings):
        """Rules, checks of Postfix, dangerous attachments, and privacy."""

        rules = option(
            LIST(PATH),
            default=(),
            help="A TOML file of rules, see RULES. Rules of several files apply in order.",
        )
        dangerous = option(
            choice(*DANGEROUS, "off"),
            default=REFUSE,
            help="What to do with an attachment whose extension or content is that of a program, a "
            "script, a link or a disk image, also in archives; see DANGEROUS ATTACHMENTS.",
        )
        reply = option(
            REPLY,
            default="550 5.7.1 Attachments of this kind are not accepted",
            help="The reply to a message that --dangerous refuses.",
        )
        header_checks = option(
            LIST(CHECKS),
            default=(),
            help="A file of Postfix's header_checks: regexp:PATH or pcre:PATH. It applies to the "
            "fields of the message, and to those of parts and attached messages unless these have "
            "files of their own.",
        )
        mime_header_checks = option(
            LIST(CHECKS),
            default=(),
            help="The same for fields that describe content, Content-* and MIME-Version, of the "
            "message, its parts and attached messages.",
        )
        nested_header_checks = option(
            LIST(CHECKS),
            default=(),
            help="The same for the other fields of attached messages.",
        )
        private = option(
            SWITCH,
            default=False,
            help="Remove fields that tell about a user's computer and programs from the mail of "
            "authenticated and local clients: Received fields but smtpd's own, User-Agent, "
            "X-Mailer, X-Originating-IP and the like, and the comment in MIME-Version.",
        )
        private_field = option(
            LIST(FIELD), default=(), help="A further field that --private removes."
        )
        private_keep = option(
            LIST(FIELD), default=(), help="A field that --private leaves as it is."
        )
        private_replace = option(
            LIST(REPLACEMENT),
            default=(),
            help="A field that --private replaces, if there is one of its name.",
        )
        log_only = option(
            SWITCH,
            default=False,
            help="Log which rules and checks apply, and do nothing else about them; --private has "
            "its effect.",
        )
        exempt = exempt_option(what="Clients whose mail no rule or check applies to")

    settings: Options

    _rules: Rules
    _checks: tuple[Checks, Checks, Checks]
    _privacy: Privacy | None
    #: Whether it edits fields that signatures cover, or the body.
    edits_signed = False

    def setup(self) -> Registration:
        """Load the rules and files."""
        settings = self.settings
        self._rules = rules = Rules()
        if settings.dangerous != "off":
            self._add_dangerous()
        for path in settings.rules:
            _loaded("--rules", rules.load, path)
        rules.finish()
        own = _loaded("--header-checks", Checks, settings.header_checks)
        mime, nested = settings.mime_header_checks, settings.nested_header_checks
        self._checks = (
            own,
            _loaded("--mime-header-checks", Checks, mime) if mime else own,
            _loaded("--nested-header-checks", Checks, nested) if nested else own,
        )
        given = settings.private_field or settings.private_keep or settings.private_replace
        if given and not settings.private:
            raise ConfigError(
                "--private-field, --private-keep and --private-replace require --private"
            )
        self._privacy = (
            Privacy(settings.private_field, settings.private_keep, settings.private_replace)
            if settings.private
            else None
        )
        if not (rules.rules or any(self._checks) or self._privacy):
            raise ConfigError("nothing to do: --dangerous off, without rules, checks and --private")
        # At start: an upgrade may remove them later.
        if rules.rules:
            from . import judge  # noqa: F401
        if any(rule.action not in {REFUSE, LOG} for rule in rules.rules):
            import smtpd_filters.scanning.edits  # noqa: F401

            from . import edits  # noqa: F401

        self.edits_signed = self._edits()
        points = [rule.points for rule in rules.rules if rule.action == POINTS]
        low = sum(each for each in points if each < 0)
        high = sum(each for each in points if each > 0)
        return Registration({"message"}, points=(low, high))

    def _add_dangerous(self) -> None:
        table: dict[str, object] = {"action": self.settings.dangerous}
        if self.settings.dangerous == REFUSE:
            table["reply"] = self.settings.reply
        for condition in ("extension", "content"):
            self._rules.add({**table, condition: "dangerous"}, "dangerous")
        # What is beyond a limit can't be looked at: it can't be removed either.
        if self.settings.dangerous in ON_PARTS:
            table["action"] = REFUSE
        if table["action"] == REFUSE:
            table["reply"] = TOO_COMPLEX
        self._rules.add({**table, "beyond-limits": True}, "dangerous")

    def _edits(self) -> bool:
        """Return whether an edit would make a signature ahead of this filter invalid."""
        editing = {SUBJECT, REMOVE, RENAME}
        rules = any(rule.action in editing and not rule.log_only for rule in self._rules.rules)
        changing = {IGNORE, STRIP, REPLACE}
        checks = any(each.actions & changing for each in self._checks)
        return bool(self._privacy) or ((rules or checks) and not self.settings.log_only)

    async def message(self, session: Session, message: Message) -> Decision:
        """Judge the message, unless its client is exempt, and edit it."""
        headers = message.headers
        decision: Decision = PROCEED
        if why := self.settings.exempt.reason(session):
            decision = exempted(self, why)
        elif self._rules.rules or any(self._checks):
            decision = await self._judge(session, message)
        refused = isinstance(decision, Reject)
        if self._privacy and not refused and (session.username or session.local):
            changed = self._privacy.apply(headers)
            if changed and self.log.verbose:
                self.log.event("private", session, fields=" ".join(changed))
        return decision

    async def _judge(self, session: Session, message: Message) -> Decision:
        headers = message.headers
        log_only = self.settings.log_only
        inspection = Inspection(self._checks, self.log, session, log_only=log_only)
        await inspection.ask_own(headers)
        if inspection.refusal is not None:
            return inspection.refusal
        take = inspection.ask_of_part if inspection.asks_of_parts else None
        content, size = await read_content(message, take)
        cut = next(iter(content.oddities)) if content.cut else ""
        if (refusal := inspection.end(cut=cut)) is not None:
            return refusal
        await inspection.edit(headers)
        if not self._rules.rules:
            return PROCEED
        from .judge import Judge  # loaded by `setup`

        judge = Judge(self._rules, headers, content, size)
        return await self._act(session, message, await paced(judge.hits()))

    # -- rules ---------------------------------------------------------------------------

    async def _act(self, session: Session, message: Message, hits: list[Hit]) -> Decision:
        """Do what the rules that apply say."""
        done: list[Hit] = []
        for hit in hits:
            rule = hit.rule
            if rule.log_only or self.settings.log_only or rule.action == LOG:
                would = "" if rule.action == LOG else rule.action
                self.log.event("rule", session, rule=rule.name, reason=hit.reason, would=would)
            elif rule.action == REFUSE:
                return Reject(rule.reply).because(_why(hit))
            else:
                done.append(hit)
        if not done:
            return PROCEED
        await self._edit(session, message, done)
        marks = [hit for hit in done if hit.rule.action == MARK]
        if marks:
            return JUNK.because("; ".join(map(_why, marks)))
        points = [hit for hit in done if hit.rule.action == POINTS]
        if points:
            total = sum(hit.rule.points for hit in points)
            return Points(total).because("; ".join(map(_why, points)))
        return PROCEED.because("; ".join(map(_why, done)))

    async def _edit(self, session: Session, message: Message, hits: list[Hit]) -> None:
        from smtpd_filters.scanning.edits import Edits  # loaded by `setup`

        from .edits import apply, removal, renaming  # loaded by `setup`

        fields = Edits(message.headers, lambda note: self.log.event("edit", session, note=note))
        for hit in hits:
            if hit.rule.action == ADD_HEADER:
                await fields.add(*hit.rule.field)
            elif hit.rule.action == SUBJECT:
                await fields.tag_subject(hit.rule.tag)
        changes = [
            removal(part, hit.rule.note)
            if hit.rule.action == REMOVE
            else renaming(part, hit.rule.suffix, NOTE)
            for hit in hits
            if hit.rule.action in ON_PARTS
            for part in hit.parts
        ]
        await apply(message, changes)


def _loaded(flag: str, load: Callable[[V], T], value: V) -> T:
    """Load the files of a flag; raise ConfigError that names it."""
    try:
        return load(value)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _why(hit: Hit) -> str:
    return f"{hit.rule.name}: {hit.reason}" if hit.reason else hit.rule.name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-content."""
    return run(Content, argv=argv)
