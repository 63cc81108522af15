"""Option negotiation: what two sides agree on from an offer and its answer.

Pure functions from values to values. What cannot be agreed on is a `NegotiationError`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import or_
from types import MappingProxyType

from milterchain.errors import NegotiationError
from milterchain.milter.flags import (
    ALL_ACTIONS,
    ALL_PROTOCOL,
    DATA_SIZE_1M,
    DATA_SIZE_64K,
    DATA_SIZE_256K,
    Action,
    Command,
    Protocol,
    Stage,
)
from milterchain.milter.messages import OptNeg

__all__ = [
    "ACTION_SINCE",
    "DECLINE",
    "MAX_VERSION",
    "MIN_VERSION",
    "NO_REPLY",
    "SINCE",
    "Negotiated",
    "Offer",
    "agreement",
    "agreement_as_milter",
    "answer_as_milter",
    "negotiate_as_mta",
]

MIN_VERSION = 2
MAX_VERSION = 6

DECLINE: Mapping[Command, Protocol] = MappingProxyType(
    {
        Command.CONNECT: Protocol.NO_CONNECT,
        Command.HELO: Protocol.NO_HELO,
        Command.MAIL: Protocol.NO_MAIL,
        Command.RCPT: Protocol.NO_RCPT,
        Command.DATA: Protocol.NO_DATA,
        Command.HEADER: Protocol.NO_HEADERS,
        Command.END_OF_HEADERS: Protocol.NO_END_OF_HEADERS,
        Command.BODY: Protocol.NO_BODY,
        Command.UNKNOWN: Protocol.NO_UNKNOWN,
    }
)
"""The bit by which a milter says that it does not want a command."""

NO_REPLY: Mapping[Command, Protocol] = MappingProxyType(
    {
        Command.CONNECT: Protocol.NO_REPLY_CONNECT,
        Command.HELO: Protocol.NO_REPLY_HELO,
        Command.MAIL: Protocol.NO_REPLY_MAIL,
        Command.RCPT: Protocol.NO_REPLY_RCPT,
        Command.DATA: Protocol.NO_REPLY_DATA,
        Command.HEADER: Protocol.NO_REPLY_HEADER,
        Command.END_OF_HEADERS: Protocol.NO_REPLY_END_OF_HEADERS,
        Command.BODY: Protocol.NO_REPLY_BODY,
        Command.UNKNOWN: Protocol.NO_REPLY_UNKNOWN,
    }
)
"""The bit by which a milter says that it will not answer a command. There is none for the end of message."""

SINCE: Mapping[Command, int] = MappingProxyType({Command.UNKNOWN: 3, Command.DATA: 4})
"""The version that brought a command, where it was not there from the start."""

ACTION_SINCE: Mapping[Action, int] = MappingProxyType(
    {Action.CHANGE_SENDER: 6, Action.ADD_RECIPIENT_PAR: 6, Action.SET_MACRO_LIST: 6}
)
"""The version that brought an action (mfdef.h: SMFI_V2_ACTS has the others)."""

_REPLIED = frozenset({*NO_REPLY, Command.END_OF_MESSAGE})
_CONTENT = frozenset({Command.HEADER, Command.END_OF_HEADERS, Command.BODY})

_BITS: Mapping[int, Protocol] = MappingProxyType(
    {
        2: Protocol(0x7F),
        3: Protocol(0x7F) | Protocol.NO_UNKNOWN,
        4: Protocol(0x7F) | Protocol.NO_UNKNOWN | Protocol.NO_DATA,
        5: Protocol(0x7F) | Protocol.NO_UNKNOWN | Protocol.NO_DATA,
        6: ALL_PROTOCOL,
    }
)
"""The bits that a version knows. Nobody defined 5; it gets what 4 has."""

_ANSWERS = 256
_ORDINARY = 1024
"""How many answers are remembered, and of how many bytes the longest: one for each filter in practice."""

_NOTHING = Protocol(0)
_NO_ACTION = Action(0)
_SIZES = ((Protocol.DATA_SIZE_1M, DATA_SIZE_1M), (Protocol.DATA_SIZE_256K, DATA_SIZE_256K))
_SIZE_BITS = Protocol.DATA_SIZE_256K | Protocol.DATA_SIZE_1M


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What an MTA offers.

    Attributes:
        version: 2 to 6.
        actions: what a milter may do. Milters leave when it is less than they might want.
        protocol: what a milter may decline; bits that `version` does not know are not offered.
        max_data: the longest payload that may be agreed on.
    """

    version: int = MAX_VERSION
    actions: Action = ALL_ACTIONS
    protocol: Protocol = ALL_PROTOCOL
    max_data: int = DATA_SIZE_64K

    def __post_init__(self) -> None:
        if self.version not in _BITS:
            raise NegotiationError(f"no milter protocol version {self.version}")

    def message(self) -> OptNeg:
        """The packet."""
        protocol = self.protocol & _BITS[self.version]
        if self.version >= 6:
            for bit, size in _SIZES:
                if self.max_data >= size:
                    protocol |= bit
        return OptNeg(version=self.version, actions=self.actions, protocol=protocol)


