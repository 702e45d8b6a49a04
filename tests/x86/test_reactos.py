"""An NT that is not Microsoft's: no CodeView record, another folder, and a few structures under other names."""

from __future__ import annotations

import json
import struct

import pytest

from builder import pattern
from builder.compact import NT52, write_isf
from coldframe.cli.main import run as coldframe
from coldframe.errors import UnreadableMemoryError
from coldframe.paging.arrays import CODE
from coldframe.paging.page import PagefileSlot, State
from coldframe.windows import Guest
from x86.conftest import Built, Store, symbols_of
from x86.renamed import like_reactos
from x86.test_states import PAGED, Scene

OPTIONS = {"codeview": False, "root": "C:\\ReactOS", "base": 0x80400000}


@pytest.fixture
def reactos(folder) -> Built:
    return Built(symbols_of(NT52, folder), **OPTIONS)


def test_its_names_for_structures_are_known(reactos):
    registers = reactos.registers
    symbols = like_reactos(reactos.symbol_file)
    guest = Guest.open(reactos.image.physical(), Store(symbols, named=True, known=False), [registers])
    assert guest.current_thread(registers).tid == 1204
    assert [(file.number, file.name) for file in guest.paging_files] == [(0, "\\??\\C:\\pagefile.sys")]
    assert [warning for warning in guest.warnings if "CodeView" not in warning] == []


@pytest.mark.parametrize(("file", "slot"), [(0, 1), (0, 0x45), (3, 0x1234)])
def test_a_swap_entry_is_not_taken_for_a_transition_pte(reactos, file, slot):
    """Its PTE is `ENTRY_FROM_FILE_OFFSET` of ntoskrnl/mm/pagefile.c, `file | slot << 11 | 0x400`, shifted by one."""
    image, dtb = reactos.image, reactos.notepad.dtb
    swapped, kept = 0x20000, 0x21000
    image.set_entry(dtb, swapped, (file | slot << 11 | 0x400) << 1)
    image.set_entry(dtb, kept, image.transition(image.allocate_page(pattern(7)), protection=4))
    symbols = like_reactos(reactos.symbol_file)
    guest = Guest.open(image.physical(), Store(symbols, named=True, known=False), [reactos.registers])
    memory = guest.process(812).memory
    page = memory.resolve(swapped)
    assert (page.state, page.pagefile) == (State.PAGEFILE, PagefileSlot(file, (slot - 1) * 4096))
    with pytest.raises(UnreadableMemoryError, match=f"paging file {file}"):
        memory.read(swapped, 16)
    assert memory.read(kept, 4096) == pattern(7)
    pages = memory.pages()
    (row,) = [row for row in range(len(pages)) if pages.address[row] == swapped]
    assert (pages.state[row], pages.number[row], pages.offset[row]) == (CODE[State.PAGEFILE], file, (slot - 1) * 4096)


def test_a_memory_area_names_the_file_and_promises_no_zeros(reactos):
    """ReactOS maps files so: its VAD has no control area, and what is not in the tables comes from a segment."""
    image, area = reactos.image, reactos.private.address
    segment = image.allocate_pool(0xA0)
    image.write(segment, struct.pack("<8xI", reactos.file))
    flags = {"PrivateMemory": 0, "Spare": 2, "VadType": 2}
    image.write_struct("_MMVAD_SHORT", area, {f"u.VadFlags.{name}": value for name, value in flags.items()})
    image.write(area + 0x18, bytes(0x40))
    image.write(area + 0x28, struct.pack("<I", 1))
    image.write(area + 0x48, struct.pack("<I", segment))
    symbols = like_reactos(reactos.symbol_file)
    guest = Guest.open(image.physical(), Store(symbols, named=True, known=False), [reactos.registers])
    process = guest.process(812)
    vad = process.vads.find(0x11000)
    assert (vad.kind, vad.file) == ("Image", "\\Users\\b.txt")
    assert process.memory.resolve(0x12000).state is State.UNMAPPED
    with pytest.raises(UnreadableMemoryError, match="no prototype PTE"):
        process.memory.read(0x12000, 16)


@pytest.fixture
def image(reactos, tmp_path):
    Scene(reactos)
    path = tmp_path / "reactos.raw"
    path.write_bytes(bytes(reactos.image.ram[0].data))
    return path, write_isf(tmp_path / "reactos.json", NT52, pdb="ntoskrnl.pdb")


def run(capsys, image, *words):
    path, symbols = image
    verb, *rest = words
    status = coldframe([verb, str(path), *rest, "--symbols", str(symbols), "--json"])
    told = capsys.readouterr()
    assert status == 0, told.err
    return json.loads(told.out)


def test_the_verbs_of_the_command_line(capsys, image, tmp_path):
    info = run(capsys, image, "info")
    assert (info["kernel"]["base"], info["kernel"]["pdb"], info["page_tables"]) == ("0x80400000", None, "x86")
    assert "no CodeView record" in info["warnings"][0]
    assert [row["name"] for row in run(capsys, image, "ps")] == ["System", "smss.exe", "notepad.exe"]
    assert [row["tid"] for row in run(capsys, image, "threads", "--pid", "812")] == [1204]
    assert [row["name"] for row in run(capsys, image, "modules", "--pid", "812")] == ["notepad.exe", "ntdll.dll"]
    assert [row["name"] for row in run(capsys, image, "drivers")] == ["ntoskrnl.exe", "hal.dll"]
    assert len(run(capsys, image, "vads", "--pid", "812")) == 3
    assert [row["type"] for row in run(capsys, image, "handles", "--pid", "812")] == ["File", "Process", "Process"]
    assert len(run(capsys, image, "objects")) == 2
    page = run(capsys, image, "pte", hex(PAGED), "--pid", "812")
    assert (page["state"], page["pagefile"]) == ("pagefile", {"number": 0, "offset": "0x45000"})
    counted = {row["name"]: row["pages"] for row in run(capsys, image, "census")}
    assert counted["notepad.exe"]["subsection"] == 2
    path, symbols = image
    for words in (
        ("figure", str(path), hex(PAGED), "--pid", "812", "-o", str(tmp_path / "path.svg")),
        ("dump", str(path), "-o", str(tmp_path / "all.elf")),
        ("read", str(path), "0x20000", "64", "--pid", "812", "-o", str(tmp_path / "page")),
    ):
        assert coldframe([*words, "--symbols", str(symbols)]) == 0, words
    assert (tmp_path / "page").read_bytes()[:4] == b"\1\0\0\0"


def test_without_the_symbol_file_the_error_is_one_line(capsys, image):
    status = coldframe(["ps", str(image[0])])
    assert status == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "no CodeView record" in told[0]
