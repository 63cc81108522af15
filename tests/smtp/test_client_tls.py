"""The client's TLS: what each level demands, and what a server, or somebody between, can do against it."""

import asyncio
import dataclasses
import ssl
from pathlib import Path

import pytest

from milterchain.errors import NextHopClosedError, NextHopError, NextHopProtocolError, NextHopTLSError
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_options import ClientOptions
from milterchain.smtp.client_tls import ClientTLS, TLSLevel
from milterchain.testing.scripted_next_hop import KEYWORDS, ScriptedNextHop

FILES = Path(__file__).parents[1] / "certificates"
AUTHORITY = str(FILES / "authority.pem")
STARTTLS = (*KEYWORDS, "STARTTLS")
LEVELS: tuple[TLSLevel, ...] = ("may", "encrypt", "verify")


def server(name: str = "server") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(FILES / f"{name}.pem", FILES / f"{name}.key")
    return context


async def connect(
    hop: ScriptedNextHop,
    level: TLSLevel,
    *,
    ca_file: str | None = AUTHORITY,
    host: str = "127.0.0.1",
    implicit: bool = False,
    within: float = 10,
) -> SMTPClient:
    made = ClientTLS.of(level, ca_file=ca_file)
    tls = ClientTLS(level=level, context=made.context, implicit=implicit, handshake_timeout=within)
    return await SMTPClient.open((host, hop.port), ClientOptions(tls=tls))


async def finish(client: SMTPClient) -> None:
    client.quit()
    await client.wait_closed()


@pytest.mark.parametrize("level", LEVELS)
async def test_starttls(level: TLSLevel) -> None:
    async with ScriptedNextHop(tls=server(), keywords=STARTTLS) as hop:
        client = await connect(hop, level)
        assert (client.encrypted, client.verified, client.private) == (True, level == "verify", True)
        assert client.pipelining
        await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>")
        assert (await client.data([b"x: y\r\n\r\n" + b"z" * 70 + b"\r\n"] * 5000)).code == 250
        await finish(client)
        assert hop.connections[0].verbs == "EHLO STARTTLS EHLO MAIL RCPT DATA . QUIT"
        assert hop.connections[0].violations == []


@pytest.mark.parametrize("level", LEVELS)
async def test_implicit(level: TLSLevel) -> None:
    async with ScriptedNextHop(tls=server(), implicit_tls=True, keywords=STARTTLS) as hop:
        client = await connect(hop, level, implicit=True)
        assert (client.encrypted, client.verified) == (True, level == "verify")
        await finish(client)
        assert hop.connections[0].verbs == "EHLO QUIT"


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(("certificate", "ca_file"), [("other", AUTHORITY), ("server", None)])
async def test_only_verify_minds_the_certificate(
    certificate: str, ca_file: str | None, *, implicit: bool
) -> None:
    async with ScriptedNextHop(tls=server(certificate), implicit_tls=implicit, keywords=STARTTLS) as hop:
        with pytest.raises(NextHopTLSError, match="certificate"):
            await connect(hop, "verify", ca_file=ca_file, implicit=implicit)
        for level in ("encrypt", "may"):
            client = await connect(hop, level, ca_file=ca_file, implicit=implicit)
            assert (client.encrypted, client.verified) == (True, False)
            await finish(client)


async def test_the_name_is_verified_as_configured() -> None:
    async with ScriptedNextHop(tls=server(), keywords=STARTTLS) as hop:
        client = await connect(hop, "verify", host="localhost")
        assert client.verified
        await finish(client)


@pytest.mark.parametrize(
    ("script", "keywords"), [({}, KEYWORDS), ({"STARTTLS": "454 4.7.0 TLS not available"}, STARTTLS)]
)
async def test_may_goes_without_where_there_is_none(script, keywords: tuple[str, ...]) -> None:
    async with ScriptedNextHop(script, keywords=keywords) as hop:
        client = await connect(hop, "may")
        assert not client.encrypted
        assert client.usable
        await finish(client)
        for level in ("encrypt", "verify"):
            with pytest.raises(NextHopTLSError, match="STARTTLS"):
                await connect(hop, level)
        assert len(hop.connections) == 3


