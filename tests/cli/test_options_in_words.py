import pytest

from milterchain.cli.options_in_words import flag_names, in_words, read_flags
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Action, Protocol


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("all", ALL_ACTIONS),
        ("none", Action(0)),
        ("0", Action(0)),
        ("0x11", Action.ADD_HEADERS | Action.CHANGE_HEADERS),
        ("quarantine", Action.QUARANTINE),
        ("Add Headers, CHANGE_BODY,add-recipient", Action(7)),
    ],
)
def test_flags_are_read(text: str, flags: Action) -> None:
    assert read_flags(text, Action, ALL_ACTIONS) == flags


@pytest.mark.parametrize("text", ["", "fly", "add headers,", "-1", "0x100000000"])
def test_mistakes(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of add headers.*quarantine|32 bits"):
        read_flags(text, Action, ALL_ACTIONS)


def test_names_are_read_back() -> None:
    assert read_flags(",".join(flag_names(ALL_PROTOCOL)), Protocol, Protocol(0)) == ALL_PROTOCOL


def test_in_words() -> None:
    assert in_words(Action(0), Protocol(0)) == "may change nothing"
    assert in_words(Action.CHANGE_BODY, Protocol.NO_HELO | Protocol.NO_REPLY_MAIL | Protocol.SKIP) == (
        "may change body; not sent: helo; no answer to: mail; knows: skip"
    )
