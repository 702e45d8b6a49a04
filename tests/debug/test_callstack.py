"""Stacks are walked from the kernel into user mode: through machine frames, through trap frames, up to what is missing.

A user program and a kernel driver are executed together in Unicorn (a `syscall` leads from one into the other); what
they left on their stacks is put into a guest built of a real kernel's types, and walked there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import unicorn
from unicorn import x86_const as x86

from builder import kernel, kernel_files
from builder.windows import BuiltProcess, BuiltThread, WindowsBuilder
from coldframe.debug import StackWalker, thread_callstack, vcpu_callstack
from coldframe.debug.unwind_info import REGISTERS
from coldframe.windows import Guest
from coldframe.windows.module import Module
from coldframe.windows.pe import EXCEPTION, PeImage
from debug.programs import PAGE, Program, build

KERNEL_BASE, USER_BASE = 0xFFFFF801_55500000, 0x7FF6_44440000
KERNEL_STACK, USER_STACK, STACK_SIZE = 0xFFFFA10F_00010000, 0x1A_00010000, 0x4000

USER_C = r"""
typedef unsigned long long u64;
u64 SystemCall(u64 number, u64 argument);
__attribute__((noinline)) u64 Innermost(u64 n) {
    volatile char text[200]; text[n & 63] = 1;
    return SystemCall(n, 8) + text[5];
}
__attribute__((noinline)) u64 Middle(u64 n) { return Innermost(n + 1) * 3 + n; }
__attribute__((noinline)) u64 Outermost(u64 n) { return Middle(n) + Middle(n + 2); }
u64 entry(u64 n) { return Outermost(n) + 1; }
"""
USER_ASM = """
    .text
    .globl SystemCall
SystemCall:
    movq %rcx, %r10
    syscall
    retq
"""
KERNEL_C = r"""
typedef unsigned long long u64;
volatile u64 sink;
__attribute__((noinline)) u64 Stop(u64 n) { return sink + n; }
__attribute__((noinline)) u64 Lower(u64 n) { volatile u64 b[60]; b[n & 31] = n; return Stop(n) + b[3]; }
__attribute__((noinline)) u64 Service(u64 n) { return Lower(n) * 5 + Stop(n); }
"""
# the frame that NT's KiSystemCall64 builds; `NoFrameData` has no unwind data that leads to the machine frame
KERNEL_ASM = """
    .text
    .globl HandlerWithFrame
    .seh_proc HandlerWithFrame
HandlerWithFrame:
    .seh_pushframe
    movq %rsp, %rdx
    movq KernelStackTop(%rip), %rsp
    pushq $0x2B
    pushq %rdx
    pushq %r11
    pushq $0x33
    pushq %rcx
    movq %r10, %rcx
    subq $8, %rsp
    .seh_stackalloc 8
    pushq %rbp
    .seh_pushreg %rbp
    subq $0x158, %rsp
    .seh_stackalloc 0x158
    leaq 0x80(%rsp), %rbp
    .seh_setframe %rbp, 0x80
    .seh_endprologue
    subq $0x60, %rsp
    callq Service
HandlerReturn:
    nop
    .seh_endproc

    .globl HandlerWithoutFrame
HandlerWithoutFrame:
    movq %rsp, %rdx
    movq KernelStackTop(%rip), %rsp
    pushq $0x2B
    pushq %rdx
    pushq %r11
    pushq $0x33
    pushq %rcx
    subq $8, %rsp
    pushq %rbp
    subq $0x158, %rsp
    movq %r10, %rcx
    subq $0x60, %rsp
    callq Service
    nop
    .data
    .globl KernelStackTop
KernelStackTop: .quad 0xFFFFA10F00014000
    .text
"""
TRAP_FRAME = KERNEL_STACK + STACK_SIZE - 0x190
EXPECTED_KERNEL = ["driver!Stop", "driver!Lower", "driver!Service"]
EXPECTED_USER = ["program!SystemCall", "program!Innermost", "program!Middle", "program!Outermost", "program!entry"]


@dataclass
class Executed:
    """What was executed: the images, the registers at the stop, the stacks' bytes."""

    kernel: Program
    user: Program
    registers: dict[str, int]
    stacks: dict[int, bytes]
    at_syscall: dict[str, int] = field(default_factory=dict)


