"""The Windows of a triage (mini) kernel dump: what its blocks tell of the kernel, its drivers and the crashed thread.

The kernel is found by the dump's driver list: it is the image that holds PsLoadedModuleList. Its PDB is named by its
CodeView record where a block holds that, else a file that the user names is taken if it puts both of the kernel's
lists where the dump's header has them. Without symbols, what needs no types still works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, Self

from coldframe.errors import (
    CapabilityError,
    ColdframeError,
    FormatError,
    NoKernelError,
    SymbolFileNotFoundError,
    TypeNotFoundError,
    UnreadableMemoryError,
)
from coldframe.images.triage import TriageDriver, TriageDump
from coldframe.paging import FORMATS, PteLayout
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.windows.facts import Value
from coldframe.windows.guest import Guest
from coldframe.windows.handle import Handle, Objects
from coldframe.windows.kernel import KERNEL_IMAGES, FindsSymbols, KernelLocation
from coldframe.windows.kernelsymbols import named_files
from coldframe.windows.module import KERNEL_NAME, Module
from coldframe.windows.nosymbols import without_symbols
from coldframe.windows.pagingfile import PagingFiles
from coldframe.windows.pe import PeImage
from coldframe.windows.process import Process, Thread
from coldframe.windows.section import Sections
from coldframe.windows.sightings import Sighting
from coldframe.windows.triageresolver import TriageResolver, TriageSpace
from coldframe.windows.typed import TypedMemory
from coldframe.windows.vad import VadTree

_PTE_BASE_BEFORE_RANDOM, _PTE_BASE32 = 0xFFFFF680_00000000, 0xC0000000
_PROCESS_OBJECT, _THREAD_OBJECT = 3, 6  # KOBJECTS of wdm.h, in DISPATCHER_HEADER.Type


class TriageGuest(Guest):
    """The guest in a triage dump; made by `of_dump`. What the dump's blocks do not reach raises, and says so."""

    def __init__(  # it is no guest with physical memory, so that Guest's own cannot be called
        self, dump: TriageDump, store: FindsSymbols, location: KernelLocation, symbol_file: SymbolFile
    ) -> None:
        self.dump = dump
        self.store = store
        self.location = location
        self.symbol_file_of_kernel = symbol_file
        self.types, self.symbols = symbol_file.types, symbol_file.symbols
        self.warnings = list(dump.warnings)
        self._registers = (dump.registers,)
        self._kept = {}
        self._identities = {}
        self._symbol_files = {} if location.identity is None else {location.identity: symbol_file}
        self.dtb, self.invalid_pte_mask = location.dtb, 0
        self._current: tuple[Thread, Process] | None = None
        known = "_EPROCESS" in self.types
        self.layout = PteLayout.from_types(self.types) if known else None  # type: ignore[assignment]
        self._use(dump)
        if not known:
            return
        self._find_current()
        self.sections, self.objects, self._paging_files = Sections(self), Objects(self), PagingFiles(self)
        self.resolver.subsections = self.sections
        self.resolver.paging_files = self._paging_files
        self.resolver.virtual_store = self._paging_files.store_number

    @classmethod
    def of_dump(cls, dump: TriageDump, store: FindsSymbols) -> Self:
        """Find the kernel in the dump's driver list, and its symbols where they can be had.

        Raises `NoKernelError` where no driver of the list is the kernel.
        """
        driver = _kernel(dump)
        location = _location(dump, driver)
        try:
            return cls(dump, store, location, _symbols(dump, store, location))
        except SymbolFileNotFoundError as error:
            stamp = f"; {driver.name} has timestamp {driver.timestamp:08X}, size {driver.size:x}" * bool(
                driver.timestamp
            )
            reason = f"{error}{stamp}"
            guest = cls(dump, store, location, without_symbols(reason, dump.pointer_size))
            guest.warn(reason)
            return guest

    def close(self) -> None:
        """Forget what was read; the guest cannot be used afterwards."""
        self._kept.clear()

    def _use(self, dump: TriageDump) -> None:
        """Read from the blocks of `dump` from now on."""
        self.dump, self.physical = dump, dump.blocks
        page_format = FORMATS[self.location.format]
        self.resolver = TriageResolver(dump, page_format, self.layout, None)
        self.memory = TriageSpace(self.resolver, self.dtb)
        self.typed = TypedMemory(self.memory, self.types)
        self.kernel = Module(
            self, self.memory, KERNEL_NAME, self.location.base, self.location.size, path="", is_kernel=True,
            source=self.location.how,
        )  # fmt: skip
        self.resolver.pte_base = self._pte_base()
        self._kept.clear()

    def _pte_base(self) -> int | None:
        """Where the page tables are mapped: nt!MmPteBase, or fixed in kernels that have none (to Windows 10 1511)."""
        address = self.variable("MmPteBase")
        if address is None:
            if "_EPROCESS" not in self.types:
                return None
            return _PTE_BASE_BEFORE_RANDOM if self.dump.pointer_size == 8 else _PTE_BASE32
        try:
            return self.typed.pointer(address)
        except UnreadableMemoryError:
            return None

    # The crashed thread

    def _find_current(self) -> None:
        """Put the dump's copies of the current ETHREAD and EPROCESS where the copy of the KPRCB says they were."""
        copies, pointer = self.dump.copies, self.dump.pointer_size
        try:
            if not copies.keys() >= {"prcb", "thread", "process"}:
                raise FormatError("it has none of them")
            thread = self._in_copy("prcb", "_KPRCB", "CurrentThread", pointer)
            self._check_object("thread", "_ETHREAD", "Tcb.Header.Type", _THREAD_OBJECT)
            process = self._in_copy("thread", "_ETHREAD", "Tcb.ApcState.Process", pointer)
            self._check_object("process", "_EPROCESS", "Pcb.Header.Type", _PROCESS_OBJECT)
        except (FormatError, TypeNotFoundError) as error:
            self.warn(f"the dump's copies of the current thread and process are not used: {error}")
            return
        dump = self.dump.with_copy(thread, self.types.size("_ETHREAD"), copies["thread"])
        self._use(dump.with_copy(process, self.types.size("_EPROCESS"), copies["process"]))
        ethread = self.struct("_ETHREAD", thread)
        current = TriageProcess(self, self.struct("_EPROCESS", process))
        self._current = (Thread(self, ethread), current)

    def _in_copy(self, copy: str, kind: str, path: str, size: int) -> int:
        place = self.dump.copies[copy] + self.types.offset(kind, path)
        return int.from_bytes(self.dump.file.at(place, size, f"{kind}.{path}"), "little")

    def _check_object(self, copy: str, kind: str, path: str, expected: int) -> None:
        if self.types.has_field(kind, path):
            found = self._in_copy(copy, kind, path, 1) & 0x7F
            if found != expected:
                raise FormatError(f"{kind}.{path} is {found}, expected {expected}")

    @property
    def crashed(self) -> Thread | None:
        """The thread that ran when Windows crashed, where the dump has its ETHREAD."""
        return None if self._current is None else self._current[0]

    def current_thread(self, registers: Mapping[str, int], vcpu: int | None = None) -> Thread:
        """The thread that crashed; raises `CapabilityError` where the dump has no whole copy of it."""
        if self._current is None:
            raise CapabilityError("this dump has no ETHREAD of the crashed thread that could be read")
        return self._current[0]

    def _processes(self) -> Iterator[Process]:
        if self._current is None:
            why = self.warnings[-1] if self.warnings else "it has no EPROCESS"
            raise CapabilityError(f"a triage dump has at most the process that crashed: {why}")
        yield self._current[1]

    def sightings(self, *, scan: bool = False) -> Sequence[Sighting]:
        """Raises `CapabilityError`: a triage dump has neither tables nor RAM to look through."""
        raise CapabilityError("a triage dump has only the process that crashed: take a complete or kernel dump")

    # Drivers

    def _drivers(self) -> Iterator[Module]:
        """Those of the dump's own list, then what PsLoadedModuleList has beside them as far as blocks reach."""
        found = [self._module(driver) for driver in self.dump.drivers if driver.base and driver.size]
        yield from found
        bases = {module.base for module in found}
        walked = super()._drivers()
        while True:
            try:
                module = next(walked)
            except (StopIteration, ColdframeError):  # mostly no block holds the list
                return
            if module.base not in bases:
                bases.add(module.base)
                yield module

    def _module(self, driver: TriageDriver) -> Module:
        path = driver.name if "\\" in driver.name else ""
        name = driver.name.rpartition("\\")[2]
        is_kernel = driver.base == self.location.base
        source = "the dump's driver list"
        return Module(
            self, self.memory, name, driver.base, driver.size, path, driver.timestamp, source, is_kernel=is_kernel
        )

    # What it is

    def facts(self) -> Mapping[str, Value]:
        """What `info` tells of a triage dump."""
        location, identity, dump = self.location, self.location.identity, self.dump
        code, *parameters = dump.bugcheck
        current = self._current
        return {
            "kernel": {
                "base": f"{location.base:#x}",
                "size": f"{location.size:#x}",
                "pdb": None if identity is None else identity.name,
                "guid": None if identity is None else identity.guid,
                "age": None if identity is None else identity.age,
                "found_by": location.how,
                "symbols": self.symbol_file_of_kernel.path or None,
            },
            "dump": {"type": "triage (mini)", "size": len(dump.file.data), "bits": 8 * dump.pointer_size},
            "bugcheck": {"code": f"{code:#x}", "parameters": [f"{value:#x}" for value in parameters]},
            "build": int.from_bytes(dump.crash_header[12:16], "little"),
            "dtb": f"{self.dtb:#x}",
            "page_tables": location.format,
            "blocks": len(dump.blocks.runs),
            "bytes": dump.blocks.size,
            "stack": {"start": f"{dump.stack[0]:#x}", "size": f"{dump.stack[1]:#x}"},
            "rip": f"{dump.registers.get('rip', 0):#x}",
            "process": None if current is None else {"pid": current[1].pid, "name": current[1].name},
            "thread": None if current is None else current[0].tid,
            "drivers": len(self.drivers),
            "warnings": list(self.warnings),
        }


