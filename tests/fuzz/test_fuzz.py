"""The fuzzer notices what it looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.messages import Messages
from tests.fuzz import fuzz_clamd, fuzz_policy, fuzz_protocol
from tests.runtime.process import TOKENS, sid

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


STREAM = b"report|0.7|1.0|smtp-in|timeout|7641df9700000001|%b\n" % (b"x" * 100) * 40
PIECES = [b"\0", b"\r", b"\n\n", b"|", b"action=", b" FOUND\0", b"stream: OK\0", b" " * 300]
every_way = pytest.mark.parametrize("way", [b"\x00", b"\x60", b"\xc0"])


@every_way
def test_more_than_proportional_cost_is_found(way: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_protocol, "_seconds", lambda stream: len(stream) ** 2 * 1e-8)
    with pytest.raises(AssertionError):
        fuzz_protocol.grown(way + STREAM)


@every_way
@pytest.mark.parametrize(
    "cost",
    [
        lambda size: size * 1e-5,
        # Too quick to have been measured well.
        lambda size: size**2 * 1e-12,
    ],
)
def test_other_cost_passes(
    cost: Callable[[int], float], way: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_protocol, "_seconds", lambda stream: cost(len(stream)))
    fuzz_protocol.grown(way + STREAM)


def test_a_turn_that_is_too_long_is_found() -> None:
    smtpd = SmtpdConnection()
    stream = smtpd.configure() + smtpd.lines(sid(1), TOKENS["data-line"], [b"x"] * 40_000)
    served = fuzz_protocol.Counted([fuzz_protocol.Reads()], (), None)
    served.receive(stream)
    served.output()
    served.close()
    served = fuzz_protocol.Counted([fuzz_protocol.Reads()], (), None)
    messages = served.engine.messages
    assert isinstance(messages, Messages)
    messages.turn = 1 << 30
    served.receive(stream)
    with pytest.raises(AssertionError):
        served.output()
    served.close()


def test_the_short_ways_to_grow_an_input() -> None:
    stream = b"a|b\nc\n"
    assert fuzz_protocol._repeat(b"\x00", stream, 2) == b"a|b\nc\na|b\nc\n"
    assert fuzz_protocol._repeat(b"\x60", stream, 2) == b"a|b\na|b\nc\nc\n"
    assert fuzz_protocol._repeat(b"\xc0", stream, 2) == b"a|bb\ncc\n"


@pytest.mark.parametrize("parser", [fuzz_clamd, fuzz_policy])
@given(data=st.data())
def test_replies_with_faults(parser: ModuleType, data: st.DataObject) -> None:
    """What the fuzzer does, with faults in valid replies, and pieces of them in a row."""
    seed = bytearray(data.draw(st.sampled_from(parser.seeds())))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(seed)))
        end = at + data.draw(st.sampled_from([0, 1, 2, 9]))
        seed[at:end] = data.draw(st.binary(max_size=3) | st.sampled_from(PIECES))
    parser.fuzz(bytes(seed))
