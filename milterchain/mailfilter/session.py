"""The filter of one SMTP session: collects what the MTA sends, has the function decide, makes the changes.

A decision that comes before the end of a message is kept until then if changes go with it: only there they
can be made. One at CONNECT or HELO is kept for every message of the session.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from milterchain.errors import CloseConnectionError
from milterchain.mail.header_list import HeaderList
from milterchain.mailfilter.changes import Changes, changes_of, check_changes, send_changes
from milterchain.mailfilter.decision import ACCEPT, DISCARD, REJECT, TEMPFAIL, Decision
from milterchain.mailfilter.incoming import IncomingMessage
from milterchain.mailfilter.negotiation import decision_command
from milterchain.mailfilter.options import DecideAt, FilterOptions, OnError
from milterchain.mailfilter.parties import Recipient, Sender
from milterchain.mailfilter.running import MTALeftError, run_with_progress
from milterchain.mailfilter.session_facts import MTA, Connection, Helo, macro_text
from milterchain.mailfilter.transaction import Transaction
from milterchain.mailfilter.validation import RecipientCheck
from milterchain.milter.filter import Milter, reply
from milterchain.milter.flags import Command
from milterchain.milter.messages import Accept, Connect, Reply, Skip
from milterchain.milter.modifier import Modifier

__all__ = ["Decide", "FilterSession"]

_log = logging.getLogger("milterchain.mailfilter")

Decide: TypeAlias = Callable[[Transaction], Awaitable[Decision]]
"""A filter: one async function."""

_TOO_LARGE = reply(552, "5.3.4", "Message too large")
_TOO_MANY = reply(452, "4.5.3", "Too many recipients")
_ON_ERROR = {OnError.ACCEPT: ACCEPT, OnError.TEMPFAIL: TEMPFAIL, OnError.REJECT: REJECT}


class _Outcome(NamedTuple):
    """What the function decided."""

    transaction: Transaction
    decision: Decision
    changes: Changes


class FilterSession(Milter):
    """Serves one SMTP session of one MTA."""

    def __init__(self, function: Decide, options: FilterOptions) -> None:
        self._function = function
        self._options = options
        self._mta = MTA()
        self._client = Connection()
        self._greeting = Helo()
        self._incoming: IncomingMessage | None = None
        self._outcome: _Outcome | None = None
        self._for_session = options.decide_at <= DecideAt.HELO

    # Events

    async def connect(self, client: Connect) -> Reply | None:
        """Remember who is there."""
        self._mta = MTA.from_macros(self.macros)
        self._client = Connection.from_milter(client, self.macros)
        return await self._decide_early(Command.CONNECT)

    async def helo(self, name: bytes) -> Reply | None:
        """Remember how it greets."""
        self._greeting = Helo.from_milter(name, self.macros)
        return await self._decide_early(Command.HELO)

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> Reply | None:
        """Begin a message."""
        self._forget_message()
        self._incoming = IncomingMessage(
            self._options,
            Sender.from_milter(sender, args, self.macros, sendmail=self._mta.is_sendmail),
        )
        return await self._decide_early(Command.MAIL)

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> Reply | None:
        """Take a recipient, if the validator does."""
        incoming = self._collecting()
        known = Recipient.from_milter(recipient, args, self.macros)
        if not incoming.has_room(known):
            return _TOO_MANY
        refusal = await self._validate(incoming.sender, known)
        if refusal is None:
            incoming.add_recipient(known)
        return refusal

    async def data(self) -> Reply | None:
        """The envelope is complete."""
        return await self._decide_early(Command.DATA)

    async def header(self, name: bytes, value: bytes) -> Reply | None:
        """Collect a header."""
        if self._options.decide_at < DecideAt.END_OF_HEADERS:
            return None
        incoming = self._collecting()
        incoming.headers.add(name, value)
        return self._too_large(incoming)

    async def end_of_headers(self) -> Reply | None:
        """The headers are complete."""
        return await self._decide_early(Command.END_OF_HEADERS)

    async def body(self, chunk: bytes) -> Reply | None:
        """Collect a piece of the body."""
        if not self._options.takes_body:
            return None
        incoming = self._collecting()
        incoming.body.add(chunk)
        return self._too_large(incoming) or (Skip() if incoming.body.over else None)

    async def end_of_message(self, modifier: Modifier) -> Reply | None:
        """Decide at last, and make the changes."""
        try:
            outcome = self._outcome = self._outcome or await self._decide()
            await send_changes(outcome.changes, modifier)
            return outcome.decision.reply
        finally:
            self._forget_message()

    async def abort(self) -> None:
        """Forget the message."""
        self._forget_message()

    async def close(self) -> None:
        """Forget all."""
        self._forget_message()
        self._forget_outcome()

    # Decisions

    async def _decide_early(self, command: Command) -> Reply | None:
        """Decide, if this is the point, and tell the MTA as far as it can be told now."""
        if command is not decision_command(self._options.decide_at, self.negotiated.version):
            return None
        self._forget_outcome()
        outcome = await self._decide()
        decision = outcome.decision
        self._outcome = outcome
        if not decision.accepts:
            # MTAs take no notice of a DISCARD that does not concern a message.
            return None if self._for_session and decision == DISCARD else decision.reply
        # After HELO there may be another one, and after MAIL there are recipients to validate.
        more = command is Command.HELO or self._options.validate_recipient is not None
        return None if outcome.changes or (more and command is not Command.DATA) else Accept()

    async def _decide(self) -> _Outcome:
        """Have the function decide on what is here."""
        transaction = self._transaction()
        try:
            work = self._function(transaction)
            decision = await run_with_progress(work, self.progress, self._options.time_limit)
            if not isinstance(decision, Decision):
                raise TypeError(f"a filter returns a Decision, not {decision!r}")  # noqa: TRY301
            changes = changes_of(transaction, decision)
            check_changes(changes, self.negotiated)
        except (CloseConnectionError, MTALeftError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever its author did not think of
            return _Outcome(transaction, self._failed(error), Changes())
        _log.debug("%r: %s", transaction, decision)
        return _Outcome(transaction, decision, changes)

    async def _validate(self, sender: Sender, recipient: Recipient) -> Reply | None:
        """Have the validator decide; what the MTA is told if it refuses."""
        validate = self._options.validate_recipient
        if validate is None:
            return None
        check = RecipientCheck(
            mta=self._mta, connection=self._client, helo=self._greeting, sender=sender, recipient=recipient
        )
        try:
            decision = await run_with_progress(validate(check), self.progress, self._options.time_limit)
            if decision != ACCEPT and (decision.accepts or decision == DISCARD):
                raise ValueError(f"{decision} is no decision on one recipient")  # noqa: TRY301
        except (CloseConnectionError, MTALeftError):
            raise
        except Exception as error:  # noqa: BLE001 - as above
            decision = self._failed(error)
        return None if decision == ACCEPT else decision.reply

    def _failed(self, error: Exception) -> Decision:
        """What is decided instead."""
        policy = self._options.on_error
        known = self._queue_id or "none yet"
        _log.error("the filter failed (queue id: %s), hence %s", known, policy.value, exc_info=error)
        if policy is OnError.CLOSE:
            raise CloseConnectionError("the filter failed") from error
        return _ON_ERROR[policy]

    # State

    @property
    def _queue_id(self) -> str:
        return macro_text(self.macros, b"i")

    def _transaction(self) -> Transaction:
        """What there is of the message, as the function sees it."""
        point = self._options.decide_at
        incoming = self._incoming
        takes_body = self._options.takes_body
        return Transaction(
            mta=self._mta,
            connection=self._client,
            helo=self._greeting,
            sender=incoming.sender if incoming and point >= DecideAt.MAIL else None,
            recipients=incoming.recipients if incoming and point >= DecideAt.DATA else None,
            headers=HeaderList(
                incoming.headers.items if incoming else (), leading_space=self.negotiated.leading_space
            ),
            body=incoming.body.writer.finish() if incoming and takes_body else None,
            queue_id=self._queue_id,
            cut_short=incoming is not None and incoming.cut_short,
            macros=self.macros,
            spool=self._options.body.spool if self._options.body else None,
        )

    def _collecting(self) -> IncomingMessage:
        """The message that has begun, for the MTA that says nothing of a sender, too."""
        if self._incoming is None:
            self._incoming = IncomingMessage(self._options, Sender(b""))
        return self._incoming

    def _too_large(self, incoming: IncomingMessage) -> Reply | None:
        if not incoming.refused:
            return None
        self._forget_message()
        return _TOO_LARGE

    def _forget_message(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.close()
        if not self._for_session:
            self._forget_outcome()

    def _forget_outcome(self) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.transaction.close()
