"""OpenDKIM's `miltertest` plays the MTA for filters written with this library.

The sessions are the Lua scripts in `miltertest/`; what the filters saw is held against them here. Steps that
a script leaves out miltertest makes up itself, such as a From header before the end of headers; what a filter
declined is an error of the script to it.
"""

# The methods of filters are those of `Milter`.
# ruff: noqa: D102

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

from milterchain.milter import (
    ALL_ACTIONS,
    Accept,
    Action,
    Connect,
    Discard,
    Endpoint,
    Family,
    Milter,
    MilterServer,
    Modifier,
    Negotiated,
    NegotiationOptions,
    Protocol,
    Reject,
    Reply,
    Skip,
    TempFail,
    no_reply,
    reply,
)

SCRIPTS = Path(__file__).with_name("miltertest")
PATIENCE = 30.0
"""Seconds for one script; each takes less than one."""


async def play(server: MilterServer, script: str, **values: object) -> None:
    """Run a script against a server; it must succeed, and have left when this returns."""
    endpoint = server.endpoints[0]
    names = {"script": SCRIPTS / script, "socket": f"inet:{endpoint.port}@{endpoint.host}", **values}
    defined = [argument for name, value in names.items() for argument in ("-D", f"{name}={value}")]
    process = await asyncio.create_subprocess_exec(
        shutil.which("miltertest") or "miltertest",
        *defined,
        "-s",
        str(SCRIPTS / "run.lua"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, output.decode(errors="replace")
    await server.shutdown(PATIENCE)


def serve(factory: type[Milter], protocol: Protocol | None = None) -> MilterServer:
    negotiation = NegotiationOptions(protocol=protocol)
    return MilterServer(factory, [Endpoint(host="127.0.0.1")], negotiation=negotiation)


class Recorder(Milter):
    """Writes down what it is told, with the macros that are in force."""

    seen: ClassVar[list[tuple[object, ...]]]

    def note(self, *event: object) -> None:
        macros = {name.decode(): value.decode() for name, value in self.macros.as_dict().items()}
        self.seen.append((*event, macros))

    async def connect(self, client: Connect) -> None:
        self.note("connect", client)

    async def helo(self, name: bytes) -> None:
        self.note("helo", name)

    async def unknown(self, line: bytes) -> None:
        self.note("unknown", line)

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> None:
        self.note("mail", sender, args)

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> None:
        self.note("rcpt", recipient, args)

    async def data(self) -> None:
        self.note("data")

    async def header(self, name: bytes, value: bytes) -> None:
        self.note("header", name, value)

    async def end_of_headers(self) -> None:
        self.note("end of headers")

    async def body(self, chunk: bytes) -> None:
        self.note("body", chunk)

    async def end_of_message(self, modifier: Modifier) -> None:
        del modifier
        self.note("end of message")

    async def abort(self) -> None:
        self.note("abort")

    async def close(self) -> None:
        self.note("close")


async def test_events() -> None:
    Recorder.seen = []
    async with serve(Recorder) as server:
        await play(server, "events.lua")
    client = {"j": "mx.test", "client_addr": "192.0.2.7"}
    tls = {**client, "tls_version": "TLSv1.3"}
    first = {**tls, "i": "first", "auth_authen": ""}
    to_c = {**first, "rcpt_addr": "c@x.test"}
    second, third = {**tls, "i": "second"}, {**tls, "i": "third"}
    connect = Connect(hostname=b"client.test", family=Family.INET, port=12345, address=b"192.0.2.7")
    assert Recorder.seen == [
        ("connect", connect, client),
        ("helo", b"me.test", tls),
        ("unknown", b"FOO bar", tls),
        ("mail", b"<a@x.test>", (b"SIZE=100", b"BODY=8BITMIME"), first),
        ("rcpt", b"<b@x.test>", (b"NOTIFY=NEVER",), {**first, "rcpt_addr": "b@x.test"}),
        ("rcpt", b"<c@x.test>", (), to_c),
        ("data", {**to_c, "at": "data"}),
        ("header", b"Subject", b"one\n\ttwo", {**to_c, "at": "data"}),
        ("header", b"X-Empty", b"", {**to_c, "at": "data"}),
        ("end of headers", {**to_c, "at": "headers"}),
        ("body", b"Hello\r\n", {**to_c, "at": "headers"}),
        ("body", b"world\r\n", {**to_c, "at": "headers"}),
        ("end of message", {**to_c, "at": "end"}),
        ("mail", b"<>", (), second),
        ("rcpt", b"<d@x.test>", (), second),
        ("abort", second),
        ("mail", b"<e@x.test>", (), third),
        ("rcpt", b"<f@x.test>", (), third),
        ("data", third),
        ("header", b"From", b"<e@x.test>", third),
        ("end of headers", third),
        ("body", b".\r\n", third),
        ("end of message", third),
        ("close", third),
        ("connect", Connect(hostname=b"nobody"), {}),
        ("close", {}),
    ]


REPLIES: Mapping[str, Reply] = {
    "accept": Accept(),
    "reject": Reject(),
    "tempfail": TempFail(),
    "discard": Discard(),
    "skip": Skip(),
    "reply_code": reply(550, "5.7.1", "not 100% today"),
}


class Judge(Milter):
    """Gives the reply that the client's name asks for: `STAGE.REPLY`."""

    stage = ""
    verdict: Reply | None = None

    def judge(self, stage: str) -> Reply | None:
        return self.verdict if stage == self.stage else None

    async def connect(self, client: Connect) -> Reply | None:
        self.stage, _, what = client.hostname.decode().partition(".")
        self.verdict = REPLIES[what]
        return self.judge("connect")

    async def helo(self, name: bytes) -> Reply | None:
        del name
        return self.judge("helo")

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> Reply | None:
        del sender, args
        return self.judge("mail")

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> Reply | None:
        del args
        return None if b"good" in recipient else self.judge("rcpt")

    async def data(self) -> Reply | None:
        return self.judge("data")

    async def header(self, name: bytes, value: bytes) -> Reply | None:
        del name, value
        return self.judge("header")

    async def end_of_headers(self) -> Reply | None:
        return self.judge("end_of_headers")

    async def body(self, chunk: bytes) -> Reply | None:
        del chunk
        return self.judge("body")

    async def end_of_message(self, modifier: Modifier) -> Reply | None:
        del modifier
        return self.judge("end_of_message")

    async def unknown(self, line: bytes) -> Reply | None:
        del line
        return self.judge("unknown")


async def test_replies() -> None:
    async with serve(Judge) as server:
        await play(server, "replies.lua")


class Editor(Milter):
    """Makes the modifications that the header X-Do names."""

    actions = ALL_ACTIONS
    what = ""

    async def header(self, name: bytes, value: bytes) -> None:
        if name == b"X-Do":
            self.what = value.decode()

    async def end_of_message(self, modifier: Modifier) -> None:
        edits: Mapping[str, Callable[[], Awaitable[None]]] = {
            "insert": partial(modifier.insert_header, 0, b"X-First", b"1"),
            "add": partial(modifier.add_header, b"X-Added", b"one\r\n\ttwo"),
            "change": partial(modifier.change_header, b"Subject", b"new"),
            "delete": partial(modifier.delete_header, b"X-Old"),
            "recipient": partial(modifier.add_recipient, b"<new@x.test>"),
            "remove": partial(modifier.delete_recipient, b"<b@x.test>"),
            "quarantine": partial(modifier.quarantine, b"looks odd"),
            "body": partial(modifier.replace_body, b"new body\r\n"),
        }
        for name, edit in edits.items():
            if self.what in {name, "all"}:
                await edit()


async def test_modifications() -> None:
    async with serve(Editor, Protocol(0)) as server:
        await play(server, "modifications.lua")


class Choosy(Milter):
    """Counts headers without ever answering one."""

    actions = Action.ADD_HEADERS
    protocol = Protocol.LEADING_SPACE
    agreed: ClassVar[list[Negotiated]]

    async def new_connection(self) -> None:
        self.agreed.append(self.negotiated)

    async def connect(self, client: Connect) -> None: ...

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> None:
        del sender, args
        self.headers: list[bytes] = []

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> None: ...

    @no_reply
    async def header(self, name: bytes, value: bytes) -> None:
        assert value.startswith(b" ") == self.negotiated.leading_space
        self.headers.append(name)

    async def end_of_headers(self) -> None: ...

    async def end_of_message(self, modifier: Modifier) -> None:
        space = b" " if self.negotiated.leading_space else b""
        await modifier.add_header(b"X-Headers", b"%b%d" % (space, len(self.headers)))


async def test_negotiation() -> None:
    Choosy.agreed = []
    async with serve(Choosy) as server:
        await play(server, "negotiation.lua")
    assert [negotiated.version for negotiated in Choosy.agreed] == [2, 3, 4, 6, 6, 6]


class Counter(Milter):
    """Says how many messages and bytes it has seen."""

    actions = Action.ADD_HEADERS
    messages = size = 0

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> None:
        del sender, args
        self.messages += 1
        self.size = 0

    async def connect(self, client: Connect) -> None: ...

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> None: ...

    async def end_of_headers(self) -> None: ...

    async def body(self, chunk: bytes) -> None:
        self.size += len(chunk)

    async def end_of_message(self, modifier: Modifier) -> None:
        await modifier.add_header(b"X-Seen", b"%d %d" % (self.messages, self.size))


async def test_bodies(tmp_path: Path) -> None:
    body = b"a line that is repeated\r\n" * 50_000
    file = tmp_path / "body"
    file.write_bytes(body)
    async with serve(Counter) as server:
        await play(server, "bodies.lua", file=file, size=len(body))