class HalfTLS:
    """A server that says 220 to STARTTLS and then does something else than TLS."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self.verbs: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hop\r\n")
        try:
            while line := await reader.readline():
                verb = line.split()[0].decode()
                self.verbs.append(verb)
                writer.write(b"250-hop\r\n250 STARTTLS\r\n" if verb == "EHLO" else b"220 go\r\n")
                if verb == "STARTTLS":
                    await reader.read(5)
                    if self._answer is None:
                        await reader.read(-1)
                    else:
                        writer.write(self._answer)
                        break
        except OSError:
            pass
        finally:
            writer.close()


@pytest.mark.parametrize("answer", [b"no TLS\r\n" * 10, b"", None], ids=["garbage", "close", "silence"])
@pytest.mark.parametrize("level", LEVELS)
async def test_a_handshake_that_fails(level: TLSLevel, answer: bytes | None) -> None:
    """`may` makes a new connection without TLS; the others do not."""
    served = HalfTLS(answer)
    listening = await asyncio.start_server(served, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        tls = dataclasses.replace(ClientTLS.of(level), handshake_timeout=0.3 if answer is None else 10)
        opening = SMTPClient.open(("127.0.0.1", port), ClientOptions(tls=tls))
        if level == "may":
            client = await opening
            assert not client.encrypted
            client.close()
            await client.wait_closed()
            assert served.verbs == ["EHLO", "STARTTLS", "EHLO"]
        else:
            with pytest.raises(NextHopTLSError, match="no TLS"):
                await opening
            assert served.verbs == ["EHLO", "STARTTLS"]


async def test_implicit_tls_never_goes_without() -> None:
    async with ScriptedNextHop() as hop:
        with pytest.raises(NextHopTLSError):
            await connect(hop, "may", implicit=True)
        assert len(hop.connections) == 1


@pytest.mark.parametrize("injected", [b"250 2.0.0 injected\r\n", b"250"])
@pytest.mark.parametrize("level", LEVELS)
async def test_what_is_said_before_the_handshake_is_not_taken_for_later(
    level: TLSLevel, injected: bytes
) -> None:
    script = {"STARTTLS": b"220 2.0.0 go\r\n" + injected}
    async with ScriptedNextHop(script, tls=server(), keywords=STARTTLS) as hop:
        with pytest.raises((NextHopProtocolError, NextHopClosedError)):
            await connect(hop, level)
        assert len(hop.connections) == 1


async def test_what_was_offered_before_counts_no_more() -> None:
    offers = iter(["250-hop\n250-STARTTLS\n250-DSN\n250 PIPELINING", "250-hop\n250 SIZE 10"])
    async with ScriptedNextHop({"EHLO": lambda _: next(offers)}, tls=server(), keywords=STARTTLS) as hop:
        client = await connect(hop, "encrypt")
        assert dict(client.features) == {b"SIZE": b"10"}
        assert not client.pipelining
        await finish(client)


async def test_a_session_that_ends_at_starttls() -> None:
    async with ScriptedNextHop({"STARTTLS": "421 4.3.0 busy"}, keywords=STARTTLS) as hop:
        with pytest.raises(NextHopClosedError):
            await connect(hop, "may")


async def test_cancelled_amid_the_handshake() -> None:
    async with ScriptedNextHop({"STARTTLS": b"220 go\r\n"}, keywords=STARTTLS) as hop:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(connect(hop, "may", within=60))
            await hop.wait_for(lambda: hop.connections and len(hop.connections[0].reads) > 2)
            task.cancel()
        assert (await hop.wait_closed()).closed_by_peer
        assert len(hop.connections) == 1


async def test_a_unix_socket_needs_no_tls(tmp_path: Path) -> None:
    path = str(tmp_path / "hop")
    async with ScriptedNextHop(unix_path=path, keywords=STARTTLS):
        client = await SMTPClient.open(path, ClientOptions(tls=ClientTLS.of("verify")))
        assert (client.encrypted, client.private) == (False, True)
        await finish(client)


async def test_lmtp_greets_with_lhlo_and_nothing_else() -> None:
    async with ScriptedNextHop(lmtp=True) as hop:
        client = await SMTPClient.open(("127.0.0.1", hop.port), ClientOptions(lmtp=True))
        assert b"PIPELINING" in client.features
        await finish(client)
        assert hop.connections[0].verbs == "LHLO QUIT"
    async with ScriptedNextHop() as hop:
        with pytest.raises(NextHopError, match="refused our greeting"):
            await SMTPClient.open(("127.0.0.1", hop.port), ClientOptions(lmtp=True))
        assert hop.connections[0].verbs == "LHLO"


@pytest.mark.parametrize("level", LEVELS)
async def test_requiretls_counts_only_from_a_server_that_is_verified(level: TLSLevel) -> None:
    async with ScriptedNextHop(tls=server(), keywords=(*STARTTLS, "REQUIRETLS")) as hop:
        client = await connect(hop, level)
        assert (b"REQUIRETLS" in client.features) == (level == "verify")
        await finish(client)
