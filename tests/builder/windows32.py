"""A 32-bit Windows guest in an image, with PAE or without, and one like ReactOS: the same lists as `WindowsBuilder`.

What differs from 64-bit kernels is told by the types; here stands only what they do not tell: where things are fixed
(the page tables at 0xC0000000, KUSER_SHARED_DATA at 0xFFDF0000, the first KPCR at 0xFFDFF000) and that a pointer, an
interrupt gate and an entry of a table of pointers are smaller.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from builder.image import PAGE, ImageBuilder, Value
from builder.pe32 import pe32_headers
from builder.windows import GATE_SEGMENT, BuiltProcess, BuiltThread, BuiltVad, WindowsBuilder
from coldframe.symbols.model import SymbolFile

KERNEL_BASE32 = 0x804D7000
KUSER_SHARED_DATA32 = 0xFFDF0000
KPCR32 = 0xFFDFF000
NON_PAGED_POOL_END = 0x9000_0000  # within the 128 MB that a subsection PTE reaches
OBJECT_TYPES = ("Directory", "SymbolicLink", "Process", "Thread", "Key", "File", "Section")


class Windows32Builder(WindowsBuilder):
    """An image with a 32-bit NT kernel of the kind that `symbol_file` describes.

    Its PTEs' size tells whether it is one with PAE. `codeview` False leaves out the record that names the PDB, as
    kernels do that are no Microsoft's; `exported` are the names in its export directory, `root` is the folder that it
    is installed in. `subsections_from_end` makes subsection PTEs count from the non-paged pool's end (NT 5, no PAE).
    """

    def __init__(
        self,
        symbol_file: SymbolFile,
        *,
        base: int = KERNEL_BASE32,
        codeview: bool = True,
        exported: tuple[str, ...] = ("NtBuildNumber", "PsInitialSystemProcess", "MmSystemRangeStart"),
        root: str = "C:\\WINDOWS",
        range_start: int = 0x80000000,
        subsections_from_end: bool = False,
        **options,
    ) -> None:
        pae = symbol_file.types.size("_MMPTE_HARDWARE") == 8
        ImageBuilder.__init__(self, symbol_file.types, "pae" if pae else "x86", **options)
        self.symbol_file = symbol_file
        self.base, self.kva_shadow = base, False
        self.subsections_from_end = subsections_from_end
        far = 1 << 31
        nearest = symbol_file.symbols.nearest(far)
        last = far - nearest[1] if nearest else 0
        self.size = max(0x0020_0000, -(-(last + PAGE) // PAGE) * PAGE)
        identity = symbol_file.identity
        self.headers = {
            "pdb": identity.name if codeview else None,
            "guid": identity.guid,
            "age": identity.age,
            "name": "ntoskrnl.exe",
            "exports": {name: symbol_file.symbols[name] for name in exported if name in symbol_file.symbols},
        }
        self.map(self.kernel_dtb, base, pe32_headers(self.size, **self.headers))
        self._mapped = {base}
        self.processes: list[BuiltProcess] = []
        self.drivers: list[tuple[str, int, int]] = []
        self._types: dict[str, int] = {}
        self.idt = 0
        self.kpcrs: list[int] = []
        page = bytearray(PAGE)
        page[0x30 : 0x30 + 2 * len(root)] = root.encode("utf-16-le")
        struct.pack_into("<II", page, 0x26C, 5, 2)
        self.shared_data = self.map(self.kernel_dtb, KUSER_SHARED_DATA32, bytes(page))
        for head in ("PsActiveProcessHead", "PsLoadedModuleList"):
            self._empty_list(self.variable(head))
        if self.invalid_pte_mask:
            self._set_mask()
        self.set_variable("NtBuildNumber", struct.pack("<I", 0xF000_0000 | 3790))
        for name, value in (
            ("MmSystemRangeStart", range_start),
            ("MmHighestUserAddress", range_start - 0x10001),
            ("MmPagedPoolStart", self.shape.pool),
            ("MmSubsectionBase", self.shape.pool),
            ("MmNonPagedPoolEnd", NON_PAGED_POOL_END),
        ):
            self.set_variable(name, value, optional=True)
        self.system = self.add_process("System", 4, 0)
        self.set_variable("PsInitialSystemProcess", self.system.address)

    def set_variable(self, name: str, value: int | bytes, *, optional: bool = False) -> None:
        super().set_variable(name, struct.pack("<I", value) if isinstance(value, int) else value, optional=optional)

    # PTEs

    def _address(self, structure: str, name: str, pointer: int) -> int:
        if self.types.has_field(structure, name):
            return super()._address(structure, name, pointer)
        if self.types.has_field(structure, "WhichPool"):
            if name == "SubsectionAddress" and self.subsections_from_end:
                offset = NON_PAGED_POOL_END - pointer
                halves = {"SubsectionAddressHigh": offset >> 7, "SubsectionAddressLow": offset >> 3 & 0xF}
                return self.encode(structure, Prototype=1, **halves)
            return super()._address(structure, name, pointer)
        if name == "ProtoAddress":  # Vista and 7: 29 bits above 2 GB
            word = (pointer & 0x7FFFFFFF) >> 2
            return self.encode(structure, Prototype=1, ProtoAddressLow=word & 0xFF, ProtoAddressHigh=word >> 8)
        word = pointer >> 2
        halves = {"SubsectionAddressLow": word & 0x1FF, "SubsectionAddressHigh": word >> 9}
        return self.encode(structure, Prototype=1, **halves)

    def subsection(self, pointer: int, protection: int = 1) -> int:
        if self.types.has_field("_MMPTE_SUBSECTION", "Protection"):
            return super().subsection(pointer, protection)
        return self.stored(self._address("_MMPTE_SUBSECTION", "SubsectionAddress", pointer))

    # Processes, threads, modules

    def add_thread(self, process: BuiltProcess, tid: int, **more: Value) -> BuiltThread:
        address = self.allocate_object("Thread", "_ETHREAD")
        start = 0x0040_1000 + tid
        owner = "Tcb.Process" if self.types.has_field("_ETHREAD", "Tcb.Process") else "ThreadsProcess"
        fields: dict[str, Value] = {
            "Cid.UniqueThread": tid,
            "Cid.UniqueProcess": process.pid,
            "Win32StartAddress": start,
            owner: process.address,
            "Tcb.ApcState.Process": process.address,
            "Tcb.State": 5,
            **more,
        }
        self.write_struct("_ETHREAD", address, fields)
        self._append(
            process.address + self.types.offset("_EPROCESS", "ThreadListHead"),
            address + self.types.offset("_ETHREAD", "ThreadListEntry"),
        )
        thread = BuiltThread(tid, address, start)
        process.threads.append(thread)
        return thread

    def add_peb(self, process: BuiltProcess, va: int = 0x7FFD_4000) -> None:
        super().add_peb(process, va)

    def add_driver(self, name: str, base: int, size: int, pdb: str | None = None, guid: str = "0" * 32) -> int:
        entry = super().add_driver(name, base, size, pdb, guid)
        if base != self.base:
            self.write(base, pe32_headers(size, pdb=pdb, guid=guid))
        return entry

    # Objects and handles

    def allocate_object(self, kind: str, body: str, fields: Mapping[str, Value] | None = None, name: str = "") -> int:
        if not self.types.has_field("_OBJECT_HEADER", "NameInfoOffset"):
            return super().allocate_object(kind, body, fields, name)
        offset = self.types.offset("_OBJECT_HEADER", "Body")
        info = self.types.size("_OBJECT_HEADER_NAME_INFO")
        address = self.allocate_struct(body, fields, header=info + offset)
        header = address - offset
        members = {"Type": self._type_object(kind), "NameInfoOffset": info if name else 0}
        self.write_struct("_OBJECT_HEADER", header, members)
        if name:
            self.write_unicode_string(header - info + self.types.offset("_OBJECT_HEADER_NAME_INFO", "Name"), name)
        return address

    def _type_object(self, name: str) -> int:
        if name not in self._types:
            self._types[name] = address = self.allocate_struct("_OBJECT_TYPE")
            self.write_unicode_string(address + self.types.offset("_OBJECT_TYPE", "Name"), name)
        return self._types[name]

    def _object_type(self, number: int, name: str) -> None:
        table = self.variable("ObTypeIndexTable")
        self._map_span(table, 4 * 256)
        self.write(table + 4 * number, struct.pack("<I", self._type_object(name)))

    def _handle_levels(self, pages: Mapping[int, int], level: int) -> int:
        for _ in range(level):
            upper: dict[int, int] = {}
            for number, page in pages.items():
                table = upper.setdefault(number // 1024, 0) or self.allocate_pool(PAGE, align=PAGE)
                upper[number // 1024] = table
                self.write(table + 4 * (number % 1024), struct.pack("<I", page))
            pages = upper
        return pages[0]

    def _write_handle(self, entry: int, body: int, access: int) -> None:
        if not self.types.has_field("_HANDLE_TABLE_ENTRY", "ObjectPointerBits"):
            super()._write_handle(entry, body, access)
            return
        header = body - self.types.offset("_OBJECT_HEADER", "Body")
        fields = {"ObjectPointerBits": header >> 3, "Unlocked": 1, "GrantedAccessBits": access}
        self.write_struct("_HANDLE_TABLE_ENTRY", entry, fields)

    # Sections and VADs

    def add_section(self, file, counts, *, image=False, contiguous=True):
        if self.types.has_field("_CONTROL_AREA", "FilePointer.Value"):
            return super().add_section(file, counts, image=image, contiguous=contiguous)
        area, places, pages = super().add_section(None, counts, image=image, contiguous=contiguous)
        if file is not None:
            self.write_struct("_CONTROL_AREA", area, {"FilePointer": self.add_file(file), "u.Flags.File": 1})
        return area, places, pages

    def add_view(self, process, start, *, file=None, counts=(4,), skip=0, image=False, contiguous=True, protection=1):
        if self.types.has_field("_MMVAD", "Subsection"):
            return super().add_view(
                process, start, file=file, counts=counts, skip=skip, image=image, contiguous=contiguous,
                protection=protection,
            )  # fmt: skip
        area, subsections, pages = self.add_section(file, counts, image=image, contiguous=contiguous)
        pages = pages[skip:]
        first = 0
        while first + 1 < len(pages) and pages[first + 1] == pages[first] + self.types.size("_MMPTE"):
            first += 1
        address = self._tagged("_MMVAD", b"Vad ")
        end = start + len(pages) * PAGE
        vad = BuiltVad(start, end, False, protection, 2 if image else 0, file, address, pages, subsections)
        fields = {"ControlArea": area, "FirstPrototypePte": pages[0], "LastContiguousPte": pages[first]}
        self.write_struct("_MMVAD", address, fields)
        self._write_vad(vad, "_MMVAD", "")
        process.vads.append(vad)
        return vad

    def _write_vad(self, vad: BuiltVad, kind: str, core: str) -> None:
        prefix = f"{core}." if core else ""
        if self.types.has_field(kind, f"{prefix}u.VadFlags.VadType"):
            super()._write_vad(vad, kind, core)
            return
        fields = {"StartingVpn": vad.start // PAGE, "EndingVpn": vad.end // PAGE - 1}
        flags = {"PrivateMemory": int(vad.private), "Protection": vad.protection, "ImageMap": int(vad.kind == 2)}
        self.write_struct(kind, vad.address, fields | {f"u.VadFlags.{name}": value for name, value in flags.items()})

    # Paging files and processors

    def set_paging_files(self, files: list[tuple[int, str, bool]]) -> None:
        if "MmPagingFile" in self.symbol_file.symbols:
            array = self.variable("MmPagingFile")
        else:
            array = self.base + self.symbol_file.symbols["MiSystemPartition"]
            self._map_span(array, self.types.size("_MI_PARTITION"))
            path = self._has_path("_MI_PARTITION", "Vp.PagingFile", "PagingFile", "Modwriter.PagingFile")
            assert path is not None
            array += self.types.offset("_MI_PARTITION", path)
        for index, (number, name, store) in enumerate(files):
            fields: dict[str, Value] = {"PageFileNumber": number, "Size": 0x100, "FreeSpace": 0x40, "MaximumSize": 512}
            if store and self.types.has_field("_MMPAGING_FILE", "VirtualStorePagefile"):
                fields["VirtualStorePagefile"] = 1
            if not self.types.has_field("_MMPAGING_FILE", "PageFileNumber"):
                del fields["PageFileNumber"]
            address = self.allocate_struct("_MMPAGING_FILE", fields)
            self.write_unicode_string(address + self.types.offset("_MMPAGING_FILE", "PageFileName"), name)
            self.write(array + 4 * index, struct.pack("<I", address))

    def add_processor(self, thread: BuiltThread) -> int:
        """A KPCR whose current thread is `thread`: where NT 5 has the first one, if a page holds it."""
        number, size = len(self.kpcrs), self.types.size("_KPCR")
        kpcr = KPCR32 if number == 0 and size <= PAGE else self.allocate_pool(size, align=PAGE)
        if kpcr == KPCR32:
            self.map(self.kernel_dtb, kpcr)
        block = kpcr + self.types.offset("_KPCR", "PrcbData")
        version = self.variable("KdVersionBlock")
        self.write(version + 0x10, struct.pack("<qq", self.base - (1 << 32), 0))
        self.write_struct("_KPCR", kpcr, {"SelfPcr": kpcr, "Prcb": block, "KdVersionBlock": version})
        self.write_struct("_KPRCB", block, {"CurrentThread": thread.address, "Number": number})
        self.write(self.variable("KiProcessorBlock") + 4 * number, struct.pack("<I", block))
        self.kpcrs.append(kpcr)
        return kpcr

    def add_idt(self, handler: str = "KiTrap0E") -> int:
        self.idt = self.allocate_pool(PAGE, align=PAGE)
        address = self.code(handler)
        gate = struct.pack("<HHHH", address & 0xFFFF, GATE_SEGMENT, 0x8E00, address >> 16)
        self.write(self.idt + 14 * 8, gate)
        return self.idt

    def registers(self, process: BuiltProcess | None = None, vcpu: int = 0, *, user: bool = False) -> dict[str, int]:
        chosen = process or self.system
        return {
            "cr0": 0x8001003B,
            "cr3": chosen.dtb,
            "cr4": 0x6F8 if self.format == "pae" else 0x6D8,
            "efer": 0,
            "rip": 0x0040_1000 if user else self.base + 0x1234,
            "fs_base": 0x7FFD_F000 if user or not self.kpcrs else self.kpcrs[vcpu],
            "idt_base": self.idt,
        }
