"""A folder for wtf: complete, as wtf reads it, and what the guest's own kernel put into the registers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coldframe
from coldframe.cli.main import run
from coldframe.debug import LiveGuest
from coldframe.errors import CapabilityError, UsageError
from coldframe.images.wtf import MEMORY, PLAIN, REGISTERS, SEGMENTS, TABLES, Segment, tag_word
from coldframe.minint import Minint, start
from coldframe.wtfdump import dump_wtf, write_wtf
from resident.steering import MEMORY as SIZE
from resident.steering import coldframe as command

pytestmark = pytest.mark.minint


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with start(vcpus=2, memory=SIZE, kva_shadow=True, resident=True) as machine:
        machine.wait_until_steady()
        yield machine


def attached(machine: Minint) -> LiveGuest:
    return coldframe.attach(machine.qmp, symbols=[machine.symbols_folder])


def written(folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((folder / REGISTERS).read_text())
    return held


def test_at_a_hit_in_the_kernel(machine: Minint, tmp_path: Path) -> None:
    with attached(machine) as guest, guest.break_on("nt!NtWriteFile", process="notepad.exe") as hits:
        hit = hits.wait(10)
        assert hit is not None
        before = [dict(guest.registers(vcpu)) for vcpu in range(guest.vcpus)]
        assert write_wtf(guest, tmp_path, hit.vcpu) == ()
        assert [dict(guest.registers(vcpu)) for vcpu in range(guest.vcpus)] == before  # as if nothing had been
        held = written(tmp_path)
        assert {*PLAIN, *SEGMENTS, *TABLES, "fpst", "zmm"} == set(held)
        assert int(held["rip"], 0) == hit.address
        assert int(held["rcx"], 0) == hit.args[0]
        assert int(held["lstar"], 0) == guest.symbol("nt!KiSystemCall64Shadow")
        assert int(held["star"], 0) == 0x0023_0010 << 32
        assert int(held["efer"], 0) & 0xD01 == 0xD01  # SCE, LME, LMA, NXE
        assert int(held["apic_base"], 0) & ~0xFFF & 0xFFFFF000 == 0xFEE00000
        assert bool(int(held["apic_base"], 0) & 0x100) == (hit.vcpu == 0)  # the bootstrap processor
        assert int(held["cr3"], 0) == before[hit.vcpu]["cr3"]
        assert int(held["gs"]["base"], 0) == before[hit.vcpu]["gs_base"]
        assert int(held["tsc"], 0) > 0
        tables = guest.vm.descriptor_tables(hit.vcpu)
        assert (int(held["idtr"]["base"], 0), int(held["gdtr"]["base"], 0)) == (tables.idt_base, tables.gdt_base)
        for name in ("es", "cs", "ss", "ds", "fs", "gs"):  # what wtf's SanitizeCpuState refuses
            assert int(held[name]["attr"], 0) >> 8 & 0xF == int(held[name]["limit"], 0) >> 16 & 0xF
        assert int(held["cs"]["attr"], 0) & 0x2000  # long mode


def test_on_a_vcpu_in_user_mode(machine: Minint, tmp_path: Path) -> None:
    """Under KVA shadow its tables do not map the kernel, and its CS is no kernel's: all is put back."""
    with attached(machine) as guest:
        notepad = guest.process("notepad.exe")
        with guest.break_on("notepad!NpFlushBuffer", process=notepad) as hits:
            hit = hits.wait(10)
        assert hit is not None
        before = dict(guest.registers(hit.vcpu))
        assert before["cs"] & 3 == 3
        write_wtf(guest, tmp_path, hit.vcpu)
        assert dict(guest.registers(hit.vcpu)) == before
        assert int(written(tmp_path)["lstar"], 0) == guest.symbol("nt!KiSystemCall64Shadow")
    list(machine.new_events())
    machine.wait_for("write", timeout=20)  # and the guest goes on


def test_the_memory_opens_with_other_tools_too(machine: Minint, tmp_path: Path) -> None:
    kdmp = pytest.importorskip("kdmp_parser", reason="kdmp-parser is not installed")
    dump_wtf(machine.qmp, tmp_path, symbols=[machine.symbols_folder])
    with coldframe.open(tmp_path / MEMORY, symbols=[machine.symbols_folder]) as image:
        notepad = image.process("notepad.exe")
        address = notepad.module("notepad.exe").base
        expected = notepad.memory.read(address, 4096)
        dtb = notepad.dtb
    theirs = kdmp.KernelDumpParser(str(tmp_path / MEMORY))
    assert bytes(theirs.read_virtual_page(address, dtb)) == expected


def test_the_verb(machine: Minint, tmp_path: Path) -> None:
    done = subprocess.run(
        command("dump", machine.qmp, "--wtf", tmp_path / "w", "--symbols", machine.symbols_folder),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "w").iterdir()} == {MEMORY, REGISTERS}
    assert run(["dump", str(machine.qmp), "--wtf", str(tmp_path), "-o", "x.dmp"]) == 2


def test_what_cannot_be_done(machine: Minint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CapabilityError, match="is a memory image"):
        dump_wtf(tmp_path / "file", tmp_path / "w")
    with pytest.raises(UsageError, match="found a file"):
        dump_wtf(machine.qmp, tmp_path / "file", symbols=[machine.symbols_folder])


def test_a_segment_carries_its_limit_where_wtf_looks() -> None:
    code = Segment.of_descriptor(0x10, 0, 0xFFFFFFFF, 0x00209B00)  # as SYSCALL loads it: no limit in the descriptor
    assert (code.attr, code.present) == (0x2F9B, True)
    assert not Segment.of_descriptor(0, 0, 0, 0).present


@pytest.mark.parametrize(
    ("fraction", "exponent", "tag"),
    [(1 << 63, 0x3FFF, 0), (0, 0, 1), (0, 0x8000, 1), (1 << 63, 0x7FFF, 2), (1, 0, 2), (1 << 62, 0x3FFF, 2)],
    ids=["one", "zero", "minus zero", "infinity", "denormal", "unnormal"],
)
def test_the_tag_of_a_register_is_what_is_in_it(fraction: int, exponent: int, tag: int) -> None:
    stack = [(fraction, exponent), *[(0, 0)] * 7]
    assert tag_word(0x01, 0, stack) == 0xFFFC | tag  # the others are empty
    assert tag_word(0x80, 7, stack) == 0x3FFF | tag << 14  # ST(0) is physical register 7
