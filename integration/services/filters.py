"""The real filters: each started with a configuration that works offline.

Addresses are given and returned in milterchain's and Postfix's common spelling, `inet:HOST:PORT` or
`unix:/PATH`.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from integration.services.names import DMARC
from integration.services.process import Run, Service, ServiceError, answers, free_port

DOMAIN = "example.test"
SELECTOR = "sel"
AUTHSERV = "mx.example.test"
TEMPLATES = Path(__file__).with_name("templates")
NOOP_SOURCE = Path(__file__).resolve().parents[1] / "bench" / "noop_milter.c"
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
"""A body that every spam filter refuses."""
DEBIAN_PYTHON = "/usr/bin/python3"


@dataclass(slots=True)
class Filter:
    """A running filter that can be killed and started again at the same address."""

    run: Run
    name: str
    address: str
    argv: Sequence[str]
    service: Service | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait`, return when its socket answers."""
        family, _, path = self.address.partition(":")
        if family == "unix":
            Path(path).unlink(missing_ok=True)
        self.service = self.run.spawn(self.name, self.argv)
        if wait:
            self.service.wait_ready(lambda: answers(self.address))
        if wait and family == "unix":
            # Postfix and the filters run as different users.
            Path(path).chmod(0o666)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.service is not None:
            self.service.kill()
            self.service = None


def _libmilter(address: str) -> str:
    """`inet:HOST:PORT` as libmilter spells it."""
    family, _, rest = address.partition(":")
    if family == "unix":
        return address
    host, _, port = rest.rpartition(":")
    return f"{family}:{port}@{host}"


def _address(place: Path, address: str | None, *, unix: bool) -> str:
    if address is not None:
        return address
    return f"unix:{place}/s" if unix else f"inet:127.0.0.1:{free_port()}"


def _begin(run: Run, name: str, address: str, argv: Sequence[str]) -> Filter:
    started = Filter(run, name, address, argv)
    started.start()
    return started


