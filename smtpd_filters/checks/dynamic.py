"""Names that look dynamically assigned: pool names of providers, and names that embed addresses.

A name looks dynamic if a built-in pattern matches (`FAMILIES`: the pool names of certain providers;
`GENERIC`: the words in pool names all over the world), or if it embeds the client's own address
(`embeds_address`), as generated names do.

The patterns are POSIX extended regular expressions, as everywhere in smtpd, and match lower-case
names. tests/filters/test_dyndns.py measures their accuracy, which filter-dyndns(8) states.

Invariants
----------
*Servers are not pools*: names with `static`, `mail`, `mx` and so on (`SERVER`) are exempt from
everything built in.
*Linear*: every test is linear in the length of the name, whatever the name.
"""

from __future__ import annotations

import re

from smtpd_filters.tables import RegexTable
from smtpd_filters.tables.networks import parse_address

# Words in pool names, alone or before or after digits and hyphens: the way of assigning addresses
# (dyn, dhcp, ppp), the kind of line (adsl, cable, ftth), the pool itself. They count only before
# two more labels, so that a company's domain may be cable.example or dsl.example.
_STRONG_TEXT = (
    "dyn dynamic dynamicip dynip dhcp ppp pppoe pppoa dial dialup dialin dialip dip pool pools "
    "dsl adsl sdsl vdsl xdsl dsla dslb dsll adslplus catv cable cm cpe modemcable modem isdn "
    "hsdpa hspa umts gprs lte wimax ftth fttb fttx gpon hfc broadband residential homeuser"
)
# Words that server names may contain as well: they count only with a number.
_WEAK_TEXT = (
    "abo access bb broad bredband client clients clienti cust customer customers dclient fiber "
    "fibre home host hosts ip lan lns mobile nas node res retail speedy subscriber subscribers "
    "user users wireless wifi"
)
_STRONG, _WEAK = _STRONG_TEXT.split(), _WEAK_TEXT.split()
_POOL_WORDS = frozenset(_STRONG + _WEAK)
_EITHER_STRONG, _EITHER_WEAK = "|".join(_STRONG), "|".join(_WEAK)

GENERIC = (
    f"(^|[^a-z])({_EITHER_STRONG})([^a-z.][^.]*)?[.][^.]+[.][^.]",
    # A number in the first label and the word after it: 10-1-2-3.cust.example.net
    f"^[^.]*[0-9][^.]*[.].*[^a-z]({_EITHER_WEAK})[0-9]*[.][^.]+[.][^.]",
    # The word with a number of two digits or more: cust928, client-190, user.31
    f"(^|[^a-z])({_EITHER_WEAK})[._-]?[0-9][0-9][^.]*[.][^.]+[.][^.]",
)

# The pool names of providers that the words above don't match. Each comment has the provider and
# such a name, as seen in the Received fields of public mailing lists and in published logs and
# lists; see fixtures/dyndns/README.md.
FAMILIES = (
    # Germany: Deutsche Telekom, the address in hex (pD9EB1B2E.dip0.t-ipconnect.de, in IPv6
    # p2003...); Versatel (i5E8600A1.versanet.de)
    "^p[0-9a-f]+[.]dip0?[.]t-(dialin[.]net|ipconnect[.]de)$",
    "^i[0-9a-f]{8}[.]versanet[.]de$",
    # France: Orange, the point of presence and half the address (arennes-651-1-10-32.w86-215);
    # before w86-215 was there: APh-Aug-101-1-2-252.abo.wanadoo.fr; Club Internet
    "[.]abo[.]wanadoo[.]fr$",
    "^[a-z][0-9]+[a-z]?-[0-9]+-[0-9]+[.]d[0-9]+[.]club-internet[.]fr$",
    # Switzerland: Wingo, half the address (bbcs-91-96.pub.wingo.ch)
    "^bbcs-[0-9]+-[0-9]+[.]pub[.]wingo[.]ch$",
    # Belgium: Telenet, the address in hex (d8D860B54.access.telenet.be)
    "^d[0-9a-f]{8}[.]access[.]telenet[.]be$",
    # Netherlands: UPC, the last two octets padded (j130084.upc-j.chello.nl)
    "^[a-z][0-9]+[.]upc-[a-z][.]chello[.]nl$",
    # Britain: Virgin Media and NTL before it, node and customer (cpc12-cmbg17-2-0-cust914)
    "^(cpc|cpe)[0-9]+-[a-z]+[0-9]+-[0-9-]*cust[0-9]+[.]",
    # Poland: Neostrada, letters for the network (abyl150.neoplus.adsl.tpnet.pl)
    "[.]neoplus[.]adsl[.]tpnet[.]pl$",
    # Nordic countries: Telenor (ti0092a430-1310.bb.online.no), Stofa (x1-6-MAC.k317.webspeed.dk),
    # Elisa and Sonera (dsl-hkibng42-56733f-225.dhcp.inet.fi)
    "^ti[0-9]+[a-z][0-9]+-[0-9]+[.]bb[.]online[.]no$",
    "^x1-6-[0-9a-f-]+[.][a-z0-9]+[.]webspeed[.]dk$",
    "^dsl-[a-z0-9]+-[0-9a-f]+-[0-9]+[.]dhcp[.]inet[.]fi$",
    # North America: AT&T and its forerunners, Shaw (S0106 and the modem's MAC), Rogers (both
    # MACs), Bell (barrie-ppp108371), Comcast before hsd1 (bgp01132961bgs.ypeast01.mi)
    "[.](lightspeed|dsl)[.][a-z0-9]+[.](sbcglobal|pacbell|swbell|ameritech)[.]net$",
    "^s0106[0-9a-f]+[.][a-z]+[.]shawcable[.]net$",
    "^cpe[0-9a-f]+-cm[0-9a-f]+[.]",
    "-ppp[0-9]+[.]sympatico[.]ca$",
    "^(bgp[0-9]+bgs|c-[0-9]+-[0-9]+-[0-9]+-[0-9]+)[.].*[.]comcast[.]net$",
    # AOL's dial-in: the address in hex (acbf6930.ipt.aol.com)
    "^[0-9a-f]{8}[.]ipt[.]aol[.]com$",
    # Mexico: Megacable, the city and half the address (customer-GDL-105-254.megared.net.mx)
    "^customer-[a-z]+-[0-9]+-[0-9]+[.]megared[.]net[.]mx$",
    # Japan: NTT, a number and an access server, as in p3065-ipad207funabasi.chiba.ocn.ne.jp
    # and pl027.nas934.d-osaka.nttpc.ne.jp
    "^p[0-9]+-ip[a-z0-9]+[.][a-z]+[.]ocn[.]ne[.]jp$",
    "^pl[0-9]+[.]nas[0-9]+[.][a-z0-9-]+[.]nttpc[.]ne[.]jp$",
    # China and Vietnam: one name for a whole network (hn.kd.ny.adsl, dynamic.vdc.vn)
    "[.]adsl$",
    "^(dynamic|dynamic-adsl|dynamic-ip-adsl)[.][a-z]+[.]vn$",
    # India: ACT, likewise (broadband.actcorp.in)
    "^broadband[.]actcorp[.]in$",
)

