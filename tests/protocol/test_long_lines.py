from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.protocol.long_lines import MAX_LINE, break_line, content_limit

PIECES = (b"x", b" ", b"\t", b"word ", b"  ", "ü".encode(), "€".encode(), b"\x80", b"\xff")


def unbroken(lines: list[bytes], returned: list[bytes], limit: int) -> bool:
    """Whether the lines returned are these, those beyond the limit broken and nothing lost."""
    # Where one may be: in which line, and how far in it.  A piece that begins with a space begins
    # with its own, or with one that was put there.
    places = {(0, 0)}
    for row in returned:
        after: set[tuple[int, int]] = set()
        for number, at in places:
            line = lines[number] if number < len(lines) else None
            if line is None or (len(line) <= limit and row != line):
                continue
            if len(line) > limit and len(row) > MAX_LINE:
                continue
            for part in {row, row[1:] if at and row[:1] == b" " else row}:
                if line[at : at + len(part)] == part:
                    whole = at + len(part) == len(line)
                    after.add((number + 1, 0) if whole else (number, at + len(part)))
        places = after
    return (len(lines), 0) in places


LONG = st.builds(
    lambda parts, size: (b"".join(parts) * (size // len(b"".join(parts)) + 1))[:size],
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6),
    st.sampled_from((999, 1000, 1995, 1996, 1997, 2000, 5000)),
)


@given(line=LONG, header=st.booleans())
@example(line=b" " * 2000, header=True)
@example(line=b" " * 1996, header=False)
@example(line=b"Subject: x" + b" " * 3000 + b"y", header=True)
@example(line=b"\x80" * 3000, header=False)
def test_nothing_is_lost(*, line: bytes, header: bool) -> None:
    pieces = break_line(line, header=header)
    assert len(pieces) > 1
    assert all(0 < len(piece) <= MAX_LINE for piece in pieces)
    assert pieces[0] == line[: len(pieces[0])]
    assert all(piece[:1] in (b" ", b"\t") for piece in pieces[1:])
    assert unbroken([line], pieces, MAX_LINE)


@given(LONG)
def test_a_body_line_is_broken_by_a_line_end_and_a_space(line: bytes) -> None:
    first, *others = break_line(line, header=False)
    assert all(other.startswith(b" ") for other in others)
    assert first + b"".join(other[1:] for other in others) == line


@given(LONG)
@example((b"      x  " * 230)[:1995])
def test_no_piece_of_a_header_looks_like_the_end_of_the_header(line: bytes) -> None:
    line = b"Subject: " + line
    pieces = break_line(line, header=True)
    assert pieces
    # A run of white space longer than a line is indistinguishable from a fold.
    if b" " * 900 not in line.replace(b"\t", b" "):
        assert all(piece.strip(b" \t") for piece in pieces)


@given(st.lists(st.sampled_from(("word", "ü", "x" * 40)), min_size=200, max_size=300))
def test_a_header_field_unfolds_to_its_old_value(words: list[str]) -> None:
    line = b"Subject: " + " ".join(words).encode()
    pieces = break_line(line, header=True)
    # RFC 5322 section 2.2.3: "Unfolding is accomplished by simply removing any CRLF that is
    # immediately followed by WSP."
    assert b"".join(pieces) == line


def test_a_short_line_is_not_broken() -> None:
    for size in (0, 1, MAX_LINE):
        assert break_line(b"x" * size, header=True) == [b"x" * size]


@pytest.mark.parametrize("character", ["ü", "€", "😀"])
@pytest.mark.parametrize("shift", range(4))
def test_no_character_is_cut_in_two(character: str, shift: int) -> None:
    line = b"x" * shift + character.encode() * 600
    for piece in break_line(line, header=False):
        piece.decode()


def test_limits_are_the_measured_ones() -> None:
    # `filter-dataline|`, two ids and their bars, and the content, make 65,535 bytes at most.
    head = b"filter-dataline|7641df9771b4ed00|1ef1c203cc576e5d|"
    assert len(head) + content_limit(cuts=False) + 1 == 65535
    assert content_limit(cuts=True) == 1997
