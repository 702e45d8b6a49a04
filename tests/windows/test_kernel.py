"""Finding the kernel: each anchor alone is enough, and each says why it failed."""

from __future__ import annotations

import struct

import pytest

from builder.pe import pe_headers
from coldframe.errors import NoKernelError
from coldframe.memory import PhysicalMemory, Run
from coldframe.windows import Guest, find_kernel
from windows.conftest import Built


@pytest.fixture
def one(newest):
    return Built(newest)


def find(built, registers=(), *, store=None):
    return find_kernel(built.image.physical(), store, list(registers))


def wipe_self_maps(image):
    for dtb in image.dtbs:
        image._put(dtb + 8 * image.shape.self_map, 0)


def wipe_shared_data_text(image):
    image.write(0xFFFFF78000000030, bytes(32))


def test_the_page_fault_handler_leads_to_the_kernel(built):
    found = find(built, [built.image.registers(built.notepad)])
    assert (found.base, found.size, found.dtb) == (built.image.base, built.image.size, built.notepad.dtb)
    assert found.identity == built.symbol_file.identity
    assert "page-fault handler" in found.how


def test_a_driver_between_the_handler_and_the_kernel_is_passed_over(one):
    handler = one.image.code("KiPageFault")
    for offset in (0x1000, 0x40000):
        page = (handler & ~0xFFF) - offset
        if page not in one.image._mapped:
            one.image.map(one.image.kernel_dtb, page, pe_headers(0x8000, pdb="tcpip.pdb", guid="cd" * 16))
    assert find(one, [one.image.registers()]).base == one.image.base


def test_a_kernel_of_more_than_16_mb_is_found(newest):
    built = Built(newest, size=0x3000000)
    image = built.image
    far = image.base + 0x2F00000
    image.map(image.kernel_dtb, far)
    registers = {**image.registers(), "idt_base": 0, "lstar": far + 0x123}
    found = find(built, [registers])
    assert found.base == image.base
    assert "LSTAR" in found.how


def test_a_kernel_in_large_pages_is_found_where_it_begins_within_one(newest):
    built = Built(newest, ram=((0, 16 << 20), (1 << 32, 2 << 20)))
    image = built.image
    large = 0xFFFFF805_00000000
    physical = image.map(image.kernel_dtb, large, size=2 << 20)
    image.write_physical(physical + 0x17000, image.read(image.base, 0x1000))
    found = find(built, [{**image.registers(), "idt_base": 0, "lstar": large + 0x1F0000}])
    assert found.base == large + 0x17000


@pytest.mark.parametrize("name", ["ntoskrnl.pdb", "ntkrnlpa.pdb", "ntkrpamp.pdb", "NTKRNLMP.PDB"])
def test_each_of_the_kernels_names_is_known(newest, name):
    built = Built(newest, pdb=name)
    assert find(built, [built.image.registers()]).identity.name == name


def test_a_vcpu_in_the_kernel_and_an_images_header_lead_there_too(one):
    image = one.image
    bare = {"cr3": image.kernel_dtb}
    rip = image.code("NtWriteFile")
    assert "instruction pointer" in find(one, [{**bare, "rip": rip}]).how
    assert "image header" in find(one, [{**bare, "nt_address": rip}]).how


def test_from_memory_alone_by_the_low_stub(one):
    wipe_self_maps(one.image)
    wipe_shared_data_text(one.image)
    one.image.add_low_stub()
    found = find(one)
    assert (found.base, found.dtb) == (one.image.base, one.image.kernel_dtb)
    assert "low stub" in found.how


@pytest.mark.parametrize("slot", [0x1ED, 0x100, 0x1A7, 0x1FF])
def test_from_memory_alone_by_the_self_map_at_any_slot(newest, slot, monkeypatch):
    built = Built(newest)
    image = built.image
    wipe_self_maps(image)
    wipe_shared_data_text(image)
    image._put(image.kernel_dtb + 8 * slot, image.kernel_dtb | 0x63)
    found = find(built)
    assert (found.base, found.dtb) == (image.base, image.kernel_dtb)
    assert "self-referencing" in found.how


def test_a_page_that_points_to_itself_but_is_no_table_is_refused(one):
    image = one.image
    false = image.allocate_page()
    image._put(false + 8 * 0x1ED, false | 0x63)
    assert find(one).dtb in image.dtbs


def test_from_memory_alone_by_kuser_shared_data(one):
    wipe_self_maps(one.image)
    found = find(one)
    assert found.base == one.image.base
    assert found.dtb in one.image.dtbs
    assert "KUSER_SHARED_DATA" in found.how


