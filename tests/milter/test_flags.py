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
