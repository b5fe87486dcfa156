"""Pseudonyms for the names, addresses and words of a recording.

`Disguise.text` replaces each word of a text, regardless of letter case, and keeps everything
between words. So `mail.example.org` stays below `example.org`, and the envelope's sender equals the
header's. IPv4 addresses become addresses in 240.0.0.0/4, which is reserved (RFC 1112 section 4),
IPv6 addresses become addresses in 2001:db8::/32 (RFC 3849); loopback addresses and dates are kept.

Invariants
----------
*Allow-list*: every word that isn't known to belong to the protocol is replaced.
*Consistent and irreversible*: a word has the same pseudonym everywhere for the life of the process;
without the process's key the word can't be derived from it.
"""

from __future__ import annotations

import os
import re
from base64 import b32encode
from hashlib import blake2s
from ipaddress import IPv4Address, ip_address

from smtpd_filters.protocol.versions import NEWEST, dialect, version
from smtpd_filters.protocol.vocabulary import PHASES_ON_WIRE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.versions import Dialect

_VOCABULARY = frozenset(
    b"""
    ehlo helo mail from rcpt to data rset noop quit starttls help vrfy expn wiz etrn bdat auth
    plain login size dsn 8bitmime enhancedstatuscodes smtputf8 pipelining body ret notify full hdrs
    never success failure delay hello pleased meet you ok bye enter end with on a line by itself
    message accepted for delivery recipient destination address valid invalid command arguments
    not allowed at this point unrecognized esmtp opensmtpd smtp esmtps esmtpa esmtpsa ipv6
    unknown localhost local builtin proc
    received subject date id cc bcc sender reply return path resent references in comments keywords
    mime version content type transfer encoding disposition language description list unsubscribe
    post archive owner dkim signature authentication results arc seal spf x spam yes no flag status
    score level priority importance precedence bulk auto submitted generated replied user agent
    mailer delivered original errors
    text html multipart mixed alternative related report signed encrypted digest application octet
    stream pdf image audio video inline attachment charset boundary format flowed delsp name
    filename base64 quoted printable 7bit 8bit binary utc gmt
    """.split()
)
_TOKEN = re.compile(
    rb"(?P<kept>\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), )?[0-9]{1,2} "
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [0-9]{4} "
    rb"[0-9]{2}:[0-9]{2}(?::[0-9]{2})? [+-][0-9]{4}\b"
    rb"|\b(?:utf-8|us-ascii|iso-8859-[0-9]{1,2})\b)"
    rb"|(?P<v4>[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_\x80-\xff]))"
    rb"|(?P<v6>[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_\x80-\xff]))"
    rb"|(?P<word>[0-9A-Za-z_\x80-\xff]+)",
    re.IGNORECASE,
)
_WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]+")
# RFC 5321 section 4.2: a reply's code; RFC 2034: its enhanced code.
_REPLY = re.compile(rb"([2-5][0-9]{2}(?:[ -]|$)(?:[245]\.[0-9]{1,3}\.[0-9]{1,3}(?: |$))?)")
_PLAIN_FIELD = re.compile(rb"[0-9A-Za-z_.:-]{0,100}")

#: The settings of smtpd that don't identify the server.
_CONFIG = frozenset({b"smtpd-version", b"protocol", b"smtp-session-timeout", b"subsystem"})
#: The fields of reports that contain smtpd's own words and numbers.
_KEPT = frozenset({"fcrdns", "method", "tls", "result", "msgid", "evpid", "size", "kind", "phase"})
#: Words whose pseudonyms are cached.
REMEMBERED = 10_000


