"""The source of pages that left RAM, made when the resolver meets the first of them: making it loads much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.paging.page import Page, State
from coldframe.paging.sources import AbsentPages, Explanation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coldframe.windows.guest import Guest


class LateSources:
    """`guest.pages`, not asked for before a page is; a `BatchPageSource` that `ExplainsPages`."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def read_page(self, page: Page) -> bytes | None:
        """See `PageSource`."""
        return self._guest.pages.read_page(page) if _left(page) else None

    def supplies(self, pages: AbsentPages) -> NDArray[np.bool_]:
        """See `BatchPageSource`."""
        return self._guest.pages.supplies(pages)

    def read_pages(self, pages: AbsentPages, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `BatchPageSource`."""
        return self._guest.pages.read_pages(pages, out)

    def explain(self, page: Page) -> Explanation | None:
        """See `ExplainsPages`."""
        return self._guest.pages.explain(page) if _left(page) else None


def _left(page: Page) -> bool:
    """Whether the page is somewhere else than in RAM; of one that is nowhere, no source knows more."""
    return page.state in (State.PAGEFILE, State.COMPRESSED, State.SUBSECTION)
