"""QEMU's migration streams (`migrate "exec:cat > FILE"`, `virsh save`): RAM page by page, and the vCPUs' registers.

Format: QEMU's migration/savevm.c (sections), migration/ram.c (the section "ram") and migration/vmstate.c (the
description, JSON, at the end, which says what each device's section consists of); libvirt's qemu_saveimage.h for the
header that `virsh save` puts before it. All numbers are big-endian. Each page stands behind a header of eight bytes, so
that the whole stream is looked through once for an index; pages themselves are read when they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import CapabilityError, FormatError, UnreadableMemoryError
from coldframe.images.image import ImageFile, PhysicalImage
from coldframe.images.vmdescription import registers
from coldframe.memory import PAGE_SIZE, PhysicalMemory, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "QEMU migration stream"
MAGIC, LIBVIRT_MAGIC = b"QEVM", b"LibvirtQemudSave"
_LIBVIRT_HEADER = 92
_VERSION = 3
END, START, PART, LAST, FULL, SUBSECTION, DESCRIPTION, CONFIGURATION, COMMAND, FOOTER = (*range(9), 0x7E)
_FILL, _SIZES, _PAGE, _EOS, _CONTINUE, _FLUSH = 0x02, 0x04, 0x08, 0x10, 0x20, 0x200
_UNREAD = {0x01: "of an old QEMU", 0x40: "XBZRLE", 0x80: "RDMA", 0x100: "compression"}
_ABSENT, _FIRST_FILL = 0, -1  # in the index; _FIRST_FILL - n stands for a page of bytes n
_MOST_BLOCKS, _HIGHEST = 1 << 12, 1 << 42
_FEWEST_ALIKE, _MOST_ALIKE = 64, 1 << 16  # records that are looked at in one go
_GB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Machine:
    """Where a machine type puts its RAM: up to `low` bytes below 4 GB when it has `limit` and more, else all."""

    prefix: str
    limit: int
    low: int


# pc_q35_init of QEMU's hw/i386/pc_q35.c and pc_init1 of pc_piix.c
_MACHINES = (_Machine("pc-q35", 0xB0000000, 2 * _GB), _Machine("pc-i440fx", 0xE0000000, 3 * _GB))


class RamBlock:
    """A block of RAM in the stream: a source of bytes by offset, pages found through an index (a place a page)."""

    def __init__(self, file: ImageFile, name: str, size: int) -> None:
        import numpy as np  # noqa: PLC0415 - slow to load

        self.file = file
        self.name = name
        self.size = size
        try:
            self.index = np.zeros(-(-size // PAGE_SIZE), dtype=np.int64)  # takes memory only as it is filled
        except MemoryError:
            raise FormatError(f"{file.path}: the RAM block {name!r} of {size:#x} bytes is too large here") from None

    @property
    def missing(self) -> int:
        """How many pages the stream does not have."""
        import numpy as np  # noqa: PLC0415 - slow to load

        return len(self.index) - int(np.count_nonzero(self.index))

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; raises `UnreadableMemoryError` where the stream has no such page."""
        parts = []
        while size > 0:
            place = int(self.index[offset // PAGE_SIZE])
            into = offset % PAGE_SIZE
            length = min(size, PAGE_SIZE - into)
            if place > 0:
                parts.append(bytes(self.file.data[place + into : place + into + length]))
            elif place == _ABSENT:
                raise UnreadableMemoryError(offset, length, "the migration stream does not carry this page")
            else:
                parts.append(bytes([_FIRST_FILL - place]) * length)
            offset, size = offset + length, size - length
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Raises `CapabilityError`."""
        raise CapabilityError("a migration stream is read-only")


def open_migration(file: ImageFile) -> PhysicalImage:
    """The RAM in a stream and its vCPUs' registers; raises `FormatError` for a damaged one, or one without RAM."""
    start = 0
    if bytes(file.data[:16]) == LIBVIRT_MAGIC:
        start = _behind_libvirt(file)
    magic, version = struct.unpack(">4sI", file.at(start, 8, "the migration stream's header"))
    if magic != MAGIC or version != _VERSION:
        raise FormatError(f"{file.path}: expected a migration stream (QEVM) of version 3, found {magic!r} {version}")
    stream = _Stream(file, start + 8)
    stream.read_ram()
    main = _main_block(stream.blocks)
    if main is None or main.missing == len(main.index):
        left_out = "shared RAM was left out (x-ignore-shared): open the memory backend's file itself"
        why = left_out if "x-ignore-shared" in stream.capabilities else "was it sent by multifd, or cut off?"
        raise FormatError(f"{file.path} is a migration stream without the guest's RAM: {why}")
    warnings = list(stream.warnings)
    if main.missing:
        warnings.append(f"{file.path}: {main.missing} pages of {main.name!r} are not in the stream")
    known = registers(file, stream.at, warnings)
    memory = PhysicalMemory(_runs(main, stream.machine, warnings))
    return PhysicalImage(memory, FORMAT, known, warnings)


def _behind_libvirt(file: ImageFile) -> int:
    """Where the stream begins in what `virsh save` writes: behind a header and the domain's XML."""
    version, length, _, compressed = struct.unpack("<4I", file.at(16, 16, "libvirt's header"))
    if version > 1 << 16:  # of a host with the other byte order
        raise FormatError(f"{file.path}: libvirt's header has version {version:#x}")
    if compressed:
        raise FormatError(f"{file.path} was saved by libvirt with compression {compressed}: save it as raw")
    return _LIBVIRT_HEADER + int(length)


class _Stream:
    """The sections from `at` on, up to the end of the section "ram"; then `at` is where the devices' begin."""

    def __init__(self, file: ImageFile, at: int) -> None:
        self.file = file
        self.at = at
        self.machine = ""
        self.capabilities: set[str] = set()
        self.blocks: dict[str, RamBlock] = {}
        self.warnings: list[str] = []
        self._ram: int | None = None
        self._block: RamBlock | None = None

    def _take(self, form: str, what: str) -> int:
        size = struct.calcsize(form)
        (value,) = struct.unpack(form, self.file.at(self.at, size, what))
        self.at += size
        return int(value)

    def _text(self, what: str, form: str = ">B") -> str:
        length = self._take(form, what)
        data = bytes(self.file.at(self.at, length, what))
        self.at += length
        return data.decode("latin-1")

    def read_ram(self) -> None:
        """Read sections up to the last one of RAM. A stream that ends before is read as far as it goes."""
        try:
            while self._section():
                pass
        except FormatError as error:
            if not self.blocks:
                raise
            self.warnings.append(f"{error}; what follows is left out")
            self.at = len(self.file.data)

    def _section(self) -> bool:
        """Read one section; False behind the last one of RAM."""
        begin = self.at
        kind = self._take(">B", "a section")
        if kind == CONFIGURATION:
            self._configuration()
        elif kind == COMMAND:
            self._take(">H", "a command")
            length = self._take(">H", "a command's length")
            self.at += length
        elif kind in (START, PART, LAST):
            number = self._take(">I", "a section's number")
            if kind == START:
                name = self._text("a section's name")
                self._take(">I", "an instance")
                self._take(">I", "a version")
                if name != "ram":
                    raise FormatError(f"{self.file.path}: the section {name!r} at {begin:#x} is none that is known")
                self._ram = number
            if number != self._ram:
                raise FormatError(f"{self.file.path}: the section {number} at {begin:#x} is not of RAM")
            self._ram_records()
            self._footer(number)
            return kind != LAST
        else:
            self.at = begin
            if self._ram is None:
                raise FormatError(f"{self.file.path}: expected RAM at {begin:#x}, found a section of type {kind:#x}")
            return False
        return True

    def _footer(self, number: int) -> None:
        """The footer, which machine types before 2.4 leave out."""
        if self.at < len(self.file.data) and self.file.data[self.at] == FOOTER:
            self.at += 1
            told = self._take(">I", "a section's footer")
            if told != number:
                raise FormatError(f"{self.file.path}: the section {number} ends with the footer of {told}")

    def _configuration(self) -> None:
        """The machine type, and which capabilities change the stream."""
        self.machine = self._text("the machine type", ">I")
        while self.file.at(self.at, 1, "a section")[0] == SUBSECTION:
            self.at += 1
            name = self._text("a subsection")
            self._take(">I", "a version")
            if name == "configuration/capabilities":
                for _ in range(min(self._take(">I", "the capabilities"), 256)):
                    self.capabilities.add(self._text("a capability"))
            elif name == "configuration/target-page-bits":
                self._take(">I", "the page bits")
            elif name == "configuration/uuid":
                self.at += 16
            else:
                raise FormatError(f"{self.file.path}: the stream has the unknown {name!r}")
        if "mapped-ram" in self.capabilities:
            raise FormatError(f"{self.file.path} was migrated with mapped-ram, which is not read: migrate without it")

    # RAM

    def _ram_records(self) -> None:
        """The records of one section of RAM, up to its end."""
        alike, before = 0, 0
        while True:
            header = self._take(">Q", "a page's header")
            flags, address = header & (PAGE_SIZE - 1), header & -PAGE_SIZE
            alike = alike + 1 if flags == before else 0
            before = flags
            if flags & _EOS:
                return
            if flags & _SIZES:
                self._sizes(address)
            elif flags & (_PAGE | _FILL):
                self._page(flags, address)
                if alike >= 4:  # many of a kind follow one another
                    self._alike(flags)
            elif flags != _FLUSH:
                how = next((name for bit, name in _UNREAD.items() if flags & bit), f"flags {flags:#x}")
                raise FormatError(f"{self.file.path}: pages at {self.at - 8:#x} are sent in a way not read: {how}")

    def _sizes(self, total: int) -> None:
        """The names and sizes of all blocks."""
        while total > 0:
            name, size = self._text("a RAM block"), self._take(">Q", "a RAM block's size")
            if "x-ignore-shared" in self.capabilities:
                self._take(">Q", "a RAM block's address")
            if not 0 < size <= total or not name.isprintable() or len(self.blocks) >= _MOST_BLOCKS or total > _HIGHEST:
                raise FormatError(
                    f"{self.file.path}: the RAM block {name!r} has {size:#x} of {total:#x} bytes (sent with postcopy?)"
                )
            self.blocks[name] = RamBlock(self.file, name, size)
            total -= size

    def _page(self, flags: int, address: int) -> None:
        if not flags & _CONTINUE:
            name = self._text("a RAM block")
            self._block = self.blocks.get(name)
            if self._block is None:
                raise FormatError(f"{self.file.path}: a page of the unknown RAM block {name!r} before {self.at:#x}")
        block = self._block
        if block is None or address >= block.size:
            raise FormatError(f"{self.file.path}: the page {address:#x} before {self.at:#x} is in no RAM block")
        if flags & _FILL:
            block.index[address // PAGE_SIZE] = _FIRST_FILL - self._take(">B", "a page's fill")
        else:
            self.file.at(self.at, PAGE_SIZE, "a page")
            block.index[address // PAGE_SIZE] = self.at
            self.at += PAGE_SIZE

    def _alike(self, flags: int) -> None:
        """As many records of the same kind and block as follow, looked at together."""
        import numpy as np  # noqa: PLC0415 - slow to load

        block, fill = self._block, bool(flags & _FILL)
        assert block is not None
        step, wanted = 9 if fill else 8 + PAGE_SIZE, (flags & 0xF & ~_SIZES) | _CONTINUE
        count = _FEWEST_ALIKE
        while True:
            count = min(count, (len(self.file.data) - self.at) // step)
            if count <= 0:
                return
            headers = np.ndarray((count,), ">u8", self.file.data, self.at, (step,))
            address = (headers & np.uint64(-PAGE_SIZE & 0xFFFFFFFFFFFFFFFF)).astype(np.uint64)
            same = ((headers & np.uint64(PAGE_SIZE - 1)) == wanted) & (address < np.uint64(block.size))
            length = count if same.all() else int(same.argmin())
            rows = (address[:length] // np.uint64(PAGE_SIZE)).astype(np.int64)
            if fill:
                told: NDArray[np.uint8] = np.ndarray((length,), "u1", self.file.data, self.at + 8, (step,))
                block.index[rows] = _FIRST_FILL - told.astype(np.int64)
            else:
                block.index[rows] = self.at + 8 + step * np.arange(length, dtype=np.int64)
            self.at += length * step
            if length < count:
                return
            count = min(2 * count, _MOST_ALIKE)


def _main_block(blocks: Mapping[str, RamBlock]) -> RamBlock | None:
    """The guest's RAM: "pc.ram", else the largest block that is no firmware and no device's."""
    if "pc.ram" in blocks:
        return blocks["pc.ram"]
    others = ("pc.", "system.flash", "/rom@", "vga.")
    found = [block for name, block in blocks.items() if not name.startswith(others) and ":" not in name]
    return max(found, key=lambda block: block.size, default=None)


def _runs(block: RamBlock, machine: str, warnings: list[str]) -> Iterator[Run]:
    """Where the machine has the block: below 4 GB, and what finds no room there from 4 GB on."""
    known = next((row for row in _MACHINES if machine.startswith(row.prefix)), None)
    size = block.size // PAGE_SIZE * PAGE_SIZE
    if known is None:
        known = _MACHINES[0]
        if size >= known.limit:
            warnings.append(f"the machine type {machine!r} is not known; its RAM is placed as that of a q35")
    low = size if size < known.limit else known.low
    yield Run(0, low, block)
    if size > low:
        yield Run(4 * _GB, size - low, block, low)
