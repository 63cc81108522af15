"""A name service of our own, so that no filter asks anything outside this machine.

dnsmasq answers for the zones of `RECORDS` and says NXDOMAIN to everything else.  The services of
the run see it through a private mount of /etc/resolv.conf; where the kernel does not allow that (a
container without CAP_SYS_ADMIN) they keep the machine's own resolver, and a line on stderr says so.
"""

import random
import shutil
import socket
import subprocess
import sys

from integration.services.process import Run, ServiceError

DMARC = {
    "example.test": "v=DMARC1; p=reject; adkim=r; aspf=r",
    "evil.test": "v=DMARC1; p=reject",
    "friend.test": "v=DMARC1; p=reject",
    "lenient.test": "v=DMARC1; p=none",
}
"""Each domain's policy."""

RECORDS = (
    "--txt-record=example.test,v=spf1 ip4:127.0.0.0/8 -all",
    "--txt-record=evil.test,v=spf1 -all",
    "--txt-record=friend.test,v=spf1 ip4:192.0.2.0/24 -all",
    "--txt-record=lenient.test,v=spf1 ip4:192.0.2.0/24 ~all",
    *(f"--txt-record=_dmarc.{domain},{policy}" for domain, policy in DMARC.items()),
    "--host-record=mx.example.test,client.example.test,127.0.0.1",
    "--host-record=localhost,127.0.0.1",
    "--mx-host=example.test,mx.example.test,10",
)

MOUNT = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


def _free_address() -> str:
    """A loopback address whose port 53 nobody uses; the port cannot be chosen in resolv.conf."""
    for _ in range(50):
        address = f"127.53.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((address, 53))
            except OSError:
                continue
        return address
    raise ServiceError("no loopback address with a free port 53")


def start_names(run: Run, *records: str) -> str:
    """Start dnsmasq, let all services that are started later ask it, and return its address.

    Args:
        run: whose services shall use it.
        records: more options for dnsmasq, such as a `--txt-record`.
    """
    address = _free_address()
    options = ("--keep-in-foreground", "--no-hosts", "--no-resolv", "--local=/#/", "--log-facility=-")
    where = (
        f"--listen-address={address}",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
        "--conf-file=/dev/null",
    )
    service = run.spawn("dnsmasq", ("dnsmasq", *options, *where, *RECORDS, *records))
    service.wait_ready(lambda: _resolves(address))
    resolv = run.directory / "resolv.conf"
    resolv.write_text(f"nameserver {address}\noptions timeout:1 attempts:1\n")
    unshare = shutil.which("unshare") or "unshare"
    prefix = (unshare, "--mount", "--propagation", "private", "sh", "-c", MOUNT, str(resolv))
    probe = subprocess.run((*prefix, "true"), check=False, capture_output=True)
    if probe.returncode == 0:
        run.prefix = prefix
    else:
        print(f"no private resolv.conf here: {probe.stderr.decode().strip()}", file=sys.stderr)
    return address


QUESTION = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01"


def _resolves(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        try:
            client.connect((address, 53))
            client.send(QUESTION)
            return client.recv(512)[:2] == QUESTION[:2]
        except OSError:
            return False
