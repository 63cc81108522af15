"""`[[listen]]`: where mail comes in, and what clients can do there."""

from typing import ClassVar, Literal

from pydantic import StrictBool, StrictStr

from milterchain.config_mistakes import Later
from milterchain.config_table import Listening, Name, Networks, Table
from milterchain.config_types import ListenAddress

__all__ = ["AuthConfig", "ListenConfig", "TLSConfig"]


class TLSConfig(Table):
    """`[[listen]] tls`."""

    certificate: StrictStr
    key: StrictStr
    mode: Literal["starttls", "implicit"] = "starttls"
    required: StrictBool = False


class AuthConfig(Table):
    """`[[listen]] auth`."""

    backend: Literal["next-hop", "file"]
    path: StrictStr | None = None
    allow_plaintext: StrictBool = False


class ListenConfig(Table):
    """`[[listen]]`: one address that takes mail in.

    Attributes:
        name: what milters get as `{daemon_name}`.
    """

    later: ClassVar[Later] = {
        "tls": ("TLS", frozenset()),
        "proxy_protocol_from": ("the PROXY protocol", frozenset()),
        "xclient_from": ("XCLIENT", frozenset()),
        "auth": ("AUTH", frozenset()),
    }

    name: Name = "smtp"
    address: Listening = ListenAddress(host="127.0.0.1", port=2525)
    tls: TLSConfig | None = None
    proxy_protocol_from: Networks = ()
    xclient_from: Networks = ()
    auth: AuthConfig | None = None
