"""Every packet of the milter protocol: which code stands for which value, and how a payload is read.

A packet is a length, a code and a payload; `framing` knows lengths, this module codes, `commands` and
`responses` payloads. Constructors validate, so that a message that cannot be sent cannot exist.
`decode_command` and `decode_response` are as strict as Postfix (milter8.c): a missing NUL, trailing bytes, a
payload where none belongs and unknown codes are errors. Both raise `LocalProtocolError`; the one place that
receives from a peer turns it into `RemoteProtocolError`.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from milterchain.errors import LocalProtocolError
from milterchain.milter.commands import (
    Abort,
    Body,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    OptNeg,
    Quit,
    QuitNewConnection,
    Rcpt,
    Unknown,
)
from milterchain.milter.flags import Response
from milterchain.milter.responses import (
    Accept,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    ConnFail,
    Continue,
    DeleteRecipient,
    Discard,
    InsertHeader,
    Progress,
    Quarantine,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
)

__all__ = [
    "Abort",
    "Accept",
    "AddHeader",
    "AddRecipient",
    "AnyCommand",
    "AnyResponse",
    "Body",
    "ChangeHeader",
    "ChangeSender",
    "ConnFail",
    "Connect",
    "Continue",
    "Data",
    "DeleteRecipient",
    "Discard",
    "EndOfHeaders",
    "EndOfMessage",
    "Header",
    "Helo",
    "InsertHeader",
    "Macros",
    "Mail",
    "Modification",
    "OptNeg",
    "Progress",
    "Quarantine",
    "Quit",
    "QuitNewConnection",
    "Rcpt",
    "Reject",
    "ReplaceBody",
    "Reply",
    "ReplyCode",
    "Shutdown",
    "Skip",
    "TempFail",
    "Unknown",
    "decode_command",
    "decode_response",
]

Reply: TypeAlias = Continue | Accept | Reject | TempFail | Discard | Skip | ConnFail | Shutdown | ReplyCode
"""What ends the wait for a milter's answer."""

Modification: TypeAlias = (
    AddHeader | InsertHeader | ChangeHeader | AddRecipient | DeleteRecipient | ChangeSender | ReplaceBody
)
"""What a milter may change at the end of a message."""

AnyResponse: TypeAlias = Reply | Modification | Progress | Quarantine | OptNeg

AnyCommand: TypeAlias = (
    OptNeg
    | Macros
    | Connect
    | Helo
    | Mail
    | Rcpt
    | Data
    | Header
    | EndOfHeaders
    | Body
    | EndOfMessage
    | Unknown
    | Abort
    | Quit
    | QuitNewConnection
)

_COMMANDS: Mapping[int, Callable[[bytes], AnyCommand]] = {
    message.code: message.decode
    for message in (
        OptNeg,
        Macros,
        Connect,
        Helo,
        Mail,
        Rcpt,
        Data,
        Header,
        EndOfHeaders,
        Body,
        EndOfMessage,
        Unknown,
        Abort,
        Quit,
        QuitNewConnection,
    )
}

_RESPONSES: Mapping[int, Callable[[bytes], AnyResponse]] = {
    **{
        message.code: message.decode
        for message in (
            Continue,
            Accept,
            Reject,
            TempFail,
            Discard,
            Skip,
            ConnFail,
            Shutdown,
            ReplyCode,
            Progress,
            Quarantine,
            AddHeader,
            InsertHeader,
            ChangeHeader,
            DeleteRecipient,
            ChangeSender,
            ReplaceBody,
        )
    },
    Response.OPTNEG: OptNeg.decode,
    Response.ADD_RECIPIENT: AddRecipient.decode,
    Response.ADD_RECIPIENT_PAR: AddRecipient.decode,
}


def decode_command(code: int, payload: bytes) -> AnyCommand:
    """Read an MTA's packet.

    Raises:
        LocalProtocolError: unknown code, or a payload that this command cannot have.
    """
    try:
        decode = _COMMANDS[code]
    except KeyError:
        raise LocalProtocolError(f"unknown command {bytes((code,))!r}") from None
    return decode(payload)


def decode_response(code: int, payload: bytes) -> AnyResponse:
    """Read a milter's packet.

    Raises:
        LocalProtocolError: unknown code, or a payload that this response cannot have.
    """
    try:
        decode = _RESPONSES[code]
    except KeyError:
        raise LocalProtocolError(f"unknown response {bytes((code,))!r}") from None
    return decode(payload)
