"""Tests of replies of the real Rspamd, each of which a Lua rule makes it send."""

from __future__ import annotations

import asyncio
import base64
import http.client
import re
from email.header import decode_header, make_header
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from smtpd_filters.filters.rspamd.edits import Options, apply
from smtpd_filters.filters.rspamd.reply import Reply, ReplyError, offset, parse
from smtpd_filters.message import Message
from smtpd_filters.testing.rspamd.daemon import Rspamd, unavailable
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.protocol.decisions import Decision

# A rule that says what the request's X-Test asks for, and sets the action of X-Action.
LUA = r"""
local milter = {
  arc = function(task)
    for _, name in ipairs({ "Authentication-Results", "Message-Signature", "Seal" }) do
      task:set_milter_reply({
        add_headers = { ["ARC-" .. name] = { value = "i=1; a\r\n\tb", order = 1 } },
      })
    end
  end,
  twice = function(task)
    task:set_milter_reply({ add_headers = { ["X-A"] = "1" } })
    task:set_milter_reply({ add_headers = { ["X-A"] = "2" } })
    task:set_milter_reply({ add_headers = { ["X-B"] = { value = "3", order = 1 } } })
    task:set_milter_reply({ add_headers = { ["X-B"] = { value = "4", order = 1 } } })
  end,
  lua_mime = function(task)
    require("lua_mime").modify_headers(task, {
      add = { ["X-One"] = { value = "1", order = 1 }, ["X-Three"] = "3" },
      remove = { ["X-Foo"] = { 1, -1 }, ["X-Bar"] = 0 },
    })
  end,
  envelope = function(task)
    task:set_milter_reply({ change_from = "a@b", add_rcpt = { "x@y" }, del_rcpt = { "z@w" } })
  end,
  quarantine = function(task) task:set_milter_reply({ reject = "quarantine" }) end,
  no_action = function(task) task:set_milter_reply({ no_action = true }) end,
  spam_header = function(task) task:set_milter_reply({ spam_header = "Really" }) end,
  spam_object = function(task) task:set_milter_reply({ spam_header = { ["X-Bad"] = "1" } }) end,
  bytes = function(task)
    task:set_milter_reply({ add_headers = { ["X-Bytes"] = "\xff caf\xe9" } })
    task:insert_result("T_SYMBOL", 1.0, "\xff\n\0\"")
  end,
  number = function(task) task:set_milter_reply({ add_headers = { ["X-Number"] = 5 } }) end,
  infinite = function(task) task:insert_result("T_SYMBOL", 1 / 0) end,
  none = function(task) task:insert_result("T_SYMBOL", 0 / 0) end,
  body = function(task)
    task:set_message("Subject: new\r\n\r\nanother body\r\n.dot\r\n")
  end,
}
local function wanted(task, name)
  local value = task:get_request_header(name)
  return value and tostring(value)
end
local rule = rspamd_config:register_symbol{
  name = "T_RULE", type = "prefilter", flags = "empty,nostat", priority = 10,
  callback = function(task)
    local what, action = wanted(task, "X-Test"), wanted(task, "X-Action")
    if what then milter[what](task) end
    if action then task:set_pre_result(action, wanted(task, "X-Message")) end
  end,
}
rspamd_config:register_symbol{ name = "T_SYMBOL", type = "virtual", parent = rule, score = 1.0 }
"""
ACTIONS = """\
bounce = { flags = ["no_threshold"], milter = "discard" }
hold = { flags = ["no_threshold"], milter = "quarantine" }
fancy = { flags = ["no_threshold"] }
subject = "[spam] %s";
"""
MARK = b"X-Spam: Yes\n"
DATE = formatdate().encode()
RECEIVED = b"Received: from mail.example.net by mx.example.org; " + DATE + b"\n"
FROM = b"From: <bob@example.net>\n"
REST = (
    b"To: <anna@example.org>\nX-Foo: 1\nX-Spam: client\nx-foo: 2\nX-FOO: 3\nX-Bar: 4\n"
    b"Subject: hello\nMessage-Id: <1@example.net>\nDate: " + DATE + b"\n"
    b"\nbody\n.dot\n"
)
KEPT = REST.replace(b"X-Spam: client\n", b"")
MAIL = RECEIVED + FROM + REST


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Rspamd]:
    need(unavailable())
    override = {"greylist.conf": "enabled = false;"}
    with Rspamd(
        zone={}, local={"actions.conf": ACTIONS}, override=override, lua=LUA, redis=False
    ) as daemon:
        yield daemon


