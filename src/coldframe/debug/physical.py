"""A breakpoint on a physical address: on every virtual address that is mapped there.

The processor's breakpoints are on virtual addresses. So the page tables of the kernel and of every process are searched
for the page; a hit counts where its own address space leads to the physical address at that moment. A process that
maps the page later is covered where it maps it to an address that another had it at, as images are.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from coldframe.debug.breakpoint import Breakpoint
from coldframe.debug.condition import Condition
from coldframe.debug.current import Arrival
from coldframe.debug.hit import Hit
from coldframe.errors import ColdframeError, NotFoundError, UnreadableMemoryError
from coldframe.paging import AddressSpace
from coldframe.windows.process import Process

if TYPE_CHECKING:
    from coldframe.debug.live import LiveGuest

_MOST_PLACES = 64


class PhysicalBreakpoint(Breakpoint):
    """Made by `LiveGuest.break_on_physical`: `physical` is the address, `addresses` are the virtual ones."""

    def __init__(
        self,
        guest: LiveGuest,
        physical: int,
        addresses: tuple[int, ...],
        *,
        kind: str,
        eprocess: int,
        condition: Condition | str | None,
        once: bool,
    ) -> None:
        name = f"physical {physical:#x}"
        super().__init__(guest, name, addresses[0], kind=kind, eprocess=eprocess, condition=condition, once=once)
        self.physical = physical
        self.addresses = addresses
        self._places = [Breakpoint(guest, name, address, kind=kind, condition=self._arrived) for address in addresses]

    @property
    def is_set(self) -> bool:
        """Whether it is set, at one of its addresses at least."""
        return any(place.is_set for place in self._places)

    def insert(self) -> None:
        """Set it at every address; raises `CapabilityError` when QEMU has too few, and nothing is set then."""
        with ExitStack() as undo:
            for place in self._places:
                place.insert()
                undo.callback(place.remove)
            undo.pop_all()

    def remove(self) -> None:
        """Take it out of the guest; no effect when it is out. Hits that were queued are dropped."""
        for place in self._places:
            place.remove()
        self._queue.clear()

    def _arrived(self, hit: Hit) -> bool:
        """Take an arrival at one of the addresses for a hit, if it is at the physical address."""
        if hit.memory.translate(hit.address) == self.physical:
            self.offer(Arrival(hit.vcpu, hit.registers, hit.ethread, hit.eprocess))
        return False


def mapped_at(guest: LiveGuest, physical: int) -> tuple[int, ...]:
    """Every virtual address that leads to `physical` now, in the kernel or in any process, lowest first."""
    found: set[int] = set()
    for space in (guest.memory, *(process.memory for process in guest.processes)):
        try:
            found |= _in(space, physical)
        except ColdframeError as error:  # one damaged address space must not hide the others
            guest.warn(f"pages of {space!r}: {error}")
    return tuple(sorted(found))


def _in(space: AddressSpace, physical: int) -> set[int]:
    import numpy as np  # noqa: PLC0415 - slow to load

    found: set[int] = set()
    for pages in space.parts():
        last = pages.physical + pages.size
        rows = np.flatnonzero((pages.physical <= np.uint64(physical)) & (last > np.uint64(physical)))
        found |= {int(pages.address[row]) + physical - int(pages.physical[row]) for row in rows}
    return {address for address in found if space.translate(address) == physical}


def break_on_physical(
    guest: LiveGuest,
    physical: int,
    process: Process | None,
    *,
    kind: str,
    condition: Condition | str | None,
    once: bool,
) -> PhysicalBreakpoint:
    """See `LiveGuest.break_on_physical`."""
    try:
        guest.physical.read(physical, 1)
    except UnreadableMemoryError as error:
        raise NotFoundError("physical address", f"{physical:#x}", hint=error.reason) from None
    addresses = mapped_at(guest, physical)
    if not addresses:
        raise NotFoundError("virtual address of the physical one", f"{physical:#x}", hint="no process maps it now")
    return PhysicalBreakpoint(
        guest,
        physical,
        addresses[:_MOST_PLACES],
        kind=kind,
        eprocess=process.eprocess.address if process is not None else 0,
        condition=condition,
        once=once,
    )
