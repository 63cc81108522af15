"""The filter side against an MTA side that says one message at a time."""

import asyncio
import gc
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from milterchain.errors import (
    CloseConnectionError,
    LocalProtocolError,
    MilterClosedError,
    MilterConnectError,
    NotNegotiatedError,
    WrongStageError,
)
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter
from milterchain.milter.flags import ALL_ACTIONS, Action, Command, Protocol, Stage
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AddRecipient,
    Body,
    ChangeHeader,
    ChangeSender,
    Connect,
    ConnFail,
    Continue,
    Data,
    DeleteRecipient,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Macros,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    Quit,
    QuitNewConnection,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Skip,
    TempFail,
    Unknown,
)
from milterchain.milter.server import Listener, MilterServer
from milterchain.milter.server_options import ServerOptions
from milterchain.testing import RawMta

ANY_PORT = Endpoint(host="127.0.0.1", port=0)
CONTINUE = b"\0\0\0\1c"
CONNECT = Connect(hostname=b"h")


@pytest.fixture(autouse=True)
def _show_failures(caplog):
    caplog.set_level(logging.DEBUG)


class Recorder(Milter):
    """Wants everything and writes down what it gets."""

    actions = ALL_ACTIONS
    made: list["Recorder"]

    def __init_subclass__(cls) -> None:
        cls.made = []

    def __init__(self) -> None:
        self.events: list[object] = []
        self.made.append(self)

    async def connect(self, client):
        self.events.append(client)

    async def helo(self, name):
        self.events.append(("helo", name))

    async def mail(self, sender, args):
        self.events.append(("mail", sender, args))

    async def rcpt(self, recipient, args):
        self.events.append(("rcpt", recipient, args))

    async def data(self):
        self.events.append("data")

    async def header(self, name, value):
        self.events.append((name, value))

    async def end_of_headers(self):
        self.events.append("end of headers")

    async def body(self, chunk):
        self.events.append(chunk)

    async def end_of_message(self, _modifier):
        self.events.append("end of message")

    async def unknown(self, line):
        self.events.append(("unknown", line))

    async def abort(self):
        self.events.append("abort")

    async def close(self):
        self.events.append("close")


