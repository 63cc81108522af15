"""For which clients and messages a milter is asked, and that those who are not cost nothing."""

import ipaddress
import itertools
from dataclasses import replace

import pytest

from milterchain.chain.client import AuthInfo, ClientInfo
from milterchain.chain.conditions import Conditions, domains
from milterchain.chain.session import Chain
from milterchain.chain.verdict import Kind
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import parse_message
from milterchain.milter.flags import Command, Family
from milterchain.milter.messages import AddHeader, Continue, Discard, Rcpt, Reject, ReplyCode, TempFail
from milterchain.testing.faults import Close, InTurn


def networks(*texts):
    return tuple(map(ipaddress.ip_network, texts))


def client(address, family=Family.INET, listener=b"smtp"):
    return ClientInfo(address=address, family=family, listener=listener)


@pytest.mark.parametrize(
    ("conditions", "meant", "not_meant"),
    [
        (Conditions(), [client("192.0.2.7"), client("/run/x", Family.UNIX), client("")], []),
        (
            Conditions(clients=networks("192.0.2.0/24", "2001:db8::/32")),
            [
                client("192.0.2.7"),
                client("2001:db8::1", Family.INET6),
                client("::ffff:192.0.2.7", Family.INET6),
            ],
            [
                client("198.51.100.1"),
                client("2001:db9::1", Family.INET6),
                client("/run/x", Family.UNIX),
                client("", Family.UNKNOWN),
            ],
        ),
        (
            Conditions(not_clients=networks("192.0.2.0/24")),
            [client("198.51.100.1"), client("/run/x", Family.UNIX), client("", Family.UNKNOWN)],
            [client("192.0.2.7"), client("::ffff:192.0.2.7", Family.INET6)],
        ),
        (
            Conditions(clients=networks("10.0.0.0/8"), not_clients=networks("10.1.0.0/16")),
            [client("10.2.0.1")],
            [client("10.1.0.1"), client("192.0.2.7")],
        ),
        (
            Conditions(listeners=frozenset({b"mx", b"lan"})),
            [client("192.0.2.7", listener=b"mx"), client("192.0.2.7", listener=b"lan")],
            [client("192.0.2.7", listener=b"submission"), client("192.0.2.7", listener=b"")],
        ),
    ],
)
def test_clients(conditions, meant, not_meant):
    assert [each for each in meant + not_meant if conditions.client(each)] == meant
    assert not conditions.late


@pytest.mark.parametrize(
    ("conditions", "sender", "authenticated", "meant"),
    [
        (Conditions(), b"<>", False, True),
        (Conditions(authenticated="only"), b"<a@x.test>", True, True),
        (Conditions(authenticated="only"), b"<a@x.test>", False, False),
        (Conditions(authenticated="never"), b"<a@x.test>", True, False),
        (Conditions(authenticated="never"), b"<a@x.test>", False, True),
        (Conditions(senders=domains(["x.test"])), b"<a@X.TEST>", False, True),
        (Conditions(senders=domains(["x.test"])), b"a@x.test", False, True),
        (Conditions(senders=domains(["x.test"])), b"<a@y.x.test>", False, False),
        (Conditions(senders=domains([".x.test"])), b"<a@y.x.test>", False, True),
        (Conditions(senders=domains(["x.test"])), b'<"a@x.test"@y.test>', False, False),
        (Conditions(senders=domains(["x.test"])), b"<>", False, False),
        (Conditions(senders=domains(["x.test"]), authenticated="only"), b"<a@x.test>", False, False),
    ],
)
def test_messages(conditions, sender, authenticated, meant):
    assert conditions.message(Path(sender), authenticated=authenticated) is meant


@pytest.mark.parametrize(
    ("recipient", "meant"),
    [(b"<a@x.test>", True), (b"<a@y.test>", False), (b"<postmaster>", False), (b"<a@X.test.>", True)],
)
def test_recipients(recipient, meant):
    assert Conditions(recipients=domains(["x.test"])).recipient(Path(recipient)) is meant
    assert Conditions(recipients=domains([])).recipient(Path(recipient)) is True


ONLY_X = Conditions(recipients=domains(["x.test"]))
X1, X2, Y1, Y2 = (Path(address) for address in (b"<1@x.test>", b"<2@x.test>", b"<1@y.test>", b"<2@y.test>"))


async def over(lab, session):
    """End a session, and wait until the milters have heard so."""
    await session.close()
    for milter in lab.milters:
        if milter.connections:
            await milter.wait_closed(len(milter.connections) - 1)