BUILTIN = FAMILIES + GENERIC

# Words in the names of mail servers all over the world; of hosted servers, whose generated names
# often embed the address; and of business lines, which have fixed addresses and mail servers.
_SERVER = (
    "mail mails mailer mailout mailgw mailrelay mailhost mx mxout smtp smtps smtpout smtprelay "
    "esmtp relay relays mta mout mproxy out outbound outgoing postfix exim exchange mailserver "
    "bounce newsletter list lists webmail sender "
    "static stat staticip statip staticline "
    "server servers srv vps vds vm vmi dedicated dedi colo compute cloud hosted hosting "
    "biz business corp dia rrcs wsip"
)
#: The words in names of servers and business lines.
SERVER = frozenset(_SERVER.split())
# Server names too, but only in the first label: elsewhere `mo` is Missouri and `ns` Nova Scotia.
_FIRST = frozenset({"mo", "ns", "dns", "www"})
# Hosting companies whose generated names have none of these words. Customers can change their name;
# a generated one doesn't make the address part of a pool.
_HOSTING = (
    ".16clouds.com",
    ".amazonaws.com",
    ".bc.googleusercontent.com",
    ".cloudapp.azure.com",
    ".cloudhost.web.id",
    ".colocrossing.com",
    ".comcastbusiness.net",
    ".contaboserver.net",
    ".host.secureserver.net",
    ".hwclouds-dns.com",
    ".linodeusercontent.com",
    ".members.linode.com",
    ".poneytelecom.eu",
    ".startdedicated.com",
    ".stratoserver.net",
    ".theplanet.com",
    ".unifiedlayer.com",
    ".vultr.com",
    ".vultrusercontent.com",
    ".your-server.de",
    ".yourvserver.net",
)
# OVH: ns3003451.ip-5-196-67.eu, ip209.ip-139-99-52.net
_OVH = re.compile(r"\.ip-[0-9]+-[0-9]+-[0-9]+\.(eu|net)$")

_NOT_LETTER = re.compile("[^a-z]+")
_NUMBERS = re.compile("[0-9]+")
_HEX_WORDS = re.compile("[0-9a-f]+")

_NAME_MAX = 255  # RFC 1035 section 2.3.4: "names 255 octets or less"
_DOMAIN = 2  # labels in a domain: example.org
_V4 = 32
_OCTET_DIGITS = 3  # of 255
_GROUP_DIGITS = 4  # of ffff
# The minimum of digits without separators; seven or less could be a date or a customer's number.
_RUN_MIN = 8
_SMALL = 9  # many names contain 1.0.1 without meaning a network


def is_server(name: str) -> bool:
    """Return whether a name, in lower case, is that of a server or a business line."""
    labels = name.split(".")
    # The domain names the owner, not the kind of host: host-10-1-2-3.mail.example
    own = labels[:-_DOMAIN] or labels[:1]
    return (
        not SERVER.isdisjoint(_NOT_LETTER.split(".".join(own)))
        or not _FIRST.isdisjoint(_NOT_LETTER.split(own[0]))
        or name.endswith(_HOSTING)
        or any(label.startswith("hosted-by-") for label in labels)
        or _OVH.search(name) is not None
    )


