"""The table of system calls is consistent in itself, and with ntdll and minint's services."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from coldframe.debug import prototype
from coldframe.debug.prototypes import table

ROOT = Path(__file__).resolve().parents[2]
NTDLL = ROOT.parent / "shared" / "symbols" / "ntdll.pdb" / "ntdll.pdb"
SERVICES = ROOT / "guest" / "kernel" / "services.h"
KINDS = {*("handle", "ptr", "out", "in", "phandle", "access"), *("u8", "u32", "u64", "i32", "pu32", "pu64", "pi64")}
KINDS |= {"ustr", "oa", "cid"}


def test_every_kind_is_known_and_every_length_is_an_argument():
    assert len(table()) >= 150
    for known in table().values():
        names = [parameter.name for parameter in known.parameters]
        assert len(names) == len(set(names)) <= 15
        for parameter in known.parameters:
            assert parameter.kind in KINDS, (known.name, parameter)
            assert parameter.name.isidentifier()
            assert parameter.length is None or parameter.length in names, (known.name, parameter)


def test_every_system_call_is_one_of_ntdlls():
    if not NTDLL.exists():
        pytest.skip("no Windows symbols: ../shared/symbols is absent")
    text = subprocess.run(
        ["llvm-pdbutil", "dump", "--publics", NTDLL], check=True, capture_output=True, text=True
    ).stdout
    exported = set(re.findall(r"`(Nt\w+)`", text))
    newer = {"NtAllocateVirtualMemoryEx", "NtMapViewOfSectionEx", "NtQueryInformationByName", "NtCreatePort"}
    assert {name for name in table() if name not in exported} <= newer


def test_minints_services_take_as_many_arguments():
    if not SERVICES.exists():
        pytest.skip("no guest/kernel/services.h")
    for name, count in re.findall(r"SERVICE\((Nt\w+), (\d+)\)", SERVICES.read_text()):
        known = prototype(name)
        if known is not None:
            assert len(known.parameters) == int(count), name


@pytest.mark.parametrize("name", ["NtWriteFile", "nt!NtWriteFile", "ntdll!ZwWriteFile", "ZwWriteFile"])
def test_nt_and_zw_names_with_and_without_module_are_the_same_call(name):
    found = prototype(name)
    assert found is not None
    assert [parameter.name for parameter in found.parameters][5:7] == ["Buffer", "Length"]
    assert found.parameters[5].length == "Length"


def test_other_functions_have_no_prototype():
    assert prototype("nt!KeBugCheckEx") is None
