"""The 32-bit form of a structure, worked out from its 64-bit form."""

from __future__ import annotations

import pytest

from builder import kernel
from coldframe.symbols.model import Record
from coldframe.windows.wow64 import Narrow


@pytest.fixture
def types(kernel_path):
    if kernel_path is None:
        pytest.skip("no kernel types: ../shared/symbols is absent")
    return kernel(kernel_path).types


def test_loader_structures_are_where_32_bit_windows_has_them(types):
    narrow = Narrow(types)
    assert narrow.offset("_PEB_LDR_DATA", "InLoadOrderModuleList") == 0x0C
    known = {
        "DllBase": 0x18,
        "EntryPoint": 0x1C,
        "SizeOfImage": 0x20,
        "FullDllName": 0x24,
        "BaseDllName": 0x2C,
        "Flags": 0x34,
        "HashLinks": 0x3C,
        "TimeDateStamp": 0x44,
    }
    assert {name: narrow.offset("_LDR_DATA_TABLE_ENTRY", name) for name in known} == known


@pytest.mark.parametrize("name", ["_NT_TIB", "_CLIENT_ID"])
def test_what_the_kernel_describes_in_both_forms_is_worked_out_right(types, name):
    real = types.find(f"{name}32")
    if not isinstance(real, Record):
        pytest.skip(f"this kernel has no {name}32")
    narrow = Narrow(types)
    assert {member: narrow.offset(name, member) for member in real.fields} == {
        member: field.offset for member, field in real.fields.items()
    }
