"""What the fuzz tests share: how hard they try, and the messages of the protocol for `st.from_type`.

`MILTERCHAIN_FUZZ=long` makes them try a hundred times as many examples as the default run (`short`).
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from milterchain.milter.flags import Action, Command, Family, Protocol
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    Body,
    ChangeHeader,
    ChangeSender,
    Connect,
    DeleteRecipient,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Macros,
    Mail,
    OptNeg,
    Quarantine,
    Rcpt,
    ReplaceBody,
    ReplyCode,
    Unknown,
)

EFFORT = {"short": 1, "long": 100}[os.environ.get("MILTERCHAIN_FUZZ", "short")]

BASE = settings(deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("fuzz-values", BASE, max_examples=150 * EFFORT)
settings.register_profile("fuzz-machines", BASE, max_examples=60 * EFFORT, stateful_step_count=40)
settings.register_profile("fuzz-sockets", BASE, max_examples=80 * EFFORT)

TEXT = st.binary(max_size=24).map(lambda text: text.replace(b"\0", b"?"))
INDEX = st.integers(0, 3) | st.integers(0, 2**32 - 1)
MACRO_NAME = st.sampled_from([b"i", b"j", b"{client_addr}", b"{v}", b"\xff"])
STAGES = st.sampled_from([int(command) for command in Command]) | st.integers(0, 255)
WORDS = {"actions": Action, "protocol": Protocol}


def bits(kind):
    """Few bits, as real peers say; none or all; anything at all."""
    few = st.sets(st.sampled_from(list(kind))).map(lambda chosen: kind(sum(chosen)))
    return few | st.sampled_from([kind(0), kind(0x1FFFFF & sum(kind))]) | st.integers(0, 2**32 - 1).map(kind)


def connections():
    with_address = st.builds(
        Connect,
        hostname=TEXT,
        family=st.sampled_from([Family.INET, Family.INET6, Family.UNIX]),
        port=st.integers(0, 0xFFFF),
        address=TEXT,
    )
    return st.builds(Connect, hostname=TEXT) | with_address


STRATEGIES = {
    OptNeg: st.builds(
        OptNeg,
        version=st.sampled_from([6, 6, 4, 3, 2, 5]) | st.integers(0, 2**32 - 1),
        **{name: bits(kind) for name, kind in WORDS.items()},
        macros=st.dictionaries(
            st.integers(0, 6) | st.integers(0, 2**32 - 1),
            st.lists(MACRO_NAME, max_size=3).map(tuple),
            max_size=3,
        ),
    ),
    Macros: st.builds(Macros, STAGES, st.lists(st.tuples(MACRO_NAME | TEXT, TEXT), max_size=3).map(tuple)),
    Connect: connections(),
    **{kind: st.builds(kind, TEXT, st.lists(TEXT, max_size=2).map(tuple)) for kind in (Mail, Rcpt)},
    **{kind: st.builds(kind, TEXT) for kind in (Helo, Unknown, Quarantine, DeleteRecipient)},
    ReplyCode: st.sampled_from([ReplyCode(b"550 5.7.1 no"), ReplyCode(b"421-a\r\n421 b")])
    | st.builds(ReplyCode, TEXT),
    **{kind: st.builds(kind, st.binary(max_size=40)) for kind in (Body, EndOfMessage, ReplaceBody)},
    **{kind: st.builds(kind, TEXT, TEXT) for kind in (Header, AddHeader, AddRecipient, ChangeSender)},
    **{kind: st.builds(kind, INDEX, TEXT, TEXT) for kind in (InsertHeader, ChangeHeader)},
}
for kind, strategy in STRATEGIES.items():
    st.register_type_strategy(kind, strategy)
