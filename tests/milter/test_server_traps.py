"""What MTAs do that filters fell over: each is a dialogue that was seen, and what must come of it."""

import logging

import pytest

from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter, reply
from milterchain.milter.flags import (
    ALL_ACTIONS,
    DATA_SIZE_1M,
    DATA_SIZE_64K,
    DATA_SIZE_256K,
    Command,
    Protocol,
)
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    Body,
    Connect,
    Continue,
    Data,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    Quit,
    Rcpt,
    Reject,
    ReplaceBody,
    TempFail,
    Unknown,
)
from milterchain.milter.negotiation import Offer
from milterchain.milter.server import MilterServer
from milterchain.milter.server_options import NegotiationOptions
from milterchain.testing import RawMta

LISTENERS = [Endpoint(host="127.0.0.1", port=0)]
CONNECT = Connect(hostname=b"h")
CONTENT = [Data(), Header(b"a", b"b"), EndOfHeaders(), Body(b"x"), EndOfMessage()]


class Diary(Milter):
    """Writes down what happens, with the macros `i` and `j`; answers as `ANSWERS` says."""

    actions = ALL_ACTIONS
    answers: dict[object, object]
    events: list[object]

    def __init_subclass__(cls, **answers) -> None:
        cls.answers = answers
        cls.events = []

    def note(self, event, *details):
        self.events.append((event, *details) if details else event)
        return self.answers.get(event)

    async def connect(self, client):
        return self.note("connect", client.hostname, self.macros.get(b"{j}"))

    async def helo(self, name):
        return self.note("helo", name)

    async def mail(self, sender, _args):
        return self.note("mail", sender, self.macros.get(b"i"), self.macros.get(b"j"))

    async def rcpt(self, recipient, _args):
        self.note("rcpt", recipient)
        return self.answers.get(recipient.decode())

    async def data(self):
        return self.note("data")

    async def header(self, _name, _value):
        return self.note("header")

    async def end_of_headers(self):
        return self.note("end_of_headers")

    async def body(self, _chunk):
        return self.note("body")

    async def end_of_message(self, modifier):
        await modifier.add_header(b"X", b"%d" % len(self.events))
        return self.note("end_of_message")

    async def unknown(self, line):
        return self.note("unknown", line)

    async def abort(self):
        self.note("abort")

    async def close(self):
        self.note("close")


