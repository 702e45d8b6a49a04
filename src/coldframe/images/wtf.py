"""A folder for the snapshot fuzzer wtf: `mem.dmp`, a full crash dump, and `regs.json`, one processor's whole state.

The names in `regs.json` are those that wtf reads (github.com/0vercl0k/wtf, `LoadCpuStateFromJSON` and
`SanitizeCpuState` in src/wtf/utils.cc) and that its companions bdump and snapshot write; every number is a "0x..."
string.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY = "mem.dmp"
REGISTERS = "regs.json"

PLAIN = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rip", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rflags", "tsc", "apic_base", "sysenter_cs", "sysenter_esp", "sysenter_eip", "pat", "efer", "star", "lstar",
    "cstar", "sfmask", "kernel_gs_base", "tsc_aux", "fpcw", "fpsw", "fptw", "fpop", "cr0", "cr2", "cr3", "cr4", "cr8",
    "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "mxcsr", "mxcsr_mask",
)  # fmt: skip
"""The registers that are one number each; wtf reads every one of them."""
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "tr", "ldtr")
TABLES = ("gdtr", "idtr")
VECTORS = 32
"""How many ZMM registers there are."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register: its selector, and what the processor keeps of the descriptor.

    `attr` are bits 40 to 55 of the descriptor (SDM volume 3, figure 3-8): type, S, DPL, P, limit 19:16, AVL, L, D/B, G.
    """

    selector: int
    base: int
    limit: int
    attr: int

    @classmethod
    def of_descriptor(cls, selector: int, base: int, limit: int, high: int) -> Segment:
        """From the upper half of the descriptor. `attr` gets bits 19:16 of the limit, which wtf checks."""
        return cls(selector, base, limit, high >> 8 & 0xF0FF | (limit >> 16 & 0xF) << 8)

    @property
    def present(self) -> bool:
        """Whether the descriptor's P is set."""
        return bool(self.attr & 0x80)


@dataclass(frozen=True, slots=True)
class ProcessorState:
    """One processor: `plain` by the names of `PLAIN`, `segments` of `SEGMENTS`, `tables` of `TABLES` (base, limit).

    `stack` are ST(0) to ST(7) as (fraction, sign and exponent); `vectors` are ZMM registers from 0 on, 64 bytes each.
    """

    plain: Mapping[str, int]
    segments: Mapping[str, Segment]
    tables: Mapping[str, tuple[int, int]]
    stack: Sequence[tuple[int, int]]
    vectors: Sequence[int]

    def document(self) -> dict[str, object]:
        """What `regs.json` holds."""
        held: dict[str, object] = {name: hex(self.plain[name]) for name in PLAIN}
        for name in SEGMENTS:
            segment = self.segments[name]
            held[name] = {
                "present": segment.present,
                "selector": hex(segment.selector),
                "base": hex(segment.base),
                "limit": hex(segment.limit),
                "attr": hex(segment.attr),
            }
        for name in TABLES:
            base, limit = self.tables[name]
            held[name] = {"base": hex(base), "limit": hex(limit)}
        held["fpst"] = [{"fraction": hex(fraction), "exp": hex(exponent)} for fraction, exponent in self.stack]
        vectors = [*self.vectors, *[0] * (VECTORS - len(self.vectors))]
        held["zmm"] = [{"q": [hex(vector >> 64 * part & (1 << 64) - 1) for part in range(8)]} for vector in vectors]
        return held


def write_registers(path: Path, state: ProcessorState) -> None:
    """Write `regs.json` at `path`."""
    path.write_text(json.dumps(state.document(), indent=2) + "\n")


def tag_word(abridged: int, top: int, stack: Sequence[tuple[int, int]]) -> int:
    """The x87 tag word, two bits for each physical register, from FXSAVE's one bit (SDM volume 1, 8.1.7 and 10.5.1).

    `stack` is ST(0) to ST(7); bit n of `abridged` says that physical register n is not empty.
    """
    word = 0
    for number in range(8):
        fraction, exponent = stack[(number - top) % 8]
        if not abridged >> number & 1:
            tag = 3
        elif exponent & 0x7FFF in (0x7FFF, 0) or not fraction >> 63:
            tag = 1 if not fraction and not exponent & 0x7FFF else 2
        else:
            tag = 0
        word |= tag << 2 * number
    return word
