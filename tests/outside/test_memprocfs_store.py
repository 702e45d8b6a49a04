"""MemProcFS on a minint with a compressed store: its walk of the same structures, held against the guest's own account.

Without a PDB reader (see test_memprocfs) it finds the store by its pool tags, takes the store's paging file for number
2 (so minint has two others), and InvalidPteMask for bit 45, which is not this processor's: it finds the right key only
where a PTE has SwizzleBit set, elsewhere a wrong one, which may be another page's. It reads zeros for pages stored as
they are, whose size field the kernel leaves 0 (`StDmpSinglePageAdd`), and follows no tables that are not valid. All
others it must read as coldframe does. Its Linux build has no Xpress of its own: it is given minint's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import coldframe
from coldframe.minint import TruthPage, start
from coldframe.paging import Page, State, Via
from coldframe.windows import Guest
from store.guest_xpress import build_library

pytestmark = pytest.mark.minint

PAGE = 4096
SWIZZLE = 1 << 4
GUESSED_MASK = 1 << 45 - 32
"""In PageFileHigh, the upper half of a PTE."""
Stored = tuple[Guest, list[tuple[TruthPage, bytes]]]
READ = """
import sys
sys.path.insert(0, sys.argv[2])
import memprocfs
vmm = memprocfs.Vmm(["-device", sys.argv[1], "-disable-python", "-disable-symbolserver"])
for line in sys.stdin:
    pid, address = line.split()
    try:
        print(":", vmm.process(int(pid)).memory.read(int(address, 16), 4096).hex())
    except Exception:
        print(":")
"""


@pytest.fixture(scope="module", params=["19041", "22000"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """An opened dump, and its compressed pages with what MemProcFS reads there."""
    found = importlib.util.find_spec("memprocfs")
    if found is None or found.origin is None:
        pytest.skip("memprocfs is not installed (dependency group `outside`)")
    folder = tmp_path_factory.mktemp(f"memprocfs-{request.param}")
    copy = folder / "packages" / "memprocfs"
    shutil.copytree(Path(found.origin).parent, copy)
    shutil.copy(build_library(folder), copy)
    image, disk = folder / "minint.elf", folder / "minint.qcow2"
    with start(layout=request.param, options="PAGEFILES=2 TRIM=0") as machine:
        truth = machine.write_dump(image, disk=disk)
        symbols = machine.symbols_folder
    pages = [page for page in truth.pages if page.state == State.COMPRESSED and page.pid != 4]
    asked = "".join(f"{page.pid} {page.address:#x}\n" for page in pages)
    command = [sys.executable, "-c", READ, str(image), str(copy.parent)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, timeout=120)
    answers = [line[1:].strip() for line in done.stdout.splitlines() if line.startswith(":")]
    assert len(answers) == len(pages), done.stderr[-2000:]
    with coldframe.open(image, symbols=[symbols], disk=disk) as guest:
        yield guest, list(zip(pages, map(bytes.fromhex, answers), strict=True))


def page_table_entry(page: Page) -> int:
    return next(step.value for step in reversed(page.steps) if step.level.endswith("PTE"))


def place_of(page: TruthPage) -> int:
    """Its page in the store's paging file, as PageFileHigh has it."""
    assert page.pagefile is not None
    return page.pagefile[1] // PAGE


def kind(page: Page) -> str:
    """Which of those things the page is that MemProcFS does not read."""
    record = page.steps[-2]
    if {Via.TRANSITION_TABLE, Via.PAGED_TABLE} & set(page.via):
        return "behind a table out of reach"
    if not page_table_entry(page) & SWIZZLE:
        return "another mask"
    return how_stored(record.says)


def how_stored(says: str) -> str:
    if says.endswith("stored as it is"):
        return "stored as it is"
    return "combined" if "combined" in says else "compressed"


def test_what_it_reads_of_the_store_coldframe_reads(stored: Stored) -> None:
    guest, answers = stored
    seen: Counter[str] = Counter()
    resolved = [(truth, guest.process(truth.pid).memory.resolve(truth.address), theirs) for truth, theirs in answers]
    reads: dict[int, bytes] = {}
    """What MemProcFS reads of the page that has this place in the paging file."""
    for truth, page, _ in resolved:
        own = guest.process(truth.pid).memory.read(truth.address, PAGE)
        assert hashlib.sha256(own).hexdigest() == truth.sha256
        as_it_is = how_stored(page.steps[-2].says) == "stored as it is"
        reads[place_of(truth)] = bytes(PAGE) if as_it_is else own
    for truth, page, theirs in resolved:
        what = kind(page)
        seen[what] += 1
        if what == "behind a table out of reach":
            expected = b""
        elif what == "another mask":
            expected = reads.get(page_table_entry(page) >> 32 ^ GUESSED_MASK, b"")
        else:
            expected = reads[place_of(truth)]
        assert theirs == expected, f"{truth.address:#x}: {what}, {page.steps[-1].says}"
    assert seen["compressed"] > 10
    assert set(seen) >= {"compressed", "combined", "stored as it is", "another mask"}
