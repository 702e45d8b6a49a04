"""The 32-bit side of a WOW64 thread's stack.

While such a thread executes 64-bit code (which makes its system calls), its 32-bit registers are kept in user memory:
`_TEB.TlsSlots[1]` points to the CPU simulator's data, which has a WOW64_CONTEXT from offset 4 on. Source: the remarks
of WOW64_CONTEXT (winnt.h) in the Windows SDK's documentation, for Vista to 8.1; Windows 10 and 11 have two 16-bit
numbers in front of it, flags and machine, so that the offset is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from coldframe.capabilities import ReadsMemory
from coldframe.errors import ColdframeError
from coldframe.windows.guest import Guest
from coldframe.windows.process import Process, Thread
from coldframe.windows.wow64 import SOURCE

_SLOT = 1
"""WOW64_TLS_CPURESERVED."""
_CONTEXT = 4
_MACHINES = (0, 0x14C)
"""None told, or IMAGE_FILE_MACHINE_I386: an ARM simulator's context is another one."""
_REGISTERS = {"rbp": 0xB4, "rip": 0xB8, "rsp": 0xC4}
"""Ebp, Eip and Esp in WOW64_CONTEXT."""
CODE32 = 0x23
"""KGDT64_R3_CMCODE with the privilege level of user mode: the selector of 32-bit code."""


def context32(process: Process, thread: Thread, memory: ReadsMemory) -> dict[str, int] | None:
    """rip, rsp and rbp with which `thread` goes on in 32-bit code; None where it is no WOW64 thread, or not in RAM."""
    guest = process.guest
    try:
        teb = thread.teb
        if not teb or not process.wow64:
            return None
        place = teb + guest.types.offset("_TEB", "TlsSlots") + _SLOT * guest.types.pointer_size
        data = int.from_bytes(memory.read(place, guest.types.pointer_size), "little")
        if not data or int.from_bytes(memory.read(data + 2, 2), "little") not in _MACHINES:
            return None
        found = {
            name: int.from_bytes(memory.read(data + _CONTEXT + at, 4), "little") for name, at in _REGISTERS.items()
        }
    except ColdframeError:
        return None
    return found if found["rip"] and found["rsp"] else None


def is_code32(state: Mapping[str, int], process: Process | None, thread: Thread | None) -> bool:
    """Whether control, at `state`, is in 32-bit code of a WOW64 process.

    By the code segment where `state` has it; else by that of the thread's trap frame, or by the modules: the program
    itself is in both loaders' lists, and wow64cpu.dll, a 64-bit module, has a few instructions of 32-bit code.
    """
    rip = state["rip"]
    try:
        if process is None or rip >> 32 or not process.wow64:
            return False
        if state.get("cs"):
            return state["cs"] == CODE32
        frame = None if thread is None else thread.trap_frame
        if frame is not None and frame.integer("Rip") == rip:
            return frame.integer("SegCs") == CODE32
        return any(module.source == SOURCE and rip in module for module in process.modules)
    except ColdframeError:
        return False


def word_size(guest: Guest, registers: Mapping[str, int]) -> int:
    """Bytes of a word of stack for the code that a vCPU executes: 4 in 32-bit code of a 64-bit guest too."""
    return 4 if registers.get("cs") == CODE32 else guest.types.pointer_size
