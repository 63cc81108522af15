"""What all sessions share of one milter."""

import pytest

from milterchain.chain.plan import MilterPlan
from milterchain.chain.settings import DefaultAction, MilterSettings
from milterchain.errors import LocalProtocolError, MilterClosedError
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import Command

LOST = MilterClosedError("lost")
OURS = LocalProtocolError("not possible now")


def action(
    error: MilterClosedError | LocalProtocolError, default: DefaultAction, **keys: bool
) -> DefaultAction:
    settings = MilterSettings(name="m", endpoint=Endpoint(path="/m"), default_action=default, **keys)
    return MilterPlan(settings).failed(error, Command.MAIL)


@pytest.mark.parametrize("default", list(DefaultAction))
def test_a_failure_has_the_default_action(default: DefaultAction) -> None:
    assert action(LOST, default) is default


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        (DefaultAction.ACCEPT, DefaultAction.TEMPFAIL),
        (DefaultAction.REJECT, DefaultAction.TEMPFAIL),
        (DefaultAction.TEMPFAIL, DefaultAction.TEMPFAIL),
        (DefaultAction.QUARANTINE, DefaultAction.QUARANTINE),
        (DefaultAction.SHUTDOWN, DefaultAction.SHUTDOWN),
    ],
)
def test_what_we_cannot_tell_neither_passes_nor_is_lost(
    default: DefaultAction, expected: DefaultAction
) -> None:
    assert action(OURS, default) is expected


@pytest.mark.parametrize("error", [LOST, OURS])
def test_a_milter_that_is_only_observed_has_no_effect(error: MilterClosedError | LocalProtocolError) -> None:
    assert action(error, DefaultAction.TEMPFAIL, observed=True) is DefaultAction.ACCEPT
