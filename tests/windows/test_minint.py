"""minint, running and dumped: what coldframe finds is what the guest's kernel logged."""

from __future__ import annotations

import pytest

from coldframe.images import open_image
from coldframe.minint import start
from coldframe.target import attach, symbol_store
from coldframe.windows import Guest
from coldframe.windows.anchors import BY_MEMORY
from coldframe.windows.kernel import Search, find_kernel

pytestmark = pytest.mark.minint


class Frozen:
    """A minint that was dumped and ended: its files, what it logged, and what was seen of it while it ran."""

    def __init__(self, folder, **words):
        with start(**words) as machine:
            self.store = symbol_store([machine.symbols_folder])
            with attach(str(machine.qmp), symbols=[machine.symbols_folder]) as guest:
                self.live = _seen(guest)
                self.elf, self.raw = folder / "elf", folder / "raw"
                machine.control("dump-guest-memory", paging=False, protocol=f"file:{self.elf}")
                machine.control("pmemsave", val=0, size=512 << 20, filename=str(self.raw))
            list(machine.new_events())
            self.logged = [event for event in machine.events if event.get("event") == "process"]
            self.ended = {event["pid"] for event in machine.events if event.get("event") == "process-exit"}


def _seen(guest: Guest):
    return {
        "kernel": (guest.location.base, guest.location.identity, guest.dtb),
        "processes": [(p.pid, p.ppid, p.name, p.eprocess.address, p.dtb, p.user_dtb) for p in guest.processes],
        "threads": [(t.tid, t.start_address) for p in guest.processes for t in p.threads],
        "modules": [(p.pid, m.name, m.base, m.size) for p in guest.processes for m in p.modules],
        "vads": [(p.pid, v.start, v.end, v.kind, v.protection, v.file) for p in guest.processes for v in p.vads],
        "handles": [(p.pid, h.value, h.object.type, h.object.name) for p in guest.processes for h in p.handles],
        "drivers": [(m.name, m.base, str(m.pdb)) for m in guest.drivers],
        "paging files": [(f.number, f.name) for f in guest.paging_files],
    }


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "kva-shadow"])
def frozen(request, tmp_path_factory):
    return Frozen(tmp_path_factory.mktemp("minint"), vcpus=2, kva_shadow=request.param)


def test_processes_are_those_that_the_guest_logged(frozen):
    logged = {
        event["pid"]: (event["ppid"], event["name"], int(event["eprocess"], 0), int(event["dtb"], 0))
        for event in frozen.logged
        if event["pid"] not in frozen.ended
    }
    seen = {pid: rest[:4] for pid, *rest in frozen.live["processes"] if pid not in frozen.ended}
    assert {pid: tuple(rest) for pid, rest in seen.items()} == {
        pid: (ppid, name[:14], eprocess, dtb) for pid, (ppid, name, eprocess, dtb) in logged.items() if pid in seen
    }
    assert {"System", "smss.exe", "csrss.exe", "services.exe", "notepad.exe"} <= {rest[1] for rest in seen.values()}


def test_a_dump_shows_what_the_paused_guest_showed(frozen):
    image = open_image(frozen.elf)
    for registers in (image.registers, ()):
        assert _seen(Guest.open(image.physical, frozen.store, registers)) == frozen.live
    raw = open_image(frozen.raw)
    assert raw.format == "raw"
    assert _seen(Guest.open(raw.physical, frozen.store)) == frozen.live


def test_each_anchor_alone_finds_the_kernel_in_a_dump(frozen):
    physical = open_image(frozen.raw).physical
    for anchor in BY_MEMORY:
        found = anchor(Search(physical, frozen.store, ()))
        assert found is not None, anchor.__name__
        assert (found.base, found.identity) == frozen.live["kernel"][:2]


def test_the_kernel_is_found_from_a_vcpu_that_runs_user_code(frozen):
    image = open_image(frozen.elf)
    _, _, _, _, dtb, user_dtb = next(p for p in frozen.live["processes"] if p[2] == "notepad.exe")
    for registers in image.registers:
        kpcr = next(registers[name] for name in ("gs_base", "k_gs_base") if registers[name] >> 63)
        user = {**registers, "cr3": user_dtb or dtb, "rip": 0x7FF6_0000_1000, "gs_base": 0x1000, "k_gs_base": kpcr}
        found = find_kernel(image.physical, None, [user])
        assert found.base == frozen.live["kernel"][0]
        assert "page-fault handler" in found.how


def test_current_threads_are_threads_of_their_processes(frozen):
    image = open_image(frozen.elf)
    guest = Guest.open(image.physical, frozen.store, image.registers)
    for vcpu in range(guest.vcpus):
        thread = guest.current_thread(guest.registers(vcpu), vcpu)
        assert thread.ethread.type_name == "_ETHREAD"
        assert guest.current_process(guest.registers(vcpu)).pid in {pid for pid, *_ in frozen.live["processes"]} | {0}


def test_handles_name_the_files_that_notepad_writes(frozen):
    notepad = next(pid for pid, _, name, *_ in frozen.live["processes"] if name == "notepad.exe")
    files = [name for pid, _, kind, name in frozen.live["handles"] if pid == notepad and kind == "File"]
    assert files
    assert all(name.startswith("\\Users\\minint\\Documents\\notes-") for name in files)


def test_every_process_of_a_dump_is_on_the_list_and_in_the_cid_table(frozen):
    guest = Guest.open(open_image(frozen.raw).physical, frozen.store)
    listed = {pid for pid, *_ in frozen.live["processes"]} - frozen.ended
    assert {s.process.pid for s in guest.sightings() if s.found_by[:2] == ("list", "cid table")} >= listed
    assert not guest.warnings


def test_a_process_unlinked_in_a_dump_is_found_in_the_cid_table(frozen):
    image = open_image(frozen.raw)
    guest = Guest.open(image.physical, frozen.store)
    links = guest.process("smss.exe").eprocess.struct("ActiveProcessLinks")
    after, before = links.integer("Flink"), links.integer("Blink")
    offsets = guest.types.record("_LIST_ENTRY").fields
    patches = {before + offsets["Flink"].offset: after, after + offsets["Blink"].offset: before}
    places = [(guest.memory.translate(address), value) for address, value in patches.items()]
    with frozen.raw.open("r+b") as file:
        kept = []
        for place, value in places:
            file.seek(place)
            kept.append(file.read(8))
            file.seek(place)
            file.write(value.to_bytes(8, "little"))
        file.flush()
        try:
            guest = Guest.open(open_image(frozen.raw).physical, frozen.store)
            assert "smss.exe" not in {process.name for process in guest.processes}
            assert [s.found_by for s in guest.sightings() if s.process.name == "smss.exe"] == [
                ("cid table", "threads", "handle tables")
            ]
        finally:
            for (place, _), old in zip(places, kept, strict=True):
                file.seek(place)
                file.write(old)


def test_the_object_directory_of_a_dump_has_what_the_kernel_made(frozen):
    guest = Guest.open(open_image(frozen.raw).physical, frozen.store)
    found = {entry.path: entry.type for entry in guest.objects.directory()}
    assert found["\\Device"] == "Directory"
    assert found["\\ObjectTypes\\File"] == "Type"
    assert found["\\FileSystem\\Ntfs"] == "Driver"
    assert {entry.path for entry in guest.objects.directory("\\device")} == {
        path for path in found if path.startswith("\\Device\\")
    }
