"""Ranges of addresses as arrays: where two lists of them meet, and what one leaves of the other.

A list is two arrays of shape (n,), the low ends and the high ends (the first address behind each), in order, none
overlapping another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Index = NDArray[np.int64]


class Intervals(NamedTuple):
    """Pieces, each cut out of row `of` of some list."""

    of: Index
    low: U64
    high: U64


def overlaps(low: U64, high: U64, other_low: U64, other_high: U64) -> tuple[Intervals, Index]:
    """Where one list meets another: the pieces, and the row of the other list that each lies in."""
    first = np.searchsorted(other_high, low, side="right").astype(np.int64)
    last = np.searchsorted(other_low, high, side="left").astype(np.int64)
    count = np.maximum(last - first, 0)
    mine = np.repeat(np.arange(len(low), dtype=np.int64), count)
    behind = np.cumsum(count)
    theirs = np.arange(len(mine), dtype=np.int64) - np.repeat(behind - count, count) + np.repeat(first, count)
    return Intervals(mine, np.maximum(low[mine], other_low[theirs]), np.minimum(high[mine], other_high[theirs])), theirs


def remainder(low: U64, high: U64, taken_low: U64, taken_high: U64) -> Intervals:
    """What is left of a list when pieces that lie within its rows are taken away."""
    starts = np.sort(np.concatenate((low, taken_high)), kind="stable")
    ends = np.sort(np.concatenate((high, taken_low)), kind="stable")
    some = starts < ends
    of = np.searchsorted(low, starts[some], side="right").astype(np.int64) - 1
    return Intervals(of, starts[some], ends[some])


def complement(low: U64, high: U64, start: int, end: int) -> tuple[U64, U64]:
    """What a list leaves of the addresses from `start` to `end`; its rows may reach beyond either."""
    first, last = np.array([start], np.uint64), np.array([end], np.uint64)
    pieces, _ = overlaps(first, last, low, high)
    left = remainder(first, last, pieces.low, pieces.high)
    return left.low, left.high