@asynccontextmanager
async def serving(
    factory: Callable[[], Milter], *, negotiate: bool = True, **options: float
) -> AsyncIterator[RawMta]:
    limits = ServerOptions(**options)
    async with (
        MilterServer(factory, [ANY_PORT], options=limits) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        if negotiate:
            await mta.negotiate()
        yield mta


async def test_times_without_end():
    class Filter(Recorder): ...

    times = ("negotiation_timeout", "idle_timeout", "handler_timeout", "write_timeout", "close_timeout")
    async with serving(Filter, **dict.fromkeys(times, math.inf)) as mta:
        assert await mta.ask(CONNECT) == Continue()


async def test_a_whole_session():
    class Filter(Recorder):
        async def end_of_message(self, modifier):
            assert self.macros.get(b"i") == b"QID"
            await modifier.add_header(b"X", b"1\r\n 2\n 3")
            await modifier.insert_header(0, b"Y", b"")
            await modifier.change_header(b"Z", b"2", index=3)
            await modifier.delete_header(b"Z")
            await modifier.change_sender(b"<>", b"RET=HDRS")
            await modifier.add_recipient(b"<a@x>")
            await modifier.add_recipient(b"<b@x>", b"NOTIFY=NEVER")
            await modifier.delete_recipient(b"<c@x>")
            await modifier.replace_body(b"new\r\n")
            await modifier.quarantine(b"odd")
            return Accept()

    async with serving(Filter) as mta:
        client = Connect(hostname=b"h")
        assert await mta.ask(Macros(Command.CONNECT, ((b"j", b"mx"),)), client) == Continue()
        assert await mta.ask(Helo(b"h")) == Continue()
        assert await mta.ask(Macros(Command.MAIL, ((b"i", b"QID"),)), Mail(b"<>", (b"SIZE=1",))) == Continue()
        assert await mta.ask(Rcpt(b"<b@x>")) == Continue()
        assert await mta.ask(Data()) == Continue()
        assert await mta.ask(Header(b"A", b"b")) == Continue()
        assert await mta.ask(EndOfHeaders()) == Continue()
        assert await mta.ask(Body(b"hello")) == Continue()
        assert await mta.answers(EndOfMessage()) == [
            AddHeader(b"X", b"1\n 2\n 3"),
            InsertHeader(0, b"Y", b""),
            ChangeHeader(3, b"Z", b"2"),
            ChangeHeader(1, b"Z", b""),
            ChangeSender(b"<>", b"RET=HDRS"),
            AddRecipient(b"<a@x>"),
            AddRecipient(b"<b@x>", b"NOTIFY=NEVER"),
            DeleteRecipient(b"<c@x>"),
            ReplaceBody(b"new\r\n"),
            Quarantine(b"odd"),
            Accept(),
        ]
        assert await mta.ask(Unknown(b"WHAT")) == Continue()
        mta.send(Abort(), Quit())
        assert await mta.closed() == b""
    (milter,) = Filter.made
    assert milter.events == [
        client,
        ("helo", b"h"),
        ("mail", b"<>", (b"SIZE=1",)),
        ("rcpt", b"<b@x>", ()),
        "data",
        (b"A", b"b"),
        "end of headers",
        b"hello",
        ("unknown", b"WHAT"),
        "close",
    ]


class TestNegotiation:
    async def test_declines_what_is_not_overridden(self):
        class Filter(Milter):
            actions = Action.ADD_HEADERS
            protocol = Protocol.NO_REPLY_HEADER
            wanted_macros: ClassVar = {Stage.MAIL: [b"i", b"{mail_addr}"]}

            async def header(self, name, value): ...
            async def end_of_message(self, modifier): ...

        async with serving(Filter, negotiate=False) as mta:
            assert await mta.negotiate() == OptNeg(
                version=6,
                actions=Action.ADD_HEADERS | Action.SET_MACRO_LIST,
                protocol=Protocol(0x35F) | Protocol.NO_REPLY_HEADER | Protocol.SKIP,
                macros={Stage.MAIL: (b"i", b"{mail_addr}")},
            )
            assert await mta.ask(Header(b"a", b"b"), EndOfMessage()) == Continue()

    @pytest.mark.parametrize(
        ("version", "protocol", "expected"),
        [(2, 0x7F, 0x7F), (3, 0x17F, 0x17F), (4, 0x37F, 0x37F), (6, 0x1FFFFF, 0x77F)],
    )
    async def test_versions(self, version, protocol, expected):
        async with serving(Milter, negotiate=False) as mta:
            answer = await mta.negotiate(version=version, protocol=Protocol(protocol))
            assert (answer.version, answer.protocol) == (version, expected)
            assert await mta.ask(EndOfMessage()) == Continue()

    async def test_a_newer_mta_gets_what_there_is(self):
        async with serving(Milter, negotiate=False) as mta:
            assert (await mta.negotiate(version=7)).version == 6

    @pytest.mark.parametrize("offer", [{"version": 1}, {"actions": Action(0)}])
    async def test_no_common_ground(self, offer, caplog):
        async with serving(Recorder, negotiate=False) as mta:
            Recorder.made = []
            with pytest.raises(asyncio.IncompleteReadError):
                await mta.negotiate(**offer)
        assert "does not offer" in caplog.text or "offers version 1" in caplog.text
        gc.collect()  # of a task that has failed asyncio tells when it is gone
        assert not [record for record in caplog.records if record.name == "asyncio"]

    async def test_a_factory_that_fails(self, caplog):
        def factory() -> Milter:
            raise ZeroDivisionError

        async with serving(factory, negotiate=False) as mta:
            with pytest.raises(asyncio.IncompleteReadError):
                await mta.negotiate()
        assert "could not be started" in caplog.text

    @pytest.mark.parametrize("sent", [b"EHLO x\r\n", b"\0\0\0\0", b"\0\0\0\1\x01", Helo(b"x")])
    async def test_what_is_no_milter_protocol(self, sent, caplog):
        async with serving(Milter, negotiate=False) as mta:
            mta.send(sent)
            assert await mta.closed() == b""
        assert "connection closed" in caplog.text

    async def test_a_probe_is_no_news(self, caplog):
        async with serving(Milter, negotiate=False):
            pass
        assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


class TestVerdicts:
    @pytest.mark.parametrize(
        "verdict",
        [Accept(), Reject(), TempFail(), Discard(), Skip(), ReplyCode(b"550 5.7.1 no"), Continue()],
    )
    async def test_are_sent(self, verdict):
        class Filter(Milter):
            async def body(self, _chunk):
                return verdict

        async with serving(Filter) as mta:
            assert await mta.ask(Body(b"x")) == verdict

    async def test_skip_ends_the_supply_until_the_next_message(self):
        class Filter(Recorder):
            async def body(self, chunk):
                self.events.append(chunk)
                return Skip()

        async with serving(Filter) as mta:
            assert await mta.ask(CONNECT) == Continue()
            for _ in range(2):
                assert await mta.ask(Mail(b"<>")) == Continue()
                assert await mta.ask(Rcpt(b"<>")) == Continue()
                assert await mta.ask(EndOfHeaders()) == Continue()
                assert await mta.ask(Body(b"1")) == Skip()
                assert await mta.ask(Body(b"2")) == Continue()
                assert await mta.ask(EndOfMessage(b"3")) == Continue()
        assert [event for event in Filter.made[0].events if isinstance(event, bytes)] == [b"1", b"1"]

    async def test_skip_for_an_mta_without_it(self):
        class Filter(Recorder):
            async def body(self, chunk):
                self.events.append(chunk)
                return Skip()

        async with serving(Filter, negotiate=False) as mta:
            await mta.negotiate(protocol=Protocol(0x37F))
            mta.send(
                CONNECT, Mail(b"<>"), Rcpt(b"<>"), EndOfHeaders(), Body(b"1"), Body(b"2"), EndOfMessage()
            )
            assert [await mta.receive() for _ in range(7)] == [Continue()] * 7
        assert b"2" not in Filter.made[0].events

    async def test_the_rest_of_a_message_vanishes_after_its_verdict(self):
        class Filter(Recorder):
            async def end_of_headers(self):
                return Accept()

        async with serving(Filter) as mta:
            mta.send(CONNECT, Mail(b"<>"), Rcpt(b"<>"), EndOfHeaders(), Body(b"x"), EndOfMessage())
            mta.send(Abort(), Mail(b"<2>"), Quit())
            assert await mta.closed() == CONTINUE * 3 + b"\0\0\0\1a" + CONTINUE
        assert Filter.made[0].events[-3:] == [("mail", b"<2>", ()), "abort", "close"]
        assert b"x" not in Filter.made[0].events

    async def test_a_piece_of_body_in_end_of_message(self):
        class Filter(Recorder):
            async def body(self, chunk):
                self.events.append(chunk)
                return Reject() if chunk == b"bad" else None

        async with serving(Filter) as mta:
            mta.send(CONNECT, Mail(b"<>"), Rcpt(b"<>"), EndOfHeaders(), EndOfMessage(b"good"))
            assert [await mta.receive() for _ in range(5)] == [Continue()] * 5
            mta.send(Mail(b"<>"), Rcpt(b"<>"), EndOfHeaders(), EndOfMessage(b"bad"))
            assert [await mta.receive() for _ in range(4)] == [Continue()] * 3 + [Reject()]
        assert Filter.made[0].events.count("end of message") == 1

    @pytest.mark.parametrize("answer", ["yes", b"c", 250, Progress(), Quarantine(b"x"), ConnFail()])
    async def test_what_is_no_reply(self, answer, caplog):
        class Filter(Milter):
            async def helo(self, _name):
                return answer

        async with serving(Filter) as mta:
            assert await mta.ask(Helo(b"x")) == TempFail()
        assert "answer is wrong" in caplog.text

    async def test_failures_are_temporary(self, caplog):
        class Filter(Milter):
            async def helo(self, _name):
                raise ZeroDivisionError

            async def end_of_message(self, modifier):
                await modifier.add_header(b"X", b"not without permission")

        async with serving(Filter) as mta:
            assert await mta.ask(Helo(b"x")) == TempFail()
            assert await mta.ask(EndOfMessage()) == TempFail()
        assert "ZeroDivisionError" in caplog.text
        assert "NotNegotiatedError" in caplog.text

    async def test_handlers_that_take_too_long(self, caplog):
        class Filter(Recorder):
            async def helo(self, _name):
                await asyncio.Event().wait()

            async def mail(self, _sender, _args):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    return Reject()

        async with serving(Filter, handler_timeout=0.01) as mta:
            assert await mta.ask(CONNECT) == Continue()
            assert await mta.ask(Helo(b"x")) == TempFail()
            assert await mta.ask(Mail(b"x")) == Reject()
            assert await mta.ask(Unknown(b"x")) == Continue()
        assert "more than 0.01 s" in caplog.text


class TestNoReply:
    """Verdicts where the MTA does not listen."""

    class Filter(Recorder):
        protocol = Protocol(0xFF080)

    async def test_nothing_is_sent(self):
        async with serving(self.Filter) as mta:
            mta.send(CONNECT, Helo(b"x"), Mail(b"<>"), Unknown(b"x"), Rcpt(b"<>"), Data(), Header(b"a", b"b"))
            mta.send(EndOfHeaders(), Body(b"x"), EndOfMessage(), Quit())
            assert await mta.closed() == CONTINUE

    @pytest.mark.parametrize("method", ["mail", "rcpt", "data", "header", "end_of_headers", "body"])
    async def test_a_verdict_on_the_message_is_kept(self, method):
        class Filter(self.Filter):
            pass

        calls = []

        async def refuse_first(*_):
            calls.append(method)
            return Reject() if len(calls) == 1 else None

        setattr(Filter, method, refuse_first)
        message = [Mail(b"<>"), Rcpt(b"<>"), Data(), Header(b"a", b"b"), EndOfHeaders(), Body(b"x")]
        async with serving(Filter) as mta:
            assert await mta.ask(CONNECT, *message, EndOfMessage()) == Reject()
            assert await mta.ask(*message, EndOfMessage()) == Continue()
        calls.clear()
        async with serving(Filter) as mta:
            mta.send(CONNECT, *message, Abort())
            assert await mta.ask(*message, EndOfMessage()) == Continue()
        for milter in Filter.made:
            assert milter.events.count("end of message") == 1
            assert "abort" not in milter.events

    async def test_a_verdict_on_the_session_is_kept_for_all_messages(self):
        class Filter(self.Filter):
            async def helo(self, _name):
                return TempFail()

        async with serving(Filter) as mta:
            mta.send(CONNECT, Helo(b"x"))
            mta.send(Mail(b"<>"), Rcpt(b"<>"), Abort())
            for _ in range(2):
                assert (
                    await mta.ask(Mail(b"<>"), Rcpt(b"<>"), Data(), EndOfHeaders(), EndOfMessage())
                    == TempFail()
                )
            mta.send(QuitNewConnection(), CONNECT, Mail(b"<>"), Rcpt(b"<>"), Data(), EndOfHeaders())
            assert await mta.ask(EndOfMessage()) == Continue()

    async def test_a_verdict_on_an_unknown_command_is_dropped(self):
        class Filter(self.Filter):
            async def unknown(self, _line):
                return Reject()

        async with serving(Filter) as mta:
            mta.send(CONNECT, Mail(b"<>"), Unknown(b"x"), Rcpt(b"<>"), Data(), EndOfHeaders())
            assert await mta.ask(EndOfMessage()) == Continue()


class TestLife:
    async def test_abort_only_for_an_open_message(self):
        class Filter(Recorder):
            pass

        async with serving(Filter) as mta:
            mta.send(CONNECT, Abort(), Helo(b"x"), Abort(), Mail(b"<>"), Abort(), Abort(), Quit())
            assert await mta.closed() == CONTINUE * 3
        assert Filter.made[0].events.count("abort") == 1
        assert Filter.made[0].events[-2:] == ["abort", "close"]

    @pytest.mark.parametrize("end", [[Helo(b"y")], [Mail(b"<>")]])
    async def test_an_interrupted_message_is_aborted(self, end):
        class Filter(Recorder):
            pass

        async with serving(Filter) as mta:
            mta.send(CONNECT, Mail(b"<>"), Rcpt(b"<>"), *end, Quit())
            assert await mta.closed() == CONTINUE * 4
        assert Filter.made[0].events[3] == "abort"

    async def test_close_comes_once_when_the_mta_vanishes_in_a_message(self):
        class Filter(Recorder):
            closed = asyncio.Event()

            async def close(self):
                self.events.append("close")
                self.closed.set()

        async with serving(Filter) as mta:
            assert await mta.ask(CONNECT, Mail(b"<>")) == Continue()
            await mta.__aexit__(None, None, None)
            async with asyncio.timeout(5):
                await Filter.closed.wait()
        assert Filter.made[0].events[-2:] == ["abort", "close"]
        assert Filter.made[0].events.count("close") == 1

    @pytest.mark.parametrize("sent", [[], [CONNECT], [CONNECT, Mail(b"<>"), Rcpt(b"<>"), EndOfMessage()]])
    async def test_a_reset_is_no_news(self, sent, caplog):
        class Filter(Recorder):
            called = asyncio.Event()
            go = asyncio.Event()
            closed = asyncio.Event()

            async def connect(self, _client):
                self.called.set()

            async def end_of_message(self, modifier):
                await self.go.wait()
                for _ in range(100):
                    await modifier.replace_body(b"x" * 65535)

            async def close(self):
                self.closed.set()

        async with serving(Filter) as mta:
            mta.send(*sent)
            if sent:
                await Filter.called.wait()
            await mta.reset()
            Filter.go.set()
            async with asyncio.timeout(5):
                await Filter.closed.wait()
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []

    async def test_a_new_session_on_the_same_connection(self):
        class Filter(Recorder):
            async def helo(self, _name):
                self.events.append(self.macros.get(b"j"))

        async with serving(Filter) as mta:
            mta.send(Macros(Command.CONNECT, ((b"j", b"mx"),)), CONNECT, Helo(b"x"), Mail(b"<>"))
            mta.send(Abort(), QuitNewConnection(), CONNECT, Helo(b"x"), Quit())
            assert await mta.closed() == CONTINUE * 5
        first, second = Filter.made
        assert first.events == [CONNECT, b"mx", ("mail", b"<>", ()), "abort", "close"]
        assert second.events == [CONNECT, None, "close"]

    @pytest.mark.parametrize("negotiate", [False, True])
    async def test_a_silent_mta_is_left(self, negotiate, caplog):
        name = "idle_timeout" if negotiate else "negotiation_timeout"
        async with serving(Milter, negotiate=negotiate, **{name: 0.01}) as mta:
            assert await mta.closed() == b""
        assert "took too long" in caplog.text

    async def test_close_that_hangs_is_ended(self, caplog):
        class Filter(Recorder):
            async def close(self):
                await asyncio.Event().wait()

        async with serving(Filter, close_timeout=0.01) as mta:
            mta.send(Quit())
            assert await mta.closed() == b""
        assert "more than 0.01 s" in caplog.text

    async def test_close_is_not_disturbed_by_the_end_of_the_server(self):
        class Filter(Recorder):
            closing = asyncio.Event()

            async def close(self):
                self.closing.set()
                await go.wait()
                self.events.append("close")

        go = asyncio.Event()
        async with MilterServer(Filter, [ANY_PORT]) as server, RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            assert await mta.ask(CONNECT) == Continue()
            mta.send(QuitNewConnection())
            await Filter.closing.wait()
            async with asyncio.TaskGroup() as group:
                group.create_task(server.close())
                asyncio.get_running_loop().call_soon(go.set)
            assert await mta.closed() == b""
        assert Filter.made[0].events == [CONNECT, "close"]

    @pytest.mark.parametrize("place", ["connect", "mail", "end_of_message"])
    async def test_a_filter_may_close_the_connection(self, place, caplog):
        async def leave(self, *_args):
            self.events.append("leave")
            raise CloseConnectionError("no more of this")

        class Filter(Recorder):
            pass

        setattr(Filter, place, leave)
        async with serving(Filter) as mta:
            mta.send(CONNECT, Mail(b"<>"), Rcpt(b"<>"), EndOfMessage())
            assert (await mta.closed()).strip(CONTINUE) == b""
        events = Filter.made[0].events
        assert events[events.index("leave") :] == ["leave", *["abort"] * (place != "connect"), "close"]
        assert "connection closed: no more of this" in caplog.text

    async def test_wishes_to_close_come_too_late_at_the_end(self, caplog):
        class Filter(Recorder):
            async def abort(self):
                raise CloseConnectionError("no more of this")

            async def close(self):
                self.events.append("close")
                raise CloseConnectionError("no more of this")

        async with serving(Filter) as mta:
            mta.send(CONNECT, Mail(b"<>"), Quit())
            assert await mta.closed() == CONTINUE * 2
        assert Filter.made[0].events[-1] == "close"
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []

    async def test_the_cancellation_of_what_a_filter_waits_for_is_its_failure(self, caplog):
        class Filter(Recorder):
            async def mail(self, _sender, _args):
                other = asyncio.get_running_loop().create_future()
                other.cancel()
                await other

        async with serving(Filter) as mta:
            assert await mta.ask(CONNECT) == Continue()
            assert await mta.ask(Mail(b"<>")) == TempFail()
            assert await mta.ask(Helo(b"still here")) == Continue()
        assert "what it waited for was cancelled" in caplog.text

    async def test_the_loss_of_another_connection_is_a_failure(self, caplog):
        class Filter(Recorder):
            async def mail(self, _sender, _args):
                raise MilterClosedError("that of another milter")

        async with serving(Filter) as mta:
            assert await mta.ask(CONNECT) == Continue()
            assert await mta.ask(Mail(b"<>")) == TempFail()
        assert "the filter failed" in caplog.text

    async def test_an_mta_that_does_not_read_is_left(self):
        class Filter(Recorder):
            error: ClassVar[list[Exception]] = []
            done = asyncio.Event()

            async def end_of_message(self, modifier):
                try:
                    await modifier.replace_body([b"x" * 65536] * 1000)
                except Exception as error:
                    self.error.append(error)
                    raise
                finally:
                    self.done.set()

        async with serving(Filter, write_timeout=0.05) as mta:
            mta.send(CONNECT, Mail(b"<>"), Rcpt(b"<>"), EndOfHeaders(), EndOfMessage())
            async with asyncio.timeout(10):
                await Filter.done.wait()
        assert [type(error).__name__ for error in Filter.error] == ["MilterClosedError"]


class TestModifier:
    @staticmethod
    async def at_end(change, **settings):
        """What a filter sends that does `change` at the end of a message; its error comes last."""

        class Filter(Milter):
            actions = settings.get("actions", ALL_ACTIONS)

            async def end_of_message(self, modifier):
                try:
                    await change(modifier)
                except Exception as error:  # noqa: BLE001
                    errors.append(error)
                return Accept()

        errors: list[Exception] = []
        async with serving(Filter) as mta:
            return await mta.answers(EndOfMessage()), errors

    async def test_pieces_of_a_body(self):
        sent, errors = await self.at_end(lambda modifier: modifier.replace_body([b"a", b"b" * 70000]))
        assert sent == [ReplaceBody(b"a" + b"b" * 65534), ReplaceBody(b"b" * 4466), Accept()]
        assert not errors

    async def test_an_empty_body(self):
        assert await self.at_end(lambda modifier: modifier.replace_body(b"")) == (
            [ReplaceBody(b""), Accept()],
            [],
        )

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda modifier: modifier.add_header(b"X", b"1"), "ADD_HEADERS"),
            (lambda modifier: modifier.insert_header(1, b"X", b"1"), "ADD_HEADERS"),
            (lambda modifier: modifier.change_header(b"X", b"1"), "CHANGE_HEADERS"),
            (lambda modifier: modifier.delete_header(b"X"), "CHANGE_HEADERS"),
            (lambda modifier: modifier.change_sender(b"<>"), "CHANGE_SENDER"),
            (lambda modifier: modifier.add_recipient(b"<>"), "ADD_RECIPIENT"),
            (lambda modifier: modifier.add_recipient(b"<>", b"X=1"), "ADD_RECIPIENT_PAR"),
            (lambda modifier: modifier.delete_recipient(b"<>"), "DELETE_RECIPIENT"),
            (lambda modifier: modifier.replace_body(b"x"), "CHANGE_BODY"),
            (lambda modifier: modifier.quarantine(b"x"), "QUARANTINE"),
        ],
    )
    async def test_needs_permission(self, change, name):
        sent, (error,) = await self.at_end(change, actions=Action(0))
        assert sent == [Accept()]
        assert isinstance(error, NotNegotiatedError)
        assert f"Action.{name};" in str(error)

    @pytest.mark.parametrize(
        "change",
        [
            lambda modifier: modifier.add_header(b"X:", b"1"),
            lambda modifier: modifier.add_header(b"", b"1"),
            lambda modifier: modifier.add_header(b"X Y", b"1"),
            lambda modifier: modifier.add_header(b"X", b"\0"),
            lambda modifier: modifier.add_recipient(b"<\0>"),
            lambda modifier: modifier.insert_header(-1, b"X", b"1"),
            lambda modifier: modifier.add_header(b"X", b"1" * 70000),
        ],
    )
    async def test_refuses_what_cannot_travel(self, change):
        sent, (error,) = await self.at_end(change)
        assert sent == [Accept()]
        assert isinstance(error, LocalProtocolError)

    async def test_is_for_the_end_of_a_message_only(self):
        kept = []

        async def keep(modifier):
            kept.append(modifier)

        await self.at_end(keep)
        with pytest.raises(WrongStageError):
            await kept[0].add_header(b"X", b"1")

    async def test_progress_is_sent_at_once(self):
        go = asyncio.Event()

        class Filter(Milter):
            actions = ALL_ACTIONS

            async def end_of_message(self, modifier):
                await modifier.quarantine(b"why")
                await modifier.progress()
                await go.wait()

        async with serving(Filter) as mta:
            assert await mta.ask(EndOfMessage()) == Quarantine(b"why")
            assert await mta.receive() == Progress()
            go.set()
            assert await mta.receive() == Continue()

    async def test_progress_starts_the_timer_again(self):
        class Filter(Milter):
            async def end_of_message(self, modifier):
                for _ in range(5):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await asyncio.Event().wait()
                    await modifier.progress()

        async with serving(Filter, handler_timeout=0.2) as mta:
            assert await mta.answers(EndOfMessage()) == [Progress()] * 5 + [Continue()]


