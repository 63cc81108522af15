import asyncio
import socket

import pytest

from milterchain.milter.endpoint import Endpoint, parse_endpoint


@pytest.mark.parametrize(
    ("text", "endpoint", "canonical"),
    [
        ("inet:127.0.0.1:11332", Endpoint(host="127.0.0.1", port=11332), "inet:127.0.0.1:11332"),
        ("inet:localhost:1", Endpoint(host="localhost", port=1), "inet:localhost:1"),
        ("inet:11332@localhost", Endpoint(host="localhost", port=11332), "inet:localhost:11332"),
        ("inet6:::1:65535", Endpoint(host="::1", port=65535, family="inet6"), "inet6:[::1]:65535"),
        ("inet6:[::1]:25", Endpoint(host="::1", port=25, family="inet6"), "inet6:[::1]:25"),
        ("inet6:25@::1", Endpoint(host="::1", port=25, family="inet6"), "inet6:[::1]:25"),
        ("inet:25@[::1]", Endpoint(host="::1", port=25), "inet:[::1]:25"),
        ("unix:/run/m.sock", Endpoint(path="/run/m.sock"), "unix:/run/m.sock"),
        ("local:/run/a:b@c", Endpoint(path="/run/a:b@c"), "unix:/run/a:b@c"),
    ],
)
def test_addresses(text, endpoint, canonical):
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == canonical
    assert parse_endpoint(canonical) == endpoint


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "is no milter address; write inet:HOST:PORT"),
        ("localhost:25", "is no milter address"),
        ("/run/m.sock", "is no milter address"),
        ("unix:run/m.sock", "begins with /"),
        ("local:", "begins with /"),
        ("inet:25", "names no host"),
        ("inet:localhost", "names no port"),
        ("inet::25", "names no host"),
        ("inet:25@", "names no host"),
        ("inet:[]:25", "names no host"),
        ("inet:host:", "the port is a number from 1 to 65535"),
        ("inet:host:0", "the port is a number"),
        ("inet:host:65536", "the port is a number"),
        ("inet:host:x", "the port is a number"),
        ("inet:host:²", "the port is a number"),
        ("inet:x@host", "the port is a number"),
    ],
)
def test_what_is_no_address(text, error):
    with pytest.raises(ValueError, match=error):
        parse_endpoint(text)


class Lost(asyncio.Protocol):
    """Tells when its connection is gone, which it hurries."""

    def __init__(self):
        self.lost = asyncio.Event()

    def connection_made(self, transport):
        transport.close()

    def connection_lost(self, _exc):
        self.lost.set()


async def connects(endpoint, peer):
    _, protocol = await endpoint.connect(Lost)
    async with asyncio.timeout(5):
        await protocol.lost.wait()
        await peer.lost.wait()


async def test_a_unix_socket(tmp_path):
    path, peer = str(tmp_path / "s"), Lost()
    server = await asyncio.get_running_loop().create_unix_server(lambda: peer, path)
    async with server:
        await connects(Endpoint(path=path), peer)


@pytest.fixture
def full(tmp_path):
    """A listener with a client in its backlog, which has no room for another."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        yield listener


async def test_a_full_backlog_is_waited_for(full):
    connecting = asyncio.get_running_loop().create_task(Endpoint(path=full.getsockname()).connect(Lost))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(connecting), 0.05)
    full.accept()[0].close()
    _, protocol = await connecting
    await protocol.lost.wait()


async def test_a_full_backlog_and_no_patience(full):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Endpoint(path=full.getsockname()).connect(Lost), 0.05)


async def test_a_protocol_that_cannot_be_made(tmp_path):
    def broken():
        raise ValueError("broken")

    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(ValueError, match="broken"):
            await Endpoint(path=path).connect(broken)


def test_any_port_may_be_listened_on():
    assert parse_endpoint("inet:127.0.0.1:0", listening=True) == Endpoint(host="127.0.0.1", port=0)
    assert parse_endpoint("inet6:0@::1", listening=True) == Endpoint(host="::1", port=0, family="inet6")
    with pytest.raises(ValueError, match="from 0 to 65535"):
        parse_endpoint("inet:127.0.0.1:65536", listening=True)


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", "inet"), ("::1", "inet"), ("::1", "inet6"), ("localhost", "inet")]
)
async def test_a_tcp_port(host, family):
    peer = Lost()
    server = await asyncio.get_running_loop().create_server(lambda: peer, host, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await connects(Endpoint(host=host, port=port, family=family), peer)


async def test_inet6_does_not_take_ipv4():
    with pytest.raises(socket.gaierror):
        await Endpoint(host="127.0.0.1", port=1, family="inet6").connect(asyncio.Protocol)


@pytest.mark.parametrize("host", ["ex..ample", "a" * 64 + ".example", "nul\0.example"])
async def test_what_is_no_host_name(host):
    """The codec for names is the only one to complain of these, and does not do so by an OSError."""
    with pytest.raises(OSError, match="is no host name"):
        await Endpoint(host=host, port=25).connect(asyncio.Protocol)
