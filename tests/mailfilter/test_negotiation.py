from dataclasses import replace

import pytest

from milterchain.mailfilter import ACCEPT, BodyOptions, DecideAt, FilterOptions
from milterchain.mailfilter.negotiation import decision_command, macros_for, negotiation_for, protocol_for
from milterchain.milter.filter import Milter
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Action, Command, Protocol, Stage
from milterchain.milter.messages import OptNeg
from milterchain.milter.negotiation import DECLINE, Negotiated, negotiate_as_mta
from milterchain.milter.server_options import NegotiationOptions

C, H, M, R, T, L, N, B, E = (
    *(Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.DATA),
    *(Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE),
)


async def anybody(_check):
    return ACCEPT


def negotiated(version: int = 6, **options) -> Negotiated:
    offer = OptNeg(version=version, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
    settings = negotiation_for(FilterOptions(**options), NegotiationOptions())
    return negotiate_as_mta(offer, settings.answer(offer, Milter))


@pytest.mark.parametrize(
    ("options", "sent", "answered"),
    [
        ({"decide_at": DecideAt.CONNECT}, {C}, {C}),
        ({"decide_at": DecideAt.HELO}, {C, H}, {H}),
        ({"decide_at": DecideAt.MAIL}, {C, H, M}, {M}),
        ({"decide_at": DecideAt.DATA}, {C, H, M, R, T}, {T}),
        ({"decide_at": DecideAt.END_OF_HEADERS}, {C, H, M, R, L, N}, {N}),
        ({"decide_at": DecideAt.END_OF_MESSAGE}, {C, H, M, R, L, B}, {B}),
        ({}, {C, H, M, R, L, B}, {B}),
        ({"body": None}, {C, H, M, R, L}, set()),
        ({"decide_at": DecideAt.CONNECT, "validate_recipient": anybody}, {C, H, M, R}, {C, R}),
        ({"decide_at": DecideAt.MAIL, "validate_recipient": anybody}, {C, H, M, R}, {M, R}),
        ({"body": None, "validate_recipient": anybody}, {C, H, M, R, L}, {R}),
        ({"decide_at": DecideAt.DATA, "body": BodyOptions()}, {C, H, M, R, T}, {T}),
    ],
)
def test_only_what_is_needed_is_sent_and_answered(options, sent, answered):
    agreed = negotiated(**options)
    assert {command for command in DECLINE if agreed.wants(command)} == sent
    assert agreed.answered == answered | {E}
    assert agreed.leading_space
    assert agreed.protocol & Protocol.SKIP


@pytest.mark.parametrize(
    ("version", "decide_at", "sent", "point"),
    [
        (2, DecideAt.DATA, {C, H, M, R, N}, N),
        (3, DecideAt.DATA, {C, H, M, R, N}, N),
        (4, DecideAt.DATA, {C, H, M, R, T}, T),
        (2, DecideAt.END_OF_HEADERS, {C, H, M, R, L, N}, N),
        (2, DecideAt.CONNECT, {C}, C),
    ],
)
def test_old_versions_know_no_data(version, decide_at, sent, point):
    agreed = negotiated(version, decide_at=decide_at)
    assert agreed.version == version
    assert {command for command in DECLINE if agreed.wants(command)} == sent
    assert decision_command(decide_at, version) is point
    assert point in agreed.answered


def test_actions_are_taken_as_far_as_they_are_offered():
    settings = negotiation_for(FilterOptions(), NegotiationOptions())
    for actions in (Action(0), Action.ADD_HEADERS | Action.QUARANTINE, ALL_ACTIONS):
        offer = OptNeg(version=6, actions=actions, protocol=ALL_PROTOCOL)
        assert settings.answer(offer, Milter).actions == actions
    fewer = negotiation_for(FilterOptions(actions=Action.QUARANTINE), NegotiationOptions())
    offer = OptNeg(version=6, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
    assert fewer.answer(offer, Milter).actions == Action.QUARANTINE | Action.SET_MACRO_LIST


def test_macros_are_asked_for():
    names = macros_for(FilterOptions(macros={Stage.CONNECT: [b"client_rate", b"j"], Stage.DATA: (b"{xy}",)}))
    assert {b"j", b"v", b"{daemon_name}", b"{client_rate}"} <= set(names[Stage.CONNECT])
    assert {b"{tls_version}", b"{cert_issuer}"} <= set(names[Stage.HELO])
    assert {b"i", b"{auth_authen}", b"{mail_mailer}"} <= set(names[Stage.MAIL])
    assert {b"i", b"{rcpt_mailer}"} <= set(names[Stage.RCPT])
    assert set(names[Stage.DATA]) == {b"i", b"{xy}"}
    assert all(len(set(found)) == len(found) for found in names.values())
    assert negotiated().macros == names | {Stage.DATA: (b"i",), Stage.CONNECT: names[Stage.CONNECT][:-1]}


def test_explicit_options_win():
    offer = OptNeg(version=6, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
    base = NegotiationOptions(
        actions=Action.QUARANTINE,
        optional_actions=Action.ADD_HEADERS,
        protocol=Protocol.NO_HELO,
        macros={},
        max_version=4,
    )
    answer = negotiation_for(FilterOptions(), base).answer(offer, Milter)
    assert answer.version == 4
    assert answer.actions == Action.QUARANTINE | Action.ADD_HEADERS
    assert answer.protocol == Protocol.NO_HELO
    assert answer.macros == {}


def test_an_expert_has_the_last_word():
    offer = OptNeg(version=6, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
    seen = []

    def last(offered: OptNeg, answer: OptNeg) -> OptNeg:
        seen.append((offered, answer.protocol))
        return replace(answer, protocol=Protocol.NO_MAIL)

    answer = negotiation_for(FilterOptions(), NegotiationOptions(callback=last)).answer(offer, Milter)
    assert answer.protocol == Protocol.NO_MAIL
    assert seen == [(offer, protocol_for(FilterOptions(), 6))]