class TestServer:
    async def test_listens_on_several_addresses(self, tmp_path):
        listeners = [
            "inet:127.0.0.1:0",
            Endpoint(host="::1", port=0, family="inet6"),
            Listener(f"unix:{tmp_path}/a", mode=0o600),
            Listener(Endpoint(path=f"{tmp_path}/b"), mode=0o666),
        ]
        async with MilterServer(Milter, listeners) as server:
            assert [str(endpoint).rpartition(":")[0] for endpoint in server.endpoints] == [
                "inet:127.0.0.1",
                "inet6:[::1]",
                "unix",
                "unix",
            ]
            assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o600, 0o666]
            for endpoint in server.endpoints:
                async with RawMta(endpoint) as mta:
                    assert (await mta.negotiate()).version == 6
                    assert server.connections >= 1
        assert list(tmp_path.iterdir()) == []

    async def test_a_stale_socket_file_is_replaced(self, tmp_path):
        path = tmp_path / "s"
        async with MilterServer(Milter, [f"unix:{path}"]):
            path.rename(tmp_path / "stale")
        assert (tmp_path / "stale").exists()
        async with (
            MilterServer(Milter, [f"unix:{tmp_path}/stale"]) as server,
            RawMta(server.endpoints[0]) as mta,
        ):
            await mta.negotiate()

    async def test_addresses_that_cannot_be_had(self, tmp_path):
        (tmp_path / "file").write_text("")
        async with MilterServer(Milter, [f"unix:{tmp_path}/s", ANY_PORT]) as server:
            for endpoint, reason in [
                (f"unix:{tmp_path}/s", "another server listens there"),
                (f"unix:{tmp_path}/file", "is no socket"),
                (f"unix:{tmp_path}/none/s", "No such file or directory"),
                (str(server.endpoints[1]), "in use"),
            ]:
                second = MilterServer(Milter, [f"unix:{tmp_path}/t", endpoint])
                with pytest.raises(MilterConnectError, match=f"cannot listen on .*{reason}") as caught:
                    await second.start()
                assert endpoint in str(caught.value)
                assert not (tmp_path / "t").exists()

    async def test_too_many_connections(self, caplog):
        limits = ServerOptions(connections=1)
        async with MilterServer(Milter, [ANY_PORT], options=limits) as server:
            (endpoint,) = server.endpoints
            async with RawMta(endpoint) as first:
                await first.negotiate()
                async with RawMta(endpoint) as second:
                    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                        await second.negotiate()
                assert await first.ask(EndOfMessage()) == Continue()
        assert "connection refused: there are 1" in caplog.text

    async def test_close_breaks_connections_and_tells_the_filters(self):
        called = asyncio.Event()

        class Filter(Recorder):
            async def helo(self, _name):
                called.set()
                await asyncio.Event().wait()

        async with MilterServer(Filter, [ANY_PORT]) as server, RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            assert await mta.ask(CONNECT) == Continue()
            mta.send(Helo(b"x"))
            await called.wait()
            await server.close()
            assert await mta.closed() == b""
            with pytest.raises(ConnectionRefusedError):
                await RawMta(server.endpoints[0]).__aenter__()
            await server.close()
        assert Filter.made[0].events[-1] == "close"

    @pytest.mark.parametrize("leave", [Quit(), QuitNewConnection()])
    async def test_shutdown_lets_sessions_finish(self, leave):
        async with MilterServer(Recorder, [ANY_PORT]) as server:
            Recorder.made = []
            (endpoint,) = server.endpoints
            async with RawMta(endpoint) as idle, RawMta(endpoint) as busy, asyncio.TaskGroup() as group:
                for mta in (idle, busy):
                    await mta.negotiate()
                    assert await mta.ask(CONNECT) == Continue()
                idle.send(QuitNewConnection())
                assert await busy.ask(Mail(b"<>")) == Continue()
                stopping = group.create_task(server.shutdown(30))
                assert await idle.closed() == b""
                for _ in range(2):  # between messages an MTA would take it for a failure
                    assert await busy.ask(Rcpt(b"<>")) == Continue()
                    assert await busy.ask(EndOfHeaders()) == Continue()
                    assert await busy.ask(EndOfMessage()) == Continue()
                    assert not stopping.done()
                    assert await busy.ask(Mail(b"<>")) == Continue()
                busy.send(Abort(), leave)
                assert await busy.closed() == b""
            assert server.connections == 0

    async def test_shutdown_has_a_deadline(self):
        async with MilterServer(Recorder, [ANY_PORT]) as server, RawMta(server.endpoints[0]) as mta:
            Recorder.made = []
            await mta.negotiate()
            mta.send(CONNECT)
            assert await mta.ask(Mail(b"<>")) == Continue()
            assert await mta.receive() == Continue()
            await server.shutdown(0.01)
            assert await mta.closed() == b""
