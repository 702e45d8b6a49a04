"""Translating, mapping and reading one address space, and listing processes, beside volatility3 and MemProcFS.

`python benchmarks/mapping.py [--pages N]`: minint is booted and its RAM written to a raw image; N pages (262144 by
default, 1 GB) in scattered frames are added behind it and mapped in its notepad.exe. All tools open that same file, in
turn, in this process. Medians of processor time; in brackets, how many times as fast as volatility3. The others need
the dependency group `outside` and the extra `volatility`.

`python benchmarks/mapping.py --growth [GB ...]`: sparse images of so many gigabytes (1, 4, 16 and 64 by default) whose
page tables map all of it; how time and memory grow.

memflow's Python binding is on PyPI without the connectors and the Windows layer that it needs to open an image, so it
cannot take part.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import coldframe
from coldframe.minint import start
from coldframe.symbols import load_pdb, write_isf

PAGE, MB, GB = 1 << 12, 1 << 20, 1 << 30
BASE = 0x2000_0000_0000
FLAGS = 0x867  # valid, writable, user, accessed, dirty
RUNS = 5
TRANSLATE, MAP, MAP_ALL = "translate, µs", "map the added space, pages/s", "map the whole process, ms"
LIST = "list processes, a cold process, s"
SIZES = (64 << 10, 1 << 20, 16 << 20, 128 << 20, 1 << 30)


def median(action: Callable[[], object], *, runs: int = RUNS, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of the processor that the action takes; others may use the machine meanwhile."""
    times = []
    for _ in range(runs):
        begin = clock()
        action()
        times.append(clock() - begin)
    return statistics.median(times)