async def play(kind, *dialogue):
    """Say all that the MTA says, wait for each reply, and leave; the last reply to each."""
    replies = []
    async with MilterServer(kind, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        for said in dialogue:
            if isinstance(said, Abort | Macros | Quit):
                mta.send(said)
            else:
                replies.append((await mta.answers(said))[-1])
        mta.send(Quit())
        assert await mta.closed() == b""
    assert kind.events[-1] == "close"
    assert kind.events.count("close") == 1
    return replies


async def test_postfix_says_abort_after_each_message_and_twice_at_the_end():
    class Filter(Diary): ...

    await play(Filter, CONNECT, Helo(b"c"), Mail(b"<1>"), Rcpt(b"<r>"), *CONTENT, Abort(), Abort(), Abort())
    assert "abort" not in Filter.events


async def test_postfix_says_helo_before_the_abort_that_it_brings():
    class Filter(Diary): ...

    await play(Filter, CONNECT, Helo(b"1"), Mail(b"<1>"), Helo(b"2"), Abort(), Abort(), Mail(b"<2>"), Abort())
    assert [event if isinstance(event, str) else event[:2] for event in Filter.events] == [
        ("connect", b"h"),
        ("helo", b"1"),
        ("mail", b"<1>"),
        "abort",
        ("helo", b"2"),
        ("mail", b"<2>"),
        "abort",
        "close",
    ]


async def test_sendmail_says_no_abort_after_a_message():
    class Filter(Diary): ...

    message = [Mail(b"<1>"), Rcpt(b"<r>"), *CONTENT]
    await play(Filter, CONNECT, Helo(b"c"), *message, *message, Mail(b"<3>"))
    assert Filter.events.count("end_of_message") == 2
    assert Filter.events[-2:] == ["abort", "close"]
    assert Filter.events.count("abort") == 1


async def test_sendmail_begins_anew_after_all_recipients_were_refused():
    class Filter(Diary, **{"<1>": Reject(), "<2>": reply(450, "4.2.1", "full")}): ...

    replies = await play(
        Filter, CONNECT, Mail(b"<a>"), Rcpt(b"<1>"), Rcpt(b"<2>"), Mail(b"<b>"), Rcpt(b"<3>"), *CONTENT
    )
    assert replies[2:5] == [Reject(), reply(450, "4.2.1", "full"), Continue()]
    assert [event for event in Filter.events if event == "abort" or event[0] == "mail"] == [
        ("mail", b"<a>", None, None),
        "abort",
        ("mail", b"<b>", None, None),
    ]


async def test_a_refused_recipient_does_not_end_the_transaction():
    class Filter(Diary, **{"<bad>": Reject()}): ...

    replies = await play(Filter, CONNECT, Mail(b"<>"), Rcpt(b"<1>"), Rcpt(b"<bad>"), Rcpt(b"<2>"), *CONTENT)
    assert replies == [*[Continue()] * 3, Reject(), *[Continue()] * 6]
    assert "abort" not in Filter.events


@pytest.mark.parametrize("event", ["mail", "data", "header", "end_of_headers", "body"])
@pytest.mark.parametrize("verdict", [Accept(), Reject(), TempFail(), Discard(), reply(550, None, "no")])
async def test_a_verdict_holds_for_one_message(event, verdict):
    class Filter(Diary, **{event: verdict}): ...

    message = [Mail(b"<>"), Rcpt(b"<r>"), *CONTENT]
    upto = next(place for place, said in enumerate(message) if said.code.name.lower() == event) + 1
    # As Sendmail, which says nothing more of it, and as Postfix, which says ABORT.
    replies = await play(Filter, CONNECT, *message[:upto], *message[:upto], Abort(), *message[:upto])
    assert replies.count(verdict) == 3
    assert "abort" not in Filter.events


async def test_many_messages_in_a_session_keep_its_macros_and_get_their_own():
    class Filter(Diary): ...

    def message(number):
        queue_id = b"Q%d" % number
        return [
            Macros(Command.MAIL, ((b"i", queue_id),)),
            Mail(b"<%d>" % number),
            Rcpt(b"<r>"),
            *CONTENT,
            Abort(),
        ]

    await play(
        Filter, Macros(Command.CONNECT, ((b"{j}", b"mx"),)), CONNECT, *message(1), Mail(b"<>"), *message(2)
    )
    assert [event for event in Filter.events if event[0] in {"connect", "mail"}] == [
        ("connect", b"h", b"mx"),
        ("mail", b"<1>", b"Q1", b"mx"),
        ("mail", b"<>", b"Q1", b"mx"),  # until they are sent again, as in libmilter
        ("mail", b"<2>", b"Q2", b"mx"),
    ]


async def test_commands_that_lead_nowhere_are_no_part_of_a_message():
    class Filter(Diary, unknown=reply(500, "5.5.2", "What?")): ...

    replies = await play(
        Filter, CONNECT, Unknown(b"A"), Mail(b"<>"), Unknown(b"B"), Rcpt(b"<r>"), Unknown(b"C"), *CONTENT
    )
    assert replies.count(reply(500, "5.5.2", "What?")) == 3
    assert Filter.events[-2:] == ["end_of_message", "close"]


async def test_a_filter_that_fails_passes_nothing(caplog):
    class Filter(Diary):
        async def header(self, _name, _value):
            raise ZeroDivisionError

    (*_, last) = await play(Filter, CONNECT, Mail(b"<>"), Rcpt(b"<r>"), Data(), Header(b"a", b"b"))
    assert last == TempFail()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("sent", [b"", b"\0", b"GET / HTTP/1.0\r\n\r\n"])
async def test_health_probes_do_not_fill_the_log_with_errors(sent, caplog):
    caplog.set_level(logging.DEBUG)
    async with MilterServer(Diary, LISTENERS) as server:
        async with RawMta(server.endpoints[0]) as mta:
            mta.send(sent)
        await server.shutdown(5)
        assert server.handlers_made == 0
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


@pytest.mark.parametrize(
    ("offered", "used", "size"),
    [
        (DATA_SIZE_64K, DATA_SIZE_1M, DATA_SIZE_64K),
        (DATA_SIZE_256K, DATA_SIZE_1M, DATA_SIZE_256K),
        (DATA_SIZE_1M, DATA_SIZE_64K, DATA_SIZE_64K),
        (DATA_SIZE_1M, DATA_SIZE_1M, DATA_SIZE_1M),
    ],
)
async def test_each_connection_has_its_own_data_size(offered, used, size):
    class Filter(Milter):
        actions = ALL_ACTIONS

        async def end_of_message(self, modifier):
            await modifier.replace_body(b"x" * DATA_SIZE_1M + b"y")

    options = NegotiationOptions(max_data=used)
    async with (
        MilterServer(Filter, LISTENERS, negotiation=options) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        protocol = Protocol(Offer(max_data=offered).message().protocol)
        await mta.negotiate(protocol=protocol)
        chunks = [
            len(part.chunk) for part in await mta.answers(EndOfMessage()) if isinstance(part, ReplaceBody)
        ]
    assert set(chunks[:-1]) == {size}
    assert sum(chunks) == DATA_SIZE_1M + 1


async def test_changes_leave_with_the_verdict_in_one_write():
    """Two writes cost 40 ms on TCP where an MTA delays its acknowledgements."""

    class Filter(Diary): ...

    async with MilterServer(Filter, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        for said in (CONNECT, Mail(b"<>"), Rcpt(b"<r>"), *CONTENT[:-1]):
            assert await mta.ask(said) == Continue()
        assert isinstance(await mta.ask(EndOfMessage()), AddHeader)
        assert bytes(mta._reader._buffer) == b"\0\0\0\1c"
