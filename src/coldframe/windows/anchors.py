"""The anchors by which the kernel is found; each returns a location, or notes its reason and returns None."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PAGE_SIZE, Run
from coldframe.paging.formats import FORMATS
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.windows.bare import FRAME, BareSpace
from coldframe.windows.kernel import (
    KERNEL_HALF,
    KERNEL_PDBS,
    KUSER_SHARED_DATA,
    KUSER_SHARED_DATA32,
    KernelLocation,
    Registers,
    Search,
    image_pages,
    kernel_at,
    load,
)
from coldframe.windows.kernelsymbols import named_files
from coldframe.windows.pe import parse_rsds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PAGE_FAULT = 14
_GATE = struct.Struct("<HHHHI4x")  # a 64-bit interrupt gate: Intel SDM 3A, 6.14.1
_GATE32 = struct.Struct("<HHHH")  # a 32-bit one: 6.11
_CHUNK = 64 << 20
_KPCR_SPAN = 0x10000  # how much of a KPCR is searched for the kernel's CR3
_MOST_CANDIDATES = 256
_MOST_KERNELS = 8
_KERNEL_SLOTS = {
    "4-level": ((496, 511), (256, 495)),
    "5-level": ((511, 511), (256, 510)),
    "pae": ((2, 3),),
    "x86": ((0x200, 0x3FF),),
}
"""Slots of the top-level table that lead to the upper half, first those where NT is loaded."""
_LONGEST_RECORD = 64  # of an RSDS record of the kernel: 24 bytes and a short name
LONG = ("4-level", "5-level")
"""The page-table formats of 64-bit Windows."""
_SYSTEM = b"System".ljust(15, b"\0")  # EPROCESS.ImageFileName of the System process
_KUSER_SLOT = KUSER_SHARED_DATA >> 39 & 511
# The low stub, by which a processor is started: `_PROCESSOR_START_BLOCK` of the HAL, which no public PDB describes.
# A jump at 0, CompletionFlag 1, LmTarget (an address in the kernel) at 0x70, CR3 at 0xA0; as PCILeech and memflow read
# it ("low stub").
_STUB_SIGNATURE, _STUB_SIGNATURE_MASK = 0x00000001_000600E9, 0xFFFFFFFF_FFFF00FF
_STUB_TARGET, _STUB_CR3 = 0x70, 0xA0

Found = KernelLocation | None


def page_fault_handler(search: Search) -> Found:
    """IDT[14] leads into the kernel."""
    return _from_code(search, "page-fault handler", _page_fault_address)


def system_call_entry(search: Search) -> Found:
    """MSR LSTAR leads to KiSystemCall64, where the target tells it."""
    return _from_code(search, "LSTAR", lambda _, registers: registers.get("lstar", "not told by this target"))


def instruction_pointer(search: Search) -> Found:
    """A vCPU that runs in the kernel."""

    def where(space: BareSpace, registers: Registers) -> int | str:
        rip = registers.get("rip", 0)
        return rip if rip >= space.kernel_half else f"RIP {rip:#x} is not in the kernel"

    return _from_code(search, "instruction pointer", where)


def header(search: Search) -> Found:
    """A pointer into the kernel that the image's own header gives."""
    return _from_code(search, "image header", lambda _, registers: registers.get("nt_address", "none in this target"))


def _from_code(search: Search, anchor: str, where: Callable[[BareSpace, Registers], int | str]) -> Found:
    """Scan below the address that `where` tells, in each vCPU's address space."""
    said: dict[str, None] = {}
    for vcpu, registers in enumerate(search.registers):
        for space in search.spaces(vcpu):
            address = where(space, registers)
            found = address if isinstance(address, str) else search.below(space, address, f"{anchor} {address:#x}")
            if isinstance(found, KernelLocation):
                return found
            said[found] = None
    if search.registers:
        search.fail(anchor, ", ".join(list(said)[:2]) or "CR3 is not known")
    return None


