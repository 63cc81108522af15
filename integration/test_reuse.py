"""Connections to real libmilter filters that serve one SMTP session after the other (`reuse = true`).

The editor puts a digest of all that it was told of a message into it: if anything of an earlier session were
left, the digest would not be that of a milterchain which opens a connection for each session.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.services.filters import Filter, build_noop, start_editor, start_noop
from integration.services.process import Run, wait_for
from integration.services.proxy import Proxy, milter_table, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client

SENDER = b"<sender@example.test>"
CONTENT = b"From: a@example.test\r\nSubject: number %d\r\n\r\nbody %d\r\n"


@pytest.fixture(scope="module")
def sink(run: Run) -> Sink:
    return start_sink(run)


@dataclass(slots=True)
class Setting:
    """A milterchain and its filters."""

    proxy: Proxy
    editor: Filter
    noop: Filter
    reuse: bool


@pytest.fixture(scope="module", params=["unix-reuse", "TCP-reuse", "unix", "TCP"])
def setting(run: Run, nameserver: str, sink: Sink, request: pytest.FixtureRequest) -> Iterator[Setting]:
    del nameserver
    family, _, reuse = request.param.partition("-")
    unix = family == "unix"
    editor = start_editor(run, f"editor{request.param}".replace("-", ""), unix=unix)
    noop = start_noop(run, build_noop(run), f"noop-{request.param}", unix=unix)
    settings = {"reuse": "true"} if reuse else {}
    tables = [milter_table(each.name, each.address, settings) for each in (editor, noop)]
    proxy = start_proxy(run, next_hop=f"smtp:{sink.address}", milters=tables, name=request.param)
    yield Setting(proxy, editor, noop, bool(reuse))
    assert proxy.stop() == 0


def _session(proxy: Proxy, recipient: bytes, number: int) -> None:
    with Client(proxy.address) as client:
        outcome = client.send(SENDER, [recipient], CONTENT % (number, number))
        assert outcome.accepted, outcome
        client.quit()


def _connections(each: Filter) -> int:
    """How many MTAs are connected to a filter: its sockets but the one on which it listens."""
    assert each.service is not None
    count = 0
    for path in Path(f"/proc/{each.service.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += str(path.readlink()).startswith("socket:")
    return count - 1


def test_sessions_of_all_kinds_one_after_the_other(setting: Setting, sink: Sink) -> None:
    recipient = f"<{setting.editor.name}@example.test>".encode()
    for number in range(5):
        _session(setting.proxy, recipient, number)
        with Client(setting.proxy.address) as client:
            client.quit()
        with Client(setting.proxy.address) as client:
            assert client.command(b"MAIL FROM:<other@example.test>").code == 250
        with Client(setting.proxy.address) as client:
            verdict = f"<verdict-{setting.editor.name}-eom-reject@example.test>".encode()
            client.send(verdict, [recipient], CONTENT % (99, 99))
            client.quit()
    contents = [sink.content(each) for each in sink.to(setting.editor.name + "@example.test")]
    seen = {_header(content, b"subject"): _header(content, b"x-editor") for content in contents}
    assert list(seen) == [b"number %d" % number for number in range(5)]
    assert seen == SEEN.setdefault(0, seen)


SEEN: dict[int, dict[bytes, bytes]] = {}
"""What the editor wrote of each message in the first setting: the same as in all the others."""


def _header(content: bytes, name: bytes) -> bytes:
    line = next(line for line in content.split(b"\r\n") if line.lower().startswith(name))
    return line.partition(b": ")[2]


def test_a_connection_stays_open_between_sessions(setting: Setting) -> None:
    noop = setting.noop
    noop.kill()
    noop.start()
    wait_for(lambda: _connections(noop) == 0, "the probe to be gone")
    for number in range(3):
        _session(setting.proxy, b"<kept@example.test>", number)
        wait_for(lambda: _connections(noop) == setting.reuse, "the number of connections")


def test_filters_that_were_restarted_meanwhile(setting: Setting) -> None:
    for number in range(4):
        _session(setting.proxy, b"<restarted@example.test>", number)
        each = (setting.editor, setting.noop)[number % 2]
        each.kill()
        each.start()
    _session(setting.proxy, b"<restarted@example.test>", 4)
