"""A time limit is a number of seconds that passes; whatever is no such number is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.debug.deadline import Deadline
from coldframe.errors import UsageError


@settings(deadline=None)
@given(st.floats(min_value=1, max_value=1e6))
def test_what_is_left_falls_from_what_was_given(seconds: float) -> None:
    deadline = Deadline(seconds)
    first = deadline.left
    assert first is not None and 0 < first <= seconds
    assert not deadline.passed
    second = deadline.left
    assert second is not None and second <= first


def test_no_time_has_passed_at_once_and_endless_time_never() -> None:
    assert Deadline(0).passed and Deadline(0).left == 0
    for endless in (None, math.inf, 1e300):
        assert Deadline(endless).left is None
        assert not Deadline(endless).passed


@pytest.mark.parametrize("seconds", [-1, -0.001, -math.inf, math.nan])
def test_what_is_no_length_of_time_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="0 or more seconds"):
        Deadline(seconds)