def execute(folder, handler: str) -> Executed:
    driver = build(folder / "kernel", c=KERNEL_C, asm=KERNEL_ASM, entry=handler, base=KERNEL_BASE, flags=("-O1",),
                   exports=("Service", "Lower", "Stop", "HandlerWithFrame", "HandlerWithoutFrame"))  # fmt: skip
    program = build(folder / "user", c=USER_C, asm=USER_ASM, base=USER_BASE, flags=("-O1",),
                    exports=("entry", "Innermost", "Middle", "Outermost", "SystemCall"))  # fmt: skip
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)  # addresses of the kernel's half, no page tables
    for image in (driver, program):
        engine.mem_map(image.base, len(image.mapped))
        engine.mem_write(image.base, image.mapped)
    for stack in (KERNEL_STACK, USER_STACK):
        engine.mem_map(stack, STACK_SIZE)
    at_syscall: dict[str, int] = {}

    def registers() -> dict[str, int]:
        return {
            name: engine.reg_read(getattr(x86, f"UC_X86_REG_{name.upper()}")) for name in (*REGISTERS, "rip", "eflags")
        }

    def on_syscall(uc: unicorn.Uc, _: object) -> None:
        at_syscall.update(registers())
        at_syscall["rip"] += 2
        uc.reg_write(x86.UC_X86_REG_RCX, at_syscall["rip"])
        uc.reg_write(x86.UC_X86_REG_R11, 0x246)
        uc.emu_stop()

    engine.hook_add(unicorn.UC_HOOK_INSN, on_syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
    engine.reg_write(x86.UC_X86_REG_RSP, USER_STACK + STACK_SIZE - 0x1008)
    engine.reg_write(x86.UC_X86_REG_RCX, 1)
    engine.emu_start(program.base + program.symbols["entry"], 0, count=10_000)
    assert at_syscall, "the program made no system call"
    stop = driver.base + driver.symbols["Stop"]
    engine.emu_start(driver.base + driver.symbols[handler], stop, count=10_000)
    now = registers()
    assert now["rip"] == stop
    stacks = {stack: bytes(engine.mem_read(stack, STACK_SIZE)) for stack in (KERNEL_STACK, USER_STACK)}
    return Executed(driver, program, now, stacks, at_syscall)


class OneKernel:
    def __init__(self, symbol_file) -> None:
        self.symbol_file = symbol_file

    def find(self, identity):
        from coldframe.errors import SymbolFileNotFoundError

        if identity.guid != self.symbol_file.identity.guid:
            raise SymbolFileNotFoundError(f"no symbols for {identity}")
        return self.symbol_file


class Scene:
    """A guest in which that was executed, by a thread of app.exe."""

    def __init__(self, executed: Executed, *, kva_shadow: bool = False, trap_frame: bool = True) -> None:
        files = kernel_files()
        if not files:
            pytest.skip("no kernel types: ../shared/symbols is absent")
        self.executed = executed
        symbol_file = kernel(files[0])
        self.image = WindowsBuilder(symbol_file, kva_shadow=kva_shadow)
        self.process: BuiltProcess = self.image.add_process("app.exe", 812, 4)
        more = {
            "Tcb.StackBase": KERNEL_STACK + STACK_SIZE,
            "Tcb.StackLimit": KERNEL_STACK,
            "Tcb.InitialStack": KERNEL_STACK + STACK_SIZE,
            "Tcb.TrapFrame": TRAP_FRAME if trap_frame else 0,
        }
        self.thread: BuiltThread = self.image.add_thread(self.process, 1204, **more)
        self.image.add_processor(self.thread)
        self.image.add_driver("driver.sys", KERNEL_BASE, len(executed.kernel.mapped))
        self.image.add_module(self.process, "program.exe", USER_BASE, len(executed.user.mapped))
        for base, data, dtb in (
            (KERNEL_BASE, executed.kernel.mapped, self.image.kernel_dtb),
            (USER_BASE, executed.user.mapped, self.process.dtb),
            (KERNEL_STACK, executed.stacks[KERNEL_STACK], self.image.kernel_dtb),
            (USER_STACK, executed.stacks[USER_STACK], self.process.dtb),
        ):
            for at in range(0, len(data), PAGE):
                if at or base in (KERNEL_STACK, USER_STACK):
                    self.image.map(dtb, base + at, data[at : at + PAGE])
                else:
                    self.image.write(base, data[:PAGE], dtb)
        self.store = OneKernel(symbol_file)

    def registers(self, executed: dict[str, int]) -> dict[str, int]:
        return self.image.registers(self.process) | executed

    def open(self, registers: dict[str, int] | None = None) -> Guest:
        self.image.finish()
        state = self.executed.registers if registers is None else registers
        return Guest.open(self.image.physical(), self.store, [self.registers(state)])

    def unmap(self, address: int, dtb: int) -> None:
        self.image.set_entry(dtb, address, self.image.paged(0, 0x1A3000))


@pytest.fixture(scope="module")
def with_frame(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("frame"), "HandlerWithFrame")


@pytest.fixture(scope="module")
def without_frame(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("noframe"), "HandlerWithoutFrame")


def functions(frames) -> list[str]:
    return [frame.function for frame in frames]


@pytest.mark.parametrize("kva_shadow", [False, True])
def test_the_walk_crosses_to_user_mode_by_the_machine_frame(with_frame, kva_shadow):
    guest = Scene(with_frame, kva_shadow=kva_shadow, trap_frame=False).open()
    frames = vcpu_callstack(guest, 0)
    assert functions(frames) == [*EXPECTED_KERNEL, "driver!HandlerWithFrame", *EXPECTED_USER]
    assert str(frames[0]) == "driver!Stop+0x0"
    crossing = frames[3]
    assert crossing.how == "machine frame"
    assert frames[4].address == crossing.return_address == with_frame.at_syscall["rip"]
    assert frames[4].stack_pointer == with_frame.at_syscall["rsp"]
    assert [frame.user for frame in frames] == [False] * 4 + [True] * 5
    assert frames[-1].how == "end of stack"
    assert frames[4].how == "leaf"
    assert all(frame.return_address for frame in frames[:-1])


def test_where_unwind_data_ends_the_trap_frame_leads_to_user_mode(without_frame):
    scene = Scene(without_frame)
    # NT keeps rip, cs and rsp of the trap frame on its end, where the processor's machine frame is
    types = scene.image.types
    assert types.size("_KTRAP_FRAME") == 0x190
    frames = vcpu_callstack(scene.open(), 0)
    assert functions(frames) == [*EXPECTED_KERNEL, "driver!HandlerWithoutFrame", *EXPECTED_USER]
    assert frames[3].how.startswith("trap frame")
    assert frames[4].stack_pointer == without_frame.at_syscall["rsp"]


def test_without_trap_frame_the_walk_ends_in_the_kernel_and_says_why(without_frame):
    frames = vcpu_callstack(Scene(without_frame, trap_frame=False).open(), 0)
    assert functions(frames)[:3] == EXPECTED_KERNEL
    assert not any(frame.user for frame in frames)
    assert frames[-1].return_address is None
    assert frames[-1].how not in ("leaf", "unwind data")


def test_a_stack_page_that_is_not_in_ram_is_named_and_ends_the_walk(with_frame):
    scene = Scene(with_frame)
    top = with_frame.at_syscall["rsp"] & ~(PAGE - 1)
    scene.unmap(top, scene.process.dtb)
    frames = vcpu_callstack(scene.open(), 0)
    assert functions(frames) == [*EXPECTED_KERNEL, "driver!HandlerWithFrame", "program!SystemCall"]
    assert f"missing page {top:#x}" in frames[-1].how
    assert "paging file 0" in frames[-1].how


def user_unwind_data(executed: Executed) -> int:
    """The page that the user program's .pdata lies in."""
    directory = PeImage.read(executed.user.memory(), USER_BASE).directory(EXCEPTION)
    assert directory is not None
    return USER_BASE + directory[0] & ~(PAGE - 1)


def test_where_unwind_data_is_not_in_ram_the_instructions_lead_on(with_frame):
    scene = Scene(with_frame)
    page = user_unwind_data(with_frame)
    scene.unmap(page, scene.process.dtb)
    frames = vcpu_callstack(scene.open(), 0)
    assert functions(frames) == [*EXPECTED_KERNEL, "driver!HandlerWithFrame", *EXPECTED_USER]
    assert frames[4].how.startswith(f"epilogue (missing page {page:#x}: page is in paging file 0")
    assert all(frame.how.startswith(f"prologue (missing page {page:#x}") for frame in frames[5:-1])
    assert [frame.stack_pointer for frame in frames] == [
        frame.stack_pointer for frame in vcpu_callstack(Scene(with_frame).open(), 0)
    ]


def test_unwind_data_that_is_not_in_ram_is_named_where_nothing_else_leads_on(with_frame):
    scene = Scene(with_frame)
    page = user_unwind_data(with_frame)
    code = USER_BASE + with_frame.user.symbols["Innermost"] & ~(PAGE - 1)
    for missing in (page, code):
        scene.unmap(missing, scene.process.dtb)
    frames = vcpu_callstack(scene.open(), 0)
    assert functions(frames) == [*EXPECTED_KERNEL, "driver!HandlerWithFrame", "program!SystemCall"]
    assert f"missing page {page:#x}" in frames[-1].how


def test_at_the_first_instruction_of_a_system_call_the_user_stack_is_walked(with_frame):
    entry = with_frame.kernel.base + with_frame.kernel.symbols["HandlerWithFrame"]
    state = with_frame.at_syscall | {"rip": entry, "rcx": with_frame.at_syscall["rip"]}
    frames = vcpu_callstack(Scene(with_frame).open(state), 0)
    assert functions(frames) == ["driver!HandlerWithFrame", *EXPECTED_USER]
    assert frames[0].how == "system call"


def test_a_thread_that_waits_is_walked_from_its_switch(with_frame):
    scene = Scene(with_frame)
    kernel_context = scene.image.code("KiSwapContext")
    other = scene.image.add_thread(scene.process, 1208)
    stack = scene.image.allocate_pool(PAGE, align=PAGE)
    pointer = stack + 0x800
    scene.image.write(pointer + 0x30, (0x1234).to_bytes(8, "little") + (kernel_context + 5).to_bytes(8, "little"))
    scene.image.write_struct(
        "_ETHREAD",
        other.address,
        {"Tcb.KernelStack": pointer, "Tcb.StackLimit": stack, "Tcb.StackBase": stack + PAGE},
    )
    guest = scene.open()
    saved = StackWalker(guest).switched_out(guest.thread(1208))
    assert saved == {"rip": kernel_context + 5, "rsp": pointer + 0x40, "rbp": 0x1234}
    frames = thread_callstack(guest, guest.thread(1208))
    assert str(frames[0]) == "nt!KiSwapContext+0x5"


def test_a_thread_that_runs_is_walked_from_its_vcpu(with_frame):
    guest = Scene(with_frame).open()
    assert functions(thread_callstack(guest, guest.thread(1204)))[0] == "driver!Stop"


def test_a_stack_that_leads_in_circles_ends(with_frame):
    scene = Scene(with_frame)
    offset = with_frame.registers["rsp"]
    scene.image.write(offset, with_frame.registers["rip"].to_bytes(8, "little"))
    frames = StackWalker(scene.open()).walk(scene.registers(with_frame.registers), None, limit=40)
    assert len(frames) <= 40


def test_a_kernel_stack_ends_at_its_base_whatever_lies_above(with_frame):
    """The first frame of a thread may return to something, as ReactOS' KiThreadStartup does (ntoskrnl/ke/amd64)."""
    whole = vcpu_callstack(Scene(with_frame, trap_frame=False).open(), 0)
    first = whole[3]
    scene = Scene(with_frame, trap_frame=False)
    scene.image.write_struct("_ETHREAD", scene.thread.address, {"Tcb.StackBase": first.stack_pointer})
    frames = vcpu_callstack(scene.open(), 0)
    assert functions(frames) == functions(whole[:4])
    assert (frames[-1].how, frames[-1].return_address) == ("end of stack", None)


def test_a_module_without_names_gives_offsets(with_frame):
    frames = vcpu_callstack(Scene(with_frame).open(), 0)
    guest = Scene(with_frame).open()
    module = guest.module("driver.sys")
    assert isinstance(module, Module)
    assert frames[0].module == "driver"
    assert frames[0].displacement == 0


def test_module_lists_are_not_walked_again_while_the_images_are_the_same(with_frame):
    scene = Scene(with_frame)
    guest = scene.open()
    walker = StackWalker(guest)
    listed = []

    def walk() -> list[str]:
        guest.new_pause()
        thread = guest.thread(1204)
        frames = walker.walk(guest.registers(0), thread.process, thread)
        listed.append("drivers" in guest._kept)
        return functions(frames)

    before = walk()
    assert walk() == walk() == before
    assert listed == [True, False, False]
    header = int.from_bytes(with_frame.kernel.mapped[0x3C:0x40], "little")
    scene.image.write(KERNEL_BASE + header + 8, b"\x01\x02\x03\x04")  # another timestamp: the list is asked again
    assert walk() == before
    assert listed[-1]
