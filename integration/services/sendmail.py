"""A Sendmail of our own, from packages that were only unpacked: configuration, queue and log are the run's.

It relays everything to one next hop and delivers before it answers the final dot, so that a message that
was accepted has arrived when the client hears of it. Recipients `refused@…` and `deferred@…` are refused by
Sendmail itself.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from integration.services.packages import UNPACKED
from integration.services.process import Run, Service, ServiceError, answers, free_port, wait_for
from integration.services.tls import Certificates

PROGRAM = UNPACKED / "usr/libexec/sendmail/sendmail"
MACROS = UNPACKED / "usr/share/sendmail/cf"
SASLPASSWD = UNPACKED / "usr/sbin/saslpasswd2"
TEMPLATE = Path(__file__).with_name("templates") / "sendmail.mc"

START_TIMEOUT = 90.0
"""Seconds. Sendmail sleeps for 60 if the name of its host has no dot, which only a namespace can change."""

NAME_HOST = 'hostname "$0" && exec "$@"'

SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {database}
mech_list: PLAIN LOGIN
"""


@dataclass(frozen=True, slots=True)
class Sendmail:
    """One instance.

    Attributes:
        address: of its daemon, as `HOST:PORT`.
        place: configuration and queue.
        service: its process.
    """

    address: str
    place: Path
    service: Service

    def queued(self) -> int:
        """How many messages wait for delivery."""
        return sum(1 for _ in (self.place / "queue").glob("qf*"))

    def held(self) -> int:
        """How many messages are in quarantine."""
        return sum(1 for _ in (self.place / "queue").glob("hf*"))

    def wait_until_empty(self, timeout: float = 60) -> None:
        """Wait until everything was delivered."""
        wait_for(lambda: self.queued() == 0, "sendmail has an empty queue", timeout)


def make_users(database: Path, realm: str, users: Sequence[tuple[str, str]], owner: str = "root") -> None:
    """Write the database of Cyrus SASL with these names and passwords."""
    for name, password in users:
        subprocess.run(
            (SASLPASSWD, "-c", "-p", "-u", realm, "-f", database, name),
            input=password.encode(),
            check=True,
            capture_output=True,
        )
    shutil.chown(database, owner)
    database.chmod(0o600)


def _input_filter(number: int, address: str, timeout: str) -> str:
    if address.startswith("INPUT_MAIL_FILTER("):
        return f"{address}dnl"
    family, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    place = f"inet:{port}@{host}" if family == "inet" else address
    return f"INPUT_MAIL_FILTER(`filter{number}', `S={place}, F=T, T=C:10s;S:10s;R:{timeout};E:2m')dnl"


def _make_place(run: Run) -> Path:
    place = Path(tempfile.mkdtemp(prefix="mc-sendmail-", dir="/run"))
    run.at_close(lambda: shutil.rmtree(place, ignore_errors=True))
    place.chmod(0o755)
    for name in ("queue", "sasl", "authorities"):
        (place / name).mkdir(mode=0o700)
    return place


def _configure(place: Path, certificates: Certificates, values: dict[str, str]) -> Path:
    for source, target in (
        ("authority.pem", "authority.pem"),
        ("server.pem", "certificate.pem"),
        ("server.key", "key.pem"),
    ):
        shutil.copy(certificates.directory / source, place / target)
        (place / target).chmod(0o600)
    text = TEMPLATE.read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    source_file = place / "sendmail.mc"
    source_file.write_text(text)
    made = subprocess.run(
        ("m4", f"-D_CF_DIR_={MACROS}/", MACROS / "m4" / "cf.m4", source_file),
        check=False,
        capture_output=True,
    )
    if made.returncode or b"*** ERROR" in made.stderr:
        raise ServiceError(f"m4 {source_file.name}: {made.stderr.decode()}")
    config = place / "sendmail.cf"
    config.write_bytes(made.stdout)
    return config


def start_sendmail(
    run: Run,
    certificates: Certificates,
    *,
    relay_to: str,
    milters: Sequence[str] = (),
    hostname: str = "mx.example.test",
    users: Sequence[tuple[str, str]] = (),
    name: str = "sendmail",
    milter_timeout: str = "30s",
) -> Sendmail:
    """Configure and start an instance.

    Args:
        run: that owns it.
        certificates: for STARTTLS.
        relay_to: `HOST:PORT` of its next hop.
        milters: addresses as `inet:HOST:PORT` or `unix:/PATH`, or lines of the `.mc` file.
        hostname: its own name, in the greeting and in Received.
        users: names and passwords for AUTH.
        name: of its log.
        milter_timeout: for each answer of a milter.
    """
    place = _make_place(run)
    port = free_port()
    next_host, _, next_port = relay_to.rpartition(":")
    config = _configure(
        place,
        certificates,
        {
            "RUN": str(place),
            "HOSTNAME": hostname,
            "PORT": str(port),
            "NEXT_HOST": next_host,
            "NEXT_PORT": next_port,
            "MILTERS": "\n".join(
                _input_filter(number, milter, milter_timeout) for number, milter in enumerate(milters)
            ),
        },
    )
    database = place / "sasl" / "users"
    (place / "sasl" / "Sendmail.conf").write_text(SASL.format(database=database))
    if users:
        make_users(database, hostname, users)
    # An installed Sendmail is setgid; this one is started by root and must find its libraries.
    PROGRAM.chmod(0o755)
    traffic = run.directory / f"{name}-smtp.log"
    service = run.spawn(
        name, (*_own_host(run, hostname), PROGRAM.as_posix(), f"-C{config}", "-bD", f"-X{traffic}")
    )
    service.wait_ready(lambda: answers(f"inet:127.0.0.1:{port}"), START_TIMEOUT)
    return Sendmail(f"127.0.0.1:{port}", place, service)


def _own_host(run: Run, hostname: str) -> tuple[str, ...]:
    """What gives the process a host name of its own, where the kernel allows that."""
    command = (shutil.which("unshare") or "unshare", "--uts", "sh", "-c", NAME_HOST, hostname)
    probe = subprocess.run((*run.prefix, *command, "true"), check=False, capture_output=True)
    return command if probe.returncode == 0 else ()
