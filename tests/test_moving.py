"""docs/migrating.md names what there is elsewhere, all of it, and what there is here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from smtpd_filters.filters.dnsbl import Dnsbl
from smtpd_filters.filters.dnsbl.options import old_style
from smtpd_filters.tables import HostTable, NetworkTable
from tests.test_manuals import flags

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "migrating.md").read_text("utf-8")
LIBEXEC = Path("/usr/libexec/opensmtpd")
#: The restrictions of Postfix 3.7's postconf(5), and the limits that are spoken of with them.
RESTRICTIONS = re.findall(
    r"\w+",
    """
    check_ccert_access check_client_a_access check_client_access check_client_mx_access
    check_client_ns_access check_etrn_access check_helo_a_access check_helo_access
    check_helo_mx_access check_helo_ns_access check_policy_service check_recipient_a_access
    check_recipient_access check_recipient_mx_access check_recipient_ns_access
    check_reverse_client_hostname_a_access check_reverse_client_hostname_access
    check_reverse_client_hostname_mx_access check_reverse_client_hostname_ns_access
    check_sasl_access check_sender_a_access check_sender_access check_sender_mx_access
    check_sender_ns_access defer_unauth_destination permit_auth_destination permit_dnswl_client
    permit_inet_interfaces permit_mx_backup permit_mynetworks permit_rhswl_client
    permit_sasl_authenticated permit_tls_all_clientcerts permit_tls_clientcerts
    reject_authenticated_sender_login_mismatch reject_invalid_helo_hostname
    reject_known_sender_login_mismatch reject_multi_recipient_bounce reject_non_fqdn_helo_hostname
    reject_non_fqdn_recipient reject_non_fqdn_sender reject_plaintext_session reject_rbl_client
    reject_rhsbl_client reject_rhsbl_helo reject_rhsbl_recipient reject_rhsbl_reverse_client
    reject_rhsbl_sender reject_sender_login_mismatch reject_unauth_destination
    reject_unauth_pipelining reject_unauthenticated_sender_login_mismatch
    reject_unknown_client_hostname reject_unknown_helo_hostname reject_unknown_recipient_domain
    reject_unknown_reverse_client_hostname reject_unknown_sender_domain reject_unlisted_recipient
    reject_unlisted_sender reject_unverified_recipient reject_unverified_sender sleep
    warn_if_reject
    postscreen_dnsbl_sites postscreen_dnsbl_threshold smtpd_delay_reject smtpd_recipient_limit
    smtpd_client_connection_count_limit smtpd_client_connection_rate_limit smtpd_hard_error_limit
