"""FILE_OBJECTs: the name, the device, the mounted volume, and the sections through which a file's pages are in RAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import TypeNotFoundError, UnreadableMemoryError
from coldframe.windows.memoryarea import has_memory_areas

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_LONGEST_LABEL = 64  # bytes: VPB.VolumeLabel has 32 characters
_LARGEST_FILE = 1 << 56


@dataclass(frozen=True, slots=True)
class VolumeIdentity:
    r"""What the kernel knows of the volume of a file.

    `device` is the kernel address of its DEVICE_OBJECT, `name` the device's (`\Device\HarddiskVolume3`), or empty;
    `serial` and `label` are the mounted volume's, from its VPB (NTFS puts there the lower half of the serial number in
    its boot sector); 0 and empty where there is none.
    """

    device: int
    name: str
    serial: int
    label: str


class FileObject:
    """The `_FILE_OBJECT` at `address`. Everything is read when it is asked for."""

    def __init__(self, guest: Guest, address: int) -> None:
        self._guest = guest
        self.address = address
        self._record = guest.struct("_FILE_OBJECT", address)

    @property
    def name(self) -> str | None:
        r"""The name on its volume (`\Windows\System32\ntdll.dll`), or None where it cannot be read."""
        try:
            return self._guest.sections.file_name(self.address)
        except UnreadableMemoryError:
            return None

    @property
    def volume(self) -> VolumeIdentity:
        """The volume that it is on; raises `UnreadableMemoryError` where the FILE_OBJECT cannot be read."""
        guest, start = self._guest, self._guest.kernel_start
        device = self._record.integer("DeviceObject")
        vpb = self._record.integer("Vpb")
        if vpb < start <= device:
            vpb = guest.struct("_DEVICE_OBJECT", device).integer("Vpb")
        serial, label = 0, ""
        if vpb >= start:
            try:
                block = guest.struct("_VPB", vpb)
                serial = block.integer("SerialNumber") & 0xFFFFFFFF
                length = min(block.integer("VolumeLabelLength"), _LONGEST_LABEL)
                at = vpb + guest.types.offset("_VPB", "VolumeLabel")
                label = guest.memory.read(at, length).decode("utf-16-le", "replace")
            except (UnreadableMemoryError, TypeNotFoundError):
                pass
        return VolumeIdentity(device, self._device_name(device), serial, label)

    def _device_name(self, device: int) -> str:
        if device < self._guest.kernel_start:
            return ""
        try:
            name = self._guest.objects.of_body(device).name
        except UnreadableMemoryError:
            return ""
        return f"\\Device\\{name}" if name else ""

    def control_area(self, kind: str) -> int:
        """The kernel address of the file's control area: `kind` is "Data" (also what the cache maps) or "Image".

        0 where it has none (in ReactOS, which keeps a segment of its own there), or it cannot be read.
        """
        if has_memory_areas(self._guest.types):
            return 0
        try:
            pointers = self._record.integer("SectionObjectPointer")
            if pointers < self._guest.kernel_start:
                return 0
            found = self._guest.struct("_SECTION_OBJECT_POINTERS", pointers).integer(f"{kind}SectionObject")
        except UnreadableMemoryError:
            return 0
        return found if found >= self._guest.kernel_start else 0

    @property
    def valid_length(self) -> int | None:
        """How many bytes of the file are valid, as its file system has it in RAM; None where that is not to be told.

        Microsoft's file systems let FsContext point at an `_FSRTL_ADVANCED_FCB_HEADER` (wdk: "FSRTL_ADVANCED_FCB_HEADER
        structure"), whose sizes must agree with each other to be believed.
        """
        try:
            context = self._record.integer("FsContext")
            if context < self._guest.kernel_start:
                return None
            header = self._guest.struct("_FSRTL_ADVANCED_FCB_HEADER", context)
            allocated, size, valid = (
                header.struct(name).integer("QuadPart") for name in ("AllocationSize", "FileSize", "ValidDataLength")
            )
        except (UnreadableMemoryError, TypeNotFoundError):
            return None
        return valid if 0 <= valid <= size <= max(allocated, size) <= _LARGEST_FILE and size else None
