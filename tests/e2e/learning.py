"""Messages to learn from, and queries of what Rspamd has learned."""

from __future__ import annotations

import http.client
import json
from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis import Redis

if TYPE_CHECKING:
    from smtpd_filters.testing.rspamd.daemon import Rspamd

# A classifier for each user, so that a test has a user of its own; 200 messages are not needed.
BAYES = "per_user = true;\nusers_enabled = true;\nmin_learns = 1;\n"
# Of each message, which is the same whenever it is made.
DATE = formatdate()
# English: rspamd makes a token of the language, and of gibberish it guesses one at random.
TEXTS = {
    "spam": """You have been selected to receive a large amount of money. To claim your prize please
send us the number of your bank account and a small fee before the end of this week. This offer is
for you only, and nobody else will ever see it. Our cheap watches are the best in the whole world,
and every customer who buys two of them gets another one for free. Do not wait, because the price
goes up tomorrow morning.""",
    "ham": """The meeting about the new garden fence takes place on Thursday in the small room
behind the library. Could you bring the drawings that the carpenter made, and ask your brother
whether he wants to come with us? We still need somebody who knows how to paint old wood.
Afterwards there will be soup and bread in the kitchen, and the children can play outside until
their parents have finished talking.""",
}


def mail(number: int | str, kind: str) -> bytes:
    return (
        f"From: <bob@example.net>\nTo: <anna@example.org>\nSubject: about {kind}\n"
        f"Message-Id: <{number}.{kind}@example.net>\nDate: {DATE}\n\n"
        f"{TEXTS[kind]}\n\n{number}\n"
    ).encode()


def ask(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def counts(rspamd: Rspamd, user: str, expected: tuple[int, int] | None = None) -> tuple[int, int]:
    """How many messages the classifier of this user has learned as spam and as ham.

    The daemon confirms before Redis has stored the result: wait for the expected one.
    """
    deadline = monotonic() + 60
    with Redis(unix_socket_path=str(rspamd.redis), decode_responses=True) as redis:
        while True:
            spam, ham = redis.hmget(f"RS{user}", "learns_spam", "learns_ham")
            found = int(spam or 0), int(ham or 0)
            if expected in (None, found) or monotonic() > deadline:
                return found


def known(rspamd: Rspamd) -> int:
    """How many messages the daemon would know again."""
    with Redis(unix_socket_path=str(rspamd.redis)) as redis:
        return int(redis.hlen("learned_ids"))


def total(rspamd: Rspamd) -> int:
    """How many messages the controller says it has learned."""
    said = ask(rspamd.controller_url, "GET", "/stat", Password=rspamd.password)
    return int(said["learned"])
