"""The settings of a milter server: its limits, and what it negotiates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

from milterchain.milter.filter import Milter, derived_protocol
from milterchain.milter.flags import ALL_ACTIONS, DATA_SIZE_64K, Action, Protocol, Stage
from milterchain.milter.macros import spelled
from milterchain.milter.messages import OptNeg
from milterchain.milter.negotiation import MAX_VERSION, MIN_VERSION, answer_as_milter

__all__ = ["NegotiationCallback", "NegotiationOptions", "ServerOptions"]

NegotiationCallback: TypeAlias = Callable[[OptNeg, OptNeg], OptNeg]
"""From an MTA's offer and the answer that was worked out to the answer that is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Limits of a milter server; times are in seconds.

    Attributes:
        connections: how many at most; more are closed at once. Postfix opens one for each SMTP session.
        negotiation_timeout: until an MTA has offered its options, which it does at once.
        idle_timeout: the read timeout: how long an MTA may be silent. SMTP clients may be slow, and MTAs do
            not say that they are waiting; libmilter's default is the same.
        handler_timeout: that one event may take in the filter; Postfix waits 300 s in the content stage and
            less elsewhere. `Milter.progress` starts it again.
        write_timeout: that an MTA may take to read what was sent.
        close_timeout: that `Milter.abort` and `Milter.close` may take; a server that stops waits for them.
            A method that goes on though it was cancelled is cancelled again each time that it has passed.

    Raises:
        ValueError: a limit is not above 0; `math.inf` is a time without end.
    """

    connections: int = 1000
    negotiation_timeout: float = 30
    idle_timeout: float = 7210
    handler_timeout: float = 300
    write_timeout: float = 60
    close_timeout: float = 10

    def __post_init__(self) -> None:
        if self.connections < 1:
            raise ValueError(f"connections: {self.connections}, 1 is the least")
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:  # not a number is not above 0 either
                raise ValueError(f"{field.name}: {value} s, a timeout is longer than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiationOptions:
    """What a milter server negotiates. What is given here wins over what its filters say of themselves.

    Attributes:
        min_version: the oldest protocol version, from 2; older MTAs are refused.
        max_version: the newest, up to 6; newer MTAs are answered with it.
        actions: what the filters must be allowed to do: an MTA that does not offer all of it is refused.
            None: `Milter.actions`.
        optional_actions: what they would do besides, as far as the MTA offers it.
            None: `Milter.optional_actions`.
        protocol: the very bits to ask for, as far as the MTA offers them, NO_* and NO_REPLY_* too.
            None: what follows from the methods that the filter overrides, and `Milter.protocol`.
        macros: for each stage the names of the macros to ask for, with or without braces, instead of what
            MTAs send by default; an empty sequence asks for none. None: `Milter.wanted_macros`.
        max_data: the longest payload in bytes to use (65535, 2^18-1 or 2^20-1), as far as it was offered.
        callback: has the last word on the answer; for experts. It may raise `NegotiationError` to refuse
            the MTA. What the MTA did not offer in version and actions stays impossible.
    """

    min_version: int = MIN_VERSION
    max_version: int = MAX_VERSION
    actions: Action | None = None
    optional_actions: Action | None = None
    protocol: Protocol | None = None
    macros: Mapping[Stage, Sequence[bytes]] | None = None
    max_data: int = DATA_SIZE_64K
    callback: NegotiationCallback | None = None

    def __post_init__(self) -> None:
        if not MIN_VERSION <= self.min_version <= self.max_version <= MAX_VERSION:
            raise ValueError(
                f"no versions {self.min_version} to {self.max_version}, {MIN_VERSION} to {MAX_VERSION} exist"
            )
        if self.max_data < DATA_SIZE_64K:
            raise ValueError(f"payloads of {self.max_data} bytes: {DATA_SIZE_64K} must always be possible")

    def answer(self, offer: OptNeg, milter: Milter | type[Milter] | None) -> OptNeg:
        """Answer an MTA's offer.

        Args:
            offer: what the MTA sent.
            milter: the filter, or its class; None if it is not known yet: then every event is asked for, and
                whatever the MTA allows.

        Raises:
            NegotiationError: the MTA is too old, or lacks an action.
        """
        macros = self.macros
        if milter is not None:
            kind = milter if isinstance(milter, type) else type(milter)
            actions, optional = milter.actions, milter.optional_actions
            protocol = milter.protocol | derived_protocol(kind)
            macros = milter.wanted_macros if macros is None else macros
        else:
            actions, optional, protocol = Action(0), ALL_ACTIONS ^ Action.SET_MACRO_LIST, Protocol.SKIP
        answer = answer_as_milter(
            offer,
            actions=actions if self.actions is None else self.actions,
            optional=optional if self.optional_actions is None else self.optional_actions,
            protocol=protocol if self.protocol is None else self.protocol,
            macros={stage: tuple(map(spelled, names)) for stage, names in (macros or {}).items()},
            min_version=self.min_version,
            max_version=self.max_version,
            max_data=self.max_data,
        )
        return answer if self.callback is None else self.callback(offer, answer)