def _page_fault_address(space: BareSpace, registers: Registers) -> int | str:
    base = registers.get("idt_base")
    if base is None:
        return "the IDT's address is not known"
    gate = _GATE if space.format.canonical else _GATE32
    try:
        low, _, flags, middle, *high = gate.unpack(space.read(base + PAGE_FAULT * gate.size, gate.size))
    except UnreadableMemoryError as error:
        return f"the IDT is not readable: {error.reason}"
    if not flags & 0x8000:
        return f"IDT[14] at {base:#x} is not present"
    return int(low | middle << 16 | (high[0] << 32 if high else 0))


def kernel_shadow(search: Search) -> Found:
    """A vCPU stopped in user mode under KVA shadow: its KPCR holds the kernel's own CR3.

    The user's tables map the KPCR, the IDT and the shadow entry code, not the kernel. Every page-aligned number in
    the KPCR that is a physical address is tried as CR3 (KPRCB.KernelDirectoryTableBase is one of them; where it
    stands only the kernel's types tell, which are not known yet).
    """
    tried = 0
    for vcpu, registers in enumerate(search.registers):
        for space in search.spaces(vcpu):
            handler = _page_fault_address(space, registers)
            if isinstance(handler, str) or not space.format.canonical:
                continue
            for dtb in _frames_in(space, registers):
                tried += 1
                other = BareSpace(search.physical, dtb, space.format.name)
                if other.translate(handler) is not None and other.translate(KUSER_SHARED_DATA) is not None:
                    found = search.below(other, handler, f"page-fault handler {handler:#x}, CR3 from the KPCR")
                    if isinstance(found, KernelLocation):
                        return found
    if search.registers:
        search.fail("KVA shadow", f"{tried} numbers in KPCRs could be a CR3, none maps the kernel")
    return None


def _frames_in(space: BareSpace, registers: Registers) -> Iterator[int]:
    """Numbers in a vCPU's KPCR that could be its kernel CR3: with a PCID in the low bits, perhaps bit 63 (no flush)."""
    import numpy as np  # noqa: PLC0415 - slow to load

    for base in (registers.get("gs_base", 0), registers.get("k_gs_base", 0)):
        if base < KERNEL_HALF:
            continue
        seen: set[int] = set()
        for page in range(base & ~0xFFF, base + _KPCR_SPAN, PAGE_SIZE):
            try:
                words = np.frombuffer(space.read(page, PAGE_SIZE), dtype=np.uint64)
            except UnreadableMemoryError:
                continue
            for word in words[(words & np.uint64(0x7FF0_0000_0000_0FF0) == 0) & (words > 0xFFF)]:
                frame = int(word) & FRAME
                if frame not in seen and frame in space.physical:
                    seen.add(frame)
                    yield frame


def low_stub(search: Search) -> Found:
    """The block below 1 MB through which Windows starts its processors: CR3 and an address in the kernel."""
    for address in range(0x1000, 0x100000, PAGE_SIZE):
        try:
            block = search.physical.read(address, _STUB_CR3 + 8)
        except UnreadableMemoryError:
            continue
        first, target, cr3 = (struct.unpack_from("<Q", block, at)[0] for at in (0, _STUB_TARGET, _STUB_CR3))
        if first & _STUB_SIGNATURE_MASK != _STUB_SIGNATURE or target < KERNEL_HALF or cr3 & 0xFFF or not cr3 & FRAME:
            continue
        for name in LONG:
            space = BareSpace(search.physical, cr3, name)
            if space.translate(target) is not None:
                found = search.below(space, target, f"low stub at {address:#x}")
                if isinstance(found, KernelLocation):
                    return found
                search.fail("low stub", found)
                return _noted(search, "low stub", _in_space(search, space, f"CR3 of the low stub at {address:#x}"))
    search.fail("low stub", "no processor start block in 0x1000-0x100000")
    return None


def self_map(search: Search) -> Found:
    """A top-level table one of whose upper 256 entries is itself (slot 0x1ED, or random since 1607)."""
    return from_tables(search, "self-referencing PML4", _self_referencing(search), LONG)


def _self_referencing(search: Search) -> Iterator[int]:
    import numpy as np  # noqa: PLC0415 - slow to load

    for address, pages in pages_of(search):
        own = address + np.arange(len(pages), dtype=np.uint64) * np.uint64(PAGE_SIZE)
        upper = pages[:, 256:]
        rows = np.flatnonzero(((upper & np.uint64(FRAME | 0x81)) == (own | np.uint64(1))[:, None]).any(axis=1))
        yield from (int(own[row]) for row in rows)


