"""Every state of a page of a 32-bit process, in the PTEs of its own kernel: one at a time and all at once."""

from __future__ import annotations

import pytest

from builder import pattern
from builder.compact import NT52, SEVEN_PAE
from builder.image import MB
from coldframe.errors import UnreadableMemoryError
from coldframe.paging.arrays import CODE
from coldframe.paging.page import PagefileSlot, State, Via
from x86.conftest import Built, symbols_of
from x86.merged import Merged

PAGE = 4096
PRIVATE, MARKED, ZERO = 0x10000, 0x11000, 0x12000
VALID, TRANSITION, PAGED, PROMISED, TABLE = 0x20000, 0x21000, 0x22000, 0x23000, 0x800000


class Scene:
    """Pages of known state and content in notepad, and what they have to be."""

    def __init__(self, built: Built) -> None:
        image, dtb = built.image, built.notepad.dtb
        self.built = built
        self.content: dict[int, bytes] = {}
        self.states: dict[int, tuple[State, tuple[Via, ...]]] = {}

        def told(va, state, *via, content=None):
            self.states[va] = state, via
            if content is not None:
                self.content[va] = content

        image.map(dtb, VALID, pattern(1))
        told(VALID, State.VALID, content=pattern(1))
        image.set_entry(dtb, TRANSITION, image.transition(image.allocate_page(pattern(2))))
        told(TRANSITION, State.TRANSITION, content=pattern(2))
        image.set_entry(dtb, PAGED, image.paged(0, 0x45000))
        told(PAGED, State.PAGEFILE)
        image.set_entry(dtb, PROMISED, image.demand_zero())
        told(PROMISED, State.DEMAND_ZERO, content=bytes(PAGE))
        told(PRIVATE, State.DEMAND_ZERO, Via.VAD, content=bytes(PAGE))
        image.set_entry(dtb, MARKED, image.vad_marker())
        told(MARKED, State.DEMAND_ZERO, Via.VAD, content=bytes(PAGE))
        self._section(told)
        image.map(dtb, TABLE, pattern(3))
        table = image.get_entry(dtb, TABLE, "PDE") & ~0xFFF
        image.set_entry(dtb, TABLE, image.transition(table), "PDE")
        told(TABLE, State.VALID, Via.TRANSITION_TABLE, content=pattern(3))
        large = 4 * MB if image.format == "x86" else 2 * MB
        image.map(dtb, 0x0C00_0000, pattern(4), size=large)
        told(0x0C00_0000, State.VALID, Via.LARGE_PAGE, content=pattern(4))

    def _section(self, told) -> None:
        """ntdll's view: by the PTE, by the VAD, by the VAD as a marker says; in every state of a prototype PTE."""
        image, view, dtb = self.built.image, self.built.ntdll, self.built.notepad.dtb
        kinds = [
            (image.hardware(image.allocate_page(pattern(11))), State.VALID, pattern(11)),
            (image.transition(image.allocate_page(pattern(12))), State.TRANSITION, pattern(12)),
            (image.paged(0, 0x99000), State.PAGEFILE, None),
            (image.demand_zero(), State.DEMAND_ZERO, bytes(PAGE)),
            (image.subsection(view.subsections[1]), State.SUBSECTION, None),
            (image.subsection(view.subsections[2]), State.SUBSECTION, None),
            (image.transition(image.allocate_page(pattern(13))), State.TRANSITION, pattern(13)),
        ]
        width = image.types.size("_MMPTE")
        for number, (entry, state, content) in enumerate(kinds):
            va, place = view.start + PAGE * number, view.pages[number]
            image.write(place, entry.to_bytes(width, "little"))
            if number % 3 == 0:
                image.set_entry(dtb, va, image.prototype(place))
            elif number % 3 == 1:
                image.set_entry(dtb, va, image.vad_marker())
            via = (Via.PROTOTYPE,) if number % 3 == 0 else (Via.VAD, Via.PROTOTYPE)
            told(va, state, *via, content=content)


@pytest.fixture
def scene(built) -> Scene:
    return Scene(built)


def test_each_page_is_in_the_state_that_it_was_put_in(scene):
    memory = scene.built.open().process(812).memory
    found = {va: memory.resolve(va) for va in scene.states}
    assert {va: (page.state, page.via) for va, page in found.items()} == scene.states
    assert found[PAGED].pagefile == PagefileSlot(0, 0x45000)
    assert found[scene.built.ntdll.start + 2 * PAGE].pagefile == PagefileSlot(0, 0x99000)


def test_each_page_reads_as_it_was_filled_or_says_where_it_is(scene):
    memory = scene.built.open().process(812).memory
    for va in scene.states:
        if va in scene.content:
            assert memory.read(va, PAGE) == scene.content[va], hex(va)
        else:
            with pytest.raises(UnreadableMemoryError, match=r"paging file 0|ntdll\.dll"):
                memory.read(va, PAGE)


def test_a_page_of_a_file_tells_its_offset(scene):
    view = scene.built.ntdll
    pages = [scene.built.open().process(812).memory.resolve(view.start + number * PAGE) for number in (4, 5)]
    assert [page.subsection.address for page in pages] == view.subsections[1:]
    assert [page.subsection.file for page in pages] == [view.file, view.file]
    assert [page.subsection.file_offset for page in pages] == [4 * PAGE, 5 * PAGE]


def test_all_at_once_says_the_same(scene):
    memory = scene.built.open().process(812).memory
    pages = memory.pages()
    rows = {int(va): int(state) for va, state in zip(pages.address, pages.state, strict=True)}
    for va, (state, _) in scene.states.items():
        start = max(row for row in rows if row <= va)
        assert rows[start] == CODE[state], hex(va)
        assert memory.resolve(start).state == state


@pytest.mark.parametrize("at_end", [False, True])
def test_nt_5_counts_subsections_from_either_end_of_the_pools(folder, at_end):
    scene = Scene(Built(symbols_of(NT52, folder), subsections_from_end=at_end))
    page = scene.built.open().process(812).memory.resolve(scene.built.ntdll.start + 4 * PAGE)
    assert page.subsection.address == scene.built.ntdll.subsections[1]


def test_without_the_pools_starts_the_reason_says_so(folder):
    built = Built(symbols_of(NT52, folder))
    scene = Scene(built)
    for name in ("MmPagedPoolStart", "MmSubsectionBase"):
        built.image.set_variable(name, 0)
    memory = built.open().process(812).memory
    assert "MmPagedPoolStart" in memory.resolve(built.ntdll.start).reason
    assert "MmSubsectionBase" in memory.resolve(built.ntdll.start + 4 * PAGE).reason
    assert memory.read(VALID, PAGE) == scene.content[VALID]


def test_nt_5_with_pae_keeps_whole_addresses(folder):
    """The NT 5.2 structures with the PTEs of a PAE kernel: what ntkrnlpa.exe of 2003 has."""
    scene = Scene(Built(Merged.ptes_of(symbols_of(NT52, folder), symbols_of(SEVEN_PAE, folder))))
    assert scene.built.image.format == "pae"
    memory = scene.built.open().process(812).memory
    assert {va: (page.state, page.via) for va in scene.states for page in [memory.resolve(va)]} == scene.states
