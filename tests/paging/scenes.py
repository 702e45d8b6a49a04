"""Scenes that several tests look at: each kernel's types with each way of storing invalid PTEs."""

from __future__ import annotations

from functools import lru_cache

from builder import (
    LAYOUTS,
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
from coldframe.paging import FORMATS, PoolAddresses, PteLayout, Resolver
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
    for name in list(KERNELS)[:2]:
        out += [(name, "5-level", "unswizzled"), (name, "5-level", "mask bit 51")]
    out += [("pae 7", "pae", "unswizzled"), ("x86 XP", "x86", "unswizzled")]
    out += [("pae 10", "pae", variant) for variant in VARIANTS]
    return out


@lru_cache(maxsize=4)
def scene(name: str, page_format: str, variant: str) -> tuple[Scene, Resolver]:
    """The scene and a resolver over it that knows what there is to know."""
    swizzle, mask = VARIANTS[variant]
    types = types_of(name)
    ram = RAM_BELOW_4_GB if page_format == "x86" else RAM
    builder = ImageBuilder(types, page_format, swizzle=swizzle, invalid_pte_mask=mask, ram=ram)  # type: ignore[arg-type]
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
