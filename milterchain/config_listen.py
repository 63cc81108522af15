"""`[[listen]]`: where mail comes in, and what clients can do there."""

from typing import Literal, Self

from pydantic import StrictBool, StrictStr, model_validator

from milterchain.config_mistakes import MistakeAtError
from milterchain.config_table import FilePath, Listening, Name, Networks, Table
from milterchain.config_types import ListenAddress

__all__ = ["AuthConfig", "ListenConfig", "TLSConfig"]


class TLSConfig(Table):
    """`[[listen]] tls`.

    Attributes:
        key: in the certificate's file if there is none.
        mode: `implicit` is TLS from the first octet.
        required: no mail before STARTTLS.
        ciphers: for TLS 1.2, in OpenSSL's words; empty is OpenSSL's own choice.
        client_ca: who signs the certificates of clients.
    """

    certificate: FilePath
    key: FilePath | None = None
    mode: Literal["starttls", "implicit"] = "starttls"
    required: StrictBool = False
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    ciphers: StrictStr = ""
    client_certificates: Literal["none", "request", "require"] = "none"
    client_ca: FilePath | None = None

    @model_validator(mode="after")
    def _has_a_ca(self) -> Self:
        if (self.client_certificates == "none") != (self.client_ca is None):
            raise ValueError("client_certificates and client_ca need each other; set both or none")
        return self


class AuthConfig(Table):
    """`[[listen]] auth`.

    Attributes:
        path: of the users' file, for the backend `file`.
        allow_plaintext: without TLS, too.
        required: no mail before a login.
    """

    backend: Literal["next-hop", "file"]
    path: FilePath | None = None
    allow_plaintext: StrictBool = False
    required: StrictBool = False

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if (self.backend == "file") != (self.path is not None):
            raise ValueError("path belongs to the backend file, and to no other; set both or none")
        return self


class ListenConfig(Table):
    """`[[listen]]`: one address that takes mail in.

    Attributes:
        name: in conditions of milters.
        proxy_protocol_from: load balancers, which begin each connection with a PROXY header.
        xclient_from: proxies that may tell of their clients by XCLIENT and XFORWARD.
    """

    name: Name = "smtp"
    address: Listening = ListenAddress(host="127.0.0.1", port=2525)
    tls: TLSConfig | None = None
    proxy_protocol_from: Networks = ()
    xclient_from: Networks = ()
    auth: AuthConfig | None = None

    @property
    def daemon_name(self) -> str:
        """What milters get as `{daemon_name}`: the name, if one was given; empty is the host name.

        Postfix sends its host name there by default, and rspamd takes it for that in its results.
        """
        return self.name if "name" in self.model_fields_set else ""

    @model_validator(mode="after")
    def _can_be_logged_in_to(self) -> Self:
        if self.auth is not None and self.tls is None and not self.auth.allow_plaintext:
            raise MistakeAtError(
                ("auth",), "needs tls, lest passwords are read on the way; or set allow_plaintext = true"
            )
        return self
