"""Page tables: hardware formats as data, PTE layouts from the kernel's types, and the resolver of every page state."""

from typing import TYPE_CHECKING

from coldframe.paging.formats import FORMATS, Level, PageTableFormat
from coldframe.paging.layout import Bits, PoolAddresses, PteLayout
from coldframe.paging.page import Page, PagefileSlot, State, Step, SubsectionPage, Via
from coldframe.paging.resolver import Resolver
from coldframe.paging.sources import (
    AbsentPages,
    BatchPageSource,
    DescribesSubsections,
    ExplainsPages,
    Explanation,
    FindsVads,
    ListsVads,
    NamesPagingFiles,
    PageSource,
    VadPage,
    VadRange,
)
from coldframe.paging.space import AddressSpace
from coldframe.paging.swizzle import mask_from_physical_bits, unswizzle

if TYPE_CHECKING:
    from coldframe.paging.arrays import Census, PageArrays
    from coldframe.paging.bulk import BulkResolver

__all__ = [
    "FORMATS",
    "AbsentPages",
    "AddressSpace",
    "BatchPageSource",
    "Bits",
    "BulkResolver",
    "Census",
    "DescribesSubsections",
    "ExplainsPages",
    "Explanation",
    "FindsVads",
    "Level",
    "ListsVads",
    "NamesPagingFiles",
    "Page",
    "PageArrays",
    "PageSource",
    "PageTableFormat",
    "PagefileSlot",
    "PoolAddresses",
    "PteLayout",
    "Resolver",
    "State",
    "Step",
    "SubsectionPage",
    "VadPage",
    "VadRange",
    "Via",
    "mask_from_physical_bits",
    "unswizzle",
]


def __getattr__(name: str) -> object:
    """What is made of arrays, as it is asked for: it loads numpy, which few calls of the command line need."""
    if name in ("Census", "PageArrays"):
        from coldframe.paging import arrays  # noqa: PLC0415

        return getattr(arrays, name)
    if name == "BulkResolver":
        from coldframe.paging.bulk import BulkResolver  # noqa: PLC0415

        return BulkResolver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
