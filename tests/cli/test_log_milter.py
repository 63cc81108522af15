"""`milterchain log-milter`: what it writes of a session, and when it stops."""

import asyncio
import io
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from milterchain.cli.log_milter import EventLog, serve
from milterchain.milter.endpoint import parse_endpoint
from milterchain.milter.flags import Command, Family, Protocol, Stage
from milterchain.milter.macro_bag import MacroBag
from milterchain.milter.messages import Connect, Continue, Helo, Macros, Quit
from milterchain.milter.mta import MtaClient, MtaSession
from milterchain.testing import RawMta

NOW = "2026-01-02T03:04:05.678"
MEANS = "may change nothing; knows: skip, rcpt rejected, leading space"
PATIENCE = 30.0


class Served:
    """A log-milter in this process."""

    def __init__(self, out: io.StringIO) -> None:
        self.out = out
        self.sessions = 0

    @property
    def lines(self) -> list[str]:
        """What was written, without the time."""
        written = self.out.getvalue().splitlines()
        assert all(line.startswith(f"{NOW} ") for line in written)
        return [line.removeprefix(f"{NOW} ") for line in written]

    async def until(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        async with asyncio.timeout(PATIENCE):
            while not (found := re.search(pattern, self.out.getvalue(), re.MULTILINE)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return found


@asynccontextmanager
async def serving(
    path: Path, *, as_json: bool = False, macros: dict[Stage, list[bytes]] | None = None
) -> AsyncIterator[tuple[Served, MtaClient]]:
    out, stop = io.StringIO(), asyncio.Event()
    log = EventLog(out, as_json=as_json, clock=lambda: datetime(2026, 1, 2, 3, 4, 5, 678_901))  # noqa: DTZ001
    served = Served(out)
    address = f"unix:{path}/milter"
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        server = tasks.create_task(serve([address], log, stop, macros or {}))
        await served.until("listening")
        yield served, MtaClient(address)
        stop.set()
        served.sessions = await server


async def message(session: MtaSession) -> None:
    await session.mail(b"<a@b>", [b"SIZE=4", b"BODY=8BITMIME"])
    session.macros[b"rcpt_addr"] = b"c@d"
    await session.rcpt(b"<c@d>")
    session.macros.discard(b"rcpt_addr")
    await session.data()
    await session.headers([(b"Subject", b" caf\xc3\xa9\n \xff")])
    answer = await session.body_from(b"text")
    assert (answer.reply, answer.modifications) == (Continue(), ())


async def test_what_is_written(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (served, client),
        client.session({b"j": b"mx", b"v": b"Test 1"}) as session,
    ):
        await session.connect(b"client.test", Family.INET, 99, b"192.0.2.7")
        await session.helo(b"client.test")
        assert (await session.unknown(b"HELP me")).asked
        session.macros[b"i"] = b"4Zk"
        await message(session)
        await session.mail(b"<>")
        await session.abort()
        await session.close()
        await served.until("close")
    assert served.sessions == 1
    assert served.lines == [
        f"listening addresses={client}",
        "#1 offered version=6 actions=0x1ff protocol=0x1fffff",
        f'#1 negotiated version=6 actions=0x0 protocol=0x100c00 max_data=65535 means="{MEANS}"',
        '#1 macros j=mx v="Test 1"',
        "#1 connect hostname=client.test family=inet port=99 address=192.0.2.7",
        "#1 helo name=client.test",
        '#1 unknown line="HELP me"',
        "#1 macros i=4Zk",
        '#1 mail address=<a@b> args="SIZE=4 BODY=8BITMIME"',
        "#1 macros {rcpt_addr}=c@d",
        "#1 rcpt address=<c@d>",
        "#1 data",
        '#1 header name=Subject value=" café\\n \\xff"',
        "#1 end_of_headers",
        "#1 body bytes=4",
        "#1 end_of_message",
        "#1 macros -{rcpt_addr}",
        "#1 mail address=<>",
        "#1 abort",
        "#1 close",
        "stopped sessions=1",
    ]


async def test_macro_names_begin_no_lines(tmp_path: Path) -> None:
    name = b"{a\n#2 close}"
    async with serving(tmp_path) as (served, client), RawMta(client.endpoint) as mta:
        await mta.negotiate()
        await mta.ask(Connect(hostname=b"h"))
        await mta.ask(Macros(Command.HELO, ((name, b"1"),)), Helo(b"h"))
        mta.send(Macros(Command.HELO, ()), Helo(b"h"), Quit())
        await mta.closed()
        await served.until("close$")
    assert '#1 macros "{a\\n#2 close}"=1' in served.lines
    assert '#1 macros -"{a\\n#2 close}"' in served.lines


async def test_json(tmp_path: Path) -> None:
    async with serving(tmp_path, as_json=True) as (served, client), client.session({b"j": b"mx"}) as session:
        await session.connect(b"client.test", Family.INET6, 99, b"2001:db8::1")
        await session.helo(b"\xff")
        session.macros[b"i"] = b"4Zk"
        session.macros[b"rcpt_addr"] = b"c@d"
        await message(session)
        await session.mail(b"<>")
    written = [json.loads(line) for line in served.out.getvalue().splitlines()]
    assert all(line.keys() == {"time", "session", "event", "values"} for line in written)
    assert {line["time"] for line in written} == {NOW}
    events = {}
    for line in written:
        events.setdefault(line["event"], []).append(line["values"])
    assert [line["session"] for line in written] == [None, *[1] * (len(written) - 2), None]
    assert events["listening"] == [{"addresses": [str(client)]}]
    assert events["offered"] == [{"version": 6, "actions": 0x1FF, "protocol": 0x1FFFFF}]
    assert events["connect"] == [
        {"hostname": "client.test", "family": "inet6", "port": 99, "address": "2001:db8::1"}
    ]
    assert events["helo"] == [{"name": "\\xff"}]
    assert events["mail"] == [{"address": "<a@b>", "args": ["SIZE=4", "BODY=8BITMIME"]}, {"address": "<>"}]
    assert events["macros"] == [{"j": "mx"}, {"i": "4Zk"}, {"{rcpt_addr}": "c@d"}, {"{rcpt_addr}": None}]
    assert events["stopped"] == [{"sessions": 1}]


async def test_sessions_are_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as (served, client):
        async with client.session() as session:
            await session.connect(b"client.test")
            await message(session)
            assert await session.reset()
            await session.connect(b"again.test")
        async with client.session(), client.session():
            pass
    assert served.sessions == 4
    assert served.lines[-1] == "stopped sessions=4"
    assert '#2 connect hostname=again.test family=unknown port=0 address=""' in served.lines
    # Options are offered once for a connection.
    assert [line.split()[0] for line in served.lines if " offered " in line] == ["#1", "#3", "#4"]
    assert [line.split()[0] for line in served.lines if " negotiated " in line] == ["#1", "#2", "#3", "#4"]


async def test_macros_can_be_asked_for(tmp_path: Path) -> None:
    macros = {Stage.MAIL: [b"{custom}", b"i"]}
    bag = MacroBag({b"custom": b"1", b"mail_addr": b"a@b"})
    async with serving(tmp_path, macros=macros) as (served, client), client.session(bag) as session:
        assert session.negotiated.macros == {Stage.MAIL: (b"{custom}", b"i")}
        await session.connect(b"client.test")
        await message(session)
    assert "#1 macros {custom}=1" in served.lines
    assert not any("mail_addr" in line for line in served.lines)


async def test_refused_recipients_are_wanted(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client), client.session() as session:
        assert session.negotiated.protocol & Protocol.RCPT_REJECTED
        assert session.negotiated.declined == frozenset()
        assert Command.UNKNOWN in session.negotiated.answered


# The command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_runs_until_a_signal(tmp_path: Path, number: int) -> None:
    address = f"unix:{tmp_path}/milter"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "milterchain", "log-milter", "--listen", address, "--json"),
        *("--macros-at", "connect=v,j"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            assert json.loads(await process.stdout.readline())["values"] == {"addresses": [address]}
            async with MtaClient(parse_endpoint(address)).session() as session:
                assert session.negotiated.macros == {Stage.CONNECT: (b"v", b"j")}
                process.send_signal(number)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out.splitlines()[-1])["values"] == {"sessions": 1}
    assert not (tmp_path / "milter").exists()


async def until_it_ends(address: str, out: int) -> tuple[int | None, bytes]:
    """Start the command with its output there; its exit code and what it complains of."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "milterchain", "log-milter", "--listen", address),
        stdout=out,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(out)
    async with asyncio.timeout(PATIENCE):
        _, err = await process.communicate()
    return process.returncode, err


async def test_mail_passes_when_nobody_reads_the_log(tmp_path: Path) -> None:
    """It stops then: a filter that fails would cost its MTA mail."""
    address = f"unix:{tmp_path}/milter"
    reader, writer = os.pipe()
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        ended = tasks.create_task(until_it_ends(address, writer))
        assert b" listening " in await asyncio.to_thread(os.read, reader, 1000)
        os.close(reader)
        async with MtaClient(address).session() as session:
            await session.connect(b"client.test")
            await message(session)
    assert ended.result() == (1, b"")
    assert not (tmp_path / "milter").exists()


async def test_a_full_disk(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert await until_it_ends(f"unix:{tmp_path}/milter", full) == (
        1,
        b"cannot write: No space left on device\n",
    )


async def test_mistakes(command: Any) -> None:
    code, out, err = await command("log-milter", "--macros-at", "lunch=i")
    assert (code, out) == (2, "")
    assert "with a stage of connect" in err


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("nowhere", "--listen: 'nowhere' is no milter address; write"),
        ("unix:{}/absent/milter", "--listen: cannot listen on unix:{}/absent/milter: "),
    ],
)
async def test_addresses_that_cannot_be_listened_on(address: str, error: str, tmp_path: Path) -> None:
    address, error = address.format(tmp_path), error.format(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "milterchain", "log-milter", "--listen", address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode().startswith(error)
    assert err.count(b"\n") == 1
