"""How the SMTP client introduces itself, and how long it waits."""

from dataclasses import dataclass

from milterchain.smtp.client_tls import ClientTLS

__all__ = ["Address", "ClientOptions"]

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """How a client introduces itself, and how long it waits. The times are RFC 5321's (4.5.3.2) or Postfix's.

    Attributes:
        hello: our name in EHLO.
        lmtp: speak LMTP: LHLO, and one reply for each accepted recipient after the content.
        tls: how TLS is used; None for not at all.
        connect_timeout: for the connection itself, all addresses of the host together.
        greeting_timeout: for the 220 after that.
        hello_timeout: for the reply to EHLO, and to HELO.
        command_timeout: for each reply to any other command.
        data_initiation_timeout: for the 354.
        data_block_timeout: for the server to take what is in the write buffer.
        data_done_timeout: for the reply to the final dot: the server may deliver before it answers.
        quit_timeout: for the reply to QUIT, which nobody waits for.
    """

    hello: bytes = b"localhost"
    lmtp: bool = False
    tls: ClientTLS | None = None
    connect_timeout: float = 30.0
    greeting_timeout: float = 300.0
    hello_timeout: float = 300.0
    command_timeout: float = 300.0
    data_initiation_timeout: float = 120.0
    data_block_timeout: float = 180.0
    data_done_timeout: float = 600.0
    quit_timeout: float = 5.0
