"""MemProcFS on the same dump: the same processes, and no page that it reads right is read otherwise by coldframe.

MemProcFS's Python package has no PDB reader on Linux (its libpdbcrust is not in it), so it works from its own guesses
at minint: it reads valid pages and gives zeros for pages in every other state, which cannot be told from zero pages.
It finds EPROCESS.Peb by a PEB that is mapped, in smss.exe or one of the three processes behind it on the list, and
opens no image where all four are out: so minint's csrss.exe uses its own all the time.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from coldframe.minint import TruthPage
from coldframe.paging import State, Via
from outside.dump import Frozen

pytestmark = pytest.mark.minint

PAGE = 4096
READ = """
import sys, memprocfs
vmm = memprocfs.Vmm(["-device", sys.argv[1], "-disable-python", "-disable-symbolserver"])
for line in sys.stdin:
    pid, address = line.split()
    try:
        process = vmm.process(int(pid))
        print(process.name, process.dtb, process.memory.read(int(address, 16), 4096).hex())
    except Exception:
        print("-")
"""


@pytest.fixture(scope="module")
def read(frozen: Frozen) -> Callable[[list[TruthPage]], list[tuple[str, int, bytes] | None]]:
    """`read(pages)`: process name, DTB and bytes of each page, or None, as MemProcFS tells them."""
    pytest.importorskip("memprocfs", reason="memprocfs is not installed (dependency group `outside`)")

    def run(pages: list[TruthPage]) -> list[tuple[str, int, bytes] | None]:
        asked = "".join(f"{page.pid} {page.address:#x}\n" for page in pages)
        command = [sys.executable, "-c", READ, str(frozen.image)]
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, timeout=120)
        assert "Initialization of vmm failed" not in done.stderr
        answers = [line for line in done.stdout.splitlines() if line == "-" or line.count(" ") == 2]
        assert len(answers) == len(pages), done.stderr[-2000:]
        return [_parsed(line) for line in answers]

    return run


def _parsed(line: str) -> tuple[str, int, bytes] | None:
    if line == "-":
        return None
    name, dtb, data = line.split(" ")
    return name, int(dtb), bytes.fromhex(data)


def test_it_knows_the_same_processes(
    frozen: Frozen, read: Callable[[list[TruthPage]], list[tuple[str, int, bytes] | None]]
) -> None:
    pages = {page.pid: page for page in frozen.truth.pages if page.pid != 4}
    told = {
        (pid, answer[0], answer[1]) for pid, answer in zip(pages, read(list(pages.values())), strict=True) if answer
    }
    assert told == {(process.pid, process.name, process.dtb) for process in frozen.guest.processes if process.pid != 4}


def test_no_page_that_it_reads_right_is_read_otherwise(
    frozen: Frozen, read: Callable[[list[TruthPage]], list[tuple[str, int, bytes] | None]]
) -> None:
    pages = [page for page in frozen.truth.pages if page.sha256 and page.pid != 4]
    valid = 0
    for page, answer in zip(pages, read(pages), strict=True):
        right = answer is not None and hashlib.sha256(answer[2]).hexdigest() == page.sha256
        promised = page.state in {State.PAGEFILE, State.SUBSECTION} or Via.PAGED_TABLE in page.via
        if right and not promised:
            assert answer is not None
            assert frozen.guest.process(page.pid).memory.read(page.address, PAGE) == answer[2]
        valid += right and page.state == State.VALID
    assert valid > 100
