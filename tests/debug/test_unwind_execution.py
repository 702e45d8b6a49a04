"""At every instruction that a program executes, unwinding gives what its caller's registers really are.

The program runs in Unicorn. A shadow stack, kept from the calls as they happen, is what the answer is held against.
"""

from __future__ import annotations

import pytest
import unicorn
from unicorn import x86_const as x86

from coldframe.debug.prologue import follows_call, read_prologue, undo_prologue
from coldframe.debug.unwind import unwind_epilogue, unwind_frame
from coldframe.debug.unwind_info import REGISTERS, FunctionTable, Op
from debug.programs import Program, build

NONVOLATILE = ("rbx", "rbp", "rsi", "rdi", "r12", "r13", "r14", "r15")
STACK, STACK_SIZE, SENTINEL = 0x7FFE0000, 0x40000, 0xDEAD0000

C = r"""
typedef unsigned long long u64;
typedef __attribute__((vector_size(16))) double v2;
#define NOINLINE __attribute__((noinline))
volatile u64 sink; volatile double fsink;
int _fltused;
u64 NOINLINE leaf(u64 a) { return a * 3 + sink; }
u64 NOINLINE pushes(u64 a, u64 b, u64 c, u64 d) {
    u64 x = leaf(a), y = leaf(b), z = leaf(c), w = leaf(d);
    return leaf(x ^ y) + leaf(z ^ w) + x + y + z + w + a + b + c + d;
}
u64 NOINLINE large(u64 a) { volatile char buffer[600]; buffer[a & 511] = 1; return leaf(a) + buffer[3] + a; }
u64 NOINLINE huge(u64 a) { volatile u64 buffer[9000]; buffer[a & 511] = a; return pushes(a, 1, 2, 3) + buffer[5]; }
u64 NOINLINE frame_pointer(u64 n) {
    volatile char *p = __builtin_alloca(n); p[0] = 1; p[n - 1] = 2;
    return pushes(n, p[0], p[n - 1], 4) + p[0];
}
double NOINLINE xmm(double a, double b, double c) {
    double x = a * b, y = b * c, z = a * c; u64 k = leaf((u64)a);
    return x + y * z + x * (double)leaf(k) + a * y + b * z + c * (double)leaf(2);
}
double NOINLINE xmm_frame(u64 n, double a, double b) {
    volatile char *p = __builtin_alloca(n); p[n / 2] = 3; double x = a * b;
    return xmm(a, b, p[n / 2]) + x * a + b;
}
u64 NOINLINE recursive(u64 n) { return n < 2 ? leaf(n) : recursive(n - 1) + leaf(n) + recursive(n - 2); }
u64 NOINLINE tail(u64 n) { u64 k = leaf(n) + 1; return n ? pushes(k, n, k, n) : leaf(k); }
u64 NOINLINE switches(u64 n) {
    switch (n) { case 0: return leaf(1); case 1: sink = 3; break; case 2: return pushes(1,2,3,4);
                 case 3: sink++; return tail(2); case 4: return leaf(5) + leaf(6);
                 case 5: return large(n) * 2; default: return 7; }
    return sink;
}
u64 NOINLINE early(u64 n) {
    if (n & 1) return n;
    u64 k = leaf(n) + leaf(n + 1);
    if (k & 4) return k + leaf(k);
    return pushes(k, n, k, n) + k;
}
u64 (*volatile indirect)(u64) = leaf;
u64 NOINLINE indirect_tail(u64 n) { leaf(n); return indirect(n + 1); }
u64 entry(void) {
    u64 total = pushes(1, 2, 3, 4) + large(7) + huge(9) + frame_pointer(100);
    total += frame_pointer(5000) + recursive(4) + tail(0) + tail(1);
    for (u64 n = 0; n < 7; n++) total += switches(n) + early(n);
    fsink = xmm(1.5, 2.5, 3.5) + xmm_frame(64, 1, 2);
    return total + indirect_tail(3);
}
"""

