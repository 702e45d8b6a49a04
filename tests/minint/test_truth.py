"""coldframe against the guest: every page that minint's log names, in the state and with the bytes it says."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import coldframe
from coldframe.debug import LiveGuest
from coldframe.minint import Minint, Truth, TruthPage
from coldframe.paging import AddressSpace, State, Via
from coldframe.windows.sources_files import page_behind

pytestmark = pytest.mark.minint

PAGE = 4096
CONFIGURATIONS = [
    *(("19041", vcpus, "512M") for vcpus in (1, 2, 4)),
    *(("22000", vcpus, "512M") for vcpus in (1, 4)),
    ("22000", 2, "5G"),  # RAM above the PCI hole lies elsewhere in its file than its guest-physical address
]


@pytest.fixture(scope="module", params=CONFIGURATIONS, ids=lambda words: f"{words[0]}-{words[1]}vcpus-{words[2]}")
def frozen(request: pytest.FixtureRequest, boot: Callable[..., Minint]) -> Iterator[tuple[LiveGuest, Truth]]:
    """A minint that stands still, and what it says of itself."""
    layout, vcpus, memory = request.param
    machine = boot(layout=layout, vcpus=vcpus, memory=memory)
    machine.wait_until_steady()
    truth = machine.truth()
    with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        yield guest, truth
    machine.go()


def space_of(guest: LiveGuest, page: TruthPage) -> AddressSpace:
    return guest.memory if page.address >> 63 else guest.process(page.pid).memory


def test_every_page_is_in_the_state_that_the_guest_says(frozen: tuple[LiveGuest, Truth]) -> None:
    guest, truth = frozen
    wrong = []
    for page in truth.pages:
        found = space_of(guest, page).resolve(page.address)
        told: tuple[object, ...] = (page.state, set(page.via), page.physical, page.pagefile)
        slot = None if found.pagefile is None else (found.pagefile.number, found.pagefile.offset)
        seen: tuple[object, ...] = (str(found.state), {str(via) for via in found.via}, found.physical, slot)
        if told != seen:
            wrong.append(f"pid {page.pid} {page.address:#x}: the guest says {told}, coldframe {seen}")
    assert not wrong, f"{len(wrong)} of {len(truth.pages)}: {wrong[:10]}"


def test_the_bytes_are_those_that_a_fault_would_bring_in(frozen: tuple[LiveGuest, Truth]) -> None:
    """Every page of every process, wherever it is: in RAM, in a paging file, in an image or a data file on the disk."""
    guest, truth = frozen
    for page in truth.pages:
        if page.sha256:
            data = space_of(guest, page).read(page.address, PAGE)
            assert hashlib.sha256(data).hexdigest() == page.sha256, f"pid {page.pid} {page.address:#x} {page.state}"


def test_pages_in_files_are_named_with_their_place(frozen: tuple[LiveGuest, Truth]) -> None:
    guest, truth = frozen
    pages = [page for page in truth.pages if page.state == State.SUBSECTION]
    assert pages
    relocated = 0
    for page in pages:
        found = space_of(guest, page).resolve(page.address)
        assert found.subsection is not None
        assert found.readable
        assert (found.subsection.file, found.subsection.file_offset) == (page.file, page.file_offset)
        assert found.source.split(" ")[0] == f"file:{page.file}@{page.file_offset:#x}"
        relocated += found.source.endswith(" relocated")
    assert 0 < relocated < len(pages)


def test_pages_in_paging_files_are_named_with_their_place(frozen: tuple[LiveGuest, Truth]) -> None:
    guest, truth = frozen
    names = {file.number: str(file.name).removeprefix("\\??\\") for file in guest.paging_files}
    pages = [page for page in truth.pages if page.state == State.PAGEFILE and page.pagefile]
    assert pages
    for page in pages:
        assert page.pagefile is not None
        number, offset = page.pagefile
        assert space_of(guest, page).resolve(page.address).source == f"disk:{names[number]}@{offset:#x}"


def test_image_pages_from_the_file_are_those_that_faults_brought_in(frozen: tuple[LiveGuest, Truth]) -> None:
    """Every page of an image that is in RAM, against the same page made from the file: relocated, zero behind."""
    guest, _ = frozen
    files, size = guest.pages.files, guest.layout.entry_size
    assert files is not None
    seen: set[int] = set()
    compared = relocated = 0
    views = (vad for process in guest.processes for vad in process.vads if vad.kind == "Image")
    for subsection in (each for vad in views for each in guest.sections.chain(vad.struct.integer("Subsection"))):
        base, count = subsection.integer("SubsectionBase"), subsection.integer("PtesInSubsection")
        for pte in range(base, base + count * size, size) if subsection.address not in seen else ():
            held = page_behind(guest, pte)
            if held is not None:
                out = np.zeros((1, PAGE), np.uint8)
                where = np.array([subsection.address], np.uint64), np.array([pte], np.uint64)
                assert files.read_pages(*where, out, np.arange(1))[0]
                assert out.tobytes() == held, hex(pte)
                compared += 1
                relocated += files.explain(subsection.address, pte)[0].endswith("relocated")
        seen.add(subsection.address)
    assert compared > 30
    assert relocated > 5


def test_the_guest_has_pages_in_every_state(frozen: tuple[LiveGuest, Truth]) -> None:
    """A truth that names no transition page proves nothing about transition pages."""
    _, truth = frozen
    seen = Counter((page.state, via) for page in truth.pages for via in page.via or ("",))
    wanted = {
        ("valid", ""), ("valid", "large-page"), ("valid", "prototype"), ("transition", ""), ("transition", "prototype"),
        ("transition", "transition-table"), ("demand-zero", ""), ("demand-zero", "prototype"), ("pagefile", ""),
        ("pagefile", "prototype"), ("subsection", "prototype"), ("valid", "vad"), ("transition", "vad"),
        ("compressed", ""), ("compressed", "prototype"), ("pagefile", "paged-table"), ("demand-zero", "paged-table"),
    }  # fmt: skip
    assert wanted <= set(seen), f"missing: {sorted(wanted - set(seen))}"


def test_qemu_translates_valid_pages_to_the_same_place(frozen: tuple[LiveGuest, Truth]) -> None:
    guest, truth = frozen
    by_process: dict[int, list[TruthPage]] = {}
    for page in truth.pages:
        if page.state == State.VALID and (not page.via or page.via == ("large-page",)):
            by_process.setdefault(guest.process(page.pid).dtb, []).append(page)
    own = guest.vm.registers(0)["cr3"]
    compared = 0
    try:
        for dtb, pages in by_process.items():
            guest.vm.write_registers(0, {"cr3": dtb})
            for page in pages[:: max(1, len(pages) // 50)]:
                answer = guest.vm.monitor(f"gva2gpa {page.address:#x}")
                match = re.search(r"gpa: (0x[0-9a-f]+|0$)", answer.strip())
                assert match, f"{page.address:#x}: {answer}"
                assert int(match[1], 16) == page.physical
                compared += 1
    finally:
        guest.vm.write_registers(0, {"cr3": own})
    assert compared > 100


def test_swizzled_entries_are_seen_with_and_without_bit_4(frozen: tuple[LiveGuest, Truth]) -> None:
    guest, truth = frozen
    assert guest.invalid_pte_mask
    seen = set()
    for page in truth.pages:
        if page.state in {State.TRANSITION, State.PAGEFILE} and Via.PROTOTYPE not in page.via:
            value = space_of(guest, page).resolve(page.address).steps[-1].value
            seen.add(bool(value >> 4 & 1))
    assert False in seen  # the mask is set in the entry: the ordinary case