def ask(
    rspamd: Rspamd,
    mail: bytes,
    path: str = "/checkv2",
    message: Message | None = None,
    **headers: str,
) -> Reply:
    """What the daemon says to a message; names of header fields with underscores."""
    where = urlsplit(rspamd.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", path, mail, {"Flags": "milter,body_block", **said})
        response = connection.getresponse()
        content, where_json_ends = response.read(), response.getheader("Message-Offset")
        end = len(content) if where_json_ends is None else offset(where_json_ends)
        reply = parse(response.status, content[:end])
        if message is not None and where_json_ends is not None:
            reply.block = message.new_body()
            reply.block.write(content[end:])
        return reply
    finally:
        connection.close()


def done(
    rspamd: Rspamd, mail: bytes = MAIL, *, options: Options | None = None, **headers: str
) -> tuple[Decision, bytes]:
    """The answer to smtpd, and the message that is passed on."""
    message = Message()
    message.feed([b"." + line if line[:1] == b"." else line for line in mail.split(b"\n")[:-1]])
    message.close()
    try:
        reply = ask(rspamd, mail, message=message, **headers)
        decision = asyncio.run(apply(reply, message, options or Options(headers="minimal")))
        return decision, b"".join(message.iter_bytes())
    finally:
        message.discard()


def test_it_asks_to_remove_every_mark(rspamd: Rspamd) -> None:
    # An earlier filter's stays.
    _, after = done(rspamd, MARK + MAIL, X_Action="no action")
    assert after == MARK + RECEIVED + FROM + KEPT
    assert done(rspamd, X_Action="greylist")[1] == RECEIVED + FROM + KEPT


def test_it_gets_an_earlier_mark(rspamd: Rspamd) -> None:
    plain = ask(rspamd, RECEIVED + FROM + KEPT)
    marked = ask(rspamd, MARK + RECEIVED + FROM + KEPT)
    assert plain.score is not None
    assert marked.score == pytest.approx(plain.score + 5)
    assert ("SPAM_FLAG", 5.0) in marked.symbols


@pytest.mark.parametrize(
    ("said", "text"), [("", "Spam message rejected"), ("Go away", "Go away"), ("zw\xe9i", "zw?i")]
)
def test_actions_that_refuse(rspamd: Rspamd, said: str, text: str) -> None:
    for action, reply in (
        ("reject", f"554 5.7.1 {text}"),
        ("soft reject", f"451 4.7.1 {text if said else 'Try again later'}"),
        ("bounce", f"554 5.7.1 {text}"),
    ):
        if said:
            decision, _ = done(rspamd, X_Action=action, X_Message=said)
        else:
            decision, _ = done(rspamd, X_Action=action)
        assert decision.text == reply


def test_actions_that_mark(rspamd: Rspamd) -> None:
    for action in ("add header", "hold"):
        decision, after = done(rspamd, X_Action=action)
        assert (decision.verb, after) == ("junk", MARK + RECEIVED + FROM + KEPT)


def test_a_custom_action(rspamd: Rspamd) -> None:
    with pytest.raises(ReplyError, match="unknown action 'fancy'"):
        done(rspamd, X_Action="fancy")
    options = Options(actions={"fancy": "tempfail"})
    assert done(rspamd, X_Action="fancy", options=options)[0].text == "451 4.7.1 Try again later"


def test_an_error(rspamd: Rspamd) -> None:
    with pytest.raises(ReplyError, match="status 500: invalid command"):
        ask(rspamd, MAIL, "/nothing")


@pytest.mark.parametrize("subject", ["hello", "grüße", "eine lange Zeile mit vielen Wörtern, " * 4])
def test_the_subject(rspamd: Rspamd, subject: str) -> None:
    word = "=?utf-8?B?" + base64.b64encode(subject.encode()).decode() + "?="
    mail = MAIL.replace(b"Subject: hello", f"Subject: {word}".encode())
    decision, after = done(rspamd, mail, X_Action="rewrite subject")
    assert decision.reason.startswith("rewrite subject, score 0/")
    head = after.partition(b"\n\n")[0]
    assert max(map(len, head.split(b"\n"))) <= 100
    # What the daemon makes of it again is what a reader sees.
    again = ask(rspamd, after, X_Action="rewrite subject").subject
    once = ask(rspamd, mail, X_Action="rewrite subject").subject
    assert again is not None
    assert once is not None
    assert decoded(again).rstrip() == f"[spam] {decoded(once)}".rstrip()
    assert decoded(once).rstrip() == f"[spam] {subject}".rstrip()


def decoded(subject: str) -> str:
    """What a reader shows: encoded words also inside of others, where Rspamd 3.12 has some."""
    word = r"=\?[^?\s]+\?[QB]\?[^?\s]*\?="
    joined = re.sub(rf"(?i)({word})\s+(?={word})", r"\1", subject)
    return re.sub(f"(?i){word}", lambda found: str(make_header(decode_header(found[0]))), joined)


def test_an_arc_set(rspamd: Rspamd) -> None:
    _, after = done(rspamd, X_Action="no action", X_Test="arc")
    assert after == RECEIVED + (
        b"ARC-Seal: i=1; a\n\tb\nARC-Message-Signature: i=1; a\n\tb\n"
        b"ARC-Authentication-Results: i=1; a\n\tb\n" + FROM + KEPT
    )


def test_headers_that_a_reply_has_twice(rspamd: Rspamd) -> None:
    _, after = done(rspamd, X_Action="no action", X_Test="twice")
    body = KEPT.replace(b"\n\n", b"\nX-A: 1\nX-A: 2\n\n", 1)
    assert after == RECEIVED + b"X-B: 4\nX-B: 3\n" + FROM + body


def test_lua_mime(rspamd: Rspamd) -> None:
    _, after = done(rspamd, X_Action="no action", X_Test="lua_mime")
    for gone in (b"X-Foo: 1\n", b"X-FOO: 3\n", b"X-Bar: 4\n"):
        assert gone not in after
    assert after.startswith(RECEIVED + b"X-One: 1\n" + FROM)
    assert b"\nx-foo: 2\n" in after
    assert b"\nX-Three: 3\n\nbody" in after


def test_the_envelope(rspamd: Rspamd) -> None:
    decision, after = done(rspamd, X_Action="no action", X_Test="envelope")
    assert after == RECEIVED + FROM + KEPT
    for change in ("change_from a@b", "add_rcpt x@y", "del_rcpt z@w"):
        assert f"not possible: {change}" in decision.reason
    options = Options(envelope="tempfail")
    decision, _ = done(rspamd, X_Action="no action", X_Test="envelope", options=options)
    assert decision.text.startswith("451 4.3.5 ")


def test_the_rest_of_the_milter_block(rspamd: Rspamd) -> None:
    assert done(rspamd, X_Action="reject", X_Test="quarantine")[1].startswith(MARK)
    decision, after = done(rspamd, X_Action="reject", X_Test="no_action")
    assert decision.verb == "proceed"
    assert b"\nX-Rspamd-Action: reject\n\nbody" in after
    _, after = done(rspamd, X_Action="add header", X_Test="spam_header")
    assert after == b"X-Spam: Really\n" + RECEIVED + FROM + KEPT
    _, after = done(rspamd, X_Action="add header", X_Test="spam_object")
    assert after == b"X-Bad: 1\n" + RECEIVED + FROM + KEPT


def test_any_bytes(rspamd: Rspamd) -> None:
    _, after = done(rspamd, X_Action="no action", X_Test="bytes")
    assert b"\nX-Bytes: \xff caf\xe9\n\nbody" in after


def test_a_value_that_is_a_number(rspamd: Rspamd) -> None:
    decision, after = done(rspamd, X_Action="no action", X_Test="number")
    assert after == RECEIVED + FROM + KEPT
    assert "add_headers X-Number: no value" in decision.reason


@pytest.mark.parametrize("score", ["infinite", "none"])
def test_a_score_that_is_not_finite(rspamd: Rspamd, score: str) -> None:
    assert done(rspamd, X_Action="no action", X_Test=score)[0].verb == "proceed"


def test_a_new_body(rspamd: Rspamd) -> None:
    _, after = done(rspamd, X_Action="no action", X_Test="body")
    head = (RECEIVED + FROM + KEPT).partition(b"\n\n")[0]
    assert after == head + b"\n\nanother body\n.dot\n"
