"""Who talks to us, as milters are told: the CONNECT event and the macros that follow from the client.

Spellings are those of Postfix (smtpd_milter.c, smtpd_peer.c), where Sendmail has more macros also its own.
"""

from dataclasses import dataclass

from milterchain import __version__
from milterchain.milter.flags import Family
from milterchain.milter.messages import Connect

__all__ = ["UNKNOWN_NAME", "AuthInfo", "ClientInfo", "TLSInfo", "client_values", "connect_event"]

UNKNOWN_NAME = b"unknown"
"""The name of a client that has none that could be verified."""
LOCAL_NAME = b"localhost"
"""The name of a client on a unix socket, which needs no look-up (smtpd_peer.c)."""

MAX_SOCKET_PATH = 107
"""libmilter breaks the connection over a path that does not fit sun_path."""

_MAPPED = "::ffff:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSInfo:
    """What is known of the client's TLS session.

    Attributes:
        version: such as `TLSv1.3`.
        cipher: OpenSSL's name.
        bits: secret bits of the cipher.
        subject: common name in the client's certificate, empty unless that is trusted.
        issuer: common name of its issuer, likewise.
        sni: the server name that the client asked for.
    """

    version: bytes
    cipher: bytes
    bits: int
    subject: bytes = b""
    issuer: bytes = b""
    sni: bytes = b""

    def values(self) -> dict[bytes, bytes]:
        """The macros."""
        values = {b"tls_version": self.version, b"cipher": self.cipher, b"cipher_bits": b"%d" % self.bits}
        certificate = {b"cert_subject": self.subject, b"cert_issuer": self.issuer, b"tls_sni": self.sni}
        values |= {name: value for name, value in certificate.items() if value}
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthInfo:
    """Whom the client has proved to be.

    Attributes:
        mechanism: of SASL.
        identity: the login.
        ssf: strength of the security layer that SASL brought; 0 is none.
    """

    mechanism: bytes
    identity: bytes
    ssf: int = 0

    def values(self) -> dict[bytes, bytes]:
        """The macros."""
        return {
            b"auth_type": self.mechanism,
            b"auth_authen": self.identity,
            b"auth_ssf": b"%d" % self.ssf,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInfo:
    """The other end of an SMTP connection.

    Attributes:
        address: IP address, path of a unix socket, or empty when unknown.
        family: what `address` is.
        port: 0 when there is none or it is unknown.
        name: the verified name: one that the address has, and that has the address; else `unknown`.
        ptr: the name that the address has, verified or not; else `unknown`.
        resolve: how the look-up ended: `OK`, `FORGED`, `TEMP` or `FAIL`. Where nobody looks it is FAIL, as in
            Postfix with smtpd_peername_lookup = no: filters that hold a name against its client take TEMP for
            a reason to defer, and OK for a verified name.
        local_address: the address that the client connected to; empty when unknown.
        local_port: likewise, 0 when unknown.
        listener: the name of the listener that it came to.
        daemon_name: what milters are told of that; empty is the host name, as in Postfix.
        connections: how many connections this client has, None if nobody counts.
        rate: how many it has made in the last minute; likewise.
        tls: None without TLS.
        auth: None while the client has not authenticated.
    """

    address: str = ""
    family: Family = Family.UNKNOWN
    port: int = 0
    name: bytes = UNKNOWN_NAME
    ptr: bytes = UNKNOWN_NAME
    resolve: bytes = b"FAIL"
    local_address: str = ""
    local_port: int = 0
    listener: bytes = b""
    daemon_name: bytes = b""
    connections: int | None = None
    rate: int | None = None
    tls: TLSInfo | None = None
    auth: AuthInfo | None = None


def _endpoint(client: ClientInfo) -> tuple[Family, bytes]:
    """Family and address as they may stand in CONNECT, a mapped IPv4 address as what it is."""
    address = client.address.partition("%")[0]  # libmilter's inet_pton() knows no zones
    family = client.family
    if family is Family.INET6 and address.lower().startswith(_MAPPED) and "." in address:
        return Family.INET, address[len(_MAPPED) :].encode("ascii")
    if family is Family.UNIX:
        path = client.address.encode("utf-8", "surrogateescape")
        return (Family.UNIX, path) if 0 < len(path) <= MAX_SOCKET_PATH else (Family.UNKNOWN, b"")
    return (family, address.encode("ascii")) if address else (Family.UNKNOWN, b"")


def _names(client: ClientInfo) -> tuple[bytes, bytes, bytes]:
    """Verified name, name of the address, and how the look-up ended."""
    if client.family is Family.UNIX and client.name == UNKNOWN_NAME:
        return LOCAL_NAME, LOCAL_NAME, b"OK"
    return client.name, client.ptr, client.resolve


def connect_event(client: ClientInfo) -> Connect:
    """The CONNECT event."""
    family, address = _endpoint(client)
    inet = family in {Family.INET, Family.INET6}
    hostname, _, _ = _names(client)
    if inet and hostname == UNKNOWN_NAME:
        hostname = b"[%b]" % address
    return Connect(hostname=hostname, family=family, port=client.port if inet else 0, address=address)


def client_values(client: ClientInfo, hostname: bytes) -> dict[bytes, bytes]:
    """The macros that hold for the whole session.

    Args:
        client: the client.
        hostname: our own name.
    """
    family, address = _endpoint(client)
    name, ptr, resolve = _names(client)
    values = {
        b"j": hostname,
        b"v": b"milterchain " + __version__.encode("ascii"),
        b"daemon_name": client.daemon_name or hostname,
        b"client_name": name,
        b"client_ptr": ptr,
        b"client_port": b"%d" % client.port,
        b"client_resolve": resolve,
    }
    if family in {Family.INET, Family.INET6}:
        values[b"client_addr"] = address if family is Family.INET else b"IPv6:" + address
        forged = ptr not in {UNKNOWN_NAME, name}
        values[b"_"] = b"%b [%b]%b" % (ptr, address, b" (may be forged)" if forged else b"")
    else:
        values[b"_"] = connect_event(client).hostname
    if client.connections is not None:
        values[b"client_connections"] = b"%d" % client.connections
    if client.rate is not None:
        values[b"client_rate"] = b"%d" % client.rate
    if client.local_address:
        values |= _local_values(client, hostname)
    if client.tls is not None:
        values |= client.tls.values()
    if client.auth is not None:
        values |= client.auth.values()
    return values


def _local_values(client: ClientInfo, hostname: bytes) -> dict[bytes, bytes]:
    address = client.local_address.partition("%")[0].encode("utf-8", "surrogateescape")
    values = {b"daemon_addr": address, b"daemon_port": b"%d" % client.local_port, b"if_name": hostname}
    if client.family in {Family.INET, Family.INET6} and not address.startswith((b"127.", b"::1")):
        values[b"if_addr"] = address  # as in Sendmail, unset on loopback
    return values
