"""Scenes that several tests look at: each kernel's types with each way of storing invalid PTEs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from builder import (
    LAYOUTS,
    PAGE,
    RAM,
    RAM_BELOW_4_GB,
    VIRTUAL_STORE,
    ImageBuilder,
    Scene,
    bit_field_types,
    build_scene,
    kernel,
    kernel_files,
)
from coldframe.errors import UnreadableMemoryError
from coldframe.paging import (
    FORMATS,
    AddressSpace,
    BulkResolver,
    Page,
    PageArrays,
    PoolAddresses,
    PteLayout,
    Resolver,
    State,
)
from coldframe.paging.arrays import NOWHERE, STATES, VIAS
from coldframe.symbols.model import Types

KERNELS = {path.name.split(".")[0]: path for path in kernel_files()}

VARIANTS = {
    "unswizzled": ("none", 0),
    "mask bit 45": ("windows", 1 << 45),
    "mask bit 35": ("windows", 1 << 35),
    "mask bit 51": ("windows", 1 << 51),
    "bit 4 always": ("forced", 1 << 45),
}


def types_of(name: str) -> Types:
    """The types of a kernel by its GUID, or of a row of `LAYOUTS`."""
    return bit_field_types(name) if name in LAYOUTS else kernel(KERNELS[name]).types


def every_scene() -> list[tuple[str, str, str]]:
    """(kernel, format, variant): every kernel at hand in every variant that it can have."""
    wide = [*KERNELS, "x64 2003", "x64 7 RTM"]
    out = []
    for name in wide:
        swizzles = name in KERNELS and "SwizzleBit" in types_of(name).record("_MMPTE_SOFTWARE").fields
        out += [(name, "4-level", variant) for variant in (VARIANTS if swizzles else ["unswizzled"])]
    deep = [(name, variant) for name, _, variant in out if variant in ("unswizzled", "mask bit 51")][:4]
    out += [(name, "5-level", variant) for name, variant in deep]
    out += [("pae 7", "pae", "unswizzled"), ("x86 XP", "x86", "unswizzled")]
    out += [("pae 10", "pae", variant) for variant in VARIANTS]
    return out


@lru_cache(maxsize=4)
def scene(name: str, page_format: str, variant: str) -> tuple[Scene, Resolver]:
    """The scene and a resolver over it that knows what there is to know."""
    swizzle, mask = VARIANTS[variant]
    types = types_of(name)
    ram = RAM_BELOW_4_GB if page_format == "x86" else RAM
    builder = ImageBuilder(types, page_format, swizzle=swizzle, invalid_pte_mask=mask, ram=ram)
    built = build_scene(builder)
    layout = PteLayout.from_types(types)
    pool = builder.shape.pool
    return built, Resolver(
        builder.physical(),
        FORMATS[page_format],
        layout.with_pools(PoolAddresses(pool, pool, 0)) if page_format == "x86" else layout,
        kernel_dtb=builder.kernel_dtb,
        invalid_pte_mask=mask,
        subsections=built.subsections,
        virtual_store=VIRTUAL_STORE,
    )


def differences(built: Scene, resolver: Resolver) -> list[str]:
    """What the resolver, in its three uses, finds otherwise than it was built; empty when all is right."""
    wrong = []
    offset = 0x358
    levels = [level.name for level in resolver.format.levels]
    spaces = {dtb: AddressSpace(resolver, dtb, built.vads) for dtb in (built.dtb, built.builder.kernel_dtb)}
    for case in built.cases:
        page = resolver.resolve(case.dtb, case.address + offset, built.vads)
        expected = {
            "state": case.state,
            "via": case.via,
            "physical": None if case.physical is None else case.physical + offset,
            "pagefile": case.pagefile,
            "subsection": case.subsection,
            "readable": case.content is not None,
        }
        found = {name: getattr(page, name) for name in expected}
        try:
            content = spaces[case.dtb].read(case.address, PAGE)
        except UnreadableMemoryError as error:
            content = None
            if (error.address, error.reason) != (case.address, page.reason):
                wrong.append(f"{case.name}: read says {error}")
        if found != expected:
            steps = "; ".join(step.says for step in page.steps)
            wrong.append(f"{case.name}: built {expected}, found {found}, {page.reason!r}, {steps}")
        if content != case.content:
            wrong.append(f"{case.name}: other bytes")
        told = [step.level for step in page.steps if step.level in levels]
        if told != levels[: len(told)] or not told:
            wrong.append(f"{case.name}: steps {told}")
        if case.says not in page.reason or bool(page.reason) == page.readable:
            wrong.append(f"{case.name}: reason {page.reason!r}")
        if resolver.translate(case.dtb, case.address + offset, built.vads) != page.physical:
            wrong.append(f"{case.name}: translate and resolve differ")
    return wrong


def row_of(pages: PageArrays, address: int) -> int | None:
    """The row that covers `address`."""
    row = int(np.searchsorted(pages.address, np.uint64(address), side="right")) - 1
    if row < 0 or address - int(pages.address[row]) >= int(pages.size[row]):
        return None
    return row


def bulk_difference(page: Page, pages: PageArrays) -> str:
    """How its row and the single resolver's page differ; empty where they agree."""
    address = page.address
    row = row_of(pages, address)
    if row is None:
        nothing = page.state is State.UNMAPPED and page.reason.startswith("nothing is mapped")
        return "" if nothing else f"{address:#x}: no row, and {page}"
    into = address - int(pages.address[row])
    physical = int(pages.physical[row])
    found = (
        STATES[pages.state[row]],
        {via for number, via in enumerate(VIAS) if pages.via[row] >> number & 1},
        None if physical == NOWHERE else physical + into,
        (int(pages.number[row]), int(pages.offset[row])) if page.pagefile else None,
        int(pages.subsection[row]) if page.subsection else None,
        bool(pages.supplied[row]),
        bool(pages.readable[row]),
    )
    expected = (
        page.state,
        set(page.via),
        page.physical,
        (page.pagefile.number, page.pagefile.offset) if page.pagefile else None,
        page.subsection.address if page.subsection else None,
        page.supplied,
        page.readable,
    )
    return "" if found == expected else f"{address:#x}: {found} in bulk, {expected} singly ({page.reason})"


def bulk_differences(built: Scene, resolver: Resolver) -> list[str]:
    """What the bulk resolver finds of the built pages otherwise than the single one."""
    bulk = BulkResolver(resolver)
    halves = {
        built.dtb: bulk.pages(built.dtb, built.vads),
        built.builder.kernel_dtb: bulk.kernel_pages(built.builder.kernel_dtb),
    }
    pages = [(case.dtb, resolver.resolve(case.dtb, case.address + 0x358, built.vads)) for case in built.cases]
    return [text for dtb, page in pages if (text := bulk_difference(page, halves[dtb]))]
