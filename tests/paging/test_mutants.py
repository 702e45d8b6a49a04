"""Were the resolver wrong in one test, or its tests in another order, the built states would show it.

Each mutant is the resolver's own source, of both its modules, with one thing changed; each is one that published
tools have had (volatility3's and IceBox's transition table taken for a large or a data page, rekall's transition bit
without the prototype bit, ...) or one test of the order left out.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest

from builder import MB, PAGE, ImageBuilder, pattern
from coldframe.errors import UnreadableMemoryError
from coldframe.paging import FORMATS
from coldframe.paging import invalid as invalid_module
from coldframe.paging import layout as layout_module
from coldframe.paging import resolver as resolver_module
from coldframe.paging.layout import PteLayout
from coldframe.paging.page import PagefileSlot, State
from paging.scenes import KERNELS, differences, scene, types_of

HAVE = [("_MMPTE_SOFTWARE", "SwizzleBit"), ("_MMPTE_PROTOTYPE", "Combined"), ("_MMPTE_SUBSECTION", "ColdPage")]
WHOLE = [name for name in KERNELS if all(field in types_of(name).record(kind).fields for kind, field in HAVE)][:1]
"""A kernel with all that a mutant may overlook."""

pytestmark = pytest.mark.skipif(not WHOLE, reason="no types of a kernel since 2018: ../shared/symbols is absent")

TABLE = "return Table(table, None)"
UNSWIZZLE = "unswizzle(entry.stored, self.invalid_pte_mask, layout.swizzle_bit)"
MARKER = "layout.is_vad_marker(entry.stored)"
REKALL = "if value & layout.prototype and not value & layout.transition:"
PROTOTYPE = "if value & layout.prototype:"
SLOT = "layout.page_file_high.get(value)"
ZERO = f"if {SLOT} == 0:"

RULES = {
    "_walk": [
        ("addresses need not be canonical", "if not 0 <= address < self._low_end and", "if False and"),
        ("the lower half ends late", "if not 0 <= address < self._low_end and", "if not 0 <= address < 1 << 63 and"),
        ("the upper half begins early", "not self._high_start <= address", "not 1 << 63 <= address"),
        ("bit 7 makes a large page at every level", "if stored & LARGE and large_frame:", "if stored & LARGE:"),
        (
            "entries on the way are not told",
            "if notes is not None:\n                    notes",
            "if False:\n                    notes",
        ),
        (
            "supplied tables are not read",
            "if supplied is not None:\n                stored",
            "if False:\n                stored",
        ),
        ("no large pages", "if stored & LARGE and large_frame:", "if False:"),
        (
            "a PTE's bit 7 is a large page",
            "if not stored & VALID:\n            return",
            "if stored & LARGE:\n            return",
        ),
    ],
    "_large": [
        ("a large page's offset is a small one's", "(entry.span - 1)", "PAGE_MASK"),
    ],
    "_in_ram": [
        ("a frame outside RAM is a page", "if physical in self.physical:", "if True:"),
    ],
    "_invalid_table": [
        ("tables are explained without types", "if layout is None:", "if False:"),
        (
            "empty tables are not told",
            'notes.steps.append(self._step(entry, "not valid; no table',
            'str(("not valid; no table',
        ),
        ("transition tables are not followed", "if layout.is_transition(value):", "if False:"),
        ("a transition table is the data page", TABLE, "return self._in_ram(table, State.TRANSITION, notes)"),
        ("a transition table's bit 7 is a large page", TABLE, f"return ABSENT if value & LARGE else {TABLE[7:]}"),
        ("tables are not unswizzled", UNSWIZZLE, "entry.stored"),
        ("a marked table is not looked up in the VADs", " or layout.is_vad_marker(entry.stored)", ""),
        ("a table's prototype bit is not seen", "if value & layout.prototype:", "if False:"),
        ("a demand-zero table is paged out", ZERO, "if False:"),
    ],
    "_paged_table": [
        ("paged-out tables are not noted", "notes.passes(Via.PAGED_TABLE)", "pass"),
        ("supplied tables are not used", "if held is not None:", "if False:"),
    ],
    "_invalid_pte": [
        ("PTEs are explained without types", "if layout is None:", "if False:"),
        ("PTEs are not unswizzled", UNSWIZZLE, "entry.stored"),
        ("a zero PTE is not looked up in the VADs", "value == 0 or ", ""),
        ("the marker is not known", f"({MARKER} and not layout.is_transition(value))", "False"),
        ("the marker is compared after unswizzling", MARKER, "layout.is_vad_marker(value)"),
        ("the marker needs the prototype bit", "not layout.is_transition(value)", "value & layout.prototype"),
        ("prototypes come before the marker", MARKER, f"{MARKER} and not value & layout.prototype"),
        ("prototypes are not followed", PROTOTYPE, "if False:"),
        ("every PTE is a prototype", PROTOTYPE, "if True:"),
        ("bit 11 comes before the prototype bit", PROTOTYPE, REKALL),
    ],
    "_software": [
        ("no transition pages", "if layout.is_transition(value):", "if False:"),
        (
            "demand-zero comes before transition",
            "if layout.is_transition(value):",
            f"if {SLOT} and value & layout.transition:",
        ),
        ("no demand-zero pages", ZERO, "if False:"),
        ("demand-zero is all other bits zero", ZERO, "if value & ~layout.protection.mask == 0:"),
        (
            "bit 7 makes a paging-file PTE",
            "if notes is None:",
            "if not value & LARGE:\n            return ZERO\n        if notes is None:",
        ),
    ],
    "_prototype": [
        ("prototype PTEs are not unswizzled", UNSWIZZLE.replace("entry.", ""), "stored"),
        ("prototype PTEs are never valid", "if stored & VALID:", "if False:"),
        ("subsections come before valid", "if stored & VALID:", "if stored & VALID and not stored & LARGE:"),
        ("no subsections", PROTOTYPE, "if False:"),
        ("bit 11 comes before the subsection bit", PROTOTYPE, REKALL),
    ],
    "_absent_prototype_pte": [
        ("supplied prototype PTEs are not used", "if held is not None:", "if False:"),
    ],
    "_subsection": [
        ("no subsection is described", "if subsections is not None:", "if False:"),
    ],
    "_prototype_pte": [
        ("a prototype PTE may lie anywhere", "if pointer & (self._entry_size - 1):", "if False:"),
        ("prototype PTEs are read by another DTB", "self.locate(self.kernel_dtb", "self.locate(0"),
        (
            "prototype PTEs in pages of zeros are not there",
            "if answer == ZERO:\n                return 0",
            "if answer == ZERO:\n                return None",
        ),
        ("a circle of prototypes is followed", "elif depth >= MAX_DEPTH:", "elif False:"),
    ],
    "_vad": [
        ("an address without VADs has none", " or vads is None:", ":"),
        ("a VAD is taken for granted", "if vad is None:", "if vad is None and notes:"),
        ("VADs that cannot be read stop the walk", "except TROUBLE as error:", "except ZeroDivisionError as error:"),
        (
            "kernel addresses are looked up in the VADs",
            "address >= self.format.user_end or vads is None",
            "vads is None",
        ),
        ("private VADs have prototypes", "if vad.private:", "if vad.private and vad.prototype_pte is None:"),
        ("private VADs do not promise zeros", "if vad.private:", "if False:"),
        ("VADs have no prototypes", "if vad.prototype_pte is not None:", "if False:"),
    ],
}
"""Function: what is said wrongly, what stands in the function, what stands in its place."""

MUTANTS = {name: (function, old, new) for function, rules in RULES.items() for name, old, new in rules}


def mutated(function: str, old: str, new: str) -> ModuleType:
    """The resolver's module with `old` replaced in `function`, wherever that stands: in it or in what it builds on."""
    resolver, invalid = inspect.getsource(resolver_module), inspect.getsource(invalid_module)
    if f"    def {function}(" in resolver:
        return compiled(replaced(resolver, function, old, new))
    entries = compiled(replaced(invalid, function, old, new))
    return compiled(resolver, InvalidEntries=entries.InvalidEntries)


