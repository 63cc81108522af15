"""What the server uses of aiosmtpd and asyncio beyond their public interface.

If one of these fails after an update, `milterchain.smtp.channel` must be looked at before a release.
"""

import asyncio
import inspect
import logging
from asyncio import sslproto
from importlib.metadata import version

import pytest
import uvloop
from aiosmtpd import smtp

from milterchain.smtp.channel import READ_AHEAD, Channel


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request):
    loop = request.param()
    yield loop
    loop.close()


@pytest.fixture
def channel(loop):
    return Channel(b"mx.example", 300, loop)


def test_pinned_version():
    assert version("aiosmtpd") == "1.4.6"


def test_methods_that_are_overridden_exist_and_are_called():
    for name in (
        "_handle_client",
        "_reset_timeout",
        "_timeout_cb",
        "connection_made",
        "connection_lost",
        "eof_received",
    ):
        assert callable(getattr(smtp.SMTP, name))
    made = inspect.getsource(smtp.SMTP.connection_made)
    assert "self.loop.create_task(" in made
    assert "self._handle_client())" in made
    assert "self._handler_coroutine = " in made
    assert "self._reset_timeout()" in made
    assert "super().connection_made(transport)" in made


def test_a_writer_gets_another_transport_for_tls():
    """As here. A new one in its place would not do: since Python 3.13 the old one closes what it wrote to."""
    assert "self._transport = new_transport" in inspect.getsource(asyncio.StreamWriter.start_tls)


def test_stream_reader_protocol_is_the_base():
    """`connection_lost` and `eof_received` skip aiosmtpd's own, which would cancel the session."""
    assert smtp.SMTP.__bases__ == (asyncio.StreamReaderProtocol,)
    assert "self._handler_coroutine.cancel()" in inspect.getsource(smtp.SMTP.connection_lost)
    assert "self._handler_coroutine.cancel()" in inspect.getsource(smtp.SMTP.eof_received)
    lost = inspect.getsource(asyncio.StreamReaderProtocol.connection_lost)
    assert "feed_eof()" in lost
    assert "set_exception(exc)" in lost


def test_attributes_that_are_used(channel):
    assert channel._timeout_handle is None
    assert channel._handler_coroutine is None
    assert channel.transport is None
    assert channel.loop is not None


def test_constructor_searches_only_what_dir_lists(channel):
    assert channel._auth_methods == {}
    assert channel._smtp_methods == {}
    assert channel._handle_hooks == {}


def test_size_limits_of_others_stay(loop):
    """aiosmtpd clears a dict of the class in each constructor; nothing here depends on it."""
    smtp.SMTP.command_size_limits["X"] = 1
    Channel(b"mx.example", 300, loop)
    assert "command_size_limits" not in inspect.getsource(Channel)


def test_reader_limit(channel):
    assert channel._stream_reader._limit == READ_AHEAD


class Transport(asyncio.Transport):
    """Notes what is asked of it."""

    def __init__(self):
        super().__init__({"peername": ("192.0.2.1", 4000)})
        self.paused = 0
        self.resumed = 0

    def pause_reading(self):
        self.paused += 1

    def resume_reading(self):
        self.resumed += 1

    def is_closing(self):
        return False

    def close(self):
        pass


def test_reader_buffer(loop):
    """The buffer is a bytearray that stays the same object, and waiting resumes a paused transport."""
    reader = asyncio.StreamReader(limit=10, loop=loop)
    transport = Transport()
    reader.set_transport(transport)
    buffer = reader._buffer
    assert type(buffer) is bytearray
    reader.feed_data(b"x" * 30)
    assert transport.paused == 1
    assert reader._buffer is buffer
    buffer.clear()

    async def wait():
        loop.call_soon(reader.feed_data, b"more")
        await reader._wait_for_data("test")

    loop.run_until_complete(wait())
    assert transport.resumed == 1
    assert buffer == b"more"
    reader.feed_data(b"!")
    assert buffer == b"more!"
    assert reader._buffer is buffer


def test_waiting_ends_with_the_input(loop):
    async def wait():
        reader = asyncio.StreamReader(loop=loop)
        loop.call_soon(reader.feed_eof)
        await reader._wait_for_data("test")
        reader = asyncio.StreamReader(loop=loop)
        loop.call_soon(reader.set_exception, ConnectionResetError())
        with pytest.raises(ConnectionResetError):
            await reader._wait_for_data("test")

    loop.run_until_complete(wait())


def test_timer_handles_tell_when(loop):
    handle = loop.call_at(loop.time() + 100, print)
    assert handle.when() == pytest.approx(loop.time() + 100, abs=1)
    handle.cancel()


def test_aiosmtpd_is_quiet():
    assert smtp.log is logging.getLogger("mail.log")
    assert not smtp.log.isEnabledFor(logging.INFO)


def test_what_tls_takes_over(channel):
    """`Channel._start_tls` tells the reader of its new transport, which begins unpaused."""
    reader = channel._stream_reader
    assert reader._transport is None
    assert reader._paused is False
    assert channel._over_ssl is False
    assert channel._transport is None


@pytest.mark.parametrize("kind", [sslproto.SSLProtocol, uvloop.loop.SSLProtocol])
def test_tls_takes_octets_from_elsewhere(kind):
    assert callable(kind.get_buffer)
    assert callable(kind.buffer_updated)
