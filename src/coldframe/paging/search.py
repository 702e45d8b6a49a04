"""Finding patterns in an address space: in every page that is in RAM or that a page source supplies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from coldframe.paging.pieces import pieces
from coldframe.paging.space import AddressSpace

WINDOW = 1 << 24
"""Bytes: how much is looked through at once."""
LONGEST = 1 << 16
"""Bytes: a match that is longer may be cut off, or missed, where it crosses from one window into the next."""
SHOWN = 256
"""Bytes of a match that are kept."""
AROUND = 16
"""Bytes kept before and after a match, as far as there are readable ones."""


class Match(NamedTuple):
    """Where a pattern was found: `size` bytes at `address`, of which `data` are the first `SHOWN`, and what is around
    them."""

    address: int
    size: int
    data: bytes
    before: bytes
    after: bytes


class Finds(Protocol):
    """A pattern that can be looked for."""

    def find(self, data: bytes, start: int) -> Iterator[tuple[int, int]]:
        """Start and end of each match in `data` that begins at `start` or later, by address, none empty."""
        ...


class Literal:
    """A pattern that Python's own expressions find in time that grows with the memory alone: bytes, text, `.`; for
    any other there is `coldframe.paging.regular.Regular`."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern = pattern

    def find(self, data: bytes, start: int) -> Iterator[tuple[int, int]]:
        """As `Finds.find`."""
        return (found.span() for found in self.pattern.finditer(data, start) if found.group())


def search(
    space: AddressSpace, pattern: Finds | re.Pattern[bytes], *, start: int | None = None, end: int | None = None
) -> Iterator[Match]:
    """Each place from `start` to `end` (defaults as in `AddressSpace.pages`) where `pattern` matches, by address.

    Pages that are beside each other are looked through as one, whatever their states. Pages that only promise zeros
    are passed over: a match that needs some of their zeros is not found. Takes no more memory for larger spaces.
    """
    finds = Literal(pattern) if isinstance(pattern, re.Pattern) else pattern
    reached = 0
    for address, data, final in _windows(space, start, end):
        for low, high in finds.find(data, max(reached - address, 0)):
            if low >= WINDOW and not final:
                break  # the next window begins with it
            reached = address + high
            yield cut(address, data, low, high)


def cut(address: int, data: bytes, low: int, high: int) -> Match:
    """The match from `low` to `high` in `data`, which lies at `address`."""
    kept = data[low : min(high, low + SHOWN)]
    return Match(address + low, high - low, kept, data[max(low - AROUND, 0) : low], data[high : high + AROUND])


def _windows(space: AddressSpace, start: int | None, end: int | None) -> Iterator[tuple[int, bytes, bool]]:
    """Address and bytes of each window, with the first `LONGEST` bytes of the next where there is one, and whether
    there is none."""
    base, held = 0, bytearray()
    for address, data in pieces(space, start, end):
        if address != base + len(held):
            if held:
                yield base, bytes(held), True
            base, held = address, bytearray()
        held += data
        while len(held) >= WINDOW + LONGEST:
            yield base, bytes(held[: WINDOW + LONGEST]), False
            base += WINDOW
            del held[:WINDOW]
    if held:
        yield base, bytes(held), True
