"""The arguments of `log-milter` and `milter-check`: what may be written, and what it means."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import typer

from milterchain.chain.client import ClientInfo
from milterchain.cli.message_source import as_typed, envelope_of, read_client, read_message
from milterchain.cli.options_in_words import read_flags
from milterchain.mail.envelope import Envelope
from milterchain.mail.message import Message, parse_message
from milterchain.milter.endpoint import parse_endpoint
from milterchain.milter.flags import (
    ALL_ACTIONS,
    ALL_PROTOCOL,
    DATA_SIZE_1M,
    DATA_SIZE_64K,
    DATA_SIZE_256K,
    Action,
    Protocol,
    Stage,
)
from milterchain.milter.mta import MtaOptions

if TYPE_CHECKING:
    from milterchain.cli.milter_check import Play

__all__ = ["log_milter", "milter_check"]

DEFAULT_LISTEN: Final = "inet:127.0.0.1:8890"

_T = TypeVar("_T")
_SIZES: Final = {"64K": DATA_SIZE_64K, "256K": DATA_SIZE_256K, "1M": DATA_SIZE_1M}
_Size = Literal["64K", "256K", "1M"]
_STAGES: Final = {stage.name.lower().replace("_", "-"): stage for stage in Stage}
_SAMPLE: Final = (
    b"From: Ann <ann@example.org>\r\n"
    b"To: Bob <bob@example.net>\r\n"
    b"Subject: A message from milter-check\r\n"
    b"Date: Thu, 01 Jan 2026 12:00:00 +0000\r\n"
    b"Message-ID: <1@milter-check.example.org>\r\n"
    b"\r\n"
    b"Hello Bob!\r\n"
)

_Messages = Annotated[
    list[str] | None,
    typer.Argument(metavar="MESSAGE.eml", help="Messages; - is standard input. [default: a small one]"),
]
_Connect = Annotated[
    str, typer.Option(metavar="ADDR", help="The milter: inet:HOST:PORT, inet6:HOST:PORT or unix:/PATH.")
]
_Sender = Annotated[
    str | None, typer.Option("--from", metavar="A", help="The sender; default: the address in From.")
]
_SenderArgs = Annotated[
    list[str] | None, typer.Option("--from-arg", metavar="ARG", help="A parameter of MAIL, such as SIZE=100.")
]
_Recipients = Annotated[
    list[str] | None,
    typer.Option("--rcpt", metavar="B", help="A recipient, may be repeated; default: all in To and Cc."),
]
_RecipientArgs = Annotated[
    list[str] | None, typer.Option("--rcpt-arg", metavar="ARG", help="A parameter of each RCPT.")
]
_ClientAddr = Annotated[
    str, typer.Option(metavar="IP", help="The client's address; or unix:/PATH, or unknown.")
]
_ClientName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The client's name; default: none that could be verified.")
]
_ClientPort = Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="The client's port.")]
_Helo = Annotated[str, typer.Option(metavar="NAME", help="What the client says in HELO.")]
_UnknownLines = Annotated[
    list[str] | None,
    typer.Option("--unknown", metavar="LINE", help="After HELO, send a line that is no SMTP command."),
]
_MacroValues = Annotated[
    list[str] | None,
    typer.Option(
        "--macro",
        metavar="NAME=VALUE",
        help="A macro, such as {auth_authen}=ann; sent at the stages that have its name (see --macros-at).",
    ),
]
_MacroNames = Annotated[
    list[str] | None,
    typer.Option(
        "--macros-at",
        metavar="STAGE=NAMES",
        help=f"Macros for a stage ({', '.join(_STAGES)}), unless the milter asks for others;"
        " separated by commas, none is none. [default: what Postfix and Sendmail send]",
    ),
]
_Actions = Annotated[
    str,
    typer.Option(metavar="BITS", help="Offer these actions: all, none, a number, or names with commas."),
]
_ProtocolBits = Annotated[
    str,
    typer.Option("--protocol", metavar="BITS", help="Offer these protocol options: all, none, a number, …"),
]
_Version = Annotated[
    int, typer.Option("--protocol-version", metavar="N", min=2, max=6, help="Offer this version, 2 to 6.")
]
_DataSize = Annotated[_Size, typer.Option(help="Offer packets up to this size.")]
_UsedDataSize = Annotated[
    _Size | None, typer.Option(help="Send packets up to this size; default: what was agreed on.")
]
_Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="How long the milter may take for each reply.")
]
_Abort = Annotated[
    bool, typer.Option(help="Send ABORT after each message, as Postfix does and Sendmail does not.")
]
_AbortAt = Annotated[
    Literal["mail", "rcpt", "data", "headers", "body"] | None,
    typer.Option(help="Play each message up to here first, give it up with ABORT, then play all of it."),
]
_NewSession = Annotated[
    bool,
    typer.Option(
        "--new-session", help="A new SMTP session for each message, on the same connection if possible."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="For machines.")]


_Listen = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADDR",
        help="Listen here: inet:HOST:PORT, inet6:HOST:PORT or unix:/PATH; may be repeated."
        f" [default: {DEFAULT_LISTEN}]",
    ),
]
_WantedMacros = Annotated[
    list[str] | None,
    typer.Option(
        "--macros-at",
        metavar="STAGE=NAMES",
        help=f"Ask for these macros at a stage ({', '.join(_STAGES)}), separated by commas.",
    ),
]


def log_milter(*, listen: _Listen = None, macro_names: _WantedMacros = None, json: _Json = False) -> None:
    """A filter that accepts everything. Logs each event, each changed macro, and what was negotiated.

    Runs until SIGTERM or SIGINT, or until nobody reads what it writes, and says then how many SMTP sessions
    there were.
    """
    from milterchain.cli.log_milter import log_milter as run  # noqa: PLC0415 - `--help` should not wait

    macros = _parsed("--macros-at", lambda: dict(map(_macro_names, macro_names or ())))
    raise typer.Exit(run(listen or [DEFAULT_LISTEN], macros, as_json=json))


def milter_check(
    *,
    connect: _Connect,
    messages: _Messages = None,
    sender: _Sender = None,
    sender_args: _SenderArgs = None,
    recipients: _Recipients = None,
    recipient_args: _RecipientArgs = None,
    client_addr: _ClientAddr = "127.0.0.1",
    client_name: _ClientName = None,
    client_port: _ClientPort = 0,
    helo: _Helo = "localhost",
    unknown: _UnknownLines = None,
    macros: _MacroValues = None,
    macro_names: _MacroNames = None,
    actions: _Actions = "all",
    protocol: _ProtocolBits = "all",
    version: _Version = 6,
    data_size: _DataSize = "64K",
    used_data_size: _UsedDataSize = None,
    timeout: _Timeout = 30,
    abort: _Abort = True,
    abort_at: _AbortAt = None,
    new_session: _NewSession = False,
    json: _Json = False,
) -> None:
    """Play the MTA for one milter: one session, one message or several. Shows what it answers and changes.

    The exit code is 0 if the milter lets all messages pass, else that of the first that it does not: 3
    discarded, 4 refused for now, 5 refused for good, 6 quarantined. 1 is a milter that fails, 2 a mistake in
    the options.
    """
    from milterchain.cli.milter_check import CheckRequest  # noqa: PLC0415 - `--help` should not wait
    from milterchain.cli.milter_check import milter_check as run  # noqa: PLC0415

    who = sender, recipients or (), sender_args or (), recipient_args or ()
    request = CheckRequest(
        endpoint=_parsed("--connect", lambda: parse_endpoint(connect)),
        options=replace(
            _offer(actions, protocol, macro_names or ()),
            version=version,
            max_data=_SIZES[data_size],
            used_data=None if used_data_size is None else _SIZES[used_data_size],
            connect_timeout=timeout,
            command_timeout=timeout,
            content_timeout=timeout,
        ),
        client=_client(client_addr, client_name, client_port),
        helo=as_typed(helo),
        unknown=tuple(map(as_typed, unknown or ())),
        macros=_parsed("--macro", lambda: tuple(map(_macro, macros or ()))),
        plays=tuple(_plays(messages or (), lambda message: envelope_of(message, *who))),
        abort=abort,
        abort_at=abort_at,
        new_session=new_session,
    )
    raise typer.Exit(run(request, json=json))


def _offer(actions: str, protocol: str, macros: Sequence[str]) -> MtaOptions:
    return MtaOptions(
        actions=_parsed("--actions", lambda: read_flags(actions, Action, ALL_ACTIONS)),
        protocol=_parsed("--protocol", lambda: read_flags(protocol, Protocol, ALL_PROTOCOL)),
        macros=_parsed("--macros-at", lambda: dict(map(_macro_names, macros))),
    )


def _client(address: str, name: str | None, port: int) -> ClientInfo:
    client = replace(read_client(address), port=port)
    if name is None:
        return client
    return replace(client, name=as_typed(name), ptr=as_typed(name), resolve=b"OK")


def _plays(sources: Sequence[str], envelope: Callable[[Message], Envelope]) -> "Iterator[Play]":
    from milterchain.cli.milter_check import Play  # noqa: PLC0415

    if not sources:
        message = parse_message(_SAMPLE)
        yield Play(source="sample", message=message, envelope=envelope(message))
    for source in sources:
        message = read_message(source)
        yield Play(source=source, message=message, envelope=envelope(message))


def _parsed(option: str, parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _macro(text: str) -> tuple[bytes, bytes]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return as_typed(name), as_typed(value)


def _macro_names(text: str) -> tuple[Stage, tuple[bytes, ...]]:
    stage, found, names = text.partition("=")
    if not found or stage not in _STAGES:
        raise ValueError(f"{text!r} is not STAGE=NAMES with a stage of {', '.join(_STAGES)}")
    return _STAGES[stage], tuple(map(as_typed, names.replace(",", " ").split()))
