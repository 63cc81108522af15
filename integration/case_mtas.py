"""The MTAs with which `integration/cases` is played, and where they deliver to."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, free_port
from integration.services.proxy import Proxy, milter_table, start_proxy
from integration.services.secured import secured
from integration.services.sendmail import start_sendmail
from integration.services.sink import Sink, start_sink
from integration.services.tls import Certificates
from milterchain.proxy.passwords import PasswordHash
from milterchain.testing.cases import Arrival, Mta, MtaTraits

HOSTNAME = "mx.example.test"
USERS = (("alice", "secret"),)

PATIENCE = "4s"
"""The MTAs wait so long for an answer to content: less than a scenario's filter works, so that signs of life
are needed, and far more than all others need.
"""


POSTFIX = MtaTraits(name="postfix", tags=frozenset(["tls", "auth", "utf8", "dsn"]))
SENDMAIL = MtaTraits(name="sendmail", tags=frozenset(["tls", "auth", "dsn"]))
"""Debian builds it without SMTPUTF8."""
MILTERCHAIN = MtaTraits(name="milterchain", like=frozenset(["postfix"]), tags=POSTFIX.tags)


@dataclass(frozen=True, slots=True)
class SinkOutbox:
    """A sink, and the queue in front of it.

    Attributes:
        sink: what the MTA delivers to.
        wait_until_empty: waits until nothing is queued.
        count_held: how many messages the MTA keeps in quarantine.
    """

    sink: Sink
    wait_until_empty: Callable[[], None]
    count_held: Callable[[], int]

    async def arrivals(self) -> list[Arrival]:
        """All that arrived so far, oldest first."""
        return [
            Arrival(
                received.sender.encode("utf-8", "surrogateescape"),
                tuple(path.encode("utf-8", "surrogateescape") for path in received.recipients),
                self.sink.content(received),
            )
            for received in self.sink.received()
        ]

    async def settle(self) -> None:
        """Wait until the queue is empty."""
        await asyncio.to_thread(self.wait_until_empty)

    async def held(self) -> int:
        """How many messages the MTA keeps in quarantine."""
        return self.count_held()


def make_postfix(run: Run, certificates: Certificates) -> Mta:
    """Postfix with its own milter client."""
    sink = start_sink(run, "postfix-sink")
    filter_address = f"inet:127.0.0.1:{free_port()}"
    options = secured(run, certificates, USERS, HOSTNAME)
    options["settings"]["milter_content_timeout"] = PATIENCE
    postfix = start_postfix(
        run, "postfix", relay_to=sink.address, milters=[filter_address], hostname=HOSTNAME, **options
    )
    return Mta(
        name=POSTFIX.name,
        tags=POSTFIX.tags,
        address=postfix.address,
        outbox=SinkOutbox(sink, postfix.wait_until_empty, lambda: _held(postfix)),
        filter_address=filter_address,
        tls={"": certificates.context(), "client": certificates.context(client=True)},
        hostname=HOSTNAME,
    )


def make_sendmail(run: Run, certificates: Certificates) -> Mta:
    """Sendmail with its own milter client."""
    sink = start_sink(run, "sendmail-sink")
    filter_address = f"inet:127.0.0.1:{free_port()}"
    sendmail = start_sendmail(
        run,
        certificates,
        relay_to=sink.address,
        milters=[filter_address],
        hostname=HOSTNAME,
        users=USERS,
        milter_timeout=PATIENCE,
    )
    return Mta(
        name=SENDMAIL.name,
        tags=SENDMAIL.tags,
        address=sendmail.address,
        outbox=SinkOutbox(sink, sendmail.wait_until_empty, sendmail.held),
        filter_address=filter_address,
        tls={"": certificates.context(), "client": certificates.context(client=True)},
        hostname=HOSTNAME,
    )


def make_milterchain(run: Run, certificates: Certificates) -> Mta:
    """Make milterchain the MTA; it must behave as Postfix does."""
    place = certificates.directory
    users = run.place("milterchain-users") / "users"
    users.write_text(
        "".join(f"{login}:{PasswordHash.make(password.encode())}\n" for login, password in USERS)
    )
    listen = (
        f'tls = {{ certificate = "{place}/server.pem", key = "{place}/server.key",'
        f' client_certificates = "request", client_ca = "{place}/authority.pem" }}\n'
        f'auth = {{ backend = "file", path = "{users}", allow_plaintext = true }}\n'
    )
    sink = start_sink(run, "milterchain-sink")
    filter_address = f"inet:127.0.0.1:{free_port()}"
    proxy = start_proxy(
        run,
        next_hop=f"smtp:{sink.address}",
        milters=[milter_table("filter", filter_address, {"content_timeout": f'"{PATIENCE}"'})],
        hostname=HOSTNAME,
        message_size="100MiB",
        listen=listen,
    )
    return Mta(
        name=MILTERCHAIN.name,
        like=MILTERCHAIN.like,
        tags=MILTERCHAIN.tags,
        address=proxy.address,
        # It answers the final dot when the next hop has.
        outbox=SinkOutbox(sink, lambda: None, lambda: _kept(proxy)),
        filter_address=filter_address,
        tls={"": certificates.context(), "client": certificates.context(client=True)},
        hostname=HOSTNAME,
    )


def _held(postfix: Postfix) -> int:
    return sum(path.is_file() for path in (postfix.queue / "hold").rglob("*"))


def _kept(proxy: Proxy) -> int:
    return len(list((proxy.config.parent / "quarantine").glob("*/envelope.json")))
