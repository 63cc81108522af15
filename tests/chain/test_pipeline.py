"""Content: each milter sees what those before it made, and edits count only with their verdict."""

import asyncio

import pytest

from milterchain.chain.observer import Snapshot
from milterchain.chain.verdict import Kind
from milterchain.mail.body import Body, SpoolSettings
from milterchain.mail.envelope import Path
from milterchain.mail.message import Message
from milterchain.milter import messages
from milterchain.milter.flags import Command, Protocol
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    Connect,
    Continue,
    DeleteRecipient,
    Discard,
    Header,
    Helo,
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
from milterchain.testing.faults import Close, InTurn, Late, Silence

L, N, B, E = Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE
NO = "550 5.7.1 Command rejected"
LATER = "451 4.7.1 Service unavailable - try again later"
ALL_EDITS = [
    AddHeader(b"X-Added", b"1"),
    ChangeHeader(1, b"Subject", b"changed"),
    ReplaceBody(b"new\r\n"),
    AddRecipient(b"<new@b.test>"),
    DeleteRecipient(b"<r1@b.test>"),
    ChangeSender(b"<other@a.test>"),
]


def headers(connection, since=0):
    return [(header.name, header.value) for header in connection.of(Header)][since:]


def relayed(lab):
    return b"".join(lab.outcome.message.chunks())


async def run(lab, *settings, steps="C H M R1 T E", **options):
    session = await lab.session(*settings, **options)
    heard = await lab.play(session, steps)
    return heard[-1]


async def test_each_milter_sees_what_the_former_made(lab):
    first = await lab.milter({E: [*ALL_EDITS, Accept()]})
    second = await lab.milter(
        {E: [InsertHeader(1, b"X-Second", b"2"), ReplaceBody(b"newer\r\n"), Continue()]}
    )
    third = await lab.milter()
    assert await run(lab) == "c"
    seen = [dict(headers(milter.connections[0])) for milter in (first, second, third)]
    assert seen[0][b"Subject"] == b" hello"
    assert seen[1][b"Subject"] == b"changed"
    assert seen[1][b"X-Added"] == b"1"
    assert headers(third.connections[0])[0] == (b"X-Second", b"2")
    bodies = [b"".join(piece.chunk for piece in m.connections[0].of(messages.Body)) for m in lab.milters]
    assert bodies == [b"body\r\nmore\r\n", b"new\r\n", b"newer\r\n"]
    assert relayed(lab).endswith(b"X-Added: 1\r\n\r\nnewer\r\n")
    assert lab.outcome.envelope.sender.address == b"<other@a.test>"
    assert [path.bare for path in lab.outcome.envelope.recipients] == [b"new@b.test"]
    # envelope edits are not told again
    assert [milter.connections[0].codes for milter in lab.milters] == [
        "OCHMRTLLLNBE",
        "OCHMRTLLLLNBE",
        "OCHMRTLLLLLNBE",
    ]


async def test_bytes_are_sacred(lab):
    for _ in range(2):
        await lab.milter()
    assert await run(lab) == "c"
    assert relayed(lab) == lab.raw
    assert lab.outcome.quarantine is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (Continue(), "c"),
        (Accept(), "c"),
        (Skip(), "c"),
        (Reject(), NO),
        (TempFail(), LATER),
        (ReplyCode(b"554 5.7.1 spam"), "554 5.7.1 spam"),
        (Discard(), "d"),
        (Shutdown(), "421 4.7.0 Service unavailable"),
    ],
)
async def test_edits_count_only_with_a_verdict_that_passes(lab, word, expected):
    await lab.milter({E: [AddHeader(b"X-First", b"1"), Accept()]})
    await lab.milter({E: [*ALL_EDITS, Quarantine(b"virus"), word]})
    last = await lab.milter()
    assert await run(lab) == expected
    if expected == "c":
        assert b"Subject: changed\r\n" in relayed(lab)
        assert lab.outcome.quarantine == ("m1", b"virus")
        assert last.connections[0].codes == "OCHMRTLLLLLNBE"
    else:
        assert relayed(lab) == lab.raw
        assert lab.outcome.envelope.sender == lab.sender
        assert lab.outcome.quarantine is None
        await last.wait_for(lambda: last.connections[0].codes == "OCHMRTA")


