"""What is encoded once for all milters is what each would have been sent by itself."""

import pytest

from milterchain.chain import opening
from milterchain.chain.briefing import Briefing, MacroPackets
from milterchain.chain.plan import EVENT_TIMEOUT, MilterPlan
from milterchain.errors import LocalProtocolError, MilterConnectError
from milterchain.milter.client import ClientOptions, MilterSession
from milterchain.milter.endpoint import parse_endpoint
from milterchain.milter.flags import ALL_ACTIONS, Command, Protocol, Stage
from milterchain.milter.framing import encode_packet
from milterchain.milter.macros import MacroTable
from milterchain.milter.messages import Connect, Data, Helo, Macros, Mail, Rcpt, Unknown
from milterchain.milter.negotiation import Negotiated
from milterchain.testing.peer import refusing_address

VALUES = {b"i": b"Q1", b"j": b"mx", b"mail_addr": b"a@b", b"rcpt_addr": b"", b"client_addr": b"192.0.2.1"}
EVENTS = [
    Connect(hostname=b"c.test"),
    Helo(b"c"),
    Mail(b"<a@b>", (b"SIZE=1",)),
    Rcpt(b"<>"),
    Data(),
    Unknown(b"x"),
]
STAGES = {
    Command.CONNECT: Stage.CONNECT,
    Command.HELO: Stage.HELO,
    Command.MAIL: Stage.MAIL,
    Command.RCPT: Stage.RCPT,
    Command.DATA: Stage.DATA,
}


def plan(lab_settings, **settings):
    return MilterPlan(lab_settings("unix:/nowhere", **settings))


def negotiated(macros=None):
    return Negotiated(version=6, actions=ALL_ACTIONS, protocol=Protocol(0), macros=macros or {})


@pytest.mark.parametrize("event", EVENTS)
def test_the_same_as_by_itself(lab, event):
    asked = negotiated(dict.fromkeys(Stage, (b"{i}", b"nowhere", b"j")))
    plain = plan(lab.settings)
    more = plan(lab.settings, macros=dict.fromkeys(Stage, (b"j",)))
    briefing = Briefing(event, VALUES)
    assert briefing.packet == encode_packet(event.code, event.encode())
    for one, said in [(plain, negotiated()), (more, negotiated()), (plain, asked), (plain, negotiated())]:
        packet = briefing.macros.packet(one.macro_names(said).get(event.code, ()))
        stage = STAGES.get(event.code)
        if stage is None:
            assert packet == b""
            continue
        table = MacroTable(one.settings.macros)
        macros = table.macros_for(stage, VALUES, said.macros.get(stage))
        expected = Macros(event.code, macros)
        assert packet == (encode_packet(Command.MACRO, expected.encode()) if macros else b"")


def test_encoded_once(lab):
    names = plan(lab.settings).macro_names(negotiated())[Command.MAIL]
    assert plan(lab.settings).macro_names(negotiated())[Command.MAIL] is names
    packets = MacroPackets(Command.MAIL, VALUES)
    assert packets.packet(names) is packets.packet(names)


async def test_macros_that_nobody_can_be_told(lab):
    milter = await lab.milter()
    session = await lab.greeted({"default_action": "reject"})
    session.macros[b"i"] = b"\0"
    session.macros[b"mail_addr"] = b"\0"
    with pytest.raises(LocalProtocolError):
        MacroPackets(Command.MAIL, session.macros).packet(((b"i", b"i"),))
    session.macros[b"auth_type"] = b"\0"
    verdict = await session.mail(lab.sender, b"Q1")
    assert verdict.reply.code == 451
    await milter.wait_for(lambda: milter.connections[0].closed)
    assert milter.connections[0].codes == "OCH"


def test_no_connection_is_waited_for_longer_than_clients_wait(lab):
    assert plan(lab.settings, connect_timeout=1000).options.connect_timeout == EVENT_TIMEOUT
    assert plan(lab.settings, connect_timeout=10).options.connect_timeout == 10


@pytest.mark.parametrize(("patience", "attempts"), [(1.0, 3), (-1.0, 1)])
async def test_only_quick_refusals_are_tried_again(monkeypatch, patience, attempts):
    monkeypatch.setattr(opening, "MAX_RETRY_TIME", patience)
    tried = []
    attempt = MilterSession.open

    async def count(*args):
        tried.append(args)
        return await attempt(*args)

    monkeypatch.setattr(MilterSession, "open", count)
    with refusing_address() as (host, port), pytest.raises(MilterConnectError):
        await opening.open_session(parse_endpoint(f"inet:{port}@{host}"), ClientOptions())
    assert len(tried) == attempts