def children() -> float:
    """Seconds of the processor that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def graft(image: Path, dtb: int, pages: int, *, scattered: bool = True) -> None:
    """Put RAM for `pages` pages and their tables behind the image, mapped at `BASE` in the address space of `dtb`."""
    end = image.stat().st_size
    tables = -(-pages // 512)
    directories = -(-tables // 512)
    table = end + (1 + directories) * PAGE
    frames = table + tables * PAGE + np.arange(pages, dtype=np.uint64) * np.uint64(PAGE)
    if scattered:
        np.random.default_rng(1).shuffle(frames)
    with image.open("r+b") as file:
        file.seek(dtb + 8 * (BASE >> 39))
        file.write((end | FLAGS).to_bytes(8, "little"))
        file.seek(end)
        for below, count in ((end + PAGE, directories), (table, tables)):
            entries = np.zeros(-(-count // 512) * 512, np.uint64)
            entries[:count] = np.arange(below, below + count * PAGE, PAGE, dtype=np.uint64) | np.uint64(FLAGS)
            file.write(entries.tobytes())
        entries = np.zeros(tables * 512, np.uint64)
        entries[:pages] = frames | np.uint64(FLAGS)
        file.write(entries.tobytes())
        file.truncate(table + (tables + pages) * PAGE)


def fill(image: Path, start_at: int) -> None:
    """Give the added pages content, so that no tool reads holes."""
    block = np.random.default_rng(2).integers(0, 1 << 63, MB // 8, np.uint64)
    with image.open("r+b") as file:
        file.seek(start_at)
        for at in range(start_at, image.stat().st_size, MB):
            block[::512] = at
            file.write(block.tobytes()[: image.stat().st_size - at])


def ours(image: Path, symbols: Path, pid: int, addresses: list[int], pages: int) -> dict[str, float]:
    with coldframe.open(image, symbols=[symbols]) as guest:
        space, resolver, end = guest.process(pid).memory, guest.resolver, BASE + pages * PAGE
        assert len(space.pages(BASE, end)) == pages
        rows = {
            TRANSLATE: median(lambda: [resolver.translate(space.dtb, at) for at in addresses]) / len(addresses) * 1e6,
            MAP: pages / median(lambda: space.pages(BASE, end)),
            MAP_ALL: median(space.pages) * 1e3,
            **reading(space.read, pages * PAGE),
        }
        buffers = {size: bytearray(size) for size in SIZES if size <= pages * PAGE}
        fills = reading(lambda at, size: space.read_into(at, buffers[size]), pages * PAGE)
        rows |= {name.replace("read", "read_into", 1): value for name, value in fills.items()}
        added = memoryview(guest.physical.view(guest.physical.end - pages * PAGE, pages * PAGE))
        copies = reading(lambda at, size: bytes(added[at - BASE : at - BASE + size]), pages * PAGE)
        rows |= {name.replace("read", "memcpy to new memory", 1): value for name, value in copies.items()}
        copies = reading(partial(copy_into, added, buffers), pages * PAGE)
        rows |= {name.replace("read", "memcpy", 1): value for name, value in copies.items()}
    return rows


def copy_into(source: memoryview, buffers: dict[int, bytearray], address: int, size: int) -> None:
    buffers[size][:] = source[address - BASE : address - BASE + size]


def reading(read: Callable[[int, int], object], whole: int, *, runs: int = RUNS) -> dict[str, float]:
    """Bytes a second by the size of a read, walking through `whole` bytes from `BASE`."""
    rows = {}
    for size in SIZES:
        starts = range(BASE, BASE + whole - size + 1, size)
        if starts:
            seconds = median(partial(sweep, read, starts, size), runs=runs)
            rows[f"read {label(size)}, MB/s"] = size * len(starts) / seconds / 1e6
    return rows


def sweep(read: Callable[[int, int], object], starts: range, size: int) -> None:
    for address in starts:
        read(address, size)


def label(size: int) -> str:
    return f"{size >> 30} GB" if size >= GB else f"{size >> 20} MB" if size >= MB else f"{size >> 10} KB"


def volatility(image: Path, dtb: int, addresses: list[int], pages: int) -> dict[str, float]:
    try:
        from volatility3.framework import contexts  # noqa: PLC0415
        from volatility3.framework.layers import intel, physical  # noqa: PLC0415
    except ImportError:
        return {}
    context = contexts.Context()
    context.config["memory.location"] = image.as_uri()
    context.add_layer(physical.FileLayer(context, "memory", "memory"))
    context.config["layer.memory_layer"] = "memory"
    context.config["layer.page_map_offset"] = dtb
    layer = intel.WindowsIntel32e(context, "layer", "layer")
    some = min(pages, 1 << 15) * PAGE
    seconds = median(lambda: list(layer.mapping(BASE, some, ignore_errors=True)), runs=3)
    return {
        TRANSLATE: median(lambda: [layer.translate(at) for at in addresses]) / len(addresses) * 1e6,
        MAP: some / PAGE / seconds,
        **reading(partial(layer.read, pad=True), some, runs=1),
    }


def memprocfs_(image: Path, pid: int, addresses: list[int], pages: int) -> dict[str, float]:
    try:
        import memprocfs  # noqa: PLC0415
    except ImportError:
        return {}
    vmm = memprocfs.Vmm(["-device", str(image), "-disable-python", "-disable-symbolserver"])
    try:
        process = vmm.process(pid)
        memory = process.memory
        some = addresses[:2000]
        return {
            TRANSLATE: median(lambda: [memory.virt2phys(at) for at in some]) / len(some) * 1e6,
            MAP_ALL: median(process.maps.pte, runs=1) * 1e3,  # asked again it comes out of a cache
            **reading(memory.read, min(pages * PAGE, 128 * MB), runs=1),
        }
    finally:
        vmm.close()


PSLIST = "import memprocfs,sys; v=memprocfs.Vmm(['-device',sys.argv[1],'-disable-python','-disable-symbolserver'])\n"
PSLIST += "for p in v.process_list(): print(p.pid,p.name)\nv.close()"


def cold_processes(image: Path, symbols: Path, isf: Path) -> dict[str, float]:
    """Seconds of a process that lists the processes."""
    folder = Path(sys.executable).parent
    commands = {
        "coldframe": [str(folder / "coldframe"), "ps", str(image), "-s", str(symbols), "--json"],
        "volatility3": [str(folder / "vol"), "-q", "--offline", "-s", str(isf), "-f", str(image), "windows.pslist"],
        "MemProcFS": [sys.executable, "-c", PSLIST, str(image)],
    }
    rows = {}
    for name, command in commands.items():
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.decode()[-300:]}", file=sys.stderr)
        else:
            rows[name] = median(partial(subprocess.run, command, capture_output=True, check=True), clock=children)
    return rows


def compare(pages: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "minint.raw"
        symbols = Path(folder) / "symbols"
        with start(vcpus=1) as machine:
            coldframe.dump(machine.qmp, image)
            shutil.copytree(machine.symbols_folder, symbols)
        with coldframe.open(image, symbols=[symbols]) as guest:
            pid, dtb = guest.process("notepad.exe").pid, guest.process("notepad.exe").dtb
        before = image.stat().st_size
        graft(image, dtb, pages)
        fill(image, image.stat().st_size - pages * PAGE)
        kernel = load_pdb(symbols / "ntkrnlmp.pdb")
        isf = Path(folder) / "isf"
        path = isf / "windows" / "ntkrnlmp.pdb" / f"{kernel.identity.guid}-{kernel.identity.age}.json.xz"
        path.parent.mkdir(parents=True)
        write_isf(kernel, path)
        addresses = [BASE + page * PAGE + 0x18 for page in random.Random(1).sample(range(pages), min(pages, 8192))]
        tools = {
            "coldframe": ours(image, symbols, pid, addresses, pages),
            "volatility3": volatility(image, dtb, addresses, pages),
            "MemProcFS": memprocfs_(image, pid, addresses, pages),
        }
        for name, seconds in cold_processes(image, symbols, isf).items():
            tools[name][LIST] = seconds
        print(f"an image of {image.stat().st_size / GB:.1f} GB ({before / GB:.1f} of them minint's)")
    show(tools)


def show(tools: dict[str, dict[str, float]]) -> None:
    table = Table("", *tools)
    for name in tools["coldframe"]:
        base = tools["volatility3"].get(name)
        cells = []
        for rows in tools.values():
            value = rows.get(name)
            if value is None:
                cells.append("-")
                continue
            text = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
            if base:
                times = value / base if name.endswith("/s") else base / value
                text += f" ({times:,.1f})"
            cells.append(text)
        table.add_row(name, *cells)
    Console(width=120).print(table)


def peak() -> float:
    """The most megabytes that this process has had in RAM, those of the mapped image included."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from mapping import map_raw
