"""minint with memory kept short: its trimmer compresses, and every page of every process comes back, live, twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

import coldframe
from coldframe.debug import LiveGuest
from coldframe.minint import Minint, Truth, start
from coldframe.paging import AbsentPages, State
from coldframe.paging.arrays import CODE
from coldframe.windows.store import CompressedStore

pytestmark = pytest.mark.minint

PAGE = 4096
MOST = 1500
TO_BACKING = 4
"""minint's MmTrimToBacking: written out, and the frames taken away."""


@pytest.fixture(scope="module", params=["19041", "22000"])
def short(request: pytest.FixtureRequest) -> Iterator[Minint]:
    """A minint whose programs have written more memory than it has, and rest."""
    options = "STRESS=40 STRESSTHREADS=2 STRESSCHECKS=30000 PAGEFILE=48 STORE=8 SERVICES=1"
    with start(layout=request.param, vcpus=2, memory="36M", options=options) as machine:
        for _ in range(2):
            machine.wait_for("note", accept=lambda event: str(event.get("text")).endswith(" rests"), timeout=200)
        yield machine


def read_wrong(guest: LiveGuest, truth: Truth, state: str) -> tuple[int, list[str]]:
    """How many pages in `state` were read, and which of them have other bytes than the guest says."""
    pages = [page for page in truth.pages if page.state == state and page.sha256 and not page.address >> 63]
    some = pages[:: max(1, len(pages) // MOST)]
    wrong = []
    for page in some:
        memory = guest.process(page.pid).memory
        found = memory.resolve(page.address)
        if not found.readable:
            wrong.append(f"{page.pid} {page.address:#x}: {found.reason}")
        elif str(found.state) != state or hashlib.sha256(memory.read(page.address, PAGE)).hexdigest() != page.sha256:
            wrong.append(f"{page.pid} {page.address:#x}: {found.state} from {found.source}")
    return len(some), wrong


def batch_wrong(guest: LiveGuest, truth: Truth) -> list[str]:
    """The compressed pages that `read_pages` gives other bytes of than the guest says."""
    pages = [page for page in truth.pages if page.state == "compressed" and page.pagefile and page.sha256][:MOST]
    slots = [page.pagefile or (0, 0) for page in pages]
    nothing = np.zeros(len(pages), np.uint64)
    asked = AbsentPages(
        np.full(len(pages), CODE[State.COMPRESSED], np.uint8),
        np.array([number for number, _ in slots], np.uint8),
        np.array([offset for _, offset in slots], np.uint64),
        nothing,
        nothing,
    )
    out = np.zeros((len(pages), PAGE), np.uint8)
    store = CompressedStore(guest)
    assert store.supplies(asked).all()
    assert store.read_pages(asked, out).all()
    sums = (hashlib.sha256(row.tobytes()).hexdigest() for row in out)
    return [f"{page.address:#x}" for page, found in zip(pages, sums, strict=True) if found != page.sha256]


def test_what_the_trimmer_compressed_is_read(short: Minint) -> None:
    """First with the store's own pages in RAM, then with those that are needed for nothing in the paging file."""
    of_the_store: list[Counter[str]] = []
    for _ in range(2):
        truth = short.truth()
        with coldframe.attach(short.qmp, symbols=[short.symbols_folder]) as guest:
            owner = guest.process("MemCompression").pid
            of_the_store.append(Counter(page.state for page in truth.pages if page.pid == owner))
            read, wrong = read_wrong(guest, truth, "compressed")
            assert not wrong, f"{len(wrong)} of {read}: {wrong[:5]}"
            assert read > 50
            assert not batch_wrong(guest, truth)
        short.go()
        short.command(f"trim {owner} {TO_BACKING}")
        short.wait_for("trimmed")
    in_ram, out = of_the_store
    assert out["pagefile"] > in_ram["pagefile"], of_the_store
    notes = [str(event.get("text")) for event in short.events if "errors" in str(event.get("text"))]
    assert notes and all(note.endswith(" 0 errors") for note in notes), notes
