"""What the resolver asks of others, and how it keeps them from asking it in a circle."""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import TypeVar

from coldframe.errors import FormatError, NotFoundError, UnreadableMemoryError
from coldframe.paging.formats import PAGE_SIZE
from coldframe.paging.layout import PteLayout
from coldframe.paging.page import Page, PagefileSlot, State, Via
from coldframe.paging.sources import DescribesSubsections, ExplainsPages, Explanation, NamesPagingFiles, PageSource

Answer = TypeVar("Answer")

TROUBLE = (UnreadableMemoryError, FormatError, NotFoundError)
"""What reading structures out of damaged or hostile memory raises."""

MAX_DEPTH = 4
"""How deep a prototype PTE's own page may again lie behind a prototype PTE, and a page source ask for pages."""


class Asks:
    """The describers and the page source of a resolver; each may be set later, as it becomes known."""

    def __init__(
        self,
        layout: PteLayout | None,
        subsections: DescribesSubsections | None,
        paging_files: NamesPagingFiles | None,
        virtual_store: int | Callable[[], int | None] | None,
        pages: PageSource | None,
    ) -> None:
        self.layout = layout
        self.subsections = subsections
        self.paging_files = paging_files
        self.virtual_store = virtual_store
        self.pages = pages
        self._nesting = local()

    def supplied(self, page: Page) -> bytes | None:
        """The 4096 bytes of a page that left RAM, where the page source has them."""
        pages = self.pages
        if pages is None:
            return None
        held = self.ask(MAX_DEPTH, lambda: pages.read_page(page))
        return held if held is not None and len(held) == PAGE_SIZE else None

    def explained(self, page: Page) -> Explanation | None:
        """What the page source tells of a page that left RAM."""
        pages = self.pages
        return self.ask(MAX_DEPTH, lambda: pages.explain(page)) if isinstance(pages, ExplainsPages) else None

    def supplied_table(self, address: int, value: int) -> bytes | None:
        """The table that the (unswizzled) paging-file entry `value` names, on the way to `address`; likewise."""
        if self.pages is None or self.layout is None:
            return None
        state, slot = self.slot(value, self.layout)
        return self.supplied(Page(address, state, via=(Via.PAGED_TABLE,), pagefile=slot))

    def store_number(self) -> int | None:
        """The paging-file number that stands for the compressed store, asked for where it is to be asked for."""
        return self.ask(1, self.virtual_store) if callable(self.virtual_store) else self.virtual_store

    def ask(self, most: int, question: Callable[[], Answer | None]) -> Answer | None:
        """The answer of a page source or describer, or None.

        Those read guest memory through this very resolver, which may ask them again (the name of a paging file may be
        paged out itself): no more than `most` questions within each other.
        """
        nested = getattr(self._nesting, "depth", 0)
        if nested >= most:
            return None
        self._nesting.depth = nested + 1
        try:
            return question()
        except TROUBLE:
            return None
        finally:
            self._nesting.depth = nested

    def slot(self, value: int, layout: PteLayout) -> tuple[State, PagefileSlot]:
        """Where a paging-file entry says that its page is: pagefile or compressed, number and offset."""
        number = layout.page_file_low.get(value)
        state = State.COMPRESSED if number == self.store_number() else State.PAGEFILE
        return state, PagefileSlot(number, layout.slot(value) * PAGE_SIZE)

    def place(self, state: State, slot: PagefileSlot) -> str:
        """That place in words."""
        store = "the compressed store, " if state is State.COMPRESSED else ""
        return f"{store}paging file {slot.number} at {slot.offset:#x}"

    def where(self, state: State, slot: PagefileSlot) -> str:
        """The place, and what would unlock it."""
        if state is State.COMPRESSED:
            return self.place(state, slot)
        files = self.paging_files
        name = None if files is None else self.ask(1, lambda: files.paging_file_name(slot.number))
        named = "" if name is None else f" ({name})"
        return f"paging file {slot.number}{named} at {slot.offset:#x}: give --disk or --pagefile"
