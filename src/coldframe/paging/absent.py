"""Asking a page source of many pages at once; one that answers for single pages only is asked one by one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coldframe.paging.arrays import STATES
from coldframe.paging.asks import MAX_DEPTH, Asks
from coldframe.paging.page import Page, PagefileSlot, State, SubsectionPage
from coldframe.paging.sources import AbsentPages, BatchPageSource


def supplies(asks: Asks, pages: AbsentPages) -> NDArray[np.bool_]:
    """Of which pages the page source of `asks` has the bytes, shape (n,)."""
    return _ask(asks, pages, None)


def read_absent(asks: Asks, pages: AbsentPages, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Put the pages that the page source has in their rows of `out`, shape (n, 4096); returns which those are."""
    return _ask(asks, pages, out)


def _ask(asks: Asks, pages: AbsentPages, out: NDArray[np.uint8] | None) -> NDArray[np.bool_]:
    source = asks.pages
    found: NDArray[np.bool_] | None = None
    if isinstance(source, BatchPageSource):
        batch = source
        found = asks.ask(MAX_DEPTH, lambda: batch.supplies(pages) if out is None else batch.read_pages(pages, out))
    elif source is not None:
        found = np.zeros(len(pages), np.bool_)
        for row, page in enumerate(_one_by_one(asks, pages)):
            held = asks.supplied(page)
            found[row] = held is not None
            if out is not None and held is not None:
                out[row] = np.frombuffer(held, np.uint8)
    return np.zeros(len(pages), np.bool_) if found is None else found


def _one_by_one(asks: Asks, pages: AbsentPages) -> Iterator[Page]:
    """The pages as the single resolver tells of them to a page source."""
    columns = (pages.state, pages.number, pages.offset, pages.subsection, pages.prototype_pte)
    subsections = asks.subsections
    for code, number, offset, address, pte in zip(*(column.tolist() for column in columns), strict=True):
        state = STATES[code]
        if state is not State.SUBSECTION:
            yield Page(0, state, pagefile=PagefileSlot(number, offset))
            continue
        if not address:  # a 32-bit kernel's, relative to a pool that is not known
            yield Page(0, state)
            continue
        described = None
        if subsections is not None:
            described = asks.ask(1, partial(subsections.subsection_page, address, pte))
        yield Page(0, state, subsection=described or SubsectionPage(address, None, None))
