"""What a crash dump's header tells of a guest: the same that KeInitializeCrashDumpHeader writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.errors import TypeNotFoundError, UnreadableMemoryError
from coldframe.images.crashheader import FORM32, FORM64, LIVE_SYSTEM_DUMP, CrashHeader
from coldframe.windows.kernel import KUSER_SHARED_DATA, KUSER_SHARED_DATA32
from coldframe.windows.processor import processor_blocks
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_LONG = 8  # bytes of a pointer of 64-bit Windows
_OWNER_TAG = 0x10  # DBGKD_DEBUG_DATA_HEADER64 of wdbgexts.h: a LIST_ENTRY64, then OwnerTag


def crash_header(guest: Guest) -> CrashHeader:
    """The header for a dump of `guest` as it is; what this kernel has no symbol for, or cannot be read, is 0.

    `guest.warnings` says so where the kernel's debugger data is encoded.
    """
    shared = shared_data(guest)
    build = _variable(guest, "NtBuildNumber", 4)
    block = guest.variable("KdDebuggerDataBlock") or 0
    if block and _read(guest, block + _OWNER_TAG, 4) != int.from_bytes(b"KDBG", "little"):
        guest.warn(f"nt!KdDebuggerDataBlock at {block:#x} is encoded: debuggers need the kernel's symbols to read it")
    return CrashHeader(
        directory_table=guest.dtb,
        form=FORM64 if guest.types.pointer_size == _LONG else FORM32,
        pae=guest.resolver.format.name == "pae",
        pfn_database=_variable(guest, "MmPfnDatabase", guest.types.pointer_size),
        loaded_modules=guest.variable("PsLoadedModuleList") or 0,
        active_processes=guest.variable("PsActiveProcessHead") or 0,
        debugger_block=block,
        processors=len(processor_blocks(guest)) or guest.vcpus or 1,
        major_version=build >> 28,
        minor_version=build & 0x0FFF_FFFF,
        bugcheck=_bugcheck(guest),
        system_time=_time(shared, "SystemTime"),
        up_time=_time(shared, "InterruptTime"),
        product_type=_integer(shared, "NtProductType"),
        suite_mask=_integer(shared, "SuiteMask"),
        registers=guest.registers(0) if guest.vcpus else {},
    )


def shared_data(guest: Guest) -> Struct:
    """KUSER_SHARED_DATA, where the kernel sees it."""
    wide = guest.types.pointer_size == _LONG
    return guest.struct("_KUSER_SHARED_DATA", KUSER_SHARED_DATA if wide else KUSER_SHARED_DATA32)


def _read(guest: Guest, address: int, size: int) -> int:
    try:
        return int.from_bytes(guest.memory.read(address, size), "little")
    except UnreadableMemoryError:
        return 0


def _variable(guest: Guest, name: str, size: int) -> int:
    address = guest.variable(name)
    return 0 if address is None else _read(guest, address, size)


def _bugcheck(guest: Guest) -> tuple[int, ...]:
    """Code and parameters of the bugcheck that stopped the guest, else the code of a dump of a living system."""
    address, size = guest.variable("KiBugCheckData"), guest.types.pointer_size
    if address is not None:
        found = tuple(_read(guest, address + size * number, size) for number in range(5))
        if found[0]:
            return (found[0] & 0xFFFF_FFFF, *found[1:])
    return (LIVE_SYSTEM_DUMP, 0, 0, 0, 0)


def _integer(shared: Struct, path: str) -> int:
    try:
        return shared.integer(path) & 0xFFFF_FFFF
    except (TypeNotFoundError, UnreadableMemoryError):
        return 0


def _time(shared: Struct, path: str) -> int:
    """A KSYSTEM_TIME, in units of 100 ns."""
    return _integer(shared, f"{path}.LowPart") | _integer(shared, f"{path}.High1Time") << 32
