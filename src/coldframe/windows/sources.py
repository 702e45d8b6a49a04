"""The source of pages that left RAM: paging files, files that sections map, and the compressed store, joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldframe.memory import PAGE_SIZE
from coldframe.paging import AbsentPages, BatchPageSource, Page, PagefileSlot, PageSource, State
from coldframe.paging.arrays import CODE
from coldframe.paging.sources import ExplainsPages, Explanation
from coldframe.windows.sources_files import FileSource
from coldframe.windows.sources_pagefiles import PagingFileSource
from coldframe.windows.sources_volumes import GuestVolumes

if TYPE_CHECKING:
    from coldframe.disk import Blocks
    from coldframe.windows.guest import Guest


class PageSources:
    """Where the pages of `guest` are that left RAM; a `BatchPageSource`.

    `store` answers for compressed pages. What is read from the guest and its disk is looked at anew whenever the guest
    has run.
    """

    def __init__(self, guest: Guest, store: PageSource | None = None) -> None:
        self._guest = guest
        self.store = store
        self._set(guest.own_disks, {})
        self._epoch = guest.resolver.epoch

    def use(self, disks: Callable[[], Sequence[Blocks]] | None, pagefiles: Mapping[int, Path] | None = None) -> None:
        """Read what left RAM out of these, from now on.

        `disks` is called when the first page of a disk is wanted, and gives the guest's disks; None where there are
        none. `pagefiles` are files that the user says are the paging files of these numbers; they go before those of
        a disk. Raises `UsageError` for a file that cannot be opened.
        """
        self.close()
        self._set(disks, pagefiles or {})

    def _set(self, disks: Callable[[], Sequence[Blocks]] | None, pagefiles: Mapping[int, Path]) -> None:
        self.volumes = None if disks is None else GuestVolumes(self._guest, disks)
        self.files = None if self.volumes is None else FileSource(self._guest, self.volumes)
        self.paging_files = PagingFileSource(self._guest, pagefiles, self.volumes)

    def close(self) -> None:
        """Let go of the disks; pages that left RAM cannot be read any more."""
        volumes, self.volumes, self.files = self.volumes, None, None
        self.paging_files.close()
        if volumes is not None:
            volumes.close()

    def _renew(self) -> None:
        if self._epoch == self._guest.resolver.epoch:
            return
        self._epoch = self._guest.resolver.epoch
        if self.volumes is not None:
            self.volumes.forget()
        self.paging_files.renew()
        if self.files is not None:
            self.files.renew()

    # Bytes

    def read_page(self, page: Page) -> bytes | None:
        """See `PageSource`."""
        if page.state is State.COMPRESSED:
            return None if self.store is None else self.store.read_page(page)
        self._renew()
        if page.state is State.PAGEFILE and page.pagefile is not None:
            return self.paging_files.read_page(page.pagefile.number, page.pagefile.offset)
        asked = _absent(page)
        out = np.zeros((1, PAGE_SIZE), np.uint8)
        return out.tobytes() if asked is not None and self.read_pages(asked, out)[0] else None

    def supplies(self, pages: AbsentPages) -> NDArray[np.bool_]:
        """See `BatchPageSource`."""
        self._renew()
        done = np.zeros(len(pages), np.bool_)
        paged, subsection, compressed = _kinds(pages)
        done[paged] = self.paging_files.supplies(pages.number[paged], pages.offset[paged])
        if self.files is not None and len(subsection):
            some = pages.where(subsection)
            done[subsection] = self.files.supplies(some.subsection, some.prototype_pte)
        if isinstance(self.store, BatchPageSource) and len(compressed):
            done[compressed] = self.store.supplies(pages.where(compressed))
        elif self.store is not None:
            for row in compressed.tolist():
                done[row] = self.store.read_page(_compressed(pages, row)) is not None
        return done

    def read_pages(self, pages: AbsentPages, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `BatchPageSource`."""
        self._renew()
        done = np.zeros(len(pages), np.bool_)
        paged, subsection, compressed = _kinds(pages)
        done[paged] = self.paging_files.read_pages(pages.number[paged], pages.offset[paged], out, paged)
        if self.files is not None and len(subsection):
            some = pages.where(subsection)
            done[subsection] = self.files.read_pages(some.subsection, some.prototype_pte, out, subsection)
        self._read_compressed(pages, compressed, out, done)
        return done

    def _read_compressed(
        self, pages: AbsentPages, rows: NDArray[np.int64], out: NDArray[np.uint8], done: NDArray[np.bool_]
    ) -> None:
        if self.store is None or not len(rows):
            return
        if isinstance(self.store, BatchPageSource):
            held = np.empty((len(rows), PAGE_SIZE), np.uint8)
            got = self.store.read_pages(pages.where(rows), held)
            out[rows[got]] = held[got]
            done[rows[got]] = True
            return
        for row in rows.tolist():
            data = self.store.read_page(_compressed(pages, row))
            if data is not None:
                out[row] = np.frombuffer(data, np.uint8)
                done[row] = True

    # Words

    def explain(self, page: Page) -> Explanation | None:
        """See `ExplainsPages`."""
        self._renew()
        if page.state is State.COMPRESSED:
            return self.store.explain(page) if isinstance(self.store, ExplainsPages) else None
        if page.pagefile is not None:
            source, trouble = self.paging_files.explain(page.pagefile.number, page.pagefile.offset)
            return Explanation(source, reason=trouble)
        asked = _absent(page)
        if asked is None or self.files is None:
            return None
        source, trouble = self.files.explain(int(asked.subsection[0]), int(asked.prototype_pte[0]))
        return Explanation(source, reason=f"page is in a file: {trouble}" if trouble else "")


def _kinds(pages: AbsentPages) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The rows in paging files, in files, and in the compressed store."""
    return (
        np.flatnonzero(pages.state == CODE[State.PAGEFILE]),
        np.flatnonzero(pages.state == CODE[State.SUBSECTION]),
        np.flatnonzero(pages.state == CODE[State.COMPRESSED]),
    )


def _absent(page: Page) -> AbsentPages | None:
    """The page as a batch of one; None for one that is in no file."""
    slot, pte = page.pagefile, 0
    if page.state is State.SUBSECTION and page.subsection is not None:
        found = [step.entry_address for step in page.steps if step.level == "prototype PTE"]
        if not found:
            return None
        slot, pte = None, found[-1]
    elif page.state not in (State.PAGEFILE, State.COMPRESSED) or slot is None:
        return None
    return AbsentPages(
        np.array([CODE[page.state]], np.uint8),
        np.array([0 if slot is None else slot.number], np.uint8),
        np.array([0 if slot is None else slot.offset], np.uint64),
        np.array([0 if slot is not None or page.subsection is None else page.subsection.address], np.uint64),
        np.array([pte], np.uint64),
    )


def _compressed(pages: AbsentPages, row: int) -> Page:
    slot = PagefileSlot(int(pages.number[row]), int(pages.offset[row]))
    return Page(0, State.COMPRESSED, pagefile=slot)
