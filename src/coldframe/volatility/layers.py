"""Layers of volatility3 that ask coldframe: guest-physical memory, and an address space with every state of a page.

How volatility3 comes by them: it imports this module through its option `-p`, and its LayerStacker then finds the two
stackers among the subclasses of its own and, by their order, asks them first. See
https://volatility3.readthedocs.io/en/latest/basics.html for layers, and its `framework/automagic/stacker.py`.
"""

from __future__ import annotations

import io
import logging
import lzma
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import volatility3.symbols
from volatility3.framework import exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import intel, physical, resources

from coldframe.errors import ColdframeError, FormatError, UnreadableMemoryError
from coldframe.paging import AddressSpace, Page, State
from coldframe.volatility.targets import Target, find

log = logging.getLogger(__name__)

SCHEME = "coldframe"
PAGE = 4096
ADDRESS = (1 << 48) - 1
USER_END = 1 << 47
SIGN = (1 << 64) - (1 << 48)
ZEROS = 1 << 63
"""Addresses of the physical layer from here on are no memory: pages of zeros, for those that Windows promises."""
LISTED = 1 << 16
"""Bytes: longer stretches are listed in bulk where holes may be left out."""
BATCH = 1 << 39

Mapping = tuple[int, int, int, int, str]
"""Offset and length here, offset and length there, and the layer's name there."""


class ColdframeHandler(resources.VolatilityHandler):  # type: ignore[misc]
    """Lets `coldframe:NAME` stand as a location: a file without content, whose name the stacker reads."""

    @classmethod
    def non_cached_schemes(cls) -> list[str]:
        """Of such a location volatility3 must not keep a copy."""
        return [SCHEME]

    @staticmethod
    def default_open(request: urllib.request.Request) -> io.BytesIO | None:
        """An empty file for every location of the scheme (xz-compressed by its name: volatility3 unpacks by that)."""
        if request.type != SCHEME:
            return None
        return io.BytesIO(lzma.compress(b"") if request.full_url.endswith(".xz") else b"")


