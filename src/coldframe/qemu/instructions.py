"""The instruction under a breakpoint: its bytes as a vCPU would fetch them now, and what it does to that vCPU."""

from __future__ import annotations

from collections.abc import Mapping

from coldframe.memory import PhysicalMemory
from coldframe.qemu.arrivals import LONGEST_INSTRUCTION
from coldframe.qemu.emulation import Emulated, NotOursError, State, compile_instruction
from coldframe.qemu.gdbstub import GdbStub
from coldframe.qemu.reach import Reach

_TRAP_FLAG = 1 << 8
_LONG_MODE = 1 << 10  # EFER.LMA
_USER_CODE_64 = 0x33
_KERNEL_HALF = 1 << 63
_MOST_KEPT = 4096


class Instructions:
    """Instructions at the RIP of a vCPU of a paused guest, read anew at every hit: processes differ, and code changes.

    `physical` None means that memory is not to be reached quickly: the gdbstub is asked then, once an address space.
    """

    def __init__(self, stub: GdbStub, physical: PhysicalMemory | None) -> None:
        self._stub = stub
        self._physical = physical
        self._compiled: dict[tuple[int, bytes], Emulated | None] = {}
        self._asked: dict[tuple[int, int], bytes] = {}

    def code(self, vcpu: int, registers: Mapping[str, int]) -> bytes:
        """The bytes from RIP on, as many as an instruction can have; fewer where its page ends, none if unreadable."""
        address = registers["rip"]
        if self._physical is not None and registers.get("efer", 0) & _LONG_MODE:
            try:
                return Reach(self._physical, registers).code(address, LONGEST_INSTRUCTION)
            except NotOursError:
                pass
        key = address, registers.get("cr3", 0)
        if key not in self._asked:
            self._asked[key] = self._stub.read_virtual(vcpu, address, LONGEST_INSTRUCTION) or b""
        return self._asked[key]

    def forget(self, address: int) -> None:
        """No breakpoint is at `address` any more."""
        for key in [key for key in self._asked if key[0] == address]:
            del self._asked[key]

    def carried_out(self, registers: Mapping[str, int]) -> State | None:
        """The vCPU after its instruction, RIP included; None where the processor has to carry it out."""
        if self._physical is None or registers["eflags"] & _TRAP_FLAG or not _in_64_bit_mode(registers):
            return None
        address = registers["rip"]
        state = State(registers, reach := Reach(self._physical, registers))
        try:
            emulated = self._compile(address, reach.code(address, LONGEST_INSTRUCTION))
            if emulated is None:
                return None
            emulated.act(state)
        except NotOursError:
            return None
        state.written["rip"] = (address + emulated.size) % (1 << 64)
        return state

    def _compile(self, address: int, code: bytes) -> Emulated | None:
        key = address, code
        if key not in self._compiled:
            if len(self._compiled) >= _MOST_KEPT:
                self._compiled.clear()
            self._compiled[key] = compile_instruction(code, address)
        return self._compiled[key]


def _in_64_bit_mode(registers: Mapping[str, int]) -> bool:
    """Windows runs 64-bit user code with selector 0x33; other user code may be 32-bit (compatibility mode)."""
    if not registers["efer"] & _LONG_MODE:
        return False
    return bool(registers["rip"] & _KERNEL_HALF) or registers["cs"] & 3 == 0 or registers["cs"] == _USER_CODE_64
