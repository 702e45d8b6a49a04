"""`write_process` on built guests: what is promised, reserved, left RAM or lies, and how much of it a file takes."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from builder import PAGE, kernel, kernel_files, pattern
from builder.windows import WindowsBuilder
from coldframe.processdump import write_process
from coldframe.windows import Guest
from windows.conftest import OneKernel

KERNELS = [path for path in kernel_files() if kernel(path).types.pointer_size == 8]
START, SMALL, LARGE, HUGE, VIEW = 0x10000, 0x200000, 0x1_0000_0000, 0x100_0000_0000, 0x300_0000_0000


@pytest.fixture(scope="module", params=[0, -1], ids=["first", "last"])
def guest(request: pytest.FixtureRequest) -> Guest:
    if not KERNELS:
        pytest.skip("no kernel types: ../shared/symbols is absent")
    symbols = kernel(KERNELS[request.param])
    image = WindowsBuilder(symbols)
    process = image.add_process("notepad.exe", 812, 4)
    image.add_thread(process, 1204)
    image.add_private_vad(process, START, 16)
    for start, pages in ((SMALL, 8), (LARGE, 1 << 20)):
        vad = image.add_private_vad(process, start, pages)
        path = next(
            path
            for path in ("u1.VadFlags1.MemCommit", "u.VadFlags.MemCommit")
            if image.types.has_field("_MMVAD_SHORT", path)
        )
        image.write_struct("_MMVAD_SHORT", vad.address, {path: 1})
    image.add_private_vad(process, HUGE, 1 << 28)
    image.map(process.dtb, START + 3 * PAGE, pattern(3))
    image.map(process.dtb, HUGE + (1 << 38), pattern(9))
    image.finish()
    return Guest.open(image.physical(), OneKernel(symbols), [image.registers(process)])


@pytest.mark.parametrize("form", ["elf", "minidump"])
def test_promised_memory_is_in_the_file_and_reserved_memory_is_not(guest, tmp_path, form):
    """A terabyte is reserved and 4 GB are promised: the file takes what there is."""
    path = tmp_path / "x.dmp"
    write_process(guest.process(812), path, form)
    runs = json.loads((tmp_path / "x.dmp.manifest.json").read_text())["runs"]
    told = {int(run["address"], 16): run for run in runs}
    data = path.read_bytes()
    for address, number in ((START + 3 * PAGE, 3), (HUGE + (1 << 38), 9)):
        offset = int(told[address]["file_offset"], 16)
        assert data[offset : offset + PAGE] == pattern(number)
        assert told[address]["count"] == 1
    offset = int(told[SMALL]["file_offset"], 16)
    assert (told[SMALL]["count"], data[offset : offset + 8 * PAGE]) == (8, bytes(8 * PAGE))
    for address, says in ((START, "not committed"), (HUGE, "not committed"), (LARGE, "nothing is touched")):
        assert told[address]["file_offset"] is None
        assert says in told[address]["reason"]
    assert sum(run["count"] for run in runs) == 16 + 8 + (1 << 20) + (1 << 28)
    assert len(data) < 1 << 20


def test_progress_ends_with_all_of_it(guest, tmp_path):
    seen: list[tuple[int, int]] = []
    write_process(guest.process(812), tmp_path / "x.elf", "elf", lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == ((1 + 1 + 8) * PAGE, (1 + 1 + 8) * PAGE)


def peak_memory(image: Path) -> int:
    """Kilobytes that a process takes which opens `image` and reads a word of each gigabyte."""
    code = (
        "import sys, resource; from coldframe.images import open_image; image = open_image(sys.argv[1]);"
        "[image.physical.u64(at) for at in range(0, image.physical.end, 1 << 30)];"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(image)], capture_output=True, text=True, check=True)
    return int(re.findall(r"\d+", done.stdout)[-1])


def test_memory_does_not_grow_with_the_image(tmp_path):
    sizes = []
    for name, size in (("small", 1 << 30), ("large", 64 << 30)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        sizes.append(peak_memory(tmp_path / name))
    assert sizes[1] - sizes[0] < 4096, f"{sizes} kB; page size {resource.getpagesize()}"
