"""A legal smtpd and a listener that misbehaves: the connection must keep smtpd's rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from smtpd_filters.oracle import Oracle
from smtpd_filters.oracle.rules import RULES
from smtpd_filters.protocol.versions import UnsupportedProtocolError
from smtpd_filters.recording import Recording
from tests.effort import part
from tests.fuzz import fuzz_milter, fuzz_protocol
from tests.protocol.hostile import (
    ALWAYS,
    DEADLY,
    SERVERS,
    Choices,
    Hostile,
    Smtpd,
    finish,
    play,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    T = TypeVar("T")

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol"
RECORDED = [
    b"".join(line + b"\n" for line in Recording.read(path).to_filter())
    for path in sorted(FIXTURES.glob("*/*.session"))
]


class Served(RuleBasedStateMachine):
    """Sessions that connect, send requests and messages, and end; a listener that misbehaves."""

    data: st.DataObject

    def _choose(self, options: Sequence[T]) -> T:
        return options[self.data.draw(st.integers(0, len(options) - 1))]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.data = data
        protocol = self._choose(tuple(SERVERS))
        refuse, pass_all = self._choose((False, True)), self._choose((False, False, True))
        self.hostile = Hostile(self._choose, refuse=refuse, pass_all=pass_all)
        connection = self.hostile.connection
        self.smtpd = Smtpd(
            self._choose,
            protocol,
            self._choose(SERVERS[protocol]),
            connection.receive,
            self.hostile.outgoing,
        )

    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        self.data = data
        self.smtpd.connect()

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        self.data = data
        self.smtpd.act()

    @rule(data=st.data())
    def mischief(self, data: st.DataObject) -> None:
        self.data = data
        self.hostile.mischief()
        self.smtpd.collect()

    @invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "smtpd"):
            assert not self.smtpd.broken()

    def teardown(self) -> None:
        if hasattr(self, "smtpd"):
            finish(self.smtpd, self.hostile)


Served.TestCase.settings = settings(
    max_examples=part(60),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestServed = Served.TestCase


@given(st.binary(max_size=600))
@example(bytes.fromhex("000000") + bytes(range(256)))
@settings(max_examples=part(300), deadline=None)
def test_a_legal_smtpd_survives_any_listener(data: bytes) -> None:
    play(data)


def mutated() -> st.SearchStrategy[bytes]:
    """Recorded traffic with a few bytes replaced, cut out or put in."""
    edit = st.tuples(
        st.integers(0, 1 << 14),
        st.integers(0, 40),
        st.sampled_from((b"", b"\n", b"|", b".\n", b"\0", b"\xff", b"data-line", b"commit", b"9")),
    )

    def apply(base: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for at, size, new in edits:
            place = at % (len(base) + 1)
            base = base[:place] + new + base[place + size :]
        return base

    return st.builds(apply, st.sampled_from(RECORDED), st.lists(edit, max_size=6))


@pytest.mark.parametrize("pass_all", [False, True])
@given(
    stream=st.one_of(mutated(), st.binary(max_size=300), st.sampled_from(RECORDED)),
    seed=st.binary(max_size=200),
    size=st.sampled_from((1, 7, 100, 1000, 1 << 20)),
)
@settings(max_examples=part(150), deadline=None)
def test_no_bytes_and_no_listener_break_smtpd(
    stream: bytes, seed: bytes, size: int, *, pass_all: bool
) -> None:
    choices = Choices(seed)
    hostile = Hostile(choices.of, refuse=choices.below(2) == 1, pass_all=pass_all)
    connection, oracle = hostile.connection, Oracle()
    for at in range(0, min(len(stream), 300 * size), size):
        piece = stream[at : at + size]
        oracle.from_smtpd(piece)
        try:
            connection.receive(piece)
        except UnsupportedProtocolError:
            break
        oracle.from_filter(connection.data_to_send())
    broken = [c for c in oracle.complaints if c.kind in DEADLY]
    assert broken == [] or fuzz_protocol.ancient(stream)


def test_the_damage_that_is_always_ruled_out_has_rules() -> None:
    assert RULES.keys() >= ALWAYS


@given(
    stream=st.one_of(mutated(), st.binary(max_size=300)), seed=st.binary(min_size=16, max_size=16)
)
@settings(max_examples=part(100), deadline=None)
def test_no_bytes_and_no_policy_break_smtpd(stream: bytes, seed: bytes) -> None:
    fuzz_protocol.raw(seed + stream)


def test_the_corpus_is_made_of_the_recordings(tmp_path: Path) -> None:
    fuzz_protocol.corpus(tmp_path)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 5 * len(RECORDED) + len(list(fuzz_milter.seeds()))
    for path in made[::20]:
        fuzz_protocol.fuzz(path.read_bytes())
