"""The conformance suite of RFC 7208: 203 cases, read from pyspf's source distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from smtpd_filters.authentication import spf
from tests.authentication.zones import TIMEOUT, Zone, solve
from tests.data import data_file, need_data

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "spf/rfc7208-tests.yml"
SUITE = data_file(NAME)
#: The cases that the suite has.
CASES = 203


def zone_of(names: dict[str, list[Any]]) -> Zone:
    """Return a zone of the suite: entries of type SPF are TXT, unless the name has TXT itself."""
    zone: dict[str, dict[str, Any] | str] = {}
    for name, entries in names.items():
        types: dict[str, Any] = {}
        fails = False
        for entry in entries:
            if entry == TIMEOUT:
                fails = True
                continue
            for rdtype, value in entry.items():
                types.setdefault(rdtype, []).append(value)
        texts = types.pop("SPF", [])
        if texts:
            types.setdefault("TXT", texts)
        found = {rdtype: _records(rdtype, values) for rdtype, values in types.items()}
        zone[name] = _failing(found) if fails else found
    return Zone(zone)


def _failing(types: dict[str, Any]) -> dict[str, Any]:
    """Return a name of which each type that has no records times out."""
    return {rdtype: types.get(rdtype) or TIMEOUT for rdtype in ("A", "AAAA", "MX", "PTR", "TXT")}


def _records(rdtype: str, values: list[Any]) -> Any:
    if TIMEOUT in values:
        return TIMEOUT
    if rdtype == "CNAME":
        return values[0].rstrip(".")
    if values == ["NONE"]:
        return []
    if rdtype == "TXT":
        return ["".join(each) if isinstance(each, list) else each for each in values]
    return [tuple(each) if isinstance(each, list) else each for each in values]


def cases() -> Iterator[Any]:
    if SUITE is None:
        yield pytest.param(None, None, id="missing")
        return
    for scenario in yaml.safe_load_all(SUITE.read_text("utf-8")):
        zone = zone_of(scenario["zonedata"])
        for name, case in scenario["tests"].items():
            yield pytest.param(zone, case, id=f"{scenario['description']}: {name}")


@pytest.mark.parametrize(("zone", "case"), list(cases()))
def test_case(zone: Zone, case: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    need_data(SUITE, NAME)
    who = case["host"], case["helo"], case["mailfrom"] or ""
    verdict = solve(spf.check(*who, now=0), zone)
    explained = solve(spf.check(*who, now=0, explain=True), zone)
    # A trace changes nothing.
    assert replace(explained, explanation="") == verdict
    allowed = case["result"]
    assert verdict.result in ([allowed] if isinstance(allowed, str) else allowed), verdict
    if "explanation" in case:
        assert (explained.explanation or "DEFAULT") == case["explanation"]
    assert capfd.readouterr() == ("", "")


def test_the_suite_is_complete() -> None:
    need_data(SUITE, NAME)
    assert len(list(cases())) == CASES
