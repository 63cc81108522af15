"""Certificates: those of the unit tests, and for one run an authority, a server's and a client's."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from integration.services.process import Run

DAYS = "2"
CERTIFICATES = Path(__file__).resolve().parents[2] / "tests" / "certificates"
"""Those of the unit tests: the server's is for 127.0.0.1, too."""
PAIR = f'certificate = "{CERTIFICATES / "server.pem"}", key = "{CERTIFICATES / "server.key"}"'
"""The server's, as a listener's configuration has it."""
CLIENT_NAME = "client.example.test"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM.

    Attributes:
        directory: `authority.pem`, `server.pem`, `server.key`, `client.pem` and `client.key` are in it.
    """

    directory: Path

    def context(self, *, client: bool = False) -> ssl.SSLContext:
        """What an SMTP client needs; with `client` it shows a certificate."""
        context = ssl.create_default_context(cafile=self.directory / "authority.pem")
        context.check_hostname = False
        if client:
            context.load_cert_chain(self.directory / "client.pem", self.directory / "client.key")
        return context


def make_certificates(run: Run, hostname: str = "mx.example.test") -> Certificates:
    """Make an authority that signs one certificate for a server and one for a client."""
    place = run.place("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(("openssl", *arguments), check=True, capture_output=True, cwd=place)

    subject = "/O=Example/CN=Example authority"
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", DAYS, "-subj", subject),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-keyout", "authority.key", "-out", "authority.pem"),
    )
    # What Python 3.13 wants of a certificate by default (RFC 5280 section 4.2.1).
    (place / "extensions").write_text("subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n")
    for name, common_name in (("server", hostname), ("client", CLIENT_NAME)):
        openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/O=Example/CN={common_name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-days", DAYS, "-CAcreateserial"),
            *("-CA", "authority.pem", "-CAkey", "authority.key", "-out", f"{name}.pem"),
            *("-extfile", "extensions"),
        )
    return Certificates(place)
