"""A 32-bit guest's lists say what was built, whatever NT it is."""

from __future__ import annotations

from x86.conftest import NTDLL, TEXT


def test_processes_and_threads(built):
    guest = built.open()
    assert [(p.pid, p.ppid, p.name, p.dtb) for p in guest.processes] == [
        (process.pid, process.ppid, process.name, process.dtb) for process in built.image.processes
    ]
    notepad = guest.process(812)
    assert [(t.tid, t.start_address, t.process.pid, t.attached_process.pid) for t in notepad.threads] == [
        (1204, built.thread.start, 812, 812)
    ]
    assert notepad.user_dtb is None
    assert not notepad.wow64
    assert guest.dtb == built.image.kernel_dtb
    assert guest.build == 3790


def test_modules_and_drivers(built):
    guest = built.open()
    notepad = guest.process("notepad.exe")
    assert [(m.name, m.base, m.size) for m in notepad.modules] == built.notepad.modules
    assert [(m.name, m.base, m.size) for m in guest.drivers] == built.image.drivers
    assert guest.drivers[0].is_kernel
    assert guest.module("hal").pdb.name == "halacpi.pdb"
    assert notepad.module_at(0x7C90_1000).name == "ntdll.dll"
    assert notepad.module_at(0x806E_1000).name == "hal.dll"
    assert guest.symbolize(guest.symbol("nt!NtWriteFile") + 2) == "nt!NtWriteFile+0x2"


def test_vads_with_their_files_and_prototype_ptes(built):
    vads = built.open().process(812).vads
    assert [(v.start, v.end, v.kind, v.protection, v.file) for v in vads] == [
        (0x10000, 0x20000, "Private", "PAGE_READWRITE", None),
        (0x40_0000, 0x40_7000, "Mapped", "PAGE_READONLY", TEXT),
        (0x7C90_0000, 0x7C90_7000, "Image", "PAGE_EXECUTE_WRITECOPY", NTDLL),
    ]
    for told in (built.text, built.ntdll):
        found = [vads.find(told.start).prototype_pte(told.start + 4096 * page) for page in range(len(told.pages))]
        assert found == told.pages


def test_handles_and_objects(built):
    guest = built.open()
    notepad = guest.process(812)
    assert [(h.value, h.object.type, h.object.address, h.access) for h in notepad.handles] == [
        (4, "File", built.file, 0x120089),
        (8, "Process", built.notepad.address, 0x1FFFFF),
        (4100, "Process", built.smss.address, 1),
    ]
    assert guest.file_of_handle(notepad, 4) == "\\Users\\b.txt"
    assert [(o.path, o.type, o.target) for o in guest.objects.directory()] == [
        ("\\C:", "SymbolicLink", "\\Device\\HarddiskVolume1"),
        ("\\Device", "Directory", None),
    ]


def test_an_unlinked_process_is_found_by_its_identifier_and_by_a_scan(built):
    image = built.image
    for process in image.processes:
        head = process.address + image.types.offset("_EPROCESS", "Pcb.ProfileListHead")
        image._empty_list(head)
        image.write_struct("_EPROCESS", process.address, {"Pcb.Header.Type": 3})
    image.unlink(built.notepad)
    guest = built.open()
    assert 812 not in [process.pid for process in guest.processes]
    found = {s.process.pid: s.found_by for s in guest.sightings(scan=True)}
    assert {"cid table", "scan"} <= set(found[812])


def test_paging_files(built):
    assert [(file.number, file.name) for file in built.open().paging_files] == [(0, "\\??\\C:\\pagefile.sys")]


def test_the_current_thread_is_the_one_that_fs_leads_to(built):
    registers = built.registers
    guest = built.open([registers])
    assert guest.current_thread(registers).tid == 1204
    user = built.image.registers(built.notepad, user=True)
    assert guest.current_thread(user, 0).tid == 1204, "in user mode FS is the TEB's, so KiProcessorBlock tells"
    assert guest.facts()["page_tables"] == built.image.format
