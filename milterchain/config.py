"""The configuration: what may be written, its defaults, and what is wrong with what was written.

`load` reads a TOML file, `parse` a document that was read already. Both answer a frozen `Config` in which
sizes are bytes, times seconds, addresses values and paths absolute, or raise ConfigurationError with **one
line for each mistake**: `FILE: key.path: what is wrong; what is allowed`. Tables of an array count from 1.

Keys of what this version cannot do yet are known; a value that would need it is a mistake, so that nothing
in a configuration is ever silently without effect.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from milterchain.config_dns import DNSConfig
from milterchain.config_listen import AuthConfig, ListenConfig, TLSConfig
from milterchain.config_mistakes import Later, MistakeAtError, describe
from milterchain.config_relay import NextHop, RelayAuthConfig, RelayConfig, absolute
from milterchain.config_table import (
    Count,
    Duration,
    Listening,
    Name,
    Networks,
    Size,
    Table,
    base_directory,
    not_empty,
)
from milterchain.config_types import (
    default_hostname,
    parse_domain,
    parse_hostname,
    parse_macro,
    parse_macro_stage,
    parse_network,
    parse_workers,
)
from milterchain.errors import ConfigurationError
from milterchain.milter.endpoint import Endpoint, parse_endpoint
from milterchain.milter.flags import Stage
from milterchain.proxy.nexthop import Hop, LMTPHop, parse_hop

__all__ = [
    "AccessConfig",
    "AuthConfig",
    "BreakerConfig",
    "Config",
    "DNSConfig",
    "LimitsConfig",
    "ListenConfig",
    "LogConfig",
    "MetricsConfig",
    "MilterConfig",
    "QuarantineConfig",
    "RelayAuthConfig",
    "RelayConfig",
    "TLSConfig",
    "load",
    "parse",
]

MAX_FILE: int = 4 * 2**20
"""Bytes of a configuration file; a larger one is surely something else (a spool file, a device)."""


def _endpoint(value: object, info: ValidationInfo) -> Endpoint:
    return parse_endpoint(absolute(value, ("unix:", "local:"), base_directory(info)))


def _directory(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(f"{value!r} is not a directory; write it as /var/lib/milterchain/quarantine")
    return base_directory(info) / value


Address: TypeAlias = Annotated[Endpoint, BeforeValidator(_endpoint)]
Domains: TypeAlias = tuple[Annotated[str, BeforeValidator(parse_domain)], ...]
MacroStage: TypeAlias = Annotated[Stage, BeforeValidator(parse_macro_stage)]
MacroName: TypeAlias = Annotated[bytes, BeforeValidator(parse_macro)]


class AccessConfig(Table):
    """`[access]`: who may send where.

    Attributes:
        trusted_networks: clients that may send to any recipient.
        relay_domains: domains to which anybody may send; `.example.org` means the subdomains.
    """

    trusted_networks: Networks = (parse_network("127.0.0.0/8"), parse_network("::1/128"))
    relay_domains: Domains = ()


class MilterConfig(Table):
    """`[[milter]]`: one milter of the chain; their order is the chain's.

    Attributes:
        name: how logs and tables call it; the address by default.
        mode: in `observe` it changes nothing.
        default_action: the verdict when it fails; for `quarantine` see `QuarantineConfig`.
        reuse: whether its connections serve one SMTP session after the other; few filters have met that.
        clients: it is asked about messages only of clients in these networks, and so on: all conditions that
            are given must hold. See `milterchain.chain.conditions`.
    """

    address: Address
    name: Name = ""
    mode: Literal["enforce", "observe"] = "enforce"
    default_action: Literal["accept", "reject", "tempfail", "quarantine", "shutdown"] = "tempfail"
    connect_timeout: Duration = 30.0
    command_timeout: Duration = 30.0
    content_timeout: Duration = 300.0
    protocol: Annotated[StrictInt, Field(ge=2, le=6)] = 6
    header_index: Literal["postfix", "sendmail"] = "postfix"
    on_rejected_recipient: Literal["replay", "keep"] = "replay"
    pipeline: Literal["auto", "on", "off"] = "auto"
    reuse: StrictBool = False
    macros: dict[MacroStage, tuple[MacroName, ...]] = Field(default_factory=dict)
    clients: Networks = ()
    not_clients: Networks = ()
    listeners: tuple[StrictStr, ...] = ()
    authenticated: Literal["any", "only", "never"] = "any"
    sender_domains: Domains = ()
    recipient_domains: Domains = ()

    @model_validator(mode="before")
    @classmethod
    def _name(cls, data: object) -> object:
        if isinstance(data, dict) and "name" not in data and isinstance(data.get("address"), str):
            return {**data, "name": data["address"].replace(" ", "")[:100] or "?"}
        return data


class QuarantineConfig(Table):
    """`[quarantine]`: what becomes of a message that a milter, or its default action, wants to be held.

    Attributes:
        action: see `milterchain.proxy.holding`.
        directory: where `hold` keeps messages; absolute.
        next_hop: where `next-hop` sends them.
    """

    action: Literal["hold", "next-hop", "header", "tempfail", "reject"] = "hold"
    directory: Annotated[Path, BeforeValidator(_directory)] = Field("quarantine", validate_default=True)
    next_hop: NextHop = parse_hop("smtp:127.0.0.1:10026")

    @field_validator("next_hop")
    @classmethod
    def _one_answer(cls, hop: Hop) -> Hop:
        if isinstance(hop, LMTPHop):
            raise MistakeAtError(
                (),
                f"'{hop}' would answer for each recipient, the client hears one answer for all;"
                " allowed are smtp:HOST:PORT, smtps:HOST:PORT, maildir:/PATH and discard:",
            )
        return hop


class BreakerConfig(Table):
    """`[breaker]`: when a milter that keeps failing is left alone.

    Attributes:
        failures: in a row, after which it is.
        rest: for how long.
        directory: where the running processes tell `check` of it; absolute.
    """

    failures: Count = 5
    rest: Duration = 10.0
    directory: Annotated[Path, BeforeValidator(_directory)] = Field("breaker", validate_default=True)


class LimitsConfig(Table):
    """`[limits]`.

    Attributes:
        messages_per_connection: after which a client has to connect again; None for any number.
        message_timeout: the whole time for the milters and the next hop after the final dot.
        errors: commands of one session that failed before the connection is closed.
        failed_logins: of one client, in whatever sessions, before the next one has to wait.
        received_hops: Received headers from which on a message is taken for a loop.
    """

    message_size: Size = 50 * 2**20
    recipients: Count = 1000
    connections: Count = 1000
    connections_per_client: Count = 50
    messages_per_connection: Count | None = None
    command_timeout: Duration = 300.0
    message_timeout: Duration = 540.0
    errors: Count = 20
    failed_logins: Count = 20
    received_hops: Count = 100


class LogConfig(Table):
    """`[log]`; `auto` is console on a terminal and json otherwise."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsConfig(Table):
    """`[metrics]`."""

    later: ClassVar[Later] = {"address": ("metrics", frozenset())}

    address: Listening | None = None


