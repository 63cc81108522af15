"""File descriptors: enough for the connections that the configuration allows.

Each session needs one for the client, one for each milter, one for the next hop and one for a spooled body;
a thousand sessions are far above the 1024 that a process may have by default. The process may raise that
itself, up to its hard limit.
"""

import resource
from typing import Final

from milterchain.config import Config

__all__ = ["allow", "needed"]

RESERVE: Final = 100
"""Those of Python, the logs, the listeners and the next hops' kept connections."""


def needed(config: Config) -> int:
    """How many may be in use at once."""
    return RESERVE + config.limits.connections * (3 + len(config.milter))


def allow(count: int) -> int:
    """Raise the soft limit to `count`, or as far as the hard limit lets us; what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return count if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
