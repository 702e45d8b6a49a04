"""What the kernel lists, read from images built of every kernel's types."""

from __future__ import annotations

import pytest

from coldframe.errors import CapabilityError, NotFoundError, SymbolNotFoundError


def test_processes_are_listed_in_the_kernels_order(built):
    guest = built.open()
    assert [(p.pid, p.ppid, p.name, p.dtb) for p in guest.processes] == [
        (b.pid, b.ppid, b.name, b.dtb) for b in built.image.processes
    ]
    assert [p.eprocess.address for p in guest.processes] == [b.address for b in built.image.processes]


def test_the_kernels_dtb_is_the_system_processes(built):
    guest = built.open([built.image.registers(built.notepad)])
    assert guest.location.dtb == built.notepad.dtb
    assert guest.dtb == built.image.kernel_dtb
    assert guest.kernel.base == built.image.base


def test_a_process_is_found_by_pid_and_by_its_only_name(built):
    guest = built.open()
    assert guest.process(812).name == "notepad.exe"
    assert guest.process("SMSS.EXE").pid == 368
    with pytest.raises(NotFoundError, match="812, 816"):
        guest.process("notepad.exe")
    with pytest.raises(NotFoundError, match=r"smss\.exe"):
        guest.process("smsss.exe")


def test_a_name_that_was_cut_off_is_found_by_the_whole_name(built):
    image = built.image
    long = built.add_process("SearchIndexer.exe", 5000, 4)
    name = image.allocate_struct("_OBJECT_NAME_INFORMATION")
    path = "\\Device\\HarddiskVolume2\\Windows\\System32\\SearchIndexer.exe"
    image.write_unicode_string(name, path)
    image.write_struct("_EPROCESS", long.address, {"SeAuditProcessCreationInfo.ImageFileName": name})
    guest = built.open()
    assert guest.process("searchindexer.exe").pid == 5000
    assert guest.process("searchindexer.exe").path == path
    assert guest.process(812).path is None
    with pytest.raises(NotFoundError):
        guest.process("search")


def test_an_ended_process_does_not_make_a_name_ambiguous(built):
    image = built.image
    image.write_struct("_EPROCESS", built.other.address, {"ExitTime.QuadPart": 0x01D61B7000000000})
    guest = built.open()
    assert guest.process("notepad.exe").pid == 812
    assert guest.process(816).exited is not None
    assert guest.process(812).alive
    assert guest.process(812).parent == guest.process("smss.exe")


def test_threads_belong_to_their_process(built):
    guest = built.open()
    (thread,) = guest.process(812).threads
    assert (thread.tid, thread.start_address) == (built.thread.tid, built.thread.start)
    assert guest.thread(1204) == thread
    assert thread.process == guest.process(812)
    assert thread.state == "Waiting"
    assert thread.trap_frame is None


def test_current_thread_comes_from_the_kpcr_in_kernel_and_in_user_mode(built):
    image = built.image
    image.add_processor(built.idle)
    image.add_processor(built.thread)
    guest = built.open()
    for user in (False, True):
        registers = image.registers(built.notepad, 1, user=user)
        assert guest.current_thread(registers).tid == 1204
        assert guest.current_process(registers).pid == 812
    assert guest.current_thread({}, vcpu=1).tid == 1204
    with pytest.raises(NotFoundError, match="KiProcessorBlock has 2"):
        guest.current_thread({"gs_base": image.base}, vcpu=2)


def test_drivers_are_listed_and_addresses_named(built):
    image = built.image
    ntfs = image.base + 0x2000_0000
    image.add_driver("ntoskrnl.exe", image.base, image.size)
    image.add_driver("Ntfs.sys", ntfs, 0x5000, pdb="ntfs.pdb", guid="ab" * 16)
    guest = built.open()
    assert [(m.name, m.base, m.size) for m in guest.drivers] == image.drivers
    write = guest.symbol("nt!NtWriteFile")
    assert write == image.base + built.symbol_file.symbols["NtWriteFile"] == guest.symbol("NtWriteFile")
    assert guest.symbolize(write + 5) == "nt!NtWriteFile+0x5"
    assert guest.symbolize(ntfs + 0x1234) == "Ntfs+0x1234"
    assert guest.symbolize(0x1234) == "0x1234"
    assert str(guest.module("ntfs").pdb) == f"ntfs.pdb {'AB' * 16}-1"
    with pytest.raises(SymbolNotFoundError, match="NtWriteFile"):
        guest.symbol("nt!NtWriteFill")


