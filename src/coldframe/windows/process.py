"""Processes and threads, each a view of its kernel structure, read when asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from coldframe.errors import NotFoundError, TypeNotFoundError, UnreadableMemoryError
from coldframe.paging import AddressSpace
from coldframe.symbols.model import Enum
from coldframe.windows.handle import Handle, HandleTable
from coldframe.windows.module import KERNEL_ENTRY, USER_ENTRY, Module, entry_type, holding, loaded, named
from coldframe.windows.startup import directory_table
from coldframe.windows.typed import Struct, TypedMemory, first_field
from coldframe.windows.vad import VadTree
from coldframe.windows.wow64 import modules32

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_MOST_THREADS = 1 << 17
_NAME_KEPT = 14  # characters of the name that EPROCESS.ImageFileName keeps
# KTHREAD_STATE of wdm.h, for kernels whose types leave it out
_STATES = ("Initialized", "Ready", "Running", "Standby", "Terminated", "Waiting", "Transition", "DeferredReady")


class Process:
    """A process: `eprocess` is its `_EPROCESS` as a `Struct`, `memory` its address space."""

    def __init__(self, guest: Guest, eprocess: Struct) -> None:
        self.guest = guest
        self.eprocess = eprocess

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and self.eprocess.address == other.eprocess.address

    def __hash__(self) -> int:
        return hash(self.eprocess.address)

    @property
    def pid(self) -> int:
        """The process identifier."""
        return self.eprocess.integer("UniqueProcessId")

    @property
    def ppid(self) -> int:
        """The identifier of the process that created it, which may be gone or have been given to another."""
        return self.eprocess.integer("InheritedFromUniqueProcessId")

    @property
    def name(self) -> str:
        """The image's file name as EPROCESS keeps it: at most 14 characters; `path` has it whole."""
        return self.eprocess.array("ImageFileName").text

    def is_called(self, name: str) -> bool:
        """Whether its image is called `name`, case apart; a name that EPROCESS cut off matches by what is left."""
        own, wanted = self.name.lower(), name.lower()
        return own == wanted or (len(own) >= _NAME_KEPT and wanted.startswith(own))

    @property
    def path(self) -> str | None:
        r"""The image's whole path as the kernel has it (`\Device\HarddiskVolume2\Windows\explorer.exe`), or None."""
        field = "SeAuditProcessCreationInfo.ImageFileName"
        if not self.eprocess.has(field):
            return None
        try:
            address = self.eprocess.integer(field)
            named = self.guest.struct("_OBJECT_NAME_INFORMATION", address).struct("Name").text if address else ""
        except (UnreadableMemoryError, TypeNotFoundError):
            return None
        return named or None

    @property
    def dtb(self) -> int:
        """Physical address of its top-level page table, PCID and flags taken away: the kernel's view."""
        return directory_table(self.eprocess, self.guest.resolver.format.root)

    @property
    def user_dtb(self) -> int | None:
        """The tables used in user mode under KVA shadow; None where there is no such pair."""
        if not self.eprocess.has("Pcb.UserDirectoryTableBase"):
            return None
        value = directory_table(self.eprocess, self.guest.resolver.format.root, "Pcb.UserDirectoryTableBase")
        return value or None  # 1 marks a process that runs unshadowed, as an administrator's may

    @property
    def created(self) -> datetime | None:
        """When it was created (UTC)."""
        return self.eprocess.struct("CreateTime").time

    @property
    def exited(self) -> datetime | None:
        """When it ended (UTC); None while it lives."""
        return self.eprocess.struct("ExitTime").time

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.exited is None

    @property
    def wow64(self) -> bool:
        """Whether it is a 32-bit process on a 64-bit Windows."""
        path = self.wow64_field
        return path is not None and bool(self.eprocess.integer(path))

    @property
    def wow64_field(self) -> str | None:
        """What this build calls EPROCESS's pointer to the 32-bit side, if it has one."""
        return next((path for path in ("WoW64Process", "Wow64Process") if self.eprocess.has(path)), None)

    @property
    def parent(self) -> Process | None:
        """The process that created it, if it is still there and older."""
        found = next((process for process in self.guest.processes if process.pid == self.ppid), None)
        if found is None or found == self:
            return None
        born, own = found.created, self.created
        return None if born is not None and own is not None and born > own else found

    @property
    def memory(self) -> AddressSpace:
        """Its address space: user and kernel half, every state of a page."""
        return self.guest.once(
            ("memory", self.eprocess.address), lambda: AddressSpace(self.guest.resolver, self.dtb, self.vads)
        )

    @property
    def vads(self) -> VadTree:
        """Its virtual address descriptors, by address."""
        return self.guest.once(("vads", self.eprocess.address), lambda: VadTree(self))

    @property
    def typed(self) -> TypedMemory:
        """The kernel's types over its address space."""
        return self.guest.typed.over(self.memory)

    @property
    def peb(self) -> Struct | None:
        """Its process environment block, read through its own memory; None for System and its kin."""
        address = self.eprocess.integer("Peb")
        return self.typed.struct("_PEB", address) if address else None

    @property
    def threads(self) -> Sequence[Thread]:
        """Its threads, in the order of EPROCESS.ThreadListHead."""
        heads = self.eprocess.struct("ThreadListHead").entries("_ETHREAD", "ThreadListEntry")
        return tuple(Thread(self.guest, ethread, self) for ethread, _ in zip(heads, range(_MOST_THREADS), strict=False))

    @property
    def handles(self) -> Iterator[Handle]:
        """Its open handles, by value."""
        table = self.eprocess.integer("ObjectTable")
        return iter(HandleTable(self.guest, table) if table else ())

    @property
    def modules(self) -> Sequence[Module]:
        """Its images in load order: the loader's list in the PEB, in a WOW64 process the 32-bit one after it.

        Where the lists are not in RAM, the image VADs name what is mapped, by address.
        """
        return self.guest.once(("modules", self.eprocess.address), lambda: tuple(self._modules()))

    def _modules(self) -> list[Module]:
        found: list[Module] = []
        for listed in (self._loaded, lambda: modules32(self)):
            try:
                found += listed()
            except (UnreadableMemoryError, TypeNotFoundError) as error:
                self.guest.warn(f"modules of {self!r} from the PEB: {error}")
        return found or list(self._mapped_images())

    def _loaded(self) -> Iterator[Module]:
        peb = self.peb
        loader = peb.pointer("Ldr") if peb is not None else None
        if loader:
            head = self.typed.struct("_PEB_LDR_DATA", loader).struct("InLoadOrderModuleList")
            kind = entry_type(self.guest.types, USER_ENTRY, KERNEL_ENTRY)
            yield from loaded(self.guest, self.memory, head, kind)

    def _mapped_images(self) -> Iterator[Module]:
        for vad in self.vads:
            path = vad.file if vad.kind == "Image" else None
            if path:
                name = path.rpartition("\\")[2]
                yield Module(self.guest, self.memory, name, vad.start, vad.size, path, source="VAD")

    def module(self, name: str) -> Module:
        """The module called `name` (`ntdll`, `ntdll.dll`), its own or the kernel's; raises `NotFoundError`."""
        found = named(self.modules, name) or named(self.guest.drivers, name)
        if found is None:
            raise NotFoundError(f"module in {self!r}", name, (module.name for module in self.modules))
        return found

    def module_at(self, address: int) -> Module | None:
        """The module that `address` lies in, of the process or of the kernel."""
        return holding(self.modules, address) if address < self.guest.kernel_start else self.guest.module_at(address)


