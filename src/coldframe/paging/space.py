"""One virtual address space: bytes at virtual addresses, with what is missing said exactly."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import TYPE_CHECKING

from coldframe.errors import CapabilityError, UnreadableMemoryError
from coldframe.memory import checked_start, span_of
from coldframe.paging.formats import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from coldframe.paging.holes import Holes, note_hole
from coldframe.paging.notes import ABSENT, ZERO
from coldframe.paging.page import Page, State
from coldframe.paging.resolver import Resolver
from coldframe.paging.sources import FindsVads, ListsVads

if TYPE_CHECKING:
    from coldframe.paging.arrays import PageArrays
    from coldframe.paging.longreads import LongReads
    from coldframe.paging.spans import Span

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

BULK = 1 << 14
"""Bytes: reads of so many and more look at tables as arrays, not at one page after the other."""
_KEPT = 1 << 18
"""Translations that an address space keeps: those of a gigabyte."""
_CHUNK = 1 << 18
"""Bytes that are looked at page by page at once, where that must be."""
_MOVES = 16
"""How often a page of a running guest is read again because it moved meanwhile."""


class AddressSpace:
    """The address space of a DTB; reads what is in RAM, zeros where zeros are promised, and what a page source
    supplies.

    Keeps translations of the pages it has looked at until the resolver's `drop_caches`. Addresses are virtual, in
    bytes; `space[a:b]` is `space.read(a, b - a)`.
    """

    def __init__(self, resolver: Resolver, dtb: int, vads: FindsVads | None = None) -> None:
        self.resolver = resolver
        self.dtb = dtb
        self.vads = vads
        self._pages: dict[int, int] = {}
        self._epoch = resolver.epoch
        self._long: LongReads | None = None
        self._physical = resolver.physical

    def __repr__(self) -> str:
        return f"<AddressSpace of DTB {self.dtb:#x}>"

    def resolve(self, address: int) -> Page:
        """The page of `address` and the path to it; never raises for what the guest's memory holds."""
        return self.resolver.resolve(self.dtb, address, self.vads)

    def translate(self, address: int) -> int | None:
        """The guest-physical address of the byte at `address`; None where the page is not in RAM."""
        base = self._locate(address)
        return None if base < 0 else base | (address & PAGE_MASK)

    def _locate(self, address: int) -> int:
        """Guest-physical address of the page that holds `address`, or `ZERO`, or `ABSENT`; kept for the epoch."""
        if self._epoch != self.resolver.epoch:
            self._pages.clear()
            self._epoch = self.resolver.epoch
        base = self._pages.get(address >> PAGE_SHIFT)
        if base is None:
            base = self.resolver.locate(self.dtb, address & ~PAGE_MASK, self.vads)
            if len(self._pages) >= _KEPT:
                self._pages.clear()
            self._pages[address >> PAGE_SHIFT] = base
        return base

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes at `address`.

        Raises `UnreadableMemoryError` with the first address that cannot be read, how many bytes from there on are
        known to be unreadable, and the reason.
        """
        into = address & PAGE_MASK
        if 0 <= size <= PAGE_SIZE - into:
            base = self._pages.get(address >> PAGE_SHIFT, ABSENT) if self._epoch == self.resolver.epoch else ABSENT
            start, end, held = self._physical.hot
            if start <= base < end - PAGE_MASK:  # known, and in the run that was read last
                into += base - start
                return held[into : into + size].tobytes()
            base = self._locate(address)
            if base >= 0:
                return self._read_ram(base | (address & PAGE_MASK), address, size)
        elif size >= BULK:
            return self._long_reads().read(address, size)
        return b"".join(data for _, data in self._spans(address, size))

    def read_into(self, address: int, buffer: bytearray | memoryview | mmap) -> None:
        """Fill `buffer`, writable and one byte an element, from `address` on; raises as `read` does.

        Where the same buffer is filled again and again this is quicker than `read`, which takes new memory from the
        system each time. On error the buffer holds what came before.
        """
        with memoryview(buffer) as out:
            if len(out) >= BULK:
                self._long_reads().fill(address, out)
                return
            at = 0
            for _, data in self._spans(address, len(out)):
                out[at : at + len(data)] = data
                at += len(data)

    def _spans(self, address: int, size: int) -> Iterator[tuple[int, bytes]]:
        """The bytes, page by page; raises at the first that cannot be had."""
        if size < 0:
            raise ValueError(f"cannot read {size} bytes")
        while size:
            length = min(size, PAGE_SIZE - (address & PAGE_MASK))
            base = self._locate(address)
            if base >= 0:
                data = self._read_ram(base | (address & PAGE_MASK), address, length)
            elif base == ZERO:
                data = bytes(length)
            else:
                data = self._read_supplied(address, length)
            yield address, data
            address += length
            size -= length

    def _read_ram(self, physical: int, address: int, length: int) -> bytes:
        try:
            return self._physical.read(physical, length)
        except UnreadableMemoryError as error:
            hole = address + error.address - physical
            reason = f"physical address {error.address:#x}: {error.reason}"
            raise UnreadableMemoryError(hole, min(error.size, PAGE_SIZE - (hole & PAGE_MASK)), reason) from None

    def _read_supplied(self, address: int, length: int) -> bytes:
        """Bytes of a page that is not in RAM.

        While the guest runs, the page may come in or go elsewhere between the look at its entry and the read of its
        place, which may hold another page then: looked at again afterwards, and read again where it moved.
        """
        for _ in range(_MOVES):
            page = self.resolve(address)
            if page.physical is not None:
                return self._read_ram(page.physical, address, length)
            if page.state is State.DEMAND_ZERO:
                return bytes(length)
            data = self.resolver.supplied(page)
            if self.resolver.runs and _moved(page, self.resolver.look(self.dtb, address, self.vads)):
                continue
            if data is not None:
                return data[address & PAGE_MASK :][:length]
            break
        reason = page.reason or f"the page moved {_MOVES} times while it was read: pause the guest"
        raise UnreadableMemoryError(address, page.hole or PAGE_SIZE - (address & PAGE_MASK), reason)

    def read_padded(self, address: int, size: int) -> tuple[bytes, list[tuple[int, int]]]:
        """`size` bytes at `address` with zeros in the place of what cannot be read, and the list of those holes.

        A hole is (address, size in bytes); holes are in order, do not touch each other and lie within what was asked.
        """
        holes: Holes = []
        if size >= BULK:
            return self._long_reads().read(address, size, holes), holes
        return self._padded(address, size, holes), holes

    def _long_reads(self) -> LongReads:
        if self._long is None:
            from coldframe.paging.longreads import LongReads  # noqa: PLC0415 - loads numpy

            self._long = LongReads(self.resolver, self.dtb, self.vads, self._one_by_one)
        return self._long

    def _one_by_one(self, address: int, end: int, holes: Holes | None) -> Iterator[bytes]:
        """The bytes from `address` to `end`, page after page; what cannot be read is raised, or, where there are
        `holes` to note it in, zeros."""
        if holes is None:
            yield from (data for _, data in self._spans(address, end - address))
            return
        for at in range(address, end, _CHUNK):
            yield self._padded(at, min(_CHUNK, end - at), holes)

    def _padded(self, address: int, size: int, holes: Holes) -> bytes:
        out = bytearray(size)
        position, end = address, address + size
        while position < end:
            try:
                for at, data in self._spans(position, end - position):
                    out[at - address : at - address + len(data)] = data
                break
            except UnreadableMemoryError as error:
                stop = min(error.address + max(error.size, 1), end)
                note_hole(holes, error.address, stop)
                position = stop
        return bytes(out)

    def mapped_pages(self) -> PageArrays:
        """As `pages()`, what a table that cannot be had may map only as far as there are VADs: the pages to count."""
        from coldframe.paging.bulkvads import vad_ends  # noqa: PLC0415 - loads numpy

        pages = self.pages()
        return pages.within(*vad_ends(self.vads)) if isinstance(self.vads, ListsVads) else pages

    def pages(self, start: int | None = None, end: int | None = None) -> PageArrays:
        """Every page from `start` to `end` as arrays, one row a page, a large page or a span of pages alike.

        By default the user half of a process's address space, the kernel half of one that has no VADs. A row may
        reach beyond either end. Raises `FormatError` where the kernel's types are not known, or the tables point to
        themselves.
        """
        from coldframe.paging.bulk import BulkResolver  # noqa: PLC0415 - loads numpy

        bulk = BulkResolver(self.resolver)
        vads = self.vads if isinstance(self.vads, ListsVads) else None
        if start is None and end is None and self.vads is None:
            return bulk.kernel_pages(self.dtb)
        return bulk.pages(self.dtb, vads, start=start or 0, end=end)

    def parts(self, start: int | None = None, end: int | None = None) -> Iterator[PageArrays]:
        """As `pages`, a part at a time: for address spaces of which not all rows shall be in memory at once."""
        from coldframe.paging.bulk import BulkResolver  # noqa: PLC0415 - loads numpy

        bulk, format = BulkResolver(self.resolver), self.resolver.format  # noqa: A001
        vads = self.vads if isinstance(self.vads, ListsVads) else None
        if start is None and end is None and self.vads is None:
            start, end = format.kernel_start, 1 << (64 if format.canonical else 32)
        return bulk.parts(self.dtb, vads, start=start or 0, end=end)

    def spans(self, start: int | None = None, end: int | None = None, *, supplied: bool = False) -> Iterator[Span]:
        """What can be read from `start` to `end` as pieces that lie side by side in RAM or read as zeros, and with
        `supplied` also those that a page source has; defaults as in `pages`."""
        from coldframe.paging.spans import spans  # noqa: PLC0415 - loads numpy

        return spans(self.pages(start, end), start or 0, 1 << 64 if end is None else end, supplied=supplied)

    def readable(self, address: int, size: int = 1) -> bool:
        """Whether `read` would return all of these bytes."""
        try:
            for _ in self._spans(address, size):
                pass
        except UnreadableMemoryError:
            return False
        return True

    def u8(self, address: int) -> int:
        """The byte at `address`."""
        return self.read(address, 1)[0]

    def u16(self, address: int) -> int:
        """The little-endian 16-bit value at `address`."""
        return int(_U16.unpack(self.read(address, 2))[0])

    def u32(self, address: int) -> int:
        """The little-endian 32-bit value at `address`."""
        base = self._locate(address)
        if base >= 0 and not address & 3:
            try:
                return self._physical.u32(base | (address & PAGE_MASK))
            except UnreadableMemoryError:
                pass  # `read` says it in virtual addresses
        return int(_U32.unpack(self.read(address, 4))[0])

    def u64(self, address: int) -> int:
        """The little-endian 64-bit value at `address`."""
        base = self._locate(address)
        if base >= 0 and not address & 7:
            try:
                return self._physical.u64(base | (address & PAGE_MASK))
            except UnreadableMemoryError:
                pass  # `read` says it in virtual addresses
        return int(_U64.unpack(self.read(address, 8))[0])

    def read_cstring(self, address: int, limit: int = 4096) -> bytes:
        """The bytes from `address` up to the first zero byte, without it, or `limit` bytes where there is none before.

        A page behind the zero byte is not touched; raises `UnreadableMemoryError` where the string runs into a hole.
        """
        parts: list[bytes] = []
        for _, data in self._spans(address, limit):
            end = data.find(0)
            if end >= 0:
                parts.append(data[:end])
                break
            parts.append(data)
        return b"".join(parts)

    def __getitem__(self, key: slice) -> bytes:
        return self.read(*span_of(key))

    def __setitem__(self, key: slice, data: bytes) -> None:
        self.write(checked_start(key, data), data)

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`, in pages that are in RAM (valid or in transition).

        Writes through the tables' permissions and into every address space that shares the page: no copy-on-write is
        made. Raises `CapabilityError` where a page is not in RAM or the target is read-only; on error nothing was
        written.
        """
        pieces: list[tuple[int, bytes]] = []
        position = 0
        while position < len(data):
            at = address + position
            length = min(len(data) - position, PAGE_SIZE - (at & PAGE_MASK))
            base = self._locate(at)
            if base < 0:
                page = self.resolve(at)
                reason = page.reason or f"the page is {page.state}, so it is not in RAM"
                raise CapabilityError(f"cannot write {len(data):#x} bytes at {address:#x}: at {at:#x}, {reason}")
            pieces.append((base | (at & PAGE_MASK), data[position : position + length]))
            position += length
        for physical, part in pieces:
            self._physical.check_writable(physical, len(part))
        for physical, part in pieces:
            self._physical.write(physical, part)


def _moved(before: Page, after: Page) -> bool:
    """Whether a page that was not in RAM is elsewhere now."""
    places = [(page.state, page.physical, page.pagefile, page.subsection) for page in (before, after)]
    return places[0] != places[1]
