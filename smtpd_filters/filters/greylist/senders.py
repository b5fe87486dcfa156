"""Addresses of the envelope as triplets have them: without the parts that vary from mail to mail.

Lists and large senders put a number, the recipient or a signature into the sender's address. A
triplet with such a part would be new with each message, and each message would wait.

    sender                                      in the triplet
    Anna@EXAMPLE.org                            anna@example.org
    anna+shop@example.org                       anna@example.org
    list-return-4711-you=example.net@x.example  list-return-#-*@x.example
    bounces+1a2b3c4d5e-81@x.example             bounces@x.example
    0100018c2f-7ab1-000000@x.example            #-#-#@x.example
    prvs=1234abcdef=anna@example.org            anna@example.org
    SRS0=ab1c=TT=example.org=anna@x.example     srs0=example.org=anna@x.example
    (null sender)                               (null sender)

- BATV: `prvs=KDDDSSSSSS=LOCAL` (draft-levine-smtp-batv), also with the two parts in the other
  order, `msprvs1=SIGNATURE=LOCAL`, and Barracuda's `btv1==SIGNATURE==LOCAL`.
- SRS (https://www.libsrs2.net/srs/srs.pdf): the hash and the day are dropped, those of SRS1 twice.
- VERP: the recipient within the address, `user=domain`, is a star.
- A part between two of `-.=_+/` is `#` if it is a number, has eight or more hexadecimal digits
  with a number among them, or has sixteen or more letters and digits with a number among them.

Nothing here raises: the texts come from the client.
"""

from __future__ import annotations

import re

from smtpd_filters.addresses import canonical, path

#: Longer local parts are left as they are: RFC 5321 section 4.5.3.1.1 allows 64 octets, and smtpd
#: takes 255.
MAX_LOCAL = 255
_BATV = re.compile(r"prvs=(?:[0-9]{4}[0-9a-f]{6}=(.+)|([^=]+)=[0-9]{4}[0-9a-f]{6})", re.ASCII)
_OTHER_BATV = re.compile(r"msprvs[0-9]=[^=]+=(.+)|btv1==[^=]+==(.+)", re.ASCII)
_SRS0 = re.compile(r"srs0[=+-][^=]+=[^=]+=([^=]+=.+)", re.ASCII)
_SRS1 = re.compile(r"srs1[=+-][^=]+=([^=]+)=[=+-][^=]+=[^=]+=([^=]+=.+)", re.ASCII)
_VERP = re.compile(r"[^-+=]+=(?:[a-z0-9-]+\.)+[a-z]{2,}", re.ASCII)
_PARTS = re.compile(r"[a-z0-9]+", re.ASCII)
_VARIES = re.compile(r"[0-9]+|(?=[a-f]*[0-9])[0-9a-f]{8,}|(?=[a-z]*[0-9])[a-z0-9]{16,}", re.ASCII)


def sender(text: str) -> str:
    """Return a sender as triplets have it; "" for the null sender."""
    address = path(text)
    if not address:
        return ""
    local = address.local.lower()
    if len(local) > MAX_LOCAL:
        return f"{local}@{canonical(address.domain)}"
    if found := _BATV.fullmatch(local) or _OTHER_BATV.fullmatch(local):
        local = next(filter(None, found.groups()))
    if found := _SRS1.fullmatch(local):
        local = f"srs1={found[1]}={found[2]}"
    elif found := _SRS0.fullmatch(local):
        local = f"srs0={found[1]}"
    else:
        local = _VERP.sub("*", local)
        name, _, _ = local.partition("+")
        local = _PARTS.sub(_part, name or local)
    return f"{local}@{canonical(address.domain)}"


def recipient(text: str) -> str:
    """Return a recipient as triplets have it: in one spelling, with nothing left out."""
    address = path(text)
    return f"{address.local.lower()}@{canonical(address.domain)}"


def _part(found: re.Match[str]) -> str:
    return "#" if _VARIES.fullmatch(found[0]) else found[0]
