"""How fast pages that left RAM are read: pages of three paging files of a minint in random order, at once and singly.

.venv/bin/python benchmarks/paged.py        # from a copy of the disk (qcow2, raw), and live through QEMU
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import coldframe
from coldframe.minint import start
from coldframe.paging import AbsentPages, Page, PagefileSlot, State
from coldframe.paging.arrays import CODE
from coldframe.windows import Guest

PAGE = 4096
SINGLE = 2000


def measure(guest: Guest, what: str) -> None:
    """Print MB/s of pages asked for at once (all of them, one in seven), and pages a second singly."""
    files = [file for file in guest.paging_files if not file.is_store]
    every = [(file.number, at) for file in files for at in range(0, file.size, PAGE)]
    order = np.random.default_rng(1).permutation(len(every))
    said = []
    for step in (1, 7):
        number, offset = np.array([every[index] for index in order if not index % step], np.uint64).T
        count, zeros = len(number), np.zeros(len(number), np.uint64)
        state = np.full(count, CODE[State.PAGEFILE], np.uint8)
        pages = AbsentPages(state, number.astype(np.uint8), offset, zeros, zeros)
        out = np.zeros((count, PAGE), np.uint8)
        best = 0.0
        for _ in range(3):
            began = time.perf_counter()
            assert guest.pages.read_pages(pages, out).all()
            best = max(best, count * PAGE / (time.perf_counter() - began) / 1e6)
        said.append(f"{best:6.0f} MB/s")
    began = time.perf_counter()
    for index in order[:SINGLE]:
        assert guest.pages.read_page(Page(0, State.PAGEFILE, pagefile=PagefileSlot(*every[index])))
    said.append(f"{SINGLE / (time.perf_counter() - began):6.0f} pages/s")
    print(f"{what:<28}", *said)


def main() -> None:
    """Boot, measure, end."""
    print(f"{'':<28}  all pages  1 in 7 pages  singly")
    with tempfile.TemporaryDirectory() as folder, start(options="PAGEFILES=3 PAGEFILE=40") as machine:
        symbols, disk = [machine.symbols_folder], Path(folder) / "disk.qcow2"
        machine.write_dump(Path(folder) / "memory.elf")
        machine.control("stop")
        shutil.copyfile(machine.disk, disk)
        machine.control("cont")
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk, disk.with_suffix(".raw")], check=True)
        for image in (disk, disk.with_suffix(".raw")):
            with coldframe.open(Path(folder) / "memory.elf", symbols=symbols, disk=image) as guest:
                measure(guest, f"{image.suffix[1:]} file")
        with coldframe.attach(machine.qmp, symbols=symbols) as live:
            measure(live, "live, NBD through QEMU")


if __name__ == "__main__":
    main()
