"""The whole state of one processor of a live guest, also what no debugger's protocol shows: its model-specific
registers.

A stock QEMU tells general and vector registers through the gdbstub, descriptors and debug registers through its
monitor, and neither STAR, LSTAR nor PAT: those the guest's processor reads itself (`modelspecific`).
The processor's clock goes on by some microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from coldframe.debug.modelspecific import BY_PROCESSOR, RDMSR, executed, find_code, kernel_mode
from coldframe.errors import CapabilityError
from coldframe.images.wtf import SEGMENTS, ProcessorState, Segment, tag_word

if TYPE_CHECKING:
    from coldframe.debug.live import LiveGuest

_RDTSC, _XGETBV = b"\x0f\x31", b"\x0f\x01\xd0"
_OSXSAVE = 1 << 18  # CR4
_MXCSR_MASK = 0xFFFF  # every 64-bit processor has DAZ: SDM volume 1, 11.6.6

_SEGMENT = re.compile(r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)", re.MULTILINE)
_TABLE = re.compile(r"^(GDT|IDT)= *([0-9a-f]+) ([0-9a-f]+)", re.MULTILINE)
_NUMBER = re.compile(r"\b(CR2|DR[0-7])=([0-9a-f]+)")
_TAGS = re.compile(r"\bFTW=([0-9a-f]+)")
_VECTOR = re.compile(r"\b([XYZ])MM(\d+)=((?: ?[0-9a-f]{16})+)")


def processor_state(guest: LiveGuest, vcpu: int = 0) -> ProcessorState:
    """Everything of `vcpu`; the guest must be paused, and stands as it stood afterwards.

    Raises `CapabilityError` where the kernel has no RDMSR in RAM, or the processor does not carry it out.
    """
    registers = guest.registers(vcpu)
    text = _monitor(guest, vcpu)
    plain = {name: registers[name] for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rip", "rsp", "rbp")}
    plain |= {f"r{number}": registers[f"r{number}"] for number in range(8, 16)}
    plain |= {name: registers[name] for name in ("cr0", "cr3", "cr4", "cr8", "efer", "mxcsr")}
    plain |= {"rflags": registers["eflags"], "kernel_gs_base": registers["k_gs_base"], "mxcsr_mask": _MXCSR_MASK}
    plain |= {"fpcw": registers["fctrl"], "fpsw": registers["fstat"], "fpop": registers["fop"]}
    plain |= {"cr2": 0, **{f"dr{number}": 0 for number in (0, 1, 2, 3, 6, 7)}}
    plain |= {name.lower(): int(value, 16) for name, value in _NUMBER.findall(text)}
    stack = [(registers[f"st{number}"] & (1 << 64) - 1, registers[f"st{number}"] >> 64) for number in range(8)]
    tags = _TAGS.search(text)
    plain["fptw"] = tag_word(int(tags[1], 16) if tags else 0, registers["fstat"] >> 11 & 7, stack)
    plain |= _model_specific(guest, vcpu, registers)
    return ProcessorState(plain, _segments(text), _tables(text), stack, _vectors(text, registers))


def vector_registers(guest: LiveGuest, vcpu: int) -> dict[str, int]:
    """See `LiveGuest.vector_registers`."""
    registers = guest.registers(vcpu)
    found = {name: registers[name] for name in registers if name.startswith("xmm")}
    for letter, number, words in _VECTOR.findall(_monitor(guest, vcpu)):
        found[f"{letter.lower()}mm{int(number)}"] = int(words.replace(" ", ""), 16)
    return found


def _monitor(guest: LiveGuest, vcpu: int) -> str:
    """The part of `info registers -a` on one vCPU."""
    parts = re.split(r"^CPU#(\d+)", guest.vm.monitor("info registers -a"), flags=re.MULTILINE)
    for number, part in zip(parts[1::2], parts[2::2], strict=True):
        if int(number) == vcpu:
            return part
    raise CapabilityError(f"QEMU's 'info registers -a' shows no vCPU {vcpu}")


def _segments(text: str) -> dict[str, Segment]:
    found = {
        {"LDT": "ldtr"}.get(name, name.lower()): Segment.of_descriptor(*(int(value, 16) for value in values))
        for name, *values in _SEGMENT.findall(text)
    }
    if set(found) != set(SEGMENTS):
        raise CapabilityError(f"QEMU's monitor shows segments {', '.join(found)}, expected {', '.join(SEGMENTS)}")
    return found


def _tables(text: str) -> dict[str, tuple[int, int]]:
    return {f"{name.lower()}r": (int(base, 16), int(limit, 16)) for name, base, limit in _TABLE.findall(text)}


def _vectors(text: str, registers: Mapping[str, int]) -> list[int]:
    """The vector registers, as wide as QEMU shows them; its monitor prints the highest eight bytes first."""
    found = {number: registers.get(f"xmm{number}", 0) for number in range(16)}
    for _, number, words in _VECTOR.findall(text):
        found[int(number)] = int(words.replace(" ", ""), 16)
    return [found.get(number, 0) for number in range(max(found) + 1)]


def _model_specific(guest: LiveGuest, vcpu: int, before: Mapping[str, int]) -> dict[str, int]:
    """The model-specific registers and XCR0, by the processor's own reading."""
    place = find_code(guest, RDMSR)
    if place is None:
        raise CapabilityError("the kernel has no RDMSR in its code that is in RAM, so LSTAR and its kin cannot be read")
    with kernel_mode(guest, vcpu, before):
        found = {name: executed(guest, vcpu, place, len(RDMSR), number) for name, number in BY_PROCESSOR.items()}
        clock = find_code(guest, _RDTSC)
        if clock is not None:  # TCG answers 0 for the counter as a model-specific register
            found["tsc"] = executed(guest, vcpu, clock, len(_RDTSC), 0)
        found["xcr0"] = 1  # at reset; without CR4.OSXSAVE nothing has changed it
        if before["cr4"] & _OSXSAVE:
            reads = find_code(guest, _XGETBV)
            found["xcr0"] = _saved_xcr0(guest) if reads is None else executed(guest, vcpu, reads, len(_XGETBV), 0)
    return found


def _saved_xcr0(guest: LiveGuest) -> int:
    """XCR0 as the kernel keeps it in the boot processor's KPRCB."""
    from coldframe.windows.processor import processor_blocks  # noqa: PLC0415 - seldom wanted

    path = "ProcessorState.SpecialRegisters.Xcr0"
    blocks = processor_blocks(guest)
    if not blocks or not blocks[0].has(path):
        raise CapabilityError("the kernel has no XGETBV in its code that is in RAM, so XCR0 cannot be read")
    return blocks[0].integer(path) or 1
