"""The fields that servers add: of which message they are, and how many."""

from __future__ import annotations

from smtpd_filters.filters.policy.fields import MAX_BYTES, MAX_FIELDS, MAX_KEPT, Kept, Messages

A, B, C = ("X-A", "a"), ("X-B", "b"), ("X-C", "c")


def test_fields_of_a_session_come_first_and_stay() -> None:
    messages = Messages(Kept())
    messages.add(A, to_session=True)
    messages.begin()
    messages.add(B)
    one = object()
    messages.enter(one)
    messages.add(C)
    messages.enter(one)
    assert (messages.number, messages.fields) == (1, [A, B, C])
    messages.enter(object())
    assert (messages.number, messages.fields) == (2, [A])
    messages.begin()
    messages.begin()  # the transaction of the one before was refused
    assert messages.number == 4


def test_the_same_field_is_added_once() -> None:
    messages = Messages(Kept())
    assert all([messages.add(A), messages.add(A), messages.add(A, to_session=True)])
    assert messages.fields == [A]


def test_a_message_has_a_number_of_fields() -> None:
    messages = Messages(Kept())
    added = [messages.add(("X", str(number))) for number in range(MAX_FIELDS + 1)]
    assert added == [True] * MAX_FIELDS + [False]


def test_all_sessions_have_a_number_of_bytes() -> None:
    kept = Kept()
    large = ("X", "x" * (MAX_BYTES - 500))
    sessions = []
    while True:
        messages = Messages(kept)
        if not messages.add(large):
            break
        sessions.append(messages)
    assert kept.size <= MAX_KEPT < kept.size + MAX_BYTES
    assert not sessions[0].add(large, to_session=True) or sessions[0].fields == [large]
    sessions[0].begin()
    assert messages.add(large)
    for each in (*sessions, messages):
        each.release()
    assert kept.size == 0


def test_a_field_that_is_too_long() -> None:
    assert not Messages(Kept()).add(("X", "x" * MAX_BYTES))