def replaced(source: str, function: str, old: str, new: str) -> str:
    """The source with `old` replaced once in `function`."""
    start = source.index(f"    def {function}(")
    end = source.find("\n    def ", start + 1)
    body = source[start : end if end > 0 else None]
    assert old in body, f"the mutant does not apply: {old!r} is not in {function}"
    return source[:start] + body.replace(old, new, 1) + source[start + len(body) :]


def compiled(source: str, **bases: type) -> ModuleType:
    """The source as a module; `bases` stand in the place of what it imports by these names."""
    module = ModuleType("mutant")
    sys.modules["mutant"] = module
    for name, base in bases.items():
        (line,) = [line for line in source.splitlines() if line.endswith(f" import {name}")]
        source = source.replace(line, "")
        setattr(module, name, base)
    exec(compile(source, "mutant", "exec"), vars(module))
    return module


class Gone:
    """VADs that cannot be read."""

    def vad_page(self, address):
        raise UnreadableMemoryError(0xFFFF9A0000000000, 8, "gone")


class PagingFile:
    """A page source with three pages: a table, one of prototype PTEs, one of data."""

    def __init__(self, held):
        self.held = held

    def read_page(self, page):
        return self.held.get(page.pagefile.offset) if page.pagefile else None


def edges(make_resolver):
    """What a small image shows beside the scenes: what is no address, no type, no VAD; tables from a page source."""
    types = types_of(WHOLE[0])
    builder, kernel, user = ImageBuilder(types, ram=((0, 8 * MB),)), 0xFFFFF80000000000, 0x7FF600000000
    dtb, layout = builder.kernel_dtb, PteLayout.from_types(types)
    right = resolver_module.Resolver(builder.physical(), FORMATS["4-level"], layout, kernel_dtb=dtb)
    resolver = make_resolver(right)
    first = builder.map(dtb, user, pattern(1))
    for address in (1 << 47, 1 << 63, (1 << 63) + user, (1 << 64) - (1 << 47) - 1, -1, 1 << 64):
        yield "no address" in resolver.resolve(dtb, address).reason and resolver.translate(dtb, address) is None
    yield [step.level for step in resolver.resolve(dtb, user).steps] == ["PML4E", "PDPTE", "PDE", "PTE"]
    builder.set_entry(dtb, user, builder.get_entry(dtb, user, "PML4E") | 0x80, "PML4E")
    yield resolver.translate(dtb, user + 8) == first + 8
    yield (
        "name the process" in resolver.resolve(dtb, user + PAGE).reason and resolver.translate(dtb, user + PAGE) is None
    )
    yield "cannot be read" in resolver.resolve(dtb, user + PAGE, Gone()).reason
    yield resolver.translate(dtb, user + PAGE, Gone()) is None
    builder.set_entry(dtb, user + PAGE, builder.prototype(builder.allocate_pool(PAGE) + 4))
    yield "not a multiple" in resolver.resolve(dtb, user + PAGE).reason
    untyped = type(resolver)(builder.physical(), FORMATS["4-level"], None, kernel_dtb=dtb)
    yield all("needs the kernel's types" in untyped.resolve(dtb, at).reason for at in (user + PAGE, 1 << 40))
    yield untyped.translate(dtb, user + PAGE) is None and untyped.translate(dtb, 1 << 40) is None
    table = builder.get_entry(dtb, user, "PDE") & 0xFFFFFFFFFF000
    held = {0x1000: builder.read_physical(table, PAGE), 0x2000: builder.hardware(first).to_bytes(8, "little") * 512}
    builder.set_entry(dtb, user, builder.paged(0, 0x1000), "PDE")
    builder.set_entry(dtb, kernel, builder.paged(0, 0x2000))
    builder.set_entry(dtb, kernel + PAGE, builder.prototype(kernel))
    yield resolver.translate(dtb, user) is None and resolver.translate(dtb, kernel + PAGE) is None
    resolver.pages = PagingFile(held)
    yield resolver.translate(dtb, user) == first and resolver.translate(dtb, kernel + PAGE) == first
    yield resolver.resolve(dtb, user).physical == resolver.resolve(dtb, kernel + PAGE).physical == first


