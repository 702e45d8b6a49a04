"""Call stacks: from the registers of a vCPU or a thread up to its first function, through kernel and user mode.

Each frame is unwound by its image's unwind data (see `unwind`). From kernel to user mode the walk goes through the
machine frame that KiSystemCall64, KiPageFault and their like describe in theirs; where unwind data ends before it,
through the trap frame that `_KTHREAD.TrapFrame` names. 32-bit images have none: see `callstack32`; behind the
64-bit frames of a WOW64 thread come its 32-bit ones (`wow64stack`). A page that is not in RAM ends the walk and is
named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from weakref import WeakKeyDictionary

from coldframe.capabilities import ReadsMemory
from coldframe.debug.callstack32 import WORD, frames32, switched_out32
from coldframe.debug.current import current_thread
from coldframe.debug.framedata32 import FrameTables
from coldframe.debug.modules import ModuleFinder
from coldframe.debug.names import Names
from coldframe.debug.prologue import LONGEST_PROLOGUE, follows_call, read_prologue, undo_prologue
from coldframe.debug.unwind import Unwound, unwind_epilogue, unwind_frame
from coldframe.debug.unwind_info import REGISTERS, FunctionTable
from coldframe.debug.wow64stack import context32, is_code32
from coldframe.errors import ColdframeError, FormatError, UnreadableMemoryError
from coldframe.windows.guest import Guest
from coldframe.windows.module import Module
from coldframe.windows.process import Process, Thread
from coldframe.windows.triageguest import TriageGuest

MOST_FRAMES = 512
_KERNEL = 1 << 63
_TRAP_FRAME32 = {"rip": "Eip", "rsp": "HardwareEsp", "rbp": "Ebp"}
_PAGE = 4096
_LARGEST_FUNCTION = 1 << 20
_SWITCH_SLOTS = 24
"""How many slots above `_KTHREAD.KernelStack` the return into KiSwapContext may lie."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One function on a call stack.

    `address` is where control is in it (for all but the first frame, where it will return to), `return_address` where
    in its caller it returns to (None in the last frame). `how` is the way from this frame to the next: "unwind data",
    "leaf", "epilogue", "machine frame", "trap frame (why)", "system call", "prologue (why)" where only the function's
    instructions were in RAM, "WOW64 context (why)" from a WOW64 thread's last 64-bit frame to its first 32-bit one; in
    the last frame it says why the walk ended.
    """

    address: int
    stack_pointer: int
    return_address: int | None
    module: str | None
    symbol: str | None
    displacement: int
    how: str
    user: bool

    def __str__(self) -> str:
        """`nt!NtWriteFile+0x0`; `module+0x123` without symbols; the bare address outside of every module."""
        if self.module is None:
            return f"{self.address:#x}"
        return f"{self.function}+{self.displacement:#x}" if self.symbol else self.function

    @property
    def function(self) -> str:
        """`nt!NtWriteFile`, without the displacement."""
        if self.module is None:
            return f"{self.address:#x}"
        return f"{self.module}!{self.symbol}" if self.symbol else f"{self.module}+{self.displacement:#x}"


class _PausedMemory:
    """Memory in which each page is read once: a stack walk comes back to the same few pages."""

    def __init__(self, memory: ReadsMemory) -> None:
        self._memory = memory
        self._pages: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes:
        offset = address % _PAGE
        if offset + size > _PAGE:
            return self._memory.read(address, size)
        page = self._pages.get(address - offset)
        if page is None:
            try:
                page = self._pages[address - offset] = self._memory.read(address - offset, _PAGE)
            except UnreadableMemoryError:  # of a page that is there in part, this may be there
                return self._memory.read(address, size)
        return page[offset : offset + size]


class StackWalker:
    """Walks stacks of one guest; keeps the unwind tables of images, which do not change."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.names = Names()
        self.modules = ModuleFinder(guest)
        self.frame_tables = FrameTables()
        self._tables: dict[tuple[str, int, int, int], FunctionTable] = {}
        self._own_tables: WeakKeyDictionary[Module, FunctionTable] = WeakKeyDictionary()

    def walk(
        self,
        registers: Mapping[str, int],
        process: Process | None = None,
        thread: Thread | None = None,
        *,
        limit: int = MOST_FRAMES,
        first_how: str = "",
    ) -> list[Frame]:
        """The frames from `registers` (general registers and rip) on, the innermost first; at most `limit`.

        `process` gives the user half of memory and its modules; `thread` the trap frame to cross to user mode by,
        where unwind data does not lead there. `first_how` says that the registers are those of a caller already.
        """
        if self.guest.types.pointer_size == WORD:
            memory = _PausedMemory(self.guest.memory if process is None else process.memory)
            frames = frames32(self, registers, process, thread, memory, returned_to=bool(first_how))
            return list(islice(frames, limit))
        return list(islice(self._frames(registers, process, thread, limit, returned_to=bool(first_how)), limit))

    def _frames(
        self,
        registers: Mapping[str, int],
        process: Process | None,
        thread: Thread | None,
        limit: int,
        *,
        returned_to: bool,
    ) -> Iterator[Frame]:
        memory = _PausedMemory(self.guest.memory if process is None else process.memory)
        state = {name: registers.get(name, 0) for name in (*REGISTERS, "cs")} | {"rip": registers["rip"]}
        crossed, stack_end = False, _stack_end(thread)
        for _ in range(limit):
            module = self.modules.at(state["rip"], process)
            if is_code32(state, process, thread):
                yield from frames32(self, state, process, thread, memory, returned_to=returned_to)
                return
            frame = self.frame(state, module)
            how, unwound = "end of stack", None
            if state["rsp"] != stack_end:
                how, unwound = self._caller(state, module, frame, memory, returned_to=returned_to)
            if unwound is not None:
                reason = self._implausible(state, unwound, process)
                if reason:
                    how, unwound = reason, None
            if unwound is None and not frame.user and not crossed and thread is not None:
                unwound = self._by_trap_frame(state, thread, memory)
                how = f"trap frame ({how})" if unwound is not None else how
            if unwound is None:
                yield from self._last(replace(frame, how=how), process, thread, memory)
                return
            yield replace(frame, return_address=unwound.registers["rip"], how=how)
            crossed = crossed or unwound.user is True
            returned_to = unwound.user is None
            state = dict(unwound.registers)
        # the last frame said how to go on; nothing more is claimed beyond the limit

    def _last(
        self, frame: Frame, process: Process | None, thread: Thread | None, memory: ReadsMemory
    ) -> Iterator[Frame]:
        """The last 64-bit frame, and behind it the 32-bit ones of a WOW64 thread."""
        state = None
        if frame.user and process is not None and thread is not None:
            state = context32(process, thread, memory)
        if state is None:
            yield frame
            return
        yield replace(frame, return_address=state["rip"], how=f"WOW64 context ({frame.how})")
        yield from frames32(self, state, process, thread, memory, returned_to=False)

    def frame(self, state: Mapping[str, int], module: Module | None) -> Frame:
        """The frame of the function that `state` (rip and rsp) is in, its caller not looked for yet."""
        address = state["rip"]
        nearest = self.names.nearest(module, address) if module is not None else None
        symbol, displacement = nearest if nearest is not None else (None, address - module.base if module else 0)
        return Frame(
            address=address,
            stack_pointer=state["rsp"],
            return_address=None,
            module=module.stem if module is not None else None,
            symbol=symbol,
            displacement=displacement,
            how="",
            user=address < self.guest.kernel_start,
        )

    def _caller(
        self, state: Mapping[str, int], module: Module | None, frame: Frame, memory: ReadsMemory, *, returned_to: bool
    ) -> tuple[str, Unwound | None]:
        """How the caller is found and its registers, or why not."""
        if state["rip"] >= _KERNEL and state["rsp"] < _KERNEL and not returned_to and state["rcx"] < _KERNEL:
            # SYSCALL has just come, or SYSRET is about to go: the stack is the user's, its rip is in rcx (SDM volume 2)
            registers = dict(state) | {"rip": state["rcx"], "cs": 0}
            return "system call", Unwound(registers, "machine frame", user=True)
        if module is None and returned_to:
            return "no module holds the return address", None
        try:
            table = self._table(module, memory) if module is not None else None
            unwound = unwind_frame(table, memory, state, returned_to=returned_to)
        except UnreadableMemoryError as error:
            reason = f"missing page {error.address & ~(_PAGE - 1):#x}: {error.reason}"
            if module is not None and error.address in module:
                return self._by_code(state, frame, memory, reason, returned_to=returned_to)
            return reason, None
        except FormatError as error:
            return f"damaged unwind data: {error}", None
        return unwound.how, unwound

    def _by_code(
        self, state: Mapping[str, int], frame: Frame, memory: ReadsMemory, reason: str, *, returned_to: bool
    ) -> tuple[str, Unwound | None]:
        """The caller by the function's instructions, its unwind data not being in RAM: an epilogue, or the prologue."""
        if frame.symbol is None or not frame.displacement < _LARGEST_FUNCTION:
            return reason, None
        try:
            unwound = None if returned_to else unwind_epilogue(memory, state, frame.displacement)
            how = f"epilogue ({reason})"
            if unwound is None:
                start = state["rip"] - frame.displacement
                prologue = read_prologue(memory.read(start, min(frame.displacement, LONGEST_PROLOGUE)))
                unwound = Unwound(undo_prologue(prologue, memory, state), "unwind data")
                how = f"prologue ({reason})"
        except UnreadableMemoryError:
            return reason, None
        if unwound.registers["rip"] and not follows_call(memory, unwound.registers["rip"]):
            return reason, None
        return how, unwound

    def _table(self, module: Module, memory: ReadsMemory) -> FunctionTable:
        """Shared by every process that has the image; by itself where no timestamp tells it from another image."""
        if not module.timestamp:
            table = self._own_tables.get(module)
            if table is None:
                table = self._own_tables[module] = FunctionTable(memory, module.base)
            return table
        key = (module.path.lower(), module.base, module.size, module.timestamp)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = FunctionTable(memory, module.base)
        return table

    def _implausible(self, state: Mapping[str, int], unwound: Unwound, process: Process | None) -> str:
        """Why the walk cannot go on with `unwound`; "" when it can."""
        rip, rsp = unwound.registers["rip"], unwound.registers["rsp"]
        if rip == 0:
            return "end of stack"
        if not (rip < 1 << 47 or rip >= (1 << 64) - (1 << 56)):
            return f"return address {rip:#x} is no address"
        if unwound.user is None and (rip >= _KERNEL) != (state["rip"] >= _KERNEL):
            return f"return address {rip:#x} is in the other half of memory"
        if unwound.user is None and rsp <= state["rsp"]:
            return f"stack pointer {rsp:#x} does not rise"
        if unwound.how == "leaf" and self.modules.at(rip, process) is None:
            return f"no unwind data, and the return address {rip:#x} lies in no module"
        return ""

    def _by_trap_frame(self, state: Mapping[str, int], thread: Thread, memory: ReadsMemory) -> Unwound | None:
        """The user-mode registers that the thread's trap frame holds, if it is one above us and came from user mode."""
        try:
            trap_frame = thread.trap_frame
            if trap_frame is None:
                return None
            low, _, high = thread.kernel_stack
            if not max(low, min(state["rsp"], high)) <= trap_frame.address < high or not low <= state["rsp"] <= high:
                return None
            frame = self.guest.struct("_KTRAP_FRAME", trap_frame.address, memory)
            if frame.integer("SegCs") & 3 != 3:
                return None
            registers = dict(state)
            for name in ("Rip", "Rsp", "Rbp"):
                registers[name.lower()] = frame.integer(name)
            registers["cs"] = frame.integer("SegCs")
        except ColdframeError:
            return None
        return Unwound(registers, "machine frame", user=True)

    def switched_out(self, thread: Thread) -> dict[str, int] | None:
        """The registers that a thread which waits will go on with in KiSwapContext; None where they are not found.

        SwapContext leaves rbp and the return into KiSwapContext on the stack, a little above
        `_KTHREAD.KernelStack`; no public type tells where, so the first return into KiSwapContext is looked for.
        """
        if self.guest.types.pointer_size == WORD:
            return switched_out32(self, thread)
        rva = self.guest.symbols.get("KiSwapContext")
        if rva is None:
            return None
        start = self.guest.kernel.base + rva
        try:
            table = self._table(self.guest.kernel, self.guest.memory)
            function = table.find(rva, self.guest.memory)
            end = self.guest.kernel.base + function.end if function is not None else start + 0x200
            low, pointer, high = thread.kernel_stack
            if not low <= pointer < high:
                return None
            size = min(8 * _SWITCH_SLOTS, high - pointer)
            data = self.guest.memory.read(pointer, size)
        except (UnreadableMemoryError, FormatError):
            return None
        slots = [int.from_bytes(data[at : at + 8], "little") for at in range(0, size - 7, 8)]
        for number, slot in enumerate(slots):
            if start < slot < end:
                rbp = slots[number - 1] if number else 0
                return {"rip": slot, "rsp": pointer + 8 * (number + 1), "rbp": rbp}
        return None


