"""Settings of the SMTP server: what one server allows, and where it listens."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from milterchain.mail.body import SpoolSettings
from milterchain.mail.headers import HeaderLimits
from milterchain.smtp.sasl import AuthSettings
from milterchain.smtp.tls import ServerTLS

__all__ = ["Listener", "ServerOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What the server offers and bears.

    Attributes:
        hostname: in the greeting and the replies to HELO and EHLO.
        message_size: octets of a message; offered as SIZE.
        recipients: accepted recipients of one message.
        connections: open connections.
        connections_per_client: open connections of one client (IPv6: of one /64).
        unlimited_clients: networks to which `connections_per_client` does not apply.
        command_timeout: seconds without a command, or without any data during DATA.
        transfer_timeout: seconds for the data of one message; else a client could send an octet a minute.
        data_rate: octets per second that the data of one message must have on the average, once
            `command_timeout` is over.
        mails: transactions in one session; None for any number. Offered as MAILMAX (RFC 9422).
        errors: replies of 4xx and 5xx in a session, without a message delivered, before it is closed.
        soft_errors: so many of them before each further one is delayed.
        error_delay: by so many seconds.
        junk_commands: commands that lead nowhere (RSET, NOOP, VRFY, HELP, HELO and EHLO again, empty chunks),
            without a message delivered, before each counts as an error.
        received_hops: Received headers from which on a message is taken for looping.
        proxy_header_timeout: seconds for the PROXY header of a load balancer.
        synchronized: a client that does not wait for the greeting, or for the replies that it has to wait for
            (RFC 2920), is cut off; else such input is processed.
        headers: limits of the header section.
        spool: where large messages are kept while they are here.
    """

    hostname: bytes
    message_size: int = 50 * 2**20
    recipients: int = 1000
    connections: int = 1000
    connections_per_client: int = 50
    unlimited_clients: tuple[IPv4Network | IPv6Network, ...] = ()
    command_timeout: float = 300
    transfer_timeout: float = 3600
    data_rate: float = 500
    mails: int | None = None
    errors: int = 20
    soft_errors: int = 10
    error_delay: float = 1
    junk_commands: int = 100
    received_hops: int = 100
    proxy_header_timeout: float = 5
    synchronized: bool = True
    headers: HeaderLimits = field(default_factory=HeaderLimits)
    spool: SpoolSettings = field(default_factory=SpoolSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where to listen: a TCP port or a Unix socket.

    Attributes:
        name: what handlers are told.
        daemon_name: what milters are told; empty is the host name.
        host: IP address or host name; all its addresses are used. None with `path`.
        port: 0 lets the system choose.
        path: of the Unix socket; None with `host`.
        mode: permissions of the Unix socket; None leaves them to the umask.
        tls: None without TLS.
        auth: how clients log in; None if they cannot.
        proxy_protocol_from: peers that must begin with a PROXY header.
        xclient_from: clients that may use XCLIENT and XFORWARD.
    """

    name: str = "smtp"
    daemon_name: str = ""
    host: str | None = None
    port: int = 0
    path: str | None = None
    mode: int | None = None
    tls: ServerTLS | None = None
    auth: AuthSettings | None = None
    proxy_protocol_from: tuple[IPv4Network | IPv6Network, ...] = ()
    xclient_from: tuple[IPv4Network | IPv6Network, ...] = ()

    def __post_init__(self) -> None:
        if (self.host is None) == (self.path is None):
            raise ValueError("a listener has either a host or a path")

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in str(self.host) else f"{self.host}:{self.port}"
