"""Model-specific registers of a vCPU, read and written, also those that no debugger's protocol shows.

QEMU's gdbstub has the segment bases and EFER. The others the guest's processor reads or writes itself: while everything
stands still, its RIP is put on a RDMSR or WRMSR that the kernel has in its code, ECX names the register, one single
step is made, and all registers are put back. No byte of memory changes. Numbers and names: SDM volume 4, table 2-2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coldframe.errors import CapabilityError, UsageError

if TYPE_CHECKING:
    from coldframe.debug.live import LiveGuest

BY_PROCESSOR: Mapping[str, int] = {
    "tsc": 0x10, "apic_base": 0x1B, "sysenter_cs": 0x174, "sysenter_esp": 0x175, "sysenter_eip": 0x176, "pat": 0x277,
    "star": 0xC0000081, "lstar": 0xC0000082, "cstar": 0xC0000083, "sfmask": 0xC0000084, "tsc_aux": 0xC0000103,
}  # fmt: skip
"""What the guest's processor reads itself."""
BY_GDBSTUB: Mapping[str, str] = {
    "efer": "efer", "fs_base": "fs_base", "gs_base": "gs_base", "kernel_gs_base": "k_gs_base",
}  # fmt: skip
"""What the gdbstub tells, under its own name."""
MSRS = (*BY_GDBSTUB, *BY_PROCESSOR)
"""The names that `read_msr` takes."""
_FIXED = ("tsc", "apic_base", "pat")
"""What is not written: a wrong bit there makes the processor fault, or the clock jump."""
_ADDRESSES = ("sysenter_esp", "sysenter_eip", "lstar", "cstar", "fs_base", "gs_base", "kernel_gs_base")
_NARROW = ("sfmask", "sysenter_cs", "tsc_aux")
RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"
_KERNEL_CODE, _KERNEL_DATA = 0x10, 0x18  # KGDT64_R0_CODE, KGDT64_R0_DATA of every x64 NT
_EXECUTABLE = 0x2000_0000  # IMAGE_SCN_MEM_EXECUTE
_PART = 1 << 16


def read_msr(guest: LiveGuest, name: str, vcpu: int = 0) -> int:
    """The model-specific register `name` of `vcpu`; the guest must be paused, and stands as it stood afterwards.

    Raises `UsageError` with the names that there are, `CapabilityError` where the kernel has no RDMSR in RAM.
    """
    if name in BY_GDBSTUB:
        return guest.registers(vcpu)[BY_GDBSTUB[name]]
    number = _number(name)
    with kernel_mode(guest, vcpu, guest.registers(vcpu)):
        return executed(guest, vcpu, _place(guest, RDMSR, "RDMSR"), len(RDMSR), number)


def write_msr(guest: LiveGuest, name: str, value: int, vcpu: int = 0) -> None:
    """Set the model-specific register `name` of `vcpu`, which the guest notices as soon as it uses it.

    Raises as `read_msr`, and `UsageError` for a value that would make the processor fault; then nothing was written.
    """
    if name in _FIXED:
        raise UsageError(f"{name} is not written: a wrong value there breaks the guest")
    if not 0 <= value < 1 << (32 if name in _NARROW else 64):
        raise UsageError(f"{name} cannot be {value:#x}: it has {32 if name in _NARROW else 64} bits")
    if name in _ADDRESSES and value >> 47 not in (0, (1 << 17) - 1):
        raise UsageError(f"{name} holds an address, and {value:#x} is none that the processor takes")
    if name in BY_GDBSTUB:
        guest.vm.write_registers(vcpu, {BY_GDBSTUB[name]: value})
        return
    number = _number(name)
    with kernel_mode(guest, vcpu, guest.registers(vcpu)):
        executed(guest, vcpu, _place(guest, WRMSR, "WRMSR"), len(WRMSR), number, value=value)


def _number(name: str) -> int:
    if name not in BY_PROCESSOR:
        raise UsageError(f"no model-specific register {name!r}; there are {', '.join(MSRS)}")
    return BY_PROCESSOR[name]


def _place(guest: LiveGuest, code: bytes, name: str) -> int:
    place = find_code(guest, code)
    if place is None:
        raise CapabilityError(f"the kernel has no {name} in its code that is in RAM, so LSTAR and its kin are closed")
    return place


def find_code(guest: LiveGuest, code: bytes) -> int | None:
    """An address of these bytes in the kernel's executable sections. Wherever they are, they decode as what they
    are."""
    image = guest.kernel.image()
    for section in image.sections:
        if not section.characteristics & _EXECUTABLE:
            continue
        start = guest.kernel.base + section.rva
        for offset in range(0, section.size, _PART):
            data, _ = guest.memory.read_padded(start + offset, min(_PART, section.size - offset))
            at = data.find(code)
            if at >= 0:
                return start + offset + at
    return None


@contextmanager
def kernel_mode(guest: LiveGuest, vcpu: int, before: Mapping[str, int]) -> Iterator[None]:
    """The vCPU in kernel mode on the kernel's tables; on leaving, all registers as they were."""
    restored = {name: before[name] for name in ("rax", "rcx", "rdx", "rip", "eflags")}
    changed: dict[str, int] = {}
    if before["cs"] & 3:
        changed = {"ss": _KERNEL_DATA, "cs": _KERNEL_CODE, "cr3": guest.dtb}
        restored = {"cr3": before["cr3"], "cs": before["cs"], "ss": before["ss"], **restored}
    with guest.vm.control.borrowed():
        try:
            guest.vm.write_registers(vcpu, changed)
            yield
        finally:
            guest.vm.write_registers(vcpu, restored)


def executed(guest: LiveGuest, vcpu: int, place: int, length: int, number: int, *, value: int = 0) -> int:
    """EDX:EAX after the instruction at `place` with ECX = `number` and EDX:EAX = `value`."""
    given = {"rcx": number, "rax": value & 0xFFFF_FFFF, "rdx": value >> 32, "rip": place}
    guest.vm.write_registers(vcpu, given)
    guest.vm.step(vcpu)
    after = guest.vm.registers(vcpu)
    if after["rip"] != place + length:
        raise CapabilityError(f"the processor did not take its register {number:#x}: it went to {after['rip']:#x}")
    return (after["rdx"] & 0xFFFF_FFFF) << 32 | after["rax"] & 0xFFFF_FFFF
