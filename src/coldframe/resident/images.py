"""Images in RAM: that the memory manager backs the pages of images with memory, not with the image's file.

The kernel asks IoIsDeviceEjectable before it makes an image section: an image on a medium that may be taken away is
read whole, and its pages are kept as if they had been written to. Two ways to have it answer TRUE:

- `WinpeMode`: bit 31 of nt!InitWinPEModeType, which the boot options MININT and INRAM set, means a system that runs
  from memory. One variable of the kernel's data, for every device.
- `EjectableVolume`: FILE_FLOPPY_DISKETTE in `Characteristics` of the volume's device object, set when the kernel asks
  of that device for the first time: before the first image section that could be made from it.

Only images that are mapped from then on are affected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coldframe.debug import LiveGuest
from coldframe.errors import ColdframeError
from coldframe.windows.kernel import KERNEL_HALF

VARIABLE = "InitWinPEModeType"
QUESTION = "IoIsDeviceEjectable"
RUNS_FROM_MEMORY = 0x8000_0000
_FILE_FLOPPY_DISKETTE = 4  # wdm.h
_FILE_DEVICE_DISK = 7  # wdm.h
_DEVICE_TYPE = 3  # IO_TYPE_DEVICE of wdm.h


class KeepsImagesInRam(Protocol):
    """One way to do it, and to undo it."""

    def begin(self, guest: LiveGuest) -> str | None:
        """Set it, as far as that can be done now; returns what was set, for people, or None."""
        ...

    def undo(self, guest: LiveGuest) -> str | None:
        """Put back what was found; returns what was put back, or None where nothing had been changed."""
        ...


@dataclass(slots=True)
class WinpeMode:
    """By nt!InitWinPEModeType."""

    found: int | None = None

    def begin(self, guest: LiveGuest) -> str | None:
        """Set bit 31; raises `SymbolNotFoundError`, `UnreadableMemoryError`."""
        address = guest.kernel.symbol(VARIABLE)
        value = guest.memory.u32(address)
        if value & RUNS_FROM_MEMORY:
            return f"nt!{VARIABLE} is {value:#x} already"
        guest.memory.write(address, (value | RUNS_FROM_MEMORY).to_bytes(4, "little"))
        self.found = value
        return f"nt!{VARIABLE} from {value:#x} to {value | RUNS_FROM_MEMORY:#x}"

    def undo(self, guest: LiveGuest) -> str | None:
        """Clear bit 31 again; other bits stay as the kernel has them now."""
        if self.found is None:
            return None
        address = guest.kernel.symbol(VARIABLE)
        value = guest.memory.u32(address)
        guest.memory.write(address, (value & ~RUNS_FROM_MEMORY).to_bytes(4, "little"))
        self.found = None
        return f"nt!{VARIABLE} from {value:#x} to {value & ~RUNS_FROM_MEMORY:#x}"


class EjectableVolume:
    """By the volume's device object. `address` is where the kernel asks; `asked` is to be called there."""

    def __init__(self, guest: LiveGuest) -> None:
        self.address = guest.kernel.symbol(QUESTION)
        self._changed: dict[int, int] = {}

    def begin(self, guest: LiveGuest) -> str | None:
        """Nothing yet: there is no volume."""
        return None

    def asked(self, guest: LiveGuest, vcpu: int) -> str | None:
        """A vCPU stands at the first instruction of IoIsDeviceEjectable: its first argument is the device object.

        Only disks are changed, and each once; returns which. What is no device object is left alone.
        """
        device = guest.vm.registers(vcpu)["rcx"]
        if device < KERNEL_HALF or device in self._changed:
            return None
        try:
            record = guest.struct("_DEVICE_OBJECT", device)
            if record.integer("Type") != _DEVICE_TYPE or record.integer("DeviceType") != _FILE_DEVICE_DISK:
                return None
            found = record.integer("Characteristics")
            if found & _FILE_FLOPPY_DISKETTE:
                return None
            record["Characteristics"] = found | _FILE_FLOPPY_DISKETTE
        except ColdframeError:
            return None
        self._changed[device] = found
        return (
            f"Characteristics of the device object at {device:#x} from {found:#x} to {found | _FILE_FLOPPY_DISKETTE:#x}"
        )

    def undo(self, guest: LiveGuest) -> str | None:
        """Clear the bit where it was set."""
        put_back = []
        for device in self._changed:
            try:
                record = guest.struct("_DEVICE_OBJECT", device)
                record["Characteristics"] = record.integer("Characteristics") & ~_FILE_FLOPPY_DISKETTE
            except ColdframeError:
                continue
            put_back.append(f"{device:#x}")
        self._changed.clear()
        return f"Characteristics of the device objects at {', '.join(put_back)}" if put_back else None
