"""How long a client may take for its data."""

import pytest

from milterchain.smtp.options import ServerOptions
from milterchain.smtp.pace import Pace


@pytest.mark.parametrize(
    ("now", "size", "deadline"),
    [
        (100, 0, 110),
        (105, 0, 110),
        (105, 400, 114),
        (112, 10_000, 122),
        (155, 10_000, 160),
    ],
)
def test_deadline(now, size, deadline):
    options = ServerOptions(hostname=b"x", command_timeout=10, transfer_timeout=60, data_rate=100)
    assert Pace(options, 100).deadline(now, size) == deadline


async def test_an_octet_now_and_then_is_too_slow(smtp_site):
    async with smtp_site(command_timeout=0.3, data_rate=1e6) as site:
        client = await site.in_data()

        async with client.dripping():
            assert await client.rest() == b"421 4.4.2 Error: timeout exceeded\r\n"