def embeds_address(name: str, address: str) -> str | None:
    """Return the form in which a reverse name embeds the client's address.

    `address` is an IPv4 or IPv6 address as text. The result is one of

    - "decimal": 10-1-2-3, 10.1.2.3, 010001002003, 10123
    - "reversed": 3.2.1.10, 003002001010
    - "shuffled": the four octets in another order, as in 3.red-10-1-2
    - "hex": 0a010203, also reversed, also with the last octet in decimal
    - "partial": three octets of it, or the last two together with a word of pool names
    - "ipv6": the address, its network or its interface in hex digits, with or without hyphens

    or None, also for an invalid address.
    """
    try:
        family, value = parse_address(address.partition("%")[0])
    except ValueError:
        return None
    name = name[:_NAME_MAX].lower()
    if family == _V4:
        return _embeds_ipv4(name, tuple(value.to_bytes(4, "big")))
    return "ipv6" if _embeds_ipv6(name, value) else None


def _embeds_ipv4(name: str, octets: tuple[int, ...]) -> str | None:
    runs = _NUMBERS.findall(name)
    numbers = [int(run) if len(run) <= _OCTET_DIGITS else -1 for run in runs]  # -1: no octet
    backwards = octets[::-1]
    ordered = sorted(octets)
    for start in range(len(numbers) - 3):
        window = tuple(numbers[start : start + 4])
        if window == octets:
            return "decimal"
        if window == backwards:
            return "reversed"
        if sorted(window) == ordered:
            return "shuffled"
    return _run_together(name, runs, octets) or _partly(name, numbers, octets)


def _run_together(name: str, runs: list[str], octets: tuple[int, ...]) -> str | None:
    """Return the form of octets without separators, in decimal or hex, if any."""
    long = [run for run in runs if len(run) >= _RUN_MIN]
    for form, order in (("decimal", octets), ("reversed", octets[::-1])) if long else ():
        padded = "".join([f"{octet:03}" for octet in order]).lstrip("0")
        plain = "".join(map(str, order))
        if any(run == plain or (padded in run and len(padded) >= _RUN_MIN) for run in long):
            return form
    digits = "".join([f"{octet:02x}" for octet in octets])
    reverse = "".join([f"{octet:02x}" for octet in octets[::-1]])
    # The third: dsl-hkibng42-56733f-225.dhcp.inet.fi
    if digits in name or reverse in name or f"{digits[:6]}-{octets[3]}." in name:
        return "hex"
    return None


def _partly(name: str, numbers: list[int], octets: tuple[int, ...]) -> str | None:
    a, b, c, d = octets
    threes = ((b, c, d), (d, c, b), (a, b, c), (c, b, a))
    for start in range(len(numbers) - 2):
        if tuple(numbers[start : start + 3]) in threes and max(b, c) > _SMALL:
            return "partial"
    twos = ([c, d], [d, c])
    half = max(c, d) > _SMALL and (
        f"{c:03}{d:03}" in name
        or any(numbers[start : start + 2] in twos for start in range(len(numbers) - 1))
    )
    if half and not _POOL_WORDS.isdisjoint(_NOT_LETTER.split(name)):
        return "partial"
    return None


def _embeds_ipv6(name: str, address: int) -> bool:
    digits = f"{address:032x}"
    network, interface = digits[:16], digits[16:]
    # An interface of ::25 was configured by hand, a long one generated by SLAAC (RFC 4862).
    made = interface > "00000000ffffffff"
    squeezed = name.replace("-", "").replace(".", "")
    if digits[::-1] in squeezed or network in squeezed or (made and interface in squeezed):
        return True
    groups = [int(digits[start : start + 4], 16) for start in range(0, 32, 4)]
    words = [
        int(word, 16) if len(word) <= _GROUP_DIGITS else -1 for word in _HEX_WORDS.findall(name)
    ]
    for start in range(len(words) - 3):
        window = words[start : start + 4]
        if window == groups[:4] or (made and window == groups[4:]):
            return True
    return False


class DynamicNames:
    """What is built in: `patterns`, and with `embedded` addresses in names."""

    __slots__ = ("_embedded", "_patterns")

    def __init__(self, *, patterns: bool = True, embedded: bool = True) -> None:
        self._patterns = RegexTable.of(BUILTIN) if patterns else None
        self._embedded = embedded

    def reason(self, name: str, address: str) -> str | None:
        """Return why a client's name, in canonical form, looks dynamic; None if it doesn't."""
        if is_server(name):
            return None
        if self._patterns is not None and (pattern := self._patterns.match(name)):
            what = pattern if pattern in FAMILIES else "the words of a pool"
            return f"rdns {name} matches {what}"
        if self._embedded and (form := embeds_address(name, address)):
            return f"rdns {name} embeds its address: {form}"
        return None
