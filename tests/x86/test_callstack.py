"""Call stacks of 32-bit code: by EBP, by the stack where a function has no frame, across the trap frame."""

from __future__ import annotations

import struct

import pytest

from coldframe.debug.callstack import callstack, thread_callstack
from x86.conftest import Built

STACK, USER_STACK = 0x8B00_0000, 0x0006_F000
PAGE = 4096
FRAME = b"\x8b\xff\x55\x8b\xec"  # mov edi, edi; push ebp; mov ebp, esp
CALL = b"\xe8\0\0\0\0"


class Code:
    """Functions of the kernel and of ntdll, each with a call in it, and a kernel stack."""

    def __init__(self, built: Built) -> None:
        self.built, self.image = built, built.image
        self.image.map(self.image.kernel_dtb, STACK, bytes(PAGE))
        self.image.map(built.notepad.dtb, USER_STACK, bytes(PAGE))
        self.returns = {}
        for name, body in (
            ("NtWriteFile", FRAME + b"\x90" * 11),
            ("NtReadFile", b"\x83\xec\x10" + CALL + b"\x90" * 8),
            ("KiTrap0E", FRAME + CALL + b"\x90\xc9\xc3"),
            ("KiSwapContext", b"\x83\xec\x10" + CALL + b"\x8b\x2c\x24\x83\xc4\x10\xc3"),
        ):
            address = self.image.code(name)
            self.image.write(address, body)
            self.returns[name] = address + body.find(CALL) + len(CALL)
        self.stub = 0x7C90_1000
        self.image.map(built.notepad.dtb, self.stub, b"\xb8\x12\x01\0\0\xba\0\x03\xfe\x7f\xff\x12\xc2\x24\0" + b"\xc3")
        self.program = 0x0100_1000
        self.image.map(built.notepad.dtb, self.program, FRAME + b"\xff\xd0" + b"\x90" * 9)

    def put(self, address: int, *words: int, dtb=None) -> None:
        self.image.write(address, struct.pack(f"<{len(words)}I", *words), dtb)

    def walk(self, rip: int, rsp: int, rbp: int, thread: bool = False):
        guest = self.built.open([self.built.registers])
        process = guest.process(812)
        registers = {"rip": rip, "rsp": rsp, "rbp": rbp}
        frames = callstack(guest, registers, process, process.threads[0] if thread else None)
        return [(str(frame), frame.how.split(" (")[0]) for frame in frames]


@pytest.fixture
def code(one) -> Code:
    return Code(one)


def test_a_chain_of_frame_pointers_up_to_its_end(code):
    behind = code.returns["KiTrap0E"]
    code.put(STACK + 0x100, STACK + 0x120, behind)
    code.put(STACK + 0x120, 0, 0)
    frames = code.walk(code.image.code("NtWriteFile") + 8, STACK + 0xF0, STACK + 0x100)
    assert frames == [("nt!NtWriteFile+0x8", "frame pointer"), ("nt!KiTrap0E+0xa", "end of stack")]


@pytest.mark.parametrize(("into", "pushed"), [(0, False), (2, False), (3, True)])
def test_at_the_first_instructions_the_return_address_is_on_top(code, into, pushed):
    behind = code.returns["KiTrap0E"]
    words = [STACK + 0x120, behind] if pushed else [behind]
    code.put(STACK + 0xF0, *words)
    code.put(STACK + 0x120, 0, 0)
    frames = code.walk(code.image.code("NtWriteFile") + into, STACK + 0xF0, STACK + 0x120)
    assert frames == [(f"nt!NtWriteFile+{into:#x}", "entry"), ("nt!KiTrap0E+0xa", "end of stack")]


def test_at_a_ret_it_is_on_top_too(code):
    code.put(STACK + 0xF0, code.returns["KiTrap0E"])
    code.put(STACK + 0x120, 0, 0)
    frames = code.walk(code.image.code("KiTrap0E") + 12, STACK + 0xF0, STACK + 0x120)
    assert [how for _, how in frames] == ["epilogue", "end of stack"]


