from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.protocol.versions import (
    DIALECTS,
    NEWEST,
    OLDEST,
    cuts_lines,
    dialect,
    version,
)
from smtpd_filters.protocol.vocabulary import REPORTS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.7", (0, 7)),
        ("0.10", (0, 10)),
        ("1.0", (1, 0)),
        ("6.8.0p2", (6, 8)),
        ("7.8.0-portable", (7, 8)),
        ("0.7x", (0, 7)),
        ("", None),
        ("7", None),
        ("7.", None),
        (".7", None),
        ("x.7", None),
        ("7.x", None),
        ("-1.7", None),
        ("\u0667.7", None),
        ("9" * 18 + ".1", None),
        ("0." + "9" * 5000, None),
    ],
)
def test_versions_are_read(text: str, expected: tuple[int, int] | None) -> None:
    assert version(text) == expected


@given(st.text())
def test_no_text_is_too_odd_for_a_version(text: str) -> None:
    assert version(text) is None or "." in text
    assert cuts_lines(text) in (False, True)


def test_each_version_has_its_dialect() -> None:
    assert DIALECTS
    for spoken, found in DIALECTS.items():
        assert dialect(spoken) is found
        assert found.version == spoken
        assert found.wire == found.name.encode() == b"%d.%d" % spoken
        assert repr(found) == f"<protocol {found.name}>"
        assert not found.token_first
        assert found.reports.keys() == {name.encode() for name in REPORTS}


def test_an_unknown_version_has_the_nearest_dialect() -> None:
    assert dialect((0, 8)) is dialect((7, 0)) is DIALECTS[NEWEST]
    ancient = dialect((0, 1))
    assert ancient.version < OLDEST
    assert ancient.token_first
    assert ancient.order == DIALECTS[OLDEST].order


def test_differences_are_stated_in_one_place() -> None:
    assert DIALECTS[0, 7].order == {}
    assert DIALECTS[0, 6].order == {b"link-auth": (1, 0)}
    assert DIALECTS[0, 5].order == {
        b"link-auth": (1, 0),
        b"tx-mail": (0, 2, 1),
        b"tx-rcpt": (0, 2, 1),
    }


@pytest.mark.parametrize(
    ("server", "cuts"),
    [
        ("6.8.0p2", True),
        ("7.3.0p2", True),
        ("7.4.0", False),
        ("7.8.0-portable", False),
        ("", False),
    ],
)
def test_servers_before_7_4_cut_lines(server: str, cuts: bool) -> None:  # noqa: FBT001  # a case
    assert cuts_lines(server) is cuts
