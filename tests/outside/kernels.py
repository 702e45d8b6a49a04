"""Pages in every state on images built from real kernels' types, read by volatility3's Windows layer and by coldframe.

Only the two translations are compared: both are told the DTB, coldframe also what it takes from the kernel's symbols
(its types, the swizzle mask, the VADs). volatility3 is imported here, not run: its layer needs no symbols.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from builder.states import Case
from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging import AddressSpace
from paging.scenes import KERNELS, every_scene, scene

Outcome: TypeAlias = str
"""right, wrong (bytes other than those of the page, or any where there are none) or not (read)."""
Read: TypeAlias = Callable[[int, int], bytes | None]
"""DTB and address to the page's bytes, or None."""

PAGE = 4096
ADDRESS = (1 << 48) - 1


def scenes(names: Iterable[str] | None = None) -> list[tuple[str, str, str]]:
    """Every scene of 4-level tables of real kernels: each kernel, in each way that it can store invalid entries."""
    wanted = set(KERNELS if names is None else names)
    return [found for found in every_scene() if found[0] in wanted and found[1] == "4-level"]


def write_raw(memory: PhysicalMemory, path: Path) -> None:
    """The memory as a padded raw image, its gaps as holes of the file."""
    with path.open("wb") as file:
        for run in memory.runs:
            file.seek(run.start)
            file.write(memory.read(run.start, run.size))


def volatility_layer(image: Path) -> Read:
    """volatility3's `WindowsIntel32e` on a raw image."""
    from volatility3.framework import contexts, exceptions
    from volatility3.framework.layers import intel, physical

    context = contexts.Context()
    context.config["base.location"] = image.as_uri()
    context.layers.add_layer(physical.FileLayer(context, "base", "base"))
    layers = {}

    def read(dtb: int, address: int) -> bytes | None:
        if dtb not in layers:
            name = f"space{dtb:x}"
            context.config[f"{name}.memory_layer"] = "base"
            context.config[f"{name}.page_map_offset"] = dtb
            layers[dtb] = intel.WindowsIntel32e(context, name, name)
        try:
            return bytes(layers[dtb].read(address & ADDRESS, PAGE))
        except exceptions.InvalidAddressException:
            return None

    return read


def both(folder: Path, name: str, page_format: str, variant: str) -> Iterator[tuple[Case, bytes | None, bytes | None]]:
    """Each case of a scene, what volatility3's layer reads of its page and what coldframe does."""
    built, resolver = scene(name, page_format, variant)
    image = folder / "scene.raw"
    write_raw(resolver.physical, image)
    theirs = volatility_layer(image)
    for case in built.cases:
        try:
            ours = AddressSpace(resolver, case.dtb, built.vads).read(case.address, PAGE)
        except UnreadableMemoryError:
            ours = None
        yield case, theirs(case.dtb, case.address), ours


def outcome(case: Case, data: bytes | None) -> Outcome:
    """What a tool's answer is worth."""
    return "not" if data is None else "right" if data == case.content else "wrong"


def on_kernels(folder: Path) -> tuple[dict[tuple[str, str], dict[str, Counter[Outcome]]], int]:
    """For each state and way, how the pages were read by each tool over all scenes; and how many kernels there are."""
    found: dict[tuple[str, str], dict[str, Counter[Outcome]]] = {}
    for words in scenes():
        for case, theirs, ours in both(folder, *words):
            key = str(case.state), ", ".join(sorted(case.via))
            tools = found.setdefault(key, {"volatility3": Counter(), "coldframe": Counter()})
            tools["volatility3"][outcome(case, theirs)] += 1
            tools["coldframe"][outcome(case, ours)] += 1
    return dict(sorted(found.items())), len(KERNELS)