""",
)
#: The options of the programs of other servers, by the manual pages of Debian 12, without those of
#: processes, files, sockets and logs. The flags of spamass-milter are those of its synopsis.
OPTIONS = {
    "clamav-milter": """
        ReadTimeout ClamdSocket LocalNet AllowList SkipAuthenticated MaxFileSize OnClean OnInfected
        OnFail RejectMsg AddHeader ReportHostname VirusAction LogInfected LogClean LogVerbose
        SupportMultipleRecipients
    """,
    "spamass-milter": "-p -b -B -C -d -D -e -f -i -I -m -M -P -r -R -u -x -S",
    "OpenDKIM": """
        AlwaysAddARHeader AuthservID BodyLengthDB Canonicalization Diagnostics DNSTimeout Domain
        DontSignMailTo ExemptDomains ExternalIgnoreList FinalPolicyScript IdentityHeader
        InternalHosts KeyFile KeyTable MacroList MaximumSignaturesToVerify MaximumSignedBytes
        Minimum MinimumKeyBits MTA MultipleSignatures MustBeSigned Nameservers OmitHeaders
        On-BadSignature On-DNSError On-KeyNotFound On-NoSignature On-Security On-SignatureError
        OversignHeaders PeerList Quarantine RedirectFailuresTo RemoveARAll RemoveARFrom
        RemoveOldSignatures ReplaceHeaders ReplaceRules RequireSafeKeys ResignAll ResignMailTo
        Selector SenderHeaders SendReports SetupPolicyScript SignatureAlgorithm SignatureTTL
        SignHeaders SigningTable SoftwareHeader Statistics StrictHeaders SubDomains
        TrustSignaturesFrom SelectorEd25519 KeyFileEd25519 KeyTableEd25519
    """,
    "OpenDMARC": """
        AuthservID AuthservIDWithJobID CopyFailuresTo DomainWhitelist DomainWhitelistFile DNSTimeout
        FailureReports FailureReportsBcc FailureReportsOnNone FailureReportsSentBy HistoryFile
        HoldQuarantinedMessages IgnoreAuthenticatedClients IgnoreHosts IgnoreMailFrom IgnoreMailTo
        PublicSuffixList RecordAllMessages RejectFailures RejectMultiValueFrom RejectString
        ReportCommand RequiredHeaders SoftwareHeader SPFIgnoreResults SPFSelfValidate
        TrustedAuthservIDs
    """,
    "policyd-spf": """
        TestOnly HELO_reject HELO_pass_restriction Mail_From_reject Mail_From_pass_restriction
        No_Mail Reject_Not_Pass_Domains PermError_reject TempError_Defer Prospective skip_addresses
        Whitelist HELO_Whitelist Domain_Whitelist Domain_Whitelist_PTR SPF_Enhanced_Status_Codes
        Header_Type Hide_Receiver Authserv_Id Lookup_Time Void_Limit Mock Reason_Message
    """,
    "postgrey": """
        --delay --max-age --retry-window --greylist-action --greylist-text --lookup-by-subnet
        --ipv4cidr --ipv6cidr --lookup-by-host --privacy --hostname --whitelist-clients
        --whitelist-recipients --auto-whitelist-clients --x-greylist-header
    """,
    "policyd-rate-limit": """
        limits limits_by_id limit_by_sasl limit_by_sender limit_by_ip limited_networks
        success_action fail_action db_error_action backend sqlite_config mysql_config pgsql_config
        report report_to report_limits
    """,
    "Rspamd's milter": """
        bind_socket upstream hosts timeout max_retries discard_on_reject quarantine_on_reject
        spam_header reject_message milter_headers
    """,
    "milter-greylist": """
        greylist delay timeout autowhite subnetmatch subnetmatch6 racl list peer syncaddr dumpfile
        dumpfreq report quiet noauth nospf noaccessdb geoip p0f urlcheck ldapcheck dnsrbl stat
    """,
}
#: The flags of the filters that ours stand beside, as their manuals and `-h` have them.
OLDER = {
    "rspamd": "-url -settings-id",
    "senderscore": "-blockBelow -blockPhase -junkBelow -slowFactor -scoreHeader -allowlist"
    " -testMode",
    "dkimsign": "-a -c -D -d -h -k -s -t -x -z",
    "dnsbl": "-d -m -v -w",
}


def section(name: str) -> str:
    """What the page says on moving from there."""
    found = re.search(rf"(?ms)^## From {name}\n(.*?)(?=^## |\Z)", PAGE)
    assert found
    return found[1]


def rows(part: str) -> list[list[str]]:
    """The rows of its tables, without the heads."""
    found = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", part, re.MULTILINE)]
    rules = [at for at, row in enumerate(found) if row[0] == "---"]
    return [row for at, row in enumerate(found) if at not in rules and at + 1 not in rules]


@pytest.mark.parametrize("name", RESTRICTIONS)
def test_each_restriction_of_postfix_is_spoken_of(name: str) -> None:
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`", section("Postfix"))


def test_each_flag_that_the_page_on_moving_names_is_one_of_the_filter_beside_it() -> None:
    known = flags()
    every = set().union(*known.values())
    found = re.findall(
        r"^\| .* \| (?:`(filter-\w+)`(?: and others)?|each) \| (.*) \|$", PAGE, re.MULTILINE
    )
    assert len(found) > 20
    for program, cell in found:
        named = set(re.findall(r"(?<![\w`-])--?[a-zA-Z][\w-]*|(?<=`)--?[a-zA-Z][\w-]*", cell))
        assert named <= known.get(program, every), cell


@pytest.mark.parametrize(
    ("name", "option"), [(name, each) for name in OPTIONS for each in OPTIONS[name].split()]
)
def test_each_option_of_another_program_is_spoken_of(name: str, option: str) -> None:
    assert re.search(rf"`([^`\n]* )?{option}(?![\w-])[^`\n]*`", section(name))


def test_each_flag_beside_those_of_another_program_is_one_of_the_filter_above_it() -> None:
    known = flags()
    seen = set()
    for program, body in re.findall(
        r"^\| .* \| `(filter-\w+)` \|\n\| --- \| --- \|\n((?:\|.*\n)+)", PAGE, re.MULTILINE
    ):
        for row in body.splitlines():
            cell = row.strip("| ").partition(" | ")[2]
            words = " ".join(re.findall(r"`([^`]*)`", cell)).split()
            beside = [known[each] for each in words if each in known]
            named = {word for word in words if re.match(r"--?[a-zA-Z]", word)}
            assert named <= known[program].union(*beside), row
            seen |= {program} if named else set()
    assert seen >= {
        f"filter-{each}" for each in ("auth", "clamav", "dkimsign", "greylist", "spamd")
    }


def test_each_line_with_a_filter_has_flags_that_it_takes() -> None:
    """Those of the blocks for smtpd.conf."""
    found = re.findall(r'(?m)^ *filter "\w+" proc-exec "(.*)"$', PAGE)
    assert len(found) > 8
    for command in found:
        program, *words = shlex.split(command)
        named = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert named <= flags()[program] | {"--supervised"}, command


def printed(name: str, content: str, path: Path) -> list[list[str]]:
    """What the two commands awk of a part of the page print about a file with this content."""
    path.write_text(content)
    commands = re.findall(r"^(awk .*') /", section(name), re.MULTILINE)
    assert len(commands) == 2
    return [
        subprocess.run(
            [*shlex.split(command), path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for command in commands
    ]


def test_the_keys_of_opendkim_are_copied(tmp_path: Path) -> None:
    content = (
        "# ours\nk1 example.org:a:/etc/dkimkeys/a.private\n\n"
        "b._domainkey.example.net\texample.net:b:/etc/dkimkeys/b.private\n"
    )
    new = ["/etc/mail/dkim/example.org.a.key", "/etc/mail/dkim/example.net.b.key"]
    assert printed("OpenDKIM", content, tmp_path / "KeyTable") == [
        [f"install -g opensmtpd -m 640 /etc/dkimkeys/a.private {new[0]}",
         f"install -g opensmtpd -m 640 /etc/dkimkeys/b.private {new[1]}"],
        [f"example.org a {new[0]}", f"example.net b {new[1]}"],
    ]  # fmt: skip


def test_the_clients_of_postgrey_are_two_tables(tmp_path: Path) -> None:
    content = (
        "# servers\n\nexample.org   # theirs\n3com.example\n/^mail\\d+\\.example$/\n"
        "192.0.2.1\n198.51.100\n203.0.113.0/25\n2001:db8::/64\n"
    )
    names, networks = printed("postgrey", content, tmp_path / "whitelist_clients")
    (tmp_path / "names").write_text("\n".join(names))
    (tmp_path / "networks").write_text("\n".join(networks))
    hosts = HostTable(f"file:{tmp_path}/names")
    for below in ("", "mx.", "a.b.", "a.b.c."):
        assert hosts.match(f"{below}example.org")
        assert hosts.match(f"{below}3com.example")
    assert not hosts.match("otherexample.org")
    clients = NetworkTable(f"file:{tmp_path}/networks")
    for address in ("192.0.2.1", "198.51.100.7", "203.0.113.127", "2001:db8::1"):
        assert clients.match(address)
    for address in ("192.0.2.2", "198.51.101.7", "203.0.113.128", "2001:db9::1"):
        assert not clients.match(address)


@pytest.mark.parametrize("name", OLDER)
def test_each_flag_of_an_older_filter_has_its_row(name: str) -> None:
    shown = set()
    for left, right, *_ in rows(section(f"filter-{name}")):
        mine = set(re.findall(r"(?<!\w)-[a-zA-Z][\w-]*", left))
        if right.startswith("the same"):
            assert mine <= flags()[f"filter-{name}"]
        shown |= mine
    assert shown - {"-filter"} >= set(OLDER[name].split())


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["rspamd", "senderscore"])
def test_the_older_filter_has_no_other_flags(name: str) -> None:
    program = LIBEXEC / f"filter-{name}"
    if not program.exists():
        reason = f"no {program}"
        if os.environ.get("SMTPD_FILTERS_E2E") == "required":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    done = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
    theirs = set(re.findall(r"^  (-[\w-]+)", done.stderr, re.MULTILINE))
    assert theirs
    assert theirs <= set(OLDER[name].split())


def test_what_is_called_the_same_in_flags_is() -> None:
    seen = 0
    for cells in rows(section("filter-dnsbl")):
        left, right = (shlex.split(cell.strip("`"))[1:] for cell in cells)
        joined = re.sub(r"(--\w+) ", r"\1=", shlex.join(right))
        assert old_style(left, Dnsbl) == shlex.split(joined)
        seen += 1
    assert seen >= len(OLDER["dnsbl"].split())