def test_from_memory_alone_by_the_kernels_types_and_the_system_process(built):
    wipe_self_maps(built.image)
    wipe_shared_data_text(built.image)
    found = find(built, store=built.store)
    assert (found.base, found.dtb) == (built.image.base, built.image.kernel_dtb)
    assert "System process" in found.how


def test_five_levels(newest):
    built = Built(newest, format="5-level")
    assert find(built, [built.image.registers()]).levels == 5
    registers = {key: value for key, value in built.image.registers().items() if key != "cr4"}
    assert find(built, [registers]).levels == 5
    found = find(built)
    assert (found.base, found.levels) == (built.image.base, 5)
    assert Guest.open(built.image.physical(), built.store).resolver.format.name == "5-level"


def shadowed(newest):
    """A vCPU in user mode whose tables map the IDT, the shadow handler's page and the KPCR, and not the kernel."""
    built = Built(newest, kva_shadow=True)
    image = built.image
    image.add_processor(built.thread)
    handler = image.code("KiPageFault") & ~0xFFF
    size = image.types.size("_KPCR")
    for va in (image.idt, handler, *range(image.kpcrs[0], image.kpcrs[0] + size, 0x1000)):
        image.map_shadow(built.notepad, va, image.physical_of(va))
    return built


def test_a_vcpu_in_user_mode_under_kva_shadow_leads_to_the_kernel(newest):
    built = shadowed(newest)
    registers = built.image.registers(built.notepad, user=True)
    assert registers["cr3"] & ~0xFFF == built.notepad.user_dtb
    found = find(built, [registers])
    assert (found.base, found.dtb) == (built.image.base, built.image.kernel_dtb)
    assert "CR3 from the KPCR" in found.how
    guest = built.open([registers])
    process = guest.process(812)
    assert (process.dtb, process.user_dtb) == (built.notepad.dtb, built.notepad.user_dtb)
    assert guest.current_thread(registers).tid == 1204


def test_under_kva_shadow_without_a_readable_kpcr_memory_itself_is_searched(newest):
    built = shadowed(newest)
    registers = {**built.image.registers(built.notepad, user=True), "k_gs_base": 0}
    assert find(built, [registers]).base == built.image.base


def test_a_target_without_windows_gives_every_anchors_reason():
    memory = PhysicalMemory([Run(0, 1 << 20, memoryview(bytearray(1 << 20)))])
    with pytest.raises(NoKernelError) as caught:
        find_kernel(memory)
    for anchor in ("low stub", "self-referencing PML4", "KUSER_SHARED_DATA", "kernel's PE"):
        assert anchor in str(caught.value)


def test_firmware_without_paging_is_said_and_memory_is_left_alone():
    class Forbidden:
        def read(self, offset, size):
            raise AssertionError("a running machine's whole memory must not be read for this")

        def write(self, offset, data):
            raise AssertionError

    memory = PhysicalMemory([Run(0, 1 << 40, Forbidden())])
    with pytest.raises(NoKernelError, match=r"CR0\.PG"):
        find_kernel(memory, None, [{"cr0": 0x10, "cr3": 0, "rip": 0xFFF0, "idt_base": 0}])


def test_damaged_headers_are_no_kernel(one):
    image = one.image
    for offset, junk in (
        (0x3C, b"\xff\xff\xff\xff"),
        (0xF8, b"XX"),
        (0x400 + 20, b"\xff\xff\xff\xff"),
        (0x440, b"NB10"),
    ):
        saved = image.read(image.base, 0x1000)
        image.write(image.base + offset, junk)
        with pytest.raises(NoKernelError):
            find(one, [image.registers()])
        image.write(image.base, saved)
    assert find(one, [image.registers()]).base == image.base


def test_table_entries_that_lead_anywhere_end(one):
    image = one.image
    physical = image.physical()
    for dtb in image.dtbs:
        for index in range(512):
            image._put(dtb + 8 * index, dtb | 0x63)
    with pytest.raises(NoKernelError):
        find_kernel(physical, None, [image.registers()])


def test_idt_gates_are_read_as_the_processor_does(one):
    registers = one.image.registers()
    one.image.write(one.image.idt + 14 * 16 + 4, struct.pack("<H", 0x0E00))
    reasons = []
    try:
        find_kernel(PhysicalMemory([]), None, [registers])
    except NoKernelError as error:
        reasons.append(str(error))
    assert "IDT is not readable" in reasons[0]
