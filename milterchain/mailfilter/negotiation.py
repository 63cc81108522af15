"""What a filter asks the MTA for, from its options alone: events, silence, macros.

Events after the decision are declined, and so are all that it does not rest on. Events before it are not
answered where the answer is known beforehand. The end of the message always comes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import or_
from types import MappingProxyType

from milterchain.mailfilter.options import DecideAt, FilterOptions
from milterchain.milter.flags import Action, Command, Protocol, Stage
from milterchain.milter.macros import DEFAULT_MACROS, spelled
from milterchain.milter.messages import OptNeg
from milterchain.milter.negotiation import DECLINE, MAX_VERSION, MIN_VERSION, NO_REPLY, SINCE
from milterchain.milter.server_options import NegotiationOptions

__all__ = ["decision_command", "macros_for", "negotiation_for", "protocol_for"]

_ENVELOPE = (Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT)

_NEEDED: Mapping[DecideAt, tuple[Command, ...]] = MappingProxyType(
    {
        DecideAt.CONNECT: _ENVELOPE[:1],
        DecideAt.HELO: _ENVELOPE[:2],
        DecideAt.MAIL: _ENVELOPE[:3],
        DecideAt.DATA: (*_ENVELOPE, Command.DATA),
        DecideAt.END_OF_HEADERS: (*_ENVELOPE, Command.HEADER, Command.END_OF_HEADERS),
        DecideAt.END_OF_MESSAGE: (*_ENVELOPE, Command.HEADER),
    }
)
"""The events that a decision rests on, the one at which it is made included."""

_POINTS: Mapping[DecideAt, Command] = MappingProxyType(
    {
        DecideAt.CONNECT: Command.CONNECT,
        DecideAt.HELO: Command.HELO,
        DecideAt.MAIL: Command.MAIL,
        DecideAt.DATA: Command.DATA,
        DecideAt.END_OF_HEADERS: Command.END_OF_HEADERS,
        DecideAt.END_OF_MESSAGE: Command.END_OF_MESSAGE,
    }
)


def decision_command(decide_at: DecideAt, version: int) -> Command:
    """The event at which the function runs: END_OF_HEADERS stands for DATA where the version has none."""
    command = _POINTS[decide_at]
    return command if version >= SINCE.get(command, 0) else Command.END_OF_HEADERS


def _wanted(options: FilterOptions, version: int) -> frozenset[Command]:
    """The events that are not declined in this version of the protocol."""
    wanted = {*_NEEDED[options.decide_at], decision_command(options.decide_at, version)}
    if options.validate_recipient is not None:
        wanted |= {*_ENVELOPE}
    if options.takes_body:
        wanted.add(Command.BODY)
    return frozenset(command for command in wanted if version >= SINCE.get(command, 0))


def protocol_for(options: FilterOptions, version: int) -> Protocol:
    """The protocol bits to wish for; those that the MTA does not offer are to be left out."""
    wanted = _wanted(options, version)
    answered = {decision_command(options.decide_at, version)}
    if options.validate_recipient is not None:
        answered.add(Command.RCPT)
    # A body beyond the limit ends with the answer to its next piece.
    answered.add(Command.BODY)
    bits = [bit for command, bit in DECLINE.items() if command not in wanted]
    bits += [bit for command, bit in NO_REPLY.items() if command in wanted and command not in answered]
    # With their first blank header values come, and are put back, byte for byte.
    return reduce(or_, bits, Protocol.SKIP | Protocol.LEADING_SPACE)


def macros_for(options: FilterOptions) -> Mapping[Stage, tuple[bytes, ...]]:
    """The macros to ask for at each stage."""
    names = {stage: (*DEFAULT_MACROS.get(stage, ()), *options.macros.get(stage, ())) for stage in Stage}
    return {stage: tuple(dict.fromkeys(map(spelled, found))) for stage, found in names.items()}


def negotiation_for(options: FilterOptions, base: NegotiationOptions) -> NegotiationOptions:
    """What a server is to negotiate for a filter; what `base` says wins."""
    wanted = protocol_for(options, MAX_VERSION)
    spare = wanted & ~protocol_for(options, MIN_VERSION)

    def answer(offer: OptNeg, answer: OptNeg) -> OptNeg:
        if base.protocol is None and answer.version < SINCE[Command.DATA]:
            answer = replace(answer, protocol=answer.protocol & ~spare)
        return answer if base.callback is None else base.callback(offer, answer)

    return replace(
        base,
        actions=Action(0) if base.actions is None else base.actions,
        optional_actions=options.actions if base.optional_actions is None else base.optional_actions,
        protocol=wanted if base.protocol is None else base.protocol,
        macros=macros_for(options) if base.macros is None else base.macros,
        callback=answer,
    )
