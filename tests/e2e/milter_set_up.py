"""Real milters for the end-to-end tests: Debian's daemons, each with its own configuration.

    with Lab(ZONE) as lab, opendkim(lab, "Mode v") as daemon:
        command = filter_command("milter", "--milter", daemon.address)

`daemon` says where they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.daemon import FILES, LOOPBACK, STATE, Daemon

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_filters.testing.server import Lab


def opendkim(lab: Lab, *settings: str, files: Mapping[str, str] | None = None) -> Daemon:
    """Return OpenDKIM with these settings."""
    text = "\n".join(
        (
            "Syslog no",
            "Background no",
            "UserID root",
            "RequireSafeKeys no",
            f"Socket inet:PORT@{LOOPBACK}",
            *settings,
            "",
        )
    )
    return Daemon(lab, ["opendkim", "-f", "-x", f"{FILES}/conf"], {"conf": text, **(files or {})})


def opendmarc(lab: Lab, *settings: str) -> Daemon:
    """Return OpenDMARC with these settings."""
    text = "\n".join(
        (
            "Syslog false",
            "Background false",
            "PublicSuffixList /usr/share/publicsuffix/public_suffix_list.dat",
            f"Socket inet:PORT@{LOOPBACK}",
            *settings,
            "",
        )
    )
    return Daemon(lab, ["opendmarc", "-f", "-c", f"{FILES}/conf"], {"conf": text})


def pymilter(lab: Lab, script: str) -> Daemon:
    """Return a program that uses the library pymilter, in the system's Python."""
    return Daemon(lab, ["/usr/bin/python3", f"{FILES}/script", "PORT"], {"script": script})


def clamav_milter(lab: Lab, clamd: int, *settings: str) -> Daemon:
    """Return clamav-milter with these settings, for the clamd at a port of the lab."""
    text = "\n".join(
        (
            f"MilterSocket inet:PORT@{LOOPBACK}",
            f"ClamdSocket tcp:{LOOPBACK}:{clamd}",
            "Foreground yes",
            "User root",
            *settings,
            "",
        )
    )
    return Daemon(lab, ["clamav-milter", "-c", f"{FILES}/conf"], {"conf": text})


#: SpamAssassin without the network, and a score of our own.
SPAMASSASSIN = """\
header LOCAL_TEST X-Test-Spam =~ /yes/
score LOCAL_TEST 50
dns_available no
use_bayes 0
report_safe 1
score RCVD_ILLEGAL_IP 0
score KHOP_HELO_FCRDNS 0
"""


def spamd(lab: Lab) -> Daemon:
    """Return SpamAssassin's daemon, which speaks no milter itself."""
    script = (
        f"cp -r /etc/spamassassin {STATE}/site; cp {FILES}/cf {STATE}/site/zz.cf; "
        f"export HOME={STATE}; "
        f"exec spamd --local --nouser-config --listen {LOOPBACK}:PORT --siteconfigpath "
        f"{STATE}/site --max-children 1 --min-children 1 --syslog stderr"
    )
    return Daemon(lab, ["/bin/sh", "-c", script], {"cf": SPAMASSASSIN})


def spamass_milter(lab: Lab, spamd_port: int, *options: str) -> Daemon:
    """Return spamass-milter for the spamd at a port of the lab."""
    address = f"inet:PORT@{LOOPBACK}"
    spamc = ("--", "-d", LOOPBACK, "-p", str(spamd_port))
    return Daemon(lab, ["spamass-milter", "-p", address, *options, *spamc])


#: amavisd without its scanners: what is banned is refused, the rest passes.
AMAVISD = f"""\
use strict;
$MYHOME = '{STATE}'; $TEMPBASE = '{STATE}'; $daemon_user = 'amavis'; $daemon_group = 'amavis';
$mydomain = 'local.example'; $myhostname = 'mx.local.example';
$max_servers = 1; $db_home = '{STATE}'; $pid_file = '{STATE}/pid'; $lock_file = '{STATE}/lock';
$enable_db = 0; $enable_zmq = 0; $do_syslog = 0; $log_level = 1;
$inet_socket_port = undef; $unix_socketname = '{STATE}/amavisd.sock'; $unix_socket_mode = 0666;
$interface_policy{{'SOCK'}} = 'AM.PDP-SOCK';
$policy_bank{{'AM.PDP-SOCK'}} = {{ protocol => 'AM.PDP' }};
@bypass_virus_checks_maps = (1); @bypass_spam_checks_maps = (1);
@local_domains_maps = (1);
$final_banned_destiny = D_REJECT; $QUARANTINEDIR = undef; $banned_files_quarantine_method = undef;
$banned_filename_re = new_RE(qr'.\\.(exe|scr)$'i);
$warnbannedsender = 0; $enable_dkim_verification = 0; $enable_dkim_signing = 0;
1;
"""


def amavisd_milter(lab: Lab) -> Daemon:
    """Return amavisd-milter, and an amavisd behind it."""
    script = (
        f"mkdir -m 700 {STATE}/work; amavisd -c {FILES}/conf foreground & "
        f"until [ -S {STATE}/amavisd.sock ]; do kill -0 $! || exit 1; sleep 0.1; done; "
        f"exec amavisd-milter -f -s inet:PORT@{LOOPBACK} -S {STATE}/amavisd.sock -w {STATE}/work"
    )
    user = ("setpriv", "--reuid=amavis", "--regid=amavis", "--init-groups")
    return Daemon(lab, [*user, "/bin/sh", "-c", script], {"conf": AMAVISD})
