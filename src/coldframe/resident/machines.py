"""The machine that a resident boot starts or attaches to: a disk image, a QEMU command line, a domain, a QMP socket."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from coldframe.errors import CapabilityError, UsageError
from coldframe.qemu import VirtualMachine
from coldframe.qemu.launching import launch

Bus: TypeAlias = Literal["sata", "virtio", "nvme"]
_QEMU = "qemu-system-x86_64"
_DISK_DEVICES = {"sata": "ide-hd", "virtio": "virtio-blk-pci", "nvme": "nvme,serial=coldframe"}
_RAM = "coldframe-ram"


@dataclass(frozen=True, slots=True)
class Machine:
    """What is started for a disk image: a q35 with shared RAM, the processor that the host offers, one disk.

    `memory` and `vcpus` as QEMU takes them; `accelerator` None for KVM where it is to be had, else TCG; `bus` is what
    the guest has a driver for; `extra` are further QEMU arguments; `loadvm` names a snapshot to start from.
    """

    memory: str = "4G"
    vcpus: int = 2
    accelerator: str | None = None
    bus: Bus = "sata"
    extra: tuple[str, ...] = ()
    loadvm: str | None = None

    def argv(self, disk: Path, qmp: Path) -> list[str]:
        """QEMU's command line, the guest paused before its first instruction."""
        accelerator = self.accelerator or ("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg")
        processor = "host" if accelerator == "kvm" else "max"
        shared = f"memory-backend-memfd,id={_RAM},size={self.memory},share=on"
        return [
            _QEMU,
            *("-machine", f"q35,memory-backend={_RAM}", "-accel", accelerator, "-cpu", processor),
            *("-object", shared, "-m", self.memory, "-smp", str(self.vcpus)),
            *("-nodefaults", "-vga", "std", "-display", "none", "-rtc", "base=localtime"),
            *("-drive", f"if=none,id=coldframe-disk,format={disk_format(disk)},file={str(disk).replace(',', ',,')}"),
            *("-device", f"{_DISK_DEVICES[self.bus]},drive=coldframe-disk"),
            *("-qmp", f"unix:{str(qmp).replace(',', ',,')},server=on,wait=off"),
            *self.extra,
            *(("-loadvm", self.loadvm) if self.loadvm is not None else ()),
            "-S",
        ]


def disk_format(disk: Path) -> str:
    """`qcow2` by its magic, else `raw`; raises `UsageError` when the file is missing."""
    try:
        with disk.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UsageError(f"expected a disk image at {disk}: {error.strerror}") from None
    if len(head) < 4:
        raise UsageError(f"expected a disk image at {disk}, found a file of {len(head)} bytes")
    return "qcow2" if head == b"QFI\xfb" else "raw"


def start_disk(disk: Path, qmp: Path, machine: Machine) -> VirtualMachine:
    """Start a machine for `disk`, paused, with its QMP socket at `qmp`; it outlives this process.

    Raises `UsageError` for a missing disk, `CapabilityError` with QEMU's words (a disk in use, no KVM).
    """
    if not 0 < machine.vcpus <= 255:
        raise UsageError(f"expected 1 to 255 vCPUs, found {machine.vcpus}")
    return _started(machine.argv(disk, qmp), qmp)


def start_command(command: Sequence[str], qmp: Path) -> VirtualMachine:
    """Start QEMU by the user's own command line, paused, with one more QMP socket at `qmp`."""
    if not command:
        raise UsageError(f"expected a QEMU command line, found none (coldframe boot -- {_QEMU} ...)")
    if shutil.which(command[0]) is None:
        raise UsageError(f"expected a QEMU to start, found no program {command[0]!r}")
    if "-daemonize" in command:
        raise UsageError("-daemonize is not needed: QEMU goes into the background by itself")
    extra = ["-qmp", f"unix:{str(qmp).replace(',', ',,')},server=on,wait=off", *([] if "-S" in command else ["-S"])]
    return _started([*command, *extra], qmp)


def attach_paused(target: str) -> VirtualMachine:
    """Attach to a QEMU by its QMP socket, or to a libvirt domain; a domain that is shut off is started, paused.

    It shall run when it is let go of, however that comes.
    """
    if "/" not in target and not Path(target).exists():
        from coldframe.qemu.libvirt_domain import start_paused  # noqa: PLC0415 - needs the extra

        start_paused(target)
    return VirtualMachine.attach(target, leave_running=True)


def _started(argv: list[str], qmp: Path) -> VirtualMachine:
    if qmp.exists() and not qmp.is_socket():
        raise UsageError(f"expected to make a QMP socket at {qmp}, found a file there")
    if not qmp.parent.is_dir():
        raise UsageError(f"expected to make a QMP socket at {qmp}, found no such folder")
    try:
        return launch(argv, detached=True)
    except CapabilityError as error:
        if "lock" in str(error):
            raise CapabilityError(f"{error} (is another virtual machine using the disk?)") from None
        raise
