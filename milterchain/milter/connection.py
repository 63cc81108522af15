"""One milter connection without I/O, for both roles.

`send` turns a message into bytes, `receive_data` takes bytes, `next_event` returns messages. The rules are
the tables of `state` and `negotiation`; this class moves through them. What this side may not send is a
`LocalProtocolError` and changes nothing; what the peer may not send is a `RemoteProtocolError`, after which
the connection is closed: nobody can know which reply would belong to which command.
"""

from collections import deque
from itertools import repeat
from typing import NoReturn, TypeAlias

from milterchain.errors import (
    LocalProtocolError,
    MilterError,
    NegotiationError,
    NotNegotiatedError,
    RemoteProtocolError,
    WrongStageError,
)
from milterchain.milter.flags import DATA_SIZE_1M, DATA_SIZE_64K, Command, Protocol, Response
from milterchain.milter.framing import PacketReader, encode_packet
from milterchain.milter.messages import (
    AnyCommand,
    AnyResponse,
    Continue,
    Macros,
    OptNeg,
    decode_command,
    decode_response,
)
from milterchain.milter.negotiation import Negotiated, agreement, agreement_as_milter
from milterchain.milter.state import (
    FINAL,
    IDLE_AFTER,
    NO_MOVES,
    PERMISSION,
    PIPELINED,
    RESPONSES,
    TOLERATED,
    Role,
    State,
    moves,
    transitions,
)

__all__ = ["MAX_COMMAND", "MAX_RESPONSE", "Connection", "Event"]

MAX_COMMAND = DATA_SIZE_1M
"""The longest payload that a milter takes: the largest that can be negotiated."""
MAX_RESPONSE = 64 * 1024 * 1024
"""The longest payload that an MTA takes: rspamd sends a whole new body in one packet."""

Event: TypeAlias = AnyCommand | AnyResponse

_CONTINUE = encode_packet(Response.CONTINUE)
# Members of enumerations under names of their own: to look them up costs much in Python 3.11.
_MTA, _MILTER = Role.MTA, Role.MILTER
_START, _OFFERED, _NEW = State.START, State.OFFERED, State.NEW
_IDLE, _CLOSED = State.IDLE, State.CLOSED
_ABORT, _END_OF_MESSAGE, _MACRO = Command.ABORT, Command.END_OF_MESSAGE, Command.MACRO
_RESTARTS = frozenset({Command.HELO, Command.MAIL})
_NAMES = {int(code): code.name for code in (*Command, *Response)}
_UNDECLINED = transitions(frozenset())
_IN_MESSAGE = (PIPELINED | {Command.RCPT, Command.DATA}) - {Command.MAIL}


