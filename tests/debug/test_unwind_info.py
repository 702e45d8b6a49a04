"""Unwind data is read as llvm-readobj reads it, and nonsense in it does no harm."""

from __future__ import annotations

import re
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.debug.epilogue import rest_of_epilogue
from coldframe.debug.unwind import unwind_frame
from coldframe.debug.unwind_info import REGISTERS, FunctionTable, Op, parse_unwind_info
from coldframe.errors import FormatError, UnreadableMemoryError
from debug.programs import PAGE, SparseMemory, build
from debug.test_unwind_execution import ASM, CHKSTK, C

BASE = 0xFFFFF80000000000
CODE, INFO, PDATA = 0x1000, 0x2000, 0x3000
STACK = 0xFFFFF90000010000


def image(functions: list[tuple[int, int, bytes]], code: bytes = b"\x90") -> SparseMemory:
    """A mapped image with those functions: (begin, end, UNWIND_INFO), RVAs from `CODE` on."""
    memory = SparseMemory()
    header = bytearray(PAGE)
    header[:2] = b"MZ"
    struct.pack_into("<I", header, 0x3C, 0x80)
    header[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", header, 0x84, 0x8664, 0, 0, 0, 0, 240, 0x22)
    optional = 0x98
    struct.pack_into("<H", header, optional, 0x20B)
    struct.pack_into("<I", header, optional + 56, 0x8000)
    struct.pack_into("<I", header, optional + 108, 16)
    struct.pack_into("<II", header, optional + 112 + 24, PDATA, 12 * len(functions))
    memory.write(BASE, bytes(header))
    memory.write(BASE + CODE, code.ljust(PAGE, b"\xcc"))
    at = INFO
    memory.write(BASE + INFO, bytes(PAGE))
    for number, (begin, end, info) in enumerate(functions):
        memory.write(BASE + at, info)
        memory.write(BASE + PDATA + 12 * number, struct.pack("<III", begin, end, at))
        at += (len(info) + 3) & ~3
    return memory


def codes(*words: tuple[int, int, int] | int) -> bytes:
    return b"".join(
        struct.pack("<H", word) if isinstance(word, int) else bytes([word[0], word[1] | word[2] << 4]) for word in words
    )


def info(
    data: bytes, *, version: int = 1, flags: int = 0, prologue: int = 0, frame: int = 0, tail: bytes = b""
) -> bytes:
    count = len(data) // 2
    return bytes([version | flags << 3, prologue, count, frame]) + data + bytes(2 * (count & 1)) + tail


def registers(**values: int) -> dict[str, int]:
    return dict.fromkeys(REGISTERS, 0) | {"rip": BASE + CODE, "rsp": STACK} | values


def push(memory: SparseMemory, *values: int) -> None:
    memory.write(STACK, b"".join(value.to_bytes(8, "little") for value in values))


READOBJ_OPS = {
    "PUSH_NONVOL": Op.PUSH_NONVOL,
    "ALLOC_SMALL": Op.ALLOC_SMALL,
    "ALLOC_LARGE": Op.ALLOC_LARGE,
    "SET_FPREG": Op.SET_FPREG,
    "SAVE_NONVOL": Op.SAVE_NONVOL,
    "SAVE_NONVOL_FAR": Op.SAVE_NONVOL_FAR,
    "SAVE_XMM128": Op.SAVE_XMM128,
    "SAVE_XMM128_FAR": Op.SAVE_XMM128_FAR,
    "PUSH_MACHFRAME": Op.PUSH_MACHFRAME,
}
MACHINE_FRAMES = """
    .globl interrupt
    .seh_proc interrupt
interrupt:
    .seh_pushframe
    pushq %rbx
    .seh_pushreg %rbx
    .seh_endprologue
    popq %rbx
    iretq
    .seh_endproc
    .globl fault
    .seh_proc fault
fault:
    .seh_pushframe @code
    subq $64, %rsp
    .seh_stackalloc 64
    .seh_endprologue
    addq $72, %rsp
    swapgs
    iretq
    .seh_endproc
"""


def readobj_codes(path) -> list[list[tuple[int, Op, str]]]:
    """For each function in order, (offset, op, operands) as llvm-readobj prints them."""
    text = subprocess.run(["llvm-readobj", "--unwind", path], check=True, capture_output=True, text=True).stdout
    return [
        [(int(offset, 16), READOBJ_OPS[op], rest) for offset, op, rest in
         re.findall(r"0x([0-9A-F]+): ([A-Z_0-9]+)(.*)", function)]
        for function in text.split("RuntimeFunction {")[1:]
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["compiled", "assembled", "machine frames"])
def test_unwind_codes_are_those_that_llvm_readobj_prints(tmp_path, what):
    program = {
        "compiled": lambda: build(tmp_path, c=C, asm=CHKSTK),
        "assembled": lambda: build(tmp_path, asm=ASM, entry="assembly_entry"),
        "machine frames": lambda: build(tmp_path, asm=MACHINE_FRAMES, entry="interrupt"),
    }[what]()
    table = FunctionTable(program.memory(), program.base)
    theirs = readobj_codes(program.path)
    assert len(table) == len(theirs) > 1
    for index, expected in enumerate(theirs):
        parsed = table.info(table[index])
        assert [(code.offset, code.op) for code in parsed.codes] == [(offset, op) for offset, op, _ in expected]
        for code, (_, op, operands) in zip(parsed.codes, expected, strict=True):
            number = re.search(r"(?:size|offset)=(0x[0-9A-F]+|\d+)", operands)
            if number is not None and op is not Op.SET_FPREG:
                assert code.value == int(number[1], 0)
            register = re.search(r"reg=(\w+)", operands)
            if register is not None and op is not Op.SET_FPREG:
                name = register[1].lower()
                assert code.info == (int(name[3:]) if name.startswith("xmm") else REGISTERS.index(name))
            if op is Op.SET_FPREG and number is not None:
                assert parsed.frame_offset == int(number[1], 0)
            if op is Op.PUSH_MACHFRAME:
                assert bool(code.info) == ("yes" in operands)


@pytest.mark.parametrize("with_error_code", [False, True])
@pytest.mark.parametrize("user", [False, True])
def test_a_machine_frame_gives_rip_and_rsp_and_says_where_it_returns_to(with_error_code, user):
    data = codes((1, Op.PUSH_NONVOL, 3), (0, Op.PUSH_MACHFRAME, int(with_error_code)))
    memory = image([(CODE, CODE + 0x20, info(data, prologue=1))], code=b"\x53" + b"\x90" * 31)
    frame = [0x7FF612340010, 0x33 if user else 0x10, 0x246, 0x14F000, 0x2B]
    push(memory, 0xB, *([6] if with_error_code else []), *frame)
    unwound = unwind_frame(FunctionTable(memory, BASE), memory, registers(rip=BASE + CODE + 8))
    assert (unwound.how, unwound.user) == ("machine frame", user)
    assert unwound.registers["rip"] == 0x7FF612340010
    assert unwound.registers["rsp"] == 0x14F000
    assert unwound.registers["rbx"] == 0xB


def test_in_front_of_its_iretq_a_handler_has_only_the_machine_frame_left():
    data = codes((4, Op.ALLOC_SMALL, 7), (0, Op.PUSH_MACHFRAME, 1))
    code = b"\x48\x83\xec\x40" + b"\x90" * 4 + b"\x48\x83\xc4\x48\x0f\x01\xf8\x48\xcf"
    memory = image([(CODE, CODE + len(code), info(data, prologue=4))], code=code)
    for rip, slots in ((CODE + 6, 9), (CODE + 8, 9), (CODE + 12, 0), (CODE + 15, 0)):
        push(memory, *[0xAA] * slots, 0x401000, 0x33, 0x202, 0x7000, 0x2B)
        unwound = unwind_frame(FunctionTable(memory, BASE), memory, registers(rip=BASE + rip))
        assert (unwound.registers["rip"], unwound.registers["rsp"]) == (0x401000, 0x7000), hex(rip)
        assert unwound.user


def version_2(memory_code: bytes, *epilogue: tuple[int, int, int]) -> SparseMemory:
    data = codes(*epilogue, (7, Op.ALLOC_SMALL, 3), (3, Op.PUSH_NONVOL, 12), (1, Op.PUSH_NONVOL, 3))
    return image([(CODE, CODE + len(memory_code), info(data, version=2, prologue=7))], code=memory_code)


# push rbx; push r12; sub rsp, 32; nop; add rsp, 32; [pop r12; pop rbx; ret]; int3...
V2_CODE = b"\x53\x41\x54\x48\x83\xec\x20" + b"\x90" + b"\x48\x83\xc4\x20" + b"\x41\x5c\x5b\xc3"


@pytest.mark.parametrize("position", ["at the end", "before the end"])
def test_version_2_tells_the_epilogues_by_offsets(position):
    if position == "at the end":
        memory = version_2(V2_CODE, (4, Op.EPILOG, 1), (0, Op.EPILOG, 0))
    else:
        memory = version_2(V2_CODE + b"\x90" * 0x10, (4, Op.EPILOG, 0), (0x14, Op.EPILOG, 0))
    table = FunctionTable(memory, BASE)
    left = {7: (32, 12, 3), 8: (32, 12, 3), 12: (0, 12, 3), 14: (0, None, 3), 15: (0, None, None)}
    for offset, (space, r12, rbx) in left.items():
        slots = [0] * (space // 8) + [value for value in (r12, rbx) if value] + [BASE + 0x1234]
        push(memory, *slots)
        unwound = unwind_frame(table, memory, registers(rip=BASE + CODE + offset, rbx=33, r12=1212))
        assert unwound.registers["rip"] == BASE + 0x1234, offset
        assert unwound.registers["rsp"] == STACK + 8 * len(slots)
        assert unwound.registers["r12"] == (r12 or 1212)
        assert unwound.registers["rbx"] == (rbx or 33)
        assert unwound.how == ("epilogue" if offset >= 12 else "unwind data")


def test_a_version_2_epilogue_needs_no_instruction_bytes():
    memory = version_2(V2_CODE, (4, Op.EPILOG, 1), (0, Op.EPILOG, 0))
    del memory.pages[(BASE + CODE) // PAGE]
    push(memory, 5, BASE + 0x1234)
    unwound = unwind_frame(FunctionTable(memory, BASE), memory, registers(rip=BASE + CODE + 14))
    assert unwound.registers["rbx"] == 5


def test_a_large_frame_offset_is_taken_from_its_code():
    data = codes((8, Op.SET_FPREG_LARGE, 0), 0x20, 0, (1, Op.PUSH_NONVOL, 5))
    memory = image([(CODE, CODE + 0x40, info(data, prologue=8, frame=0xF5))])
    push(memory, 0x55, BASE + 0x1234)
    unwound = unwind_frame(
        FunctionTable(memory, BASE), memory, registers(rip=BASE + CODE + 0x10, rsp=STACK - 0x500, rbp=STACK + 0x200)
    )
    assert (unwound.registers["rip"], unwound.registers["rbp"]) == (BASE + 0x1234, 0x55)


def test_a_function_table_that_is_partly_in_ram_is_searched_entry_by_entry():
    functions = [(CODE + 8 * number, CODE + 8 * number + 8, info(b"")) for number in range(500)]
    memory = image(functions)
    del memory.pages[(BASE + PDATA) // PAGE + 1]
    table = FunctionTable(memory, BASE)
    assert len(table) == 500
    with pytest.raises(UnreadableMemoryError):
        table.find(CODE + 8 * 499)
    found = table.find(CODE + 8 * 10 + 3)
    assert found is not None and found.begin == CODE + 8 * 10


def test_a_chain_that_bites_its_tail_is_refused():
    loop = info(b"", flags=4, tail=struct.pack("<III", CODE, CODE + 0x10, INFO))
    memory = image([(CODE, CODE + 0x10, loop)])
    push(memory, BASE + 0x1234)
    with pytest.raises(FormatError, match="chained"):
        unwind_frame(FunctionTable(memory, BASE), memory, registers(rip=BASE + CODE + 4))


@pytest.mark.parametrize("version", [0, 3, 7])
def test_unknown_versions_are_named(version):
    memory = image([(CODE, CODE + 0x10, info(b"", version=version))])
    with pytest.raises(FormatError, match=f"version {version}"):
        unwind_frame(FunctionTable(memory, BASE), memory, registers())


@settings(deadline=None)  # a loaded machine
@given(st.binary(min_size=4, max_size=600), st.integers(0, 0x40))
def test_no_unwind_data_does_harm(data, into):
    memory = image([(CODE, CODE + 0x40, data)])
    push(memory, *range(64))
    state = registers(rip=BASE + CODE + into, rbp=STACK)
    try:
        parse_unwind_info(memory, BASE + INFO)
        unwind_frame(FunctionTable(memory, BASE), memory, state)
    except (FormatError, UnreadableMemoryError):
        pass


@given(st.binary(max_size=64), st.integers(0, 15))
def test_no_code_makes_reading_an_epilogue_fail(code, frame_register):
    rest = rest_of_epilogue(code, frame_register, lambda displacement: displacement > 0)
    assert rest is None or len(rest.pops) <= 16


JUMPS = {
    "a jump within the function": (b"\xeb\x02\x90\x90\xc3", False),
    "a jump out of it": (b"\xe9\x00\x10\x00\x00", True),
    "a jump to an import": (b"\xff\x25\x00\x00\x00\x00", True),
    "a jump through a register, marked": (b"\x48\xff\xe0", True),
    "a jump through a register, not marked (a switch)": (b"\xff\xe0", False),
    "a return": (b"\xc3", True),
    "a return that drops arguments": (b"\xc2\x08\x00", True),
    "rep ret": (b"\xf3\xc3", True),
    "bnd ret": (b"\xf2\xc3", True),
    "a nop": (b"\x90", False),
}


@pytest.mark.parametrize("name", JUMPS)
def test_what_ends_an_epilogue(name):
    end, ends = JUMPS[name]
    code = b"\x48\x83\xc4\x20\x5b\x41\x5c" + end
    rest = rest_of_epilogue(code, 0, lambda displacement: displacement > 0x100)
    assert (rest is not None) == ends
    if rest is not None:
        assert rest.pops == (3, 12)
        assert rest.release is not None and rest.release.amount == 32