@lru_cache(512)
def _derive(version: int, protocol: int) -> tuple[frozenset[Command], frozenset[Command]]:
    """What is not sent, and what is answered. Filters answer the same in every session."""
    declined = {command for command, bit in DECLINE.items() if protocol & bit}
    declined |= {command for command, since in SINCE.items() if version < since}
    silent = {command for command, bit in NO_REPLY.items() if protocol & bit}
    return frozenset(declined), _REPLIED - declined - silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiated:
    """What both sides have agreed on.

    Attributes:
        version: of the protocol.
        actions: what the milter may do.
        protocol: what the milter declines, does not answer, and can do.
        max_data: the longest payload of a packet.
        macros: for each stage, the names that the milter asked for.
        declined: the commands that are not sent.
        answered: the commands that are sent and answered.
        leading_space: whether header values travel with the space after the colon (SMFIP_HDR_LEADSPC).
        wants_rejected_recipients: whether the milter hears of recipients that the MTA refused
            (SMFIP_RCPT_REJ).
        no_content_verdicts: whether nothing is answered between the envelope and the end of the message.
    """

    version: int
    actions: Action
    protocol: Protocol
    max_data: int = DATA_SIZE_64K
    macros: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict, hash=False)
    declined: frozenset[Command] = field(init=False, repr=False)
    answered: frozenset[Command] = field(init=False, repr=False)
    leading_space: bool = field(init=False, repr=False)
    wants_rejected_recipients: bool = field(init=False, repr=False)
    no_content_verdicts: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        declined, answered = _derive(self.version, int(self.protocol))
        object.__setattr__(self, "declined", declined)
        object.__setattr__(self, "answered", answered)
        derived = {
            "leading_space": bool(self.protocol & Protocol.LEADING_SPACE),
            "wants_rejected_recipients": bool(self.protocol & Protocol.RCPT_REJECTED),
            "no_content_verdicts": answered.isdisjoint(_CONTENT),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def wants(self, command: Command) -> bool:
        """Whether the command is sent at all."""
        return command not in self.declined

    def replies(self, command: Command) -> bool:
        """Whether the command is sent and a reply is due."""
        return command in self.answered

    def knows(self, command: Command) -> bool:
        """Whether the negotiated version has the command: if not, its macros are not sent either."""
        return self.version >= SINCE.get(command, 0)


def _max_data(protocol: int) -> int:
    return next((size for bit, size in _SIZES if protocol & bit), DATA_SIZE_64K)


def negotiate_as_mta(offer: OptNeg, answer: OptNeg) -> Negotiated:
    """Agree on a milter's answer.

    Strict where Sendmail and Postfix both are (version, actions), lenient where Postfix is: unknown protocol
    bits are ignored. Known ones hold even if they were not offered: rspamd and purepythonmilter announce
    that they will not reply whatever was offered, and then do not. A larger data size needs both.

    Raises:
        NegotiationError: a version that was not offered or does not exist, or actions that were not offered.
    """
    if not MIN_VERSION <= answer.version <= offer.version:
        raise NegotiationError(
            f"the milter answers with version {answer.version}, offered were {MIN_VERSION} to {offer.version}"
        )
    # ~ of a flag knows only the bits that have names.
    excess = int(answer.actions) & ~int(offer.actions)
    if excess:
        raise NegotiationError(
            f"the milter wants actions {excess:#x} that were not offered ({int(offer.actions):#x})"
        )
    sizes = int(offer.protocol) & int(answer.protocol) & int(_SIZE_BITS)
    return Negotiated(
        version=answer.version,
        actions=answer.actions,
        protocol=Protocol((int(answer.protocol) & int(ALL_PROTOCOL)) | sizes),
        max_data=_max_data(sizes),
        macros=answer.macros,
    )


def agreement(offer: OptNeg, answer: bytes) -> tuple[OptNeg, Negotiated]:
    """Read the payload of a milter's answer and agree on it, as `negotiate_as_mta`.

    Filters answer the same in every session: an ordinary answer is worked out once.

    Raises:
        NegotiationError: as `negotiate_as_mta`.
        LocalProtocolError: this is no answer.
    """
    return _known(offer, answer) if len(answer) <= _ORDINARY else _known.__wrapped__(offer, answer)


@lru_cache(_ANSWERS)
def _known(offer: OptNeg, answer: bytes) -> tuple[OptNeg, Negotiated]:
    message = OptNeg.decode(answer)
    return message, negotiate_as_mta(offer, message)


def agreement_as_milter(offer: OptNeg, answer: OptNeg) -> Negotiated:
    """What a milter's answer comes to: `negotiate_as_mta`, worked out once for what each session says.

    Raises:
        NegotiationError: as `negotiate_as_mta`.
    """
    return _settled(offer, answer) if not offer.macros else negotiate_as_mta(offer, answer)


_settled = lru_cache(_ANSWERS)(negotiate_as_mta)


def answer_as_milter(
    offer: OptNeg,
    *,
    actions: Action = ALL_ACTIONS,
    optional: Action = _NO_ACTION,
    protocol: Protocol = _NOTHING,
    macros: Mapping[int, Iterable[bytes]] | Mapping[Stage, Iterable[bytes]] = MappingProxyType({}),
    min_version: int = MIN_VERSION,
    max_version: int = MAX_VERSION,
    max_data: int = DATA_SIZE_64K,
) -> OptNeg:
    """Answer an MTA's offer.

    Args:
        offer: what the MTA sent.
        actions: what the milter needs; all must have been offered, and be in the version agreed on.
        optional: what the milter would use besides, as far as that holds.
        protocol: what the milter would rather not get or not answer; what was not offered, or what the
            version does not know, is left out.
        macros: what the milter asks for at each stage, sent only to an MTA that takes such lists.
        min_version: the oldest that the milter speaks.
        max_version: the newest that the milter speaks; an MTA that offers more gets this.
        max_data: the longest payload in bytes that the milter would send and take; the largest size up to
            it that was offered is taken.

    Raises:
        NegotiationError: the MTA is too old, or lacks an action.
    """
    if offer.version < min_version:
        raise NegotiationError(f"the MTA offers version {offer.version}, {min_version} is the oldest")
    version = min(offer.version, max_version)
    lists = {stage: tuple(names) for stage, names in macros.items()} if _takes_lists(offer) else {}
    offered = offer.actions & ~_too_new(version)
    actions |= optional & offered
    if lists:
        actions |= Action.SET_MACRO_LIST
    missing = int(actions) & ~int(offered)
    if missing:
        raise NegotiationError(
            f"the MTA does not offer actions {missing:#x} (only {int(offered):#x} in version {version})"
        )
    known = _BITS[version]
    if version >= 6:
        known |= _SIZE_BITS
        protocol |= next((bit for bit, size in _SIZES if size <= max_data and bit & offer.protocol), _NOTHING)
    return OptNeg(version=version, actions=actions, protocol=protocol & offer.protocol & known, macros=lists)


def _too_new(version: int) -> Action:
    """The modifications that a version does not have. Postfix takes lists of macros in any."""
    later = [action for action, since in ACTION_SINCE.items() if version < since]
    return reduce(or_, later, _NO_ACTION) & ~Action.SET_MACRO_LIST


def _takes_lists(offer: OptNeg) -> bool:
    return bool(offer.actions & Action.SET_MACRO_LIST)
