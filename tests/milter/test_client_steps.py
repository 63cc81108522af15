"""What `MtaSession` never asks of its link; the rest is shown by its tests."""

import pytest

from milterchain.errors import LocalProtocolError, RemoteProtocolError
from milterchain.milter.client_steps import SteppedSession
from milterchain.milter.endpoint import parse_endpoint
from milterchain.milter.flags import ALL_ACTIONS, Command, Protocol
from milterchain.milter.framing import encode_packet
from milterchain.milter.messages import Connect, Continue, Mail, OptNeg, Rcpt
from milterchain.testing import ScriptedMilter

BODY = encode_packet(Command.BODY, b"text")


async def with_envelope(milter: ScriptedMilter) -> SteppedSession:
    session = await SteppedSession.open(parse_endpoint(milter.endpoint))
    for command in (Connect(hostname=b"client.test"), Mail(b"<a@b>"), Rcpt(b"<c@d>")):
        reply = session.command(command)
        assert reply is not None
        assert await reply == Continue()
    return session


async def test_a_piece_that_is_too_long() -> None:
    async with ScriptedMilter() as milter:
        session = await with_envelope(milter)
        with pytest.raises(LocalProtocolError, match="BODY of more than 65535 bytes"):
            await session.piece(Command.BODY, encode_packet(Command.BODY, bytes(65536)), session.outcome())
        assert await session.piece(Command.BODY, BODY, session.outcome())
        await session.quit()


async def test_a_piece_after_what_nobody_asked_for() -> None:
    async with ScriptedMilter({Command.RCPT: [Continue(), b"\0"]}) as milter:
        session = await with_envelope(milter)
        await session.wait_closed()
        with pytest.raises(RemoteProtocolError, match="1 bytes came unasked"):
            await session.piece(Command.BODY, BODY, session.outcome())


async def test_a_piece_that_was_declined() -> None:
    answer = OptNeg(version=6, actions=ALL_ACTIONS, protocol=Protocol.NO_BODY)
    async with ScriptedMilter(negotiate=answer) as milter:
        session = await with_envelope(milter)
        assert not await session.piece(Command.BODY, BODY, session.outcome())
        assert session.in_message
        await session.quit()
