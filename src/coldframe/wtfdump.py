"""A live guest as the snapshot fuzzer wtf takes it: a folder with `mem.dmp` and `regs.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe.dumping import write_guest
from coldframe.errors import CapabilityError, UsageError
from coldframe.images.wtf import MEMORY, REGISTERS, write_registers
from coldframe.target import PathLike, attach

if TYPE_CHECKING:
    from coldframe.debug import LiveGuest
    from coldframe.images.output import Progress


def dump_wtf(
    target: PathLike,
    folder: PathLike,
    *,
    symbols: Sequence[PathLike] = (),
    vcpu: int = 0,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write the running guest `target` into `folder` for wtf, with the registers of `vcpu`; returns warnings.

    The guest is paused meanwhile. Raises `CapabilityError` for a memory image, which has not all of the registers, and
    what `attach` and `write_wtf` raise.
    """
    if Path(target).is_file():
        raise CapabilityError(
            f"{target} is a memory image: it lacks registers that wtf needs (LSTAR, PAT); take the dump from the guest"
        )
    with attach(target, symbols=symbols) as guest:
        guest.pause()
        return write_wtf(guest, folder, vcpu, progress)


def write_wtf(guest: LiveGuest, folder: PathLike, vcpu: int = 0, progress: Progress | None = None) -> tuple[str, ...]:
    """Write `guest`, which is paused, into `folder` for wtf; at a hit, with the `vcpu` that hit. Returns warnings.

    A page that is not in RAM is not in the snapshot: boot the guest residently first; the warnings say how many there
    are. Raises `UsageError` where a file is in the folder's place, `CapabilityError`, `OutputError`.
    """
    from coldframe.debug.processorstate import processor_state  # noqa: PLC0415 - only these dumps need all of it

    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise UsageError(f"expected a folder at {place}, found a file")
    place.mkdir(parents=True, exist_ok=True)
    state = processor_state(guest, vcpu)
    warnings = write_guest(guest, place / MEMORY, progress)
    write_registers(place / REGISTERS, state)
    return (*warnings, *_missing(guest))


def _missing(guest: LiveGuest) -> tuple[str, ...]:
    """A warning when pages of this guest are elsewhere than in RAM."""
    from coldframe.resident.verification import count_pages  # noqa: PLC0415

    pages = count_pages(guest)
    if not pages.promised:
        return ()
    return (
        f"{pages.promised} pages are in paging files, the compressed store or image files, so not in the snapshot; "
        "boot the guest with: coldframe boot",
    )