@pytest.mark.parametrize("fault", [Close(), ReplyCode(b"250 what"), Silence()])
async def test_a_failure_drops_the_edits_of_that_milter_only(lab, fault):
    await lab.milter({E: [AddHeader(b"X-First", b"1"), Accept()]})
    await lab.milter({E: [*ALL_EDITS, ReplaceBody(b"half"), fault]})
    last = await lab.milter({E: [AddHeader(b"X-Last", b"1"), Accept()]})
    patience = {"default_action": "accept", "content_timeout": 0.2}
    assert await run(lab, {}, patience) == "c"
    assert relayed(lab) == lab.raw.replace(b"\r\n\r\n", b"\r\nX-First: 1\r\nX-Last: 1\r\n\r\n")
    assert lab.outcome.envelope.recipients == (Path(b"<r1@b.test>"),)
    assert headers(last.connections[0])[-1] == (b"X-First", b"1")


async def test_the_first_who_holds_a_message_counts(lab):
    await lab.milter({E: [Quarantine(b"one"), Quarantine(b"two"), Continue()]})
    later = await lab.milter({E: [Quarantine(b"three"), Continue()]})
    assert await run(lab) == "c"
    assert lab.outcome.quarantine == ("m0", b"two")
    assert later.connections[0].codes == "OCHMRTLLLNBE"


@pytest.mark.parametrize(("header_index", "left"), [("postfix", [b"X: b\r\n"]), ("sendmail", [b"X: c\r\n"])])
async def test_how_indices_count_is_each_milters_own(lab, header_index, left):
    await lab.milter({E: [ChangeHeader(1, b"X", b""), ChangeHeader(2, b"X", b""), Continue()]})
    session = await lab.greeted({"header_index": header_index})
    outcome = await lab.send(session, raw=b"X: a\r\nX: b\r\nX: c\r\n\r\n")
    assert [header.raw for header in outcome.message.headers if header.raw] == left


async def test_the_next_milter_counts_from_what_it_sees(lab):
    await lab.milter({E: [ChangeHeader(1, b"X", b""), Continue()]})
    await lab.milter({E: [ChangeHeader(1, b"X", b"changed"), Continue()]})
    session = await lab.greeted({"header_index": "sendmail"}, {"header_index": "sendmail"})
    outcome = await lab.send(session, raw=b"X: a\r\nX: b\r\n\r\n")
    assert [header.raw for header in outcome.message.headers if header.raw] == [b"X: changed\r\n"]


@pytest.mark.parametrize(("bits", "line"), [((), b"X: v\r\n"), ((Protocol.LEADING_SPACE,), b"X:v\r\n")])
async def test_leading_space_as_negotiated(lab, bits, line):
    await lab.milter({E: [AddHeader(b"X", b"v"), Continue()]}, negotiate=lab.wants(*bits))
    assert await run(lab) == "c"
    assert line in relayed(lab)
    assert dict(headers(lab.milters[0].connections[0]))[b"Subject"] == (b"  hello" if bits else b" hello")


async def test_what_could_not_be_applied_is_reported(lab):
    await lab.milter({E: [AddHeader(b"bad name", b"v"), AddHeader(b"X", b"v"), Continue()]})
    await lab.milter()
    assert await run(lab) == "c"
    edited, plain = lab.outcome.reports
    assert len(edited.warnings) == 1
    assert b"X: v\r\n" in relayed(lab)
    assert plain.edits == ()
    assert plain.verdict.kind is Kind.CONTINUE


class Recorder:
    def __init__(self):
        self.events, self.faults, self.edits, self.bodies = [], [], [], []

    def on_event(self, milter, event, verdict, seconds):
        assert seconds >= 0
        self.events.append((milter, chr(event), verdict.kind.name))

    def on_fault(self, milter, event, error, verdict):
        self.faults.append((milter, chr(event), type(error).__name__, verdict.kind.name))

    def on_edits(self, milter, before, after, edits, warnings):
        assert isinstance(before, Snapshot)
        assert warnings == ()
        assert edits
        self.edits.append((milter, b"".join(before.message.chunks()), b"".join(after.message.chunks())))
        self.bodies += [before.message.body, after.message.body]