def _configure(place: Path, template: str, *, file: str = "conf", **values: object) -> Path:
    text = (TEMPLATES / template).read_text()
    for key, value in {"RUN": place, "AUTHSERV": AUTHSERV, "DOMAIN": DOMAIN, **values}.items():
        text = text.replace(f"@{key}@", str(value))
    path = place / file
    path.write_text(text)
    return path


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An RSA key pair for DKIM: the private part as a file, the public part as a TXT record."""

    private: Path
    record: bytes


def make_key(run: Run, bits: int = 2048) -> SigningKey:
    """Generate the key that opendkim signs with."""
    place = run.place("key")
    private = place / "private.pem"
    subprocess.run(
        ("openssl", "genrsa", "-traditional", "-out", private, str(bits)), check=True, capture_output=True
    )
    private.chmod(0o644)
    public = subprocess.run(
        ("openssl", "rsa", "-in", private, "-pubout"), check=True, capture_output=True, text=True
    ).stdout
    base64 = "".join(line for line in public.splitlines() if "-----" not in line)
    return SigningKey(private, f"v=DKIM1; k=rsa; p={base64}".encode())


def start_opendkim(
    run: Run, key: SigningKey, *, mode: str = "s", name: str = "opendkim", unix: bool = False
) -> Filter:
    """OpenDKIM; mode `s` signs for example.test, `v` verifies with the key given locally."""
    place = run.place(name, "opendkim")
    address = _address(place, None, unix=unix)
    (place / "pubkeys").write_bytes(f"{SELECTOR}._domainkey.{DOMAIN} ".encode() + key.record + b"\n")
    configuration = _configure(
        place,
        "opendkim.conf",
        MODE=mode,
        SOCKET=_libmilter(address),
        SELECTOR=SELECTOR,
        KEY=key.private,
        # Mail of our own domain from these would be signed, and is not verified.
        INTERNAL="0.0.0.0/0" if "s" in mode else "203.0.113.99",
    )
    return _begin(run, name, address, ("opendkim", "-f", "-x", str(configuration)))


def start_opendmarc(run: Run, *, name: str = "opendmarc", unix: bool = False) -> Filter:
    """OpenDMARC; it does as the policies of names.py say."""
    place = run.place(name, "opendmarc")
    address = _address(place, None, unix=unix)
    (place / "ignore.hosts").write_text("203.0.113.99\n")
    (place / "dnsdata").write_text("".join(f"_dmarc.{domain} {policy}\n" for domain, policy in DMARC.items()))
    configuration = _configure(place, "opendmarc.conf", SOCKET=_libmilter(address))
    return _begin(run, name, address, ("opendmarc", "-f", "-c", str(configuration)))


def start_rspamd(run: Run, nameserver: str, *, name: str = "rspamd") -> Filter:
    """Rspamd with few modules: GTUBE is refused, `labspammy` in the subject makes it spam."""
    place = run.place(name, "_rspamd")
    address = _address(place, None, unix=False)
    (place / "tld.dat").write_text("com\norg\nnet\ntest\n")
    bind = address.removeprefix("inet:")
    configuration = _configure(place, "rspamd.conf", BIND=bind, NAMESERVER=nameserver)
    return _begin(
        run, name, address, ("rspamd", "-f", "-u", "_rspamd", "-g", "_rspamd", "-c", str(configuration))
    )


def start_pyspf(run: Run, *, name: str = "pyspf") -> Filter:
    """pyspf-milter; it checks loopback clients as well."""
    place = run.place(name, "pyspf-milter")
    address = _address(place, None, unix=False)
    configuration = _configure(place, "pyspf.conf", SOCKET=_libmilter(address))
    return _begin(run, name, address, ("pyspf-milter", str(configuration)))


def start_spamass(run: Run, *, name: str = "spamass", unix: bool = False) -> Filter:
    """spamass-milter and its spamd: `labspammy` in the subject makes it spam, `labjunk` is refused."""
    place = run.place(name)
    home = run.place(f"{name}-spamd", "debian-spamd")
    rules = run.place(f"{name}-rules")
    _configure(rules, "spamassassin-rules.cf", file="rules.cf")
    _configure(place, "spamassassin.pre", file="plugins.pre")
    _configure(place, "spamassassin.cf", file="local.cf")
    port = str(free_port())
    spamd = run.spawn(
        f"{name}-spamd",
        (
            *("spamd", "--local", "--nouser-config", "--listen", f"127.0.0.1:{port}"),
            *("--allowed-ips=127.0.0.1", "--max-children=2", "--min-children=1", "-u", "debian-spamd"),
            *(f"--helper-home-dir={home}", f"--configpath={rules}", f"--siteconfigpath={place}"),
            *("-s", "stderr"),
        ),
    )
    spamd.wait_ready(lambda: answers(f"inet:127.0.0.1:{port}"))
    address = _address(place, None, unix=unix)
    # It ignores what comes from the networks of -i, by default those of this machine.
    options = ("-r", "15", "-m", "-i", "203.0.113.99", "--", "-d", "127.0.0.1", "-p", port)
    return _begin(run, name, address, ("spamass-milter", "-p", _libmilter(address), *options))


EICAR_SIGNATURE = "44d88612fea8a8f36de82e1278abb02f:68:Lab.Eicar.MD5\n"


def start_clamav(run: Run, *, name: str = "clamav", unix: bool = False) -> Filter:
    """clamav-milter and its clamd, which knows nothing but EICAR."""
    place = run.place(f"{name}-clamd", "clamav")
    for part in ("db", "tmp"):
        run.place(f"{place.name}/{part}", "clamav")
    (place / "db" / "lab.hdb").write_text(EICAR_SIGNATURE)
    daemon = run.spawn(f"{name}-clamd", ("clamd", f"--config-file={_configure(place, 'clamd.conf')}"))
    daemon.wait_ready(lambda: answers(f"unix:{place}/clamd.sock"))
    milter = run.place(name, "clamav")
    address = _address(milter, None, unix=unix)
    configuration = _configure(
        milter, "clamav-milter.conf", SOCKET=_libmilter(address), CLAMD=place / "clamd.sock"
    )
    return _begin(run, name, address, ("clamav-milter", f"--config-file={configuration}"))


def start_editor(run: Run, name: str, *options: str, unix: bool = False) -> Filter:
    """The filter of editor_filter.py, under Debian's own Python."""
    place = run.place(name)
    address = _address(place, None, unix=unix)
    script = Path(__file__).with_name("editor_filter.py")
    argv = (DEBIAN_PYTHON, str(script), name, _libmilter(address), *options)
    return _begin(run, name, address, argv)


def build_noop(run: Run) -> Path:
    """Compile the C filter; needs a C compiler and libmilter-dev.

    Raises:
        ServiceError: it does not compile.
    """
    return build_c(run, NOOP_SOURCE, "-lmilter")


def build_c(run: Run, source: Path, *libraries: str) -> Path:
    """Compile a C program.

    Raises:
        ServiceError: it does not compile.
    """
    compiler = shutil.which("cc") or "gcc"
    program = run.directory / source.stem
    command = (compiler, "-O2", "-pthread", "-o", program, source, *libraries)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ServiceError(f"cannot build {source.name}: {done.stderr}")
    return program


def start_noop(run: Run, program: Path, name: str, *options: str, unix: bool = True) -> Filter:
    """The C filter; `options` as its source describes them."""
    place = run.place(name)
    address = _address(place, None, unix=unix)
    return _begin(run, name, address, (str(program), "-p", _libmilter(address), *options))
