import math

import pytest

from milterchain.mailfilter.options import BodyOptions, FilterOptions, HeaderOptions


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (BodyOptions, "memory"),
        (BodyOptions, "max_size"),
        (HeaderOptions, "max_count"),
        (HeaderOptions, "max_size"),
    ],
)
def test_sizes_are_not_negative(kind, name):
    assert getattr(kind(**{name: 0}), name) == 0
    with pytest.raises(ValueError, match=f"^{name}: -1, a limit cannot be negative$"):
        kind(**{name: -1})


@pytest.mark.parametrize("most", [0, -1])
def test_a_filter_takes_one_recipient_at_least(most):
    with pytest.raises(ValueError, match=f"^max_recipients: {most}, 1 is the least$"):
        FilterOptions(max_recipients=most)


@pytest.mark.parametrize("seconds", [0, -1, -math.inf, math.nan])
def test_a_decision_may_take_some_time(seconds):
    with pytest.raises(ValueError, match=f"^time_limit: {seconds} s, a limit of time is longer than 0$"):
        FilterOptions(time_limit=seconds)


def test_there_may_be_no_limit_of_time():
    assert FilterOptions(time_limit=math.inf).time_limit == math.inf
