"""What is written reads back byte for byte, in every format, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coldframe
from builder import pattern
from coldframe.dumping import format_of
from coldframe.errors import FormatError, UsageError
from coldframe.images import open_image
from coldframe.images.crashheader import CrashHeader
from coldframe.images.elf import core_head
from coldframe.images.holes import data_spans
from coldframe.images.output import OutputError
from coldframe.images.write import page_extents, write_crash_dump, write_elf, write_raw
from coldframe.memory import PhysicalMemory, Run

PAGE = 4096
FOUR_GB = 1 << 20  # in pages
HEADER = CrashHeader(0x1AD000, loaded_modules=0xFFFFF80312600000).pack()
REGISTERS = {
    "rip": 0xFFFFF80312612345, "rsp": 0xFFFFF80312000000, "rax": 1, "r15": 15, "eflags": 0x246, "cs": 0x10, "ss": 0x18,
    "cr0": 0x80050033, "cr3": 0x1AD002, "cr4": 0x506F8, "gs_base": 0xFFFFF80311111000, "k_gs_base": 9,
    "idt_base": 0xFFFFF80311112000, "idt_limit": 0xFFF,
}  # fmt: skip


def memory(runs: list[tuple[int, int]]) -> PhysicalMemory:
    """RAM of runs (first page, pages), each page with content of its own; every third page is empty."""
    return PhysicalMemory(
        Run(
            first * PAGE,
            count * PAGE,
            memoryview(b"".join(bytes(PAGE) if p % 3 == 2 else pattern(p) for p in range(first, first + count))),
        )
        for first, count in runs
    )


@st.composite
def run_maps(draw, most=12):
    """Runs that do not overlap, some touching, some above 4 GB."""
    runs, page = [], 0
    for _ in range(draw(st.integers(1, most))):
        page += draw(st.sampled_from([0, 0, 1, 2, 7, 8, 9, 300, FOUR_GB]))
        count = draw(st.integers(1, 9))
        runs.append((page, count))
        page += count
    return runs


def same(one: PhysicalMemory, other: PhysicalMemory) -> bool:
    return page_extents(one) == page_extents(other) and all(
        one.read(run.start, run.size) == other.read(run.start, run.size) for run in one.runs
    )


@settings(max_examples=60, deadline=None)
@given(run_maps())
def test_raw_to_dmp_to_elf_to_raw_is_exact(tmp_path_factory, runs):
    folder, original = tmp_path_factory.mktemp("trip"), memory(runs)
    write_raw(folder / "1.raw", original)
    write_crash_dump(folder / "2.dmp", original, HEADER)
    with open_image(folder / "2.dmp") as dumped:
        assert dumped.warnings == []
        assert same(original, dumped.physical)
        write_elf(folder / "3.elf", dumped.physical, dumped.registers)
    with open_image(folder / "3.elf") as core:
        assert core.warnings == []
        assert same(original, core.physical)
        write_raw(folder / "4.raw", core.physical)
        write_crash_dump(folder / "5.dmp", core.physical, HEADER)
    assert (folder / "5.dmp").read_bytes() == (folder / "2.dmp").read_bytes()
    with open_image(folder / "1.raw") as first, open_image(folder / "4.raw") as last:
        assert first.physical.size == last.physical.size == original.end
        for run in original.runs:
            assert first.physical.read(run.start, run.size) == last.physical.read(run.start, run.size)
            assert first.physical.read(run.start, run.size) == original.read(run.start, run.size)
    assert {path.name for path in folder.iterdir()} == {"1.raw", "2.dmp", "3.elf", "4.raw", "5.dmp"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=43, max_size=80), st.integers(0, 40))
def test_more_runs_than_the_header_holds_become_a_bitmap(tmp_path_factory, gaps, first):
    path = tmp_path_factory.getbasetemp() / "many.dmp"
    runs, page = [], first
    for gap, count in gaps:
        runs.append((page, count))
        page += gap + count
    write_crash_dump(path, memory(runs), HEADER)
    with open_image(path) as image:
        assert image.format == "crash dump (bitmap)"
        assert same(memory(runs), image.physical)


def test_more_segments_than_an_elf_header_counts(tmp_path):
    head, first = core_head([(2 * number * PAGE, PAGE) for number in range(65_600)], [REGISTERS], PAGE)
    with (tmp_path / "x.elf").open("wb") as file:
        file.write(head)
        file.seek(first + 65_599 * PAGE)
        file.write(pattern(1))
    with open_image(tmp_path / "x.elf") as image:
        assert len(image.physical.runs) == 65_600
        assert image.physical.read(65_599 * 2 * PAGE, PAGE) == pattern(1)
        assert image.registers[0]["rip"] == REGISTERS["rip"]


def test_a_page_that_is_there_in_part_is_padded_in_a_crash_dump(tmp_path):
    ragged = PhysicalMemory(
        [Run(0x1800, 0x400, memoryview(b"a" * 0x400)), Run(0x1C00, 0x800, memoryview(b"b" * 0x800))]
    )
    write_crash_dump(tmp_path / "x.dmp", ragged, HEADER)
    with open_image(tmp_path / "x.dmp") as image:
        expected = bytes(0x800) + b"a" * 0x400 + b"b" * 0x800 + bytes(0xC00)
        assert [(run.start, run.size) for run in image.physical.runs] == [(0x1000, 0x2000)]
        assert image.physical.read(0x1000, 0x2000) == expected
    write_elf(tmp_path / "x.elf", ragged)
    with open_image(tmp_path / "x.elf") as image:
        assert [(run.start, run.size) for run in image.physical.runs] == [(0x1800, 0x400), (0x1C00, 0x800)]
        assert image.physical.read(0x1800, 0xC00) == expected[0x800:0x1400]


def test_zeros_and_holes_take_no_space(tmp_path):
    big = PhysicalMemory([Run(0, 64 << 20, memoryview(bytes(64 << 20))), Run(5 << 30, PAGE, memoryview(pattern(1)))])
    write_raw(tmp_path / "x.raw", big)
    write_crash_dump(tmp_path / "x.dmp", big, HEADER)
    write_elf(tmp_path / "x.elf", big)
    assert (tmp_path / "x.raw").stat().st_size == (5 << 30) + PAGE
    for path in tmp_path.iterdir():
        assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="/proc/self/map_files is root's")
def test_holes_of_a_file_are_not_read(tmp_path):
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        for place in (0, 3 * PAGE, 1 << 30, (8 << 30) - PAGE):
            file.seek(place)
            file.write(pattern(place // PAGE))
    with open_image(path) as image:
        spans = list(data_spans(image.physical, PAGE, (8 << 30) - PAGE))
        assert sum(size for _, size in spans) < 1 << 20
        assert spans[-1][0] + spans[-1][1] == 8 << 30
        write_elf(tmp_path / "x.elf", image.physical)
        with open_image(tmp_path / "x.elf") as core:
            for place in (0, PAGE, 3 * PAGE, 1 << 30, (1 << 30) + PAGE, (8 << 30) - 2 * PAGE, (8 << 30) - PAGE):
                assert core.physical.read(place, PAGE) == image.physical.read(place, PAGE)


def test_registers_survive_in_an_elf_core(tmp_path):
    write_elf(tmp_path / "x.elf", memory([(0, 4)]), [REGISTERS, {"cr3": 0x1AD000}])
    with open_image(tmp_path / "x.elf") as image:
        first, second = image.registers
        assert {name: first[name] for name in REGISTERS} == REGISTERS
        assert second["cr3"] == 0x1AD000
        assert "cr0" not in second  # not known: a processor's CR0 is never 0


def test_the_header_of_a_crash_dump_survives_another_writing(tmp_path):
    header = CrashHeader(0x1AD000, processors=3, registers=REGISTERS, bugcheck=(0xD1, 1, 2, 3, 4)).pack()
    write_crash_dump(tmp_path / "x.dmp", memory([(0, 4), (9, 1)]), header)
    assert coldframe.dump(tmp_path / "x.dmp", tmp_path / "y.dmp") == ()
    assert (tmp_path / "x.dmp").read_bytes() == (tmp_path / "y.dmp").read_bytes()
    with open_image(tmp_path / "y.dmp") as image:
        for name in ("rip", "rsp", "rax", "r15", "eflags", "cs", "ss"):
            assert image.registers[0][name] == REGISTERS[name]


def test_kdmp_parser_reads_the_same(tmp_path):
    kdmp_parser = pytest.importorskip("kdmp_parser", reason="needs the dependency group `outside`")
    for runs in ([(0, 3), (16, 20), (FOUR_GB, 1)], [(3 * number, 1 + number % 2) for number in range(60)]):
        original = memory(runs)
        path = tmp_path / "x.dmp"
        write_crash_dump(path, original, CrashHeader(0x1AD000, registers=REGISTERS).pack())
        theirs = kdmp_parser.KernelDumpParser(path)
        assert theirs.directory_table_base == 0x1AD000
        assert theirs.context.Rip == REGISTERS["rip"]
        pages = [page for first, count in runs for page in range(first, first + count)]
        assert len(theirs.pages) == len(pages)
        for page in pages:
            assert bytes(theirs.read_physical_page(page * PAGE)) == original.read(page * PAGE, PAGE)


def test_memprocfs_reads_the_same(tmp_path):
    """LeechCore is what MemProcFS opens files with; it takes none below 16 MB."""
    pytest.importorskip("memprocfs", reason="needs the dependency group `outside`")
    import leechcorepyc

    original = memory([(0, 3), (16, 5000), (FOUR_GB, 1)])
    write_crash_dump(tmp_path / "x.dmp", original, HEADER)
    write_elf(tmp_path / "x.elf", original)
    for path in (tmp_path / "x.dmp", tmp_path / "x.elf"):
        theirs = leechcorepyc.LeechCore(f"file://{path}")
        for run in original.runs:
            for start in range(run.start, run.end, 97 * PAGE):
                assert theirs.read(start, PAGE) == original.read(start, PAGE)
        theirs.close()


LIMITED = """
import resource, sys
from coldframe.cli.main import run
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
sys.exit(run(sys.argv[1:]))
"""


def test_a_full_disk_leaves_nothing_and_says_one_line(tmp_path):
    (tmp_path / "image").write_bytes(b"x" * (1 << 20))
    (tmp_path / "out.elf").write_bytes(b"what was there before")
    words = ["dump", str(tmp_path / "image"), "-o", str(tmp_path / "out.elf")]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"coldframe: cannot write {tmp_path}/out.elf: ")
    assert {path.name for path in tmp_path.iterdir()} == {"image", "out.elf"}
    assert (tmp_path / "out.elf").read_bytes() == b"what was there before"


def test_an_exception_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_raw(tmp_path / "x.raw", memory([(0, 4)]), interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_from_nothing_to_all(tmp_path):
    told = []
    write_raw(tmp_path / "x.raw", memory([(0, 3000), (9000, 4)]), lambda done, total: told.append((done, total)))
    assert told[-1] == (3004 * PAGE, 3004 * PAGE)
    assert told == sorted(told)


@pytest.mark.parametrize("place", ["missing/x.raw", "folder", "device"])
def test_a_place_that_cannot_be_written(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to(os.devnull)
    with pytest.raises(OutputError, match="cannot write"):
        write_raw(tmp_path / place, memory([(0, 1)]))


@pytest.mark.parametrize(
    ("name", "given_format", "expected"),
    [
        ("a.RAW", None, "raw"),
        ("a.vmem", None, "raw"),
        ("a.core", None, "elf"),
        ("a.dmp", None, "dmp"),
        ("a", "elf", "elf"),
    ],
)
def test_the_suffix_tells_the_format(name, given_format, expected):
    assert format_of(Path(name), given_format) == expected


def test_an_unknown_format_is_a_usage_error():
    with pytest.raises(UsageError, match=r"\.dmp"):
        format_of("a.zip")
    with pytest.raises(UsageError, match="raw, elf, dmp"):
        format_of("a.dmp", "zip")


def test_a_crash_dump_without_pages_is_refused_by_its_reader(tmp_path):
    write_crash_dump(tmp_path / "x.dmp", PhysicalMemory([]), HEADER)
    with pytest.raises(FormatError, match="0 memory runs"):
        open_image(tmp_path / "x.dmp")