class Connection:
    """The protocol state of one connection.

    Attributes:
        role: which side this is.
        state: how far the connection has come.
        negotiated: what was agreed on, None before.
        packets: what was received and is no event yet; who receives much may feed it itself.
    """

    __slots__ = (
        "_answered",
        "_moves",
        "_offer",
        "_outstanding",
        "_table",
        "negotiated",
        "packets",
        "role",
        "state",
    )

    def __init__(self, role: Role, *, max_payload: int | None = None) -> None:
        if max_payload is None:
            max_payload = MAX_RESPONSE if role is _MTA else MAX_COMMAND
        self.role = role
        self.state = _START
        self.negotiated: Negotiated | None = None
        self.packets = PacketReader(max_payload)
        self._outstanding: deque[int] = deque()
        self._answered: frozenset[Command] = frozenset({Command.OPTNEG})
        self._table = _UNDECLINED
        self._moves = NO_MOVES
        self._offer: OptNeg | None = None

    @property
    def outstanding(self) -> int:
        """How many commands await their final reply."""
        return len(self._outstanding)

    @property
    def awaited(self) -> int | None:
        """The command that the next reply belongs to."""
        return self._outstanding[0] if self._outstanding else None

    @property
    def unread(self) -> int:
        """Bytes received that are no event yet."""
        return len(self.packets.unread)

    def send(self, message: Event) -> bytes:
        """Take a message to be sent and return its bytes.

        Raises:
            LocalProtocolError: the message is not legal here, or longer than negotiated.
            RemoteProtocolError: (MTA) a command is to be sent, but the peer sent something unasked before;
                read as the reply to this command it would be believed.
        """
        payload = message.encode()
        limit = DATA_SIZE_64K if self.negotiated is None else self.negotiated.max_data
        if len(payload) > limit:
            raise LocalProtocolError(
                f"{type(message).__name__} of {len(payload)} bytes, {limit} are the most"
            )
        if self.role is _MILTER:
            self._respond(message)
        elif isinstance(message, Macros):
            self._may_define_macros()
        else:
            self.advance(message.code)
            if isinstance(message, OptNeg):
                self._offer = message
        return encode_packet(message.code, payload)

    def advance(self, command: int, count: int = 1) -> None:
        """Note that the MTA sends a command that somebody else encoded.

        Args:
            command: its code.
            count: how often: more than once only for headers and pieces of the body.

        Raises:
            LocalProtocolError: as `send`.
            RemoteProtocolError: as `send`.
        """
        if self._outstanding:
            due = self._outstanding[-1]
            if command not in PIPELINED or due not in PIPELINED or due == _END_OF_MESSAGE:
                raise LocalProtocolError(f"{_name(command)} before the reply to {_name(due)} came")
        elif self.packets.unread and self.state is not _CLOSED:
            self._refuse(f"{self.unread} bytes came unasked")
        after = self._table[self.state].get(command)
        if after is None:
            raise LocalProtocolError(f"{_name(command)} is not possible now: {self.state.value}")
        self.state = after
        if command not in self._answered:
            return
        if count == 1:
            self._outstanding.append(command)
        else:
            self._outstanding.extend(repeat(command, count))

    def proceed(self) -> bytes:
        """(milter) Take a Continue to be sent, the usual reply: the same as `send`.

        Raises:
            LocalProtocolError: as `send`.
        """
        if self._outstanding and self.state is not _CLOSED and self.role is _MILTER and self.negotiated:
            # To every command it is a legal reply, and it changes no state.
            self._outstanding.popleft()
            return _CONTINUE
        return self.send(Continue())

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer; a view is of memory that may change afterwards."""
        self.packets.feed(data)

    def next_event(self) -> Event | None:
        """The next message from the peer.

        A milter gets the next command only after it has answered the former, as with libmilter; also like
        there, commands of a message that already has its verdict vanish.

        Returns:
            None when more bytes are needed, a reply is due, or the connection is closed.

        Raises:
            RemoteProtocolError: the peer sent what it may not; the connection is closed.
            NegotiationError: (MTA) the milter's answer cannot be agreed on; the connection is closed.
        """
        if self.state is _CLOSED:
            return None
        try:
            if self.role is _MTA:
                return self._next_response()
            packet = self.next_command()
            return None if packet is None else decode_command(*packet)
        except LocalProtocolError as error:
            self.state = _CLOSED
            raise RemoteProtocolError(str(error)) from error
        except MilterError:
            self.state = _CLOSED
            raise

    def next_command(self) -> tuple[int, bytes] | None:
        """(milter) The next command as its code and its payload, which nobody has read yet.

        Otherwise as `next_event`, which makes a value of each: a server has no use for most of them.
        """
        try:
            while not self._outstanding and self.state is not _CLOSED:
                packet = self.packets.next_packet()
                if packet is None:
                    return None
                code = packet[0]
                move = self._moves[self.state].get(code)
                if move is None:
                    packet = self._judge(code, packet[1])
                    if packet is None:
                        continue
                else:
                    self.state, due = move
                    if due:
                        self._outstanding.append(code)
                return packet
        except LocalProtocolError as error:
            self.state = _CLOSED
            raise RemoteProtocolError(str(error)) from error
        except MilterError:
            self.state = _CLOSED
            raise
        return None

    def continues(self) -> int:
        """(MTA) Take the plain Continue replies to content before the end of the message, all at once.

        Returns:
            How many there were. They change no state, so that nobody needs to see each.
        """
        outstanding = self._outstanding
        if self.state is _CLOSED or not outstanding or outstanding[0] not in PIPELINED:
            return 0
        most = len(outstanding) - (outstanding[-1] == _END_OF_MESSAGE)
        count = self.packets.skip(_CONTINUE, most)
        for _ in range(count):
            outstanding.popleft()
        return count

    def continued(self, data: bytes) -> bool:
        """(MTA) Take bytes from the peer if they are one Continue, the reply to the only command sent.

        The usual reply, and the whole of what comes with it: the same as `receive_data` and `next_event`.

        Returns:
            Whether they were; if not, nothing was taken.
        """
        if data != _CONTINUE or len(self._outstanding) != 1 or self.packets.unread:
            return False
        if self.negotiated is None or self.state is _CLOSED:
            return False
        self._outstanding.popleft()
        return True

    def close(self) -> None:
        """Note that the connection is over."""
        self.state = _CLOSED

    # The MTA's side

    def _may_define_macros(self) -> None:
        if self.negotiated is None or self.state is _CLOSED:
            raise LocalProtocolError(f"macros are not possible now: {self.state.value}")
        if self._outstanding and self._outstanding[-1] not in PIPELINED:
            raise LocalProtocolError(f"macros before the reply to {_name(self._outstanding[-1])} came")

    def _next_response(self) -> AnyResponse | None:
        packet = self.packets.next_packet()
        if packet is None:
            if not self._outstanding and self.packets.unread:
                # Not waited for: it may announce any length, and an idle session may last.
                self._refuse(f"{len(self.packets.unread)} bytes came unasked")
            return None
        code, payload = packet
        if code == Response.OPTNEG and self.state is _OFFERED:
            assert self._offer is not None
            answer, negotiated = agreement(self._offer, payload)
            self._agree(negotiated)
            return answer
        response = decode_response(code, payload)
        if not self._outstanding:
            self._refuse(f"{_name(code)} came unasked")
        command = self._outstanding[0]
        if code not in RESPONSES[command]:
            self._refuse(f"{_name(code)} in reply to {_name(command)}")
        if code in FINAL:
            self._outstanding.popleft()
            if code in IDLE_AFTER.get(command, ()):
                # How many of the commands that follow get a reply differs between implementations.
                self.state = _CLOSED if self._outstanding else _IDLE
        return response

    # The milter's side

    def _judge(self, code: int, payload: bytes) -> tuple[int, bytes] | None:
        """Move on by an unusual command; what it comes to, None if it vanishes."""
        if code == _MACRO:
            if self.negotiated is None:
                self._refuse("macros before option negotiation")
            return code, payload
        command = decode_command(code, payload)
        after = self._table[self.state].get(code)
        if after is None:
            after = TOLERATED.get(self.state, {}).get(code)
            if after is None:
                if self.state is _IDLE and code in _IN_MESSAGE:
                    return None
                self._refuse(f"{_name(code)} is not possible now: {self.state.value}")
            if code in _RESTARTS:
                self.packets.put_back(code, payload)
                self.state = _IDLE
                return _ABORT, b""
        self.state = after
        if after is _OFFERED:
            assert isinstance(command, OptNeg)
            self._offer = command
        if code in self._answered:
            self._outstanding.append(code)
        return code, payload

    def _respond(self, message: Event) -> None:
        if not self._outstanding or self.state is _CLOSED:
            raise LocalProtocolError(f"{type(message).__name__} though no reply is due")
        command, code = self._outstanding[0], message.code
        if code not in RESPONSES[command]:
            raise WrongStageError(f"{type(message).__name__} is no reply to {_name(command)}")
        if isinstance(message, OptNeg):
            assert self._offer is not None
            try:
                self._agree(agreement_as_milter(self._offer, message))
            except NegotiationError as error:
                raise LocalProtocolError(str(error)) from error
            return
        assert self.negotiated is not None
        if code == Response.SKIP and not self.negotiated.protocol & Protocol.SKIP:
            raise NotNegotiatedError("SKIP was not negotiated")
        permission = PERMISSION.get(code)
        if permission is not None and not self.negotiated.actions & permission:
            raise NotNegotiatedError(f"{type(message).__name__} needs {permission.name}, not negotiated")
        if code in FINAL:
            self._outstanding.popleft()
            if code in IDLE_AFTER.get(command, ()):
                self.state = _IDLE

    # Both

    def _agree(self, negotiated: Negotiated) -> None:
        self.negotiated = negotiated
        self.state = _NEW
        self._outstanding.popleft()
        self._table = transitions(negotiated.declined)
        self._answered = negotiated.answered
        self._moves = moves(negotiated.declined, negotiated.answered)

    def _refuse(self, text: str) -> NoReturn:
        self.state = _CLOSED
        raise RemoteProtocolError(text)


def _name(code: int) -> str:
    return _NAMES.get(code) or repr(bytes((code,)))
