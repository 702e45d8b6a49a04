"""A resident boot of minint against a plain one; what is changed in the guest, and what is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coldframe
from coldframe.errors import SymbolNotFoundError
from coldframe.minint import Minint, start
from coldframe.paging import State, Via
from coldframe.qemu import VirtualMachine
from coldframe.resident import BootEvent, BootOptions, Phase, Report, ResidentBoot, verify
from coldframe.resident.images import RUNS_FROM_MEMORY, VARIABLE
from coldframe.symbols import load_pdb
from coldframe.symbols.isf import isf_document
from coldframe.target import symbol_store
from resident.steering import MEMORY, QUICK, paused, steered

pytestmark = pytest.mark.minint

GONE = (State.PAGEFILE, State.COMPRESSED)


def looked_at(machine: Minint) -> Report:
    """What verification finds when minint's own trimming has come to rest."""
    machine.wait_until_steady()
    with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        return verify(guest)


@pytest.mark.parametrize(
    ("layout", "vcpus", "shadow"), [("22000", 1, False), ("19041", 4, True)], ids=["22000-1", "19041-4-shadow"]
)
def test_beside_a_plain_boot(layout: str, vcpus: int, shadow: bool) -> None:
    """The same disk, the same options, the same memory: hundreds of pages leave RAM, or none does."""
    with start(layout=layout, vcpus=vcpus, memory=MEMORY, kva_shadow=shadow) as machine:
        plain = looked_at(machine)
    with start(layout=layout, vcpus=vcpus, memory=MEMORY, kva_shadow=shadow, resident=True) as machine:
        first = machine.report
        resident = looked_at(machine)
    assert plain.pages.promised > 100
    assert plain.pages.images > 0
    assert plain.compression_process is not None
    assert plain.paging_files == [r"\??\C:\pagefile.sys"]
    assert not plain.resident
    for report in (first, resident):
        assert report is not None
        assert report.resident, report.problems
        assert report.pages.promised == 0
        assert not {str(state) for state in GONE} & set(report.pages.states)
        assert (report.paging_files, report.compression_process, report.store) == ([], None, None)
    assert first is not None
    assert first.prevented == [r"\??\C:\pagefile.sys"]
    assert resident.pages.not_in_ram == resident.pages.data  # what a mapped data file holds is in the file
    assert resident.pages.unreadable == 0  # and is read from the guest's own disk


def test_the_phases_come_in_order_and_the_files_by_name() -> None:
    with steered("PAGEFILES=2 SWAPFILE=4 BOOTEXECUTE=4") as seen:
        phases = [event.phase for event in seen.told("phase")]
        assert phases == [Phase.KERNEL, Phase.SYSTEM, Phase.SMSS, Phase.CSRSS, Phase.DONE]
        calls = [(event.name, event.process, event.prevented) for event in seen.told("paging-file")]
        assert calls == [
            (r"\??\C:\autochk.sys", "autochk.exe", False),  # not smss.exe's: left alone, and told
            (r"\??\C:\pagefile.sys", "smss.exe", True),
            (r"\??\C:\pagefile1.sys", "smss.exe", True),
            (r"\??\C:\swapfile.sys", "smss.exe", True),
        ]
        assert [(call.minimum, call.maximum) for call in seen.boot.calls[1:]] == [
            (16 << 20, 16 << 20), (16 << 20, 16 << 20), (4 << 20, 4 << 20),
        ]  # fmt: skip
        assert not seen.report.resident
        assert seen.report.paging_files == [r"\??\C:\autochk.sys"]
        check_facts(json.loads(json.dumps(seen.report.facts())))
        assert "autochk.exe" in seen.report.let_through[0]
        list(seen.machine.new_events())
        names = [name for _, name in seen.boot.processes]
        logged = [event["name"] for event in seen.machine.events if event.get("event") == "process"]
        assert names[: len(logged)] == logged[: len(names)]
        smss = [event for event in seen.machine.events if event.get("event") == "paging-file"]
        assert [event["file"] for event in smss] == [r"\??\C:\autochk.sys"]  # no other call was carried out


def check_facts(facts: Mapping[str, Any]) -> None:
    """What scripts rely on."""
    assert set(facts) == {
        "resident", "paging_files", "prevented", "let_through", "winpe_mode", "compression", "commit", "before",
        "after", "lost", "problems", "notes",
    }  # fmt: skip
    assert int(facts["winpe_mode"], 16) & RUNS_FROM_MEMORY
    assert isinstance(facts["after"], Mapping)
    assert 0 < facts["commit"]["bytes"] < facts["commit"]["limit"] <= (256 + 4) << 20  # RAM and the file


def test_a_file_made_behind_csrss_is_found() -> None:
    with steered("LATEFILE=4") as seen:
        assert seen.report.prevented == [r"\??\C:\pagefile.sys"]
        assert seen.report.paging_files == [r"\??\C:\latefile.sys"]
        assert any("latefile" in problem for problem in seen.report.problems)


def test_images_by_the_volumes_device() -> None:
    with steered(boot=BootOptions("device", until="notepad.exe", settle=0.0)) as seen:
        assert seen.report.winpe_mode == 0
        assert seen.report.resident, seen.report.problems
        assert looked_at(seen.machine).pages.images == 0
        assert [event.name.partition(" of ")[0] for event in seen.told("images-in-ram") if event.name] == [
            "Characteristics"
        ]