def noticed(make_resolver) -> bool:
    """Whether an edge or some scene shows that this resolver is wrong; scenes with and without swizzling."""
    try:
        if not all(edges(make_resolver)):
            return True
    except Exception:  # a mutant may do anything
        return True
    (kernel,) = WHOLE
    for variant in ("mask bit 45", "unswizzled"):
        built, right = scene(kernel, "4-level", variant)
        resolver = make_resolver(right)
        try:
            if differences(built, resolver):
                return True
        except Exception:
            return True
    return False


def like(right, kind, layout=None):
    return kind(
        right.physical,
        right.format,
        layout or right.layout,
        kernel_dtb=right.kernel_dtb,
        invalid_pte_mask=right.invalid_pte_mask,
        subsections=right.subsections,
        virtual_store=right.virtual_store,
    )


def test_the_resolver_itself_is_no_mutant():
    assert not noticed(lambda right: like(right, resolver_module.Resolver))
    entries = compiled(inspect.getsource(invalid_module))
    copy = compiled(inspect.getsource(resolver_module), InvalidEntries=entries.InvalidEntries)
    assert not noticed(lambda right: like(right, copy.Resolver))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_order_is_noticed(name):
    module = mutated(*MUTANTS[name])
    assert noticed(lambda right: like(right, module.Resolver)), f"no built state shows that {name}"


