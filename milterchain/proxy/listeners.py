"""From the configuration of a listener to what the SMTP server needs of it: address, certificate, users."""

from collections.abc import Sequence

from milterchain.config import AuthConfig, ListenConfig, TLSConfig
from milterchain.errors import ConfigurationError
from milterchain.proxy.users import UsersFile
from milterchain.smtp.options import Listener
from milterchain.smtp.sasl import AuthSettings
from milterchain.smtp.tls import ServerTLS, TLSSettings

__all__ = ["build_listeners"]


def build_listeners(configs: Sequence[ListenConfig]) -> list[Listener]:
    """Read the files that listeners need.

    Raises:
        ConfigurationError: with one line for each file that cannot be used.
    """
    listeners = []
    mistakes: list[str] = []
    for number, config in enumerate(configs, 1):
        where = f"listen[{number}]"
        try:
            listeners.append(_listener(config, where))
        except ConfigurationError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigurationError(mistakes)
    return listeners


def _listener(config: ListenConfig, where: str) -> Listener:
    tls = None if config.tls is None else _tls(config.tls, f"{where}.tls")
    auth = None if config.auth is None else _auth(config.auth, f"{where}.auth")
    address = config.address
    return Listener(
        name=config.name,
        daemon_name=config.daemon_name,
        host=None if address.path is not None else address.host,
        port=address.port,
        path=None if address.path is None else str(address.path),
        tls=tls,
        auth=auth,
        proxy_protocol_from=config.proxy_protocol_from,
        xclient_from=config.xclient_from,
    )


def _tls(config: TLSConfig, where: str) -> ServerTLS:
    settings = TLSSettings(
        certificate=config.certificate,
        key=config.key,
        implicit=config.mode == "implicit",
        required=config.required,
        minimum_version=config.minimum_version,
        ciphers=config.ciphers,
        client_certificates=config.client_certificates,
        client_ca=config.client_ca,
    )
    try:
        return ServerTLS(settings)
    except (OSError, ValueError) as error:
        raise ConfigurationError([f"{where}: {_reason(error)}"]) from None


def _auth(config: AuthConfig, where: str) -> AuthSettings:
    verify = None
    if config.path is not None:
        try:
            verify = UsersFile(config.path).verify
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"{where}: {_reason(error)}"]) from None
    return AuthSettings(verify=verify, allow_plaintext=config.allow_plaintext, required=config.required)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
