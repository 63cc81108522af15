"""The next hops of a configuration."""

from pathlib import Path
from typing import Final

from milterchain.config import Config, RelayAuthConfig
from milterchain.errors import ConfigurationError
from milterchain.proxy.pool import PoolOptions
from milterchain.proxy.relay import NextHops
from milterchain.proxy.relay_options import RelayOptions
from milterchain.smtp.client_auth import Credentials
from milterchain.smtp.client_options import ClientOptions
from milterchain.smtp.client_tls import ClientTLS

__all__ = ["build_next_hops"]

MAX_PASSWORD: Final = 1000
"""Octets of a password; more would not fit a command of AUTH."""


def build_next_hops(config: Config) -> NextHops:
    """The next hops of a configuration; they need a running loop.

    Raises:
        ConfigurationError: a file that it names is of no use.
    """
    relay = config.relay
    client = ClientOptions(
        hello=config.hostname.encode("ascii"),
        tls=_tls(config),
        connect_timeout=relay.connect_timeout,
        greeting_timeout=relay.command_timeout,
        hello_timeout=relay.command_timeout,
        command_timeout=relay.command_timeout,
        data_initiation_timeout=relay.command_timeout,
        data_done_timeout=relay.data_done_timeout,
    )
    options = RelayOptions(
        client=client,
        pool=PoolOptions(open_timeout=2 * relay.connect_timeout),
        on_refused_added_recipient=relay.on_refused_added_recipient,
        identity=relay.client_identity,
        credentials=None if relay.auth is None else _credentials(relay.auth),
    )
    return NextHops(relay.next_hop, options)


def _tls(config: Config) -> ClientTLS | None:
    relay = config.relay
    if relay.tls == "none":
        return None
    try:
        return ClientTLS.of(relay.tls, ca_file=relay.tls_ca_file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError([f"relay.tls_ca_file: {relay.tls_ca_file}: {reason}"]) from error


def _credentials(auth: RelayAuthConfig) -> Credentials:
    name = auth.password_file
    try:
        with Path(name).open("rb") as file:
            password = file.readline(MAX_PASSWORD + 3).rstrip(b"\r\n")
    except OSError as error:
        mistake = f"relay.auth.password_file: {name}: cannot be read: {error.strerror}"
        raise ConfigurationError([mistake]) from error
    if not 0 < len(password) <= MAX_PASSWORD:
        mistake = (
            f"relay.auth.password_file: {name}: its first line is no password;"
            f" 1 to {MAX_PASSWORD} octets are allowed"
        )
        raise ConfigurationError([mistake])
    return Credentials(user=auth.user.encode(), password=password)
