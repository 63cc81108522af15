"""BDAT with a real Postfix: clients that use it towards us, and we towards Postfix."""

import asyncio

import pytest

from integration.corpus import head
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run
from integration.services.proxy import Proxy, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Answer, Client
from milterchain.mail.replies import Reply
from milterchain.smtp.client import SMTPClient

SMUGGLED = b"\r\n.\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\n.\r\n"


@pytest.fixture(scope="module")
def sink(run: Run) -> Sink:
    return start_sink(run)


@pytest.fixture(scope="module")
def postfix(run: Run, sink: Sink) -> Postfix:
    return start_postfix(run, "postfix", relay_to=sink.address)


@pytest.fixture(scope="module")
def proxy(run: Run, postfix: Postfix) -> Proxy:
    return start_proxy(run, next_hop=f"smtp:{postfix.address}")


def _chunk(data: bytes, *, last: bool = True) -> bytes:
    return b"BDAT %d%b\r\n" % (len(data), b" LAST" if last else b"") + data


def _codes(client: Client, count: int) -> list[int]:
    return [client.read().code for _ in range(count)]


def test_chunks_in_one_group(proxy: Proxy, sink: Sink) -> None:
    content = head("chunks") + b"\r\n.dot\r\n" + SMUGGLED + b"end\r\n"
    with Client(proxy.address) as client:
        assert client.greeting is not None
        assert {b"CHUNKING", b"LIMITS RCPTMAX=1000"} <= set(client.greeting.lines)
        assert b"BINARYMIME" not in client.greeting.lines  # Postfix does not know it
        envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<chunks@example.net>\r\n"
        parts = _chunk(content[:50], last=False) + _chunk(content[50:], last=False) + b"BDAT 0 LAST\r\n"
        client.write(envelope + parts + b"NOOP\r\n")
        assert _codes(client, 6) == [250] * 6
        client.quit()
    received = sink.content(sink.wait_for_mail_to("chunks@example.net"))
    assert received.endswith(content)
    assert not [mail for mail in sink.received() if "victim" in str(mail.recipients)]


def test_as_postfix_answers(proxy: Proxy, postfix: Postfix) -> None:
    """What goes wrong is answered with the codes of Postfix."""
    mail, rcpt = b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<c@example.net>\r\n"
    groups = [
        (_chunk(b"x"), 1),
        (mail + _chunk(b"x"), 2),
        (mail + rcpt + _chunk(head("x"), last=False) + b"MAIL FROM:<b@example.com>\r\n", 4),
        (mail + rcpt + _chunk(head("x"), last=False) + rcpt, 4),
        (mail + rcpt + _chunk(head("x"), last=False) + b"RSET\r\n" + _chunk(b"y"), 5),
    ]
    for group, count in groups:
        answers = []
        for address in (proxy.address, postfix.address):
            with Client(address) as client:
                client.write(group)
                answers.append(_codes(client, count))
        assert answers[0] == answers[1], group


def test_postfix_takes_our_chunk(postfix: Postfix, sink: Sink) -> None:
    content = head("ours") + b"\r\n.dot\r\n" + SMUGGLED + b"x" * 200 + b"\r\n" * 50_000

    async def send() -> tuple[Reply, ...]:
        host, _, port = postfix.address.rpartition(":")
        client = await SMTPClient.open((host, int(port)))
        assert b"CHUNKING" in client.features
        replies = await client.exchange(b"MAIL FROM:<a@example.com>", b"RCPT TO:<ours@example.net>")
        pieces = [content[at : at + 65_536] for at in range(0, len(content), 65_536)]
        final = await client.chunk(pieces, len(content))
        after = await client.exchange(b"NOOP")
        client.quit()
        await client.wait_closed()
        return (*replies, final, *after)

    assert [reply.code for reply in asyncio.run(send())] == [250] * 4
    assert sink.content(sink.wait_for_mail_to("ours@example.net")).endswith(content)
    assert not [mail for mail in sink.received() if "victim" in str(mail.recipients)]


def test_etrn_is_answered(proxy: Proxy) -> None:
    with Client(proxy.address) as client:
        assert client.command(b"ETRN example.net") == Answer(
            458, (b"4.5.1 Unable to queue messages: there is no queue here",)
        )
        client.quit()