class Thread:
    """A thread: `ethread` is its `_ETHREAD` as a `Struct`."""

    def __init__(self, guest: Guest, ethread: Struct, process: Process | None = None) -> None:
        self.guest = guest
        self.ethread = ethread
        self._process = process

    def __repr__(self) -> str:
        return f"<Thread {self.tid} of {self.process!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thread) and self.ethread.address == other.ethread.address

    def __hash__(self) -> int:
        return hash(self.ethread.address)

    @property
    def tid(self) -> int:
        """The thread identifier."""
        return self.ethread.integer("Cid.UniqueThread")

    @property
    def process(self) -> Process:
        """The process that it belongs to (not one it is attached to)."""
        if self._process is None:
            owner = self.ethread.integer(first_field(self.guest.types, "_ETHREAD", "Tcb.Process", "ThreadsProcess"))
            self._process = Process(self.guest, self.guest.struct("_EPROCESS", owner))
        return self._process

    @property
    def attached_process(self) -> Process:
        """The process whose address space it uses now."""
        path = first_field(self.guest.types, "_ETHREAD", "Tcb.ApcState.Process")
        return Process(self.guest, self.guest.struct("_EPROCESS", self.ethread.integer(path)))

    @property
    def start_address(self) -> int:
        """Where it was told to begin: Win32StartAddress, else StartAddress."""
        address = self.ethread.integer("Win32StartAddress") if self.ethread.has("Win32StartAddress") else 0
        return address or self.ethread.integer("StartAddress")

    @property
    def state(self) -> str:
        """What the scheduler has it do: a name of `_KTHREAD_STATE`."""
        value = self.ethread.integer("Tcb.State")
        enum = self.guest.types.find("_KTHREAD_STATE")
        names = enum.constants.items() if isinstance(enum, Enum) else zip(_STATES, range(len(_STATES)), strict=True)
        return next((name for name, number in names if number == value), str(value))

    @property
    def trap_frame(self) -> Struct | None:
        """Its `_KTRAP_FRAME`: the registers with which it last entered the kernel; None where it has none."""
        address = self.ethread.integer("Tcb.TrapFrame")
        return self.guest.struct("_KTRAP_FRAME", address) if address else None

    @property
    def program_counter(self) -> int | None:
        """Where it goes on when it leaves the kernel, by its trap frame; None where it has none, as most of System's.

        Where a thread that runs at this moment is, only its vCPU's registers tell.
        """
        frame = self.trap_frame
        return None if frame is None else frame.integer(first_field(self.guest.types, "_KTRAP_FRAME", "Rip", "Eip"))

    @property
    def teb(self) -> int:
        """The user address of its environment block; 0 for a kernel thread."""
        return self.ethread.integer("Tcb.Teb")

    @property
    def kernel_stack(self) -> tuple[int, int, int]:
        """Lowest address, saved stack pointer and first address above its kernel stack."""
        path = first_field(self.guest.types, "_ETHREAD", "Tcb.StackBase", "Tcb.InitialStack")
        limit = self.ethread.integer("Tcb.StackLimit")
        return limit, self.ethread.integer("Tcb.KernelStack"), self.ethread.integer(path)
