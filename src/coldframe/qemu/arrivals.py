"""What stops a guest, and how an arrival at a breakpoint is told from the same one coming back.

An instruction under a breakpoint may be started more than once: it faults and runs again, an interrupt comes first, or
QEMU ends a single step before the instruction. The functions here see it in the registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from coldframe.qemu.gdbstub import KINDS
from coldframe.qemu.registers import Registers

LONGEST_INSTRUCTION = 15
"""Bytes of the longest x86 instruction."""

_LONG_MODE_ACTIVE = 1 << 10
_REPEATED = frozenset((0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0x6C, 0x6D, 0x6E, 0x6F))


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a guest stopped.

    `reason` is "breakpoint", "watchpoint", "step", "interrupt" (somebody paused the guest) or "shutdown"; `address` is
    the breakpoint's, or the data's that a watchpoint saw.
    """

    vcpu: int
    reason: str
    address: int | None = None


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A breakpoint that is set: `kind` is a word of `gdbstub.KINDS`, `length` bytes count for watchpoints."""

    address: int
    kind: str = "hardware"
    length: int = 1

    @property
    def packet(self) -> bytes:
        """The packet that sets it."""
        return b"Z%x,%x,%x" % (KINDS[self.kind], self.address, self.length)

    @property
    def removal(self) -> bytes:
        """The packet that removes it."""
        return b"z" + self.packet[1:]

    @property
    def executes(self) -> bool:
        """Whether it stops at code, before the instruction; a watchpoint stops after the access."""
        return self.kind in ("hardware", "software")


@dataclass(slots=True)
class Arrival:
    """A hit that was reported and whose vCPU has not moved since."""

    vcpu: int
    address: int


def is_repeated(code: bytes) -> bool:
    """Whether the instruction is a string instruction with a REP prefix (F2 or F3, other prefixes around it)."""
    if not (b"\xf3" in code[:3] or b"\xf2" in code[:3]):
        return False
    rest = code.lstrip(b"\xf2\xf3\x66\x67\x26\x2e\x36\x3e\x64\x65\x40\x41\x42\x43\x44\x45\x46\x47"
                       b"\x48\x49\x4a\x4b\x4c\x4d\x4e\x4f")  # fmt: skip
    return not rest or rest[0] in _REPEATED


def stays(code: bytes) -> bool:
    """Whether the instruction is a jump to itself."""
    return code.startswith(b"\xeb\xfe")


def goes_to_handler(code: bytes) -> bool:
    """Whether the instruction is an INT or SYSENTER: it goes to a handler that does not come back to it."""
    return code.startswith((b"\xcc", b"\xcd", b"\xf1", b"\x0f\x34"))


def identity(registers: Registers) -> bytes:
    """What is the same when an instruction runs again after its fault: the general registers, RIP and CR3."""
    rip = registers.layout.fields["rip"]
    cr3 = registers.layout.fields.get("cr3")
    tail = registers.raw[cr3.offset : cr3.offset + cr3.size] if cr3 is not None else b""
    return registers.raw[: rip.offset + rip.size] + tail


def entered_handler(address: int, before: Registers, after: Registers) -> bool:
    """Whether the step at `address` ended in an exception or interrupt handler that will return to `address`.

    From user mode: the privilege rose, and not by SYSCALL (which leaves the next address in RCX). In kernel mode: the
    processor aligned RSP to 16 and pushed five values, or six with an error code (SDM volume 3, 6.14.2); in 32-bit
    mode it pushed three or four (6.12.1).
    """
    if before["cs"] & 3 > after["cs"] & 3:
        return not 0 < after["rcx"] - address <= LONGEST_INSTRUCTION
    if any(before[name] != after[name] for name in before.layout.general if name != "rsp"):
        return False
    if not before.get("efer", 0) & _LONG_MODE_ACTIVE:
        return before["rsp"] - after["rsp"] in (12, 16)
    return (before["rsp"] & ~15) - after["rsp"] in (40, 48)
