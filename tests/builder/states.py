"""A guest with a page in every state that Windows has, each reached in every way, and what is true of each.

`build_scene` puts them into an image; a `Case` says what a reader must find at its address. Nothing here asks
`coldframe.paging` anything but the names of states and indirections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from builder.image import GB, MB, PAGE, ImageBuilder, pattern
from coldframe.paging.page import PagefileSlot, State, SubsectionPage, Via
from coldframe.paging.sources import VadPage, VadRange
from coldframe.symbols.model import BitField

VIRTUAL_STORE = 2
FILE = r"\Windows\System32\ntdll.dll"


@dataclass(frozen=True)
class Case:
    """What is true of the page at `address`. `content` None: the bytes are not to be had."""

    name: str
    dtb: int
    address: int
    state: State
    via: tuple[Via, ...] = ()
    physical: int | None = None
    content: bytes | None = None
    pagefile: PagefileSlot | None = None
    subsection: SubsectionPage | None = None
    says: str = ""


@dataclass
class ListedVads:
    """VADs as a list, with a prototype PTE's address for each page that has one."""

    ranges: list[tuple[int, int, bool]] = field(default_factory=list)
    prototypes: dict[int, int] = field(default_factory=dict)

    def vad_page(self, address: int) -> VadPage | None:
        page = address & ~(PAGE - 1)
        for number, (start, end, private) in enumerate(self.ranges):
            if start <= address < end:
                vad = 0xFFFF9A0000700000 + 0x100 * number
                return VadPage(vad, start, end, private, self.prototypes.get(page), "a VAD of the test")
        return None

    def vad_ranges(self) -> list[VadRange]:
        out = []
        for number, (start, end, private) in enumerate(self.ranges):
            runs: list[tuple[int, int, int]] = []
            for page in sorted(page for page in self.prototypes if start <= page < end and not private):
                pointer = self.prototypes[page]
                if runs and page == runs[-1][0] + PAGE * runs[-1][2] and pointer == runs[-1][1] + 8 * runs[-1][2]:
                    runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + 1)
                else:
                    runs.append((page, pointer, 1))
            out.append(VadRange(0xFFFF9A0000700000 + 0x100 * number, start, end, private, tuple(runs)))
        return out


@dataclass
class ListedSubsections:
    """Subsections' pages as a table."""

    pages: dict[tuple[int, int], SubsectionPage] = field(default_factory=dict)

    def subsection_page(self, subsection: int, prototype_pte: int) -> SubsectionPage | None:
        return self.pages.get((subsection, prototype_pte))


@dataclass
class Scene:
    """The image, whose memory it is, and the truth."""

    builder: ImageBuilder
    dtb: int
    vads: ListedVads = field(default_factory=ListedVads)
    subsections: ListedSubsections = field(default_factory=ListedSubsections)
    cases: list[Case] = field(default_factory=list)


@dataclass(frozen=True)
class Inner:
    """A state that a PTE or a prototype PTE can be in: how it stands in memory, and what is true of its page."""

    name: str
    value: int
    state: State
    physical: int | None = None
    content: bytes | None = None
    pagefile: PagefileSlot | None = None
    subsection: int | None = None


