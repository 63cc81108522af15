"""Debian's packages that the integration tests and the benchmark stand on.

Most are installed. Those of `ASIDE` are unpacked into a directory of this tree instead, because Debian
installs no Sendmail beside Postfix; nothing of the system is changed by that.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

BENCHMARK = {
    "/usr/lib/postfix/sbin/master": "postfix",
    "/usr/sbin/opendkim": "opendkim",
    "/usr/sbin/opendmarc": "opendmarc",
    "/usr/bin/rspamd": "rspamd",
    "/usr/bin/pyspf-milter": "pyspf-milter",
    "/usr/include/libmilter/mfapi.h": "libmilter-dev",
    "/usr/bin/gcc": "gcc",
    "/usr/include/stdlib.h": "libc6-dev",
    "/usr/bin/openssl": "openssl",
    "/usr/sbin/dnsmasq": "dnsmasq-base",
    "/usr/bin/unshare": "util-linux",
}
"""A file of each package, and the package."""

FILTER_BENCHMARK = {
    "/usr/include/libmilter/mfapi.h": "libmilter-dev",
    "/usr/bin/gcc": "gcc",
    "/usr/include/stdlib.h": "libc6-dev",
    "/usr/lib/python3/dist-packages/Milter/__init__.py": "python3-milter",
}
"""The same for the benchmark of filters alone."""

_LIBRARIES = f"/usr/lib/{platform.machine()}-linux-gnu"

ALL = {
    **BENCHMARK,
    "/usr/lib/python3/dist-packages/Milter/__init__.py": "python3-milter",
    "/usr/lib/dovecot/lmtp": "dovecot-lmtpd",
    "/usr/sbin/haproxy": "haproxy",
    "/usr/bin/swaks": "swaks",
    "/usr/bin/docker-compose": "docker-compose",
    "/usr/sbin/ip": "iproute2",
    "/usr/sbin/clamd": "clamav-daemon",
    "/usr/sbin/clamav-milter": "clamav-milter",
    "/usr/sbin/spamd": "spamd",
    "/usr/sbin/spamass-milter": "spamass-milter",
    "/usr/bin/miltertest": "miltertest",
    # What an unpacked Sendmail needs, and AUTH for both MTAs.
    f"{_LIBRARIES}/libwrap.so.0": "libwrap0",
    "/usr/bin/m4": "m4",
    f"{_LIBRARIES}/sasl2/libplain.so": "libsasl2-modules",
    f"{_LIBRARIES}/sasl2/libsasldb.so": "libsasl2-modules-db",
}

UNPACKED = Path(__file__).resolve().parents[1] / "unpacked"
"""Where the packages of `ASIDE` are, as if it were the root directory."""

ASIDE = {
    str(UNPACKED / "usr/libexec/sendmail/sendmail"): "sendmail-bin",
    str(UNPACKED / "usr/share/sendmail/cf/m4/cf.m4"): "sendmail-cf",
    str(UNPACKED / "usr/sbin/saslpasswd2"): "sasl2-bin",
}
"""A file of each package that is only unpacked, and the package."""


def missing(wanted: Iterable[tuple[str, str]]) -> list[str]:
    """The packages whose file is not there."""
    return sorted({package for path, package in wanted if not Path(path).exists()})


def require(wanted: Mapping[str, str]) -> None:
    """Exit with a clear line if a package is missing or this is not root."""
    if os.geteuid() != 0:
        sys.exit("integration: Postfix and the filters can only be started by root")
    if absent := missing(wanted.items()):
        sys.exit(f"integration: missing: {' '.join(absent)}; `integration/install` installs them")


def install() -> int:
    """Install and unpack what is missing, with apt-get; the exit status."""
    absent, aside = missing(ALL.items()), missing(ASIDE.items())
    if not absent and not aside:
        print("integration: everything is installed")
        return 0
    if shutil.which("apt-get") is None:
        print(f"integration: no apt-get here; needed: {' '.join(absent + aside)}", file=sys.stderr)
        return 1
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    commands = [("update", "-q")]
    if absent:
        commands.append(("install", "-q", "-y", "--no-install-recommends", *absent))
    for command in commands:
        done = subprocess.run(("apt-get", *command), check=False, env=env)
        if done.returncode:
            return done.returncode
    if aside and (status := _unpack(aside)):
        return status
    still = missing({**ALL, **ASIDE}.items())
    if still:
        print(f"integration: still missing: {' '.join(still)}", file=sys.stderr)
    return 1 if still else 0


def _unpack(packages: Iterable[str]) -> int:
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(("apt-get", "download", "-q", *packages), check=False, cwd=place)
        if done.returncode:
            return done.returncode
        UNPACKED.mkdir(exist_ok=True)
        for file in sorted(Path(place).glob("*.deb")):
            done = subprocess.run(("dpkg", "-x", file, UNPACKED), check=False)
            if done.returncode:
                return done.returncode
    return 0
