"""Guest RAM: the map is QEMU's, and every way to the bytes reads the same as QEMU's own monitor."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from coldframe.errors import CapabilityError, FormatError, UnreadableMemoryError
from coldframe.qemu import RamRange, VirtualMachine, launch
from coldframe.qemu.ram import parse_flat_view
from qemu.bare import BareGuest, StartsGuests

WAYS = {"mmap": "mmap of", "process": "process_vm_readv", "monitor": "gdbstub and monitor"}


def by_monitor(guest: BareGuest, address: int) -> int:
    match = re.search(r": 0x([0-9a-f]{16})", guest.owner.monitor(f"xp /1gx {address:#x}"))
    assert match is not None
    return int(match[1], 16)


def test_memory_reads_as_qemu_saves_it(start: StartsGuests, tmp_path: Path) -> None:
    guest = start(1)
    guest.owner.qmp("stop")
    saved = tmp_path / "saved"
    guest.owner.qmp("pmemsave", val=0x100000, size=0x500000, filename=str(saved))
    for way, says in WAYS.items():
        with guest.attach(ram_access=way) as vm:
            assert vm.memory_path.startswith(says)
            size = 0x500000 if way != "monitor" else 0x3000
            assert vm.physical.read(0x100000, size) == saved.read_bytes()[:size]


def test_the_gdbstub_reads_while_the_guest_is_paused(start: StartsGuests) -> None:
    guest = start(1)
    with guest.attach(ram_access="monitor") as vm:
        running = vm.physical.read(0x100001, 0x55)
        vm.pause()
        assert vm.physical.read(0x100001, 0x55) == running
        assert vm.physical.read(0x100000, 0x2001) == guest.owner.physical.read(0x100000, 0x2001)


@pytest.mark.parametrize("way", WAYS)
def test_memory_can_be_written(start: StartsGuests, way: str) -> None:
    guest = start(1)
    with guest.attach(ram_access=way) as vm:
        vm.physical.write(0x250003, bytes(range(200)))
        assert vm.physical.read(0x250000, 210) == b"\0\0\0" + bytes(range(200)) + bytes(7)
        assert guest.owner.physical.read(0x250003, 200) == bytes(range(200))
    assert guest.goes_on()


def test_memory_above_the_pci_hole_lies_where_the_map_says(start: StartsGuests) -> None:
    guest = start(1, memory="5G")
    with guest.attach() as vm:
        (high,) = (ram for ram in vm.ram_map if ram.start >= 1 << 32)
        assert (high.start, high.offset) == (1 << 32, 0x80000000)
        assert high.end == (1 << 32) + (5 << 30) - 0x80000000
        low = max(ram.end for ram in vm.ram_map if ram.start < 1 << 32)
        assert low == 0x80000000
        with pytest.raises(UnreadableMemoryError) as caught:
            vm.physical.read(0x90000000, 0x10)
        assert caught.value.address == 0x90000000
        for address in (0x100000, 0x7FFFFFF8, 1 << 32, high.end - 8):
            vm.physical.write(address, address.to_bytes(8, "little"))
            assert by_monitor(guest, address) == address
        vm.physical.write(0x80000000 - 4, b"abcd")
    with guest.attach(ram_access="process") as vm:
        assert vm.physical.u64(high.end - 8) == high.end - 8
        assert vm.physical.read(0x80000000 - 4, 4) == b"abcd"


def test_several_ram_blocks(kernel: Path) -> None:
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-machine", "q35", "-smp", "2",
            "-m", "3G", "-object", "memory-backend-memfd,id=a,size=2560M,share=on",
            "-object", "memory-backend-memfd,id=b,size=512M,share=on",
            "-numa", "node,memdev=a,cpus=0", "-numa", "node,memdev=b,cpus=1", "-kernel", str(kernel), "-S"]  # fmt: skip
    with launch(argv) as vm:
        assert {ram.block for ram in vm.ram_map} == {"a", "b"}
        assert vm.memory_path.count("/memfd") == 2
        assert vm.physical.end == (1 << 32) + (1 << 30)
        chance = random.Random(1)
        for ram in vm.ram_map:
            for _ in range(8):
                address = ram.start + chance.randrange(ram.size - 8) // 8 * 8
                vm.physical.write(address, address.to_bytes(8, "little"))
                assert f"{address:#018x}" in vm.monitor(f"xp /1gx {address:#x}")


def test_a_backend_file_is_mapped(kernel: Path, tmp_path: Path) -> None:
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64M", "-vga", "std",
            "-object", f"memory-backend-file,id=m,size=64M,share=on,mem-path={tmp_path / 'ram'}",
            "-machine", "pc,memory-backend=m", "-kernel", str(kernel), "-S"]  # fmt: skip
    with launch(argv) as vm:
        assert str(tmp_path / "ram") in vm.memory_path
        assert {ram.block for ram in vm.ram_map} == {"m"}  # neither the video memory nor a ROM
        vm.physical.write(0x300000, b"hello")
        assert (tmp_path / "ram").read_bytes()[0x300000:0x300005] == b"hello"


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        ((), "has no file behind it"),
        (("-object", "memory-backend-memfd,id=m,size=64M,share=off", "-machine", "memory-backend=m"), "share=off"),
    ],
)
def test_private_memory_is_read_through_the_process_and_the_reason_given(
    kernel: Path, memory: tuple[str, ...], reason: str
) -> None:
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-machine", "q35", "-m", "64M",
            *memory, "-kernel", str(kernel), "-S"]  # fmt: skip
    with launch(argv) as vm:
        assert vm.memory_path.startswith("process_vm_readv")
        assert len(vm.memory_refused) == 1
        assert reason in vm.memory_refused[0]
        vm.physical.write(0x300000, b"hello")
        assert "0x6c6c6568" in vm.monitor("xp /1wx 0x300000")
        assert vm.physical.read(0x300000, 5) == b"hello"


def test_a_way_that_does_not_work_is_told() -> None:
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64M", "-S"]
    with pytest.raises(CapabilityError, match=r"no way to the guest's RAM: mmap: .* no file behind it"):
        launch(argv, ram_access="mmap")


MTREE = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, ram): m
FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): m KVM
  00000000000a0000-00000000000bffff (prio 1, ram): vga.vram
  00000000000c0000-00000000000c3fff (prio 0, rom): m @00000000000c0000 KVM
  0000000000100000-000000007fffffff (prio 0, ram): m @0000000000100000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM
  0000000100000000-000000017fffffff (prio 0, ram): m @0000000080000000 KVM
  0000000180000000-00000001bfffffff (prio 0, nv-ram): n
  00000001c0000000-00000001ffffffff (prio 0, ram): dimm0
"""


def test_the_map_is_the_machines_memory_alone() -> None:
    assert parse_flat_view(MTREE, {"m", "dimm0"}) == (
        RamRange(0, 0xA0000, "m", 0),
        RamRange(0x100000, 0x7FF00000, "m", 0x100000),
        RamRange(0x100000000, 0x80000000, "m", 0x80000000),
        RamRange(0x1C0000000, 0x40000000, "dimm0", 0),
    )
    with pytest.raises(FormatError, match="no address space 'memory'"):
        parse_flat_view(MTREE.replace("memory", "other"), {"m"})


def test_two_machines_do_not_touch_each_other(start: StartsGuests) -> None:
    first, second = start(1), start(1)
    with first.attach() as one, second.attach() as two:
        one.insert_breakpoint(first.function("tick"))
        two.insert_breakpoint(second.function("tock"))
        for _ in range(10):
            stops = one.run_until_stop(10), two.run_until_stop(10)
            assert [stop and stop.address for stop in stops] == [first.function("tick"), second.function("tock")]
        assert isinstance(one, VirtualMachine)
    assert first.goes_on()
    assert second.goes_on()