async def test_observer(lab):
    await lab.milter({E: [AddHeader(b"X", b"v"), Accept()]})
    await lab.milter({Command.RCPT: Close()})
    recorder = Recorder()
    assert await run(lab, {}, {"default_action": "accept"}, observer=recorder) == "c"
    assert [event for event in recorder.events if event[0] == "m0"] == [
        ("m0", letter, "ACCEPT" if letter == "E" else "CONTINUE") for letter in "OCHMRTE"
    ]
    assert recorder.faults == [("m1", "R", "MilterClosedError", "CONTINUE")]
    assert recorder.edits == [("m0", lab.raw, relayed(lab))]


async def test_an_observer_of_one_session(lab):
    await lab.milter()
    recorder = Recorder()
    session = lab.chain().session(lab.client, observer=recorder)
    assert await lab.play(session, "C U") == ["c", "c"]
    await session.close()
    assert [event[1] for event in recorder.events] == ["O", "C", "U"]


async def test_one_budget_for_all(lab):
    """Signs of progress do not stretch it, and no default action turns it into a delivery."""
    await lab.milter({E: [Progress(), Silence()]})
    last = await lab.milter()
    session = await lab.session({"default_action": "accept"}, message_timeout=0.2)
    assert (await lab.play(session, "C H M R1 T E"))[-1] == LATER
    await last.wait_for(lambda: last.connections[0].codes == "OCHMRTA")


async def test_a_budget_that_is_used_up(lab):
    milter = await lab.milter()
    session = await lab.greeted()
    envelope = await lab.transaction(session)
    now = asyncio.get_running_loop().time()
    outcome = await session.content(lab.message(), envelope, deadline=now)
    assert str(outcome.verdict.reply) == LATER
    await milter.wait_for(lambda: milter.connections[0].codes == "OCHMRTA")


async def test_a_default_action_within_the_budget(lab):
    await lab.milter({E: Silence()})
    session = await lab.session({"default_action": "accept", "content_timeout": 0.1})
    assert (await lab.play(session, "C H M R1 T E"))[-1] == "c"


async def spooled(lab):
    """Play one message with every new body in a file; the bodies before and after each edit."""
    recorder = Recorder()
    session = await lab.session(observer=recorder, spool=SpoolSettings(threshold=10))
    await lab.play(session, "C H M R1 T E")
    return recorder.bodies


async def test_bodies_in_between_are_closed(lab):
    for text in (b"one", b"two"):
        await lab.milter({E: [ReplaceBody(text * 100), Continue()]})
    original, between, _, final = await spooled(lab)
    assert final is lab.outcome.message.body
    assert bytes(final).startswith(b"twotwo")
    assert bytes(original) == b"body\r\nmore\r\n"
    with pytest.raises(ValueError, match="closed"):
        bytes(between)
    final.close()


async def test_a_new_body_of_a_refused_message_is_closed(lab):
    await lab.milter({E: [ReplaceBody(b"new" * 100), Continue()]})
    await lab.milter({E: Reject()})
    _, new = await spooled(lab)
    with pytest.raises(ValueError, match="closed"):
        bytes(new)


class Unreadable(Body):
    def chunks(self, _size):
        raise OSError("disk gone")


async def test_a_message_that_cannot_be_read_is_not_passed(lab):
    await lab.milter({E: [AddHeader(b"X", b"v"), Continue()]}, negotiate=lab.wants(Protocol.NO_BODY))
    await lab.milter()
    session = await lab.greeted()
    envelope = await lab.transaction(session)
    plain = lab.message()
    with pytest.raises(OSError, match="disk gone"):
        await session.content(Message(plain.headers, b"\r\n", Unreadable(b"x\r\n")), envelope)
    assert (await lab.play(session, "M"))[0] == LATER  # the milter that was left in the middle