print(json.dumps(map_raw(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
"""


def map_raw(image: Path, dtb: int, size: int) -> dict[str, float]:
    """Open, map and read a sparse image; seconds, and peak megabytes of this process after each."""
    from coldframe.images import open_image  # noqa: PLC0415
    from coldframe.paging import FORMATS, AddressSpace, PteLayout, Resolver  # noqa: PLC0415

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from builder import bit_field_types  # noqa: PLC0415

    types = bit_field_types("x64 7 RTM")
    out = {}

    def note(name: str, begin: float) -> None:
        out[f"{name}, s"] = time.process_time() - begin
        out[f"{name}, peak MB"] = peak()

    begin = time.process_time()
    physical = open_image(image).physical
    space = AddressSpace(Resolver(physical, FORMATS["4-level"], PteLayout.from_types(types), kernel_dtb=dtb), dtb)
    note("open", begin)
    begin = time.process_time()
    for address in range(BASE, BASE + size, size // 10000 & ~0xFFF):
        assert space.translate(address) is not None
    note("10,000 addresses", begin)
    begin = time.process_time()
    pages = sum(len(part) for part in space.parts(BASE, BASE + size))
    note("count every page, part by part", begin)
    assert pages == size // PAGE
    begin = time.process_time()
    assert len(space.pages(BASE, BASE + size)) == size // PAGE
    note("every page as arrays at once", begin)
    return out


def growth(sizes: list[int]) -> None:
    figures = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "sparse.raw"
            with image.open("wb") as file:
                file.truncate(MB)
            graft(image, 0x1000, size * GB // PAGE)
            child = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(image), str(0x1000), str(size * GB)]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            figures[size] = {"on disk, MB": image.stat().st_blocks * 512 / MB, **json.loads(done.stdout)}
    table = Table("", *(f"{size} GB" for size in figures))
    for name in next(iter(figures.values())):
        table.add_row(
            name, *(f"{rows[name]:,.3f}" if name.endswith(" s") else f"{rows[name]:,.0f}" for rows in figures.values())
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=GB // PAGE)
    parser.add_argument("--growth", type=int, nargs="*", metavar="GB")
    options = parser.parse_args()
    if options.growth is None:
        compare(options.pages)
    else:
        growth(options.growth or [1, 4, 16, 64])


if __name__ == "__main__":
    main()
