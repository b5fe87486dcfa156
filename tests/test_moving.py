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
