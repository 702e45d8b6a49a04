"""A RET that is found is one: llvm-objdump, which knows nothing of us, shows a RET of that function there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from coldframe.debug.unwind_info import FunctionTable
from coldframe.minint.machine import build
from coldframe.resident.returning import NoReturnError, find_return
from debug.programs import BASE, PAGE, Program, SparseMemory
from debug.programs import build as compiled

# Each function's first bytes 0xC3 are inside of constants and offsets, not at the beginning of an instruction.
SOURCE = """
int other(int);
int constant(int a) { return other(a) ^ 0xC3C3C3C3; }
int offset(int a, char *p) { return other(p[0xC3] + a) + p[0xC3C3]; }
int never(int a) { for (;;) a = other(a); }
long long returned(long long a) { return a * 0x10000c3 + other(a) * 0xC3LL; }
int branches(int a, int b) { if (other(a) == 0xC3) return other(b) + 1; while (b--) a += other(b) * 0xC3C3; return a; }
int other(int a) { volatile int kept = a; return kept; }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return compiled(tmp_path_factory.mktemp("returning"), c=SOURCE, entry="branches")


def returns(image: Path) -> set[int]:
    """Addresses of the RET instructions that llvm-objdump decodes, at the image's own base."""
    said = subprocess.run(
        ["llvm-objdump", "-d", "--no-show-raw-insn", str(image)], capture_output=True, text=True, check=True
    ).stdout
    return {int(match[1], 16) for match in re.finditer(r"^\s*([0-9a-f]+):\s+(?:rep\s+)?retq?\s*$", said, re.MULTILINE)}


@pytest.mark.parametrize("name", ["constant", "offset", "returned", "branches"])
def test_a_byte_that_looks_like_a_ret_is_none(program: Program, name: str) -> None:
    address = BASE + program.symbols[name]
    assert b"\xc3" in program.mapped[program.symbols[name] :]
    found = find_return(program.memory(), BASE, address)
    assert found in returns(program.path)
    assert program.function_at(found) == name


def test_a_function_that_never_returns_is_told(program: Program) -> None:
    with pytest.raises(NoReturnError, match="no RET among"):
        find_return(program.memory(), BASE, BASE + program.symbols["never"])


def test_the_middle_of_a_function_is_not_where_one_begins(program: Program) -> None:
    with pytest.raises(NoReturnError, match="no unwind data says"):
        find_return(program.memory(), BASE, BASE + program.symbols["branches"] + 4)


def test_code_that_is_not_in_ram_is_told_and_not_guessed_at(program: Program) -> None:
    memory = program.memory()
    del memory.pages[(BASE + program.symbols["constant"]) // 4096]
    with pytest.raises(NoReturnError):
        find_return(memory, BASE, BASE + program.symbols["constant"])


def mapped(image: Path) -> SparseMemory:
    """An image's sections at its preferred base, by llvm-readobj's account of them."""
    said = subprocess.run(["llvm-readobj", "--sections", str(image)], capture_output=True, text=True, check=True).stdout
    file, memory = image.read_bytes(), SparseMemory()
    memory.write(BASE, file[:PAGE])
    for part in said.split("Section {")[1:]:
        rva, size, where = (
            int(re.search(rf"{name}: (\w+)", part)[1], 0)  # type: ignore[index]
            for name in ("VirtualAddress", "RawDataSize", "PointerToRawData")
        )
        memory.write(BASE + rva, file[where : where + size])
    return memory


def test_every_function_of_a_kernel() -> None:
    """minint's kernel has hundreds; what is found is a RET of the function, or there is none to be found."""
    image = build("19041") / "ntoskrnl.exe"
    memory, known = mapped(image), returns(image)
    table = FunctionTable(memory, BASE)
    found = 0
    for number in range(len(table)):
        function = table[number]
        own = {ret for ret in known if function.begin <= ret - BASE < function.end}
        try:
            assert find_return(memory, BASE, BASE + function.begin) in own
            found += 1
        except NoReturnError:
            assert not own, f"the function at RVA {function.begin:#x} has {len(own)} RETs"
    assert found > 300