def test_a_function_without_a_frame_is_left_by_a_scan_that_says_so(code):
    behind = code.returns["KiTrap0E"]
    code.put(STACK + 0xF0, 0x12345678, code.image.code("NtReadFile") + 2, 0, behind)  # no address behind a call but one
    code.put(STACK + 0x140, 0, 0)
    frames = code.walk(code.returns["NtReadFile"], STACK + 0xF0, STACK + 0x800_0000)
    assert [frame for frame, _ in frames] == ["nt!NtReadFile+0x8", "nt!KiTrap0E+0xa"]
    assert frames[0][1] == "scan"


def test_a_frame_pointer_that_leads_to_no_call_is_not_believed(code):
    code.put(STACK + 0x100, STACK + 0x120, code.image.code("NtReadFile"))
    frames = code.walk(code.image.code("NtWriteFile") + 8, STACK + 0xF0, STACK + 0x100)
    assert frames == [("nt!NtWriteFile+0x8", "neither EBP nor the stack leads to a caller")]


def test_frame_pointers_that_go_in_a_circle_end(code):
    code.put(STACK + 0x100, STACK + 0x100, code.returns["KiTrap0E"])
    assert len(code.walk(code.image.code("NtWriteFile") + 8, STACK + 0xF0, STACK + 0x100)) <= 3


def trap_frame(code, at: int) -> None:
    fields = {"SegCs": 0x1B, "Eip": code.stub + 15, "HardwareEsp": USER_STACK + 0x10, "Ebp": USER_STACK + 0x100}
    code.image.write_struct("_KTRAP_FRAME", at, fields)
    dtb = code.built.notepad.dtb
    code.put(USER_STACK + 0x10, code.stub + 12, code.program + 7, dtb=dtb)  # KiFastSystemCallRet's and the stub's
    code.put(USER_STACK + 0x100, 0, 0, dtb=dtb)


USER = [("ntdll+0x100f", "epilogue"), ("ntdll+0x100c", "epilogue"), ("notepad+0x1007", "end of stack")]


def test_the_trap_frame_leads_on_into_user_mode(code):
    """EBP is the trap frame in KiFastCallEntry; it begins with DbgEbp and DbgEip."""
    trap_frame(code, STACK + 0x200)
    code.put(STACK + 0x200, USER_STACK + 0x100, code.stub + 15)
    code.put(STACK + 0xF0, code.returns["KiTrap0E"])
    frames = code.walk(code.image.code("NtWriteFile"), STACK + 0xF0, STACK + 0x200)
    assert frames == [("nt!NtWriteFile+0x0", "entry"), ("nt!KiTrap0E+0xa", "trap frame"), *USER]


def test_the_threads_own_trap_frame_is_used_where_the_chain_breaks(code):
    trap_frame(code, STACK + 0x200)
    stack = {"Tcb.TrapFrame": STACK + 0x200, "Tcb.StackLimit": STACK, "Tcb.InitialStack": STACK + PAGE}
    stack["Tcb.StackBase"] = STACK + PAGE
    thread = code.built.thread.address
    code.image.write_struct(
        "_ETHREAD", thread, {k: v for k, v in stack.items() if code.image.types.has_field("_ETHREAD", k)}
    )
    frames = code.walk(code.image.code("NtWriteFile") + 8, STACK + 0xF0, 0, thread=True)
    assert frames == [("nt!NtWriteFile+0x8", "trap frame"), *USER]


def test_a_waiting_thread_is_in_kiswapcontext(code):
    image, thread = code.image, code.built.idle.address
    fields = {"Tcb.StackLimit": STACK, "Tcb.KernelStack": STACK + 0xE0, "Tcb.InitialStack": STACK + PAGE}
    fields["Tcb.StackBase"] = STACK + PAGE
    image.write_struct("_ETHREAD", thread, {k: v for k, v in fields.items() if image.types.has_field("_ETHREAD", k)})
    code.put(STACK + 0xE0, 0, 0x246, code.returns["KiSwapContext"], STACK + 0x140, 0, 0, 0, code.returns["KiTrap0E"])
    code.put(STACK + 0x140, 0, 0)
    guest = code.built.open()
    frames = thread_callstack(guest, guest.thread(8))
    assert [str(frame) for frame in frames] == ["nt!KiSwapContext+0x8", "nt!KiTrap0E+0xa"]
