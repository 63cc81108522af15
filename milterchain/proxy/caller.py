"""Who takes part in a session: the client that the milters are told of, with the name that it gave."""

from dataclasses import dataclass, replace

from milterchain.chain.client import AuthInfo, ClientInfo, TLSInfo
from milterchain.milter.flags import Family
from milterchain.smtp.handler import UNKNOWN_NAMES, ClientNames, SessionInfo
from milterchain.smtp.tls import TLSSession

__all__ = ["Caller", "client_info", "tls_info"]

XCLIENT_MECHANISM = b"XCLIENT"
"""What milters get as the method by which a client has authenticated to another than us, as with Postfix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A client and how it has greeted.

    Attributes:
        client: what is known of it.
        helo: the name that it gave, as typed; empty if it gave none.
        esmtp: whether it gave it with EHLO.
    """

    client: ClientInfo
    helo: bytes = b""
    esmtp: bool = False

    @classmethod
    def forwarded(cls, info: SessionInfo) -> "Caller":
        """Where a message comes from, as XFORWARD tells."""
        return cls(client=client_info(info), helo=info.helo, esmtp=info.esmtp)

    def named(self, names: ClientNames) -> "Caller":
        """The same client with names, which are looked up when it may have begun TLS already."""
        client = replace(self.client, name=names.name, ptr=names.ptr, resolve=names.resolve)
        return replace(self, client=client)

    def greeted(self, helo: bytes, *, esmtp: bool) -> "Caller":
        """The same client after HELO or EHLO."""
        return Caller(client=self.client, helo=helo, esmtp=esmtp)

    def secured(self, tls: TLSInfo) -> "Caller":
        """The same client under TLS."""
        return replace(self, client=replace(self.client, tls=tls))

    def logged_in(self, auth: AuthInfo) -> "Caller":
        """The same client after AUTH."""
        return replace(self, client=replace(self.client, auth=auth))


def client_info(info: SessionInfo) -> ClientInfo:
    """What the milters are told of the client, before it is looked up."""
    names = info.names or UNKNOWN_NAMES
    return ClientInfo(
        address=info.address,
        port=info.port,
        family=Family(ord(info.family)),
        local_address=info.local_address,
        local_port=info.local_port,
        listener=info.listener.encode("utf-8"),
        daemon_name=info.daemon_name.encode("utf-8"),
        connections=info.connections,
        rate=info.rate,
        name=names.name,
        ptr=names.ptr,
        resolve=names.resolve,
        auth=None if info.login is None else AuthInfo(mechanism=XCLIENT_MECHANISM, identity=info.login),
    )


def tls_info(session: TLSSession) -> TLSInfo:
    """What the milters are told of TLS."""
    return TLSInfo(
        version=session.version.encode("ascii"),
        cipher=session.cipher.encode("ascii"),
        bits=session.bits,
        subject=session.subject.encode("utf-8"),
        issuer=session.issuer.encode("utf-8"),
        sni=session.sni.encode("utf-8"),
    )