async def message(session, *recipients, sender=b"<s@a.test>"):
    """A transaction: whether MAIL, which recipients and whether DATA were taken; and the outcome."""
    path = Path(sender)
    if (await session.mail(path, b"Q1")).decides:
        return False, [], None
    taken = [recipient for recipient in recipients if not (await session.rcpt(recipient)).decides]
    if not taken or (await session.data()).decides:
        session.abort()
        return True, taken, None
    return (
        True,
        taken,
        await session.content(parse_message(b"Subject: x\r\n\r\nx\r\n"), Envelope(path, tuple(taken))),
    )


async def test_one_that_is_not_meant_is_not_even_connected_to(lab):
    await lab.milter()
    await lab.milter()
    session = await lab.greeted({"conditions": Conditions(clients=networks("10.0.0.0/8"))})
    _, taken, outcome = await message(session, X1)
    await session.unknown(b"WHAT")
    await over(lab, session)
    assert (taken, outcome.verdict.kind) == ([X1], Kind.CONTINUE)
    assert lab.milters[0].connections == []
    assert lab.milters[1].connections[0].codes == "OCHMRTLNBEUQ"


@pytest.mark.parametrize("authenticated", ["only", "never"])
async def test_login(lab, authenticated):
    await lab.milter()
    session = await lab.greeted({"conditions": Conditions(authenticated=authenticated)})
    assert lab.milters[0].connections == []
    await message(session, X1)
    session.auth(AuthInfo(mechanism=b"PLAIN", identity=b"ann"))
    await message(session, X1)
    await over(lab, session)
    (connection,) = lab.milters[0].connections
    # Introduced when the first message comes that it is meant for, and told of one message only.
    assert connection.codes in {"OCHMRTLNBEQ", "OCHMRTLNBEAQ"}
    assert not connection.violations


async def test_senders(lab):
    await lab.milter()
    session = await lab.greeted({"conditions": Conditions(senders=domains(["a.test"]))})
    for sender in (b"<s@b.test>", b"<s@a.test>", b"<>", b"<t@a.test>"):
        _, _, outcome = await message(session, X1, sender=sender)
        assert outcome is not None
    await over(lab, session)
    (connection,) = lab.milters[0].connections
    assert [mail.address for mail in connection.commands if mail.code == Command.MAIL] == [
        b"<s@a.test>",
        b"<t@a.test>",
    ]
    assert connection.codes.startswith("OCHMRTLNBE")


@pytest.mark.parametrize("order", list(itertools.permutations([X1, Y1, X2, Y2])))
async def test_the_order_of_recipients_makes_no_difference(lab, order):
    """It hears of its own recipients, refuses one of them, and sees the message."""
    refuse = lambda rcpt: Reject() if rcpt.address == X2.address else Continue()  # noqa: E731
    await lab.milter({Command.RCPT: refuse, Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Continue()]})
    await lab.milter()
    session = await lab.greeted({"conditions": ONLY_X})
    _, taken, outcome = await message(session, *order)
    await over(lab, session)
    assert sorted(path.address for path in taken) == [X1.address, Y1.address, Y2.address]
    assert b"X: 1" in outcome.message.headers.raw
    only, every = (milter.connections[0] for milter in lab.milters)
    assert {rcpt.address for rcpt in only.of(Rcpt)} == {X1.address, X2.address}
    assert only.codes == "OCHMRRTLNBEQ"
    assert every.codes.endswith("TLLNBEQ")
    assert not only.violations
    assert not every.violations


async def test_a_message_without_one_of_its_recipients_costs_nothing(lab):
    await lab.milter()
    session = await lab.greeted({"conditions": ONLY_X})
    _, taken, outcome = await message(session, Y1, Y2)
    await over(lab, session)
    assert taken == [Y1, Y2]
    assert outcome.verdict.kind is Kind.CONTINUE
    assert lab.milters[0].connections == []


@pytest.mark.parametrize("order", [(X1, Y1, X2), (Y1, X1, X2), (X1, X2, Y1)])
@pytest.mark.parametrize("answer", [Reject(), TempFail(), ReplyCode(b"550 5.7.1 no")], ids=str)
async def test_a_refusal_at_mail_is_one_of_each_of_its_recipients(lab, order, answer):
    await lab.milter({Command.MAIL: InTurn(answer, Continue())})
    session = await lab.greeted({"conditions": ONLY_X})
    _, taken, outcome = await message(session, *order)
    assert taken == [Y1]
    assert outcome.verdict.kind is Kind.CONTINUE
    _, taken, outcome = await message(session, *order)
    assert taken == list(order)
    assert outcome is not None
    await over(lab, session)
    assert lab.milters[0].connections[0].codes.replace("A", "") == "OCHMMRRTLNBEQ"


