"""Opening the connection to a milter.

A milter that is being restarted refuses connections for a moment; that is worth a second try. Nothing else is
ever tried again: once a milter has heard of a client, repeating is no longer harmless.
"""

import time

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from milterchain.errors import MilterConnectError
from milterchain.milter.client import ClientOptions, MilterSession
from milterchain.milter.endpoint import Endpoint

__all__ = ["open_session"]

MAX_RETRIES = 2
"""A milter that is really down must not make every client wait."""
MAX_RETRY_TIME = 1.0
"""Seconds in which refusals are tried again: an attempt that took longer has used up its patience."""
WAIT = 0.05
"""Seconds of the first random wait; it doubles."""


async def open_session(endpoint: Endpoint, options: ClientOptions) -> MilterSession:
    """Connect and negotiate.

    Raises:
        MilterError: as `MilterSession.open`.
    """
    started = time.monotonic()
    try:
        return await MilterSession.open(endpoint, options)
    except MilterConnectError:
        if time.monotonic() - started > MAX_RETRY_TIME:
            raise
    # The usual case above does without this machinery, which costs more than the opening.
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(MilterConnectError),
        stop=stop_after_attempt(MAX_RETRIES) | stop_after_delay(MAX_RETRY_TIME),
        wait=wait_random_exponential(multiplier=WAIT, max=MAX_RETRY_TIME),
        reraise=True,
    )
    return await retrying(MilterSession.open, endpoint, options)