class _Author:
    """Writes one scene."""

    def __init__(self, builder: ImageBuilder) -> None:
        self.builder = builder
        self.scene = Scene(builder, builder.new_dtb())
        shape = builder.shape
        self.wide = shape.entry == 8 and len(shape.shifts) > 3
        self.user = 0x7FF600000000 if self.wide else 0x10000000
        self.kernel = 0xFFFFF80123400000 if self.wide else 0xB0000000
        self.table_span = 1 << shape.shifts[-2]
        self.low: dict[str, int] = {}
        self.seed = 100

    # Pages and places

    def page(self, start: int = 0) -> tuple[int, bytes]:
        """A page of RAM, of the range at `start`, with content of its own."""
        self.seed += 1
        content = pattern(self.seed)
        at = next(ram.free[-1] for ram in self.builder.ram if ram.start == start)
        return self.builder.allocate_page(content, at=at), content

    def far_ranges(self) -> list[int]:
        """RAM above 4 GB as far as this kernel's frame numbers reach."""
        _, kind = self.builder.types.field("_MMPTE_TRANSITION", "PageFrameNumber")
        assert isinstance(kind, BitField)
        return [ram.start for ram in self.builder.ram if 4 * GB <= ram.start < 1 << (12 + kind.length)]

    def region(self) -> int:
        """The next user range that has a table of PTEs to itself."""
        self.user += self.table_span
        return self.user

    def kernel_region(self) -> int:
        self.kernel += self.table_span
        return self.kernel

    def add(self, name: str, address: int, inner: Inner, via: tuple[Via, ...] = (), says: str = "") -> None:
        described = None
        if inner.subsection is not None:
            described = SubsectionPage(inner.subsection, FILE, 0x400 + 0x1000 * (address >> 12 & 0xF))
        dtb = self.scene.dtb if address < self.builder.shape.kernel_start else self.builder.kernel_dtb
        case = Case(
            name, dtb, address, inner.state, via, inner.physical, inner.content, inner.pagefile, described, says
        )
        self.scene.cases.append(case)

    def inner_states(self) -> list[Inner]:
        """What a PTE in a page table can say by itself, and a prototype PTE likewise."""
        builder = self.builder
        out = []
        near, content = self.page()
        value = builder.hardware(near)
        out.append(Inner("valid", value, State.VALID, near, content))
        near, content = self.page()
        value = builder.hardware(near, Write=1, CopyOnWrite=1, LargePage=1, Global=1, Dirty=1, Accessed=1)
        out.append(Inner("valid with bit 7 and others", value, State.VALID, near, content))
        for protection in (1, 4, 31):
            near, content = self.page()
            value = builder.transition(near, protection)
            out.append(Inner(f"transition, protection {protection}", value, State.TRANSITION, near, content))
        for start in self.far_ranges():
            far, content = self.page(start)
            out.append(Inner(f"transition, far, {start:x}", builder.transition(far), State.TRANSITION, far, content))
            far, content = self.page(start)
            out.append(Inner(f"valid, far, {start:x}", builder.hardware(far), State.VALID, far, content))
        largest = 0xFFFFFFFE if builder.shape.entry == 8 else 0xFFFFE
        for number, offset, protection in (
            (0, 0x1A3, 4),
            (0, 1, 1),  # protection below 4: bit 7 clear
            (15, largest, 31),
            (1, 0x2000, 4),  # the frame of mask bit 45
            (3, 0xFFFF & largest, 5),
        ):
            slot = PagefileSlot(number, offset * PAGE)
            value = builder.paged(number, offset * PAGE, protection)
            out.append(Inner(f"pagefile {number} at {offset:x}", value, State.PAGEFILE, pagefile=slot))
        slot = PagefileSlot(VIRTUAL_STORE, 0x123 * PAGE)
        value = builder.paged(VIRTUAL_STORE, slot.offset)
        out.append(Inner("compressed", value, State.COMPRESSED, pagefile=slot))
        for protection in (1, 4, 31):
            value = builder.demand_zero(protection)
            out.append(Inner(f"demand-zero, protection {protection}", value, State.DEMAND_ZERO, content=bytes(PAGE)))
        if "UsedPageTableEntries" in builder.types.record("_MMPTE_SOFTWARE").fields:
            value = builder.stored(builder.encode("_MMPTE_SOFTWARE", Protection=4, UsedPageTableEntries=5))
            out.append(Inner("demand-zero, other bits set", value, State.DEMAND_ZERO, content=bytes(PAGE)))
        return out

    def prototype_states(self) -> list[Inner]:
        """What a prototype PTE alone can say besides."""
        builder = self.builder
        out = [Inner("null", 0, State.DEMAND_ZERO, content=bytes(PAGE))]
        subsection = builder.allocate_pool(0x80)
        value = builder.subsection(subsection)
        out.append(Inner("subsection", value, State.SUBSECTION, subsection=subsection))
        if "ColdPage" in builder.types.record("_MMPTE_SUBSECTION").fields:
            bit = builder.encode("_MMPTE_SUBSECTION", ColdPage=1)
            out.append(Inner("subsection, cold", value | bit, State.SUBSECTION, subsection=subsection))
        return out

    def prototype_array(self, inners: list[Inner]) -> list[int]:
        """Prototype PTEs in the pool; returns each one's kernel-virtual address."""
        entry = self.builder.shape.entry
        start = self.builder.allocate_pool(entry * len(inners), align=entry)
        for index, inner in enumerate(inners):
            self.builder.write(start + entry * index, inner.value.to_bytes(entry, "little"))
        return [start + entry * index for index in range(len(inners))]

    def describe(self, pointer: int, address: int, inner: Inner) -> None:
        if inner.subsection is not None:
            page = SubsectionPage(inner.subsection, FILE, 0x400 + 0x1000 * (address >> 12 & 0xF))
            self.scene.subsections.pages[inner.subsection, pointer] = page

    # The ways to a page

    def direct(self, region: int, prefix: str, via: tuple[Via, ...] = ()) -> None:
        dtb = self.scene.dtb if region < self.builder.shape.kernel_start else self.builder.kernel_dtb
        for index, inner in enumerate(self.inner_states()):
            self.builder.set_entry(dtb, region + PAGE * index, inner.value)
            self.add(f"{prefix}{inner.name}", region + PAGE * index, inner, via)

    def through_prototypes(
        self, region: int, prefix: str, outer: Callable[[int], int | None], via: tuple[Via, ...]
    ) -> None:
        """Each inner state behind a PTE that `outer(pointer)` makes; where that is None, no entry is written."""
        inners = self.inner_states() + self.prototype_states()
        dtb = self.scene.dtb if region < self.builder.shape.kernel_start else self.builder.kernel_dtb
        for index, (pointer, inner) in enumerate(zip(self.prototype_array(inners), inners, strict=True)):
            address = region + PAGE * index
            value = outer(pointer)
            if value is not None:
                self.builder.set_entry(dtb, address, value)
            if Via.VAD in via:
                self.scene.vads.prototypes[address] = pointer
            self.describe(pointer, address, inner)
            self.add(f"{prefix}{inner.name}", address, inner, via)

    def vad(self, start: int, pages: int, *, private: bool = False) -> None:
        self.scene.vads.ranges.append((start, start + pages * PAGE, private))

    def write(self) -> Scene:
        self.small_pages()
        self.large_pages()
        self.prototypes()
        self.vad_pages()
        self.empty_tables()
        self.transition_tables()
        self.paged_tables()
        self.lost_prototypes()
        return self.scene

    def small_pages(self) -> None:
        self.direct(self.region(), "user ")
        self.direct(self.kernel_region(), "kernel ")
        uniform = self.region()
        physical, content = self.page()
        for index in range(self.table_span // PAGE):
            self.builder.map(self.scene.dtb, uniform + index * PAGE, physical=physical)
        inner = Inner("", 0, State.VALID, physical, content)
        self.add("uniform table", uniform + 77 * PAGE, inner)

    def large_pages(self) -> None:
        size = self.table_span
        for name, base in (("user", self.region()), ("kernel", self.kernel_region())):
            dtb = self.scene.dtb if name == "user" else self.builder.kernel_dtb
            physical = self.builder.map(dtb, base, size=size)
            self.seed += 1
            self.builder.write_physical(physical + 3 * PAGE, pattern(self.seed))
            inner = Inner("", 0, State.VALID, physical + 3 * PAGE, pattern(self.seed))
            self.add(f"{name} large page", base + 3 * PAGE, inner, (Via.LARGE_PAGE,))
        if self.wide:
            base = (self.user + 2 * GB) & ~(GB - 1)
            self.builder.map(self.scene.dtb, base, physical=0, size=GB)
            physical, content = self.page()
            inner = Inner("", 0, State.VALID, physical, content)
            self.add("1 GB page", base + physical, inner, (Via.LARGE_PAGE,))
            outside = Inner("", 0, State.VALID)
            self.add("1 GB page, no RAM there", base + GB - PAGE, outside, (Via.LARGE_PAGE,), says="outside")
            self.user = base + GB

    def prototypes(self) -> None:
        builder = self.builder
        self.through_prototypes(self.region(), "prototype ", builder.prototype, (Via.PROTOTYPE,))
        self.through_prototypes(self.kernel_region(), "kernel prototype ", builder.prototype, (Via.PROTOTYPE,))
        if "Combined" in builder.types.record("_MMPTE_PROTOTYPE").fields:
            combined = builder.encode("_MMPTE_PROTOTYPE", Combined=1)
            region = self.region()
            self.through_prototypes(
                region, "combined prototype ", lambda pointer: builder.prototype(pointer) | combined, (Via.PROTOTYPE,)
            )

    def vad_pages(self) -> None:
        builder, via = self.builder, (Via.VAD, Via.PROTOTYPE)
        has_swizzle = "SwizzleBit" in builder.types.record("_MMPTE_SOFTWARE").fields
        marker = builder.vad_marker()
        bit = builder.encode("_MMPTE_SOFTWARE", SwizzleBit=1) if has_swizzle else 0
        unmarked = marker & ~builder.encode("_MMPTE_SOFTWARE", Prototype=1)
        combined = 0
        if "Combined" in builder.types.record("_MMPTE_PROTOTYPE").fields:
            combined = builder.encode("_MMPTE_PROTOTYPE", Combined=1)
        for name, value in (
            ("null PTE, VAD ", 0),
            ("marker with bit 11, VAD ", marker | combined),
            ("marker, VAD ", marker),
            ("marker with bit 4, VAD ", marker | bit),
            ("marker without bit 4, VAD ", marker & ~bit),
            ("paging-file offset of the marker, VAD ", unmarked),
        ):
            region = self.region()
            self.vad(region, 64)
            self.through_prototypes(region, name, lambda pointer, value=value: value, via)  # type: ignore[misc]
        region = self.region()
        self.vad(region, 8, private=True)
        zero = Inner("", 0, State.DEMAND_ZERO, content=bytes(PAGE))
        builder.set_entry(self.scene.dtb, region, 0)
        self.add("private VAD, null PTE", region, zero, (Via.VAD,))
        builder.set_entry(self.scene.dtb, region + PAGE, marker)
        self.add("private VAD, marker", region + PAGE, zero, (Via.VAD,))
        self.scene.vads.prototypes[region + 2 * PAGE] = (
            region  # a private VAD's neighbouring bytes are no prototype PTE
        )
        self.add("private VAD, bytes behind it", region + 2 * PAGE, zero, (Via.VAD,))
        nothing = Inner("", 0, State.UNMAPPED)
        self.add("null PTE outside every VAD", region + 8 * PAGE, nothing, says="no VAD")
        builder.set_entry(self.scene.dtb, region + 9 * PAGE, marker)
        self.add("marker outside every VAD", region + 9 * PAGE, nothing, says="no VAD")
        self.vad(region + 16 * PAGE, 1)
        self.add("mapped VAD without a prototype PTE", region + 16 * PAGE, nothing, (Via.VAD,), says="no prototype PTE")
        region = self.kernel_region()
        builder.set_entry(builder.kernel_dtb, region, marker)
        self.add("kernel, marker", region, nothing, says="nothing is mapped")
        if self.wide:
            self.vad(region + PAGE, 4, private=True)  # no VAD is the kernel's, whatever the tree says
        self.add("kernel, null PTE", region + PAGE, nothing, says="nothing is mapped")

    def empty_tables(self) -> None:
        """Nothing, zeros or the marker at each level above the PTEs: the VADs tell."""
        builder, via = self.builder, (Via.VAD, Via.PROTOTYPE)
        for level in self.levels():
            values = {"no": 0, "marked": builder.vad_marker(), "demand-zero": builder.demand_zero()}
            for name, value in values.items():
                region = self.alone(level)
                self.vad(region, 64)
                self.set_table(region, level, value)
                self.through_prototypes(region, f"{name} {level}, VAD ", lambda pointer: None, via)
                region = self.alone(level)
                self.vad(region, 1, private=True)
                self.set_table(region, level, value)
                zero = Inner("", 0, State.DEMAND_ZERO, content=bytes(PAGE))
                self.add(f"{name} {level}, private VAD", region, zero, (Via.VAD,))
                self.add(f"{name} {level}, no VAD", region + PAGE, Inner("", 0, State.UNMAPPED), says="no VAD")
        self.add("kernel, no table", self.kernel_region(), Inner("", 0, State.UNMAPPED), says="nothing is mapped")

    def levels(self) -> list[str]:
        """Levels above the PTEs whose entries Windows pages; PAE's four PDPTEs are always valid."""
        return ["PDE", "PDPTE", "PML4E", "PML5E"][: len(self.builder.shape.shifts) - 1] if self.wide else ["PDE"]

    def alone(self, level: str) -> int:
        """A range that has the entry at `level` to itself."""
        span = 1 << self.builder.shape.shifts[self.builder.depth_of(level)]
        if span > GB:
            self.low[level] = self.low.get(level, 0) + span
            return self.low[level]
        start = (self.user // span + 1) * span
        self.user = start + span - self.table_span
        return start

    def set_table(self, va: int, level: str, value: int) -> None:
        self.builder.set_entry(self.scene.dtb, va, value, level)

    def table_of(self, va: int, level: str) -> int:
        """The frame of the table that the entry of `va` at `level` names."""
        return self.builder.get_entry(self.scene.dtb, va, level) & ((1 << 52) - PAGE)

    def transition_tables(self) -> None:
        for level in self.levels():
            for protection in (4, 1):  # protection 4 sets bit 7, which in a valid PDE means a large page
                region = self.alone(level)
                self.direct(region, f"transition {level} ({protection}), ", (Via.TRANSITION_TABLE,))
                self.set_table(region, level, self.builder.transition(self.table_of(region, level), protection))
        region = self.alone("PDE")
        via = (Via.TRANSITION_TABLE, Via.PROTOTYPE)
        self.through_prototypes(region, "transition PDE, prototype ", self.builder.prototype, via)
        self.set_table(region, "PDE", self.builder.transition(self.table_of(region, "PDE")))
        region = self.alone("PDE")
        self.set_table(region, "PDE", self.builder.transition(0x3FFFF000))
        lost = Inner("", 0, State.UNMAPPED)
        self.add("transition PDE outside RAM", region, lost, (Via.TRANSITION_TABLE,), says="cannot be read")

    def paged_tables(self) -> None:
        for level in self.levels():
            region = self.alone(level)
            self.set_table(region, level, self.builder.paged(1, 0x77 * PAGE))
            slot = PagefileSlot(1, 0x77 * PAGE)
            gone = Inner("", 0, State.PAGEFILE, pagefile=slot)
            self.add(f"paged-out table of {level}", region, gone, (Via.PAGED_TABLE,), says="--pagefile")
            region = self.alone(level)
            self.set_table(region, level, self.builder.paged(VIRTUAL_STORE, 0x78 * PAGE))
            slot = PagefileSlot(VIRTUAL_STORE, 0x78 * PAGE)
            gone = Inner("", 0, State.COMPRESSED, pagefile=slot)
            self.add(f"compressed table of {level}", region, gone, (Via.PAGED_TABLE,), says="compressed")
        region = self.alone("PDE")
        self.set_table(region, "PDE", self.builder.prototype(self.builder.allocate_pool(64)))
        self.add("prototype PDE", region, Inner("", 0, State.UNMAPPED), says="no table has")

    def lost_prototypes(self) -> None:
        """Prototype PTEs whose own page is in another state."""
        builder, region, via = self.builder, self.region(), (Via.PROTOTYPE,)
        pool = self.kernel_region()
        physical, content = self.page()
        array = builder.allocate_page(builder.hardware(physical).to_bytes(builder.shape.entry, "little"))
        builder.set_entry(builder.kernel_dtb, pool, builder.transition(array))
        builder.set_entry(self.scene.dtb, region, builder.prototype(pool))
        found = Inner("", 0, State.VALID, physical, content)
        builder.set_entry(builder.kernel_dtb, pool + PAGE, builder.paged(0, 0x55 * PAGE))
        builder.set_entry(self.scene.dtb, region + PAGE, builder.prototype(pool + PAGE))
        gone = Inner("", 0, State.PAGEFILE, pagefile=PagefileSlot(0, 0x55 * PAGE))
        builder.set_entry(builder.kernel_dtb, pool + 2 * PAGE, builder.demand_zero())
        builder.set_entry(self.scene.dtb, region + 2 * PAGE, builder.prototype(pool + 2 * PAGE))
        zero = Inner("", 0, State.DEMAND_ZERO, content=bytes(PAGE))
        builder.set_entry(self.scene.dtb, region + 3 * PAGE, builder.prototype(pool + 3 * PAGE))
        lost = Inner("", 0, State.UNMAPPED)
        builder.set_entry(builder.kernel_dtb, pool + 4 * PAGE, builder.prototype(pool + 4 * PAGE + builder.shape.entry))
        builder.set_entry(self.scene.dtb, region + 4 * PAGE, builder.prototype(pool + 4 * PAGE))
        self.add("prototype PTE in transition", region, found, via)
        self.add("prototype PTE paged out", region + PAGE, gone, via, says="--pagefile")
        self.add("prototype PTE in a page of zeros", region + 2 * PAGE, zero, via)
        self.add("prototype PTE unmapped", region + 3 * PAGE, lost, via, says="prototype PTE")
        self.add("prototype PTE behind itself", region + 4 * PAGE, lost, via, says="circle")


def build_scene(builder: ImageBuilder) -> Scene:
    """Every state, in the image of `builder`; it needs about 8 MB of RAM and, for far pages, some above 4 GB."""
    return _Author(builder).write()


RAM = ((0, 24 * MB), (1 << 35, 2 * MB), (1 << 40, 2 * MB))
"""RAM for a scene: some of it so far up that a frame number has the swizzle mask's bit, or needs more than 28 bits."""
RAM_BELOW_4_GB = ((0, 24 * MB),)