@pytest.mark.parametrize("at", [Command.CONNECT, Command.HELO])
async def test_a_late_refusal_of_the_client_concerns_its_messages_only(lab, at):
    await lab.milter({at: ReplyCode(b"550 5.7.1 not you")})
    session = await lab.greeted({"conditions": Conditions(senders=domains(["a.test"]))})
    for _ in range(2):
        assert (await message(session, X1, sender=b"<s@a.test>"))[0] is False
        assert (await message(session, X1, sender=b"<s@b.test>"))[2].verdict.kind is Kind.CONTINUE
    assert len(lab.milters[0].connections) == 1


async def test_a_late_refusal_stops_no_other_from_opening(lab):
    """Both are opened at the same message; the second is there for the next one."""
    await lab.milter({Command.CONNECT: Reject()})
    await lab.milter()
    session = await lab.greeted(
        {"conditions": Conditions(senders=domains(["a.test"]))},
        {"conditions": Conditions(senders=domains(["a.test", "b.test"]))},
    )
    assert (await message(session, X1, sender=b"<s@a.test>"))[0] is False
    assert (await message(session, X1, sender=b"<s@b.test>"))[2] is not None
    await over(lab, session)
    assert lab.milters[1].connections[0].codes.replace("A", "") in {"OCHMMRTLNBEQ", "OCHMRTLNBEQ"}


@pytest.mark.parametrize("action", ["reject", "accept"])
async def test_the_default_action_concerns_its_messages_only(lab, action):
    await lab.milter({Command.MAIL: Close()})
    session = await lab.greeted({"conditions": ONLY_X, "default_action": action})
    for _ in range(2):
        assert (await message(session, Y1))[2].verdict.kind is Kind.CONTINUE
        _, taken, _ = await message(session, Y1, X1)
        assert taken == ([Y1] if action == "reject" else [Y1, X1])
    assert len(lab.milters[0].connections) == 1


async def test_a_discard_is_for_the_whole_message(lab):
    await lab.milter({Command.RCPT: Discard()})
    session = await lab.greeted({"conditions": ONLY_X})
    await session.mail(Path(b"<s@a.test>"), b"Q1")
    assert not (await session.rcpt(Y1)).decides
    assert (await session.rcpt(X1)).kind is Kind.DISCARD
    session.abort()
    assert (await message(session, Y1))[2].verdict.kind is Kind.CONTINUE


async def test_when_all_its_recipients_are_refused_it_does_not_see_the_message(lab):
    await lab.milter()
    await lab.milter({Command.RCPT: lambda rcpt: Reject() if b"@x" in rcpt.address else Continue()})
    session = await lab.greeted({"conditions": ONLY_X})
    _, taken, outcome = await message(session, X1, Y1)
    assert taken == [Y1]
    assert outcome.verdict.kind is Kind.CONTINUE
    await over(lab, session)
    assert lab.milters[0].connections[0].codes == "OCHMRAQ"


async def test_the_story_is_told_again_with_its_own_recipients(lab):
    await lab.milter()
    await lab.milter({Command.RCPT: lambda rcpt: Reject() if rcpt.address == X1.address else Continue()})
    session = await lab.greeted({"conditions": ONLY_X})
    _, taken, _ = await message(session, Y1, X1, X2)
    assert taken == [Y1, X2]
    await over(lab, session)
    connection = lab.milters[0].connections[0]
    assert connection.codes == "OCHMRRAMRTLNBEQ"
    assert [rcpt.address for rcpt in connection.of(Rcpt)] == [X1.address, X2.address, X2.address]


async def test_helo_again_reaches_those_that_are_open(lab):
    await lab.milter()
    session = await lab.greeted({"conditions": Conditions(senders=domains(["a.test"]))})
    await session.helo(b"again.test", True)
    assert lab.milters[0].connections == []
    await message(session, X1, sender=b"<s@a.test>")
    await session.helo(b"third.test", True)
    await message(session, X1, sender=b"<s@a.test>")
    await over(lab, session)
    assert lab.milters[0].connections[0].codes == "OCHMRTLNBEHMRTLNBEQ"


async def test_kept_connections_serve_late_milters_too(lab):
    await lab.milter()
    settings = lab.settings(lab.milters[0], reuse=True, conditions=Conditions(senders=domains(["a.test"])))
    chain = Chain([settings], hostname=b"mx.test")
    for _ in range(3):
        session = chain.session(replace(lab.client))
        await session.connect()
        await session.helo(b"x", True)
        assert (await message(session, X1, sender=b"<s@a.test>"))[2] is not None
        await session.close()
    await chain.close()
    await lab.milters[0].wait_closed()
    (connection,) = lab.milters[0].connections
    assert connection.codes == "O" + "CHMRTLNBEK" * 3 + "Q"