class TriageProcess(Process):
    """The process that crashed: what its EPROCESS tells, and nothing of its own memory."""

    @property
    def memory(self) -> TriageSpace:
        """The blocks of the dump; a user address is in one only by chance."""
        assert isinstance(self.guest.memory, TriageSpace)
        return self.guest.memory

    @property
    def threads(self) -> Sequence[Thread]:
        """The thread that crashed."""
        assert isinstance(self.guest, TriageGuest)
        thread = self.guest.crashed
        return () if thread is None else (thread,)

    @property
    def vads(self) -> VadTree:
        """Raises `CapabilityError`."""
        self._lacks("VADs")

    @property
    def handles(self) -> Iterator[Handle]:
        """Raises `CapabilityError`."""
        self._lacks("handles")

    @property
    def modules(self) -> Sequence[Module]:
        """Raises `CapabilityError`."""
        self._lacks("user modules")

    def module_at(self, address: int) -> Module | None:
        """The kernel module that `address` lies in; of user modules nothing is known."""
        return self.guest.module_at(address)

    def _lacks(self, what: str) -> NoReturn:
        raise CapabilityError(f"a triage dump has no {what} of {self.name}: take a complete or kernel dump")


def _kernel(dump: TriageDump) -> TriageDriver:
    """The driver that is the kernel: the one with the lists that the dump's header names, else by its file's name."""
    for address in (*dump.lists, dump.registers.get("nt_address", 0)):
        found = next((d for d in dump.drivers if address and d.base <= address < d.base + d.size), None)
        if found is not None:
            return found
    by_name = next((d for d in dump.drivers if d.name.rpartition("\\")[2].lower() in KERNEL_IMAGES), None)
    if by_name is None:
        listed = f"{len(dump.drivers)} drivers, none of which is the kernel" if dump.drivers else "no driver list"
        raise NoKernelError(f"{dump.file.path}: found no NT kernel: the triage dump has {listed}")
    return by_name


