"""Postfix with STARTTLS and AUTH."""

from collections.abc import Sequence
from typing import TypedDict

from integration.services.process import Run
from integration.services.sendmail import SASL, make_users
from integration.services.tls import Certificates


class Secured(TypedDict):
    """Arguments for `start_postfix`."""

    settings: dict[str, str]
    files: dict[str, str]


def secured(
    run: Run, certificates: Certificates, users: Sequence[tuple[str, str]], hostname: str = "mx.example.test"
) -> Secured:
    """What makes smtpd offer both, to clients with and without a certificate."""
    database = run.place("sasl") / "users"
    make_users(database, hostname, users, owner="postfix")
    settings = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_cert_file": str(certificates.directory / "server.pem"),
        "smtpd_tls_key_file": str(certificates.directory / "server.key"),
        "smtpd_tls_CAfile": str(certificates.directory / "authority.pem"),
        "smtpd_tls_ask_ccert": "yes",
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_local_domain": hostname,
        "smtpd_sasl_security_options": "noanonymous",
    }
    # Where Debian's Postfix looks for it.
    return {"settings": settings, "files": {"sasl/smtpd.conf": SASL.format(database=database)}}
