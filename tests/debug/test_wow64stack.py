"""Behind a WOW64 thread's 64-bit frames come its 32-bit ones, from the context that Windows keeps for it.

A 32-bit program is executed in Unicorn up to where it would leave for 64-bit code; what it left on its stack, and the
registers that wow64cpu.dll would have kept, are put into a guest built of a real kernel's types.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
import unicorn
from unicorn import x86_const as x86

from coldframe.debug import StackWalker, vcpu_callstack
from debug.programs import PAGE, TARGET32, Program, build
from debug.test_callstack import EXPECTED_KERNEL, EXPECTED_USER, TRAP_FRAME, Scene, execute, functions

BASE, STACK, STACK_SIZE = 0x0040_0000, 0x0019_0000, 0x4000
TEB, CPU = 0x7F40_0000, 0x0018_0000
SOURCE = r"""
typedef unsigned u32;
void __attribute__((naked)) Leave(void) { __asm__("hlt"); }
void (*volatile Gate)(void) = Leave;
u32 __attribute__((naked)) Service(u32 number, u32 argument) {
    __asm__("movl $0x55, %eax\n movl _Gate, %edx\n call *%edx\n ret");
}
__attribute__((noinline)) u32 Innermost(u32 n) {
    volatile char text[100]; text[n & 63] = 1;
    return Service(n, 8) + text[5];
}
__attribute__((noinline)) u32 Middle(u32 n) { return Innermost(n + 1) * 3 + n; }
__attribute__((noinline)) u32 Outermost(u32 n) { return Middle(n) + Middle(n + 2); }
u32 entry(u32 n) { return Outermost(n) + 1; }
"""
NAMES = ("Leave", "Service", "Innermost", "Middle", "Outermost", "entry")
EXPECTED = [f"app!{name}" for name in NAMES[1:]]


@dataclass
class Run:
    """The 32-bit program as it stands where it leaves: at the gate's first instruction."""

    program: Program
    stack: bytes
    registers: dict[str, int]

    @property
    def kept(self) -> dict[str, int]:
        """What wow64cpu.dll keeps: as if the call of the gate had returned."""
        offset = self.registers["rsp"] - STACK
        (back,) = struct.unpack_from("<I", self.stack, offset)
        return {"rip": back, "rsp": self.registers["rsp"] + 4, "rbp": self.registers["rbp"]}


@pytest.fixture(scope="module")
def run32(tmp_path_factory) -> Run:
    flags = ("-O1", "-fno-omit-frame-pointer")
    folder = tmp_path_factory.mktemp("app")
    program = build(folder, c=SOURCE, base=BASE, flags=flags, exports=NAMES, target=TARGET32)
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    engine.mem_map(BASE, len(program.mapped))
    engine.mem_write(BASE, program.mapped)
    engine.mem_map(STACK, STACK_SIZE)
    engine.reg_write(x86.UC_X86_REG_ESP, STACK + STACK_SIZE - 0x108)
    engine.emu_start(BASE + program.symbols["_entry"], BASE + program.symbols["_Leave"], count=10_000)
    names = {"rip": x86.UC_X86_REG_EIP, "rsp": x86.UC_X86_REG_ESP, "rbp": x86.UC_X86_REG_EBP}
    registers = {name: engine.reg_read(number) for name, number in names.items()}
    assert registers["rip"] == BASE + program.symbols["_Leave"]
    return Run(program, bytes(engine.mem_read(STACK, STACK_SIZE)), registers)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("frame"), "HandlerWithFrame")


class WowScene(Scene):
    """The scene of the 64-bit tests, its process a WOW64 one with the 32-bit program."""

    def __init__(self, executed, run: Run, machine: int = 0x14C) -> None:
        super().__init__(executed)
        image, process = self.image, self.process
        image.add_wow64(process, [("app.exe", BASE, len(run.program.mapped))])
        for base, data in ((BASE, run.program.mapped), (STACK, run.stack), (CPU, bytes(PAGE))):
            for at in range(0, len(data), PAGE):
                image.map(process.dtb, base + at, data[at : at + PAGE])
        image.add_user_memory(process, TEB, -(-image.types.size("_TEB") // PAGE) * PAGE)
        slot = TEB + image.types.offset("_TEB", "TlsSlots") + 8
        image.write(slot, CPU.to_bytes(8, "little"), process.dtb)
        image.write(CPU + 2, struct.pack("<H", machine), process.dtb)
        for at, name in ((0xB4, "rbp"), (0xB8, "rip"), (0xC4, "rsp")):
            image.write(CPU + 4 + at, struct.pack("<I", run.kept[name]), process.dtb)
        image.write_struct("_ETHREAD", self.thread.address, {"Tcb.Teb": TEB})


def test_the_32_bit_frames_come_behind_the_64_bit_ones(executed, run32):
    frames = vcpu_callstack(WowScene(executed, run32).open(), 0)
    native = [*EXPECTED_KERNEL, "driver!HandlerWithFrame", *EXPECTED_USER]
    assert functions(frames) == [*native, *EXPECTED]
    crossing = frames[len(native) - 1]
    assert crossing.how == "WOW64 context (end of stack)"
    assert crossing.return_address == frames[len(native)].address == run32.kept["rip"]
    assert frames[-1].how == "end of stack"


def test_a_64_bit_stack_page_that_is_not_in_ram_does_not_hide_the_32_bit_frames(executed, run32):
    scene = WowScene(executed, run32)
    scene.unmap(executed.at_syscall["rsp"] & ~(PAGE - 1), scene.process.dtb)
    frames = vcpu_callstack(scene.open(), 0)
    assert functions(frames)[-len(EXPECTED) :] == EXPECTED
    assert "missing page" in frames[-len(EXPECTED) - 1].how


def test_a_thread_that_is_in_32_bit_code_is_walked_from_there(executed, run32):
    guest = WowScene(executed, run32).open()
    process = guest.process(812)
    frames = StackWalker(guest).walk(run32.registers, process, process.threads[0])
    assert functions(frames) == ["app!Leave", *EXPECTED]
    assert StackWalker(guest).walk(run32.registers, process, process.threads[0], limit=2) == frames[:2]


@pytest.mark.parametrize(("selector", "known"), [(0x23, True), (0x33, False)])
def test_code_of_no_module_is_told_by_the_trap_frames_code_segment(executed, run32, selector, known):
    scene = WowScene(executed, run32)
    made = scene.image.add_user_memory(scene.process, 0x0050_0000, PAGE)  # by a just-in-time compiler
    scene.image.write_struct("_KTRAP_FRAME", TRAP_FRAME, {"Rip": made, "SegCs": selector})
    guest = scene.open()
    process = guest.process(812)
    frames = StackWalker(guest).walk(run32.registers | {"rip": made}, process, process.threads[0])
    assert functions(frames)[0] == f"{made:#x}"
    assert (frames[0].how == "frame pointer") == known
    assert functions(frames)[-1] == "app!entry"  # else by the context that is kept


def test_a_context_of_another_machine_is_left_alone(executed, run32):
    frames = vcpu_callstack(WowScene(executed, run32, machine=0x1C4).open(), 0)
    assert functions(frames)[-1] == "program!entry"
    assert frames[-1].how == "end of stack"


def test_a_context_that_is_not_in_ram_ends_the_stack_as_before(executed, run32):
    scene = WowScene(executed, run32)
    scene.unmap(CPU, scene.process.dtb)
    assert functions(vcpu_callstack(scene.open(), 0))[-1] == "program!entry"
