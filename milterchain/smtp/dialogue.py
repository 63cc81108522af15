"""The dialogue of one SMTP session: each command line gets its reply. No I/O.

Checks syntax, order and limits, keeps the state of the transaction, and asks the handler what it has to
decide.
`Dialogue.answer` never raises but on cancellation: what goes wrong becomes a reply.

STARTTLS and AUTH are the business of `milterchain.smtp.security`, XCLIENT and XFORWARD that of
`milterchain.smtp.speaker`; what EHLO offers is decided in `milterchain.smtp.offer`. BDAT has methods of its
own (`chunk`, `chunk_end`), because a chunk follows it.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.smtp import answers, offer
from milterchain.smtp.budget import Budget
from milterchain.smtp.chunking import BDAT_FIRST, NOT_ANNOUNCED, Chunk, Chunks, taken
from milterchain.smtp.data import MessageReceiver
from milterchain.smtp.grammar import parse_command, parse_helo, parse_mail, parse_rcpt
from milterchain.smtp.handler import SessionHandler
from milterchain.smtp.offer import is_binary
from milterchain.smtp.options import Listener, ServerOptions
from milterchain.smtp.security import Security
from milterchain.smtp.speaker import Speaker
from milterchain.smtp.tls import TLSSession

__all__ = ["MAX_COMMAND", "Dialogue"]

MAX_COMMAND = 2048
"""Octets of a command line without its end (Postfix line_length_limit). RFC 5321 asks for 512, and for more
with each extension."""

_logger = logging.getLogger(__name__)


class Dialogue:
    """The server's side of one SMTP session.

    Args:
        handler: decides.
        options: of the server.
        listener: that took the client; None is one without TLS and login.
        speaker: the client, and for whom it may speak; None if for nobody else.

    Attributes:
        handler: decides now; XCLIENT brings another.
        in_transaction: MAIL was accepted, and neither a message nor RSET has ended it.
        awaits_data: the last reply was 354; `message` comes next.
        over: the last reply was the last one of this session.
        budget: what the client has got wrong.
        security: TLS and login; if it awaits TLS, `secured` comes next.
        chunks: what has come by BDAT.
    """

    __slots__ = (
        "_accepted",
        "_binary",
        "_esmtp",
        "_mails",
        "_offer",
        "_options",
        "_refused",
        "_smtputf8",
        "_speaker",
        "awaits_data",
        "budget",
        "chunks",
        "handler",
        "in_transaction",
        "over",
        "security",
    )

    def __init__(
        self,
        handler: SessionHandler,
        options: ServerOptions,
        listener: Listener | None = None,
        speaker: Speaker | None = None,
    ) -> None:
        self.handler = handler
        self.in_transaction = False
        self.awaits_data = False
        self.over = False
        self.budget = Budget(options)
        self.security = Security(handler, listener)
        self.chunks = Chunks()
        self._options = options
        self._speaker = speaker
        self._esmtp: bool | None = None  # None before HELO and EHLO
        self._refused = False
        self._offer = offer.NOTHING
        self._smtputf8 = False
        self._binary = False
        self._mails = 0
        self._accepted = 0

    @property
    def esmtp(self) -> bool:
        """EHLO was accepted: the client may send commands in groups."""
        return bool(self._esmtp)

    @property
    def size_limit(self) -> int:
        """Octets of a message, as last offered."""
        return self._offer.size or self._options.message_size

    @property
    def exhausted(self) -> bool:
        """So many errors that the session should be closed."""
        return self.budget.exhausted or self.security.exhausted

    def delay(self, reply: Reply) -> float:
        """Seconds for which a reply is kept back, to slow down who only makes mistakes."""
        return max(self.budget.delay(reply), self.security.delay(reply))

    async def greeting(self) -> Reply:
        """The first reply, before any command."""
        try:
            reply = await self.handler.connect()
        except Exception:
            _logger.exception("the handler failed at connect")
            reply = answers.UNUSABLE
        self._refused = reply is not None and not reply.positive
        if reply is None:
            return Reply(220, (self._options.hostname + b" ESMTP",))
        self.over = reply.closes
        return reply

    async def secured(self, session: TLSSession) -> None:
        """The handshake is done: all that the client has said is forgotten (RFC 3207 section 4.2).

        If the handler fails, the session is over: it could not tell milters the truth.
        """
        self._esmtp = None
        self._offer = offer.NOTHING
        self._speak_for_itself()
        await self.security.secured(session)

    async def answer(self, line: bytes) -> Reply:
        """The reply to a command, given without its line end."""
        return await self._guarded(self._dispatch(line))

    async def chunk(self, chunk: Chunk) -> Reply:
        """Whether the chunk that comes now is wanted: if the answer is positive, `chunk_end` comes next.

        Else it is the reply, after the chunk.
        """
        if (refusal := self.chunks.refusal) is not None and self.security.refusal(b"BDAT") is None:
            if not self.chunks.repeat(last=chunk.last):
                self.budget.count(refusal)
            return refusal
        reply = await self._guarded(self._chunk())
        if not reply.positive:
            self.chunks.refuse(reply, last=chunk.last)
        return reply

    async def chunk_end(self, chunk: Chunk) -> Reply:
        """The reply to a chunk that has come in completely."""
        receiver = self.chunks.receiver
        assert receiver is not None, "the chunk was wanted"
        if chunk.last:
            receiver.end()
            return await self.message(receiver.finish())
        if receiver.refusal is None:
            return taken(chunk) if chunk.size else self.budget.junk(taken(chunk))
        reply = receiver.refusal
        await self._reset(reply)
        self.chunks.refuse(reply, last=False)
        self.budget.count(reply)
        return reply

    async def _guarded(self, answering: Awaitable[Reply]) -> Reply:
        """Await a reply, or make one of what goes wrong, and count it."""
        try:
            reply = await answering
        except SMTPSyntaxError as error:
            reply = Reply.of(error.code, f"{error.status} {error}")
        except Exception:
            _logger.exception("the handler failed")
            await self._reset()
            reply = answers.FAILED
        self.budget.count(reply, recipients=self._accepted if self.in_transaction else 0)
        if reply.closes:
            self.over = True
        return reply

    async def message(self, received: Message | Reply) -> Reply:
        """The reply to the end of the data: the message, or why there is none."""
        self.awaits_data = False
        self.chunks.clear()
        if isinstance(received, Reply):
            reply = received
            await self._reset(reply)
        else:
            try:
                with received:
                    reply = await self.handler.message(received)
                self.in_transaction = False
                self._speak_for_itself()
            except Exception:
                _logger.exception("the handler failed at the message")
                await self._reset()
                reply = answers.FAILED
        if reply.positive:
            self.budget.clear()
        else:
            self.budget.count(reply)
        self.over = reply.closes
        return reply

    async def _dispatch(self, line: bytes) -> Reply:
        security = self.security
        if len(line) > MAX_COMMAND:
            return security.too_long() if security.exchanging else answers.LINE_TOO_LONG
        if security.exchanging:
            return await security.respond(line)
        verb, argument = parse_command(line)
        refusal = security.refusal(verb)
        if refusal is not None:
            return refusal
        command = _COMMANDS.get(verb)
        if command is not None:
            return await command(self, argument)
        if verb in answers.KNOWN_COMMANDS:
            reply, self.over = answers.KNOWN_COMMANDS[verb]
            return reply
        # Milters that know of the content could be told of nothing else.
        in_content = self.chunks.receiver is not None
        return (None if in_content else await self.handler.unknown(line)) or answers.UNKNOWN

    async def _reset(self, reply: Reply | None = None) -> None:
        """End the transaction. A handler that fails even here is not asked again."""
        self.in_transaction = False
        self.chunks.clear()
        try:
            await self.handler.reset(reply)
        except Exception:
            _logger.exception("the handler failed at reset")
        self._speak_for_itself()

    def _speak_for_itself(self) -> None:
        """Forget what XFORWARD told."""
        if self._speaker is not None and self._speaker.forget():
            self.handler.forward(None)

    async def _helo(self, argument: bytes) -> Reply:
        return await self._greet(argument, esmtp=False)

    async def _ehlo(self, argument: bytes) -> Reply:
        return await self._greet(argument, esmtp=True)

    async def _greet(self, argument: bytes, *, esmtp: bool) -> Reply:
        name = parse_helo(argument)
        if self.in_transaction:
            await self._reset()
        self._speak_for_itself()
        reply = await self.handler.helo(name, esmtp)
        if reply is not None and not reply.positive:
            return reply
        again, self._esmtp = self._esmtp is not None, esmtp
        first = self._options.hostname if reply is None else reply.lines[0]
        self.chunks.clear()
        if not esmtp:
            self._offer = offer.NOTHING
        elif self._refused or self.handler.minimal_ehlo:
            self._offer = offer.MINIMAL
        else:
            self._offer = offer.make(self._options, self.handler.features(), self.security, self._speaker)
        answer = Reply(250, (first, *self._offer.keywords))
        return self.budget.junk(answer) if again else answer

    async def _mail(self, argument: bytes) -> Reply:
        if self._esmtp is None:
            return answers.HELO_FIRST
        if self.in_transaction:
            return answers.NESTED_MAIL
        self.chunks.clear()
        path, params = parse_mail(argument, self._offer.mail)
        refusal = self._offer.refuse(params, self.size_limit)
        if refusal is None and self._mails == self._options.mails:
            refusal = answers.TOO_MANY_MAILS
        if refusal is not None:
            return refusal
        reply = await self.handler.mail(path, params) or answers.SENDER_OK
        if not reply.positive:
            return reply
        if self._refused:
            await self._reset()
            return answers.REFUSED
        self.in_transaction = True
        self._mails += 1
        self._smtputf8 = b"SMTPUTF8" in params
        self._binary = is_binary(params)
        self._accepted = 0
        self.budget.begin()
        return reply

    async def _rcpt(self, argument: bytes) -> Reply:
        if not self.in_transaction:
            return answers.MAIL_FIRST
        if self.chunks.receiver is not None:
            return BDAT_FIRST
        path, params = parse_rcpt(argument, self._offer.rcpt, smtputf8=self._smtputf8)
        if self._accepted >= self._options.recipients:
            return answers.TOO_MANY_RECIPIENTS
        reply = await self.handler.rcpt(path, params) or answers.RECIPIENT_OK
        if reply.positive:
            self._accepted += 1
        return reply

    async def _data(self, argument: bytes) -> Reply:
        if argument:
            raise SMTPSyntaxError("Syntax: DATA")
        if not self.in_transaction:
            return answers.RCPT_FIRST
        if self.chunks.receiver is not None:
            return BDAT_FIRST
        if self._binary:
            return answers.BINARY_BY_DATA
        reply = await self._begin_content()
        self.awaits_data = reply.positive
        return reply

    async def _chunk(self) -> Reply:
        unready = None if self.in_transaction else answers.RCPT_FIRST
        unready = self.security.refusal(b"BDAT") or (unready if self._offer.chunking else NOT_ANNOUNCED)
        if unready is not None:
            return unready
        if self.chunks.receiver is not None:
            return answers.GO_AHEAD
        reply = await self._begin_content()
        if reply.positive:
            self.chunks.receiver = MessageReceiver.of(self._options, self.size_limit, binary=self._binary)
        return reply

    async def _begin_content(self) -> Reply:
        if not self._accepted:
            return answers.NO_RECIPIENTS
        reply = await self.handler.data()
        if reply is not None and not reply.positive:
            await self._reset()
            return reply
        return reply if reply is not None and reply.code == 354 else answers.GO_AHEAD

    async def _rset(self, argument: bytes) -> Reply:
        if argument:
            raise SMTPSyntaxError("Syntax: RSET")
        if self.in_transaction:
            await self._reset()
        self._speak_for_itself()
        self.chunks.clear()
        return self.budget.junk(answers.OK)

    async def _noop(self, _: bytes) -> Reply:
        return self.budget.junk(answers.OK)

    async def _help(self, _: bytes) -> Reply:
        return self.budget.junk(answers.HELP)

    async def _vrfy(self, argument: bytes) -> Reply:
        if not argument:
            raise SMTPSyntaxError("Syntax: VRFY address")
        usual = answers.REFUSED if self._refused else answers.CANNOT_VERIFY
        return self.budget.junk(await self.handler.vrfy(argument) or usual)

    async def _xclient(self, argument: bytes) -> Reply:
        """Begin again with the client that the argument tells of: the answer is a greeting."""
        if self.in_transaction:
            return answers.IN_TRANSACTION
        if self._speaker is None or not self._speaker.permitted:
            return answers.NOT_PERMITTED
        successor = await self._speaker.xclient(argument)
        if isinstance(successor, Reply):
            return successor
        self.handler = successor
        await self.security.succeed(successor, self._speaker.info.login)
        self._esmtp = None
        self._offer = offer.NOTHING
        reply = await self.greeting()
        info = self._speaker.info
        if info.helo and reply.positive:
            await self._greet(info.helo, esmtp=info.esmtp)
        return reply

    async def _xforward(self, argument: bytes) -> Reply:
        if self.in_transaction:
            return answers.IN_TRANSACTION
        if self._speaker is None or not self._speaker.permitted:
            return answers.NOT_PERMITTED
        self.handler.forward(self._speaker.xforward(argument))
        return answers.OK

    async def _etrn(self, argument: bytes) -> Reply:
        if not argument or b" " in argument:
            raise SMTPSyntaxError("Syntax: ETRN domain")
        if self.in_transaction:
            return answers.IN_TRANSACTION
        usual = answers.REFUSED if self._refused else answers.NO_QUEUE
        return await self.handler.vrfy(argument) or usual

    async def _starttls(self, argument: bytes) -> Reply:
        return self.security.starttls(argument, esmtp=self.esmtp, in_transaction=self.in_transaction)

    async def _auth(self, argument: bytes) -> Reply:
        return await self.security.auth(argument, esmtp=self.esmtp, in_transaction=self.in_transaction)

    async def _quit(self, argument: bytes) -> Reply:
        if argument:
            raise SMTPSyntaxError("Syntax: QUIT")
        self.over = True
        return answers.BYE


_COMMANDS: Final[Mapping[bytes, Callable[[Dialogue, bytes], Awaitable[Reply]]]] = {
    b"HELO": Dialogue._helo,  # noqa: SLF001 - the table of the class's own methods
    b"EHLO": Dialogue._ehlo,  # noqa: SLF001
    b"MAIL": Dialogue._mail,  # noqa: SLF001
    b"RCPT": Dialogue._rcpt,  # noqa: SLF001
    b"DATA": Dialogue._data,  # noqa: SLF001
    b"RSET": Dialogue._rset,  # noqa: SLF001
    b"NOOP": Dialogue._noop,  # noqa: SLF001
    b"HELP": Dialogue._help,  # noqa: SLF001
    b"VRFY": Dialogue._vrfy,  # noqa: SLF001
    b"ETRN": Dialogue._etrn,  # noqa: SLF001
    b"STARTTLS": Dialogue._starttls,  # noqa: SLF001
    b"AUTH": Dialogue._auth,  # noqa: SLF001
    b"XCLIENT": Dialogue._xclient,  # noqa: SLF001
    b"XFORWARD": Dialogue._xforward,  # noqa: SLF001
    b"QUIT": Dialogue._quit,  # noqa: SLF001
}
