"""The tables of docs/icebox.md: every call of IceBox is there, every test that they name, and every expression runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import coldframe
import coldframe.memoryfile
import coldframe.paging
import coldframe.qemu
import coldframe.windows
from coldframe.cli.app import MODULES
from coldframe.cli.trace import TRACERS
from coldframe.debug import LiveGuest
from coldframe.minint import start

pytestmark = pytest.mark.minint

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "icebox.md"
CODE = re.compile(r"`([^`]+)`")

ICEBOX = {
    "icebox": "attach attach_only counter dump_bytes symbols",
    "vm": "detach detect resume pause step_once wait exec interrupt break_on break_on_process break_on_thread "
    "break_on_physical break_on_physical_process registers msr",
    "vm.registers": "dump",
    "vm.msr": "dump",
    "vm.processes": "current find_name find_pid wait break_on_create break_on_delete",
    "vm.threads": "current break_on_create break_on_delete",
    "vm.physical": "read write",
    "vm.functions": "read_stack read_arg write_arg args break_on_return",
    "vm.drivers": "find find_name break_on",
    "vm.symbols": "load_driver load_drivers",
    "proc": "native kdtb udtb name is_valid pid flags parent threads vm_areas callstack modules join",
    "proc.memory": "read write physical_address",
    "proc.symbols": "address strucs struc string load_module_memory load_module load_modules autoload_modules "
    "dump_type",
    "proc.modules": "find find_name break_on_create",
    "proc.callstack": "load_module load_driver autoload_modules",
    "module": "name span flags",
    "driver": "name span",
    "thread": "process program_counter tid",
    "vm_area": "span",
}
"""Every name that IceBox's src/icebox/icebox_py/__init__.py offers to its users (commit 6f78952d)."""
PIECES = {
    "examples": "getting_started vm process threads modules memory symbols breakpoints callstacks ndis",
    "samples": "heapsan linux nt_writefile vm_resume winpe_boot wireshark",
}
OPENS_OR_ENDS = ('coldframe.attach("', "coldframe.qemu.VirtualMachine.attach(", "guest.close()", "guest.interrupt()")
"""Not run here: they need a target of their own, or end this one."""


@dataclass(frozen=True)
class Row:
    line: int
    icebox: str
    coldframe: str
    test: str


def rows() -> list[Row]:
    found = []
    for number, line in enumerate(PAGE.read_text().splitlines(), 1):
        if line.startswith("|") and not line.startswith(("| IceBox |", "|---")):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 3, f"{PAGE.name}:{number} has {len(cells)} cells"
            found.append(Row(number, *cells))
    return found


def test_every_name_of_icebox_has_its_row() -> None:
    left = " ".join(row.icebox for row in rows())
    for owner, names in ICEBOX.items():
        for name in names.split():
            assert re.search(rf"{re.escape(owner)}\.{name}\b", left), f"{owner}.{name}"
    for folder, pieces in PIECES.items():
        for piece in pieces.split():
            assert re.search(rf"{folder}/{piece}\b", left), piece


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"line {row.line}")
def test_no_cell_is_empty_and_the_test_that_a_row_names_is_there(row: Row) -> None:
    assert row.icebox and row.coldframe and row.test
    for named in CODE.findall(row.test):
        path, _, function = named.partition("::")
        text = (ROOT / "tests" / path).read_text()
        assert not function or f"def {function}(" in text, named


@pytest.fixture(scope="module")
def guest() -> Iterator[LiveGuest]:
    with start(vcpus=2, options="PACE=5 STATES=0") as machine:
        machine.wait_for("write", timeout=60)
        with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as live:
            yield live


def names_for(guest: LiveGuest) -> dict[str, object]:
    """What the page says its expressions are about, anew: an expression may have let the guest run."""
    process = guest.process("notepad.exe")
    hit = guest.run_to("nt!NtWriteFile", process, timeout=20)
    assert hit is not None
    module = process.module("ntdll")
    return {
        "coldframe": coldframe,
        "guest": guest,
        "process": process,
        "thread": hit.thread,
        "module": module,
        "driver": guest.drivers[0],
        "hit": hit,
        "address": module.base,
        "physical": process.memory.translate(module.base),
    }


EXPRESSIONS = [
    (row.line, code)
    for row in rows()
    for code in CODE.findall(row.coldframe)
    if not code.startswith(("coldframe ", "_NT_", *OPENS_OR_ENDS))
]


@pytest.mark.parametrize(("line", "code"), EXPRESSIONS, ids=lambda one: str(one)[:40])
def test_an_expression_runs(guest: LiveGuest, line: int, code: str) -> None:
    names = names_for(guest)
    if "call." in code:
        with guest.calls("NtWriteFile", "notepad.exe") as calls:
            names["call"] = calls.wait(20)
            eval(code, names)  # what the page shows
    elif "point" in code:
        with guest.break_on("nt!NtWriteFile") as point:
            assert eval(code, names | {"point": point}) is not None or code == "point.remove()"
    else:
        eval(code, names)
    assert not guest.active


def test_verbs_and_tracers_are_there() -> None:
    verbs = {verb for module in MODULES.values() for verb in module}
    for row in rows():
        for code in CODE.findall(row.coldframe):
            if code.startswith("coldframe "):
                words = code.split()
                assert words[1] in verbs, code
                if words[1] == "trace" and "!" not in words[3]:
                    assert words[3] in TRACERS, code
