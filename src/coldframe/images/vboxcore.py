"""The notes of VirtualBox' ELF cores (`VBoxManage debugvm dumpvmcore`): what each virtual processor's registers are.

Format: VirtualBox' `include/VBox/vmm/dbgfcorefmt.h`, DBGFCOREDESCRIPTOR and DBGFCORECPU.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

FORMAT = "ELF core (VirtualBox)"
_CORE, _CPU = 0xB00, 0xB01
_MAGIC = 0xC01AC0DE
_OLD_VERSION = 0x10000  # its CPU notes are VirtualBox' own CPUMCTX, of which nothing is documented
_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rsp", "rbp", "eflags"),
)
_SELECTORS = ("cs", "ds", "es", "fs", "gs", "ss")
# Registers; selectors (base, limit, attributes, selector); CR0 CR2 CR3 CR4; DR0-7; GDTR, IDTR; LDTR, TR; SYSENTER's
# MSRs; EFER STAR PAT LSTAR CSTAR SFMASK KernelGSBase ApicBase.
_STATE = struct.Struct("<18Q" + "QIIH6x" * 6 + "4Q" + "8Q" + "QI4x" * 2 + "QIIH6x" * 2 + "3Q" + "8Q")


def registers(notes: Sequence[tuple[bytes, int, bytes]]) -> Sequence[Mapping[str, int]] | None:
    """The registers in notes (owner, type, content), one mapping a processor; None where none is VirtualBox'."""
    cores = [body for owner, kind, body in notes if owner == b"VBCORE" and kind == _CORE and len(body) >= 8]
    if not cores:
        return None
    magic, version = struct.unpack_from("<II", cores[0])
    if magic != _MAGIC or version <= _OLD_VERSION:
        return ()
    return [_state(b) for owner, kind, b in notes if owner == b"VBCPU" and kind == _CPU and len(b) >= _STATE.size]


def _state(note: bytes) -> Mapping[str, int]:
    values = _STATE.unpack_from(note)
    found = dict(zip(_GENERAL, values[:18], strict=True))
    for number, name in enumerate(_SELECTORS):
        base, _, _, selector = values[18 + 4 * number : 22 + 4 * number]
        found |= {name: selector, f"{name}_base": base}
    found |= zip(("cr0", "cr2", "cr3", "cr4"), values[42:46], strict=True)
    found |= zip(("gdt_base", "gdt_limit", "idt_base", "idt_limit"), values[54:58], strict=True)
    found |= {"efer": values[69], "lstar": values[72], "k_gs_base": values[75]}
    return found
