"""Guest RAM: the map of it, and the best way to its bytes.

The map is what `info mtree -f` shows of the address space "memory": RAM lies in one or more RAM blocks, the part above
the PCI hole elsewhere in its block than its guest-physical address. Only blocks that are the machine's memory count
(`query-memdev`); video memory, ROMs and the BIOS' shadow do not.

Ways to the bytes, best first: map the file behind a block (memfd or memory-backend-file, shared), read QEMU's process
memory (process_vm_readv), ask the gdbstub or the monitor.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from coldframe.errors import CapabilityError, FormatError, GuestGoneError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory, Run, Source
from coldframe.qemu.qmp import Monitor, QmpCommandError

_RANGE = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([a-z/-]+)\): (\S+)(?: @([0-9a-f]{16}))?", re.MULTILINE
)
_HOST_ADDRESS = re.compile(r"\((.*)\) is (0x[0-9a-f]+)")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)\s*(.*)$")


@dataclass(frozen=True, slots=True)
class RamRange:
    """`size` bytes of RAM at guest-physical `start`, from `offset` of RAM block `block`; all in bytes."""

    start: int
    size: int
    block: str
    offset: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class RamAccess:
    """Guest RAM with the way that was chosen to it, and why each better way failed."""

    physical: PhysicalMemory
    how: str
    refused: tuple[str, ...]


def parse_flat_view(text: str, blocks: Collection[str]) -> tuple[RamRange, ...]:
    """The RAM of the address space "memory" in the output of `info mtree -f`, of the blocks named."""
    for view in text.split("FlatView #")[1:]:
        if ' AS "memory"' not in view:
            continue
        return tuple(
            RamRange(int(start, 16), int(end, 16) - int(start, 16) + 1, name, int(offset or "0", 16))
            for start, end, kind, name, offset in _RANGE.findall(view)
            if kind == "ram" and name in blocks
        )
    raise FormatError("QEMU's 'info mtree -f' shows no address space 'memory'")


def ram_map(monitor: Monitor) -> tuple[RamRange, ...]:
    """The guest's RAM, by ascending address."""
    backends = monitor.execute("query-memdev")
    names = {"pc.ram", "ram-node0"}
    for backend in backends if isinstance(backends, list) else []:
        if isinstance(backend, dict):
            names.add(str(backend.get("id")))
    ranges = parse_flat_view(monitor.monitor("info mtree -f"), names)
    if not ranges:
        raise CapabilityError(f"QEMU shows no RAM; memory backends: {', '.join(sorted(names))}")
    return tuple(sorted(ranges, key=lambda ram: ram.start))


