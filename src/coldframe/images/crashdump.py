"""Windows crash dumps: complete (type 1) and by bitmap (types 2, 5 and 6).

Source: as of the header (`crashheader`); a type 1 dump has the pages of each run of PHYSICAL_MEMORY_DESCRIPTOR one
after the other, a bitmap dump those pages whose bit is set.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from coldframe.errors import FormatError
from coldframe.images import crashheader
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PAGE_SIZE, PhysicalMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BY_BITMAP = {2: "kernel", 5: "bitmap", 6: "live kernel"}
_OTHERS = {4: "triage (mini) dump", 8: "kernel dump", 9: "kernel and user dump", 10: "complete dump"}
_LEFT_OUT = {
    2: "this kernel dump does not carry it: Windows leaves the pages of user mode out; take a complete dump",
    5: "this dump does not carry it: its bitmap leaves the page out",
    6: "this live dump does not carry it: its bitmap leaves the page out",
}
# The bitmap's header follows the dump's. Since Windows 8: where the pages begin, how many there are, bits in the
# bitmap, and the bitmap; 64 bits each. Before it (SUMMARY_DUMP32 and 64 of ntiodump.h), 32 bits each: where the pages
# begin, bits, how many pages, bits again; then the bitmap, in 64-bit dumps behind more padding
_FIRST_PAGE, _PRESENT, _PAGES, _BITMAP = 0x20, 0x28, 0x30, 0x38
_OLD = struct.Struct("<4I")
_OLD_AT, _OLD_BITMAP64, _OLD_BITMAP32 = 0x0C, 0x28, 0x20
_MOST_PAGES = 1 << 34
_MOST_RUNS = 1 << 21
_CHUNK = 1 << 20  # bytes of the bitmap that are looked at in one go


def open_crash_dump(file: ImageFile) -> PhysicalImage:
    """The pages of a crash dump; raises `FormatError` for kinds that hold no physical memory."""
    form = crashheader.FORMS[bytes(file.data[:8])]
    header = bytes(file.at(0, form.size, "the crash dump's header"))
    bits, machine = ("32-bit ", "x86 (0x14c)") if form is crashheader.FORM32 else ("", "x64 (0x8664)")
    found = form.word(header, form.machine_at)
    if found != form.machine:
        raise FormatError(f"{file.path} is a {bits}crash dump of machine {found:#x}; only {machine} is read")
    kind = form.kind(header)
    warnings: list[str] = []
    why: Callable[[int], str] | None = None
    if kind == crashheader.FULL:
        name, wanted = f"{bits}crash dump (complete)", list(_runs(file, form, header))
    elif kind in _BY_BITMAP:
        name = f"{bits}crash dump ({_BY_BITMAP[kind]})"
        old_bitmap = _OLD_BITMAP32 if form is crashheader.FORM32 else _OLD_BITMAP64
        wanted, pages = _bitmap_runs(file, form.size, old_bitmap, warnings)
        why = _left_out(kind, pages, _described(form, header))
    else:
        raise FormatError(
            f"{file.path} is a {bits}crash dump of type {kind} ({_OTHERS.get(kind, 'unknown')});"
            " those of types 1, 2, 5 and 6 have memory"
        )
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} is a crash dump without pages")
    return PhysicalImage(PhysicalMemory(runs, why), name, [form.registers(header)], warnings, header)


def _runs(file: ImageFile, form: crashheader.HeaderForm, header: bytes) -> Iterator[tuple[int, int, int]]:
    runs = form.runs(header, form.most_runs + 1)  # QEMU's reader takes one more than fits whole
    if runs is None:
        count = form.word(header, form.run_count_at)
        raise FormatError(f"{file.path}: the crash dump's header tells of {count} memory runs")
    offset = form.size
    for number, (page, pages) in enumerate(runs):
        if page + pages > _MOST_PAGES:
            raise FormatError(f"{file.path}: memory run {number} has {pages:#x} pages at page {page:#x}")
        yield page * PAGE_SIZE, pages * PAGE_SIZE, offset
        offset += pages * PAGE_SIZE


def _bitmap_runs(
    file: ImageFile, at: int, old_bitmap: int, warnings: list[str]
) -> tuple[list[tuple[int, int, int]], int]:
    """The runs by the bitmap whose header is at `at`, and how many pages the bitmap is for."""
    import numpy as np  # noqa: PLC0415 - slow to load

    signature = bytes(file.at(at, 8, "the bitmap's header"))
    if signature not in (b"SDMPDUMP", b"FDMPDUMP"):
        raise FormatError(f"{file.path}: the bitmap's header begins with {signature!r}, not with SDMPDUMP or FDMPDUMP")
    first, pages, present, again = _OLD.unpack(file.at(at + _OLD_AT, _OLD.size, "the bitmap's header"))
    place = at + old_bitmap
    if not (pages and pages == again and present <= pages and first >= place + (pages + 7) // 8):
        first = file.u64(at + _FIRST_PAGE, "the first page's offset")
        present = file.u64(at + _PRESENT, "the number of pages")
        pages = file.u64(at + _PAGES, "the bitmap's size")
        place = at + _BITMAP
    if pages > _MOST_PAGES:
        raise FormatError(f"{file.path}: the bitmap has {pages:#x} pages")
    bitmap = file.at(place, (pages + 7) // 8, "the bitmap")
    starts, ends = _set_bits(bitmap, pages)
    if len(starts) > _MOST_RUNS:
        raise FormatError(f"{file.path}: the bitmap has {len(starts)} runs of pages; {_MOST_RUNS} are the most")
    sizes = ends - starts
    if int(sizes.sum()) != present:
        warnings.append(f"{file.path}: the bitmap names {int(sizes.sum())} pages, its header says {present}")
    offsets = first + (np.cumsum(sizes) - sizes) * PAGE_SIZE
    runs = [
        (int(start) * PAGE_SIZE, int(size) * PAGE_SIZE, int(offset))
        for start, size, offset in zip(starts, sizes, offsets, strict=True)
    ]
    return runs, pages


def _left_out(kind: int, pages: int, described: Sequence[tuple[int, int]]) -> Callable[[int], str]:
    """Says of an address whether a dump by bitmap of `pages` pages left it out.

    `described` are the runs of pages (first, how many) that the dump's header says the machine has, perhaps none.
    """

    def why(address: int) -> str:
        page = address // PAGE_SIZE
        has = page < pages and (not described or any(first <= page < first + count for first, count in described))
        return (_LEFT_OUT[kind] + ("" if described else ", or the machine has no memory there")) if has else ""

    return why


def _described(form: crashheader.HeaderForm, header: bytes) -> list[tuple[int, int]]:
    """PHYSICAL_MEMORY_DESCRIPTOR's runs (first page, pages); none where the dump does not fill it in."""
    return [(first, pages) for first, pages in form.runs(header, form.most_runs) or () if pages]


def _set_bits(bitmap: memoryview, pages: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each run of set bits starts and ends among the first `pages` bits; stops looking beyond `_MOST_RUNS`."""
    import numpy as np  # noqa: PLC0415 - slow to load

    found: list[NDArray[np.int64]] = []
    before, count = 0, 0
    for start in range(0, len(bitmap), _CHUNK):
        part = np.frombuffer(bitmap[start : start + _CHUNK], dtype=np.uint8)
        if not before and not part.any():
            continue
        bits = np.unpackbits(part, bitorder="little")[: pages - 8 * start].view(np.int8)
        edges = np.flatnonzero(np.diff(bits, prepend=np.int8(before))) + 8 * start
        found.append(edges)
        before, count = int(bits[-1]), count + len(edges)
        if count > 2 * _MOST_RUNS:
            break
    edges = np.concatenate([*found, np.array([pages] if before else [], dtype=np.int64)])
    return edges[::2], edges[1 : len(edges) // 2 * 2 : 2]
