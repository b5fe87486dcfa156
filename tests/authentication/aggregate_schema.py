"""The schema of aggregate reports (RFC 9990 appendix A), as a table, and its validator."""

from __future__ import annotations

import re
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = "{urn:ietf:params:xml:ns:dmarc-2.0}"
MANY = 1 << 30

#: The children of an element, in any order or in this one, with the least and the most of each.
ANY, ORDERED = "any order", "this order"
Children = list[tuple[str, int, int]]
STRUCTURE: dict[str, tuple[str, Children]] = {
    "feedback": (
        ORDERED,
        [("version", 0, 1), ("report_metadata", 1, 1), ("policy_published", 1, 1),
         ("extension", 0, 1), ("record", 1, MANY)],
    ),
    "report_metadata": (
        ANY,
        [("org_name", 1, 1), ("email", 1, 1), ("extra_contact_info", 0, 1), ("report_id", 1, 1),
         ("date_range", 1, 1), ("error", 0, 1), ("generator", 0, 1)],
    ),
    "date_range": (ANY, [("begin", 1, 1), ("end", 1, 1)]),
    "policy_published": (
        ANY,
        [("domain", 1, 1), ("discovery_method", 0, 1), ("p", 1, 1), ("sp", 0, 1), ("np", 0, 1),
         ("fo", 0, 1), ("adkim", 0, 1), ("aspf", 0, 1), ("testing", 0, 1)],
    ),
    "record": (ORDERED, [("row", 1, 1), ("identifiers", 1, 1), ("auth_results", 1, 1)]),
    "row": (ORDERED, [("source_ip", 1, 1), ("count", 1, 1), ("policy_evaluated", 1, 1)]),
    "policy_evaluated": (
        ORDERED,
        [("disposition", 1, 1), ("dkim", 1, 1), ("spf", 1, 1), ("reason", 0, MANY)],
    ),
    "reason": (ANY, [("type", 1, 1), ("comment", 0, 1)]),
    "identifiers": (
        ANY,
        [("header_from", 1, 1), ("envelope_from", 0, 1), ("envelope_to", 0, 1)],
    ),
    "auth_results": (ORDERED, [("dkim", 0, MANY), ("spf", 0, 1)]),
    "auth_results/dkim": (
        ANY,
        [("domain", 1, 1), ("selector", 1, 1), ("result", 1, 1), ("human_result", 0, 1)],
    ),
    "auth_results/spf": (
        ANY,
        [("domain", 1, 1), ("scope", 0, 1), ("result", 1, 1), ("human_result", 0, 1)],
    ),
}  # fmt: skip

_POLICY = "none|quarantine|reject"
_NUMBER = "[0-9]+"
#: The forms of texts; any text where there is none.
FORMS = {
    "version": r"1\.0",
    "begin": _NUMBER,
    "end": _NUMBER,
    "count": _NUMBER,
    "p": _POLICY,
    "sp": _POLICY,
    "np": _POLICY,
    "adkim": "r|s",
    "aspf": "r|s",
    "testing": "n|y",
    "discovery_method": "psl|treewalk",
    "disposition": "none|pass|quarantine|reject",
    "policy_evaluated/dkim": "pass|fail",
    "policy_evaluated/spf": "pass|fail",
    "type": "local_policy|mailing_list|other|policy_test_mode|trusted_forwarder",
    "scope": "mfrom",
    "dkim/result": "none|pass|fail|policy|neutral|temperror|permerror",
    "spf/result": "none|neutral|pass|fail|softfail|policy|temperror|permerror",
}
CHECKS: dict[str, Callable[[str], object]] = {"source_ip": ip_address}


def validate(document: bytes) -> ET.Element:
    """Return the root of a report; raise AssertionError if it is not valid."""
    root = ET.fromstring(document)  # noqa: S314  # our own document
    _validate(root, "")
    return root


def _validate(element: ET.Element, parent: str) -> None:
    assert element.tag.startswith(NAMESPACE), element.tag
    name = element.tag.removeprefix(NAMESPACE)
    path = f"{parent}/{name}"
    structure = STRUCTURE.get(path) or STRUCTURE.get(name)
    if structure is None:
        assert not len(element), f"{path} has children"
        text = element.text or ""
        form = FORMS.get(path, FORMS.get(name))
        assert form is None or re.fullmatch(form, text), f"{path}: {text!r}"
        CHECKS.get(name, str)(text)
        return
    assert not (element.text or "").strip(), f"{path} has text"
    order, children = structure
    names = [child.tag.removeprefix(NAMESPACE) for child in element]
    counted = Counter(names)
    assert set(counted) <= {each for each, _, _ in children}, f"{path}: {names}"
    for child, least, most in children:
        assert least <= counted[child] <= most, f"{path}: {counted[child]} {child}"
    if order == ORDERED:
        places = [[each for each, _, _ in children].index(each) for each in names]
        assert places == sorted(places), f"{path}: {names}"
    for each in element:
        _validate(each, name)


def text_at(root: ET.Element, path: str) -> str | None:
    """Return the text of an element, None if there is none."""
    return root.findtext("/".join(NAMESPACE + each for each in path.split("/")))


def every(root: ET.Element, path: str) -> list[ET.Element]:
    """Return the elements of a path."""
    return root.findall("/".join(NAMESPACE + each for each in path.split("/")))
