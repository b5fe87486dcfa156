"""Aggregate reports: their rows, their XML against the schema, and their destinations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.authentication.dmarc.reports import (
    Destination,
    Published,
    Report,
    Row,
    destinations,
    xml,
)
from smtpd_filters.authentication.dmarc.reports.rows import MAX_NAME, MAX_STORED, cut
from tests.authentication.aggregate_schema import every, text_at, validate
from tests.authentication.zones import TIMEOUT, Steps, Zone, solve
from tests.effort import part

PUBLISHED = Published("example.org", p="reject", sp="none", rua=("mailto:a@example.org",))
ROW = Row(
    source="192.0.2.1",
    header_from="news.example.org",
    envelope_from="example.com",
    disposition="none",
    dkim=False,
    spf=True,
    reasons=(("policy_test_mode", ""), ("local_policy", "why & <how>")),
    signatures=(("example.org", "sel", "fail", "body hash mismatch"),),
    sender=("example.com", "pass", ""),
)
BEGIN = 1_796_000_000 - 1_796_000_000 % 86400


def report(*rows: tuple[Row, int], published: Published = PUBLISHED) -> Report:
    return Report("Example", "dmarc@mx.example", "mx.example", BEGIN, published, rows, "tests 1")


def document(made: Report) -> bytes:
    return b"".join(xml(made))


def test_a_document() -> None:
    bare = replace(ROW, source="2001:db8::1", signatures=(), sender=(), reasons=())
    made = report((bare, 1), (ROW, 12))
    root = validate(document(made))
    for path, text in {
        "version": "1.0",
        "report_metadata/org_name": "Example",
        "report_metadata/email": "dmarc@mx.example",
        "report_metadata/report_id": f"{made.id}@mx.example",
        "report_metadata/date_range/begin": str(BEGIN),
        "report_metadata/date_range/end": str(BEGIN + 86399),
        "report_metadata/error": None,
        "report_metadata/generator": "tests 1",
        "policy_published/domain": "example.org",
        "policy_published/p": "reject",
        "policy_published/sp": "none",
        "policy_published/np": None,
        "policy_published/adkim": "r",
        "policy_published/discovery_method": "treewalk",
        # Of several rows, that with the most messages is the first.
        "record/row/count": "12",
        "record/row/source_ip": "192.0.2.1",
        "record/row/policy_evaluated/disposition": "none",
        "record/row/policy_evaluated/dkim": "fail",
        "record/row/policy_evaluated/spf": "pass",
        "record/identifiers/header_from": "news.example.org",
        "record/identifiers/envelope_from": "example.com",
        "record/auth_results/dkim/human_result": "body hash mismatch",
        "record/auth_results/spf/scope": "mfrom",
    }.items():
        assert text_at(root, path) == text, path
    reasons = every(root, "record/row/policy_evaluated/reason")
    assert [[each.text for each in reason] for reason in reasons] == [
        ["policy_test_mode"],
        ["local_policy", "why & <how>"],
    ]
    assert len(every(root, "record")) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<version>1.0</version>", "<version>1.1</version>"),
        ("<org_name>Example</org_name>", ""),
        ("<generator>tests 1</generator>", "<software>tests 1</software>"),
        ("<p>reject</p>", "<p>refuse</p>"),
        ("<discovery_method>treewalk<", "<discovery_method>walk<"),
        ("<testing>n<", "<testing>no<"),
        ("<source_ip>192.0.2.1<", "<source_ip>client<"),
        ("<count>12<", "<count>many<"),
        ("<disposition>none</disposition>", ""),
        ("<dkim>fail</dkim>", ""),
        ("<type>policy_test_mode<", "<type>sampled_out<"),
        ("<selector>sel</selector>", ""),
        ("<scope>mfrom<", "<scope>helo<"),
        ("<identifiers>", "<identifiers><header_from>b.example</header_from>"),
    ],
)
def test_the_schema_finds_departures(old: str, new: str) -> None:
    text = document(report((ROW, 12))).decode()
    changed = text.replace(old, new, 1)
    assert changed != text
    with pytest.raises((xmlschema.XMLSchemaValidationError, AssertionError, ValueError)):
        validate(changed.encode())


def test_the_names_of_a_report() -> None:
    made = report((ROW, 1))
    assert made.file_name == f"mx.example!example.org!{BEGIN}!{BEGIN + 86399}!{made.id}.xml.gz"
    assert made.id.isalnum()
    assert made.subject == (
        f"Report Domain: example.org Submitter: mx.example Report-ID: <{made.id}@mx.example>"
    )
    # RFC 9990 section 3.5.2: a report that is sent again has the same name.
    assert report((ROW, 2)).file_name == made.file_name
    assert replace(made, begin=BEGIN + 86400).id != made.id


@pytest.mark.parametrize("labels", [10, 60, 125])
def test_the_name_of_a_file_fits(labels: int) -> None:
    long = "a." * labels + "example.org"
    for submitter, domain in (("mx.example", long), (long, "example.org"), (long, long)):
        made = replace(report((ROW, 1), published=Published(domain)), submitter=submitter)
        name = made.file_name
        assert len(f".{name}.new") <= 255
        receiver, policy, *rest = name.split("!")
        assert rest == [str(BEGIN), str(BEGIN + 86399), f"{made.id}.xml.gz"]
        assert submitter.endswith(receiver)
        assert domain.endswith(policy)


def test_a_report_with_too_many_rows() -> None:
    rows = [(replace(ROW, source=f"192.0.2.{n}"), n) for n in (1, 2, 3)]
    root = validate(document(replace(report(*rows), left_out=1)))
    assert [text_at(each, "row/count") for each in every(root, "record")] == ["3", "2", "1"]
    assert text_at(root, "report_metadata/error") == "1 rows left out"


@pytest.mark.parametrize("p", ["", "invalid", "none", "quarantine", "reject"])
def test_an_invalid_policy_counts_as_none(p: str) -> None:
    root = validate(document(report((ROW, 1), published=Published("x.example", p=p, sp=p))))
    valid = p in {"none", "quarantine", "reject"}
    assert text_at(root, "policy_published/p") == (p if valid else "none")
    assert text_at(root, "policy_published/sp") == (p if valid else None)


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)


@settings(max_examples=part(200), deadline=None)
@given(TEXT, TEXT, st.lists(st.tuples(TEXT, TEXT, st.just("fail"), TEXT), max_size=3))
def test_any_text_is_valid_xml_and_stored(
    name: str, reason: str, signatures: list[tuple[str, str, str, str]]
) -> None:
    row = replace(
        ROW,
        header_from=name,
        envelope_from=name,
        signatures=tuple(signatures),
        sender=(name, "fail", reason),
    )
    assert Row.restored(row.stored()) == row
    published = Published(name, fo=reason, rua=(reason,))
    assert Published.restored(published.stored()) == published
    validate(document(report((row, 1), published=published)))


@pytest.mark.parametrize("char", ["a", "\u20ac", "\U0001f600", "\udcff", "\x00", '"'])
def test_whatever_is_stored_is_within_the_bound(char: str) -> None:
    long = char * 1000
    name, text = cut(long, MAX_NAME), cut(long)
    row = replace(
        ROW,
        header_from=name,
        envelope_from=name,
        reasons=(("local_policy", text), ("other", text)),
        signatures=((name, name, "fail", text),) * 8,
        sender=(name, "permerror", text),
    )
    assert len(row.stored()) <= MAX_STORED
    assert Row.restored(row.stored()) == replace(row, signatures=ANY)
    published = Published("a" * 253, fo=cut(long, 20), rua=(long[:400],) * 8)
    restored = Published.restored(published.stored())
    assert len(published.stored()) <= MAX_STORED
    assert restored.rua == published.rua[: len(restored.rua)]


@pytest.mark.parametrize("text", ["", "a" * 20, "a" * 21, "\u20ac" * 4, "a\u20ac" * 4, "\n" * 11])
def test_a_text_is_cut_only_if_it_is_too_long(text: str) -> None:
    fits = len(json.dumps(text)) <= len('""') + 20
    found = cut(text, 20)
    assert found == text if fits else found.endswith("...")
    assert text.startswith(found.removesuffix("..."))
    assert len(json.dumps(found)) <= len('""') + 20


def test_a_row_is_stored_within_its_bound() -> None:
    signature = ("\u20ac" * 255, "s" * 255, "fail", "r" * 120)
    row = Row.restored(replace(ROW, signatures=(signature,) * 8).stored())
    assert len(row.stored()) <= MAX_STORED
    assert 1 <= len(row.signatures) < 8
    for other in (b"{}", b"[]", b"x", b'{"domain": "x"}'):
        with pytest.raises(ValueError, match=r"version|Expecting"):
            Row.restored(other)
        with pytest.raises(ValueError, match=r"version|Expecting"):
            Published.restored(other)


# -- destinations ----------------------------------------------------------------------------

ZONE = Zone(
    {
        "_dmarc.example.org": {"TXT": "v=DMARC1; p=none"},
        "_dmarc.example.com": {"TXT": "v=DMARC1; p=none"},
        "example.org._report._dmarc.agrees.example": {"TXT": "v=DMARC1"},
        "*.agrees.example": {"TXT": "v=DMARC1"},
        "example.org._report._dmarc.example.com": {"TXT": ["v=spf1 -all", "v=DMARC1;"]},
        "example.org._report._dmarc.silent.example": {"TXT": TIMEOUT},
        "example.org._report._dmarc.other.example": {
            "TXT": "v=DMARC1; rua=mailto:b@other.example!10k"
        },
        "example.org._report._dmarc.away.example": {"TXT": "v=DMARC1; rua=mailto:b@victim.example"},
        "example.org._report._dmarc.words.example": {"TXT": "dmarc v=DMARC1"},
    }
)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("mailto:a@example.org", Destination("mailto:a@example.org", "a@example.org")),
        ("mailto:a@sub.EXAMPLE.org", Destination("mailto:a@sub.EXAMPLE.org", "a@sub.example.org")),
        ("MAILTO:a@example.org?subject=x",
         Destination("MAILTO:a@example.org?subject=x", "a@example.org")),
        ("mailto:a%2Bb@example.org", Destination("mailto:a%2Bb@example.org", "a+b@example.org")),
        ("mailto:a@example.org!10m", Destination("mailto:a@example.org!10m", "a@example.org")),
        ("mailto:a@example.org!500", Destination("mailto:a@example.org!500", "a@example.org")),
        ("mailto:a@agrees.example", Destination("mailto:a@agrees.example", "a@agrees.example")),
        ("mailto:a@example.com", Destination("mailto:a@example.com", "a@example.com")),
        ("mailto:a@refuses.example",
         Destination("mailto:a@refuses.example",
                     problem="refuses.example has not agreed to reports")),
        ("mailto:a@words.example",
         Destination("mailto:a@words.example", problem="words.example has not agreed to reports")),
        ("mailto:a@silent.example",
         Destination("mailto:a@silent.example", problem="timeout", temporary=True)),
        ("mailto:a@other.example",
         Destination("mailto:b@other.example!10k", "b@other.example")),
        ("mailto:a@away.example",
         Destination("mailto:a@away.example", problem="away.example names another host")),
        ("https://example.org/", Destination("https://example.org/", problem="not a mailto URI")),
        ("mailto:a@example.org!10x",
         Destination("mailto:a@example.org!10x", problem="not a mailto URI")),
        *((f"mailto:{each}", Destination(f"mailto:{each}", problem="not a plain address"))
          for each in ("-oQ/tmp@example.org", "a@-", "a@localhost", "%22a%40b%22@example.org",
                       "a%0AB@example.org", "a,b@example.org", "a@[192.0.2.1]", "a%20b@example.org",
                       "a@b%0a.example", "x" * 255, "=%3Futf-8%3Fq%3F%3F=@example.org",
                       "=%3Futf-8%3Fq%3Fa=0Ab%3F=@example.org")),
    ],
)  # fmt: skip
def test_a_destination(uri: str, expected: Destination) -> None:
    assert solve(destinations("example.org", [uri, uri]), ZONE) == [expected]


def test_a_name_too_long_for_a_consent() -> None:
    domain = ".".join(["x" * 60] * 4)
    (found,) = solve(destinations(domain, ["mailto:a@agrees.example"]), ZONE)
    assert found.problem == "agrees.example has not agreed to reports"


def test_an_unknown_organization_needs_consent() -> None:
    zone: dict[str, Any] = {
        "_dmarc.sub.example.org": TIMEOUT,
        "_dmarc.example.org": {"TXT": "v=DMARC1"},
    }
    uris = ["mailto:a@sub.example.org", "mailto:a@x.example"]
    inside, outside = solve(destinations("example.org", uris), Zone(zone))
    assert inside == Destination(uris[0], problem="timeout", temporary=True)
    assert not outside.temporary
    agreed = zone | {"example.org._report._dmarc.sub.example.org": {"TXT": "v=DMARC1"}}
    (found,) = solve(destinations("example.org", uris[:1]), Zone(agreed))
    assert found.address == "a@sub.example.org"


def test_consents_are_asked_side_by_side() -> None:
    steps = Steps(ZONE)
    uris = [f"mailto:a@{name}.example" for name in ("agrees", "other", "away", "silent")]
    assert len(steps.solve(destinations("example.org", uris))) == 4
    assert len(steps.steps) == 2
