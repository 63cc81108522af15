"""How messages are relayed."""

from dataclasses import dataclass, field
from typing import Literal

from milterchain.proxy.introduction import IdentityMode
from milterchain.proxy.pool import PoolOptions
from milterchain.smtp.client_auth import Credentials
from milterchain.smtp.client_options import ClientOptions

__all__ = ["RelayOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """How messages are relayed.

    Attributes:
        client: how each hop is spoken to; what its address says of TLS and LMTP is added.
        pool: which connections are kept.
        on_refused_added_recipient: what becomes of a message when a hop refuses a recipient that a milter
            added: the client tries again later, or the others get it and `Delivery.refused` names it.
        identity: how hops learn of clients.
        credentials: our own login on the hops; then they do not get XCLIENT, which would undo it.
    """

    client: ClientOptions = field(default_factory=ClientOptions)
    pool: PoolOptions = field(default_factory=PoolOptions)
    on_refused_added_recipient: Literal["tempfail", "log"] = "tempfail"
    identity: IdentityMode = "none"
    credentials: Credentials | None = None
