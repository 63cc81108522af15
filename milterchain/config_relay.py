"""`[relay]`: where mail goes, and how next hops are spoken to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictStr,
    ValidationInfo,
    field_validator,
)

from milterchain.config_mistakes import MistakeAtError
from milterchain.config_table import Duration, Table, base_directory, not_empty
from milterchain.proxy.nexthop import Hop, parse_hop

__all__ = ["NextHop", "RelayAuthConfig", "RelayConfig", "absolute"]


def absolute(value: object, schemes: Sequence[str], base: Path) -> str:
    """Make the path after one of the schemes absolute; anything else stays what it is."""
    text = value if isinstance(value, str) else repr(value)
    for scheme in schemes:
        if text.startswith(scheme) and len(text) > len(scheme):
            return f"{scheme}{base / text.removeprefix(scheme)}"
    return text


def _hop(value: object, info: ValidationInfo) -> Hop:
    return parse_hop(absolute(value, ("maildir:", "lmtp:unix:"), base_directory(info)))


def _file(value: object, info: ValidationInfo) -> object:
    return str(base_directory(info) / value) if isinstance(value, str) and value else value


NextHop: TypeAlias = Annotated[Hop, BeforeValidator(_hop)]
FileName: TypeAlias = Annotated[StrictStr, Field(min_length=1), BeforeValidator(_file)]


class RelayAuthConfig(Table):
    """`[relay] auth`: our own login on the next hops.

    Attributes:
        password_file: its first line is the password.
    """

    user: Annotated[StrictStr, Field(min_length=1)]
    password_file: FileName


class RelayConfig(Table):
    """`[relay]`: where mail goes.

    Attributes:
        next_hop: tried in order; paths are absolute.
        tls: what is demanded of next hops, but for Unix sockets and `smtps:`, which always has TLS.
        tls_ca_file: authorities that are trusted with `verify`; the system's by default.
        auth: our own login on all of them.
        client_identity: what they learn of the client.
        on_refused_added_recipient: what becomes of a message when the next hop refuses a recipient that a
            milter added.
    """

    next_hop: Annotated[tuple[NextHop, ...], AfterValidator(not_empty)] = (parse_hop("smtp:127.0.0.1:10025"),)
    tls: Literal["none", "may", "encrypt", "verify"] = "may"
    tls_ca_file: FileName | None = None
    auth: RelayAuthConfig | None = None
    client_identity: Literal["none", "auto", "xclient", "xforward"] = "auto"
    received: StrictBool = True
    connect_timeout: Duration = 30.0
    command_timeout: Duration = 300.0
    data_done_timeout: Duration = 600.0
    on_refused_added_recipient: Literal["tempfail", "log"] = "tempfail"

    @field_validator("client_identity")
    @classmethod
    def _no_login_of_another(cls, mode: str, info: ValidationInfo) -> str:
        if mode == "xclient" and info.data.get("auth") is not None:
            raise MistakeAtError(
                (), "'xclient' would undo the login of relay.auth; allowed with it are none, auto, xforward"
            )
        return mode
