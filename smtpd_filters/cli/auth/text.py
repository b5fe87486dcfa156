"""The explanation of a verdict as text for people.

Invariants
----------
*Printable*: whatever the message and the DNS contain, no control character reaches the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_filters.settings.quoting import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    Part = dict[str, Any]

#: Characters of a key's record that are shown.
_KEY = 60


def written(found: Part) -> str:
    """Return the text of an explanation (`explanation.explain`)."""
    return "".join(f"{printable(line)}\n" for line in _lines(found))


def _lines(found: Part) -> Iterator[str]:
    client = found["client"]
    yield f"client {client['address']} {client['name']}, reverse name: {client['confirmed']}"
    if found["exempt"]:
        yield f"not checked, exempt: {found['exempt']} (--exempt)"
    else:
        for each in found["spf"]:
            yield from _spf(each, client)
        yield from _dkim(found["dkim"])
        yield from _arc(found["arc"])
        yield from _dmarc(found["dmarc"])
    yield from _decision(found)


def _with(text: str, *more: object) -> str:
    """Return a text followed by what there is, in order."""
    return " ".join(filter(None, (text, *map(str, more))))


def _because(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text


def _spf(spf: Part, client: Part) -> Iterator[str]:
    of = (
        f"HELO {client['helo']}"
        if spf["identity"] == "helo"
        else f"MAIL FROM {client['mail-from']}"
    )
    yield ""
    yield f"SPF of {of}"
    for step in spf["steps"]:
        indent = "  " * (step["depth"] + 1)
        if "record" in step:
            yield f"{indent}{step['domain']}: {step['record']}"
        else:
            yield f"{indent}{step['term']}: {step['outcome']}"
        for each in step["answers"]:
            if each["type"] == "TXT" and each["answer"].startswith('"'):
                continue  # the record of the next step
            yield f"{indent}  {each['name']} {each['type']}: {each['answer']}"
    counted = f"({spf['look-ups']} of 10 look-ups, {spf['void-look-ups']} of 2 void)"
    by = f"by {spf['mechanism']}" if spf["mechanism"] else ""
    yield _because(_with(f"  {spf['result']}", by, counted), spf["problem"])
    if spf["explanation"]:
        yield f"  the owner explains: {spf['explanation']}"


def _dkim(dkim: Part) -> Iterator[str]:
    yield ""
    yield "DKIM"
    for each in dkim["signatures"]:
        yield _because(
            f"  {each['domain'] or 'signature'} s={each['selector']} a={each['algorithm']}: "
            f"{each['result']}",
            each["reason"],
        )
        if "key" not in each:
            continue
        key = each["key"]["answer"]
        yield f"    {each['key']['name']} TXT: {key[:_KEY]}{'...' if len(key) > _KEY else ''}"
        yield f"    c={each['canonicalization']} h={':'.join(each['signed-fields'])}"
        for name in ("body-length", "time", "expires"):
            if each[name] is not None:
                yield f"    {name}: {each[name]}"
        if each["testing"]:
            yield "    the domain is testing (t=y), which changes nothing"
    if not dkim["signatures"]:
        yield "  none"
    if dkim["not-verified"]:
        yield f"  {dkim['not-verified']} further signatures not verified"


def _arc(arc: Part) -> Iterator[str]:
    yield ""
    yield "ARC"
    for each in arc["sets"]:
        trust = "trusted" if each["trusted"] else "not trusted"
        yield f"  i={each['instance']} sealed by {each['domain']} ({trust}): {each['results']}"
    oldest = arc["oldest-pass"]
    since = f"(message signatures valid from instance {oldest or 1} on)"
    yield _because(_with(f"  {arc['result']}", "" if oldest is None else since), arc["reason"])


def _dmarc(dmarc: Part) -> Iterator[str]:
    yield ""
    yield "DMARC"
    if dmarc["problem"]:
        yield f"  permerror: {dmarc['problem']}"
    for each in dmarc["authors"]:
        stated = "" if each["stated"] else " (if From is read in another way)"
        yield f"  From {each['domain']}{stated}"
        for step in each["walk"]:
            yield f"    {step['name']} TXT: {step['answer']}"
        if each["record-of"]:
            policy = f"    policy of {each['record-of']}: {each['requested']}"
            yield policy + (", testing: one level milder" if each["testing"] else "")
            yield f"    Organizational Domain: {each['organizational-domain']}"
        for identifier in each["identifiers"]:
            yield f"    {identifier['method']} {identifier['domain']}: {_alignment(identifier)}"
        asked = f"(disposition: {each['disposition']})" if each["record-of"] else ""
        overridden = "overridden by a trusted ARC sealer" if each["overridden"] else ""
        yield _because(_with(f"    {each['result']}", asked, overridden), each["problem"])


def _alignment(identifier: Part) -> str:
    if identifier["aligned"] is None:
        return str(identifier["result"])
    aligned = "aligned" if identifier["aligned"] else "not aligned"
    return f"{identifier['result']}, {aligned} ({identifier['alignment']})"


def _decision(found: Part) -> Iterator[str]:
    yield ""
    yield "filter-auth"
    for each in found.get("findings", ()):
        yield f"  {each['action']}: {each['reason']}"
    for cause in found.get("failures", ()):
        yield f"  --on-error decides: {cause}"
    decision = found["decision"]
    points = f"{decision['points']:g} points" if decision["points"] else ""
    yield _because(f"  {decision['result']}", decision["reply"] or points)
    if found["fields"]:
        yield "  and adds:"
        for line in found["fields"]:
            yield f"    {line.expandtabs(4)}"
