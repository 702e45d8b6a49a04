"""A Windows guest in an image: kernel, processes, threads, modules, VADs, sections, objects, handles, processors.

Built on `ImageBuilder` by the same rule: it encodes by the names in the kernel's types, and shares nothing with the
code that decodes. What it built it remembers in plain fields, for tests to compare with.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from builder.image import PAGE, VALID, WRITE, ImageBuilder, Value
from builder.pe import pe_headers
from coldframe.symbols.model import Array, BitField, Pointer, Reference, SymbolFile, Types

KERNEL_BASE = 0xFFFFF803_12600000
KERNEL_SIZE = 0x0100_0000
POOL_BELOW_8_1 = 0xFFFFFA80_00000000
KUSER_SHARED_DATA = 0xFFFFF780_00000000
TYPE_NAMES = {3: "Directory", 4: "SymbolicLink", 7: "Process", 8: "Thread", 25: "Device", 30: "Key"}
TYPE_NAMES |= {37: "File", 42: "Section"}
POOL_TAGS = {"Process": b"Proc", "Thread": b"Thre", "File": b"File", "Section": b"Sect"}
CREATED = 0x01D6_1B6F_0000_0000
GATE_SEGMENT = 0x10


@dataclass
class BuiltVad:
    """A VAD as it was built; `pages` is the kernel-virtual address of each page's prototype PTE."""

    start: int
    end: int
    private: bool
    protection: int
    kind: int
    file: str | None
    address: int
    pages: list[int] = field(default_factory=list)
    subsections: list[int] = field(default_factory=list)


@dataclass
class BuiltThread:
    """A thread as it was built."""

    tid: int
    address: int
    start: int


@dataclass
class BuiltProcess:
    """A process as it was built."""

    name: str
    pid: int
    ppid: int
    address: int
    dtb: int
    user_dtb: int = 0
    threads: list[BuiltThread] = field(default_factory=list)
    vads: list[BuiltVad] = field(default_factory=list)
    modules: list[tuple[str, int, int]] = field(default_factory=list)
    peb: int = 0
    handles: dict[int, tuple[int, int]] = field(default_factory=dict)


def _holds_48_bits(types: Types) -> bool:
    """Whether a handle can hold any kernel address; in 8.0 only the uppermost 16 TB."""
    name, member = "_HANDLE_TABLE_ENTRY", "ObjectPointerBits"
    kind = types.field(name, member)[1] if types.has_field(name, member) else None
    return not isinstance(kind, BitField) or kind.length >= 44


