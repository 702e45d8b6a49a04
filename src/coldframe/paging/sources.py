"""What the resolver asks of others: small protocols that the `windows` and `disk` rooms fulfil."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from coldframe.paging.page import Page, Step, SubsectionPage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class VadPage:
    """What the VAD tree says of one page.

    `vad` is the VAD's kernel-virtual address; `start` and `end` the range it covers (`end` is the first address
    behind it). `prototype_pte` is the kernel-virtual address of this page's prototype PTE, found in a contiguous
    array or along the `_SUBSECTION` chain; None where the VAD has none, or where `trouble` says why it is not to be
    found. `says` is the VAD in words.
    """

    vad: int
    start: int
    end: int
    private: bool
    prototype_pte: int | None
    says: str | Callable[[], str]
    trouble: str = ""


class FindsVads(Protocol):
    """The VADs of one process."""

    def vad_page(self, address: int) -> VadPage | None:
        """The VAD that holds user address `address`, or None."""
        ...


@dataclass(frozen=True, slots=True)
class VadRange:
    """A VAD as the bulk resolver wants it: the range `start` to `end` at once.

    `prototypes` are runs of pages whose prototype PTEs stand side by side: (address of the first page, kernel-virtual
    address of its prototype PTE, number of pages), within the range, by address. A view of one subsection has one run,
    others one a subsection.
    """

    vad: int
    start: int
    end: int
    private: bool
    prototypes: tuple[tuple[int, int, int], ...] = ()


@runtime_checkable
class ListsVads(Protocol):
    """The VADs of one process, all of them."""

    def vad_ranges(self) -> Iterable[VadRange]:
        """Each VAD once; they do not overlap."""
        ...


class DescribesSubsections(Protocol):
    """Where in which file a subsection's page lies."""

    def subsection_page(self, subsection: int, prototype_pte: int) -> SubsectionPage | None:
        """The file and offset of the page of `prototype_pte` in the `_SUBSECTION` at `subsection` (both
        kernel-virtual).

        None where the subsection cannot be read.
        """
        ...


class NamesPagingFiles(Protocol):
    """The guest's paging files."""

    def paging_file_name(self, number: int) -> str | None:
        r"""The file's name (`\??\C:\pagefile.sys`), or None where it is not known."""
        ...


class PageSource(Protocol):
    """Pages that are not in RAM: out of a paging file, the compressed store or a file."""

    def read_page(self, page: Page) -> bytes | None:
        """The 4096 bytes of `page` (its state, `pagefile` and `subsection` tell where they are), or None."""
        ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a source of pages tells of one page: the place its bytes are from (`store:3`), the entries read on the way;
    and, where it has no bytes, what stopped it ("" where it has)."""

    source: str = ""
    steps: tuple[Step, ...] = ()
    reason: str = ""


@runtime_checkable
class ExplainsPages(Protocol):
    """A source of pages that can say where it found one, or why not."""

    def explain(self, page: Page) -> Explanation | None:
        """What there is to tell of `page`; None for a page that is none of this source's."""
        ...


@dataclass(frozen=True, slots=True)
class AbsentPages:
    """n pages that left RAM, or never were there: what a source of pages must know of each. All have shape (n,).

    `state` indexes `paging.arrays.STATES` and is pagefile, compressed or subsection. In the first two, `number` is the
    paging file's and `offset` the byte offset of the page in it. In the last, `subsection` is the kernel-virtual
    address of the `_SUBSECTION` (0 where it is not known) and `prototype_pte` that of the page's prototype PTE, which
    tells how far into the subsection it lies: pages whose prototype PTEs stand side by side do so in the file. Columns
    that do not apply are 0.
    """

    state: NDArray[np.uint8]
    number: NDArray[np.uint8]
    offset: NDArray[np.uint64]
    subsection: NDArray[np.uint64]
    prototype_pte: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.state)

    def where(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> AbsentPages:
        """Those of a mask, or of these rows."""
        paging_file = self.state[rows], self.number[rows], self.offset[rows]
        return AbsentPages(*paging_file, self.subsection[rows], self.prototype_pte[rows])


@runtime_checkable
class BatchPageSource(PageSource, Protocol):
    """A source that answers for thousands of pages at once; one without these methods is asked page by page.

    What it says of a page is what its `read_page` says. It may be asked of the same page often, of pages in any order,
    and of places that no file has (a guest's entries can say anything).
    """

    def supplies(self, pages: AbsentPages) -> NDArray[np.bool_]:
        """Of which pages `read_page` would return bytes, shape (n,); reads no more than it must to know."""
        ...

    def read_pages(self, pages: AbsentPages, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Put the bytes of each page that there is in its row of `out`, shape (n, 4096), whose other rows stay as they
        are; returns which those were, shape (n,).

        Reads in the order of the disk, in runs as long as can be. `out` may be a view of a larger array.
        """
        ...
