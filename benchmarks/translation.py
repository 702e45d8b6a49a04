"""How long an address takes to translate, explain and read; beside volatility3 where it is installed.

`python benchmarks/translation.py [PAGES]`: one process with that many 4 KB pages (8192 by default) scattered over
RAM, looked at in random order. Microseconds an operation, the median and the best of several runs; volatility3 walks
the same image.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from builder import MB, PAGE, ImageBuilder, bit_field_types, kernel, kernel_files, pattern  # noqa: E402
from coldframe.paging import FORMATS, AddressSpace, BulkResolver, PteLayout, Resolver  # noqa: E402

try:
    from volatility3.framework import contexts
    from volatility3.framework.layers import intel, physical
except ImportError:
    contexts = None

BASE = 0x7FF600000000
RUNS = 7


def timed(
    action: Callable[[int], object],
    addresses: list[int],
    *,
    before: Callable[[], object] = lambda: None,
    share: int | None = None,
) -> list[float]:
    """Seconds of each run over all addresses, shared among `share` operations (as many as addresses)."""
    out = []
    for _ in range(RUNS):
        before()
        start = time.perf_counter()
        for address in addresses:
            action(address)
        out.append((time.perf_counter() - start) / (share or len(addresses)))
    return out


def volatility_layer(image: bytes, dtb: int) -> intel.WindowsIntel32e | None:
    """volatility3's layer over the same bytes; None where it is not installed."""
    if contexts is None:
        return None
    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "memory", "memory", buffer=image))
    path = "layer"
    context.config[f"{path}.memory_layer"] = "memory"
    context.config[f"{path}.page_map_offset"] = dtb
    return intel.WindowsIntel32e(context, path, "layer")


def main() -> None:
    pages = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    files = kernel_files()
    types = kernel(files[-1]).types if files else bit_field_types("x64 7 RTM")
    builder = ImageBuilder(types, ram=((0, 2 * pages * PAGE + 32 * MB),))
    dtb = builder.new_dtb()
    content = pattern(1)
    transition = []
    for index in range(pages):
        builder.map(dtb, BASE + index * PAGE, content)
        if index % 8 == 7:
            address = BASE + (1 << 32) + index * PAGE
            builder.set_entry(dtb, address, builder.transition(builder.allocate_page(content)))
            transition.append(address)
    valid = [BASE + index * PAGE + 0x18 for index in range(pages)]
    random.Random(1).shuffle(valid)
    random.Random(2).shuffle(transition)
    resolver = Resolver(
        builder.physical(), FORMATS["4-level"], PteLayout.from_types(types), kernel_dtb=builder.kernel_dtb
    )
    space = AddressSpace(resolver, dtb)
    rows: list[tuple[str, list[float]]] = [
        ("translate, a walk each time", timed(lambda address: resolver.translate(dtb, address), valid)),
        ("translate, transition page", timed(lambda address: resolver.translate(dtb, address), transition)),
        ("translate in an address space, first time", timed(space.translate, valid, before=resolver.drop_caches)),
        ("translate in an address space, again", timed(space.translate, valid)),
        ("resolve, with every step in words", timed(lambda address: resolver.resolve(dtb, address), valid[:1024])),
        ("u64, again", timed(space.u64, valid)),
        ("read 4 KB, again", timed(lambda address: space.read(address & ~0xFFF, PAGE), valid)),
    ]
    layer = volatility_layer(bytes(builder.ram[0].data), dtb)
    if layer is not None:
        rows.append(("volatility3: translate", timed(layer.translate, valid)))
    bulk = BulkResolver(resolver)
    found = len(bulk.pages(dtb))
    rows.append(("list every page, in bulk, a page", timed(lambda _: bulk.pages(dtb), [0], share=found)))
    if layer is not None:
        mapped = len(list(layer.mapping(BASE, 1 << 33, ignore_errors=True)))
        times = timed(lambda _: list(layer.mapping(BASE, 1 << 33, ignore_errors=True)), [0], share=mapped)
        rows.append(("volatility3: list every page, a page", times))
    table = Table("operation", "median µs", "best µs", "a second")
    for name, times in rows:
        median = statistics.median(times)
        table.add_row(name, f"{median * 1e6:.2f}", f"{min(times) * 1e6:.2f}", f"{1 / median:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
