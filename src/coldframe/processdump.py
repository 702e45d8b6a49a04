"""One process's address space into a file, an ELF core or a user minidump, and a manifest of what is in it.

The manifest, FILE.manifest.json, has every run of pages that the tables or the VADs tell of: its state, the way to
it, whether it could be read and if not why, and where it is in the file. Pages that a VAD has reserved and not
committed are not in the file: there is nothing to read in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError, UnreadableMemoryError, UsageError
from coldframe.images.elf import process_head
from coldframe.images.minidump import minidump_head
from coldframe.images.output import Output
from coldframe.memory import PAGE_SIZE
from coldframe.paging import State, Via
from coldframe.paging.arrays import BIT, CODE, NOWHERE, STATES, VIAS, PageArrays
from coldframe.processfacts import committed_ranges, elf_flags, files, minidump_process, threads

if TYPE_CHECKING:
    from coldframe.images.output import Progress
    from coldframe.processfacts import KnownThread
    from coldframe.windows import Process

SUFFIXES: Mapping[str, tuple[str, ...]] = {"elf": (".elf", ".core"), "minidump": (".dmp", ".mdmp")}
"""The formats that a process is written in, and the suffixes that mean them."""

_MOST_BYTES = 1 << 40  # of memory in one file; a guest whose tables name the same frames over and over has more
_MOST_ZEROS = 1 << 30  # bytes of promised zeros in one run; larger ones are left to the manifest
_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class PageRun:
    """Pages side by side that are alike. `reason` is of the first of them.

    `wanted` says that it is to be in the file, `physical` that its bytes are to be read: the others are zeros.
    """

    address: int
    size: int
    state: State
    via: tuple[Via, ...]
    readable: bool
    reason: str
    wanted: bool
    physical: bool


def write_process(
    process: Process,
    output: str | Path,
    format: str,  # noqa: A002 - the option's name
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write the user half of `process`, which must not run meanwhile, to `output`; returns warnings.

    `format` is "elf" or "minidump". `output`.manifest.json is written beside it, after it. Raises `OutputError`,
    `FormatError` where the page tables map more than a terabyte.
    """
    if format not in SUFFIXES:
        raise UsageError(f"expected a format of {', '.join(SUFFIXES)} for a process, found {format!r}")
    before = len(process.guest.warnings)
    path = Path(output)
    runs = list(_runs(process))
    total = sum(run.size for run in runs if run.wanted)
    if total > _MOST_BYTES:
        raise FormatError(f"{process!r} maps {total:#x} bytes; more than {_MOST_BYTES:#x} are not written to one file")
    known = list(threads(process))
    segments = _segments(process, runs)
    if format == "elf":
        told = [(thread.tid, thread.registers) for thread in known if thread.registers]
        head, first = process_head(segments, told, files(process))
    else:
        ranges = [(start, size) for start, size, _ in segments]
        head, first = minidump_head(minidump_process(process, known, ranges), ranges)
    offsets: dict[int, int] = {}
    holes: list[tuple[int, int]] = []
    with Output(path) as file:
        file.write(0, head)
        done, at = 0, first
        for run in (run for run in runs if run.wanted):
            offsets[run.address] = at
            if run.physical:
                for address, data in _bytes(process, run, holes):
                    file.put(at + address - run.address, data)
                    if progress is not None:
                        progress(done + address - run.address + len(data), total)
            at, done = at + run.size, done + run.size
            file.extend(at)
            if progress is not None:
                progress(done, total)
    manifest = path.with_name(f"{path.name}.manifest.json")
    with Output(manifest) as file:
        at = 0
        for line in _manifest(process, path, written_as=format, runs=runs, offsets=offsets, holes=holes, known=known):
            file.write(at, line.encode())
            at += len(line.encode())
    return tuple(process.guest.warnings[before:])


def _runs(process: Process) -> Iterator[PageRun]:
    """The runs of pages of the user half, by address."""
    space, pages = process.memory, process.memory.pages()
    starts, ends, committed = committed_ranges(process)
    vad = np.searchsorted(starts, pages.address, side="right").astype(np.int64) - 1
    inside = (vad >= 0) & (pages.address < ends[np.maximum(vad, 0)]) if len(starts) else np.zeros(len(pages), bool)
    vad = np.where(inside, vad, -1)
    promised = (pages.state == CODE[State.DEMAND_ZERO]) & ((pages.via & np.uint8(BIT[Via.VAD])) != 0)
    reserved = promised & inside & ~committed[np.maximum(vad, 0)] if len(starts) else np.zeros(len(pages), bool)
    readable = pages.readable
    for low, high in _alike(pages, readable, vad, reserved):
        address, end = int(pages.address[low]), int(pages.address[high] + pages.size[high])
        end = min(end, space.resolver.format.user_end)
        state, size = STATES[int(pages.state[low])], end - address
        via = tuple(VIAS[bit] for bit in range(len(VIAS)) if int(pages.via[low]) >> bit & 1)
        zero = state is State.DEMAND_ZERO and int(pages.physical[low]) == NOWHERE
        fine, wanted, reason = bool(readable[low]), bool(readable[low]), ""
        if not fine:
            reason = space.resolve(address).reason
        elif reserved[low]:
            wanted, reason = False, "reserved and not committed: nothing is there to be written"
        elif zero and size > _MOST_ZEROS:
            wanted, reason = False, f"{size:#x} promised zeros, of which nothing is touched: left out of the file"
        yield PageRun(address, size, state, via, fine, reason, wanted, not zero)