class ColdframePhysicalLayer(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """Guest-physical memory of any target that coldframe opens; `target` is its name."""

    def __init__(self, context: Any, config_path: str, name: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(context=context, config_path=config_path, name=name, metadata=metadata)
        self._target: str = self.config["target"]

    @property
    def target(self) -> Target:
        """The guest; not kept here, since volatility3 copies layers."""
        return find(self._target, _symbol_folders())

    @property
    def minimum_address(self) -> int:
        """The first address."""
        return 0

    @property
    def maximum_address(self) -> int:
        """The last address of RAM."""
        return self.target.physical.end - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Whether there is memory for all of these bytes."""
        if offset >= ZEROS:
            return True
        memory, end = self.target.physical, offset + max(length, 1)
        while offset < end:
            run = memory.run_at(offset)
            if run is None:
                return False
            offset = run.end
        return True

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """The bytes; holes of RAM are zeros with `pad`, else `InvalidAddressException`."""
        if offset >= ZEROS:
            return bytes(length)
        memory = self.target.physical
        try:
            return memory.read(offset, length)
        except UnreadableMemoryError as error:
            if not pad:
                raise exceptions.InvalidAddressException(self.name, error.address, error.reason) from error
        out = bytearray(length)
        for run in memory.runs:
            low, high = max(run.start, offset), min(run.end, offset + length)
            if low < high:
                out[low - offset : high - offset] = memory.read(low, high - low)
        return bytes(out)

    def write(self, offset: int, data: bytes) -> None:
        """Refused: what looks must not change."""
        raise NotImplementedError("coldframe's layer is read-only: write through coldframe itself")

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """What it is built from."""
        return [requirements.StringRequirement(name="target", description="What coldframe opens", optional=False)]


class ColdframeIntel32e(intel.WindowsIntel32e):  # type: ignore[misc]
    """An address space of 4 levels in which coldframe finds the pages.

    Found are, beyond volatility3's own: pages behind tables in transition, prototype PTEs, pages that only their VAD
    tells of, and promised zeros. Where holes may be left out, zeros are: volatility3 fills holes with zeros, and a
    process may have promises for terabytes.
    """

    @property
    def _space(self) -> AddressSpace:
        target: Target = self._context.layers[self._base_layer].target
        return target.space(self._page_map_offset)

    def _page(self, offset: int) -> Page:
        return self._space.resolve(_canonical(offset))

    def _translate(self, offset: int) -> tuple[int, int, str]:
        """The offset below, the size of what lies side by side there, and the layer."""
        address = self._space.translate(_canonical(offset))
        if address is not None:
            return address, PAGE, self._base_layer
        page = self._page(offset)
        if page.state is State.DEMAND_ZERO:
            return ZEROS | (offset & ADDRESS), PAGE, self._base_layer
        entry = page.steps[-1].value if page.steps else 0
        bits = _hole_bits(offset, page.hole)
        if page.pagefile is None:
            raise exceptions.PagedInvalidAddressException(self.name, offset, bits, entry, page.reason)
        swap = self.config.get(f"swap_layers.swap_layers{page.pagefile.number}", None)
        place = page.pagefile.offset | (offset & (PAGE - 1))
        if swap and page.state is State.PAGEFILE:
            return place, PAGE, str(swap)
        raise exceptions.SwappedInvalidAddressException(self.name, offset, bits, entry, place, page.reason)

    def mapping(self, offset: int, length: int, ignore_errors: bool = False) -> Iterator[Mapping]:
        """The pieces of that stretch that lie side by side in the layer below."""
        if not ignore_errors or length < LISTED:
            yield from super().mapping(offset, length, ignore_errors)
            return
        end = offset + length
        while offset < end:  # to the end of the half, where addresses change their sign
            stop = min(end, (offset | (USER_END - 1)) + 1)
            yield from self._listed(offset, stop)
            offset = stop

    def _listed(self, start: int, end: int) -> Iterator[Mapping]:
        try:
            yield from self._in_ram(start, end)
        except FormatError:  # more pages than there can be: tables that repeat, which volatility3 knows to leave out
            if end - start <= BATCH:
                own = intel.WindowsIntel32e(self._context, self.config_path, self.name)
                yield from own.mapping(start, end - start, True)
                return
            for low in range(start, end, BATCH):
                yield from self._listed(low, min(low + BATCH, end))

    def _in_ram(self, start: int, end: int) -> Iterator[Mapping]:
        shift = _canonical(start) - start
        memory = self._context.layers[self._base_layer].target.physical
        for span in self._space.spans(start + shift, end + shift):
            address, place = span.start - shift, span.physical
            while place is not None and address < span.end - shift:
                run = memory.run_at(place)
                size = PAGE if run is None else min(run.end - place, span.end - shift - address)
                if run is not None:
                    yield address, size, place, size, self._base_layer
                address, place = address + size, place + size

    def is_dirty(self, offset: int) -> bool:
        """Whether the page was written to, by its hardware PTE."""
        page = self._page(offset)
        return page.state is State.VALID and bool(page.steps) and self._page_is_dirty(page.steps[-1].value)


class ColdframeStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Puts coldframe's physical layer on the file or the location that volatility3 was given."""

    stack_order = 1
    exclusion_list = ("mac", "linux")

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:
        """The physical layer, or None where coldframe finds no Windows; why, is logged."""
        base = context.layers[layer_name]
        if not isinstance(base, physical.FileLayer):
            return None
        location = urllib.parse.urlparse(base.location)
        if location.scheme not in (SCHEME, "file"):
            return None
        name = urllib.request.url2pathname(location.path)
        try:
            levels = find(name, _symbol_folders()).guest.location.levels
        except ColdframeError as error:
            log.error("coldframe: %s", error)
            return None
        if levels != 4:
            log.error("coldframe: %s has page tables of %d levels, volatility3 knows of 4", name, levels)
            return None
        return _build(context, ColdframePhysicalLayer, target=name)


class ColdframeIntelStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Puts the kernel's address space on coldframe's physical layer."""

    stack_order = 2
    exclusion_list = ("mac", "linux")

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:
        """The kernel's layer, or None on any other layer than coldframe's."""
        base = context.layers[layer_name]
        if not isinstance(base, ColdframePhysicalLayer):
            return None
        return _build(context, ColdframeIntel32e, memory_layer=layer_name, page_map_offset=base.target.guest.dtb)


def _build(context: Any, kind: Any, **values: str | int) -> Any:
    """A layer of that class, from a configuration of its own."""
    name = context.layers.free_layer_name(kind.__name__)
    path = interfaces.configuration.path_join("ColdframeHelper", name)
    for key, value in values.items():
        context.config[interfaces.configuration.path_join(path, key)] = value
    return kind(context, config_path=path, name=name, metadata={"os": "Windows"})


def _symbol_folders() -> list[Path]:
    """Where volatility3 has its ISF files of Windows."""
    folders = (Path(folder) / "windows" for folder in volatility3.symbols.__path__)
    return [folder for folder in folders if folder.is_dir()]


def _canonical(offset: int) -> int:
    """The address with its sign, which volatility3 leaves away."""
    offset &= ADDRESS
    return offset | SIGN if offset >= USER_END else offset


def _hole_bits(offset: int, hole: int) -> int:
    """How many low bits of the address make no difference: volatility3 skips holes by these."""
    bits = 12
    while bits < 39 and (offset | ((2 << bits) - 1)) + 1 <= offset + hole:
        bits += 1
    return bits