def _location(dump: TriageDump, driver: TriageDriver) -> KernelLocation:
    """Where the kernel is; its identity where a block holds its headers and CodeView record."""
    name = "4-level" if dump.pointer_size == 8 else "pae" if dump.registers.get("pae") else "x86"
    identity: PdbIdentity | None = None
    try:
        image = PeImage.read(dump.blocks, driver.base)
        identity = image.codeview()
    except (FormatError, UnreadableMemoryError):
        pass
    how = "the dump's driver list" + ("" if identity is None else " and its CodeView record")
    return KernelLocation(driver.base, driver.size, dump.registers["cr3"], name, identity, how)


def _symbols(dump: TriageDump, store: FindsSymbols, location: KernelLocation) -> SymbolFile:
    """The kernel's symbols: by identity, else a named file that has the kernel's lists where the header has them."""
    said = "no block of this dump holds the kernel's CodeView record, which would name its PDB"
    if location.identity is not None:
        try:
            return store.find(location.identity)
        except SymbolFileNotFoundError as error:
            said = str(error)
    files, notes = named_files(store)
    reasons = list(notes)
    wanted = dict(zip(("PsLoadedModuleList", "PsActiveProcessHead"), dump.lists, strict=True))
    for symbols in files:
        if symbols.types.pointer_size != dump.pointer_size:
            reasons.append(f"{symbols.path} is of a {8 * symbols.types.pointer_size}-bit module")
            continue
        here = {name: location.base + (symbols.symbols.get(name) or 0) for name in wanted}
        other = next((name for name in wanted if here[name] != wanted[name] or not wanted[name]), None)
        if other is None:
            return symbols
        reasons.append(f"{symbols.path} has {other} at {here[other]:#x}, the dump's header at {wanted[other]:#x}")
    told = f"; {'; '.join(reasons)}" if reasons else ""
    raise SymbolFileNotFoundError(f"{said}; give the kernel's PDB or ISF file itself with --symbols FILE{told}")
