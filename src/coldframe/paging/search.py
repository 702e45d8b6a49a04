"""Finding patterns in an address space: in every page that is in RAM, wherever Windows keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from coldframe.errors import UnreadableMemoryError
from coldframe.paging.gather import span_bytes
from coldframe.paging.space import AddressSpace

WINDOW = 1 << 24
"""Bytes: how much is looked through at once."""
LONGEST = 1 << 16
"""Bytes: a match that is longer may be cut off, or missed, where it crosses from one window into the next."""


class Match(NamedTuple):
    """Where a pattern was found, and the bytes that matched."""

    address: int
    data: bytes


def search(
    space: AddressSpace, pattern: re.Pattern[bytes], *, start: int | None = None, end: int | None = None
) -> Iterator[Match]:
    """Each place from `start` to `end` (defaults as in `AddressSpace.pages`) where `pattern` matches, by address.

    Pages that are beside each other are looked through as one, whatever their states. Pages that only promise zeros
    are passed over: a match that needs some of their zeros is not found. Empty matches are none.
    """
    reached = 0
    for address, data, final in _windows(space, start, end):
        for found in pattern.finditer(data, max(reached - address, 0)):
            if found.start() >= WINDOW and not final:
                break  # the next window begins with it
            if found.group():
                reached = address + found.end()
                yield Match(address + found.start(), found.group())


def _windows(space: AddressSpace, start: int | None, end: int | None) -> Iterator[tuple[int, bytes, bool]]:
    """Address and bytes of each window, with the first `LONGEST` bytes of the next where there is one, and whether
    there is none."""
    base, held = 0, bytearray()
    for span in space.spans(start, end):
        if span.physical is None:
            continue
        if span.start != base + len(held):
            if held:
                yield base, bytes(held), True
            base, held = span.start, bytearray()
        left = span
        while left.start < left.end:
            room = WINDOW + LONGEST - len(held)
            part = left._replace(end=min(left.end, left.start + room))
            try:
                held += b"".join(span_bytes(space.resolver.physical, part))
            except UnreadableMemoryError:  # RAM ends within this page
                break
            left = left.after(part.end)
            if len(held) == WINDOW + LONGEST:
                yield base, bytes(held), False
                base += WINDOW
                del held[:WINDOW]
    if held:
        yield base, bytes(held), True
