"""Whole pages of guest-physical memory as rows of one array: what scattered pages are gathered out of at once.

Nearly all of a target's RAM lies in one buffer, the mapping of an image or of QEMU's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coldframe.memory import Run

_SHIFT = 12
_SIZE = 1 << _SHIFT
_PAGE = np.dtype((np.void, _SIZE))
_AHEAD = 128
"""Pages that are touched before they are copied: half of a processor's second-level cache, and fewer than it keeps
translations of."""


class PageGrid:
    """The pages of the largest buffer that backs any of `runs`, one row each."""

    def __init__(self, runs: Sequence[Run]) -> None:
        buffers = [(run, run.backing) for run in runs if isinstance(run.backing, memoryview)]
        largest, held = max(buffers, key=lambda pair: pair[0].size, default=(None, memoryview(b"")))
        phase = 0 if largest is None else (largest.offset - largest.start) % _SIZE
        count = max(len(held) - phase, 0) >> _SHIFT
        self._held = held[phase : phase + count * _SIZE]
        self._pages = np.frombuffer(self._held, _PAGE)
        self._firsts = np.frombuffer(self._held, np.uint8)[::_SIZE]
        inside = [
            run
            for run, backing in buffers
            if backing is held and (run.offset - run.start - phase) % _SIZE == 0 and run.size >= _SIZE
        ]
        self._starts = np.array([run.start for run in inside], np.uint64)
        self._lasts = np.array([run.end - _SIZE for run in inside], np.uint64)
        self._moves = np.array([(run.offset - run.start - phase) % (1 << 64) for run in inside], np.uint64)

    def rows(self, frames: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The rows of the pages at n guest-physical addresses, multiples of 4096; -1 for what is not wholly in here."""
        if not len(self._starts):
            return np.full(len(frames), -1, np.int64)
        run = np.searchsorted(self._starts, frames, side="right") - 1
        rows: NDArray[np.int64] = ((frames + self._moves[run]) >> np.uint64(_SHIFT)).view(np.int64)
        rows[(run < 0) | (frames > self._lasts[run])] = -1
        return rows

    def copy(self, rows: NDArray[np.int64], into: int, out: memoryview) -> None:
        """Fill `out`, one byte an element, with the pages of n rows (all of them in here), from the byte `into` the
        first one on."""
        first, size = rows.item(0), len(out)
        if rows.item(-1) - first == len(rows) - 1 and bool((rows[1:] - rows[:-1] == 1).all()):
            start = (first << _SHIFT) + into
            out[:] = self._held[start : start + size]
            return
        at = 0
        if into:
            at = _SIZE - into
            out[:at] = self._held[(first << _SHIFT) + into : (first + 1) << _SHIFT]
            rows = rows[1:]
        whole = (size - at) >> _SHIFT
        self._gather(rows[:whole], np.frombuffer(out, _PAGE, whole, at))
        at += whole << _SHIFT
        if at < size:
            start = rows.item(-1) << _SHIFT
            out[at:] = self._held[start : start + size - at]

    def _gather(self, rows: NDArray[np.int64], out: NDArray[np.void]) -> None:
        """Copy whole pages. Each page's first byte is read before, many pages at once: a processor waits for several
        pages' translations and first bytes together then, where the copies would wait for one after the other."""
        for at in range(0, len(rows), _AHEAD):
            some = rows[at : at + _AHEAD]
            self._firsts[some]
            self._pages.take(some, out=out[at : at + _AHEAD], mode="clip")  # as no other, without a copy between
