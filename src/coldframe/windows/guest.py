"""A Windows guest: its kernel, its types and symbols, its memory, and the lists that the kernel keeps."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar, cast

from coldframe.capabilities import ReadsMemory
from coldframe.closing import Closing
from coldframe.errors import (
    CapabilityError,
    ColdframeError,
    NotFoundError,
    SymbolFileNotFoundError,
    UnreadableMemoryError,
)
from coldframe.memory import PhysicalMemory
from coldframe.paging import FORMATS, AddressSpace, PoolAddresses, PteLayout, Resolver
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.windows import processor, startup
from coldframe.windows.facts import Value, facts
from coldframe.windows.handle import Handle, Objects, table_of
from coldframe.windows.kernel import KERNEL_HALF, FindsSymbols, KernelLocation, Registers, find_kernel
from coldframe.windows.kernelsymbols import kernel_symbols
from coldframe.windows.latesources import LateSources
from coldframe.windows.module import (
    KERNEL_ENTRY,
    KERNEL_NAME,
    USER_ENTRY,
    Module,
    entry_type,
    holding,
    loaded,
    named,
    read_codeview,
)
from coldframe.windows.pagingfile import PagingFile, PagingFiles
from coldframe.windows.process import Process, Thread
from coldframe.windows.section import Sections
from coldframe.windows.sightings import Sighting, sightings
from coldframe.windows.typed import Struct, TypedMemory

if TYPE_CHECKING:
    from coldframe.disk import Blocks
    from coldframe.windows.sources import PageSources

_Kept = TypeVar("_Kept")
_MOST_PROCESSES = 1 << 17
_OFFERED = 3
"""How many near numbers an error offers."""


class Guest(Closing):
    """The Windows system in a target: open it with `Guest.open`.

    Nothing the guest may change is kept beyond a pause: whoever lets the guest run calls `new_pause` afterwards.
    A context manager; leaving it closes what was opened with it.
    """

    own_disks: Callable[[], Sequence[Blocks]] | None = None
    """What gives the disks of a running guest, through whom it runs on; None for an image."""

    def __init__(
        self,
        physical: PhysicalMemory,
        store: FindsSymbols,
        location: KernelLocation,
        symbol_file: SymbolFile,
        registers: Sequence[Registers] = (),
    ) -> None:
        self.physical = physical
        self.store = store
        self.location = location
        self.types = symbol_file.types
        self.symbols = symbol_file.symbols
        self.warnings: list[str] = []
        self._registers = tuple(registers)
        self._kept: dict[Hashable, object] = {}
        self._identities: dict[Hashable, PdbIdentity | None] = {}
        self.symbol_file_of_kernel = symbol_file
        self._symbol_files: dict[PdbIdentity, SymbolFile | SymbolFileNotFoundError] = {}
        if location.identity is not None:
            self._symbol_files[location.identity] = symbol_file
        start = startup.read(physical, location, symbol_file)
        self.warnings += start.warnings
        self.dtb = start.dtb
        self.invalid_pte_mask = start.invalid_pte_mask
        self.layout = PteLayout.from_types(self.types)
        self.resolver = Resolver(
            physical,
            replace(FORMATS[location.format], split=start.split),
            self.layout,
            kernel_dtb=self.dtb,
            invalid_pte_mask=self.invalid_pte_mask,
        )
        self.memory = AddressSpace(self.resolver, self.dtb)
        self.typed = TypedMemory(self.memory, self.types)
        if self.layout.needs_pools:
            self.resolver.layout = self.layout = self.layout.with_pools(self._pools())
        self.sections = Sections(self)
        self.objects = Objects(self)
        self._paging_files = PagingFiles(self)
        self.resolver.subsections = self.sections
        self.resolver.paging_files = self._paging_files
        self.resolver.virtual_store = self._paging_files.store_number
        self.resolver.pages = LateSources(self)
        self.kernel = Module(
            self, self.memory, KERNEL_NAME, location.base, location.size, path="", is_kernel=True, source=location.how
        )

    @classmethod
    def open(cls, physical: PhysicalMemory, store: FindsSymbols, registers: Sequence[Registers] = ()) -> Self:
        """Find the kernel in `physical`, load its symbols and read what translation needs.

        `registers` are what is known of the vCPUs, see `find_kernel`. Raises `NoKernelError`,
        `SymbolFileNotFoundError`, `TypeNotFoundError` when the symbol file lacks the kernel's types.
        """
        location = find_kernel(physical, store, registers)
        symbol_file, warning = kernel_symbols(physical, store, location)
        guest = cls(physical, store, location, symbol_file, registers)
        if warning is not None:
            guest.warn(warning)
        return guest

    def close(self) -> None:
        """Close what was opened with the guest; the guest cannot be used afterwards."""
        if "pages" in self.__dict__:
            self.pages.close()
        self._kept.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location.identity} at {self.location.base:#x}>"

    @cached_property
    def pages(self) -> PageSources:
        """Where the pages are that left RAM; made when it is first asked for."""
        from coldframe.windows.sources import PageSources  # noqa: PLC0415 - loads numpy and what reads disks
        from coldframe.windows.store import CompressedStore  # noqa: PLC0415

        return PageSources(self, CompressedStore(self))

    def _pools(self) -> PoolAddresses:
        """Where the pools begin and end, from which the PTEs of NT 5 without PAE count."""

        def told(name: str) -> int | None:
            address = self.variable(name)
            try:
                return None if address is None else self.typed.pointer(address) or None
            except UnreadableMemoryError:
                return None

        return PoolAddresses(told("MmPagedPoolStart"), told("MmSubsectionBase"), told("MmNonPagedPoolEnd"))

    @property
    def kernel_start(self) -> int:
        """The first address that may be the kernel's."""
        format = self.resolver.format  # noqa: A001 - its name
        return KERNEL_HALF if format.canonical else format.kernel_start

    # What is kept, and for how long

    def once(self, key: Hashable, compute: Callable[[], _Kept]) -> _Kept:
        """What `compute` returns, computed once in this pause of the guest."""
        if key not in self._kept:
            self._kept[key] = compute()
        return cast(_Kept, self._kept[key])

    def new_pause(self) -> None:
        """Forget everything read from the guest: it has run."""
        self._kept.clear()
        self.resolver.drop_caches()

    def warn(self, text: str) -> None:
        """Note something that was found damaged or not in RAM and was left out."""
        if text not in self.warnings:
            self.warnings.append(text)

    # What it is

    @cached_property
    def build(self) -> int | None:
        """The build number (19041), from nt!NtBuildNumber; None where it cannot be read."""
        address = self.variable("NtBuildNumber")
        try:
            return (
                None if address is None else self.memory.u32(address) & 0x0FFF_FFFF
            )  # the upper bits tell the edition
        except UnreadableMemoryError:
            return None

    @cached_property
    def build_lab(self) -> str | None:
        """The text of nt!NtBuildLabEx or nt!NtBuildLab (`19041.1.amd64fre.vb_release.191206-1406`)."""
        for name in ("NtBuildLabEx", "NtBuildLab"):
            address = self.variable(name)
            try:
                text = b"" if address is None else self.memory.read_cstring(address, 256)
            except UnreadableMemoryError:
                continue
            if text:
                return text.decode("latin-1")
        return None

    @property
    def kva_shadow(self) -> bool:
        """Whether the kernel keeps separate tables for user mode (nt!KiKvaShadow)."""
        address = self.variable("KiKvaShadow")
        try:
            return address is not None and bool(self.memory.u8(address))
        except UnreadableMemoryError:
            return False

    def facts(self) -> Mapping[str, Value]:
        """What `info` tells, as plain data."""
        return facts(self)

    # Types and symbols

    def struct(self, name: str, address: int, memory: ReadsMemory | None = None) -> Struct:
        """The kernel's structure `name` at `address`, in kernel memory or in `memory`."""
        typed = self.typed if memory is None else self.typed.over(memory)
        return typed.struct(name, address)

    def list_entries(self, head: int | Struct, name: str, link: str) -> Iterator[Struct]:
        """Each `name` on the list headed at `head`, linked through its field `link`; bounded, see `Struct.entries`."""
        address = head.address if isinstance(head, Struct) else head
        return self.struct("_LIST_ENTRY", address).entries(name, link)

    def symbol_file(self, identity: PdbIdentity) -> SymbolFile:
        """The symbols of `identity` from the store; raises `SymbolFileNotFoundError`, looked for only once."""
        found = self._symbol_files.get(identity)
        if found is None:
            try:
                found = self.store.find(identity)
            except SymbolFileNotFoundError as error:
                found = error
            self._symbol_files[identity] = found
        if isinstance(found, SymbolFileNotFoundError):
            raise found
        return found

    def identity_of(self, module: Module) -> PdbIdentity | None:
        """What `module`'s CodeView record names, kept as long as the image's headers are the same."""
        key = (module.path.lower(), module.size, module.timestamp)
        if module.path and module.timestamp:
            if self._identities.get(key) is None:
                self._identities[key] = read_codeview(module)
            return self._identities[key]
        return self.once(("identity", module.memory.dtb, module.base), lambda: read_codeview(module))

    def symbol(self, name: str, process: Process | None = None) -> int:
        """The address of `module!symbol`, or of a kernel symbol; user modules need `process`.

        Raises `NotFoundError` or `SymbolNotFoundError` with near names, `SymbolFileNotFoundError`.
        """
        module, bang, symbol = name.partition("!")
        if not bang:
            return self.kernel.symbol(name)
        return (self.module(module) if process is None else process.module(module)).symbol(symbol)

    def variable(self, name: str) -> int | None:
        """The address of the kernel's variable `name`, or None where this build has no such symbol."""
        rva = self.symbols.get(name)
        return None if rva is None else self.location.base + rva

    def symbolize(self, address: int, process: Process | None = None) -> str:
        """`nt!NtWriteFile+0x10`; `module+0x123` without symbols; the bare address outside every module."""
        module = self.module_at(address) if process is None else process.module_at(address)
        if module is None:
            return f"{address:#x}"
        try:
            nearest = module.symbols.symbols.nearest(address - module.base)
        except ColdframeError:
            nearest = None
        if nearest is None:
            return f"{module.stem}+{address - module.base:#x}"
        name, above = nearest
        return f"{module.stem}!{name}+{above:#x}" if above else f"{module.stem}!{name}"

    # What the kernel lists

    @property
    def processes(self) -> Sequence[Process]:
        """All processes on PsActiveProcessHead, in its order, System first."""
        return self.once("processes", lambda: tuple(self._processes()))

    def _processes(self) -> Iterator[Process]:
        head = self.kernel.symbol("PsActiveProcessHead")
        entries = self.list_entries(head, "_EPROCESS", "ActiveProcessLinks")
        for eprocess, _ in zip(entries, range(_MOST_PROCESSES), strict=False):
            yield Process(self, eprocess)

    def sightings(self, *, scan: bool = False) -> Sequence[Sighting]:
        """All processes, also exited and unlinked ones that the list lacks; each says what found it.

        Beside the list there are nt!PspCidTable and, with `scan`, all of RAM.
        """
        return self.once(("sightings", scan), lambda: sightings(self, scan=scan))

    def process(self, which: str | int) -> Process:
        """The process of that pid or name (case apart); raises `NotFoundError`, also when a name is not unique."""
        if isinstance(which, int):
            found = [process for process in self.processes if process.pid == which]
        else:
            found = [process for process in self.processes if process.is_called(which)]
        living = [process for process in found if process.alive] or found
        if len(living) == 1:
            return living[0]
        if living:
            pids = ", ".join(str(process.pid) for process in living)
            raise NotFoundError("single process", str(which), hint=f"pids {pids} are called so: name one")
        if isinstance(which, int):
            near = sorted(self.processes, key=lambda process: abs(process.pid - which))[:_OFFERED]
            raise NotFoundError("process", str(which), hint=_nearest((p.pid, p.name) for p in near))
        raise NotFoundError("process", str(which), (process.name for process in self.processes))

    def thread(self, tid: int) -> Thread:
        """The thread with that identifier; raises `NotFoundError`."""
        for process in self.processes:
            for thread in process.threads:
                if thread.tid == tid:
                    return thread
        threads = [(thread.tid, process.name) for process in self.processes for thread in process.threads]
        near = sorted(threads, key=lambda thread: abs(thread[0] - tid))[:_OFFERED]
        raise NotFoundError("thread", str(tid), hint=_nearest(near))

    @property
    def drivers(self) -> Sequence[Module]:
        """The kernel and its drivers, from PsLoadedModuleList in load order."""
        return self.once("drivers", lambda: tuple(self._drivers()))

    def _drivers(self) -> Iterator[Module]:
        kind = entry_type(self.types, KERNEL_ENTRY, USER_ENTRY)
        head = self.struct("_LIST_ENTRY", self.kernel.symbol("PsLoadedModuleList"))
        found = list(loaded(self, self.memory, head, kind, self.location.base))
        if not any(module.is_kernel for module in found):  # early in boot
            yield self.kernel
        yield from found

    def module(self, name: str) -> Module:
        """The kernel module called `name` (`nt`, `ntfs`, `ntfs.sys`); raises `NotFoundError`."""
        found = self.kernel if name.lower() == KERNEL_NAME else named(self.drivers, name)
        if found is None:
            hint = "a module of user mode needs its process named too"
            raise NotFoundError("kernel module", name, (module.name for module in self.drivers), hint)
        return found

    def module_at(self, address: int) -> Module | None:
        """The kernel module that `address` lies in."""
        return self.kernel if address in self.kernel else holding(self.drivers, address)

    @property
    def paging_files(self) -> Sequence[PagingFile]:
        """The paging files that the kernel has, the compressed store's number among them."""
        return self._paging_files.all()

    def handle(self, process: Process, value: int) -> Handle | None:
        """What `value` is a handle to in `process`; a kernel handle (negative) is looked up in the kernel's table."""
        found = table_of(self, value, process.eprocess.integer("ObjectTable"))
        return None if found is None else found[0].find(found[1])

    def file_of_handle(self, process: Process, value: int) -> str | None:
        r"""The name of the file that `value` is a handle to in `process` (`\Users\minint\a.txt`), from its FILE_OBJECT.

        None where it is no file's handle, or the name is not in RAM.
        """
        try:
            handle = self.handle(process, value)
        except UnreadableMemoryError:
            return None
        return None if handle is None or handle.object.type != "File" else handle.object.name

    # vCPUs

    @property
    def vcpus(self) -> int:
        """How many vCPUs' registers the target carries."""
        return len(self._registers)

    def registers(self, vcpu: int) -> Mapping[str, int]:
        """The registers of `vcpu`, as the target carries them; raises `CapabilityError` where it does not."""
        if not 0 <= vcpu < len(self._registers):
            carried = len(self._registers)
            raise CapabilityError(f"this target carries the registers of {carried} vCPUs, not those of vCPU {vcpu}")
        return self._registers[vcpu]

    def current_thread(self, registers: Mapping[str, int], vcpu: int | None = None) -> Thread:
        """The thread that the vCPU with these registers runs; raises `NotFoundError` where its KPCR is not found."""
        block = processor.processor_block(self, registers, vcpu)
        return Thread(self, self.struct("_ETHREAD", block.integer("CurrentThread")))

    def current_process(self, registers: Mapping[str, int], vcpu: int | None = None) -> Process:
        """The process whose address space that vCPU uses: the thread's own, or the one that it is attached to."""
        return self.current_thread(registers, vcpu).attached_process

    def running_threads(self) -> Iterator[tuple[int, Thread]]:
        """Each vCPU's number and the thread that it runs, where that can be told."""
        for vcpu in range(self.vcpus):
            try:
                yield vcpu, self.current_thread(self.registers(vcpu), vcpu)
            except (ColdframeError, KeyError):
                continue


def _nearest(numbered: Iterable[tuple[int, str]]) -> str:
    """What to say of a number that is not there."""
    return "the nearest are " + ", ".join(f"{number} ({name})" for number, name in numbered)
