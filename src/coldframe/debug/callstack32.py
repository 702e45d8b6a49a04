"""Call stacks of 32-bit code, whose images carry no unwind data: by the PDB's frame data, where there is none by the
frame pointer, and where there is none by a scan.

Each frame says how its caller was found:

- "entry", "epilogue": control is at a function's first instructions, or at its `leave` or `ret`: the return address is
  where these instructions have it, for certain.
- "frame data": the PDB says where this function has the return address, and that follows a call.
- "frame pointer": EBP leads to the caller's EBP and the return address, and that follows a call.
- "scan": the first address on the stack that lies in a module's code and follows a call; it may be left over from a
  call that has long returned, so it is a guess.
- "trap frame": from kernel to user mode by the `_KTRAP_FRAME`, which begins as a frame does (DbgEbp, DbgEip).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coldframe.capabilities import ReadsMemory
from coldframe.debug.framedata32 import run_program
from coldframe.debug.prologue import follows_call
from coldframe.errors import ColdframeError, UnreadableMemoryError
from coldframe.symbols.framedata import FrameData
from coldframe.windows.module import Module
from coldframe.windows.process import Process, Thread
from coldframe.windows.wow64 import SOURCE

if TYPE_CHECKING:
    from coldframe.debug.callstack import Frame, StackWalker

WORD = 4
_LARGEST_FRAME = 1 << 20
_MOST_SCANNED = 512  # words
_PUSH_EBP, _MOV_EBP_ESP, _LEAVE = 0x55, (b"\x8b\xec", b"\x89\xe5"), 0xC9
_RETURN_AND_RELEASE = 0xC2
_HOT_PATCH, _POP_EBP, _RETURNS = b"\x8b\xff", 0x5D, (0xC3, _RETURN_AND_RELEASE)
_EXCEPTION_FRAME = (0x6A, 0x68)  # push: the arguments of __SEH_prolog, which makes a frame
_LARGEST_FUNCTION = 1 << 16
_SWITCH_SLOTS = 24
_LARGEST_SWITCH = 0x100
"""Bytes of KiSwapContext, which is some forty instructions long."""


@dataclass(frozen=True, slots=True)
class State:
    """What a frame is walked by."""

    eip: int
    esp: int
    ebp: int


@dataclass(frozen=True, slots=True)
class Caller:
    """A frame's caller, and how it was found; `user` says that the walk went from kernel to user mode.

    `arguments` are the bytes of the callee's arguments, which lie at the caller's ESP while the call lasts.
    """

    state: State
    how: str
    user: bool = False
    arguments: int = 0


def frames32(
    walker: StackWalker,
    registers: Mapping[str, int],
    process: Process | None,
    thread: Thread | None,
    memory: ReadsMemory,
    *,
    returned_to: bool,
) -> Iterator[Frame]:
    """The frames from `registers` on, the innermost first; see `StackWalker.walk`."""
    walk = _Walk(walker, process, thread, memory)
    state = State(*(registers.get(name, 0) & 0xFFFF_FFFF for name in ("rip", "rsp", "rbp")))
    arguments = 0
    while True:
        module = _module(walker, state.eip, process)
        frame = walker.frame({"rip": state.eip, "rsp": state.esp}, module)
        try:
            caller = walk.caller(state, frame, module, arguments, returned_to=returned_to)
        except UnreadableMemoryError as error:
            caller = f"missing page {error.address & ~0xFFF:#x}: {error.reason}"
        if isinstance(caller, str):
            crossed = walk.by_thread(state) if not frame.user else None
            if crossed is None:
                yield replace(frame, how=caller)
                return
            caller = replace(crossed, how=f"trap frame ({caller})")
        yield replace(frame, return_address=caller.state.eip, how=caller.how)
        returned_to = not caller.user
        state, arguments = caller.state, caller.arguments


def _module(walker: StackWalker, address: int, process: Process | None) -> Module | None:
    """The module at `address`: of a WOW64 process rather the 32-bit loader's, whose name is the 32-bit program's."""
    if process is not None and process.wow64:
        for module in process.modules:
            if module.source == SOURCE and address in module:
                return module
    return walker.modules.at(address, process)


class _Walk:
    def __init__(
        self, walker: StackWalker, process: Process | None, thread: Thread | None, memory: ReadsMemory
    ) -> None:
        self._walker, self._process, self._thread, self._memory = walker, process, thread, memory
        self._kernel = walker.guest.kernel_start
        self._crossed = False

    def _word(self, address: int) -> int:
        return int.from_bytes(self._memory.read(address & 0xFFFF_FFFF, WORD), "little")

    def caller(
        self, state: State, frame: Frame, module: Module | None, arguments: int, *, returned_to: bool
    ) -> Caller | str:
        """The caller of the function that `state` is in, or why it is not found.

        `arguments` are those on its stack for the call that it is in, in bytes.
        """
        if returned_to and module is None:
            return "no module holds the return address"
        found = self._by_code(state, frame) if not returned_to or frame.user else None
        data = None if module is None else self._walker.frame_tables.find(module, state.eip - returned_to)
        if found is None and data is not None:
            found = self._by_frame_data(state, data, arguments)
        if found is None:
            found = self._by_frame_pointer(state)
            if found is not None and not found.user and self._keeps_ebp(frame):
                found = self._by_scan(state, state.ebp) or found  # else the caller itself would be left out
        if found is None:
            found = self._by_scan(state)
        if found is None:
            return "end of stack" if not state.ebp else "neither EBP nor the stack leads to a caller"
        if not found.state.eip:
            return "end of stack"
        return found if data is None else replace(found, arguments=data.parameters)

    def _by_code(self, state: State, frame: Frame) -> Caller | None:
        """At a function's first or last instructions."""
        try:
            code = self._memory.read(state.eip, 2)
        except UnreadableMemoryError:
            return None
        if code[0] in _RETURNS:
            found = self._returned(state, "epilogue", 0, state.ebp)
            if found is None or code[0] != _RETURN_AND_RELEASE:
                return found
            released = int.from_bytes(self._memory.read(state.eip + 1, 2), "little")
            return replace(found, arguments=released)
        if code[0] == _POP_EBP and code[1] in _RETURNS:
            return self._returned(state, "epilogue", WORD, self._word(state.esp))
        if code[0] == _LEAVE and code[1] in _RETURNS:
            return self._by_frame_pointer(state)
        if frame.symbol is None or frame.displacement > len(_HOT_PATCH) + 1 + len(_MOV_EBP_ESP[0]):
            return None
        if frame.displacement == 0:
            return self._returned(state, "entry", 0, state.ebp)
        start = self._memory.read(state.eip - frame.displacement, frame.displacement + 3)
        push = len(_HOT_PATCH) if start.startswith(_HOT_PATCH) else 0
        if start[push] != _PUSH_EBP or start[push + 1 : push + 3] not in _MOV_EBP_ESP:
            return None
        if frame.displacement <= push:
            return self._returned(state, "entry", 0, state.ebp)
        if frame.displacement == push + 1:
            return self._returned(state, "entry", WORD, self._word(state.esp))
        return None

    def _by_frame_data(self, state: State, data: FrameData, arguments: int) -> Caller | None:
        """As the PDB says, unless what it leads to is no return address."""
        registers = {"$eip": state.eip, "$esp": state.esp, "$ebp": state.ebp}
        try:
            caller = run_program(data, registers, arguments, self._word)
        except UnreadableMemoryError:
            return None
        if caller is None or caller["$esp"] <= state.esp:
            return None
        if caller["$eip"] and not self._is_return(caller["$eip"], state):
            return None
        return Caller(State(caller["$eip"], caller["$esp"], caller["$ebp"]), "frame data")

    def _returned(self, state: State, how: str, above: int, ebp: int) -> Caller | None:
        """The caller whose return address is `above` bytes from ESP; None where there is no return address."""
        place = state.esp + above
        eip = self._word(place)
        if eip and not self._is_return(eip, state):
            return None
        return Caller(State(eip, place + WORD, ebp), how)

    def _by_frame_pointer(self, state: State) -> Caller | None:
        if not state.esp <= state.ebp < state.esp + _LARGEST_FRAME or state.ebp % WORD:
            return None
        try:
            ebp, eip = self._word(state.ebp), self._word(state.ebp + WORD)
        except UnreadableMemoryError:
            return None
        if state.eip >= self._kernel > eip:
            crossed = self._by_trap_frame(state.ebp)
            if crossed is not None:
                return crossed
        if eip == 0 and ebp == 0:
            return Caller(State(0, 0, 0), "frame pointer")
        return Caller(State(eip, state.ebp + 2 * WORD, ebp), "frame pointer") if self._is_return(eip, state) else None

    def _keeps_ebp(self, frame: Frame) -> bool:
        """Whether the function has no frame of its own, so that EBP is still its caller's: its first bytes tell."""
        if frame.symbol is None or frame.displacement > _LARGEST_FUNCTION:
            return False
        try:
            code = self._memory.read(frame.address - frame.displacement, 5)
        except UnreadableMemoryError:
            return False
        code = code.removeprefix(_HOT_PATCH)
        return not (code[0] == _PUSH_EBP and code[1:3] in _MOV_EBP_ESP) and code[0] not in _EXCEPTION_FRAME

    def _by_scan(self, state: State, end: int = 0xFFFF_FFFF) -> Caller | None:
        for place in range(state.esp, min(end, state.esp + WORD * _MOST_SCANNED), WORD):
            try:
                value = self._word(place)
            except UnreadableMemoryError:
                return None
            if self._is_return(value, state):
                return Caller(State(value, place + WORD, state.ebp), f"scan (found at {place:#x}, may be stale)")
        return None

    def _is_return(self, address: int, state: State) -> bool:
        """Whether `address` can be a return address: in a module of the same half, behind a call."""
        if (address >= self._kernel) != (state.eip >= self._kernel) or address < 1 << 12:
            return False
        return self._walker.modules.at(address, self._process) is not None and follows_call(self._memory, address)

    def _by_trap_frame(self, address: int) -> Caller | None:
        """The user-mode registers in the trap frame at `address`; once in a walk."""
        if self._crossed:
            return None
        try:
            frame = self._walker.guest.struct("_KTRAP_FRAME", address, self._memory)
            if frame.integer("SegCs") & 3 != 3:
                return None
            state = State(*(frame.integer(name) for name in ("Eip", "HardwareEsp", "Ebp")))
        except ColdframeError:
            return None
        if state.eip >= self._kernel:
            return None
        self._crossed = True
        return Caller(state, "trap frame", user=True)

    def by_thread(self, state: State) -> Caller | None:
        """By the trap frame that `_KTHREAD.TrapFrame` names, if it is above us on the thread's stack."""
        try:
            trap_frame = None if self._thread is None else self._thread.trap_frame
            if self._thread is None or trap_frame is None:
                return None
            low, _, high = self._thread.kernel_stack
        except ColdframeError:
            return None
        if not low <= state.esp <= high or not state.esp <= trap_frame.address < high:
            return None
        return self._by_trap_frame(trap_frame.address)


def switched_out32(walker: StackWalker, thread: Thread) -> dict[str, int] | None:
    """The registers that a thread which waits will go on with in KiSwapContext; None where they are not found.

    Above `_KTHREAD.KernelStack` SwapContext leaves its return into KiSwapContext, which has its caller's EBP on top of
    its own stack then.
    """
    guest = walker.guest
    rva = guest.symbols.get("KiSwapContext")
    if rva is None:
        return None
    start = guest.kernel.base + rva
    try:
        low, pointer, high = thread.kernel_stack
        if not low <= pointer < high:
            return None
        size = min(WORD * _SWITCH_SLOTS, high - pointer) // WORD * WORD
        data = guest.memory.read(pointer, size)
    except UnreadableMemoryError:
        return None
    slots = [int.from_bytes(data[at : at + WORD], "little") for at in range(0, size, WORD)]
    for number, slot in enumerate(slots[:-1]):
        if start < slot < start + _LARGEST_SWITCH:
            return {"rip": slot, "rsp": pointer + WORD * (number + 1), "rbp": slots[number + 1]}
    return None
