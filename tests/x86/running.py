"""A built 32-bit Windows that runs in QEMU: its kernel calls NtWriteFile over and over, and counts."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from builder.image import MB
from coldframe.qemu import VirtualMachine, VmConfig, launch
from x86.conftest import Built

BOOT, RAM = 0x0110_0000, ((2 * MB, 14 * MB),)
STACK = 0x8B00_0000
ARGUMENTS = (0x4, 0, 0, 0, 0x0006_0000, 0x0006_1000, 16, 0, 0)
TEXT = b"sixteen letters!"
SERVICE = 0x200
"""How far behind KiTrap0E the loop is that calls NtWriteFile."""


class Running:
    """What is started: `written` is how often NtWriteFile counted itself."""

    def __init__(self, built: Built, vm: VirtualMachine, qmp: Path, counter: int) -> None:
        self.built, self.vm, self.qmp, self._counter = built, vm, qmp, counter

    @property
    def written(self) -> int:
        return self.vm.physical.u32(self._counter)


def start(built: Built, folder: Path, binary: str) -> Running:
    """Write the image's RAM and the boot code to files and start QEMU on them; the vCPU is in notepad's thread."""
    image, dtb = built.image, built.notepad.dtb
    image.map(image.kernel_dtb, STACK)
    image.map(dtb, ARGUMENTS[5], TEXT)
    image.map(dtb, BOOT, physical=BOOT)
    counter = image.allocate_pool(4, align=16)
    _put_code(built, counter)
    fields = {"SegCs": 8}
    image.write_struct("_KTRAP_FRAME", STACK + 0xE00, fields)
    flat = _assemble(folder)
    base = image.kpcrs[0]
    descriptor = 0x00CF_9200_0000_FFFF | (base & 0xFFFFFF) << 16 | (base >> 24) << 56
    struct.pack_into("<4I", flat, 0x20, dtb, 0x20 if image.format == "pae" else 0x10, STACK + 0xF00, _loop(built))
    struct.pack_into("<Q", flat, 0x30 + 24, descriptor)
    (folder / "boot").write_bytes(flat)
    (folder / "ram").write_bytes(bytes(image.ram[0].data))
    qmp = folder / "qmp"
    loader = f"loader,file={folder / 'ram'},addr={RAM[0][0]:#x},force-raw=on"
    config = VmConfig("64M", kernel=str(folder / "boot"), qmp=str(qmp), binary=binary, extra=("-device", loader))
    return Running(built, launch(config), qmp, image.physical_of(counter))


def _loop(built: Built) -> int:
    return built.image.code("KiTrap0E") + SERVICE


def _put_code(built: Built, counter: int) -> None:
    """NtWriteFile counts and returns 0; the loop behind KiTrap0E calls it with the arguments, then idles a while."""
    image = built.image
    write = image.code("NtWriteFile")
    body = b"\x55\x8b\xec\xff\x05" + struct.pack("<I", counter) + b"\x33\xc0\x5d\xc2" + struct.pack("<H", 36)
    image.write(write, body)
    code = b"\x55\x8b\xec"  # push ebp; mov ebp, esp
    for argument in reversed(ARGUMENTS):
        code += b"\x68" + struct.pack("<I", argument)
    at = _loop(built) + len(code)
    code += b"\xe8" + struct.pack("<i", write - at - 5)
    code += b"\xb9" + struct.pack("<I", 2000) + b"\x49\x75\xfd\x5d"  # mov ecx, 2000; 1: dec ecx; jnz 1b; pop ebp
    code += b"\xeb" + struct.pack("<b", -len(code) - 2)
    image.write(_loop(built), code)


def _assemble(folder: Path) -> bytearray:
    source = Path(__file__).parent / "boot32.S"
    subprocess.run(["clang", "--target=i386-unknown-linux-gnu", "-c", source, "-o", folder / "boot.o"], check=True)
    subprocess.run(
        [
            *("ld.lld", "-m", "elf_i386", "--oformat", "binary", f"-Ttext={BOOT:#x}", "-e", "_start"),
            *("-o", folder / "boot", folder / "boot.o"),
        ],
        check=True,
    )
    return bytearray((folder / "boot").read_bytes())