def _alike(
    pages: PageArrays, readable: NDArray[np.bool_], vad: NDArray[np.int64], reserved: NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """First and last row of each run: side by side, the same in all that is told, paging-file offsets counting on."""
    if not len(pages):
        return
    beside = pages.address[1:] == pages.address[:-1] + pages.size[:-1]
    for column in (pages.state, pages.via, pages.number, pages.subsection, readable, vad, reserved):
        beside &= column[1:] == column[:-1]
    slotted = (pages.state == CODE[State.PAGEFILE]) | (pages.state == CODE[State.COMPRESSED])
    beside &= ~slotted[1:] | (pages.offset[1:] == pages.offset[:-1] + pages.size[:-1])
    first = np.concatenate(([0], np.flatnonzero(~beside) + 1))
    last = np.concatenate((first[1:] - 1, [len(pages) - 1]))
    yield from zip(first.tolist(), last.tolist(), strict=True)


def _segments(process: Process, runs: Sequence[PageRun]) -> list[tuple[int, int, int]]:
    """The runs to be written, joined where they touch and are protected alike: (address, size, PF_ flags)."""
    found: list[tuple[int, int, int]] = []
    flags = elf_flags(process)
    for run in runs:
        if not run.wanted:
            continue
        access = flags(run.address)
        if found and found[-1][0] + found[-1][1] == run.address and found[-1][2] == access:
            found[-1] = (found[-1][0], found[-1][1] + run.size, access)
        else:
            found.append((run.address, run.size, access))
    return found


def _bytes(process: Process, run: PageRun, holes: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The bytes of a run in pieces; what cannot be read after all is left zero and noted in `holes`."""
    for address in range(run.address, run.address + run.size, _CHUNK):
        size = min(_CHUNK, run.address + run.size - address)
        try:
            yield address, process.memory.read(address, size)
        except UnreadableMemoryError:
            data, missing = process.memory.read_padded(address, size)
            holes += missing
            yield address, data


def _manifest(
    process: Process,
    path: Path,
    *,
    written_as: str,
    runs: Sequence[PageRun],
    offsets: Mapping[int, int],
    holes: Sequence[tuple[int, int]],
    known: Sequence[KnownThread],
) -> Iterator[str]:
    """The manifest's lines: one JSON document with one run a line."""
    guest = process.guest
    states = {str(state): 0 for state in State}
    for run in runs:
        states[str(run.state)] += run.size // PAGE_SIZE
    facts = {
        "file": path.name,
        "format": written_as,
        "process": {
            "pid": process.pid,
            "name": process.name,
            "path": process.path,
            "eprocess": hex(process.eprocess.address),
            "dtb": hex(process.dtb),
        },
        "kernel": str(guest.location.identity),
        "threads": [{"tid": thread.tid, "context": thread.source} for thread in known],
        "totals": {
            "pages": sum(run.size for run in runs) // PAGE_SIZE,
            "readable": sum(run.size for run in runs if run.readable) // PAGE_SIZE,
            "unreadable": sum(run.size for run in runs if not run.readable) // PAGE_SIZE,
            "written": sum(run.size for run in runs if run.wanted) // PAGE_SIZE,
            "states": states,
        },
        "holes": [{"address": hex(start), "size": size} for start, size in holes],
        "warnings": list(guest.warnings),
    }
    yield json.dumps(facts, indent=1, ensure_ascii=False)[:-2] + ',\n "runs": ['
    for number, run in enumerate(runs):
        place = offsets.get(run.address)
        row = {
            "address": hex(run.address),
            "count": run.size // PAGE_SIZE,
            "state": str(run.state),
            "via": [str(via) for via in run.via],
            "readable": run.readable,
            "file_offset": None if place is None else hex(place),
            "reason": run.reason,
        }
        yield (",\n  " if number else "\n  ") + json.dumps(row, ensure_ascii=False)
    yield "\n ]\n}\n"
