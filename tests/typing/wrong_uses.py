"""Mistakes that a type checker must find; each line says which error `mypy --strict` reports for it."""

# ruff: noqa: ARG001, ARG002, B018 - nothing here is to run

from milterchain.mailfilter import ACCEPT, Decision, FilterOptions, MailFilter, Transaction, custom
from milterchain.milter import (
    Accept,
    AddHeader,
    ClientOptions,
    Connect,
    Endpoint,
    Milter,
    MilterServer,
    MilterSession,
    Modifier,
    MtaSession,
    Negotiated,
    Rcpt,
    no_reply,
    reply,
)
from milterchain.testing import TransactionBuilder

HERE = [Endpoint(host="127.0.0.1")]


async def decides_nothing(trx: Transaction) -> None:
    trx.headers.subject = 3  # error: [assignment]
    trx.headers.set("Subject", "text")  # error: [arg-type, arg-type]
    trx.body.write("text")  # error: [call-overload]
    trx.sender = trx.recipients[0]  # error: [assignment, misc]
    trx.subject = "new"  # error: [attr-defined]


def decides_at_once(trx: Transaction) -> Decision:
    return ACCEPT


async def decides_by_a_reply(trx: Transaction) -> Decision:
    return Accept()  # error: [return-value]


MailFilter(decides_nothing, HERE)  # error: [arg-type]
MailFilter(decides_at_once, HERE)  # error: [arg-type]
FilterOptions(decide_at="mail")  # error: [arg-type]
FilterOptions(decided_at=1)  # error: [call-arg]
custom("550", "5.7.1")  # error: [arg-type]
ACCEPT.reply = Accept()  # error: [misc]


class Strings(Milter):
    async def mail(self, sender: str, args: tuple[str, ...]) -> None:  # error: [override, override]
        """Addresses are bytes."""

    def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> None:  # error: [override]
        """Methods are asynchronous."""

    async def header(self, name: bytes, value: bytes) -> str:  # error: [override]
        return "accept"

    @no_reply  # error: [arg-type]
    async def body(self, chunk: bytes) -> Accept:
        return Accept()

    async def end_of_message(self, modifier: Modifier) -> None:
        await modifier.add_header("X", "y")  # error: [arg-type, arg-type]
        modifier.add_header(b"X", b"y")  # error: [unused-coroutine]
        await modifier.replace_body("text")  # error: [arg-type]
        await modifier.insert_header(b"X", b"y")  # error: [call-arg]


def makes_strings(negotiated: Negotiated) -> str:
    return "filter"


MilterServer(Strings(), HERE)  # error: [arg-type]
MilterServer(makes_strings, HERE)  # error: [arg-type]
MilterServer.dynamic(makes_strings, HERE)  # error: [arg-type]
reply("550", None)  # error: [arg-type]


async def ask(session: MilterSession, mta: MtaSession) -> None:
    session.command(Accept())  # error: [arg-type]
    await session.command(Rcpt(b"<>"))  # error: [misc]
    session.command(Rcpt("<a@example.test>"))  # error: [arg-type]
    await mta.connect("client.test")  # error: [arg-type]
    (await mta.end_of_message()).refusal.code  # error: [union-attr]
    Connect(b"client.test")  # error: [call-arg]
    AddHeader(b"X", b"y").name = b"Z"  # error: [misc]
    ClientOptions(version="6")  # error: [arg-type]
    TransactionBuilder().recipient(3)  # error: [arg-type]
