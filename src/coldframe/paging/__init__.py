"""Page tables: hardware formats as data, PTE layouts from the kernel's types, and the resolver of every page state."""

from coldframe.paging.arrays import Census, PageArrays
from coldframe.paging.bulk import BulkResolver
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