class Config(Table):
    """The whole configuration.

    Attributes:
        hostname: in the greeting, macro `j` and our Received header.
    """

    later: ClassVar[Later] = {"workers": ("more than one worker", frozenset())}

    hostname: Annotated[str, BeforeValidator(parse_hostname)] = Field(default_factory=default_hostname)
    workers: Annotated[int | Literal["auto"], BeforeValidator(parse_workers)] = 1
    listen: Annotated[tuple[ListenConfig, ...], AfterValidator(not_empty)] = (ListenConfig(),)
    access: AccessConfig = AccessConfig()
    milter: tuple[MilterConfig, ...] = ()
    relay: RelayConfig = RelayConfig()
    quarantine: QuarantineConfig = Field({}, validate_default=True)
    breaker: BreakerConfig = Field({}, validate_default=True)
    limits: LimitsConfig = LimitsConfig()
    dns: DNSConfig = DNSConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()

    @field_validator("listen")
    @classmethod
    def _addresses_differ(cls, listeners: tuple[ListenConfig, ...]) -> tuple[ListenConfig, ...]:
        addresses = [listener.address for listener in listeners]
        for index, address in enumerate(addresses):
            chosen_later = address.path is None and address.port == 0
            if (first := addresses.index(address)) != index and not chosen_later:
                raise MistakeAtError(
                    (index, "address"),
                    f"'{address}' is the address of listen[{first + 1}] too; addresses must differ",
                )
        return listeners

    @field_validator("relay")
    @classmethod
    def _one_login(cls, relay: RelayConfig, info: ValidationInfo) -> RelayConfig:
        backends = [listen.auth.backend for listen in info.data.get("listen", ()) if listen.auth]
        if relay.auth is not None and "next-hop" in backends:
            raise MistakeAtError(
                ("auth",), "there is a listener where clients log in on the next hop; leave one of both out"
            )
        return relay

    @model_validator(mode="after")
    def _listeners_exist(self) -> Self:
        known = list(dict.fromkeys(listener.name for listener in self.listen))
        for index, milter in enumerate(self.milter):
            for place, name in enumerate(milter.listeners):
                if name not in known:
                    raise MistakeAtError(
                        ("milter", index, "listeners", place),
                        f"{name!r} is not the name of a listener; there are {', '.join(known)}",
                    )
        return self

    @field_validator("milter")
    @classmethod
    def _names_differ(cls, milters: tuple[MilterConfig, ...]) -> tuple[MilterConfig, ...]:
        names = [milter.name for milter in milters]
        for index, name in enumerate(names):
            if (first := names.index(name)) != index:
                same = milters[first].address == milters[index].address
                hint = " (the address is the default: set name)" if same else ""
                raise MistakeAtError(
                    (index, "name"),
                    f"{name!r} is the name of milter[{first + 1}] too; names must differ{hint}",
                )
        return milters


def parse(document: Mapping[str, Any], where: str, base: Path) -> Config:
    """Check a document.

    Args:
        document: what tomllib, or the command line, gave.
        where: what each mistake begins with.
        base: the directory under which relative paths are.

    Raises:
        ConfigurationError: with one line for each mistake.
    """
    try:
        return Config.model_validate(document, context={"base": base.absolute()})
    except ValidationError as error:
        raise ConfigurationError(describe(error, Config, where)) from None


def load(path: Path | str) -> Config:
    """Read a file.

    Raises:
        ConfigurationError: with one line for each mistake.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(content) > MAX_FILE:
        raise ConfigurationError([f"{path}: is too large; {MAX_FILE} bytes are allowed"])
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{path}: byte {error.start} is not UTF-8; TOML is UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([f"{path}: is not TOML: {error}"]) from None
    return parse(document, str(path), path.absolute().parent)
