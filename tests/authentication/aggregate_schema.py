"""The validator of aggregate reports: the schema of RFC 9990, and what only its text requires."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address
from pathlib import Path
from xml.etree import ElementTree as ET

import xmlschema

NAMESPACE = "{urn:ietf:params:xml:ns:dmarc-2.0}"


@cache
def _schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(Path(__file__).with_name("aggregate.xsd"))


def validate(document: bytes) -> ET.Element:
    """Return the root of a report; raise XMLSchemaValidationError or AssertionError if invalid."""
    root = ET.fromstring(document)  # noqa: S314  # our own document
    _schema().validate(root)
    # Section 3.1.1.2 of the RFC, and section 3.1.1.8.
    assert text_at(root, "version") in {None, "1.0"}
    for each in every(root, "record/row/source_ip"):
        ip_address(each.text or "")
    return root


def text_at(root: ET.Element, path: str) -> str | None:
    """Return the text of an element, None if there is none."""
    return root.findtext("/".join(NAMESPACE + each for each in path.split("/")))


def every(root: ET.Element, path: str) -> list[ET.Element]:
    """Return the elements of a path."""
    return root.findall("/".join(NAMESPACE + each for each in path.split("/")))
