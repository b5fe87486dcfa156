"""The Rspamd of the end-to-end tests: its configuration, its rules for test mail, and its keys.

One daemon serves a module of tests, so no test may depend on an earlier one: senders, recipients
or fields of the message choose the reply.

- `X-Test-Score: N` adds N to what the message scores by itself (which is less than 2).
- `X-Test-Reply: JSON` is what `task:set_milter_reply` is given.
- Mail from SIGNED is signed with DKIM if it comes from a user or from this host.
- Mail to SEALED gets an ARC set.
- Whatever is scanned gets the field `X-Scanned: yes`.
- Settings-ID "strict" rejects from 4 on; "lenient" accepts what scores less than 50.
- Clients outside of 192.0.2.0/24 are greylisted when they send what scores from 4 on. The daemon
  remembers bodies as well as senders.
"""

from __future__ import annotations

import base64
import functools
import json
import subprocess
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.rspamd.stub import RspamdStub
from tests.e2e.sending import GOOD, SENDER, ZONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.server import Lab

SIGNED, SEALED = "signed.example", "sealed.example"
SELECTOR = "test"
SUBJECT = "[spam] %s"

LUA = """
rspamd_config:register_symbol{
  name = "TEST_SCORE", type = "normal", score = 1.0, group = "test",
  callback = function(task)
    local score = tonumber(task:get_header("X-Test-Score") or "")
    if score then task:insert_result(true, "TEST_SCORE", score) end
  end
}
rspamd_config:register_symbol{
  name = "TEST_REPLY", type = "idempotent", flags = "explicit_disable",
  callback = function(task)
    local reply = task:get_header("X-Test-Reply")
    if reply then
      local parser = require("ucl").parser()
      assert(parser:parse_string(reply))
      task:set_milter_reply(parser:get_object())
    end
  end
}
rspamd_config:register_symbol{
  name = "TEST_SCANNED", type = "idempotent", flags = "explicit_disable",
  callback = function(task)
    require("lua_mime").modify_headers(task, {add = {["X-Scanned"] = {value = "yes", order = 1}}})
  end
}
"""
ACTIONS = f"""
greylist = 4; add_header = 8; rewrite_subject = 12; reject = 20;
subject = "{SUBJECT}";
"""
DKIM = f"""
path = "$LOCAL_CONFDIR/files/key.pem";
selector = "{SELECTOR}";
use_esld = false;
try_fallback = false;
allow_username_mismatch = true;
domain {{ {SIGNED} {{ selector = "{SELECTOR}"; path = "$LOCAL_CONFDIR/files/key.pem"; }} }}
"""
ARC = f"""
use_esld = false;
try_fallback = false;
domain {{ {SEALED} {{ selector = "{SELECTOR}"; path = "$LOCAL_CONFDIR/files/key.pem"; }} }}
"""
SETTINGS = """
strict { id = "strict"; apply { actions {
  reject = 4.0; "rewrite subject" = null; "add header" = null; greylist = null;
} } }
lenient { id = "lenient"; apply { actions {
  reject = 50.0; "rewrite subject" = null; "add header" = null; greylist = null;
} } }
"""
# What asks many names that the zone doesn't have, or judges how the test's mail looks.
UNUSED = ("hfilter", "once_received", "mx_check", "ratelimit", "replies", "history_redis")


@functools.cache
def key() -> tuple[str, str]:
    """A new private key as PEM, and its public one as the DNS has it (RFC 6376 section 3.6.1)."""

    def openssl(*arguments: str, given: bytes = b"") -> bytes:
        return subprocess.run(
            ["openssl", *arguments],  # noqa: S607  # wherever the system has it
            input=given,
            capture_output=True,
            check=True,
        ).stdout

    private = openssl("genrsa", "2048")
    public = openssl("rsa", "-pubout", "-outform", "DER", given=private)
    return private.decode(), f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"


def zone() -> dict[str, dict[str, Any]]:
    """The zone of the end-to-end tests, with the public key."""
    published = {
        f"{SELECTOR}._domainkey.{domain}": {"TXT": key()[1]} for domain in (SIGNED, SEALED)
    }
    return merge(ZONE, published, {"good.example": {"TXT": f"v=spf1 ip4:{GOOD} -all"}})


def configuration() -> dict[str, Any]:
    """The arguments of `Rspamd`."""
    return {
        "local": {
            "actions.conf": ACTIONS,
            "dkim_signing.conf": DKIM,
            "arc.conf": ARC,
            "settings.conf": SETTINGS,
            "greylist.conf": 'timeout = 2s; ipv4_mask = 32; whitelisted_ip = ["192.0.2.0/24"];',
        },
        "override": {f"{name}.conf": "enabled = false;" for name in UNUSED},
        "lua": LUA,
        "files": {"key.pem": key()[0]},
    }


def mail(
    *fields: str, score: float | None = None, reply: Any = None, sender: str = SENDER, **more: Any
) -> bytes:
    """A message like most are, with these fields further."""
    body: bytes = more.pop("body", b"hello\r\n")
    subject: str = more.pop("subject", "hello")
    assert not more, more
    head = [
        f"From: {sender}",
        "To: alice@local.example",
        f"Subject: {subject}",
        f"Date: {formatdate()}",
        "Message-ID: <1@good.example>",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        *fields,
    ]
    if score is not None:
        head.append(f"X-Test-Score: {score:g}")
    if reply is not None:
        head.append(f"X-Test-Reply: {json.dumps(reply)}")
    return "".join(f"{field}\r\n" for field in head).encode() + b"\r\n" + body


@contextmanager
def stub_in(lab: Lab) -> Iterator[RspamdStub]:
    """A stub of the daemon inside the lab, with a reply that tests can set; clean by default."""
    stub = RspamdStub()
    lab.call(stub.__enter__)
    with ExitStack() as stack:
        stack.push(stub.__exit__)
        yield stub
