"""Stories in plain words, for a terminal.

Invariants
----------
*Escaped*: every text from outside passes `safe`, so that no client controls a terminal.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from smtpd_filters.settings.quoting import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .stories import Story, Verdict

#: Characters of a text that are shown.
SHOWN = 300
#: Recipients in the headline.
RECIPIENTS = 3
_COLOURS = {"accepted": "32", "junk": "33", "deferred": "36", "refused": "31"}
_VERBS = {
    "proceed": "let it pass",
    "junk": "marked it as junk",
    "reject": "refused it",
    "disconnect": "refused it and closed the connection",
    "rewrite": "changed the parameter",
    "edit": "changed it",
    "points": "gave points",
    "bypass": "let it bypass the filters behind it",
}
_WOULD = {
    "junk": "would mark it as junk",
    "reject": "would refuse it",
    "disconnect": "would refuse it and close the connection",
    "rewrite": "would change the parameter",
    "edit": "would change it",
    "points": "would give points",
    "bypass": "would let it bypass the filters behind it",
}
#: Why clients are exempt, by the words of --exempt.
_EXEMPT = {
    "local": "the client is on this machine",
    "socket": "the client is on smtpd's socket",
    "authenticated": "the client is authenticated",
}
#: Outcomes of messages, and results of recipients, in words. Flags and metrics have the names.
OUTCOMES = {
    "accepted": "accepted",
    "junk": "accepted as junk",
    "deferred": "refused temporarily",
    "refused": "refused",
    "abandoned": "abandoned by the client",
    "none": "no message",
}


def safe(text: str) -> str:
    """Return a text for a terminal: one line, without control characters, of limited length."""
    text = printable(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def coloured(text: str, outcome: str, *, colour: bool) -> str:
    """Return a text in the colour of an outcome."""
    code = _COLOURS.get(outcome, "90")
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def moment(seconds: float) -> str:
    """Return a time in the local time zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def headline(story: Story, *, colour: bool = False) -> str:
    """Return a story in one line."""
    what = coloured(OUTCOMES[story.outcome], story.outcome, colour=colour)
    words = [moment(story.time), what]
    if story.kind == "tx" or story.sender or story.recipients:
        words.append(f"from <{safe(story.sender)}>")
        if to := recipients(story):
            words.append(f"to {to}")
    words.append(f"client {safe(story.client) or 'local'}")
    if story.decided_by:
        words.append(f"by {safe(story.decided_by)}")
    if why := cause(story):
        words.append(f"({safe(why)})")
    return " ".join(words)


def cause(story: Story) -> str:
    """Return why a message was refused or marked; "" if it was not."""
    verdict = story.deciding
    if verdict is not None:
        return verdict.reason or verdict.reply
    return story.reply


def recipients(story: Story) -> str:
    """Return the first recipients."""
    shown = [f"<{safe(address)}>" for address, _ in story.recipients[:RECIPIENTS]]
    more = len(story.recipients) - RECIPIENTS
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def tell(story: Story, *, colour: bool = False) -> str:
    """Return a story in full: a headline, who it was, what each filter did, what smtpd answered."""
    lines = [headline(story, colour=colour), *(f"    {line}" for line in _details(story))]
    return "\n".join(lines) + "\n"


def _details(story: Story) -> Iterator[str]:
    yield from _who(story)
    for verdict in story.verdicts:
        yield f"{verdict.at / 1000:6.2f} s  {verdict.phase:<10} {says(verdict)}"
    for answer in story.answers:
        yield f"smtpd     {safe(answer)}"
    if story.outcome in ("accepted", "junk"):
        yield f"smtpd     accepted it as {story.msgid}, {story.size:,} bytes"
    if decided := deciding(story):
        yield f"decided   {decided}"
    if story.left_out:
        yield f"(left out: {story.left_out} verdicts or recipients)"
    yield f"session   {story.session}, {story.duration:.2f} s; journal {story.id}"


def _who(story: Story) -> Iterator[str]:
    """Yield what is known of client and message."""
    rdns = f" ({safe(story.rdns)}, checked: {safe(story.fcrdns)})" if story.rdns else ""
    client = f"{safe(story.endpoint)}{rdns}" if story.client else "on this machine"
    failed = f"{safe(story.failed_user)}, whose authentication failed" if story.failed_user else ""
    facts = [
        ("client", client),
        ("greeting", f"{safe(story.method)} {safe(story.identity)}" if story.identity else ""),
        ("tls", safe(story.tls)),
        ("user", safe(story.user)),
        ("user", failed),
    ]
    facts += [
        ("to", f"<{safe(address)}> {OUTCOMES[result]}")
        for at, (address, result) in enumerate(story.recipients)
        if at >= RECIPIENTS or result != "accepted"
    ]
    facts += [("message", safe(story.message_id)), ("subject", safe(story.subject))]
    for name, value in facts:
        if value:
            yield f"{name:<9} {value}"


def says(verdict: Verdict) -> str:
    """Return what a filter did, in words."""
    text = f"{safe(verdict.filter)} {exempts(verdict) if verdict.exempt else _done(verdict)}"
    if verdict.argument:
        text += f" for <{safe(verdict.argument)}>"
    if verdict.verb == "rewrite" and verdict.reply:
        text += f" to <{safe(verdict.reply)}>"
    if verdict.count > 1:
        text += f", {verdict.count} times"
    if verdict.reason and not verdict.exempt:
        text += f": {safe(verdict.reason.lstrip())}"
    if verdict.reply and verdict.verb != "rewrite":
        text += f" [{safe(verdict.reply)}]"
    return f"{text} ({verdict.took / 1000:.1f} ms)"


def _done(verdict: Verdict) -> str:
    words = (_WOULD if verdict.dry else _VERBS).get(verdict.verb, verdict.verb)
    if verdict.verb == "points" or verdict.points:
        words = words.replace("points", f"{verdict.points / 1000:g} points")
    if verdict.edits:
        words += " and change it" if verdict.dry else " and changed it"
    if verdict.earlier:
        words += " earlier in the session"
    if verdict.failed:
        words = f"failed, so --on-error {words}"
    return f"{words} (--dry-run)" if verdict.dry else words


def exempts(verdict: Verdict) -> str:
    """Return in words that a filter exempts the client, and why."""
    return f"exempts it ({_EXEMPT.get(verdict.exempt) or safe(verdict.exempt)})"


def deciding(story: Story) -> str:
    """Return which filter and which setting decided."""
    verdict = story.deciding
    if verdict is None:
        return "smtpd itself, or a filter that the journal does not know" if story.reply else ""
    by = f", by {safe(verdict.setting)}" if verdict.setting else ""
    return f"{safe(verdict.filter)} at {verdict.phase}{by}"


def plain(story: Story) -> dict[str, Any]:
    """Return a story for JSON."""
    from dataclasses import asdict

    found = asdict(story)
    for shown, verdict in zip(found["verdicts"], story.verdicts, strict=True):
        shown["exempt"] = verdict.exempt
    found["recipients"] = [{"address": a, "result": r} for a, r in story.recipients]
    return {**found, "decided_by": story.decided_by, "reply": story.reply, "cause": cause(story)}
