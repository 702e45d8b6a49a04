"""The frame data of a 32-bit program leads to the callers that the processor came from, and is what llvm-pdbutil reads.

The program is executed in Unicorn; a shadow stack of its calls says where each function returns to.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import unicorn
from unicorn import x86_const as x86

from coldframe.debug.framedata32 import run_program
from coldframe.errors import FormatError
from coldframe.symbols.framedata import FrameData, load_frame_data
from debug.programs import TARGET32, Program, build

BASE, STACK, STACK_SIZE = 0x0040_0000, 0x0019_0000, 0x4000
END = 0x0055_0000
SOURCE = r"""
typedef unsigned u32;
#define FUNCTION __attribute__((noinline))
#define STDCALL __attribute__((noinline, stdcall))
volatile u32 sink;
FUNCTION void Leaf(u32 a, u32 b, u32 c) { sink += a + b + c; }
STDCALL u32 Pushes(u32 n) { Leaf(n, n + 1, n + 2); return sink + n; }
STDCALL u32 Large(u32 n, u32 m) { volatile char text[800]; text[n & 511] = 1; return Pushes(m) + text[5] + Pushes(n); }
FUNCTION u32 Aligned(u32 n) {
    volatile long long wide __attribute__((aligned(32))) = n;
    return Large(n, 3) + (u32)wide;
}
FUNCTION u32 Deep(u32 n) { return n ? Deep(n - 1) * 3 + Large(n, n) : Aligned(7); }
u32 entry(u32 n) { return Deep(n) + 1; }
"""
NAMES = ("_Leaf", "_Pushes@4", "_Large@8", "_Aligned", "_Deep", "_entry")


@pytest.fixture(scope="module", params=["-fomit-frame-pointer", "-fno-omit-frame-pointer"])
def program(request, tmp_path_factory) -> Program:
    flags = ("-O1", "-g", "-gcodeview", request.param)
    return build(tmp_path_factory.mktemp("program"), c=SOURCE, base=BASE, flags=flags, target=TARGET32, debug=True)


def test_the_callers_are_those_that_called(program):
    table = load_frame_data(program.path.with_suffix(".pdb"))
    entries = {BASE + program.symbols[name] for name in NAMES}
    shadow: list[int] = []
    walked = set()
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)

    def word(address: int) -> int:
        return int.from_bytes(engine.mem_read(address, 4), "little")

    def callers() -> list[int]:
        """Each function's return address, from the registers alone."""
        names = {"$eip": x86.UC_X86_REG_EIP, "$esp": x86.UC_X86_REG_ESP, "$ebp": x86.UC_X86_REG_EBP}
        state = {name: engine.reg_read(number) for name, number in names.items()}
        found, pushed = [], 0
        while state["$eip"] != END:
            data = table.find(state["$eip"] - BASE - bool(found))
            assert data is not None
            caller = run_program(data, state, pushed, word)
            assert caller is not None
            state, pushed = caller, data.parameters
            found.append(state["$eip"])
        return found

    def step(_engine, address: int, size: int, _context) -> None:
        top = engine.reg_read(x86.UC_X86_REG_ESP)
        if address in entries:
            shadow.append(word(top))
            assert callers() == shadow[::-1]
            walked.add(address)
        if engine.mem_read(address, 1)[0] in (0xC3, 0xC2):
            assert shadow.pop() == word(top)

    engine.mem_map(BASE, len(program.mapped))
    engine.mem_write(BASE, program.mapped)
    engine.mem_map(STACK, STACK_SIZE)
    top = STACK + STACK_SIZE - 0x100
    engine.mem_write(top, END.to_bytes(4, "little") + (3).to_bytes(4, "little"))
    engine.reg_write(x86.UC_X86_REG_ESP, top)
    engine.hook_add(unicorn.UC_HOOK_CODE, step)
    engine.emu_start(BASE + program.symbols["_entry"], END, count=100_000)
    assert engine.reg_read(x86.UC_X86_REG_EIP) == END
    assert not shadow
    assert walked == entries


def test_the_records_are_those_that_llvm_reads(program):
    if shutil.which("llvm-pdbutil") is None:
        pytest.skip("llvm-pdbutil is not installed: ./scripts/setup installs it")
    pdb = program.path.with_suffix(".pdb")
    text = subprocess.run(["llvm-pdbutil", "dump", "--fpo", pdb], capture_output=True, text=True, check=True).stdout
    row = re.compile(r"^([0-9A-F]{8}) \| +(\d+) \| +(\d+) \| +(\d+) \|[^|]+\|[^|]+\| +(\d+) \|.*\| (\S.*?) *$", re.M)
    theirs = [
        FrameData(int(rva, 16), int(size), int(local), int(parameters), int(saved), words)
        for rva, size, local, parameters, saved, words in row.findall(text)
    ]
    assert theirs
    ours = load_frame_data(pdb).records
    assert [(r.rva, r.size, r.local, r.parameters, r.saved, r.program.strip()) for r in ours] == [
        (r.rva, r.size, r.local, r.parameters, r.saved, r.program) for r in sorted(theirs, key=lambda r: r.rva)
    ]


@pytest.mark.parametrize(
    "words",
    ["= =", "$T0 +", "$nothing ^", "$T0 1 0 / =", "$T0 .raSearch = $eip", "^ ^ ^", "$T0 $T0 =", "\N{BULLET} 3 ="],
)
def test_a_program_that_is_nonsense_leads_nowhere(words):
    data = FrameData(0, 1, 0, 0, 0, words)
    found = run_program(data, {"$eip": 1, "$esp": 2, "$ebp": 3}, 0, lambda address: 4)
    assert found in (None, {"$eip": 1, "$esp": 2, "$ebp": 3})


def test_a_pdb_that_is_cut_off_is_refused_in_one_line(program, tmp_path):
    whole = program.path.with_suffix(".pdb").read_bytes()
    for size in range(0, len(whole), len(whole) // 24):
        cut = tmp_path / "cut.pdb"
        cut.write_bytes(whole[:size])
        try:
            load_frame_data(cut)
        except FormatError as error:
            assert "\n" not in str(error)
