"""Addresses as they are stored: plain, shortened, or hashed with a key.

A query is changed in the same way, so that a reader who knows an address finds it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from hashlib import sha256
from typing import Any

from .stories import is_rewritten_address
from .wire import ARGUMENT, REASON, REPLY

MODES = ("plain", "shortened", "hashed")
#: Characters of a hash.
_LENGTH = 16
_MAIL = re.compile(r"[^\s<>()\[\],;:\"@|=]+@[^\s<>()\[\],;:\"@|=]+")
_V4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_V6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")


class Privacy:
    """How addresses are stored; `key` is the key of their hashes."""

    def __init__(self, mode: str, key: bytes = b"") -> None:
        self.mode, self._key = mode, key

    def mail(self, address: str) -> str:
        """Return a mail address in lower case, as it is stored."""
        address = address.strip("<>").lower()
        if self.mode == "plain" or not address:
            return address
        local, at, domain = address.rpartition("@")
        if self.mode == "shortened":
            return f"{local[:1]}...@{domain}" if at else f"{domain[:1]}..."
        return f"{self._hash(address)}@{self._hash(domain)}" if at else self._hash(address)

    def client(self, address: str) -> str:
        """Return an IP address as it is stored: shortened it is its network."""
        if self.mode == "plain" or not address:
            return address
        if self.mode == "hashed":
            return self._hash(address)
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return "..."
        return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False))

    def name(self, name: str) -> str:
        """Return a host's or a user's name as it is stored."""
        if self.mode == "plain" or not name:
            return name
        if self.mode == "hashed":
            return self._hash(name)
        if "@" in name:
            return self.mail(name)
        parts = name.split(".")
        return ".".join(["...", *parts[-2:]]) if len(parts) > 2 else name

    def words(self, text: str) -> str:
        """Return a text with the addresses in it as they are stored."""
        if self.mode == "plain" or not text:
            return text
        text = _MAIL.sub(lambda found: self.mail(found[0]), text)
        text = _V6.sub(lambda found: self.client(found[0]), text)
        return _V4.sub(lambda found: self.client(found[0]), text)

    def _hash(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "backslashreplace"), sha256).hexdigest()[
            :_LENGTH
        ]

    def apply(self, story: dict[str, Any], *, subjects: bool) -> None:
        """Change a story to what may be stored."""
        if not subjects:
            story["j"] = ""
        if self.mode == "plain":
            return
        endpoint, rdns, fcrdns, server = story["c"]
        if endpoint and not endpoint.startswith("unix:"):
            endpoint = f"{self.client(endpoint.rpartition(':')[0].strip('[]'))}:0"
        story["c"] = [endpoint, self.name(rdns), fcrdns, server]
        story["h"] = [story["h"][0], self.words(self.name(story["h"][1]))]
        story["u"] = [self.name(each) for each in story["u"]]
        story["f"] = self.mail(story["f"])
        story["r"] = [[self.mail(address), result] for address, result in story["r"]]
        story["i"] = self.name(story["i"])
        story["j"] = self.words(story["j"])
        story["a"] = [self.words(each) for each in story["a"]]
        for row in story["w"]:
            reply = self.mail if is_rewritten_address(row) else self.words
            row[REASON] = self.words(row[REASON])
            row[REPLY] = reply(row[REPLY])
            row[ARGUMENT] = self.mail(row[ARGUMENT])
