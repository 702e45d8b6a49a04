"""What the resolver asks of others: small protocols that the `windows` and `disk` rooms fulfil."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from coldframe.paging.page import Page, SubsectionPage


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
