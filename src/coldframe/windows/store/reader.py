"""The compressed store as a source of pages: from a PTE's paging-file slot to 4096 bytes.

Number and offset of the slot make a key; `SMKM_STORE_MGR`'s tree tells which store has it; the store tells where its
bytes are (see `records`); they are decompressed. Everything here is the guest's word: counts, sizes and depths are
bounded, and each failure names the step at which it was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cramjam
import numpy as np
from numpy.typing import NDArray

from coldframe.errors import ColdframeError, FormatError, GuestGoneError
from coldframe.memory import PAGE_SIZE
from coldframe.paging import AbsentPages, Explanation, Page, PagefileSlot, State, Step
from coldframe.paging.arrays import CODE
from coldframe.windows.store.layouts import StoreLayout, store_layout
from coldframe.windows.store.records import Store, Stored, naming
from coldframe.windows.store.tree import StoreTree
from coldframe.windows.store.xpress import decompress

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_GLOBALS = ("SmGlobals", "?SmGlobals@@3U_SM_GLOBALS@@A")
_KEY_BITS = 28
_GONE = 1  # the highest byte of a key's value: the page was evicted
_STORE = 0x3FF
_STORES_A_ROW = 32
_XPRESS = 3  # COMPRESSION_FORMAT_XPRESS of ntifs.h
_KEPT = 64


class CompressedStore:
    """The compressed store of a guest; a `BatchPageSource` for pages in state `compressed`."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def read_page(self, page: Page) -> bytes | None:
        """The 4096 bytes of `page`, or None: `explain` says why."""
        if page.state is not State.COMPRESSED or page.pagefile is None:
            return None
        try:
            return self.read(page.pagefile)
        except GuestGoneError:
            raise
        except ColdframeError:
            return None

    def read(self, slot: PagefileSlot) -> bytes:
        """The 4096 bytes of the page in `slot`; raises `FormatError` naming the step that failed."""
        return self._manager().page(slot)

    def locate(self, slot: PagefileSlot) -> tuple[Store, Stored]:
        """Which store has the page in `slot`, and where; raises `FormatError` likewise."""
        manager = self._manager()
        return manager.locate(manager.key(slot))

    def explain(self, page: Page) -> Explanation | None:
        """`store:N`, and the entries read on the way from `page`'s slot to its bytes; or why there are none."""
        if page.state is not State.COMPRESSED or page.pagefile is None:
            return None
        steps: list[Step] = []
        try:
            manager = self._manager()
            key = manager.key(page.pagefile)
            store = manager.store_of(key)
            says = f"key {key:#x}: store {store.index} at {store.address:#x}"
            steps.append(Step("store key", manager.tree.root, key, says))
            stored = store.locate(key)
            steps += _record_steps(store, stored)
            manager.page(page.pagefile)
        except GuestGoneError:
            raise
        except ColdframeError as error:
            return Explanation("", tuple(steps), str(error))
        return Explanation(f"store:{store.index}", tuple(steps))

    def supplies(self, pages: AbsentPages) -> NDArray[np.bool_]:
        """Of which pages the stored bytes can be had, shape (n,); that they decompress is seen when they are read."""
        found = np.zeros(len(pages), bool)
        for row, slot in self._rows(pages):
            try:
                store, stored = self.locate(slot)
                store.data(stored)
            except GuestGoneError:
                raise
            except ColdframeError:
                continue
            found[row] = True
        return found

    def read_pages(self, pages: AbsentPages, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Each page's bytes into its row of `out`, shape (n, 4096); returns which there were, shape (n,)."""
        found = np.zeros(len(pages), bool)
        for row, slot in self._rows(pages):
            try:
                out[row] = np.frombuffer(self.read(slot), np.uint8)
            except GuestGoneError:
                raise
            except ColdframeError:
                continue
            found[row] = True
        return found

    @staticmethod
    def _rows(pages: AbsentPages) -> list[tuple[int, PagefileSlot]]:
        rows = np.flatnonzero(pages.state == CODE[State.COMPRESSED])
        columns = zip(rows.tolist(), pages.number[rows].tolist(), pages.offset[rows].tolist(), strict=True)
        return [(row, PagefileSlot(number, offset)) for row, number, offset in columns]

    def _manager(self) -> _Manager:
        """The store manager, found once a pause; so is that it is not there."""

        def find() -> _Manager | ColdframeError:
            try:
                return _Manager(self._guest)
            except GuestGoneError:
                raise
            except ColdframeError as error:
                return error

        found = self._guest.once("compressed store", find)
        if isinstance(found, ColdframeError):
            raise found
        return found


class _Manager:
    """`SMKM_STORE_MGR`: which store has which key. Good for one pause."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._layout: StoreLayout = store_layout(guest.build, guest.types.pointer_size)
        start = next((address for name in _GLOBALS if (address := guest.variable(name)) is not None), None)
        if start is None:
            raise FormatError(f"store: the kernel's symbols have no {_GLOBALS[0]}")
        with naming("SmGlobals"):
            if self._layout.manager is not None:
                pointer, back = self._layout.manager
                start = guest.typed.pointer(start + pointer) - back
            self.address = start
            root = guest.typed.pointer(start + self._layout.key_tree)
        if not root:
            raise FormatError("store: the store manager has no pages: nothing was compressed yet")
        self.tree = StoreTree(guest.memory, root, self._layout.pointer_size, "the key tree")
        self._stores: dict[int, Store] = {}
        self._pages: dict[int, bytes] = {}

    def key(self, slot: PagefileSlot) -> int:
        """The key of a slot."""
        page = slot.offset // PAGE_SIZE
        if page >> _KEY_BITS:
            raise FormatError(f"store: page {page:#x} of its paging file has no key: those have {_KEY_BITS} bits")
        return slot.number << _KEY_BITS | page if self._layout.key_has_number else page

    def store_of(self, key: int) -> Store:
        """The store that has `key`."""
        with naming("the key tree"):
            value = self.tree.find(key)
        if value is None:
            raise FormatError(f"store: the key tree has no key {key:#x}")
        if value >> 24 == _GONE:
            raise FormatError(f"store: the page of key {key:#x} was thrown out of its store")
        index = value & _STORE
        store = self._stores.get(index)
        if store is None:
            store = self._stores[index] = Store(self._guest, index, self._address_of(index), self._layout)
        return store

    def _address_of(self, index: int) -> int:
        row, column = divmod(index, _STORES_A_ROW)
        typed, size = self._guest.typed, self._layout.pointer_size
        with naming(f"the metadata of store {index}"):
            metadata = typed.pointer(self.address + row * size)
            address = typed.pointer(metadata + column * self._layout.metadata_size) if metadata else 0
        if not address:
            raise FormatError(f"store: there is no store {index}")
        return address

    def locate(self, key: int) -> tuple[Store, Stored]:
        """Its store, and where its bytes are."""
        store = self.store_of(key)
        return store, store.locate(key)

    def page(self, slot: PagefileSlot) -> bytes:
        """The bytes of a page; the last few are kept, since whoever resolves a page then reads it."""
        key = self.key(slot)
        page = self._pages.pop(key, None)
        if page is None:
            store, stored = self.locate(key)
            page = self._expanded(store, stored)
        self._pages[key] = page
        if len(self._pages) > _KEPT:
            del self._pages[next(iter(self._pages))]
        return page

    def _expanded(self, store: Store, stored: Stored) -> bytes:
        data = store.data(stored)
        if stored.size == PAGE_SIZE:
            return data
        try:
            if self._layout.compression == "lz4":
                return _lz4(data)
            if store.format != _XPRESS:
                raise FormatError(f"is compressed by format {store.format}, not Xpress ({_XPRESS})")
            return decompress(data, PAGE_SIZE)
        except FormatError as error:
            raise FormatError(f"store: key {stored.key:#x} in store {store.index}: {error}") from None


def _lz4(data: bytes) -> bytes:
    try:
        page = bytes(cramjam.lz4.decompress_block(data, output_len=PAGE_SIZE))
    except cramjam.DecompressionError as error:
        raise FormatError(f"LZ4: {error}") from None
    if len(page) != PAGE_SIZE:
        raise FormatError(f"LZ4: {len(data)} bytes hold {len(page)}, not {PAGE_SIZE}")
    return page


def _record_steps(store: Store, stored: Stored) -> list[Step]:
    combined = ", combined with another page's" if stored.combined else ""
    form = "stored as it is" if stored.size == PAGE_SIZE else f"{stored.size} bytes compressed"
    return [
        Step("store record", stored.record, stored.record_key, f"record at {stored.record:#x}{combined}: {form}"),
        Step(
            "store region",
            stored.address,
            stored.size,
            f"region {stored.region}: {stored.address:#x} in {store.owned_by}",
        ),
    ]
