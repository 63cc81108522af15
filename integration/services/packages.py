"""Debian's packages that the integration tests and the benchmark stand on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
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

ALL = {**BENCHMARK, "/usr/lib/python3/dist-packages/Milter/__init__.py": "python3-milter"}


def missing(wanted: Iterable[tuple[str, str]]) -> list[str]:
    """The packages whose file is not there."""
    return sorted({package for path, package in wanted if not Path(path).exists()})


def require(wanted: dict[str, str]) -> None:
    """Exit with a clear line if a package is missing or this is not root."""
    if os.geteuid() != 0:
        sys.exit("integration: Postfix and the filters can only be started by root")
    if absent := missing(wanted.items()):
        sys.exit(f"integration: missing: {' '.join(absent)}; `integration/install` installs them")


def install() -> int:
    """Install what is missing with apt-get; the exit status."""
    absent = missing(ALL.items())
    if not absent:
        print("integration: everything is installed")
        return 0
    if shutil.which("apt-get") is None:
        print(f"integration: no apt-get here; needed: {' '.join(absent)}", file=sys.stderr)
        return 1
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (("update", "-q"), ("install", "-q", "-y", "--no-install-recommends", *absent)):
        done = subprocess.run(("apt-get", *command), check=False, env=env)
        if done.returncode:
            return done.returncode
    still = missing(ALL.items())
    if still:
        print(f"integration: still missing: {' '.join(still)}", file=sys.stderr)
    return 1 if still else 0
