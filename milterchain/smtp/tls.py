"""TLS of the server: its settings, its contexts, and what a finished handshake tells.

Certificates are renewed while the server runs. Before a handshake `ServerTLS` looks, once a second at most,
whether a file has changed, and reads all of them again if so: no signal and no restart is needed. Files that
cannot be used (half of a pair may have been replaced so far) leave the old certificate in use and a line in
the log; the next change is tried again.

A client certificate is asked for only with a CA to check it by. One that this CA did not sign ends the
handshake: OpenSSL as Python shows it either verifies or does not look at all.
"""

import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

__all__ = ["ServerTLS", "TLSSession", "TLSSettings"]

LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at the files: a flood of handshakes is no flood of system calls."""

_VERSIONS: Final[Mapping[str, ssl.TLSVersion]] = {
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
_CLIENT_CERTIFICATES: Final[Mapping[str, ssl.VerifyMode]] = {
    "none": ssl.CERT_NONE,
    "request": ssl.CERT_OPTIONAL,
    "require": ssl.CERT_REQUIRED,
}
# Client-initiated renegotiation costs the server far more than the client.
_OPTIONS: Final = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_logger = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """How a listener speaks TLS.

    Attributes:
        certificate: file with the certificate and its chain, in PEM.
        key: file with the private key; None if it is in the same file.
        implicit: TLS from the first octet; else STARTTLS is offered.
        required: no mail without STARTTLS.
        minimum_version: of the protocol.
        ciphers: for TLS 1.2, as OpenSSL writes lists of them; empty is OpenSSL's own choice.
        client_certificates: whether the client is asked for one, and whether it has to have one.
        client_ca: file with the certificates that sign those of clients.
        handshake_timeout: seconds.
    """

    certificate: Path
    key: Path | None = None
    implicit: bool = False
    required: bool = False
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    ciphers: str = ""
    client_certificates: Literal["none", "request", "require"] = "none"
    client_ca: Path | None = None
    handshake_timeout: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSession:
    """What is known after a handshake.

    Attributes:
        version: such as `TLSv1.3`.
        cipher: OpenSSL's name.
        bits: secret bits of the cipher.
        requested: the client was asked for a certificate.
        verified: it showed one, which is signed as it should be.
        subject: common name in that certificate.
        issuer: common name of its issuer.
        sni: the server name that the client asked for.
    """

    version: str
    cipher: str
    bits: int
    requested: bool = False
    verified: bool = False
    subject: str = ""
    issuer: str = ""
    sni: str = ""


class ServerTLS:
    """The certificate of a listener, as it is now.

    Args:
        settings: the files and what is allowed.
        clock: seconds, for tests.

    Raises:
        OSError: a file cannot be read, or is not what it should be; the text names it.
        ValueError: the list of ciphers has none that OpenSSL knows.
    """

    def __init__(self, settings: TLSSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        # Looked at before they are read: what changes in between is read once more.
        self._stamp = self._look()
        self._looked = clock()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context for one handshake, with the certificate that the files have now."""
        now = self._clock()
        if now - self._looked >= LOOK_AGAIN:
            self._looked = now
            self._renew()
        return self._context

    def session(self, made: ssl.SSLObject) -> TLSSession:
        """What a finished handshake tells."""
        cipher, _, bits = made.cipher() or ("", "", 0)
        certificate: Mapping[str, Any] = made.getpeercert() or {}
        return TLSSession(
            version=made.version() or "",
            cipher=cipher,
            bits=bits,
            requested=self.settings.client_certificates != "none",
            verified=bool(certificate),
            subject=_common_name(certificate.get("subject", ())),
            issuer=_common_name(certificate.get("issuer", ())),
            sni=self._names.get(made, ""),
        )

    def _renew(self) -> None:
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._context = self._load()
        except OSError as error:
            _logger.warning("the old certificate stays in use: %s", error)
        else:
            _logger.info("read the certificate %s again", self.settings.certificate)

    def _files(self) -> list[Path]:
        settings = self.settings
        return [path for path in (settings.certificate, settings.key, settings.client_ca) if path is not None]

    def _look(self) -> _Stamp:
        stamps = []
        for path in self._files():
            found = path.stat()
            stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return tuple(stamps)

    def _load(self) -> ssl.SSLContext:
        settings = self.settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[settings.minimum_version]
        context.options |= _OPTIONS
        if settings.ciphers:
            try:
                context.set_ciphers(settings.ciphers)
            except ssl.SSLError:
                raise ValueError(f"{settings.ciphers!r} has no cipher that OpenSSL knows") from None
        for path in self._files():
            path.read_bytes()  # OpenSSL's errors have no file name
        try:
            # Without the function OpenSSL would ask for the key's password at the terminal.
            context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
        except OSError as error:
            pair = f"{settings.certificate}" + (f" and {settings.key}" if settings.key else "")
            raise OSError(f"{pair}: {_reason(error)}") from None
        context.verify_mode = _CLIENT_CERTIFICATES[settings.client_certificates]
        if settings.client_ca is not None:
            try:
                context.load_verify_locations(settings.client_ca)
            except OSError as error:
                raise OSError(f"{settings.client_ca}: {_reason(error)}") from None
        # Sessions must not be resumed across listeners with other rules for client certificates.
        context.num_tickets = 2 if settings.client_certificates == "none" else 0
        context.sni_callback = self._note_name
        return context

    def _note_name(self, made: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name and _NAME.fullmatch(name):
            self._names[made] = name


def _no_password() -> str:
    raise OSError("the key is encrypted; write it without a password")


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if reason or isinstance(error, ssl.SSLError):
        return "no certificate or no key in PEM is in it"
    return str(error)


def _common_name(name: Any) -> str:
    """The last common name of a distinguished name, as `getpeercert` returns it: the most specific one.

    Whoever signs certificates does not always look at what is in them: a NUL or a line end must not pass.
    """
    found = ""
    for relative in name:
        for kind, value in relative:
            if kind == "commonName":
                found = value
    return _CONTROL.sub("?", found)