def test_user_modules_come_from_the_peb(built):
    image = built.image
    image.add_module(built.notepad, "notepad.exe", 0x7FF7_4360_0000, 0x38000, pdb="notepad.pdb")
    image.add_module(built.notepad, "ntdll.dll", 0x7FFB_1234_0000, 0x1F8000, pdb="ntdll.pdb")
    guest = built.open()
    process = guest.process(812)
    assert [(m.name, m.base, m.size) for m in process.modules] == built.notepad.modules
    assert process.module("ntdll").path == "C:\\Windows\\System32\\ntdll.dll"
    assert process.module("nt") is guest.kernel or process.module("nt").is_kernel
    identity = process.module("ntdll").pdb
    assert identity is not None
    assert identity.name == "ntdll.pdb"
    assert guest.symbolize(0x7FFB_1234_0010, process) == "ntdll+0x10"
    assert list(guest.process(368).modules) == []


def test_a_wow64_process_has_its_32_bit_modules_after_the_others(built):
    image = built.image
    image.add_module(built.notepad, "wow64.dll", 0x7FFB_1234_0000, 0x58000)
    image.add_wow64(built.notepad, [("app.exe", 0x40_0000, 0x9000), ("ntdll.dll", 0x7700_0000, 0x19A000)])
    guest = built.open()
    process = guest.process(812)
    assert process.wow64
    assert not guest.process(368).wow64
    assert [(m.name, m.base, m.size) for m in process.modules] == built.notepad.modules
    assert process.modules[2].path == "C:\\Windows\\SysWOW64\\ntdll.dll"
    assert process.modules[2].timestamp == 0x5F000000


def test_without_a_readable_peb_the_image_vads_name_what_is_mapped(built):
    image = built.image
    path = "\\Windows\\System32\\ntdll.dll"
    image.add_view(built.notepad, 0x7FB_1234_0000, file=path, counts=(1, 6), image=True)
    image.write_struct("_EPROCESS", built.notepad.address, {"Peb": 0x7FFE_0001_0000})
    guest = built.open()
    (module,) = guest.process(812).modules
    assert (module.name, module.base, module.size, module.path) == ("ntdll.dll", 0x7FB_1234_0000, 0x7000, path)
    assert any("PEB" in warning for warning in guest.warnings)


def test_facts_say_what_the_guest_is(built):
    built.image.set_paging_files([(0, "\\??\\C:\\pagefile.sys", False), (2, "", True)])
    guest = built.open()
    facts = guest.facts()
    assert facts["build"] == 19041
    assert facts["page_tables"] == "4-level"
    assert [file["name"] for file in facts["paging_files"]] == ["\\??\\C:\\pagefile.sys", None]


def test_paging_files_and_the_stores_number(built):
    image = built.image
    image.set_paging_files([(0, "\\??\\C:\\pagefile.sys", False), (1, "\\??\\D:\\pagefile.sys", False), (2, "", True)])
    paged = image.new_dtb()
    image.set_entry(paged, 0x10000, image.paged(1, 0x1A3000))
    image.set_entry(paged, 0x11000, image.paged(2, 0x7000))
    guest = built.open()
    is_store = guest.types.has_field("_MMPAGING_FILE", "VirtualStorePagefile")
    assert [(f.number, f.name, f.is_store) for f in guest.paging_files] == [
        (0, "\\??\\C:\\pagefile.sys", False),
        (1, "\\??\\D:\\pagefile.sys", False),
        (2, None, is_store),
    ]
    assert "D:\\pagefile.sys" in guest.resolver.resolve(paged, 0x10000).reason
    assert guest.resolver.resolve(paged, 0x11000).state == ("compressed" if is_store else "pagefile")


def test_registers_that_the_target_does_not_carry_are_said(built):
    guest = built.open()
    assert guest.registers(0)["cr3"] == built.notepad.dtb
    with pytest.raises(CapabilityError, match="of 1 vCPUs"):
        guest.registers(1)


def test_a_new_pause_forgets_what_was_read(built):
    guest = built.open()
    assert guest.process(812).name == "notepad.exe"
    built.image.write_struct("_EPROCESS", built.notepad.address, {"UniqueProcessId": 900})
    third = built.add_process("calc.exe", 4000, 812)
    assert len(guest.processes) == 4
    guest.new_pause()
    assert [process.pid for process in guest.processes] == [4, 368, 900, 816, third.pid]
