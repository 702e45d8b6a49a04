"""What `info` tells of a guest, as plain data: numbers that are addresses or masks as "0x..." text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from coldframe.errors import ColdframeError
from coldframe.windows.processor import processor_blocks

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

Value: TypeAlias = "str | int | float | bool | datetime | Sequence[Value] | Mapping[str, Value] | None"

_COMPRESSION = "MemCompression"


def facts(guest: Guest) -> Mapping[str, Value]:
    """The guest's kernel, page tables, RAM, paging files, compressed store and processors."""
    location, identity = guest.location, guest.location.identity
    return {
        "kernel": {
            "base": f"{location.base:#x}",
            "size": f"{location.size:#x}",
            "pdb": None if identity is None else identity.name,
            "guid": None if identity is None else identity.guid,
            "age": None if identity is None else identity.age,
            "found_by": location.how,
            "symbols": guest.symbol_file_of_kernel.path,
        },
        "build": guest.build,
        "build_lab": guest.build_lab,
        "dtb": f"{guest.dtb:#x}",
        "page_tables": guest.resolver.format.name,
        "kva_shadow": guest.kva_shadow,
        "invalid_pte_mask": f"{guest.invalid_pte_mask:#x}",
        "ram": [{"start": f"{run.start:#x}", "size": f"{run.size:#x}"} for run in guest.physical.runs],
        "processors": len(processor_blocks(guest)) or guest.vcpus,
        "paging_files": [
            {
                "number": file.number,
                "name": file.name,
                "size": file.size,
                "free": file.free,
                "compressed_store": file.is_store,
            }
            for file in guest.paging_files
        ],
        "compression_process": _compression_process(guest),
        "warnings": list(guest.warnings),
    }


def _compression_process(guest: Guest) -> int | None:
    """The pid of the process whose user memory holds the compressed store; None where there is none."""
    try:
        return next((process.pid for process in guest.processes if process.name.startswith(_COMPRESSION)), None)
    except ColdframeError as error:
        guest.warn(f"processes: {error}")
        return None
