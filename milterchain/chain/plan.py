"""What all sessions share of one milter, worked out once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from milterchain.chain.breaker import Breaker
from milterchain.chain.idle import IdleSessions
from milterchain.chain.opening import open_session
from milterchain.chain.settings import DefaultAction, MilterSettings
from milterchain.errors import LocalProtocolError, MilterError
from milterchain.milter.client import ClientOptions, MilterSession
from milterchain.milter.flags import Command
from milterchain.milter.macros import STAGES, MacroNames, MacroTable
from milterchain.milter.negotiation import Negotiated

__all__ = ["EVENT_TIMEOUT", "MilterPlan", "streams"]

EVENT_TIMEOUT = 280.0
"""Seconds for one event, however often a milter says that it is still working: SMTP clients wait five minutes
for the answer to MAIL and RCPT (RFC 5321 4.5.3.2)."""
_CONTENT = {Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE}
_FINAL_ACTIONS = {DefaultAction.ACCEPT, DefaultAction.REJECT}
_PLANS = 256
"""How many ways to tell a milter are remembered: one for each in practice, but filters choose."""
SLACK = 2**20
"""Octets that a milter's changes may have beyond what the size of messages explains. A body that is encoded
anew, in base64 say, grows by a third; headers and a few recipients are little beside this."""


def streams(settings: MilterSettings, negotiated: Negotiated) -> bool:
    """Whether the content is sent without waiting for each reply.

    Where it may not be known whether a milter that gave its verdict in the middle still answers what follows,
    "auto" is safe in two cases: no verdict can come, or MAIL was wanted, and so libmilter has a message that
    it can be done with (else it hands the rest to its callbacks as if nothing had happened).
    """
    if settings.pipeline != "auto":
        return settings.pipeline == "on"
    return negotiated.no_content_verdicts or negotiated.wants(Command.MAIL)


class MilterPlan:
    """How to open and to tell one milter.

    Attributes:
        settings: the milter's.
        options: what is offered to it.
        idle: connections that wait for the next SMTP session; None unless they are reused.
        observed: whether the milter is only watched.
        conditions: what it is asked about.
        breaker: leaves it alone if it keeps failing; None if it never is.
        counts: what an observed milter would have done, in numbers.
    """

    __slots__ = ("_table", "breaker", "conditions", "counts", "idle", "observed", "options", "settings")

    def __init__(self, settings: MilterSettings, breaker: Breaker | None = None) -> None:
        if settings.observed:
            settings = replace(settings, default_action=DefaultAction.ACCEPT, reuse=False)
        self.settings = settings
        self.observed = settings.observed
        self.conditions = settings.conditions
        self.breaker = breaker
        self.counts: Counter[str] = Counter()
        self.options = ClientOptions(
            version=settings.version,
            connect_timeout=min(settings.connect_timeout, EVENT_TIMEOUT),
            command_timeout=settings.command_timeout,
            content_timeout=settings.content_timeout,
            max_reply=settings.message_size * 3 // 2 + SLACK,
            max_edit_bytes=settings.message_size * 2 + SLACK,
        )
        self.idle = IdleSessions() if settings.reuse else None
        self._table = MacroTable(settings.macros)

    async def open(self) -> MilterSession:
        """Connect and negotiate.

        Raises:
            MilterError: as `MilterSession.open`, or the milter is left alone.
        """
        if self.breaker is not None:
            self.breaker.enter()
        return await open_session(self.settings.endpoint, self.options)

    def failed(self, error: MilterError, event: Command) -> DefaultAction:
        """The milter failed in a session; what applies instead.

        What we cannot tell it is no failure of its own, and a client may have been after just that: the
        message waits, rather than that it passes unseen or is lost.
        """
        if self.breaker is not None:
            self.breaker.failed(error, in_content=event in _CONTENT)
        action = self.settings.default_action
        if isinstance(error, LocalProtocolError) and not self.observed and action in _FINAL_ACTIONS:
            return DefaultAction.TEMPFAIL
        return action

    def worked(self, *, in_content: bool) -> None:
        """The milter served a session, or a message, to the end."""
        if self.breaker is not None:
            self.breaker.worked(in_content=in_content)

    def keep(self, session: MilterSession) -> bool:
        """End a session, but keep its connection; as `IdleSessions.keep`."""
        return self.idle is not None and self.idle.keep(session)

    def kept(self) -> MilterSession | None:
        """A connection that was kept, if there is one."""
        if self.idle is None or (self.breaker is not None and self.breaker.resting):
            return None
        return self.idle.take()

    def macro_names(self, negotiated: Negotiated) -> Mapping[int, MacroNames]:
        """The macros that go with each command, if they are defined."""
        return _macro_names(self._table, negotiated)


@lru_cache(_PLANS)
def _macro_names(table: MacroTable, negotiated: Negotiated) -> Mapping[int, MacroNames]:
    return {command: table.names(stage, negotiated.macros.get(stage)) for command, stage in STAGES.items()}
