"""AUTH from the client's side: mechanisms, refusals at each step, and no password over a network in clear."""

from base64 import b64encode
from typing import Any

import pytest

from milterchain.errors import (
    NextHopClosedError,
    NextHopError,
    NextHopLoginError,
    NextHopProtocolError,
)
from milterchain.mail.replies import Reply
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_auth import Credentials, authenticate, mechanisms
from milterchain.testing.faults import InTurn
from milterchain.testing.scripted_next_hop import KEYWORDS, ScriptedNextHop

ANN = Credentials(user=b"ann", password=b"se cret")
USER, PASSWORD = (b64encode(word).decode() for word in (b"ann", b"se cret"))
ASKED = "334 VXNlcm5hbWU6"
OK = "235 2.7.0 ok"


def script_for(*answers: Any) -> dict[str, Any]:
    """Answers to AUTH and to the lines after it, whatever they are."""
    return dict(zip(("AUTH", USER.upper(), PASSWORD.upper()), answers, strict=False))


async def log_in(hop: ScriptedNextHop, credentials: Credentials = ANN) -> Reply:
    client = await SMTPClient.open(("127.0.0.1", hop.port))
    try:
        return await authenticate(client, credentials)
    finally:
        client.close()


@pytest.mark.parametrize("offer", ["AUTH PLAIN LOGIN", "AUTH=LOGIN PLAIN", "AUTH cram-md5 plain"])
async def test_plain_if_there_is_a_choice(offer: str) -> None:
    async with ScriptedNextHop({"AUTH": OK}, keywords=(*KEYWORDS, offer)) as hop:
        assert await log_in(hop) == Reply.of(235, "2.7.0 ok")
        secret = b64encode(b"\0ann\0se cret")
        assert hop.connections[0].commands[1:] == [b"AUTH PLAIN " + secret]


async def test_login_where_that_is_all() -> None:
    async with ScriptedNextHop(script_for(ASKED, ASKED, OK), keywords=("AUTH LOGIN",)) as hop:
        assert (await log_in(hop)).code == 235
        assert hop.connections[0].commands[1:] == [b"AUTH LOGIN", USER.encode(), PASSWORD.encode()]
        assert hop.connections[0].violations == []


@pytest.mark.parametrize(
    "answers", [("535 5.7.8 no",), (ASKED, "535 5.7.8 no"), (ASKED, ASKED, "535 5.7.8 no")]
)
async def test_a_refusal_at_any_step_is_the_answer(answers: tuple[str, ...]) -> None:
    async with ScriptedNextHop(script_for(*answers), keywords=("AUTH LOGIN",)) as hop:
        assert await log_in(hop) == Reply.of(535, "5.7.8 no")
        assert len(hop.connections[0].commands) == 1 + len(answers)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        (("421 4.3.0 busy",), NextHopClosedError),
        (("250 Ok",), NextHopProtocolError),
        ((ASKED, "421 4.3.0 busy"), NextHopClosedError),
        ((ASKED, "250 Ok"), NextHopProtocolError),
        ((ASKED, ASKED, ASKED), NextHopProtocolError),
    ],
)
async def test_what_is_no_answer(answers: tuple[str, ...], error: type[NextHopError]) -> None:
    async with ScriptedNextHop(script_for(*answers), keywords=("AUTH LOGIN",)) as hop:
        with pytest.raises(error):
            await log_in(hop)


async def test_an_identity_to_act_for_needs_plain() -> None:
    credentials = Credentials(user=b"ann", password=b"secret", authorize=b"bob")
    async with ScriptedNextHop({"AUTH": OK}, keywords=("AUTH LOGIN PLAIN",)) as hop:
        await log_in(hop, credentials)
        assert hop.connections[0].commands[1] == b"AUTH PLAIN " + b64encode(b"bob\0ann\0secret")
    async with ScriptedNextHop({"AUTH": OK}, keywords=("AUTH LOGIN",)) as hop:
        with pytest.raises(NextHopLoginError, match="no AUTH that can be used"):
            await log_in(hop, credentials)


@pytest.mark.parametrize("offer", ["8BITMIME", "AUTH", "AUTH CRAM-MD5"])
async def test_nothing_that_can_be_used(offer: str) -> None:
    async with ScriptedNextHop(keywords=(offer,)) as hop:
        with pytest.raises(NextHopLoginError):
            await log_in(hop)


@pytest.mark.parametrize("field", ["user", "password", "authorize"])
async def test_a_null_octet_cannot_move_the_borders(field: str) -> None:
    values = {"user": b"ann", "password": b"secret", "authorize": b"", field: b"a\0b"}
    async with ScriptedNextHop({"AUTH": OK}, keywords=("AUTH PLAIN",)) as hop:
        assert (await log_in(hop, Credentials(**values))).code == 535
        assert hop.connections[0].verbs == "EHLO"


async def test_no_password_over_a_network_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milterchain.smtp.client.stays_here", lambda _: False)
    async with ScriptedNextHop({"AUTH": InTurn(OK)}, keywords=("AUTH PLAIN",)) as hop:
        with pytest.raises(NextHopLoginError, match="unencrypted"):
            await log_in(hop)
        assert hop.connections[0].verbs == "EHLO"


async def test_too_long_to_be_said() -> None:
    async with ScriptedNextHop({"AUTH": OK}, keywords=("AUTH PLAIN",)) as hop:
        assert (await log_in(hop, Credentials(user=b"ann", password=b"x" * 4000))).code == 535
        assert hop.connections[0].verbs == "EHLO"


async def test_what_is_shown_of_credentials() -> None:
    assert "cret" not in repr(ANN)
    async with ScriptedNextHop(keywords=("AUTH LOGIN FOO PLAIN",)) as hop:
        client = await SMTPClient.open(("127.0.0.1", hop.port))
        assert mechanisms(client) == (b"PLAIN", b"LOGIN")
        client.close()