class TransitionWithoutPrototype(PteLayout):
    """rekall's test: the transition bit alone, which in prototype and subsection PTEs means other things."""

    __slots__ = ()

    def is_transition(self, value: int) -> bool:
        return bool(value & self.transition)


class MarkerOfPrototype(PteLayout):
    """The marker's all-ones looked for with the mask taken out of it."""

    __slots__ = ()

    def is_vad_marker(self, stored: int) -> bool:
        return stored >> 32 == 0xFFFFDFFF


@pytest.mark.parametrize("kind", [TransitionWithoutPrototype, MarkerOfPrototype], ids=lambda kind: kind.__name__)
def test_a_mutant_of_the_layout_is_noticed(kind):
    def make(right):
        fields = {name: getattr(right.layout, name) for name in layout_module.PteLayout.__dataclass_fields__}
        return like(right, resolver_module.Resolver, kind(**fields))

    assert noticed(make)


class OffsetsInPages(resolver_module.Resolver):
    """PageFileHigh taken for bytes."""

    def slot(self, value, layout):
        state, slot = super().slot(value, layout)
        return state, PagefileSlot(slot.number, slot.offset >> 12)


class NoStore(resolver_module.Resolver):
    """The virtual store's number taken for a paging file's."""

    def slot(self, value, layout):
        return State.PAGEFILE, super().slot(value, layout)[1]


class OldPageFileLow(resolver_module.Resolver):
    """volatility3's bits 1 to 4, which are not the number since 2018."""

    def slot(self, value, layout):
        state, slot = super().slot(value, layout)
        return state, PagefileSlot(value >> 1 & 15, slot.offset)


@pytest.mark.parametrize("kind", [OffsetsInPages, NoStore, OldPageFileLow], ids=lambda kind: kind.__name__)
def test_a_mutant_of_the_place_in_a_paging_file_is_noticed(kind):
    assert noticed(lambda right: like(right, kind))
