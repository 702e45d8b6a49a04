"""Reads of many pages: plain ones gathered all together, the others as they are listed in bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from coldframe.errors import UnreadableMemoryError
from coldframe.paging.absent import read_absent
from coldframe.paging.bulk import BulkResolver
from coldframe.paging.formats import PAGE_MASK
from coldframe.paging.holes import Holes, note_hole
from coldframe.paging.newbytes import new_bytes
from coldframe.paging.plaintables import PlainTables
from coldframe.paging.resolver import Resolver
from coldframe.paging.sources import FindsVads, ListsVads
from coldframe.paging.spans import Span, pages_of, span_bytes, spans, zeros

_SUPPLIED = 1 << 10
"""Pages that a page source is asked for at once."""

OneByOne = Callable[[int, int, Holes | None], Iterator[bytes]]
"""The bytes from an address to another, page after page. What cannot be read is raised, or, where there are holes to
note it in, zeros."""


class LongReads:
    """Of the address space of `dtb`; `one_by_one` reads what is no matter for many at once."""

    def __init__(self, resolver: Resolver, dtb: int, vads: FindsVads | None, one_by_one: OneByOne) -> None:
        self._resolver = resolver
        self._dtb = dtb
        self._vads = vads if isinstance(vads, ListsVads) else None
        self._listable = vads is None or self._vads is not None
        self._one_by_one = one_by_one
        self._plain = PlainTables(resolver, dtb)

    def read(self, address: int, size: int, holes: Holes | None = None) -> bytes:
        """As `fill`, in new memory."""
        made = new_bytes(size)
        with made.getbuffer() as out:
            self.fill(address, out, holes)
        return made.getvalue()

    def fill(self, address: int, out: memoryview, holes: Holes | None = None) -> None:
        """Fill `out` from `address` on. What cannot be read is raised, or, where there are `holes` to note it in,
        zeros."""
        for start, end in self._not_plain(address, out):
            at = start - address
            for piece in self._odd(start, end, holes):
                out[at : at + len(piece)] = piece
                at += len(piece)

    def _not_plain(self, address: int, out: memoryview) -> Iterator[tuple[int, int]]:
        """Fill `out` with what is plain; start and end of what is left to be filled."""
        if self._resolver.runs:  # pages move while others are read: each is looked at when its turn has come
            return iter([(address, address + len(out))])
        return self._plain.fill(address, out)

    def _lists(self, address: int, end: int) -> bool:
        """Whether the pages from `address` to `end` can be listed in bulk."""
        if self._resolver.runs:
            return False
        return self._listable and self._resolver.layout is not None and address >= 0 and end <= 1 << 64

    def _odd(self, address: int, end: int, holes: Holes | None) -> Iterator[memoryview | bytes]:
        """The bytes of pages that are not plain: as listed, or one after the other where they cannot be listed."""
        if not self._lists(address, end):
            yield from self._one_by_one(address, end, holes)
            return
        for span in (*self._spans(address, end), Span(end, end, None)):
            if span.start > address:
                yield from self._hole(address, span.start, holes)
            stop = min(span.end, end)
            try:
                if span.absent is not None:
                    yield from self._supplied(span, max(address, span.start), stop, holes)
                else:
                    yield from span_bytes(self._resolver.physical, span)
            except UnreadableMemoryError:  # RAM ends within a page
                yield from self._hole(span.start, span.end, holes)
            address = stop

    def _supplied(self, span: Span, address: int, end: int, holes: Holes | None) -> Iterator[memoryview | bytes]:
        """The bytes of pages that a page source has, many at once."""
        while address < end:
            some, out, behind = pages_of(span, address, _SUPPLIED)
            stop = min(behind, end)
            fine = read_absent(self._resolver, some, out)
            if fine.all():
                yield out.reshape(-1).data[(address & PAGE_MASK) : (address & PAGE_MASK) + stop - address]
            else:  # it said that it had them
                yield from self._hole(address, stop, holes)
            address = stop

    def _hole(self, address: int, end: int, holes: Holes | None) -> Iterator[memoryview | bytes]:
        """What the list has not got."""
        if holes is None or self._resolver.pages is not None:
            yield from self._one_by_one(address, end, holes)
            return
        note_hole(holes, address, end)
        yield from zeros(end - address)

    def _spans(self, address: int, end: int) -> Iterator[Span]:
        pages = BulkResolver(self._resolver).pages(self._dtb, self._vads, start=address, end=end)
        return spans(pages, address, end, supplied=True)