def shared_data(search: Search) -> Found:
    """From the page of KUSER_SHARED_DATA, known by its text, up through the tables that map it."""
    import numpy as np  # noqa: PLC0415 - slow to load

    pages = shared_pages(search)
    if not pages:
        search.fail("KUSER_SHARED_DATA", "no page with a system root (X:\\WINDOWS) in physical memory")
        return None
    columns = [(address, table[:, (0, _KUSER_SLOT)].copy()) for address, table in pages_of(search)]

    def holders(targets: set[int], column: int) -> set[int]:
        wanted = np.array(sorted(targets), dtype=np.uint64)
        found: set[int] = set()
        for address, entries in columns:
            values = entries[:, column]
            rows = np.flatnonzero((values & np.uint64(1)).astype(bool) & np.isin(values & np.uint64(FRAME), wanted))
            found.update(address + int(row) * PAGE_SIZE for row in rows[:_MOST_CANDIDATES])
        return found

    level = set(pages)
    for _ in range(3):  # page table, page directory, PDPT: the address has index 0 in each
        level = holders(level, 0)
    return from_tables(search, "KUSER_SHARED_DATA", iter(sorted(holders(level, 1))), LONG)


def shared_pages(search: Search) -> list[int]:
    """Physical pages that may be KUSER_SHARED_DATA, by the fields that ntddk.h documents.

    NtSystemRoot at 0x30 is `X:\\WINDOWS` in UTF-16, or any other folder of a drive where NtMajorVersion at 0x26C is one
    of NT's: not every NT is installed into a folder of that name.
    """
    import numpy as np  # noqa: PLC0415 - slow to load

    windows = re.compile(rb"[A-Z]\0:\0\\\0W\0I\0N\0D\0O\0W\0S\0", re.IGNORECASE)
    folder = re.compile(rb"[A-Z]\0:\0\\\0(?:[\x20-\x7e]\0){2}")
    found = []
    for address, pages in pages_of(search):
        head = np.ascontiguousarray(pages[:, 6:9]).view(np.uint8)
        rows = np.flatnonzero((head[:, 1] == 0) & (head[:, 2] == ord(":")) & (head[:, 4] == ord("\\")))
        for place in (address + int(row) * PAGE_SIZE for row in rows):
            text = search.physical.read(place + 0x30, 32)
            versions = struct.unpack("<II", search.physical.read(place + 0x26C, 8))
            if windows.match(text) or (folder.match(text) and 4 <= versions[0] <= 10 and versions[1] < 10):
                found.append(place)
    return found[:_MOST_CANDIDATES]


def kernel_image(search: Search) -> Found:
    """The kernel's RSDS record in physical memory names its PDB; that PDB's types find the System process's DTB.

    For a kernel without such a record, the types of the symbol files that the user names do.
    """
    identities = list(dict.fromkeys(_records(search)))
    if not identities:
        search.fail("kernel's PE", f"no CodeView record of {', '.join(sorted(KERNEL_PDBS))} in physical memory")
    for identity in identities[:_MOST_KERNELS]:
        symbols = load(search.store, identity)
        if isinstance(symbols, str):
            search.fail("kernel's PE", f"{identity} is in memory, but {symbols}")
            continue
        found = _by_system_process(search, symbols)
        if found is not None:
            return found
    for symbols in named_files(search.store)[0][:_MOST_KERNELS]:
        found = _by_system_process(search, symbols) if "_EPROCESS" in symbols.types else None
        if found is not None:
            return found
    return None