@pytest.mark.parametrize("size", [1, 65533, 65534, 65535, 65536, 131070])
async def test_a_body_without_a_final_newline_is_seen_with_one(lab, size):
    milter = await lab.milter()
    session = await lab.greeted()
    await lab.send(session, raw=b"X: y\r\n\r\n" + b"a" * size)
    pieces = [piece.chunk for piece in milter.connections[0].of(messages.Body)]
    assert b"".join(pieces) == b"a" * size + b"\r\n"
    assert [len(piece) for piece in pieces[:-1]] == [65535] * (len(pieces) - 1)


async def test_an_empty_message(lab):
    milter = await lab.milter()
    session = await lab.greeted()
    assert (await lab.send(session, raw=b"")).verdict.kind is Kind.CONTINUE
    assert milter.connections[0].codes == "OCHMRTNE"


# Streaming, and the connection that is closed by it


async def test_a_verdict_in_the_stream_closes_and_reopens(lab):
    milter = await lab.milter([{N: Accept()}, {}])
    session = await lab.session()
    assert (await lab.play(session, "C H M R1 T E U A M R1 T E Q"))[-3:] == ["c", "c", ""]
    await milter.wait_closed(1)
    first, second = milter.connections
    assert first.codes == "OCHMRTLLLNBE"
    assert first.closed_by_peer
    assert second.codes == "OCHMRTLLLNBEQ"
    assert second.of(Connect) == first.of(Connect)
    assert second.of(Helo) == first.of(Helo)
    assert second.macros(Command.CONNECT) == first.macros(Command.CONNECT)


@pytest.mark.parametrize(
    ("script", "told", "codes"),
    [
        ({Command.CONNECT: Reject()}, NO, "OCQ"),
        ({Command.HELO: TempFail()}, LATER, "OCHQ"),
        ({Command.HELO: Accept()}, "c", "OCHQ"),
        ({Command.CONNECT: Close()}, "550 5.5.0 Service unavailable", "OC"),
    ],
)
async def test_verdicts_at_reopening_count(lab, script, told, codes):
    milter = await lab.milter([{N: Accept()}, script])
    session = await lab.session({"default_action": "reject"})
    assert (await lab.play(session, "C H M R1 T E M"))[-1] == told
    assert (await lab.play(session, "A M"))[-1] == told
    await milter.wait_for(lambda: milter.connections[1].closed)
    assert milter.connections[1].codes == codes
    assert len(milter.connections) == 2


@pytest.mark.parametrize(
    ("pipeline", "bits", "streamed"),
    [
        ("auto", (), True),
        ("auto", (Protocol.NO_MAIL,), False),
        (
            "auto",
            (
                Protocol.NO_MAIL,
                Protocol.NO_REPLY_HEADER,
                Protocol.NO_REPLY_END_OF_HEADERS,
                Protocol.NO_REPLY_BODY,
            ),
            True,
        ),
        ("on", (Protocol.NO_MAIL,), True),
        ("off", (), False),
    ],
)
async def test_what_is_streamed(lab, pipeline, bits, streamed):
    gate = asyncio.Event()
    held = {L: InTurn([Late(gate), Continue()], Continue())}
    if Protocol.NO_REPLY_HEADER in bits:
        held = {}
    milter = await lab.milter(held, negotiate=lab.wants(*bits))
    session = await lab.session({"pipeline": pipeline})
    async with asyncio.TaskGroup() as group:
        group.create_task(lab.play(session, "C H M R1 T E"))
        if streamed:
            await milter.wait_for(lambda: milter.connections and milter.connections[0].codes.endswith("NBE"))
        else:
            await milter.wait_for(lambda: milter.connections and milter.connections[0].codes.endswith("TL"))
        gate.set()
    assert milter.connections[0].codes.endswith("LLLNBE")


async def test_a_verdict_one_by_one_keeps_the_connection(lab):
    milter = await lab.milter({N: InTurn(Accept(), Continue())}, drops_after_verdict=True)
    session = await lab.session({"pipeline": "off"})
    await lab.play(session, "C H M R1 T E M R1 T E Q")
    connection = await milter.wait_closed()
    assert len(milter.connections) == 1
    assert connection.codes == "OCHMRTLLLNMRTLLLNBEQ"
