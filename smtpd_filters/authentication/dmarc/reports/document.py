"""The XML document of a report (RFC 9990 section 3.1 and appendix A)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .rows import Published, Row

NAMESPACE = "urn:ietf:params:xml:ns:dmarc-2.0"
DAY = 86400
#: Rows of a report, those with the most messages first. RFC 9990 has no limit, mail has.
MAX_ROWS = 10_000
#: Bytes of a file's name: POSIX's NAME_MAX, without what a temporary one has more.
MAX_FILE_NAME = 255 - len("..new")

# XML 1.0 section 2.2 has no other control characters, and no surrogates.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Report:
    """A report on a day.

    `organization`, `email` and `submitter`, a domain, are those of the reporter. `begin` is the
    first second of the day. `rows` are rows with the numbers of their messages, without the
    `left_out` ones.
    """

    organization: str
    email: str
    submitter: str
    begin: int
    published: Published
    rows: Sequence[tuple[Row, int]]
    generator: str = ""
    left_out: int = 0

    @property
    def end(self) -> int:
        """The last second of the day."""
        return self.begin + DAY - 1

    @property
    def id(self) -> str:
        """The unique id, the same if the report is made again."""
        text = f"{self.submitter} {self.published.domain} {self.begin}"
        return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def file_name(self) -> str:
        """The name of the compressed file (RFC 9990 section 3.5.2), of at most `MAX_FILE_NAME`.

        Of names that are too long, the ends are in it.
        """
        end = f"!{self.begin}!{self.end}!{self.id}.xml.gz"
        left = MAX_FILE_NAME - len(end) - 1
        submitter = self.submitter[-min(left // 2, len(self.submitter)) :]
        domain = self.published.domain[-(left - len(submitter)) :]
        return f"{submitter}!{domain}{end}"

    @property
    def subject(self) -> str:
        """The subject of the mail (RFC 9990 section 3.5.2)."""
        return (
            f"Report Domain: {self.published.domain} Submitter: {self.submitter} "
            f"Report-ID: <{self.id}@{self.submitter}>"
        )


def xml(report: Report) -> Iterator[bytes]:
    """Yield the lines of the XML document of a report."""
    for line in _document(report):
        yield f"{line}\n".encode()


def _document(report: Report) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield f'<feedback xmlns="{NAMESPACE}">'
    yield from _inside(_feedback(report))
    yield "</feedback>"


def _feedback(report: Report) -> Iterator[str]:
    rows = sorted(report.rows, key=lambda each: (-each[1], each[0].stored()))
    left_out = report.left_out
    yield _element("version", "1.0")
    yield from _group(
        "report_metadata",
        [
            _element("org_name", report.organization),
            _element("email", report.email),
            _element("report_id", f"{report.id}@{report.submitter}"),
            *_group(
                "date_range",
                [_element("begin", str(report.begin)), _element("end", str(report.end))],
            ),
            *_optional("error", f"{left_out} rows left out" if left_out else ""),
            *_optional("generator", report.generator),
        ],
    )
    yield from _group("policy_published", _policy(report.published))
    for row, count in rows:
        yield from _group("record", _record(row, count))


def _policy(published: Published) -> Iterator[str]:
    yield _element("domain", published.domain)
    # RFC 9989 section 4.7: a record without a valid policy counts as "none".
    yield _element("p", published.p if published.p in _POLICIES else "none")
    for name, value in (("sp", published.sp), ("np", published.np)):
        if value in _POLICIES:
            yield _element(name, value)
    yield _element("adkim", published.adkim)
    yield _element("aspf", published.aspf)
    yield _element("testing", published.testing)
    yield _element("discovery_method", "treewalk")
    yield from _optional("fo", published.fo)


_POLICIES = ("none", "quarantine", "reject")


def _record(row: Row, count: int) -> Iterator[str]:
    evaluated = [
        _element("disposition", row.disposition),
        _element("dkim", "pass" if row.dkim else "fail"),
        _element("spf", "pass" if row.spf else "fail"),
    ]
    for kind, comment in row.reasons:
        reason = [_element("type", kind), *_optional("comment", comment)]
        evaluated += _group("reason", reason)
    yield from _group(
        "row",
        [
            _element("source_ip", row.source),
            _element("count", str(count)),
            *_group("policy_evaluated", evaluated),
        ],
    )
    yield from _group(
        "identifiers",
        [
            _element("header_from", row.header_from),
            _element("envelope_from", row.envelope_from),
        ],
    )
    yield from _group("auth_results", _results(row))


def _results(row: Row) -> Iterator[str]:
    for domain, selector, result, reason in row.signatures:
        parts = [
            _element("domain", domain),
            _element("selector", selector),
            _element("result", result),
        ]
        yield from _group("dkim", [*parts, *_optional("human_result", reason)])
    if row.sender:
        domain, result, reason = row.sender
        parts = [
            _element("domain", domain),
            _element("scope", "mfrom"),
            _element("result", result),
        ]
        yield from _group("spf", [*parts, *_optional("human_result", reason)])


def _element(name: str, text: str) -> str:
    return f"<{name}>{escape(_NOT_XML.sub('?', text))}</{name}>"


def _optional(name: str, text: str) -> Iterator[str]:
    if text:
        yield _element(name, text)


def _group(name: str, parts: Iterable[str]) -> Iterator[str]:
    yield f"<{name}>"
    yield from _inside(parts)
    yield f"</{name}>"


def _inside(parts: Iterable[str]) -> Iterator[str]:
    return (f"  {part}" for part in parts)
