"""`DUMP_HEADER64` and `DUMP_HEADER32`: what begins a Windows crash dump of an x64 or x86 system, read and made.

Source: the readers of the format (kdmp-parser's `kdmp-parser-structs.h`, Volatility's `crash.json` and `crash64.json`,
QEMU's `win_dump_defs.h`). No public PDB has the structures, so their offsets are numbers here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coldframe.images.context import CONTEXT32, CONTEXT64, ContextForm

FULL, BITMAP = 1, 5
LIVE_SYSTEM_DUMP = 0x161  # the bugcheck code of a dump of a system that did not crash
_DIRECTORY_TABLE, _REQUIRED_SPACE = 0x10, 0xFA0  # the same in both
_COMMENT_SIZE = 128
_STATUS_BREAKPOINT = 0x80000003


@dataclass(frozen=True, slots=True)
class HeaderForm:
    """Where a header of `size` bytes, for systems of `machine`, has its fields; `pointer` is struct's letter.

    `run` is a run of PHYSICAL_MEMORY_DESCRIPTOR: its first page, and how many; `counts` is what stands before them.
    """

    magic: bytes
    size: int
    machine: int
    pointer: str
    context_form: ContextForm
    bugcheck: str
    bugcheck_at: int
    debugger_block_at: int
    run_count_at: int
    counts: struct.Struct
    context_at: int
    exception: str
    exception_at: int
    comment_at: int
    type_at: int
    product_at: int
    up_time_at: int
    system_time_at: int
    pae_at: int | None = None

    @property
    def machine_at(self) -> int:
        """Where the machine's number is: behind four pointers."""
        return _DIRECTORY_TABLE + 4 * struct.calcsize(f"<{self.pointer}")

    @property
    def run(self) -> struct.Struct:
        """A run of pages: the first, and how many."""
        return struct.Struct(f"<2{self.pointer}")

    @property
    def most_runs(self) -> int:
        """How many runs fit whole into PHYSICAL_MEMORY_DESCRIPTOR's 700 bytes."""
        return (700 - self.counts.size) // self.run.size

    def word(self, header: bytes, at: int) -> int:
        """32 bits of a header."""
        return int.from_bytes(header[at : at + 4], "little")

    def kind(self, header: bytes) -> int:
        """DumpType."""
        return self.word(header, self.type_at)

    def runs(self, header: bytes, most: int) -> Sequence[tuple[int, int]] | None:
        """The runs of pages (first, how many) that a header tells of; None for none and for more than `most`."""
        count = self.word(header, self.run_count_at)
        if not 0 < count <= most:
            return None
        start = self.run_count_at + self.counts.size
        return list(self.run.iter_unpack(header[start : start + count * self.run.size]))

    def registers(self, header: bytes) -> Mapping[str, int]:
        """The registers of the processor that wrote the dump, and a pointer into the kernel for finding it."""
        table, _, modules, processes = struct.unpack_from(f"<4{self.pointer}", header, _DIRECTORY_TABLE)
        (block,) = struct.unpack_from(f"<{self.pointer}", header, self.debugger_block_at)
        found = {"cr3": table, "nt_address": modules or processes or block}
        if self.pae_at is not None:
            found["pae"] = header[self.pae_at]
        return {**found, **self.context_form.unpack(header, self.context_at)}

    def with_memory(self, header: bytes, kind: int, runs: Sequence[tuple[int, int]], pages: int, size: int) -> bytes:
        """`header` for a dump of type `kind` and `size` bytes; `runs` are at most `most_runs`."""
        data = bytearray(header)
        data[self.run_count_at : self.context_at] = bytes(self.context_at - self.run_count_at)
        self.counts.pack_into(data, self.run_count_at, len(runs), pages)
        for number, run in enumerate(runs):
            self.run.pack_into(data, self.run_count_at + self.counts.size + self.run.size * number, *run)
        struct.pack_into("<I", data, self.type_at, kind)
        struct.pack_into("<Q", data, _REQUIRED_SPACE, size)
        return bytes(data)


