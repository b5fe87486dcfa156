"""Verdicts on messages that a filter changes, and parameters that it rewrites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import (
    JUNK,
    MARKED,
    PROCEED,
    Filter,
    Junk,
    Marked,
    Proceed,
    Rewrite,
    Session,
)
from smtpd_filters.journal.stories import Story, story
from smtpd_filters.journal.telling import says
from smtpd_filters.scoring.rules import Rules, RuleSettings
from smtpd_filters.web.texts import verdict as on_the_page

if TYPE_CHECKING:
    from smtpd_filters.message import Headers, Message

    from .deciding import Decide, Deciding

MESSAGE = "rcpts-some-rejected"


class Edits(Filter):
    """Changes the header of each message, and decides as a test says."""

    name = "edits"
    on_error = "proceed"
    decision: Proceed | Junk | Marked | None = PROCEED

    def headers(self, _session: Session, headers: Headers) -> Proceed | Junk | Marked:
        headers.prepend("X-Edited", "yes")
        if self.decision is None:
            raise RuntimeError("failed behind an edit")
        return self.decision


class Body(Filter):
    """Changes the body of each message."""

    name = "body"

    def message(self, _session: Session, message: Message) -> Proceed:
        message.replace_body(b"new\n")
        return PROCEED.because("macros: a.docm")


class Waits(Filter):
    """Changes the header after it has waited."""

    name = "waits"

    async def message(self, _session: Session, message: Message) -> Proceed:
        message.headers.prepend("X-Waited", "yes")
        return PROCEED


class Passes(Filter):
    """Changes nothing."""

    name = "passes"

    def message(self, _session: Session, message: Message) -> Proceed:
        message.headers.replace("Subject", message.headers.get("Subject", ""))
        return PROCEED


def told(deciding: Deciding) -> Story:
    [part] = deciding.replay(MESSAGE)
    return story("1", {**part, "p": [part["p"]]})


def test_a_changed_message_is_told_as_changed(decide: Decide) -> None:
    filters = Passes(Passes.Options()), Edits(Edits.Options()), Body(Body.Options())
    deciding = decide(*filters, Waits(Waits.Options()))
    verdicts = {each.filter: each for each in told(deciding).verdicts}
    verbs = {name: each.verb for name, each in verdicts.items()}
    assert verbs == {"passes": "proceed", "edits": "edit", "body": "edit", "waits": "edit"}
    assert says(verdicts["body"]).startswith("body changed it: macros: a.docm (")
    assert says(verdicts["passes"]).startswith("passes let it pass (")
    assert on_the_page(verdicts["body"]) == "changed it"
    # Many filters edit every message, without a reason.
    [line] = [each for each in deciding.log.lines if " message " in each or " headers " in each]
    assert ' body message result=edit reason="macros: a.docm" took=' in line


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (JUNK.because("odd"), "edits marked it as junk and changed it: odd ("),
        (MARKED.because("odd"), "edits marked it as junk: odd ("),
        (None, "edits failed, so --on-error let it pass: RuntimeError"),
        (PROCEED.because("exempt: local"), "edits changed it: exempt: local ("),
    ],
)
def test_an_edit_beside_another_verdict(decide: Decide, decision: Any, words: str) -> None:
    filter_ = Edits(Edits.Options())
    filter_.decision = decision
    [verdict] = told(decide(filter_)).verdicts
    assert says(verdict).startswith(words)


def test_a_dry_run_says_what_it_would_change(decide: Decide) -> None:
    filter_ = Body(Body.Options())
    filter_.dry_run = True
    deciding = decide(filter_)
    [verdict] = told(deciding).verdicts
    assert says(verdict).startswith("body would change it (--dry-run): macros: a.docm (")
    [line] = deciding.log.lines
    assert ' body message result=proceed would=edit reason="macros: a.docm" took=' in line


def test_a_chain_with_a_score_tells_edits_as_well(decide: Decide) -> None:
    filters = Edits(Edits.Options()), Passes(Passes.Options())
    deciding = decide(*filters, rules=Rules(RuleSettings(score_header=True)))
    verbs = {each.filter: each.verb for each in told(deciding).verdicts}
    assert verbs == {"edits": "edit", "passes": "proceed"}


class Rewrites(Filter):
    """Puts another address in place of one."""

    name = "rewrites"

    def rcpt_to(self, _session: Session, address: str) -> Proceed | Rewrite:
        return Rewrite("<alice@lab.test> NOTIFY=NEVER") if address == "a@lab.test" else PROCEED


@pytest.mark.parametrize("dry", [False, True])
def test_the_new_address_is_told(decide: Decide, *, dry: bool) -> None:
    filter_ = Rewrites(Rewrites.Options())
    filter_.dry_run = dry
    [verdict] = [each for each in told(decide(filter_)).verdicts if each.verb == "rewrite"]
    assert (verdict.argument, verdict.reply) == ("a@lab.test", "alice@lab.test")
    assert "for <a@lab.test> to <alice@lab.test> (" in says(verdict)