class WindowsBuilder(ImageBuilder):
    """An image with an NT kernel at `base`, of the kind that `symbol_file` describes."""

    def __init__(
        self,
        symbol_file: SymbolFile,
        *,
        base: int = KERNEL_BASE,
        size: int | None = None,
        pdb: str | None = None,
        kva_shadow: bool = False,
        **options,
    ) -> None:
        if not _holds_48_bits(symbol_file.types):
            options.setdefault("pool", POOL_BELOW_8_1)
        super().__init__(symbol_file.types, **options)
        self.symbol_file = symbol_file
        self.base = base
        self.kva_shadow = kva_shadow
        far = 1 << 31
        nearest = symbol_file.symbols.nearest(far)  # the last symbol
        last = far - nearest[1] if nearest else 0
        self.size = size or max(KERNEL_SIZE, -(-(last + PAGE) // PAGE) * PAGE)
        identity = symbol_file.identity
        self.map(
            self.kernel_dtb,
            base,
            pe_headers(self.size, pdb=pdb or identity.name, guid=identity.guid, age=identity.age),
        )
        self._mapped = {base}
        self.processes: list[BuiltProcess] = []
        self.drivers: list[tuple[str, int, int]] = []
        self._types: dict[str, int] = {}
        self.idt = 0
        self.kpcrs: list[int] = []
        self._shared_user_data()
        for head in ("PsActiveProcessHead", "PsLoadedModuleList"):
            self._empty_list(self.variable(head))
        if self.invalid_pte_mask:
            self._set_mask()
        self.set_variable("NtBuildNumber", struct.pack("<I", 0xF000_0000 | 19041), optional=True)
        self.system = self.add_process("System", 4, 0)
        self.set_variable("PsInitialSystemProcess", self.system.address)

    # The kernel's image

    def code(self, name: str) -> int:
        """The address of the kernel's function or variable `name`, its page mapped."""
        va = self.base + self.symbol_file.symbols[name]
        for page in (va & ~0xFFF, (va + 0x1000) & ~0xFFF):  # what begins at the end of a page has its rest on the next
            if page not in self._mapped:
                self._mapped.add(page)
                self.map(self.kernel_dtb, page)
        return va

    variable = code

    def _map_span(self, va: int, size: int) -> None:
        for page in range(va & ~0xFFF, va + size, PAGE):
            if page not in self._mapped:
                self._mapped.add(page)
                self.map(self.kernel_dtb, page)

    def set_variable(self, name: str, value: int | bytes, *, optional: bool = False) -> None:
        """Give a kernel variable its value: a pointer, or bytes."""
        if optional and name not in self.symbol_file.symbols:
            return
        data = value if isinstance(value, bytes) else value.to_bytes(8, "little")
        self.write(self.variable(name), data)

    def _set_mask(self) -> None:
        symbols, types = self.symbol_file.symbols, self.types
        if "MiState" in symbols and types.has_field("_MI_SYSTEM_INFORMATION", "Hardware.InvalidPteMask"):
            state = self.base + symbols["MiState"]
            self._map_span(state, types.size("_MI_SYSTEM_INFORMATION"))
            self.write_struct("_MI_SYSTEM_INFORMATION", state, {"Hardware.InvalidPteMask": self.invalid_pte_mask})
        elif "MiInvalidPteMask" in symbols:
            self.set_variable("MiInvalidPteMask", self.invalid_pte_mask)
        else:
            self.set_physical_bits(self.invalid_pte_mask.bit_length())

    def set_physical_bits(self, bits: int) -> None:
        """nt!KiImplementedPhysicalBits: one byte, with other variables' bytes behind it."""
        self.set_variable("KiImplementedPhysicalBits", bytes([bits]) + b"\xcc" * 7)

    def _shared_user_data(self) -> None:
        page = bytearray(PAGE)
        page[0x30 : 0x30 + 20] = "C:\\WINDOWS".encode("utf-16-le")
        self.map(self.kernel_dtb, KUSER_SHARED_DATA, bytes(page))

    # Lists and strings

    def _empty_list(self, head: int) -> None:
        self.write_struct("_LIST_ENTRY", head, {"Flink": head, "Blink": head})

    def _append(self, head: int, link: int, dtb: int | None = None) -> None:
        last = self.read_field("_LIST_ENTRY", head, "Blink", dtb)
        self.write_struct("_LIST_ENTRY", link, {"Flink": head, "Blink": last}, dtb)
        self.write_struct("_LIST_ENTRY", last, {"Flink": link}, dtb)
        self.write_struct("_LIST_ENTRY", head, {"Blink": link}, dtb)

    def _has_path(self, name: str, *paths: str) -> str | None:
        return next((path for path in paths if self.types.has_field(name, path)), None)

    # Processes and threads

    def add_process(self, name: str, pid: int, ppid: int, **more: Value) -> BuiltProcess:
        """A process on PsActiveProcessHead, with an address space and an empty VAD tree."""
        dtb = self.kernel_dtb if pid == 4 else self.new_dtb()
        address = self.allocate_object("Process", "_EPROCESS")
        process = BuiltProcess(name, pid, ppid, address, dtb)
        root = dtb | (2 if self.kva_shadow else 0)
        _, kind = self.types.field("_EPROCESS", "Pcb.DirectoryTableBase")
        fields: dict[str, Value] = {
            "Pcb.DirectoryTableBase": (root, self.allocate_page()) if isinstance(kind, Array) else root,  # NT 5: two
            "UniqueProcessId": pid,
            "InheritedFromUniqueProcessId": ppid,
            "ImageFileName": name.encode()[:14],
            **more,
        }
        if self.kva_shadow and pid != 4:
            process.user_dtb = self._shadow_root()
            fields["Pcb.UserDirectoryTableBase"] = process.user_dtb | 1
        self.write_struct("_EPROCESS", address, fields)
        self.write(address + self.types.offset("_EPROCESS", "CreateTime"), (CREATED + pid).to_bytes(8, "little"))
        self._empty_list(address + self.types.offset("_EPROCESS", "ThreadListHead"))
        self._append(
            self.variable("PsActiveProcessHead"), address + self.types.offset("_EPROCESS", "ActiveProcessLinks")
        )
        self.processes.append(process)
        return process

    def add_thread(self, process: BuiltProcess, tid: int, **more: Value) -> BuiltThread:
        """A thread of `process`."""
        address = self.allocate_object("Thread", "_ETHREAD")
        start = 0x7FF7_0000_1000 + tid
        self.write_struct(
            "_ETHREAD",
            address,
            {
                "Cid.UniqueThread": tid,
                "Cid.UniqueProcess": process.pid,
                "Win32StartAddress": start,
                "Tcb.Process": process.address,
                "Tcb.ApcState.Process": process.address,
                "Tcb.State": 5,
                **more,
            },
        )
        self._append(
            process.address + self.types.offset("_EPROCESS", "ThreadListHead"),
            address + self.types.offset("_ETHREAD", "ThreadListEntry"),
        )
        thread = BuiltThread(tid, address, start)
        process.threads.append(thread)
        return thread

    # Modules

    def add_driver(self, name: str, base: int, size: int, pdb: str | None = None, guid: str = "0" * 32) -> int:
        """A kernel module on PsLoadedModuleList with its headers mapped (the kernel's are already)."""
        if base != self.base:
            self.map(self.kernel_dtb, base, pe_headers(size, pdb=pdb, guid=guid))
        kind = "_KLDR_DATA_TABLE_ENTRY" if "_KLDR_DATA_TABLE_ENTRY" in self.types else "_LDR_DATA_TABLE_ENTRY"
        entry = self.allocate_struct(kind, {"DllBase": base, "SizeOfImage": size})
        path = f"\\SystemRoot\\system32\\{name}"
        self.write_unicode_string(entry + self.types.offset(kind, "FullDllName"), path)
        self.write_unicode_string(entry + self.types.offset(kind, "BaseDllName"), name)
        self._append(self.variable("PsLoadedModuleList"), entry + self.types.offset(kind, "InLoadOrderLinks"))
        self.drivers.append((name, base, size))
        return entry

    def add_user_memory(self, process: BuiltProcess, va: int, size: int) -> int:
        """Valid zeroed pages in a process; returns `va`."""
        for page in range(va, va + size, PAGE):
            self.map(process.dtb, page)
        return va

    def add_peb(self, process: BuiltProcess, va: int = 0x7FFE_0001_0000) -> None:
        """A PEB with an empty loader list, in four pages at `va`."""
        self.add_user_memory(process, va, 4 * PAGE)
        process.peb = va
        loader = va + 2 * PAGE
        self.write_struct("_PEB", va, {"Ldr": loader}, process.dtb)
        head = loader + self.types.offset("_PEB_LDR_DATA", "InLoadOrderModuleList")
        self.write_struct("_LIST_ENTRY", head, {"Flink": head, "Blink": head}, process.dtb)
        self.write_struct("_EPROCESS", process.address, {"Peb": va})
        self._user_next = va + 3 * PAGE

    def add_module(self, process: BuiltProcess, name: str, base: int, size: int, *, pdb: str | None = None) -> None:
        """A user module on the PEB's loader list."""
        kind, dtb = "_LDR_DATA_TABLE_ENTRY", process.dtb
        if not process.peb:
            self.add_peb(process)
        self.map(dtb, base, pe_headers(size, pdb=pdb))
        entry = self._user_next
        text = entry + self.types.size(kind)
        path = f"C:\\Windows\\System32\\{name}".encode("utf-16-le")
        self._user_next = -(-(text + len(path)) // 16) * 16
        self.write(text, path, dtb)
        base_name = 2 * len(name)
        fields = {
            "DllBase": base,
            "SizeOfImage": size,
            "FullDllName.Length": len(path),
            "FullDllName.Buffer": text,
            "BaseDllName.Length": base_name,
            "BaseDllName.Buffer": text + len(path) - base_name,
        }
        self.write_struct(kind, entry, fields, dtb)
        loader = self.read_field("_PEB", process.peb, "Ldr", dtb)
        head = loader + self.types.offset("_PEB_LDR_DATA", "InLoadOrderModuleList")
        self._append(head, entry + self.types.offset(kind, "InLoadOrderLinks"), dtb)
        process.modules.append((name, base, size))

    def add_wow64(self, process: BuiltProcess, modules: list[tuple[str, int, int]], va: int = 0x7F00_0000) -> None:
        """A 32-bit PEB and loader list, at the offsets that debuggers show for 32-bit Windows."""
        dtb = process.dtb
        self.add_user_memory(process, va, 3 * PAGE)
        self.write_struct("_PEB32", va, {"Ldr": va + PAGE}, dtb)
        head = va + PAGE + 0x0C
        links = [head, *(va + PAGE + 0x100 * (index + 1) for index in range(len(modules)))]
        for index, link in enumerate(links):
            self.write(link, struct.pack("<II", links[(index + 1) % len(links)], links[index - 1]), dtb)
        for entry, (name, base, size) in zip(links[1:], modules, strict=True):
            path = f"C:\\Windows\\SysWOW64\\{name}".encode("utf-16-le")
            text = entry + PAGE
            self.write(text, path, dtb)
            own = 2 * len(name)
            strings = (len(path), len(path), text, own, own, text + len(path) - own)
            self.write(entry + 0x18, struct.pack("<IIIHHIHHI", base, base + 0x1000, size, *strings), dtb)
            self.write(entry + 0x44, struct.pack("<I", 0x5F000000), dtb)
            process.modules.append((name, base, size))
        holder = va
        for kind, member in (("_EWOW64PROCESS", "Peb"), ("_WOW64_PROCESS", "Wow64")):
            if self.types.has_field(kind, member):
                holder = self.allocate_struct(kind, {member: va})
        path = self._has_path("_EPROCESS", "WoW64Process", "Wow64Process")
        assert path is not None
        self.write_struct("_EPROCESS", process.address, {path: holder})

    # Objects and handles

    def allocate_object(self, kind: str, body: str, fields: Mapping[str, Value] | None = None, name: str = "") -> int:
        """An object: optional name header, object header, body; returns the body's address."""
        offset = self.types.offset("_OBJECT_HEADER", "Body")
        info = self.types.size("_OBJECT_HEADER_NAME_INFO")
        pool = self._pool_header[0]
        address = self.allocate_struct(body, fields, header=pool + info + offset)
        header = address - offset
        self.write(header - info - pool + self._pool_header[1], POOL_TAGS.get(kind, b"Obje"))
        number = next(number for number, known in TYPE_NAMES.items() if known == kind)
        self._object_type(number, kind)
        if self.types.has_field("_OBJECT_HEADER", "TypeIndex"):
            index = number
            if "ObHeaderCookie" in self.symbol_file.symbols:
                self.set_variable("ObHeaderCookie", b"\x5a")
                index ^= 0x5A ^ (header >> 8 & 0xFF)
            mask = 0x48 | (2 if name else 0)  # other optional headers lie further away and must not confuse
            self.write_struct("_OBJECT_HEADER", header, {"TypeIndex": index, "InfoMask": mask})
            self.set_variable("ObpInfoMaskToOffset", bytes([0, 0x20, info, info + 0x20]), optional=True)
        else:  # up to Vista
            told = {"Type": self._types[kind], "NameInfoOffset": info if name else 0}
            self.write_struct("_OBJECT_HEADER", header, told)
        if name:
            self.write_unicode_string(header - info + self.types.offset("_OBJECT_HEADER_NAME_INFO", "Name"), name)
        return address

    def _object_type(self, number: int, name: str) -> None:
        if name in self._types:
            return
        self._types[name] = address = self.allocate_struct("_OBJECT_TYPE")
        self.write_unicode_string(address + self.types.offset("_OBJECT_TYPE", "Name"), name)
        if "ObTypeIndexTable" in self.symbol_file.symbols:
            table = self.variable("ObTypeIndexTable")
            self._map_span(table, 8 * 256)
            self.write(table + 8 * number, address.to_bytes(8, "little"))

    def add_file(self, name: str) -> int:
        """A `_FILE_OBJECT`; returns its address."""
        address = self.allocate_object("File", "_FILE_OBJECT", {"Type": 5})
        self.write_unicode_string(address + self.types.offset("_FILE_OBJECT", "FileName"), name)
        return address

    def set_handles(self, process: BuiltProcess, handles: Mapping[int, tuple[int, int]], level: int = 0) -> None:
        """The process's handle table: value -> (object's body, granted access), `level` levels deep."""
        size = self.types.size("_HANDLE_TABLE_ENTRY")
        per_page = PAGE // size
        pages: dict[int, int] = {}
        for value, (body, access) in handles.items():
            index = value // 4
            page = pages.setdefault(index // per_page, 0) or self.allocate_pool(PAGE, align=PAGE)
            pages[index // per_page] = page
            self._write_handle(page + index % per_page * size, body, access)
        code = self._handle_levels(pages, level)
        table = self.allocate_struct(
            "_HANDLE_TABLE", {"TableCode": code | level, "NextHandleNeedingPool": 4 * per_page * (max(pages) + 1)}
        )
        self.write_struct("_EPROCESS", process.address, {"ObjectTable": table})
        process.handles = dict(handles)

    def link_handle_table(self, process: BuiltProcess) -> None:
        """Put the process's handle table on nt!HandleTableListHead; it gets an empty one where it has none."""
        if not process.handles:
            self.set_handles(process, {4: (process.address, 0)})
        head = self.variable("HandleTableListHead")
        if not self.read_field("_LIST_ENTRY", head, "Flink"):
            self._empty_list(head)
        table = self.read_field("_EPROCESS", process.address, "ObjectTable")
        self.write_struct("_HANDLE_TABLE", table, {"QuotaProcess": process.address})
        self._append(head, table + self.types.offset("_HANDLE_TABLE", "HandleTableList"))

    def set_cid_table(self, level: int = 0) -> int:
        """nt!PspCidTable with the identifiers of the processes and threads so far; returns the table's address.

        Its entries point at bodies, not at headers.
        """
        body = self.types.offset("_OBJECT_HEADER", "Body")
        cids = {process.pid: process.address for process in self.processes}
        cids |= {thread.tid: thread.address for process in self.processes for thread in process.threads}
        kept = dict(self.system.handles), self.read_field("_EPROCESS", self.system.address, "ObjectTable")
        self.set_handles(self.system, {cid: (address + body, 0) for cid, address in cids.items()}, level)
        table = self.read_field("_EPROCESS", self.system.address, "ObjectTable")
        self.system.handles = kept[0]
        self.write_struct("_EPROCESS", self.system.address, {"ObjectTable": kept[1]})
        self.set_variable("PspCidTable", table)
        return table

    def unlink(self, process: BuiltProcess) -> None:
        """Take a process off PsActiveProcessHead, as a rootkit does: its neighbours meet, its own links stay."""
        links = process.address + self.types.offset("_EPROCESS", "ActiveProcessLinks")
        after, before = (self.read_field("_LIST_ENTRY", links, name) for name in ("Flink", "Blink"))
        self.write_struct("_LIST_ENTRY", before, {"Flink": after})
        self.write_struct("_LIST_ENTRY", after, {"Blink": before})

    # The object manager's namespace

    def add_directory(self, name: str, parent: int = 0) -> int:
        """An object directory in `parent`; without one, the root. Returns its address."""
        address = self.allocate_object("Directory", "_OBJECT_DIRECTORY", name=name)
        if parent:
            self.enter(parent, address)
        else:
            self.set_variable("ObpRootDirectoryObject", address)
        return address

    def add_symbolic_link(self, name: str, target: str, parent: int) -> int:
        """A symbolic link in a directory; returns its address."""
        address = self.allocate_object("SymbolicLink", "_OBJECT_SYMBOLIC_LINK", name=name)
        self.write_unicode_string(address + self.types.offset("_OBJECT_SYMBOLIC_LINK", "LinkTarget"), target)
        self.enter(parent, address)
        return address

    def enter(self, directory: int, body: int, bucket: int = 5) -> int:
        """Put an object first in a bucket of a directory; returns the entry's address."""
        path = f"HashBuckets[{bucket}]"
        first = self.read_field("_OBJECT_DIRECTORY", directory, path)
        self._set_directory(body, directory)
        entry = self.allocate_struct("_OBJECT_DIRECTORY_ENTRY", {"ChainLink": first, "Object": body})
        self.write_struct("_OBJECT_DIRECTORY", directory, {path: entry})
        return entry

    def _set_directory(self, body: int, directory: int) -> None:
        """Let the object's name header lead to the directory that it is in."""
        header = body - self.types.offset("_OBJECT_HEADER", "Body")
        if self.types.has_field("_OBJECT_HEADER", "InfoMask"):
            named = self.read_field("_OBJECT_HEADER", header, "InfoMask") & 2
        else:
            named = self.read_field("_OBJECT_HEADER", header, "NameInfoOffset")
        if named:
            info = header - self.types.size("_OBJECT_HEADER_NAME_INFO")
            self.write_struct("_OBJECT_HEADER_NAME_INFO", info, {"Directory": directory})

    def _handle_levels(self, pages: Mapping[int, int], level: int) -> int:
        for _ in range(level):
            upper: dict[int, int] = {}
            for number, page in pages.items():
                table = upper.setdefault(number // 512, 0) or self.allocate_pool(PAGE, align=PAGE)
                upper[number // 512] = table
                self.write(table + 8 * (number % 512), page.to_bytes(8, "little"))
            pages = upper
        return pages[0]

    def _write_handle(self, entry: int, body: int, access: int) -> None:
        header = body - self.types.offset("_OBJECT_HEADER", "Body")
        kind = "_HANDLE_TABLE_ENTRY"
        if self.types.has_field(kind, "ObjectPointerBits"):
            _, bits = self.types.field(kind, "ObjectPointerBits")
            assert isinstance(bits, BitField)
            fields = {"ObjectPointerBits": header >> 4 & ((1 << bits.length) - 1), "Unlocked": 1, "RefCnt": 0x7FFF}
            fields["GrantedAccessBits"] = access
        else:
            fields = {"Object": header | 1, "GrantedAccess": access}
        self.write_struct(kind, entry, fields)

    # Sections and VADs

    def add_section(
        self, file: str | None, counts: tuple[int, ...], *, image: bool = False, contiguous: bool = True
    ) -> tuple[int, list[int], list[int]]:
        """A control area with a subsection of each count of pages.

        Returns its address, the subsections' addresses and the prototype PTEs' addresses in order. Without
        `contiguous` each subsection has its own array, in no order.
        """
        size = self.types.size("_SUBSECTION")
        area = self.allocate_pool(self.types.size("_CONTROL_AREA") + size)
        entry = self.types.size("_MMPTE")
        flags: dict[str, Value] = {"u.Flags.Image": int(image), "u.Flags.File": int(file is not None)}
        if file is not None:
            plain = isinstance(self.types.field("_CONTROL_AREA", "FilePointer")[1], Pointer)  # NT 5
            object_ = self.add_file(file)
            if plain:
                flags["FilePointer"] = object_
            else:
                _, count = self.types.field("_EX_FAST_REF", "RefCnt")
                assert isinstance(count, BitField)
                flags["FilePointer.Value"] = object_ | 0xB & ((1 << count.length) - 1)
        segment = self.allocate_struct("_SEGMENT", {"ControlArea": area, "SizeOfSegment": sum(counts) * PAGE})
        flags |= {"Segment": segment, "NumberOfMappedViews": 1}
        self.write_struct("_CONTROL_AREA", area, flags)
        arrays = [self.allocate_pool(entry * sum(counts))] if contiguous else []
        if contiguous:
            for count in counts[:-1]:
                arrays.append(arrays[-1] + entry * count)
        else:
            arrays = [self.allocate_pool(entry * count + 0x40) for count in reversed(counts)][::-1]
        places = [area + self.types.size("_CONTROL_AREA")]
        places += [self.allocate_pool(size) for _ in counts[1:]]
        sector = 0
        for place, array, count, following in zip(places, arrays, counts, [*places[1:], 0], strict=True):
            fields = {
                "ControlArea": area,
                "SubsectionBase": array,
                "NextSubsection": following,
                "PtesInSubsection": count,
                "StartingSector": sector,
                "NumberOfFullSectors": count * 8 if image else count,
            }
            self.write_struct("_SUBSECTION", place, fields)
            sector += count * 8 if image else count
        pages = [array + entry * index for array, count in zip(arrays, counts, strict=True) for index in range(count)]
        return area, places, pages

    def add_section_object(self, area: int, name: str = "", directory: int = 0) -> int:
        """A section object of a control area, in a directory where it has a name; returns its address."""
        if self.types.has_field("_SECTION", "u1"):
            body = self.allocate_object("Section", "_SECTION", {"u1.ControlArea": area}, name)
        else:
            segment = self.read_field("_CONTROL_AREA", area, "Segment")
            body = self.allocate_object("Section", "_SECTION_OBJECT", {"Segment": segment}, name)
        if directory:
            self.enter(directory, body)
        return body

    def add_key(self, names: list[str]) -> int:
        """A registry key's body; `names` from the root, the last one's in UTF-16. Returns its address."""
        block = 0
        for index, name in enumerate(names):
            wide = index == len(names) - 1
            data = name.encode("utf-16-le" if wide else "latin-1")
            size = self.types.size("_CM_NAME_CONTROL_BLOCK")
            text = self.allocate_pool(size + len(data))
            self.write_struct("_CM_NAME_CONTROL_BLOCK", text, {"Compressed": int(not wide), "NameLength": len(data)})
            self.write(text + self.types.offset("_CM_NAME_CONTROL_BLOCK", "Name"), data)
            block = self.allocate_struct("_CM_KEY_CONTROL_BLOCK", {"ParentKcb": block, "NameBlock": text})
        return self.allocate_object("Key", "_CM_KEY_BODY", {"KeyControlBlock": block})

    @property
    def _pool_header(self) -> tuple[int, int]:
        """A pool block's header: its size, and where its tag is."""
        if "_POOL_HEADER" in self.types:
            return self.types.size("_POOL_HEADER"), self.types.offset("_POOL_HEADER", "PoolTag")
        return 0x10, 4  # as every 64-bit kernel has it; a few type files leave it out

    def _tagged(self, name: str, tag: bytes, behind: int = 0) -> int:
        """A structure in a pool block with its tag, `behind` bytes after it."""
        header, at = self._pool_header
        address = self.allocate_pool(header + self.types.size(name) + behind) + header
        self.write(address - header + at, tag)
        return address

    def add_private_vad(self, process: BuiltProcess, start: int, pages: int, protection: int = 4) -> BuiltVad:
        """A private VAD: only the short structure, with other allocations' bytes behind it."""
        address = self._tagged("_MMVAD_SHORT", b"VadS", 0x80)
        self.write(address + self.types.size("_MMVAD_SHORT"), b"\xee" * 0x80)
        vad = BuiltVad(start, start + pages * PAGE, True, protection, 0, None, address)
        self._write_vad(vad, "_MMVAD_SHORT", "")
        process.vads.append(vad)
        return vad

    def add_view(
        self,
        process: BuiltProcess,
        start: int,
        *,
        file: str | None = None,
        counts: tuple[int, ...] = (4,),
        skip: int = 0,
        image: bool = False,
        contiguous: bool = True,
        protection: int = 1,
    ) -> BuiltVad:
        """A view of a new section, beginning `skip` pages into it."""
        area, subsections, pages = self.add_section(file, counts, image=image, contiguous=contiguous)
        pages = pages[skip:]
        first = 0
        while first + 1 < len(pages) and pages[first + 1] == pages[first] + self.types.size("_MMPTE"):
            first += 1
        address = self._tagged("_MMVAD", b"Vad ")
        vad = BuiltVad(
            start, start + len(pages) * PAGE, False, protection, 2 if image else 0, file, address, pages, subsections
        )
        held = next(place for place in reversed(subsections) if self._holds(place, pages[0]))
        fields: dict[str, Value] = {"FirstPrototypePte": pages[0], "LastContiguousPte": pages[first]}
        fields |= {"Subsection": held} if self.types.has_field("_MMVAD", "Subsection") else {"ControlArea": area}
        self.write_struct("_MMVAD", address, fields)
        self._write_vad(vad, "_MMVAD", self._has_path("_MMVAD", "Core") or "")
        process.vads.append(vad)
        return vad

    def _holds(self, subsection: int, pte: int) -> bool:
        base = self.read_field("_SUBSECTION", subsection, "SubsectionBase")
        return (
            base
            <= pte
            < base + self.read_field("_SUBSECTION", subsection, "PtesInSubsection") * self.types.size("_MMPTE")
        )

    def _write_vad(self, vad: BuiltVad, kind: str, core: str) -> None:
        prefix = f"{core}." if core else ""
        first, last = vad.start // PAGE, vad.end // PAGE - 1
        fields: dict[str, Value] = {}
        high = self._has_path(kind, f"{prefix}StartingVpnHigh") is not None
        for name, number in (("StartingVpn", first), ("EndingVpn", last)):
            fields[prefix + name] = number & 0xFFFFFFFF if high else number
            if high:
                fields[f"{prefix}{name}High"] = number >> 32
        fields[f"{prefix}u.VadFlags.PrivateMemory"] = int(vad.private)
        fields[f"{prefix}u.VadFlags.Protection"] = vad.protection
        fields[f"{prefix}u.VadFlags.VadType"] = vad.kind
        self.write_struct(kind, vad.address, fields)

    def finish(self) -> None:
        """Hang every process's VADs in a balanced tree."""
        for process in self.processes:
            root = self._tree(sorted(process.vads, key=lambda vad: vad.start))
            offset, kind = self.types.field("_EPROCESS", "VadRoot")
            if isinstance(kind, Pointer):
                self.write_struct("_EPROCESS", process.address, {"VadRoot": root})
                continue
            assert isinstance(kind, Reference)
            path = self._has_path(kind.name, "Root", "BalancedRoot.RightChild")
            assert path is not None
            self.write_struct(kind.name, process.address + offset, {path: root})

    def _tree(self, vads: list[BuiltVad]) -> int:
        if not vads:
            return 0
        middle = len(vads) // 2
        node = vads[middle].address
        name = "_MMVAD_SHORT"
        if self.types.has_field(name, "VadNode"):
            offset, kind = self.types.field(name, "VadNode")
            assert isinstance(kind, Reference)
            node, name = node + offset, kind.name
        left = self._has_path(name, "Left", "LeftChild")
        right = self._has_path(name, "Right", "RightChild")
        assert left is not None and right is not None
        self.write_struct(name, node, {left: self._tree(vads[:middle]), right: self._tree(vads[middle + 1 :])})
        return node

    # Paging files

    def set_paging_files(self, files: list[tuple[int, str, bool]]) -> None:
        """Paging files: number, name, whether it is the compressed store."""
        symbols = self.symbol_file.symbols
        if "MmPagingFile" in symbols:
            array = self.variable("MmPagingFile")
            self._map_span(array, 128)
        else:
            array = self.base + symbols["MiSystemPartition"]
            self._map_span(array, self.types.size("_MI_PARTITION"))
            path = self._has_path("_MI_PARTITION", "Vp.PagingFile", "PagingFile", "Modwriter.PagingFile")
            assert path is not None
            array += self.types.offset("_MI_PARTITION", path)
        for index, (number, name, store) in enumerate(files):
            fields: dict[str, Value] = {
                "PageFileNumber": number,
                "Size": 0x100,
                "FreeSpace": 0x40,
                "MaximumSize": 0x200,
            }
            if store and self.types.has_field("_MMPAGING_FILE", "VirtualStorePagefile"):
                fields["VirtualStorePagefile"] = 1
            address = self.allocate_struct("_MMPAGING_FILE", fields)
            if not store:
                self.write_unicode_string(address + self.types.offset("_MMPAGING_FILE", "PageFileName"), name)
            self.write(array + 8 * index, address.to_bytes(8, "little"))

    # Processors

    def add_processor(self, thread: BuiltThread) -> int:
        """A KPCR whose current thread is `thread`; returns its address."""
        number = len(self.kpcrs)
        kpcr = self.allocate_pool(self.types.size("_KPCR"), align=PAGE)
        self.write_struct("_KPCR", kpcr, {"Self": kpcr, "Prcb.CurrentThread": thread.address, "Prcb.Number": number})
        if self.kva_shadow and self.types.has_field("_KPCR", "Prcb.KernelDirectoryTableBase"):
            self.write_struct("_KPCR", kpcr, {"Prcb.KernelDirectoryTableBase": self.kernel_dtb | 2})
        block = kpcr + self.types.offset("_KPCR", "Prcb")
        self.write(self.variable("KiProcessorBlock") + 8 * number, block.to_bytes(8, "little"))
        self.kpcrs.append(kpcr)
        return kpcr

    def add_idt(self, handler: str = "KiPageFault") -> int:
        """An interrupt descriptor table whose page-fault gate leads to `handler`; returns its address."""
        self.idt = self.allocate_pool(PAGE, align=PAGE)
        address = self.code(handler)
        gate = struct.pack("<HHHHII", address & 0xFFFF, GATE_SEGMENT, 0x8E00, address >> 16 & 0xFFFF, address >> 32, 0)
        self.write(self.idt + 14 * 16, gate)
        return self.idt

    def registers(self, process: BuiltProcess | None = None, vcpu: int = 0, *, user: bool = False) -> dict[str, int]:
        """A vCPU's registers: in the kernel, or with `user` in a process's own code."""
        chosen = process or self.system
        dtb = chosen.user_dtb if user and chosen.user_dtb else chosen.dtb
        kpcr = self.kpcrs[vcpu] if self.kpcrs else 0
        return {
            "cr0": 0x80050033,
            "cr3": dtb | (2 if self.kva_shadow else 0),
            "cr4": 0x1506F8 if self.format == "5-level" else 0x506F8,
            "efer": 0xD01,
            "rip": 0x7FF7_0000_1000 if user else self.base + 0x1234,
            "gs_base": 0x7FFE_0000_2000 if user else kpcr,
            "k_gs_base": kpcr if user else 0x7FFE_0000_2000,
            "idt_base": self.idt,
        }

    def add_low_stub(self, target: str = "KiSystemStartup") -> int:
        """The processor start block in low memory."""
        name = target if target in self.symbol_file.symbols else "KiPageFault"
        page = bytearray(PAGE)
        struct.pack_into("<Q", page, 0, 0x00000001_000600E9 | 0x4D00)
        struct.pack_into("<Q", page, 0x70, self.code(name))
        struct.pack_into("<Q", page, 0xA0, self.kernel_dtb)
        return self.allocate_page(bytes(page), at=0x1000 * self._random.randrange(1, 0x100))

    # KVA shadow

    def _shadow_root(self) -> int:
        return self.allocate_page()

    def map_shadow(self, process: BuiltProcess, va: int, physical: int) -> None:
        """Map a page in a process's user tables alone."""
        table = process.user_dtb
        for depth in range(len(self.shape.shifts) - 1):
            at = table + 8 * self._index(va, depth)
            if not self._get(at) & VALID:
                self._put(at, self.allocate_page() | VALID | WRITE)
            table = self._get(at) & ((1 << 52) - PAGE)
        self._put(table + 8 * self._index(va, len(self.shape.shifts) - 1), physical | VALID)
