from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.milter.flags import Stage
from milterchain.milter.macro_bag import MacroBag
from milterchain.milter.macros import MacroTable

EAST = timezone(timedelta(hours=2))
RECEIVED = datetime(2023, 1, 1, 1, 2, 3, tzinfo=EAST)
WRITTEN = datetime(2022, 12, 24, 18, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("spelling", [b"i", b"{i}"])
def test_both_spellings_are_one_name(spelling):
    bag = MacroBag({spelling: b"4Zk"})
    assert (bag[b"i"], bag[b"{i}"]) == (b"4Zk", b"4Zk")
    assert b"i" in bag
    assert b"{i}" in bag
    assert "i" not in bag
    assert [name for name in bag if name == b"i"] == [b"i"]
    assert repr(bag) == "MacroBag({b'i': b'4Zk'})"
    bag[b"{i}"] = b"other"
    assert bag[b"i"] == b"other"
    del bag[b"{i}"]
    assert b"i" not in bag
    with pytest.raises(KeyError):
        del bag[b"i"]
    with pytest.raises(KeyError):
        bag[b"{i}"]


def test_some_are_forgotten():
    bag = MacroBag([(b"{rcpt_addr}", b"a@b"), (b"j", b"mx")])
    bag.discard(b"rcpt_addr", b"{rcpt_host}")
    assert dict(bag).keys() == {b"j", b"a", b"b", b"d", b"t"}
    assert len(bag) == 5


def test_the_dates():
    bag = MacroBag()
    bag.set_current_date(RECEIVED)
    dates = {
        b"a": b"Sun, 01 Jan 2023 01:02:03 +0200",
        b"b": b"Sun, 01 Jan 2023 01:02:03 +0200",
        b"d": b"Sun Jan  1 01:02:03 2023",
        b"t": b"202212312302",
    }
    assert dict(bag) == dates
    assert len(bag) == 4
    bag.set_header_date(WRITTEN)
    assert dict(bag) == dates | {b"a": b"Sat, 24 Dec 2022 18:00:00 +0000"}
    bag.set_header_date(None)
    assert dict(bag) == dates


def test_a_date_without_a_zone_is_local():
    bag = MacroBag()
    bag.set_current_date(datetime(2023, 1, 1, 1, 2, 3))  # noqa: DTZ001
    zone = datetime(2023, 1, 1, 1, 2, 3).astimezone().strftime("%z")
    assert bag[b"b"] == f"Sun, 01 Jan 2023 01:02:03 {zone}".encode()


def test_the_clock_runs_unless_it_was_stopped():
    bag = MacroBag()
    bag.set_current_date(RECEIVED)
    bag.set_current_date(None)
    before = datetime.now(UTC).strftime("%Y%m%d%H%M").encode()
    assert before <= bag[b"t"] <= datetime.now(UTC).strftime("%Y%m%d%H%M").encode()


def test_what_was_set_hides_a_date():
    bag = MacroBag({b"{d}": b"today"})
    assert bag[b"d"] == b"today"
    assert len(bag) == 4
    del bag[b"d"]
    assert bag[b"d"] != b"today"
    del bag[b"d"]  # it is there, and stays there


def test_a_copy_is_its_own():
    bag = MacroBag({b"j": b"mx"})
    bag.set_current_date(RECEIVED)
    bag.set_header_date(WRITTEN)
    copy = bag.copy()
    assert dict(copy) == dict(bag)
    copy[b"j"] = b"other"
    copy.set_current_date(WRITTEN)
    assert (bag[b"j"], bag[b"b"]) == (b"mx", b"Sun, 01 Jan 2023 01:02:03 +0200")


def test_a_table_takes_it_as_it_is():
    bag = MacroBag({b"{i}": b"4Zk"})
    bag.set_header_date(WRITTEN)
    assert MacroTable().macros_for(Stage.END_OF_MESSAGE, bag, (b"{i}", b"a", b"{none}")) == (
        (b"{i}", b"4Zk"),
        (b"a", b"Sat, 24 Dec 2022 18:00:00 +0000"),
    )


@given(st.datetimes(min_value=datetime(1900, 1, 2), timezones=st.timezones()))  # noqa: DTZ001
def test_any_date_has_its_four_forms(date):
    bag = MacroBag()
    bag.set_current_date(date)
    assert datetime.strptime(bag[b"t"].decode(), "%Y%m%d%H%M").replace(tzinfo=UTC) == date.astimezone(
        UTC
    ).replace(second=0, microsecond=0)
    assert bag[b"d"].decode() == date.ctime()
    assert all(value.isascii() and b"\0" not in value for value in bag.values())


@given(st.dictionaries(st.binary(max_size=4), st.binary(max_size=4)))
def test_any_names(values):
    bag = MacroBag(values)
    assert all(name in bag for name in values)
    assert len(bag) == len(list(bag)) == len(dict(bag))
