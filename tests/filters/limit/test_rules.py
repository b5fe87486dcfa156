from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.filters.limit.rules import ACTIONS, COUNTED, LIMIT, SUBJECTS
from tests.effort import part


@pytest.mark.parametrize(
    "text",
    [
        "all connections 500",
        "client connections 20",
        "client connections 60/1m",
        "network connections 60/1m burst=10",
        "user connections 5 action=log",
        "sender connections 5",
        "user messages 200/1h",
        "client+sender recipients 50/1h",
        "recipient messages 100/1d action=junk",
        "recipient-domain recipients 100/30m",
        "user bytes 100M/1d burst=20M",
        "client failed-auth 10/10m action=reject",
        "client+user failed-auth 5/1h action=delay",
        "network refused-recipients 20/1h",
        "user networks 3/1h action=block",
        "user recipients 10x",
        "user messages 10x floor=200 action=block",
    ],
)
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    rule = LIMIT.parse(text)
    assert str(rule) == text
    assert LIMIT.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a limit such as"),
        ("user messages", "expected a limit such as"),
        ("users messages 5/1h", '"users" is not one of all, client,'),
        ("user+user messages 5/1h", "a part twice"),
        ("all+user messages 5/1h", "all can't be combined"),
        ("user mails 5/1h", '"mails" is not one of connections,'),
        ("user messages 5", "messages require a period, as in 5/1h"),
        ("user messages x/1h", '"x" is not a number'),
        ("user messages 0/1h", '"0" is not a positive number'),
        ("user messages 5/0s", "must be at least 1s"),
        ("user messages 5/x", "expected a time"),
        ("user messages 5/1h often", '"often" is not burst=N'),
        ("user messages 5/1h burst=1 burst=2", "burst= is there twice"),
        ("user messages 5/1h floor=2", "floor= has no effect here"),
        ("user messages 5/1h action=shout", '"shout" is not one of delay,'),
        ("client connections 10000", "at most 9999 at once"),
        ("client connections 5 burst=2", "burst= has no effect here"),
        ("sender failed-auth 5/1h", "counted by all, client, network, user only"),
        ("client networks 5/1h", "counted by user only"),
        ("user networks 5", "networks require a period"),
        ("sender connections 5/1h", "a rate of connections is by"),
        ("recipient bytes 5M/1h", "can't be counted by recipient"),
        ("recipient recipients 10x", "can't be counted by recipient"),
        ("user networks 10000/1h", "at most 9999 at once can be counted"),
        ("user bytes 10x", "a rise is one of messages or recipients"),
        ("client connections 5 action=delay", "action=delay is for rates"),
        ("client failed-auth 5/1h action=junk", "no message to mark yet"),
        ("all messages 5/1h action=block", "would block all mail"),
    ],
)
def test_a_rule_without_effect_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        LIMIT.parse(text)
    assert reason in str(raised.value)


def test_rules_in_toml() -> None:
    rule = LIMIT.parse("user+client messages 200/1h burst=20 action=log")
    assert LIMIT.from_toml("user+client messages 200/1h burst=20 action=log") == rule
    inline = {
        "by": "user+client",
        "of": "messages",
        "limit": "200/1h",
        "burst": 20,
        "action": "log",
    }
    assert LIMIT.from_toml(inline) == rule
    with pytest.raises(ValueError, match=r"expected \{ by ="):
        LIMIT.from_toml({"by": "user"})
    with pytest.raises(ValueError, match="is not burst=N"):
        LIMIT.from_toml({**inline, "often": 1})
    with pytest.raises(ValueError, match="not an integer"):
        LIMIT.from_toml(5)


WORDS = st.sampled_from(
    [*SUBJECTS, *COUNTED, *ACTIONS, "5", "5/1h", "1M/1d", "3x", "burst=2", "floor=9", "action=log"]
)


@settings(max_examples=part(400))
@given(st.lists(WORDS | st.text(max_size=8), max_size=6).map(" ".join))
def test_any_text_is_a_rule_or_an_error(text: str) -> None:
    try:
        rule = LIMIT.parse(text)
    except ValueError:
        return
    assert LIMIT.parse(str(rule)) == rule
