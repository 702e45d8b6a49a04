"""A memory image: a file mapped into this process, and the guest-physical memory that it holds."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coldframe.closing import Closing
from coldframe.errors import FormatError
from coldframe.memory import PhysicalMemory, Run


@dataclass(slots=True)
class PhysicalImage(Closing):
    """What a memory image holds.

    `format` names the file's format; `registers` has one mapping a vCPU that the format carries (see
    `coldframe.windows.find_kernel` for the names), perhaps none; `warnings` says what was damaged and left out;
    `crash_header` is the DUMP_HEADER64 or 32 of a crash dump.
    A context manager; leaving it closes the file, once nothing reads from it any more.
    """

    physical: PhysicalMemory
    format: str
    registers: Sequence[Mapping[str, int]] = ()
    warnings: Sequence[str] = field(default=())
    crash_header: bytes | None = None

    def close(self) -> None:
        """Forget the file; its mapping goes when the last view of it goes."""
        self.physical = PhysicalMemory(())


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file as bytes, mapped read-only: `data` is as long as the file."""

    path: Path
    data: memoryview

    @classmethod
    def map(cls, path: Path) -> ImageFile:
        """Map the file at `path`; raises `FormatError` for an empty one, `OSError`."""
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise FormatError(f"{path} is empty: no memory image")
            return cls(path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))

    def at(self, offset: int, size: int, what: str) -> memoryview:
        """`size` bytes at `offset`, where `what` should be; raises `FormatError` beyond the file's end."""
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise FormatError(
                f"{self.path}: {what} should be {size:#x} bytes at {offset:#x}, the file has {len(self.data):#x}"
            )
        return self.data[offset : offset + size]

    def u32(self, offset: int, what: str) -> int:
        """The little-endian 32-bit value at `offset`."""
        return int.from_bytes(self.at(offset, 4, what), "little")

    def u64(self, offset: int, what: str) -> int:
        """The little-endian 64-bit value at `offset`."""
        return int.from_bytes(self.at(offset, 8, what), "little")


def whole_runs(file: ImageFile, wanted: Iterable[tuple[int, int, int]], warnings: list[str]) -> list[Run]:
    """Runs of (start, size, offset in the file) that lie in the file and do not overlap.

    What goes past the end of a truncated file is cut off; of memory that is told twice the first telling stays. Both
    are noted in `warnings`.
    """
    found: list[Run] = []
    end, missing, twice = 0, 0, 0
    for start, size, offset in sorted(wanted, key=lambda run: (run[0], run[2])):
        here = max(0, min(size, len(file.data) - offset))
        missing += size - here
        skip = min(max(0, end - start), here)
        twice += skip
        if here > skip:
            found.append(Run(start + skip, here - skip, file.data, offset + skip))
            end = start + here
    if missing:
        warnings.append(f"{file.path} is cut off: {missing:#x} bytes of memory are missing")
    if twice:
        warnings.append(f"{file.path} tells {twice:#x} bytes of memory more than once")
    return found
