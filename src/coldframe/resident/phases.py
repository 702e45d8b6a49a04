"""The phases of a boot, what is told of it while it goes on, and what the caller may choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias


class Phase(StrEnum):
    """How far a boot is. Each begins where the one before ends."""

    FIRMWARE = "firmware"
    """Firmware and boot loader: no NT kernel yet."""
    KERNEL = "kernel"
    """The kernel starts; there is no process yet."""
    SYSTEM = "system"
    """The System process exists; drivers start. Images mapped from here on live in RAM."""
    SMSS = "smss"
    """smss.exe, the first user process, runs; paging files would be created now."""
    CSRSS = "csrss"
    """csrss.exe runs: no paging file is created by the system any more. The guest goes on to its logon."""
    DONE = "done"
    """Everything that was asked for has happened; no breakpoint is set."""


ImagesInRam: TypeAlias = Literal["winpe", "device", "off"]
"""How image pages are kept in RAM: WinPE mode, the volume device's characteristics, or not at all."""


@dataclass(frozen=True, slots=True)
class BootEvent:
    """Something that the watched boot did, or that was done to it; told while the guest stands still.

    `kind` is "phase", "process" (`name`, `pid`), "paging-file" (`name` as the caller gave it, `pid` and `process` of
    the caller, `prevented`), "images-in-ram" (`name` says what was set), "late" (`text` says what is lost), "restart"
    or "warning". `phase` is the phase then, `seconds` counts from the start.
    """

    kind: str
    phase: Phase
    seconds: float
    text: str
    name: str | None = None
    pid: int | None = None
    process: str | None = None
    prevented: bool | None = None


Tell: TypeAlias = Callable[[BootEvent], None]


@dataclass(frozen=True, slots=True)
class BootOptions:
    """What a resident boot does.

    `images_in_ram`: see `ImagesInRam`. `stealth` puts back what that changed once the boot is done. `timeout` seconds
    of the host's clock until csrss.exe must have started. `until` names a process whose start ends the boot, awaited
    for `until_timeout` seconds behind csrss.exe; `settle` seconds more are given to the guest in the end.
    """

    images_in_ram: ImagesInRam = "winpe"
    stealth: bool = False
    timeout: float = 900.0
    until: str | None = None
    until_timeout: float = 600.0
    settle: float = 5.0
