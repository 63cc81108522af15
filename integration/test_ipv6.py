"""IPv6 all the way: clients, milterchain, the milter and the Postfix behind it, on `::1`."""

import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest

from integration.corpus import head
from integration.services.postfix import start_postfix
from integration.services.process import Run, wait_for
from integration.services.proxy import Proxy, milter_table, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client
from integration.services.witness import Witness, start_witness

CLIENT = "2001:db8::7"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


class System(NamedTuple):
    """Two listeners, and what is behind them."""

    direct: Proxy
    balanced: Proxy
    witness: Witness
    sink: Sink


@pytest.fixture(scope="module")
def system(run: Run) -> System:
    sink = start_sink(run)
    postfix = start_postfix(
        run,
        "postfix",
        relay_to=sink.address,
        settings={
            "inet_protocols": "all",
            "inet_interfaces": "127.0.0.1, ::1",
            "mynetworks": "[::1]/128",
            "relay_domains": "example.org",
            "smtpd_authorized_xclient_hosts": "[::1]",
        },
    )
    witness = start_witness(run, host="::1")

    def start(name: str, listen: str) -> Proxy:
        return start_proxy(
            run,
            name=name,
            host="[::1]",
            next_hop=f"smtp:[::1]:{postfix.port}",
            milters=[milter_table("witness", witness.address)],
            listen=listen,
            trusted_networks='["::1"]',
        )

    direct = start("direct", 'xclient_from = ["::1"]')
    return System(direct, start("balanced", 'proxy_protocol_from = ["::1"]'), witness, sink)


def itself(system: System) -> Client:
    return Client(system.direct.address)


def by_xclient(system: System) -> Client:
    client = Client(system.direct.address)
    assert client.command(b"XCLIENT ADDR=IPV6:%b PORT=4711" % CLIENT.encode()).code == 220
    assert client.command(b"EHLO client.example.test").code == 250
    return client


def by_xforward(system: System) -> Client:
    client = Client(system.direct.address)
    command = b"XFORWARD ADDR=IPV6:%b PORT=4711 HELO=client.example.test" % CLIENT.encode()
    assert client.command(command).code == 250
    return client


def by_proxy_protocol(version: int) -> Callable[[System], Client]:
    def connect(system: System) -> Client:
        header = f"PROXY TCP6 {CLIENT} 2001:db8::25 4711 25\r\n".encode()
        if version == 2:
            addresses = [socket.inet_pton(socket.AF_INET6, each) for each in (CLIENT, "2001:db8::25")]
            header = SIGNATURE + struct.pack("!BBH16s16sHH", 0x21, 0x21, 36, *addresses, 4711, 25)
        return Client(system.balanced.address, proxied=header)

    return connect


def logged(run: Run, address: str) -> int:
    """How many messages of this client Postfix has logged."""
    return (run.directory / "postfix-mail.log").read_text().count(f": client=unknown[{address}]")


@pytest.mark.parametrize(
    ("connect", "address", "handed_in_by"),
    [
        pytest.param(itself, "::1", "::1", id="itself"),
        pytest.param(by_xclient, CLIENT, CLIENT, id="xclient"),
        pytest.param(by_xforward, CLIENT, "::1", id="xforward"),
        pytest.param(by_proxy_protocol(1), CLIENT, CLIENT, id="proxy-v1"),
        pytest.param(by_proxy_protocol(2), CLIENT, CLIENT, id="proxy-v2"),
    ],
)
def test_everybody_is_told_of_the_client(
    run: Run,
    system: System,
    connect: Callable[[System], Client],
    address: str,
    handed_in_by: str,
    request: pytest.FixtureRequest,
) -> None:
    recipient = f"{request.node.callspec.id}@example.org"
    told_before = logged(run, address)
    with connect(system) as client:
        port = client.local_port if connect is itself else 4711
        outcome = client.send(
            b"<a@example.com>", [b"<%b>" % recipient.encode()], head("six") + b"\r\nbody\r\n"
        )
        client.quit()
    assert outcome.accepted, outcome
    received = system.sink.content(system.sink.wait_for_mail_to(recipient))
    assert f"Received: from client.example.test (unknown [IPv6:{handed_in_by}])".encode() in received

    connected = [event for event in system.witness.events("connect") if event["port"] == port]
    assert {(event["family"], event["address"]) for event in connected} == {("inet6", address)}
    told = [event for event in system.witness.events("macros") if event.get("{client_port}") == str(port)]
    assert {event["{client_addr}"] for event in told} == {f"IPv6:{address}"}

    wait_for(lambda: logged(run, address) > told_before, f"Postfix logs {address}")