def _by_system_process(search: Search, symbols: SymbolFile) -> Found:
    types = symbols.types
    names: tuple[str, ...] = LONG
    if types.pointer_size == 4:
        entry = types.size("_MMPTE_HARDWARE") if "_MMPTE_HARDWARE" in types else 0
        names = {4: ("x86",), 8: ("pae",)}.get(entry, ("pae", "x86"))
    root, width = FORMATS[names[0]].root, types.pointer_size
    name = types.offset("_EPROCESS", "ImageFileName")
    table = types.offset("_EPROCESS", "Pcb.DirectoryTableBase")
    pid = types.offset("_EPROCESS", "UniqueProcessId")
    dtbs = (
        dtb
        for place in _find(search, _SYSTEM)
        if _word(search, place - name + pid, width) == 4 and (dtb := _word(search, place - name + table, width) & root)
    )
    return from_tables(search, f"System process by the types of {symbols.identity.name}", dtbs, names)


def _word(search: Search, address: int, size: int) -> int:
    try:
        return int.from_bytes(search.physical.read(address, size), "little") if address >= 0 else 0
    except UnreadableMemoryError:
        return 0


def _records(search: Search) -> Iterator[PdbIdentity]:
    for place in _find(search, b"RSDS"):
        try:
            identity = parse_rsds(search.physical.read(place, _LONGEST_RECORD))
        except UnreadableMemoryError:
            continue
        if identity is not None and identity.name.lower() in KERNEL_PDBS:
            yield identity


def _find(search: Search, text: bytes) -> Iterator[int]:
    """Where `text` is in physical memory, at multiples of four bytes (compilers and the pool align what is sought)."""
    import numpy as np  # noqa: PLC0415 - slow to load

    head = np.uint32(int.from_bytes(text[:4], "little"))
    for address, pages in pages_of(search):
        for place in np.flatnonzero(pages.reshape(-1).view(np.uint32) == head):
            start = address + 4 * int(place)
            try:
                if search.physical.read(start, len(text)) == text:
                    yield start
            except UnreadableMemoryError:
                continue


def pages_of(search: Search) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Physical memory in chunks: the address of the first page, and the pages as entries, shape (n, 512)."""
    for run in search.physical.runs:
        first = -run.start % PAGE_SIZE
        for start in range(first, run.size - PAGE_SIZE + 1, _CHUNK):
            yield run.start + start, _chunk(search, run, start)


def _chunk(search: Search, run: Run, start: int) -> NDArray[np.uint64]:
    import numpy as np  # noqa: PLC0415 - slow to load

    size = min(_CHUNK, run.size - start) // PAGE_SIZE * PAGE_SIZE
    try:
        data = search.physical.view(run.start + start, size)
    except UnreadableMemoryError:
        data = np.zeros(size, dtype=np.uint8)
    return data.view(np.uint64).reshape(-1, PAGE_SIZE // 8)


def from_tables(search: Search, anchor: str, candidates: Iterator[int], names: Sequence[str]) -> Found:
    """Try each top-level table in each of the formats: it must map KUSER_SHARED_DATA, and the kernel be under it."""
    tried, said = 0, ""
    for dtb in candidates:
        for name in names:
            space = BareSpace(search.physical, dtb, name)
            if space.translate(KUSER_SHARED_DATA if space.format.canonical else KUSER_SHARED_DATA32) is None:
                continue
            tried += 1
            found = _in_space(search, space, f"{anchor} at {dtb:#x}")
            if isinstance(found, KernelLocation):
                return found
            said = found
        if tried >= _MOST_CANDIDATES:
            break
    search.fail(anchor, said or "no table in physical memory maps KUSER_SHARED_DATA")
    return None


def _noted(search: Search, anchor: str, found: KernelLocation | str) -> Found:
    if isinstance(found, KernelLocation):
        return found
    search.fail(anchor, found)
    return None


def _in_space(search: Search, space: BareSpace, how: str) -> KernelLocation | str:
    """Look at every mapped page of the upper half for the kernel's headers, first where NT is loaded."""
    others = 0
    for first, last in _KERNEL_SLOTS[space.format.name]:
        for page in image_pages(space, space.mapped(first, last, search.spend)):
            found = kernel_at(space, page, how)
            if isinstance(found, KernelLocation):
                return found
            others += 1
    return f"{how}: {others} images are mapped there, none is the kernel"


BY_REGISTERS = (page_fault_handler, system_call_entry, instruction_pointer, header, kernel_shadow)
BY_MEMORY = (low_stub, self_map, shared_data)
BY_TYPES = (kernel_image,)