ASM = r"""
    .text
    .globl __chkstk
__chkstk:
    retq

    .globl chained_parent                   # a function in two parts, the second chained to the first
    .seh_proc chained_parent
chained_parent:
    pushq %rbx
    .seh_pushreg %rbx
    subq $64, %rsp
    .seh_stackalloc 64
    .seh_endprologue
    movq %rcx, %rbx
    callq target
    .seh_startchained
    movq %rsi, 32(%rsp)
    .seh_savereg %rsi, 32
    movq %rdi, 40(%rsp)
    .seh_savereg %rdi, 40
    .seh_endprologue
    movq $17, %rsi
    movq $18, %rdi
    callq target
    movq 32(%rsp), %rsi
    movq 40(%rsp), %rdi
    callq target
    jmp 1f
1:  addq $64, %rsp
    popq %rbx
    retq
    .seh_endchained
    .seh_endproc

    .globl far                              # saves far from rsp, an xmm register, a set frame register, pops by lea
    .seh_proc far
far:
    pushq %rbp
    .seh_pushreg %rbp
    pushq %r13
    .seh_pushreg %r13
    subq $0x90008, %rsp
    .seh_stackalloc 0x90008
    leaq 128(%rsp), %rbp
    .seh_setframe %rbp, 128
    movq %r12, 0x90000(%rsp)
    .seh_savereg %r12, 0x90000
    movaps %xmm7, 0x80000(%rsp)
    .seh_savexmm %xmm7, 0x80000
    movaps %xmm6, 64(%rsp)
    .seh_savexmm %xmm6, 64
    .seh_endprologue
    movq $1, %r12
    movq $2, %r13
    xorps %xmm6, %xmm6
    xorps %xmm7, %xmm7
    subq $48, %rsp
    callq target
    movq 0x90000-128(%rbp), %r12
    movaps 0x80000-128(%rbp), %xmm7
    movaps 64-128(%rbp), %xmm6
    leaq 0x90008-128(%rbp), %rsp
    popq %r13
    popq %rbp
    retq
    .seh_endproc

    .globl target
    .seh_proc target
target:
    pushq %rdi
    .seh_pushreg %rdi
    subq $32, %rsp
    .seh_stackalloc 32
    .seh_endprologue
    movq %rsp, %rdi
    nop
    addq $32, %rsp
    popq %rdi
    rep retq
    .seh_endproc

    .globl assembly_entry
    .seh_proc assembly_entry
assembly_entry:
    subq $40, %rsp
    .seh_stackalloc 40
    .seh_endprologue
    callq chained_parent
    callq far
    addq $40, %rsp
    retq
    .seh_endproc
"""
CHKSTK = ".text\n.globl __chkstk\n__chkstk:\n retq\n"


class Emulated:
    """Memory and registers of the emulator, as the unwinder wants them."""

    def __init__(self, program: Program) -> None:
        self.engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.engine.mem_map(program.base, len(program.mapped))
        self.engine.mem_write(program.base, program.mapped)
        self.engine.mem_map(STACK - 0x100000, STACK_SIZE + 0x100000)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.engine.mem_read(address, size))

    def registers(self) -> dict[str, int]:
        names = (*REGISTERS, "rip")
        state = dict(
            zip(
                names,
                self.engine.reg_read_batch([getattr(x86, f"UC_X86_REG_{name.upper()}") for name in names]),
                strict=True,
            )
        )
        for number in (6, 7, 8, 9, 10, 11):
            state[f"xmm{number}"] = self.engine.reg_read(getattr(x86, f"UC_X86_REG_XMM{number}"))
        return state


def check_every_instruction(program: Program, entry: str) -> tuple[int, set[str], set[str]]:
    """Run `entry`; returns how many instructions were checked, the ways of unwinding seen, the functions seen."""
    emulated = Emulated(program)
    table = FunctionTable(emulated, program.base)
    compared = (*NONVOLATILE, *(f"xmm{number}" for number in range(6, 12)))
    shadow: list[dict[str, int]] = []
    hows: set[str] = set()
    functions: set[str] = set()
    problems: list[str] = []
    count = 0

    def on_instruction(engine: unicorn.Uc, address: int, size: int, _: object) -> None:
        nonlocal count
        count += 1
        now = emulated.registers()
        while shadow and shadow[-1]["rsp"] == now["rsp"] and shadow[-1]["rip"] == address:
            shadow.pop()
        functions.add(program.function_at(address))
        state: dict[str, int] = now
        for depth, expected in enumerate(reversed(shadow)):
            unwound = unwind_frame(table, emulated, state, returned_to=depth > 0)
            hows.add(unwound.how)
            wrong = [
                f"{name} {unwound.registers.get(name, 0):#x}, expected {expected[name]:#x}"
                for name in ("rip", "rsp", *compared)
                if unwound.registers.get(name) != expected[name]
            ]
            if wrong:
                problems.append(f"{program.function_at(address)} at {address:#x}, frame {depth}: {'; '.join(wrong)}")
                engine.emu_stop()
                return
            state = dict(unwound.registers)
        code = emulated.read(address, size)
        if code[0] == 0xE8 or (code[0] == 0xFF and code[1] & 0x38 == 0x10) or code[:2] == b"\x41\xff":
            shadow.append(now | {"rip": address + size})

    run(emulated, program, entry, shadow, on_instruction)
    assert not problems, problems[0]
    return count, hows, functions


