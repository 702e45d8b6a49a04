"""Taking a vCPU past the breakpoint it stands on without a step: the instruction is carried out from outside.

A step costs the guest a second stop; the registers and bytes that the instruction would write go into the guest in the
same write that lets it run, so a hit costs one stop and two round trips. The breakpoint stays set throughout, so no
other vCPU slips past.
"""

from __future__ import annotations

from coldframe.memory import PhysicalMemory
from coldframe.qemu.arrivals import LONGEST_INSTRUCTION
from coldframe.qemu.emulation import Emulated, NotOursError, State, compile_instruction
from coldframe.qemu.gdbstub import GdbStub
from coldframe.qemu.reach import Reach
from coldframe.qemu.registers import Registers

_TRAP_FLAG = 1 << 8
_LONG_MODE = 1 << 10  # EFER.LMA
_USER_CODE_64 = 0x33
_KERNEL_HALF = 1 << 63
_MOST_KEPT = 4096


class Passing:
    """Knows the instructions under breakpoints and what they do.

    `physical` None means that memory is not to be reached quickly: then nothing is carried out here.
    """

    def __init__(self, stub: GdbStub, physical: PhysicalMemory | None) -> None:
        self._stub = stub
        self._physical = physical
        self._known: dict[int, tuple[bytes, Emulated | None]] = {}

    def packets(self, vcpu: int, registers: Registers) -> list[bytes] | None:
        """The packets that carry out the instruction at RIP and leave the vCPU behind it; None where they cannot.

        Each is answered by `OK`.
        """
        if self._physical is None or registers["eflags"] & _TRAP_FLAG or not _in_64_bit_mode(registers):
            return None
        address = registers["rip"]
        state = State(registers, reach := Reach(self._physical, registers))
        try:
            emulated = self._instruction(address, reach.code(address, LONGEST_INSTRUCTION))
            if emulated is None:
                return None
            emulated.act(state)
        except NotOursError:
            return None
        state.written["rip"] = (address + emulated.size) % (1 << 64)
        return [
            *self._stub.selecting(vcpu),
            *(self._stub.write_virtual_request(at, data) for at, data in state.stored),
            *(self._stub.write_register_request(name, value) for name, value in state.written.items()),
        ]

    def _instruction(self, address: int, code: bytes) -> Emulated | None:
        """What `code`, which lies at `address` now, does; another process may have other code there."""
        known = self._known.get(address)
        if known is None or known[0] != code:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            known = self._known[address] = (code, compile_instruction(code, address))
        return known[1]


def _in_64_bit_mode(registers: Registers) -> bool:
    """Windows runs 64-bit user code with selector 0x33; other user code may be 32-bit (compatibility mode)."""
    if not registers["efer"] & _LONG_MODE:
        return False
    return bool(registers["rip"] & _KERNEL_HALF) or registers["cs"] & 3 == 0 or registers["cs"] == _USER_CODE_64
