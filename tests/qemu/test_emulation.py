"""An instruction carried out from outside leaves registers, flags and memory as the processor (unicorn's) does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import unicorn
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from coldframe.qemu.emulation import Emulated, NotOursError, State, compile_instruction
from coldframe.qemu.registers import GENERAL

CODE, STACK = 0x10000, 0x7F0000
NAMES = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in GENERAL}
STATUS = 0x8D5
PAGE = 0x1000


def content(address: int) -> bytes:
    """What memory holds at first."""
    return bytes((at * 167 + (at >> 8) * 13 + 5) & 0xFF for at in range(address, address + PAGE))


class Pages:
    """Memory that is all there, but not above the last address."""

    def read(self, address: int, size: int) -> int:
        if address % PAGE + size > PAGE:
            raise NotOursError
        offset = address % PAGE
        return int.from_bytes(content(address - offset)[offset : offset + size], "little")

    def check_write(self, address: int, size: int) -> None:
        if address % PAGE + size > PAGE:
            raise NotOursError


class Processor:
    """One instruction run by unicorn; `pages` are those that it touched."""

    def __init__(self, code: bytes, registers: dict[str, int]) -> None:
        self.engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.engine.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        self.pages: set[int] = set()
        self.engine.mem_map(CODE, PAGE)
        self.engine.mem_write(CODE, code)
        self.engine.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self._bring_in)
        for name, value in registers.items():
            self.engine.reg_write(NAMES[name] if name != "eflags" else x86.UC_X86_REG_EFLAGS, value)

    def _bring_in(self, engine: unicorn.Uc, _access: int, address: int, _size: int, _value: int, _: Any) -> bool:
        page = address & ~(PAGE - 1)
        engine.mem_map(page, PAGE)
        engine.mem_write(page, content(page))
        self.pages.add(page)
        return True

    def step(self, size: int) -> None:
        self.engine.emu_start(CODE, CODE + size, count=1)

    def registers(self) -> dict[str, int]:
        return {name: self.engine.reg_read(number) for name, number in NAMES.items()}

    def changes(self) -> Iterator[tuple[int, int]]:
        for page in self.pages:
            for offset, (now, then) in enumerate(zip(self.engine.mem_read(page, PAGE), content(page), strict=True)):
                if now != then:
                    yield page + offset, now


def agree(code: bytes, emulated: Emulated, registers: dict[str, int]) -> None:
    """Run both and compare."""
    state = State(registers, Pages())
    try:
        emulated.act(state)
    except NotOursError:
        return
    processor = Processor(code, registers)
    processor.step(emulated.size)
    assert processor.engine.reg_read(x86.UC_X86_REG_RIP) == CODE + emulated.size
    flags = state.written.pop("eflags", registers["eflags"])
    assert processor.registers() == {name: registers[name] for name in GENERAL} | state.written
    assert processor.engine.reg_read(x86.UC_X86_REG_EFLAGS) & STATUS == flags & STATUS
    stored = {address + at: byte for address, data in state.stored for at, byte in enumerate(data)}
    changed = dict(processor.changes())
    assert changed.items() <= stored.items()
    for address, byte in stored.items():
        assert processor.engine.mem_read(address, 1)[0] == byte


PROLOGUES = {
    "48895c2408": "mov [rsp+8],rbx",
    "48 89 4c 24 08": "mov [rsp+8],rcx",
    "44 89 44 24 18": "mov [rsp+18h],r8d",
    "66 89 54 24 10": "mov [rsp+10h],dx",
    "88 4c 24 08": "mov [rsp+8],cl",
    "40 53": "push rbx",
    "41 57": "push r15",
    "55": "push rbp",
    "54": "push rsp",
    "48 8b c4": "mov rax,rsp",
    "4c 8b dc": "mov r11,rsp",
    "48 83 ec 28": "sub rsp,28h",
    "48 81 ec 88 00 00 00": "sub rsp,88h",
    "33 c0": "xor eax,eax",
    "45 33 c9": "xor r9d,r9d",
    "b8 01 00 00 00": "mov eax,1",
    "48 8d 05 10 00 00 00": "lea rax,[rip+10h]",
    "0f b6 c1": "movzx eax,cl",
    "48 63 c2": "movsxd rax,edx",
    "48 85 c9": "test rcx,rcx",
    "83 fa 02": "cmp edx,2",
    "f3 0f 1e fa": "endbr64",
    "0f 1f 44 00 00": "nop dword [rax+rax]",
    "f0 48 ff 07": "lock inc qword [rdi]",
    "48 8b 41 10": "mov rax,[rcx+10h]",
    "5b": "pop rbx",
    "5c": "pop rsp",
    "c6 41 05 7f": "mov byte [rcx+5],7fh",
}


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for code, name in PROLOGUES.items()])
def test_first_instructions_of_functions_are_carried_out(code: str) -> None:
    registers = {name: 0x123456780 + 0x11110 * number for number, name in enumerate(GENERAL)}
    registers |= {"rsp": STACK, "eflags": 0x246}
    emulated = compile_instruction(bytes.fromhex(code), CODE)
    assert emulated is not None
    assert emulated.size == len(bytes.fromhex(code))
    agree(bytes.fromhex(code), emulated, registers)


OTHERS = {
    "c3": "ret",
    "e8 00 00 00 00": "call",
    "eb fe": "jmp to itself",
    "cc": "int3",
    "f3 48 ab": "rep stosq",
    "0f 22 d8": "mov cr3,rax",
    "8e d8": "mov ds,eax",
    "0f 01 f8": "swapgs",
    "0f 05": "syscall",
    "9c": "pushfq",
    "88 e0": "mov al,ah",
    "67 48 8b 01": "mov rax,[ecx]",
    "ff": "nothing known",
}


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for code, name in OTHERS.items()])
def test_what_does_more_is_left_to_the_processor(code: str) -> None:
    assert compile_instruction(bytes.fromhex(code), CODE) is None


PREFIXES = st.sampled_from([b"", b"\x66", b"\xf0", *(bytes([rex]) for rex in range(0x40, 0x50))])
OPCODES = st.sampled_from(
    [bytes([first + low]) for first in range(0, 0x40, 8) for low in range(6)]
    + [
        bytes([code])
        for code in (*range(0x50, 0x60), 0x63, 0x68, 0x6A, 0x80, 0x81, 0x83, 0x84, 0x85, *range(0x88, 0x90))
    ]
    + [bytes([code]) for code in (*range(0xB0, 0xC0), 0xC6, 0xC7, 0xFE, 0xFF, 0xA8, 0xA9)]
    + [b"\x0f" + bytes([code]) for code in (0x1F, 0xB6, 0xB7, 0xBE, 0xBF)]
)
VALUES = (
    st.integers(0, (1 << 64) - 1)
    | st.integers(0, 0x7FFF_FFFF)
    | st.sampled_from([0, 1, 0x7F, 0x80, 0x8000_0000, -1 % (1 << 64), 1 << 63])
)


@settings(max_examples=600, deadline=None)
@given(
    PREFIXES,
    OPCODES,
    st.binary(min_size=10, max_size=10),
    st.lists(VALUES, min_size=16, max_size=16),
    st.integers(0, STATUS),
)
@example(b"", b"\x04", b"\x80" + bytes(9), [0x80] * 16, 0)
def test_any_instruction_does_what_the_processor_does(
    prefix: bytes, opcode: bytes, rest: bytes, values: list[int], flags: int
) -> None:
    code = prefix + opcode + rest
    emulated = compile_instruction(code, CODE)
    assume(emulated is not None)
    assert emulated is not None
    registers = dict(zip(GENERAL, values, strict=True)) | {"rsp": STACK + 8 * (values[7] % 256)}
    registers["eflags"] = 0x202 | flags & STATUS
    try:
        agree(code, emulated, registers)
    except unicorn.UcError:  # an address that is not canonical, a LOCK that is not allowed
        assume(False)
