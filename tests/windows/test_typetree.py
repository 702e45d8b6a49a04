"""A structure seen as lines: every member once, at its offset, with the value that memory has there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.kernels import SHARED
from coldframe.cli.main import run
from coldframe.symbols.model import Base, BitField, Pointer
from coldframe.windows.typetree import TypeTree, written
from windows.conftest import Built


@pytest.fixture
def built(newest: Path) -> Built:
    return Built(newest)


def test_every_member_stands_at_its_offset_with_its_value(built: Built) -> None:
    guest = built.open()
    process = guest.process(812)
    lines = list(TypeTree(guest.types, guest.typed).lines("_EPROCESS", process.eprocess.address))
    record = guest.types.record("_EPROCESS")
    assert {line.name: line.offset for line in lines} == {name: field.offset for name, field in record.fields.items()}
    for line in lines:
        raw = int.from_bytes(guest.memory.read(process.eprocess.address + line.offset, 8), "little")
        match line.type:
            case Base(size=size, signed=False) | Pointer(size=size):
                assert line.value == raw & (1 << 8 * size) - 1
            case BitField(position=position, length=length):
                assert line.value == raw >> position & (1 << length) - 1
    shown = {line.name: written(line) for line in lines}
    assert shown["UniqueProcessId"].startswith("0x32c ")
    assert '"notepad.exe"' in shown["ImageFileName"]
    links = process.eprocess.address_of("ActiveProcessLinks")
    assert f"[ {guest.memory.u64(links):#x} - {guest.memory.u64(links + 8):#x} ]" in shown["ActiveProcessLinks"]


def test_depth_opens_structures_within(built: Built) -> None:
    guest = built.open()
    address = guest.process(812).eprocess.address
    closed = list(TypeTree(guest.types, guest.typed).lines("_EPROCESS", address))
    opened = list(TypeTree(guest.types, guest.typed, depth=2).lines("_EPROCESS", address))
    assert {line for line in opened if line.depth == 0} == set(closed)
    (dtb,) = (line for line in opened if line.name == "DirectoryTableBase")
    assert (dtb.depth, dtb.offset) == (1, guest.types.offset("_EPROCESS", "Pcb.DirectoryTableBase"))
    assert dtb.value == guest.process(812).eprocess["Pcb.DirectoryTableBase"]


def test_what_cannot_be_read_says_why_and_ends_nothing(built: Built) -> None:
    guest = built.open()
    lines = list(TypeTree(guest.types, guest.typed).lines("_LIST_ENTRY", 0x1000))
    assert [line.name for line in lines] == ["Flink", "Blink"]
    assert all("0x1000" in line.trouble or "0x1008" in line.trouble for line in lines)


def test_the_verb_shows_types_of_a_pdb(capsys: pytest.CaptureFixture[str]) -> None:
    ntdll_pdb = SHARED / "ntdll.pdb" / "ntdll.pdb"
    if not ntdll_pdb.exists():
        pytest.skip("needs ../shared/symbols/ntdll.pdb/ntdll.pdb, which is not here")
    assert run(["dt", str(ntdll_pdb), "_UNICODE_STRING", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["type"], shown["size"]) == ("_UNICODE_STRING", 16)
    assert [(field["name"], field["offset"]) for field in shown["fields"]] == [
        ("Length", 0),
        ("MaximumLength", 2),
        ("Buffer", 8),
    ]
    assert run(["dt", str(ntdll_pdb), "_NT_TI*"]) == 0
    assert "_NT_TIB" in capsys.readouterr().out
    assert run(["dt", str(ntdll_pdb), "_UNICODE_STRINK"]) == 1
    assert "did you mean _UNICODE_STRING" in capsys.readouterr().err