def open_ram(monitor: Monitor, ranges: Iterable[RamRange], slow: Source, wanted: str | None = None) -> RamAccess:
    """Guest RAM by the best way that works; `slow` is the last resort.

    `wanted` forces one way ("mmap", "process", "monitor"), for tests and benchmarks.
    """
    ranges = tuple(ranges)
    refused: list[str] = []
    ways: dict[str, Callable[[], tuple[PhysicalMemory, str]]] = {
        "mmap": lambda: _by_mapping(monitor, ranges),
        "process": lambda: _by_process(monitor, ranges),
        "monitor": lambda: (PhysicalMemory(Run(r.start, r.size, slow, r.start) for r in ranges), str(slow)),
    }
    for name, way in ways.items():
        if wanted not in (None, name):
            continue
        try:
            physical, how = way()
            physical.read(ranges[0].start, 8)
        except (OSError, CapabilityError, UnreadableMemoryError, QmpCommandError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            refused.append(f"{name}: {words}")
            continue
        return RamAccess(physical, how, tuple(refused))
    raise CapabilityError(f"no way to the guest's RAM: {'; '.join(refused)}")


# -- through QEMU's process ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    offset: int
    device: int
    inode: int
    name: str


def _host_addresses(monitor: Monitor, ranges: tuple[RamRange, ...]) -> tuple[int, list[int]]:
    """QEMU's process id and, for each range, where QEMU has it in its own address space."""
    if monitor.pid is None:
        raise CapabilityError("QEMU's process is not known on this side")
    addresses = []
    for ram in ranges:
        answer = monitor.monitor(f"gpa2hva {ram.start:#x}")
        match = _HOST_ADDRESS.search(answer)
        if match is None:
            raise CapabilityError(f"gpa2hva {ram.start:#x} says {answer.strip()[:80]!r}")
        addresses.append(int(match[2], 16))
    return monitor.pid, addresses


def _mappings(pid: int) -> list[_Mapping]:
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
        found = (_MAPPING.match(line.rstrip("\n")) for line in lines)
        return [
            _Mapping(int(m[1], 16), int(m[2], 16), m[3][3] == "s", int(m[4], 16),
                     os.makedev(int(m[5], 16), int(m[6], 16)), int(m[7]), m[8])
            for m in found if m
        ]  # fmt: skip


def _by_mapping(monitor: Monitor, ranges: tuple[RamRange, ...]) -> tuple[PhysicalMemory, str]:
    """Map the files behind the RAM blocks: the guest's RAM itself, without copies or system calls."""
    pid, addresses = _host_addresses(monitor, ranges)
    mappings = _mappings(pid)
    views: dict[tuple[int, int], memoryview] = {}
    said: list[str] = []
    runs = []
    for ram, address in zip(ranges, addresses, strict=True):
        backing = next((m for m in mappings if m.start <= address < m.end), None)
        if backing is None:
            raise CapabilityError(f"process {pid} has nothing at {address:#x}: it is not this VM's QEMU")
        if not backing.inode:
            raise CapabilityError(
                f"RAM block {ram.block!r} has no file behind it (start QEMU with a memory-backend-memfd)"
            )
        if not backing.shared:
            raise CapabilityError(f"RAM block {ram.block!r} is mapped privately from {backing.name} (share=off)")
        offset = backing.offset + address - backing.start
        if address + ram.size > backing.end:
            raise CapabilityError(f"RAM block {ram.block!r} is mapped in several pieces")
        key = (backing.device, backing.inode)
        if key not in views:
            path, descriptor = _open_backing(pid, backing)
            try:
                size = os.fstat(descriptor).st_size
                views[key] = memoryview(mmap.mmap(descriptor, size, mmap.MAP_SHARED))
            finally:
                os.close(descriptor)
            said.append(path)
        if offset + ram.size > len(views[key]):
            raise CapabilityError(f"the file behind RAM block {ram.block!r} is too short")
        runs.append(Run(ram.start, ram.size, views[key], offset))
    return PhysicalMemory(runs), f"mmap of {', '.join(said)}"


def _open_backing(pid: int, backing: _Mapping) -> tuple[str, int]:
    """Open the very file that QEMU has mapped: by QEMU's own descriptor, else by its path. (name, descriptor)."""
    folder = f"/proc/{pid}/fd"
    candidates = [(f"{folder}/{number}", f"{backing.name.removesuffix(' (deleted)')} {folder}/{number}")
                  for number in sorted(os.listdir(folder), key=int)]  # fmt: skip  # noqa: PTH208
    if backing.name.startswith("/") and not backing.name.endswith(" (deleted)"):
        candidates += [(backing.name, backing.name), (f"/proc/{pid}/root{backing.name}", backing.name)]
    for path, name in candidates:
        try:
            status = os.stat(path)  # noqa: PTH116
            if status.st_ino != backing.inode or status.st_dev != backing.device:
                continue
            return name, os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
    raise CapabilityError(f"QEMU holds no descriptor of {backing.name} and its path leads elsewhere")


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class ProcessMemory:
    """Bytes of QEMU's process by process_vm_readv(2); offsets are addresses in that process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        library = ctypes.CDLL(None, use_errno=True)
        self._calls = library.process_vm_readv, library.process_vm_writev
        for call in self._calls:
            call.restype = ctypes.c_ssize_t
            call.argtypes = (ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_ulong,
                             ctypes.POINTER(_Vector), ctypes.c_ulong, ctypes.c_ulong)  # fmt: skip

    def __str__(self) -> str:
        return f"process_vm_readv of process {self._pid}"

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes; raises `GuestGoneError` when the process has ended."""
        buffer = ctypes.create_string_buffer(size)
        self._transfer(0, offset, buffer, size)
        return buffer.raw

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""
        self._transfer(1, offset, ctypes.create_string_buffer(data, len(data)), len(data))

    def _transfer(self, call: int, offset: int, buffer: ctypes.Array[ctypes.c_char], size: int) -> None:
        done = 0
        while done < size:
            here = _Vector(ctypes.addressof(buffer) + done, size - done)
            there = _Vector(offset + done, size - done)
            count = self._calls[call](self._pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
            if count <= 0:
                number = ctypes.get_errno()
                if number == 3:  # ESRCH
                    raise GuestGoneError("the virtual machine has ended")
                raise UnreadableMemoryError(offset + done, size - done, f"QEMU's memory: {os.strerror(number)}")
            done += count


def _by_process(monitor: Monitor, ranges: tuple[RamRange, ...]) -> tuple[PhysicalMemory, str]:
    pid, addresses = _host_addresses(monitor, ranges)
    memory = ProcessMemory(pid)
    runs = [Run(ram.start, ram.size, memory, address) for ram, address in zip(ranges, addresses, strict=True)]
    return PhysicalMemory(runs), str(memory)