def run(emulated: Emulated, program: Program, entry: str, shadow: list[dict[str, int]], on_instruction) -> None:
    """Execute `entry` to its end, `on_instruction` being called before every instruction."""
    emulated.engine.hook_add(unicorn.UC_HOOK_CODE, on_instruction)
    start = STACK + STACK_SIZE - 0x1008
    emulated.engine.mem_write(start, SENTINEL.to_bytes(8, "little"))
    for number, name in enumerate(NONVOLATILE):
        emulated.engine.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), 0x1111 * (number + 1))
    for number in range(6, 12):
        emulated.engine.reg_write(getattr(x86, f"UC_X86_REG_XMM{number}"), 0x2222 * (number + 1))
    emulated.engine.reg_write(x86.UC_X86_REG_RSP, start)
    first = emulated.registers() | {"rip": SENTINEL, "rsp": start + 8}
    shadow.append(first)
    emulated.engine.emu_start(program.base + program.symbols[entry], SENTINEL, count=100_000)
    assert emulated.registers()["rip"] == SENTINEL, "the program did not come to its end"


@pytest.mark.parametrize("flags", [("-O2",), ("-O1",), ("-O0",), ("-Os", "-fno-omit-frame-pointer")], ids=" ".join)
def test_the_caller_is_found_at_every_instruction_of_compiled_code(tmp_path, flags):
    program = build(tmp_path, c=C, asm=CHKSTK, flags=flags)
    count, hows, functions = check_every_instruction(program, "entry")
    assert count > 800
    assert hows >= {"leaf", "unwind data", "epilogue"}
    assert functions >= {"frame_pointer", "xmm_frame", "huge", "recursive", "switches", "indirect_tail"}


def test_the_caller_is_found_at_every_instruction_of_chained_and_far_saving_code(tmp_path):
    program = build(tmp_path, asm=ASM, entry="assembly_entry")
    table = FunctionTable(program.memory(), program.base)
    infos = [table.info(table[index]) for index in range(len(table))]
    assert {code.op for info in infos for code in info.codes} >= {
        Op.SAVE_NONVOL, Op.SAVE_NONVOL_FAR, Op.SAVE_XMM128, Op.SAVE_XMM128_FAR, Op.SET_FPREG, Op.ALLOC_LARGE,
    }  # fmt: skip
    assert any(info.chained for info in infos)
    _, hows, functions = check_every_instruction(program, "assembly_entry")
    assert functions >= {"chained_parent", "far", "target"}
    assert "epilogue" in hows


@pytest.mark.parametrize("flags", [("-O2",), ("-O1",), ("-O0",)], ids=" ".join)
def test_the_prologues_instructions_alone_give_the_caller_or_are_refused(tmp_path, flags):
    program = build(tmp_path, c=C, asm=CHKSTK, flags=flags)
    emulated = Emulated(program)
    shadow: list[dict[str, int]] = []
    answers = {"right": 0, "refused": 0, "wrong": 0}

    def on_instruction(engine: unicorn.Uc, address: int, size: int, _: object) -> None:
        now = emulated.registers()
        while shadow and shadow[-1]["rsp"] == now["rsp"] and shadow[-1]["rip"] == address:
            shadow.pop()
        code = emulated.read(address, size)
        if code[0] == 0xE8 or (code[0] == 0xFF and code[1] & 0x38 == 0x10) or code[:2] == b"\x41\xff":
            name = program.function_at(address)
            start = program.base + program.symbols[name]
            state = now | {"rip": address + size}
            prologue = read_prologue(emulated.read(start, min(address + size - start, 128)))
            found = undo_prologue(prologue, emulated, state)
            expected = shadow[-1]
            if expected["rip"] != SENTINEL:
                if not follows_call(emulated, found["rip"]):
                    answers["refused"] += 1
                else:
                    same = all(found[name] == expected[name] for name in ("rip", "rsp", *NONVOLATILE))
                    answers["right" if same else "wrong"] += 1
            shadow.append(state)
        elif code[0] == 0xC3:
            rest = unwind_epilogue(emulated, now, 0)
            assert rest is not None and rest.registers["rip"] == shadow[-1]["rip"]

    run(emulated, program, "entry", shadow, on_instruction)
    print(answers)
    assert not answers["wrong"]
    assert answers["right"] > 9 * answers["refused"]
