import pytest

from milterchain.milter import flags
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Action, Command, Family, Protocol, Response


def test_codes_are_those_of_libmilter():
    assert bytes(sorted(Command)) == b"ABCDEHKLMNOQRTU"
    assert bytes(sorted(Response)) == bytes(sorted(b"+-24abcdefhimOpqrsty"))
    assert bytes(sorted(Family)) == b"46LU"


@pytest.mark.parametrize("kind", [Action, Protocol])
def test_bits_do_not_overlap(kind):
    assert sum(kind) == kind(sum(kind)).value
    assert all(bit.value.bit_count() == 1 for bit in kind)


def test_everything_is_offered():
    assert sum(Action) == ALL_ACTIONS == 0x1FF
    assert sum(Protocol) == ALL_PROTOCOL | Protocol.DATA_SIZE_256K | Protocol.DATA_SIZE_1M


def test_sizes_are_those_of_libmilter():
    assert (flags.DATA_SIZE_64K, flags.DATA_SIZE_256K, flags.DATA_SIZE_1M) == (65535, 262143, 1048575)


def test_version_5_does_not_exist():
    assert flags.VERSIONS == (2, 3, 4, 6)


@pytest.mark.parametrize("kind", [Action, Protocol])
def test_combinations_of_bits_do_not_fill_the_memory(kind):
    everything = ALL_ACTIONS if kind is Action else ALL_PROTOCOL
    one = next(iter(kind))
    for number in range(2**20, 2**20 + 5000):
        said = kind(number << 1)
        assert said.value == number << 1
        assert (said | one) ^ one == said
        assert one in said | one
    # Python 3.11.2 does not remember those with unknown bits; these have known ones, as far as there are.
    assert all(kind(number).value == number for number in range(5000))
    assert len(kind._value2member_map_) < 2000
    assert kind(everything.value) == everything
    assert hash(kind(everything.value)) == hash(everything)
    assert [kind(bit.value) for bit in kind] == list(kind)
    assert all(kind(bit.value) is bit for bit in kind)
