"""A real slapd of its own, with people, a referral and, on request, many entries."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from tests.stores.redis_server import free_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

#: slapd isn't on the path of a user.
SLAPD = shutil.which("slapd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/libexec")
BASE = "dc=example,dc=org"
ADMIN, PASSWORD = f"cn=admin,{BASE}", "secret"
#: Seconds for it to start or to end; the machine may be busy.
PATIENCE = 60.0

_PERSON = """
dn: uid={uid},{base}
objectClass: inetOrgPerson
uid: {uid}
cn: {uid}
sn: {uid}
mail: {mail}
description: {network}
"""
_BEGIN = f"""
dn: {BASE}
objectClass: dcObject
objectClass: organization
dc: example
o: x

dn: ou=elsewhere,{BASE}
objectClass: referral
objectClass: extensibleObject
ou: elsewhere
ref: ldap://192.0.2.1/ou=elsewhere,{BASE}
"""


def person(uid: str, mail: Sequence[str], network: str = "192.0.2.0/24") -> str:
    """An entry in LDIF."""
    return _PERSON.format(uid=uid, base=BASE, mail="\nmail: ".join(mail), network=network)


class Slapd:
    """The server; `folder` is for its files, and short enough for a unix socket's path."""

    def __init__(
        self,
        folder: Path,
        people: str = "",
        *,
        certificate: Path | None = None,
        at: Path | None = None,
    ) -> None:
        self._folder = folder
        self.port = free_port()
        self.tls_port = free_port() if certificate else 0
        self.socket = at or folder / "s"
        (folder / "db").mkdir()
        lines = [
            f"include /etc/ldap/schema/{s}.schema" for s in ("core", "cosine", "inetorgperson")
        ]
        lines += [
            "modulepath /usr/lib/ldap",
            "moduleload back_mdb",
            f"pidfile {folder}/pid",
            "require bind" if people == "bind" else "",
            *(
                [f"TLSCertificateFile {certificate}", f"TLSCertificateKeyFile {certificate}"]
                if certificate
                else []
            ),
            "sizelimit 500",
            "database mdb",
            f"suffix {BASE}",
            f"rootdn {ADMIN}",
            f"rootpw {PASSWORD}",
            f"directory {folder}/db",
            "maxsize 268435456",
            "index objectClass,uid,mail eq",
            "limits anonymous size=500 size.pr=500 size.prtotal=unlimited",
        ]
        self._configuration = folder / "c"
        self._configuration.write_text("\n".join(lines) + "\n")
        people = "" if people == "bind" else people
        (folder / "l").write_text(_BEGIN + (people or person("alice", ["alice@example.org"])))
        self._run("-T", "add", "-q", "-f", str(self._configuration), "-l", str(folder / "l"))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, *arguments: str, data: str = "") -> None:
        done = subprocess.run(
            [str(SLAPD), *arguments], input=data.encode(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}/"

    @property
    def ldapi(self) -> str:
        return "ldapi://" + str(self.socket).replace("/", "%2F")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        urls = [self.url, self.ldapi]
        if self.tls_port:
            urls.append(f"ldaps://127.0.0.1:{self.tls_port}/")
        self._process = subprocess.Popen(
            [str(SLAPD), "-f", str(self._configuration), "-h", " ".join(urls), "-d", "0"],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        until = monotonic() + PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
                return
            assert monotonic() < until, "slapd does not answer"
            assert self._process.poll() is None, "slapd has ended"
            sleep(0.02)

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(PATIENCE)

    def pause(self) -> None:
        """Have it answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Have it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def change(self, ldif: str) -> None:
        """Apply changes."""
        command = ["ldapmodify", "-x", "-H", self.url, "-D", ADMIN, "-w", PASSWORD]
        subprocess.run(command, input=ldif.encode(), capture_output=True, check=True)

    def search(self, text: str) -> list[str]:
        """The `uid`s that ldapsearch finds: a second opinion."""
        command = ["ldapsearch", "-x", "-LLL", "-H", self.url, "-b", BASE, text, "uid"]
        done = subprocess.run(command, capture_output=True, check=True)
        return sorted(
            line.partition(": ")[2] for line in done.stdout.decode().splitlines() if "uid: " in line
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def certificate(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 with its key, in one file; return its path."""
    path = folder / "certificate.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext"),
        *("subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"),
    ]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path
