"""`[dns]`: whether clients are looked up, and whom to ask."""

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, StrictBool

from milterchain.config_table import Duration, Table
from milterchain.config_types import parse_nameserver

__all__ = ["DNSConfig"]

Nameserver: TypeAlias = Annotated[tuple[str, int], BeforeValidator(parse_nameserver)]


class DNSConfig(Table):
    """`[dns]`.

    Attributes:
        lookup: whether the names of clients are looked up.
        servers: whom to ask, as address and port; those of the system if there are none.
        timeout: how long a client's session may wait for its names.
    """

    lookup: StrictBool = True
    servers: tuple[Nameserver, ...] = ()
    timeout: Duration = 3.0