def _stack_end(thread: Thread | None) -> int | None:
    """The first address above the thread's kernel stack, which nothing is to be read from; None where it is not known.

    Windows' first frame returns to 0, ReactOS' to a function (ntoskrnl/ke/amd64/thrdini.c).
    """
    try:
        return None if thread is None else thread.kernel_stack[2]
    except UnreadableMemoryError:
        return None


def callstack(
    guest: Guest, registers: Mapping[str, int], process: Process | None = None, thread: Thread | None = None
) -> list[Frame]:
    """The call stack that `registers` are at the end of; see `StackWalker.walk`."""
    return StackWalker(guest).walk(registers, process, thread)


def vcpu_callstack(guest: Guest, vcpu: int) -> list[Frame]:
    """What vCPU number `vcpu` runs now.

    Raises `CapabilityError` where the target carries no registers.
    """
    registers = guest.registers(vcpu)
    if isinstance(guest, TriageGuest):
        return _of_triage(guest)
    thread = current_thread(guest, registers)
    return StackWalker(guest).walk(registers, thread.process if thread is not None else None, thread)


def thread_callstack(guest: Guest, thread: Thread) -> list[Frame]:
    """The call stack of `thread`: from its vCPU's registers while it runs, else from where it was switched out."""
    if isinstance(guest, TriageGuest):
        return _of_triage(guest)
    for vcpu in range(guest.vcpus):
        registers = guest.registers(vcpu)
        if current_thread(guest, registers) == thread:
            return StackWalker(guest).walk(registers, thread.process, thread)
    walker = StackWalker(guest)
    saved = walker.switched_out(thread)
    if saved is not None:
        return walker.walk(saved, thread.process, thread, first_how="context switch")
    frame = thread.trap_frame
    if frame is None:
        return []
    if guest.types.pointer_size == WORD:
        registers = {name: frame.integer(path) for name, path in _TRAP_FRAME32.items()}
    else:
        registers = {name.lower(): frame.integer(name) for name in ("Rip", "Rsp", "Rbp", "Rbx", "Rsi", "Rdi")}
        registers["cs"] = frame.integer("SegCs")
    return walker.walk(registers, thread.process, thread)


def _of_triage(guest: TriageGuest) -> list[Frame]:
    from coldframe.debug.triagestack import triage_callstack  # noqa: PLC0415 - it is written in terms of this module

    return triage_callstack(guest)