class Disguise:
    """The pseudonyms of one process, derived from `key`, which is random by default.

    At most `remembered` of them are cached.
    """

    def __init__(self, key: bytes | None = None, *, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._key = os.urandom(32) if key is None else key
        self._words: dict[bytes, bytes] = {}

    def text(self, text: bytes) -> bytes:
        """Return a text with its words replaced."""
        return _TOKEN.sub(self._token, text)

    def line(self, row: bytes) -> bytes | None:
        """Return a line with its words replaced, or None if its form is unknown.

        Credentials must have been masked before.
        """
        word = row.partition(b"|")[0]
        if word == b"report":
            return self._report(row)
        if word == b"filter-result":
            return self._result(row)
        if word == b"config":
            return self._config(row)
        if word == b"register":
            return row
        fields = row.split(b"|", 7 if word == b"filter" else 3)
        if word == b"filter":
            known = len(fields) == 8 and _is_phase(fields[4])
        else:
            known = word == b"filter-dataline" and len(fields) == 4
        return self._last(fields) if known else None

    def _config(self, row: bytes) -> bytes | None:
        fields = row.split(b"|", 2)
        if len(fields) < 3:
            return row if fields[1] == b"ready" else None
        return row if fields[1] in _CONFIG else self._last(fields)

    def _result(self, row: bytes) -> bytes:
        fields = row.split(b"|", 4)
        if len(fields) == 5:
            fields[4] = self._reply(fields[4])
        return b"|".join(fields)

    def _last(self, fields: list[bytes]) -> bytes:
        fields[-1] = self.text(fields[-1])
        return b"|".join(fields)

    def _report(self, row: bytes) -> bytes | None:
        fields = row.split(b"|")
        if len(fields) < 6:
            return None
        form = _dialect(fields[1]).reports.get(fields[4])
        if form is None:
            return None
        # As in `codec.fit`: additional bars belong to the wide field.
        values, count = fields[6:], len(form.fields)
        if len(values) > count > 0:
            end = len(values) - (count - 1 - form.wide)
            values[form.wide : end] = [b"|".join(values[form.wide : end])]
        values = [
            self._field(form.name, name, value)
            for name, value in zip(form.fields, values, strict=False)
        ]
        return b"|".join(fields[:6] + values)

    def _field(self, report: str, name: str, value: bytes) -> bytes:
        if name in _KEPT and _PLAIN_FIELD.fullmatch(value):
            return value
        if report == "protocol-server" or name == "parameter":
            return self._reply(value)
        if name in {"src", "dest"}:
            return self._endpoint(value)
        if report == "filter-response" and name == "response":
            return value if _PLAIN_FIELD.fullmatch(value) else self.text(value)
        return self.text(value)

    def _reply(self, reply: bytes) -> bytes:
        code = _REPLY.match(reply)
        kept = code[0] if code else b""
        return kept + self.text(reply[len(kept) :])

    def _endpoint(self, endpoint: bytes) -> bytes:
        """Replace an address and keep its port; or replace the path after `unix:`."""
        if endpoint.startswith(b"unix:"):
            return b"unix:" + self.text(endpoint[5:])
        address, colon, port = endpoint.rpartition(b":")
        if not port.isdigit():
            return self.text(endpoint)
        return self.text(address) + colon + port

    def _token(self, found: re.Match[bytes]) -> bytes:
        token = found[0]
        if found.lastgroup == "kept":
            return token
        if found.lastgroup == "word":
            return self._word(token)
        return self._ip(token) or _WORD.sub(lambda word: self._word(word[0]), token)

    def _ip(self, token: bytes) -> bytes | None:
        """Return the pseudonym of an IP address, or None if the token isn't one."""
        try:
            address = ip_address(token.decode("ascii"))
        except ValueError:
            return None
        if address.is_loopback:
            return token
        value = int(address)
        if isinstance(address, IPv4Address):
            made = 0xF0 << 24 | (int.from_bytes(self._hash(b"4 %d" % value), "big") & 0xFFFFFFF)
            return str(IPv4Address(made)).encode()
        digits = self._hash(b"6 %d" % value, 12).hex()
        groups = [digits[at : at + 4] for at in range(0, 24, 4)]
        return f"2001:db8:{':'.join(groups)}".encode()

    def _word(self, word: bytes) -> bytes:
        lower = word.lower()
        if lower in _VOCABULARY:
            return word
        made = self._words.get(lower)
        if made is None:
            if len(self._words) >= self._remembered:
                self._words.clear()
            made = self._words[lower] = self._pseudonym(lower)
        return made

    def _pseudonym(self, word: bytes) -> bytes:
        """Return eight letters and digits; for a number, one with as many digits."""
        if word.isdigit():
            number = int.from_bytes(self._hash(word, 32), "big")
            return b"%0*d" % (min(len(word), 60), number % 10 ** min(len(word), 60))
        return b32encode(self._hash(word, 5)).lower()

    def _hash(self, word: bytes, size: int = 5) -> bytes:
        return blake2s(word, key=self._key, digest_size=size).digest()


def _dialect(spoken: bytes) -> Dialect:
    return dialect(version(spoken.decode("latin-1")) or NEWEST)


def _is_phase(name: bytes) -> bool:
    return name in PHASES_ON_WIRE or name == b"data-line"