@pytest.mark.parametrize("way", ["winpe", "device"])
def test_stealth_leaves_nothing_of_it_behind(way: str) -> None:
    options = BootOptions(way, stealth=True, until="notepad.exe", settle=0.0)  # type: ignore[arg-type]
    with steered(boot=options) as seen:
        assert seen.report.winpe_mode == 0
        assert seen.report.pages.images == 0
        assert "put back" in seen.told("images-in-ram")[-1].text
        with coldframe.attach(seen.machine.qmp, symbols=[seen.machine.symbols_folder]) as guest:
            device = guest.variable("IopVolumeDevice")
            assert device is not None
            volume = guest.struct("_DEVICE_OBJECT", guest.typed.pointer(device))
            assert volume.integer("Characteristics") & 4 == 0


def test_without_images_in_ram_their_pages_are_in_their_files() -> None:
    with steered(boot=BootOptions("off", until="notepad.exe", settle=0.0)) as seen:
        assert looked_at(seen.machine).pages.images > 0


def ram(vm: VirtualMachine) -> dict[int, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    return {run.start: np.array(vm.physical.view(run.start, run.size)) for run in vm.physical.runs}


def test_nothing_is_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a stop and the next run, breakpoints coming and going: four bytes of the kernel's data, and no others."""
    changed: list[int] = []
    stops: list[str] = []
    held: dict[int, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
    run = VirtualMachine.run_until_stop

    def compared(vm: VirtualMachine, timeout: float | None = None) -> object:
        for start_of, before in held.items():
            now = vm.physical.view(start_of, len(before))
            changed.extend(start_of + int(offset) for offset in np.flatnonzero(now != before))
        held.clear()
        stop = run(vm, timeout)
        if stop is not None:
            stops.append(stop.reason)
            held.update(ram(vm))
        return stop

    monkeypatch.setattr(VirtualMachine, "run_until_stop", compared)
    with steered("PAGEFILES=2", boot=BootOptions(until="services.exe", settle=0.0)) as seen:
        guest_byte = None
        with coldframe.attach(seen.machine.qmp, symbols=[seen.machine.symbols_folder]) as guest:
            variable = guest.variable(VARIABLE)
            assert variable is not None
            guest_byte = guest.memory.translate(variable + 3)  # bit 31 is in the last of its bytes
    assert stops.count("breakpoint") == 2
    assert stops.count("watchpoint") >= 2  # one that comes as a look ends is seen by that look
    assert changed == [guest_byte]


def test_every_page_has_the_bytes_that_the_guest_says() -> None:
    with start(vcpus=2, memory=MEMORY, resident=True) as machine:
        machine.wait_until_steady()
        truth = machine.truth()
        with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
            compared = 0
            for page in truth.pages:
                if page.address >> 63 or not page.sha256 or page.state == State.SUBSECTION:
                    continue
                data = guest.process(page.pid).memory.read(page.address, 4096)
                assert hashlib.sha256(data).hexdigest() == page.sha256
                compared += 1
            in_files = {page.file for page in truth.pages if page.state == State.SUBSECTION}
        machine.go()
    assert compared > 1000
    assert {str(file).rpartition(".")[2] for file in in_files} == {"dat"}  # the mapped data file; no image
    assert not any(Via.PAGED_TABLE in page.via for page in truth.pages)


def test_too_late_is_told_with_what_is_lost() -> None:
    with start(vcpus=2, memory=MEMORY) as machine:
        machine.wait_until_steady()
        events: list[BootEvent] = []
        with VirtualMachine.attach(machine.qmp, leave_running=True) as vm:
            boot = ResidentBoot(vm, symbol_store([machine.symbols_folder]), BootOptions(settle=0.0), events.append)
            report = verify(boot.run(), boot)
    said = " ".join(event.text for event in events if event.kind == "late")
    assert "images that are mapped already" in said
    assert r"\??\C:\pagefile.sys" in said
    assert "the boot is over" in said
    assert list(report.lost) == [event.text for event in events if event.kind == "late"]
    assert not report.resident


def test_a_kernel_without_a_symbol_is_told_before_it_matters(tmp_path: Path) -> None:
    missing = "InitWinPEModeType"
    with paused() as machine:
        symbol_file = load_pdb(machine.symbols_folder / "ntkrnlmp.pdb")
        document = isf_document(symbol_file)
        symbols = document["symbols"]
        assert isinstance(symbols, dict)
        del symbols[missing]
        (tmp_path / "ntkrnlmp.json").write_text(json.dumps(document))
        with (
            VirtualMachine.attach(machine.qmp, leave_running=True) as vm,
            pytest.raises(SymbolNotFoundError, match=missing),
        ):
            ResidentBoot(vm, symbol_store([tmp_path / "ntkrnlmp.json"]), QUICK).run()
        machine.wait_for("write", timeout=30)  # and the guest boots on


def test_a_guest_that_promised_nearly_all_its_memory_is_warned_of() -> None:
    """Without a paging file nothing raises the commit limit: 230 of 256 MB are promised to one program."""
    with steered("STRESS=230 STRESSTHREADS=1", boot=replace(QUICK, settle=2.0)) as seen:
        found = seen.report
        assert found.committed is not None
        assert found.commit_limit is not None
        assert found.committed > 230 << 20
        assert any("of the commit limit is used" in note for note in found.notes)