FORM64 = HeaderForm(
    magic=b"PAGEDU64", size=0x2000, machine=0x8664, pointer="Q", context_form=CONTEXT64,
    bugcheck="<I4x4Q", bugcheck_at=0x38, debugger_block_at=0x80, run_count_at=0x88, counts=struct.Struct("<I4xQ"),
    context_at=0x348, exception="<IIQQI", exception_at=0xF00, comment_at=0xFB0, type_at=0xF98, product_at=0x1040,
    up_time_at=0x1030, system_time_at=0xFA8,
)  # fmt: skip
FORM32 = HeaderForm(
    magic=b"PAGEDUMP", size=0x1000, machine=0x14C, pointer="I", context_form=CONTEXT32,
    bugcheck="<5I", bugcheck_at=0x28, debugger_block_at=0x60, run_count_at=0x64, counts=struct.Struct("<II"),
    context_at=0x320, exception="<IIIII", exception_at=0x7D0, comment_at=0x820, type_at=0xF88, product_at=0xF94,
    up_time_at=0xFB8, system_time_at=0xFC0, pae_at=0x5C,
)  # fmt: skip
FORMS: Mapping[bytes, HeaderForm] = {form.magic: form for form in (FORM64, FORM32)}


@dataclass(frozen=True, slots=True)
class CrashHeader:
    """What the header tells of the system; addresses are the kernel's virtual ones, times in units of 100 ns.

    `major_version` is 15 for a free build, `minor_version` the build number. `pfn_database` is the value of
    nt!MmPfnDatabase (KeInitializeCrashDumpHeader's). `pae` is told of 32-bit systems only.
    """

    directory_table: int
    form: HeaderForm = FORM64
    pae: bool = False
    pfn_database: int = 0
    loaded_modules: int = 0
    active_processes: int = 0
    debugger_block: int = 0
    processors: int = 1
    major_version: int = 15
    minor_version: int = 0
    bugcheck: Sequence[int] = (LIVE_SYSTEM_DUMP, 0, 0, 0, 0)
    system_time: int = 0
    up_time: int = 0
    product_type: int = 0
    suite_mask: int = 0
    comment: str = "written by coldframe"
    registers: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The header, as yet without memory runs (see `HeaderForm.with_memory`)."""
        form, data = self.form, bytearray(self.form.size)
        struct.pack_into("<8sII", data, 0, form.magic, self.major_version, self.minor_version)
        lists = (self.directory_table, self.pfn_database, self.loaded_modules, self.active_processes)
        struct.pack_into(f"<4{form.pointer}II", data, _DIRECTORY_TABLE, *lists, form.machine, self.processors)
        struct.pack_into(form.bugcheck, data, form.bugcheck_at, *self.bugcheck)
        if form.pae_at is not None:
            data[form.pae_at] = self.pae
        struct.pack_into(f"<{form.pointer}", data, form.debugger_block_at, self.debugger_block)
        struct.pack_into("<Q", data, form.system_time_at, self.system_time)
        comment = self.comment.encode("ascii", "replace")[: _COMMENT_SIZE - 1]
        data[form.comment_at : form.comment_at + _COMMENT_SIZE] = comment.ljust(_COMMENT_SIZE, b"\0")
        struct.pack_into("<Q", data, form.up_time_at, self.up_time)
        struct.pack_into("<II", data, form.product_at, self.product_type, self.suite_mask)
        if self.registers.get("rip"):
            context = form.context_form
            data[form.context_at : form.context_at + context.size] = context.pack(self.registers)
            address = self.registers["rip"] & (1 << 8 * struct.calcsize(f"<{form.pointer}")) - 1
            struct.pack_into(form.exception, data, form.exception_at, _STATUS_BREAKPOINT, 0, 0, address, 0)
        return bytes(data)
