"""The frames in a chain of NET_BUFFER_LISTs, NDIS 6's form of packets: lists of buffers, each over a chain of MDLs.

Where the members lie is asked of ndis.sys's own types. Where its PDB is not at hand, `PUBLIC` tells: both structures
begin with members that the documentation of ndis.h gives in this order (NET_BUFFER_LIST_DATA, NET_BUFFER_DATA, the
latter's length a union as wide as SIZE_T) and that ndis.sys's PDBs of Windows Vista to 11 have there. `_MDL` is among
the kernel's types; its page frames stand behind it (wdm.h, MmGetMdlPfnArray).

The guest is hostile: lists that bite their tails end, counts and sizes are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from coldframe.capabilities import ReadsMemory
from coldframe.errors import SymbolFileNotFoundError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.paging import AddressSpace
from coldframe.symbols.model import Types
from coldframe.windows.guest import Guest
from coldframe.windows.module import Module

LARGEST_FRAME = 1 << 18
"""Bytes of a frame that are read; more than the largest that offloads make of one."""
MOST_FRAMES = 1 << 13
"""Of one call."""
_MOST_MDLS = 1 << 10

LIST, BUFFER = "_NET_BUFFER_LIST", "_NET_BUFFER"
PUBLIC: Mapping[tuple[str, str], int] = {
    (LIST, "Next"): 0,
    (LIST, "FirstNetBuffer"): 1,
    (BUFFER, "Next"): 0,
    (BUFFER, "CurrentMdl"): 1,
    (BUFFER, "CurrentMdlOffset"): 2,
    (BUFFER, "DataLength"): 3,
}
"""Offsets in pointers."""

_MAPPED = 0x0001 | 0x0004
"""MDL_MAPPED_TO_SYSTEM_VA and MDL_SOURCE_IS_NONPAGED_POOL (wdm.h): MappedSystemVa is good."""
_LOCKED = 0x0002 | 0x0010
"""MDL_PAGES_LOCKED and MDL_PARTIAL: the page frames are."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Part of a frame that could not be read, and is zeros: `offset` and `size` in bytes."""

    offset: int
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class NetFrame:
    """One frame: the address of its NET_BUFFER, its `size` in bytes, and of these what was read (all but what is cut
    at `LARGEST_FRAME`); over how many MDLs it lay."""

    address: int
    size: int
    data: bytes
    pieces: int
    missing: tuple[Missing, ...] = ()


class NetBuffers:
    """Reads chains of one guest. `source` says whose layout is used: "ndis.sys" or "ndis.h"."""

    def __init__(self, guest: Guest, ndis: Module) -> None:
        self._guest = guest
        self._width = guest.types.pointer_size
        self._mdl = {name: guest.types.offset("_MDL", name) for name in _MDL_FIELDS}
        self._mdl_size = guest.types.size("_MDL")
        types = _types(ndis)
        if types is not None and all(types.has_field(*place) for place in PUBLIC):
            self.source = "ndis.sys"
            self._offsets = {place: types.offset(*place) for place in PUBLIC}
        else:
            self.source = "ndis.h"
            self._offsets = {place: words * self._width for place, words in PUBLIC.items()}

    def frames(self, memory: AddressSpace, lists: int) -> Iterator[NetFrame]:
        """The frames of the chain of NET_BUFFER_LISTs at `lists`, in order; raises `UnreadableMemoryError` where a
        structure cannot be read, after the frames before it."""
        seen: set[int] = set()
        while lists and lists not in seen and len(seen) < MOST_FRAMES:
            seen.add(lists)
            buffer = self._pointer(memory, lists, LIST, "FirstNetBuffer")
            while buffer and buffer not in seen and len(seen) < MOST_FRAMES:
                seen.add(buffer)
                yield self._frame(memory, buffer)
                buffer = self._pointer(memory, buffer, BUFFER, "Next")
            lists = self._pointer(memory, lists, LIST, "Next")

    def _frame(self, memory: AddressSpace, buffer: int) -> NetFrame:
        mdl = self._pointer(memory, buffer, BUFFER, "CurrentMdl")
        offset = memory.u32(buffer + self._offsets[BUFFER, "CurrentMdlOffset"])
        size = memory.u32(buffer + self._offsets[BUFFER, "DataLength"])
        got = _Gathered(min(size, LARGEST_FRAME))
        seen: set[int] = set()
        try:
            while got.left and mdl and mdl not in seen and len(seen) < _MOST_MDLS:
                seen.add(mdl)
                count = memory.u32(mdl + self._mdl["ByteCount"])
                self._piece(memory, mdl, offset, min(max(0, count - offset), got.left), got)
                offset = max(0, offset - count)  # an offset beyond the first MDL goes on in the next
                mdl = self._number(memory, mdl + self._mdl["Next"])
            got.lack(got.left, "its MDLs end before its data does")
        except UnreadableMemoryError as error:
            got.lack(got.left, f"an MDL at {error.address:#x}: {error.reason}")
        return NetFrame(buffer, size, bytes(got.data), len(seen), tuple(got.missing))

    def _piece(self, memory: AddressSpace, mdl: int, offset: int, size: int, got: _Gathered) -> None:
        """Gather `size` bytes of an MDL, from `offset` on."""
        flags = memory.u16(mdl + self._mdl["MdlFlags"])
        if flags & _MAPPED:
            got.read(memory, self._number(memory, mdl + self._mdl["MappedSystemVa"]) + offset, size)
            return
        start = memory.u32(mdl + self._mdl["ByteOffset"]) + offset
        if not flags & _LOCKED:  # built, and not locked yet: of the process that runs
            got.read(memory, self._number(memory, mdl + self._mdl["StartVa"]) + start, size)
            return
        while size:
            page, within = divmod(start, PAGE_SIZE)
            part = min(size, PAGE_SIZE - within)
            frame = self._number(memory, mdl + self._mdl_size + page * self._width)
            got.read(self._guest.physical, frame * PAGE_SIZE + within, part)
            start, size = start + part, size - part

    def _pointer(self, memory: AddressSpace, address: int, record: str, field: str) -> int:
        return self._number(memory, address + self._offsets[record, field])

    def _number(self, memory: AddressSpace, address: int) -> int:
        return int.from_bytes(memory.read(address, self._width), "little")


_MDL_FIELDS = ("Next", "MdlFlags", "MappedSystemVa", "StartVa", "ByteCount", "ByteOffset")


class _Gathered:
    """The bytes of a frame as they come in, `wanted` in all."""

    def __init__(self, wanted: int) -> None:
        self.data = bytearray()
        self.missing: list[Missing] = []
        self._wanted = wanted

    @property
    def left(self) -> int:
        return self._wanted - len(self.data)

    def read(self, memory: ReadsMemory, address: int, size: int) -> None:
        """The next `size` bytes, from `address`; zeros where there are none."""
        while size > 0:
            part = min(size, PAGE_SIZE - address % PAGE_SIZE)
            try:
                self.data += memory.read(address, part)
            except UnreadableMemoryError as error:
                self.lack(part, error.reason)
            address, size = address + part, size - part

    def lack(self, size: int, reason: str) -> None:
        """The next `size` bytes, if any, are zeros, for this reason."""
        if size:
            self.missing.append(Missing(len(self.data), size, reason))
            self.data += bytes(size)


def _types(module: Module) -> Types | None:
    try:
        return module.symbols.types
    except SymbolFileNotFoundError:
        return None
