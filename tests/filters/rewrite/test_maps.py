"""Tables of canonical addresses: mappings, and regular expressions in Postfix's form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.addresses import path
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.rewrite.addresses import ADDRESS_MAX, checked
from smtpd_filters.filters.rewrite.maps import MAPS, Maps
from smtpd_filters.filters.rewrite.masquerade import ENTRY, masqueraded
from smtpd_filters.filters.rewrite.patterns import PATTERNS_MAX, PatternTable, PerlTable
from tests.filters.executables import at_once

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "mx.example.org"


def asked(maps: Maps, address: str) -> str | None:
    return at_once(maps.look_up(path(address).completed(SERVER), SERVER))


def look_up(spec: str, address: str) -> str | None:
    return asked(MAPS.parse(spec), address)


@pytest.mark.parametrize(
    ("spec", "address", "canonical"),
    [
        ("{ joe@a.example = joe.doe@b.example }", "joe@a.example", "joe.doe@b.example"),
        ("{ joe@a.example = joe.doe@b.example }", "JOE@A.Example", "joe.doe@b.example"),
        ("{ joe@a.example = joe.doe@b.example }", "joe+x@a.example", "joe.doe+x@b.example"),
        ("{ joe+x@a.example = y@b.example }", "joe+x@a.example", "y@b.example"),
        ("{ joe@a.example = joe+in@b.example }", "joe+x@a.example", "joe+in@b.example"),
        ("{ joe@a.example = j@b.example, @a.example = @b.example }", "x@a.example", "x@b.example"),
        ("{ @a.example = @b.example }", "Joe+x@a.example", "Joe+x@b.example"),
        ("{ @a.example = all@b.example }", "joe@a.example", "all@b.example"),
        ("{ @a.example = all@b.example }", "joe@b.a.example", None),
        ("{ root = admin@b.example }", "root", "admin@b.example"),
        ("{ root = admin@b.example }", f"root@{SERVER}", "admin@b.example"),
        ("{ root = admin@b.example }", "root@elsewhere.example", None),
        ("{ bücher@a.example = b@b.example }", "BÜCHER@a.example", "b@b.example"),
        ("{ @bücher.example = @b.example }", "x@xn--bcher-kva.example", "x@b.example"),
        ('{ "\\"j d\\"@a.example" = j@b.example }', '"j d"@a.example', "j@b.example"),
        ("{ @a.example = @b.example }", '"j d"@a.example', '"j d"@b.example'),
        # Patterns.
        ("regexp:{ '/(.*)@(.*)\\.lan/ ${1}-${2}.lan@x.org' }", "root@h.lan", "root-h.lan@x.org"),
        ("regexp:{ '/(.*)@(.*)\\.lan/ $1@x.org' }", "root@h.lan.evil.example", None),
        ("regexp:{ '/^root@/ admin@x.org' }", "root@h.lan.evil.example", "admin@x.org"),
        ("regexp:{ '/@old\\.example$/ new@x.org' }", "A@OLD.example", "new@x.org"),
        ("regexp:{ '/@(old)\\.example$/ @$(1).x.org' }", "A@OLD.example", "A@OLD.x.org"),
        ("regexp:{ '!/@x\\.org$/ other@x.org' }", "a@y.org", "other@x.org"),
        ("regexp:{ '!/@x\\.org$/ other@x.org' }", "a@x.org", None),
        ("regexp:{ 'if /@x/', '/^a@/ b@x.org', endif, '/^a@/ c@x.org' }", "a@x.org", "b@x.org"),
        ("regexp:{ 'if /@x/', '/^a@/ b@x.org', endif, '/^a@/ c@x.org' }", "a@y.org", "c@x.org"),
        ("regexp:{ 'if !/@x/', '/^a@/ b@x.org', endif }", "a@x.org", None),
        ("regexp:{ 'if\t/@x/', '/^a@/\tb@x.org', endif }", "a@y.org", None),
        ("regexp:{ '|^a/b@x\\|| c@x.org' }", "a/b@x|", "c@x.org"),
        ("pcre:{ '/^(\\w+)\\.(\\d+)@(.*)$/ $1-$2@x.org' }", "ab.12@y", "ab-12@x.org"),
        ("pcre:{ '/^([\\w.]+)@\\S+$/ $1@x.org' }", "a.b@y", "a.b@x.org"),
        ("pcre:{ '/^(?:a|b)(.*?)(-.*)?@/ $1@x.org' }", "bob-x@y", "ob@x.org"),
        ("pcre:{ '/(?i)A@y/ b@x.org' }", "a@y", "b@x.org"),
        ("pcre:{ '/(?i)A@y/ b@x.org' }", "a@y.z", None),
        ("pcre:{ '/\\AA@y/ b@x.org' }", "a@y.z", "b@x.org"),
    ],
)
def test_a_look_up(spec: str, address: str, canonical: str | None) -> None:
    assert look_up(spec, address) == canonical


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("{ a@b.example = nobody }", "is not of the form"),
        ("{ a@b.example = @ }", "is not of the form"),
        ("{ a@b.example = 'x@-b.example' }", "invalid domain"),
        (f"{{ a@b.example = {'x' * 65}@b.example }}", "too long"),
        ("regexp:{ '/a/' }", "no address"),
        ("regexp:{ '/a@b.c x@y.z' }", "no / at the end"),
        ("regexp:{ 'a@b.c x@y.z' }", "expected /pattern/"),
        ("regexp:{ '/(a)@b/ $2@y.z' }", "only 1 groups"),
        ("regexp:{ '\u3000' }", "expected /pattern/"),
        ("regexp:{ '/(a)@b/ $x@y.z' }", "a dollar is followed"),
        ("regexp:{ '!/(a)@b/ $1@y.z' }", "nothing to refer to"),
        ("regexp:{ '/a@b/ nobody' }", "is not of the form"),
        ("regexp:{ '/a@b/i x@y.z' }", "letter case"),
        ("regexp:{ '/(a@b/ x@y.z' }", "unmatched"),
        ("regexp:{ 'if /a/', '/a@b/ x@y.z' }", "without endif"),
        ("regexp:{ endif }", "endif without if"),
        ("regexp:{ 'if /a/ x' }", "text after the pattern"),
        ("pcre:{ '/(?=a)@b/ x@y.z' }", "(?= is not supported"),
        ("regexp:{ '/a*?@b/ x@y.z' }", "repeat of a repeat"),
        ("regexp:/nonexistent/file", "/nonexistent/file"),
    ],
)
def test_what_is_no_table(spec: str, reason: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as raised:
        MAPS.parse(spec)
    assert reason in str(raised.value)


def test_a_file_of_postfix(tmp_path: Path) -> None:
    file = tmp_path / "sender_canonical"
    file.write_text("# comment\n\n/(.*)@(.*)\\.lan/\t\t${1}-${2}.lan@x.org\n")
    table = PatternTable.load(f"regexp:{file}")
    assert table.source.removeprefix("regexp:").removeprefix("file:") == str(file)
    assert table.get("root@h.lan") == "root-h.lan@x.org"
    assert table.anchored == [r"(.*)@(.*)\.lan"]
    assert asked(MAPS.parse(table.source), "root@h.lan") == "root-h.lan@x.org"
    file.write_text("/^(.*)@h\\.lan$/ $1@y.org\nx\n")
    with pytest.raises(ConfigError, match="sender_canonical:2: expected /pattern/"):
        PatternTable.load(f"regexp:{file}")


def test_there_are_not_too_many(tmp_path: Path) -> None:
    file = tmp_path / "patterns"
    file.write_text("".join(f"/^a{n}@/ a@x.org\n" for n in range(PATTERNS_MAX + 1)))
    with pytest.raises(ConfigError, match=f"more than {PATTERNS_MAX} patterns"):
        PerlTable.load(str(file))


def test_several_tables() -> None:
    maps = MAPS.from_toml(["{ a@x.org = b@x.org }", "regexp:{ '/^a@/ c@x.org' }"])
    assert asked(maps, "a@x.org") == "b@x.org"
    assert asked(maps, "a@y.org") == "c@x.org"
    assert asked(maps, "b@x.org") is None
    assert asked(MAPS.from_toml(MAPS.words(maps)), "a@y.org") == "c@x.org"


@given(st.text(max_size=300), st.text(max_size=100))
@example('"a@b"', "c.example")
@example("x" * 64, "y" * 190)
def test_a_checked_address_is_legal_everywhere(local: str, domain: str) -> None:
    try:
        address = checked(f"{local}@{domain}")
    except ValueError:
        return
    assert len(address) <= ADDRESS_MAX
    assert address.isascii()
    assert address.isprintable()
    assert address.count("@") == 1 or address.startswith('"')
    assert checked(address) == address


@given(st.text(max_size=80))
@example("root@h.lan")
@example("\ud800@h.lan")
def test_any_key_is_looked_up(key: str) -> None:
    for spec in ("regexp:{ '/(.*)@(.*)\\.lan/ ${1}-$2@x.org' }", "{ @h.lan = @x.org }"):
        result = look_up(spec, key)
        assert result is None or "@x.org" in result


@pytest.mark.parametrize(
    ("domain", "hidden"),
    [
        ("example.org", "example.org"),
        ("pc.example.org", "example.org"),
        ("a.b.Example.ORG", "example.org"),
        ("lab.example.org", "lab.example.org"),
        ("x.lab.example.org", "x.lab.example.org"),
        ("notexample.org", "notexample.org"),
    ],
)
def test_masquerading(domain: str, hidden: str) -> None:
    entries = [ENTRY.parse(each) for each in ("!lab.example.org", "Example.org")]
    assert masqueraded(domain, entries) == hidden


@pytest.mark.parametrize("text", ["", "!", "org", "*.example.org", "a b.example", "x@example.org"])
def test_what_is_no_domain_to_masquerade(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
        ENTRY.parse(text)
