"""The verbs on triage dumps: built from real kernels' types, and cut out of a minint that really runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import coldframe
from builder import kernel, kernel_files
from builder.windows import BuiltProcess, BuiltThread, WindowsBuilder
from coldframe.cli.main import run
from coldframe.debug import vcpu_callstack
from coldframe.errors import CapabilityError, ColdframeError, SymbolFileNotFoundError, UnreadableMemoryError
from coldframe.minint import start
from coldframe.windows import Guest
from coldframe.windows.triageguest import TriageGuest
from images.minidumps import MiniDump

KERNELS = kernel_files()
PAGE = 4096
DRIVER = ("ntfs.sys", 0xFFFFF803_40000000, 0x200000)
STACK = 0xFFFF8000_0BAD0A10


@dataclass
class Scene:
    """A built guest, and the triage dump that its crash would leave."""

    image: WindowsBuilder
    process: BuiltProcess
    thread: BuiltThread
    path: Path
    dump: MiniDump

    def write(self, folder: Path, *, wide: bool = True, **changes: object) -> Path:
        (folder / "mini.dmp").write_bytes(replace(self.dump, **changes).pack(wide=wide))
        return folder / "mini.dmp"


def scene(path: Path) -> Scene:
    image = WindowsBuilder(kernel(path))
    process = image.add_process("notepad.exe", 812, 4)
    thread = image.add_thread(process, 1204)
    types, symbols = image.types, image.symbol_file.symbols
    copies = {
        "prcb": bytearray(types.size("_KPRCB")),
        "process": bytearray(image.read(process.address, types.size("_EPROCESS"))),
        "thread": bytearray(image.read(thread.address, types.size("_ETHREAD"))),
    }
    for copy, kind, field, value in (
        ("prcb", "_KPRCB", "CurrentThread", thread.address.to_bytes(8, "little")),
        ("process", "_EPROCESS", "Pcb.Header.Type", b"\x03"),
        ("thread", "_ETHREAD", "Tcb.Header.Type", b"\x06"),
    ):
        at = types.offset(kind, field)
        copies[copy][at : at + len(value)] = value
    inside = image.base + symbols["NtWriteFile"] + 0x10
    stack = bytearray(0x400)
    stack[0x40:0x48] = inside.to_bytes(8, "little")
    stack[0x80:0x88] = (DRIVER[1] + 0x12345).to_bytes(8, "little")
    stack[0xC0:0xC8] = (DRIVER[1] + 0x123).to_bytes(8, "little")  # in its headers: no code
    dump = MiniDump(
        blocks=[
            (0xFFFFA884_88000120, b"block zero" * 20),
            (inside - 8, b"\x90" * 3 + b"\xe8" + bytes(4) + b"\x90" * 48),
        ],
        stack=(STACK, bytes(stack)),
        drivers=[("ntoskrnl.exe", image.base, image.size), DRIVER],
        copies={name: bytes(copy) for name, copy in copies.items()},
        registers={"rip": inside, "rsp": STACK + 0x20},
        loaded_modules=image.base + symbols["PsLoadedModuleList"],
        active_processes=image.base + symbols["PsActiveProcessHead"],
    )
    return Scene(image, process, thread, path, dump)


def wide_kernels() -> list[Path]:
    return [path for path in KERNELS if kernel(path).types.pointer_size == 8]


@pytest.fixture(scope="module", params=[0, -1], ids=["first", "last"])
def built(request: pytest.FixtureRequest) -> Scene:
    found = wide_kernels()
    if not found:
        pytest.skip("no kernel types: ../shared/symbols is absent")
    return scene(found[request.param])


def opened(path: Path, *symbols: Path) -> TriageGuest:
    guest = coldframe.open(path, symbols=symbols)
    assert isinstance(guest, TriageGuest)
    return guest


def test_the_crashed_process_and_thread_are_read_from_their_copies(built, tmp_path):
    with opened(built.write(tmp_path), built.path) as guest:
        (process,) = guest.processes
        assert (process.pid, process.name, process.dtb) == (812, "notepad.exe", built.process.dtb)
        assert process.eprocess.address == built.process.address
        (thread,) = process.threads
        assert (thread.tid, thread.ethread.address) == (1204, built.thread.address)
        assert guest.facts()["process"] == {"pid": 812, "name": "notepad.exe"}
        assert guest.warnings == []
        for what in ("vads", "modules", "handles"):
            with pytest.raises(CapabilityError, match="triage dump"):
                getattr(process, what)


def test_bytes_are_read_as_far_as_blocks_reach(built, tmp_path):
    with opened(built.write(tmp_path), built.path) as guest:
        start, data = built.dump.blocks[0]
        assert guest.memory.read(start, len(data)) == data
        page = guest.memory.resolve(start + 3)
        assert page.readable
        assert page.physical is None
        assert "block" in page.steps[-1].says
        with pytest.raises(UnreadableMemoryError, match="no page table for this address") as caught:
            guest.memory.read(start, len(data) + 8)
        assert caught.value.address == start + len(data)
        padded, holes = guest.memory.read_padded(start - 8, len(data) + 16)
        assert padded == bytes(8) + data + bytes(8)
        assert holes == [(start - 8, 8), (start + len(data), 8)]


def test_page_tables_are_explained_where_blocks_hold_the_self_map(built, tmp_path):
    """The address of a PTE by the rule of kd's !pte: base + 8 * page number."""
    base, target = 0xFFFFB300_00000000, 0xFFFFA884_99999000
    known = built.image.symbol_file.symbols.get("MmPteBase")
    blocks = list(built.dump.blocks)
    if known is None:
        base = 0xFFFFF680_00000000
    else:
        blocks.append((built.image.base + known, base.to_bytes(8, "little")))
    entry = base + 8 * (target >> 12 & (1 << 36) - 1)
    blocks.append((entry, (0x12345863).to_bytes(8, "little") + bytes(8) + (0x80).to_bytes(8, "little")))
    with opened(built.write(tmp_path, blocks=blocks), built.path) as guest:
        page = guest.memory.resolve(target + 8)
        assert (page.state, page.readable) == ("valid", False)
        assert (page.steps[0].level, page.steps[0].entry_address, page.steps[0].value) == ("PTE", entry, 0x12345863)
        assert "12345 is not in a triage dump" in page.reason
        assert guest.memory.resolve(target + PAGE).reason.startswith("nothing is mapped")
        assert guest.memory.resolve(target + 2 * PAGE).state == "demand-zero"


def test_each_frame_of_the_stack_says_how_it_was_found(built, tmp_path):
    with opened(built.write(tmp_path), built.path) as guest:
        first, second, third = vcpu_callstack(guest, 0)
        assert str(first).startswith("nt!NtWriteFile")
        assert "missing page" in first.how
        assert (second.address, third.address) == (built.dump.registers["rip"], DRIVER[1] + 0x12345)
        assert str(third) == "ntfs+0x12345"
        assert second.stack_pointer == STACK + 0x48
        assert "behind a call" in second.how
        assert "no block holds its code" in third.how
    for frame in (second, third):
        assert frame.how.startswith("scan: found at")
        assert "stale" in frame.how


def test_symbols_that_put_the_kernels_lists_elsewhere_are_refused(built, tmp_path):
    path = built.write(tmp_path, active_processes=built.dump.active_processes + 8)
    with opened(path, built.path) as guest:
        assert any("PsActiveProcessHead at" in warning for warning in guest.warnings)
        assert [driver.name for driver in guest.drivers] == ["ntoskrnl.exe", "ntfs.sys"]
        start, data = built.dump.blocks[0]
        assert guest.memory.read(start, len(data)) == data
        assert "scan" in vcpu_callstack(guest, 0)[-1].how
        with pytest.raises(CapabilityError):
            _ = guest.processes
        with pytest.raises(SymbolFileNotFoundError, match="--symbols FILE"):
            guest.symbol("NtWriteFile")


def test_a_dump_of_32_bits_has_its_drivers_and_blocks(tmp_path):
    dump = MiniDump(
        blocks=[(0x8B001230, b"thirty-two bits!")],
        stack=(0x8A000000, b"\0" * 64 + (0x82812345).to_bytes(4, "little") + bytes(60)),
        drivers=[("ntkrnlpa.exe", 0x82800000, 0x400000), ("hal.dll", 0x82700000, 0x30000)],
        registers={"rip": 0x82834567, "rsp": 0x8A000010},
        loaded_modules=0x82970850,
        active_processes=0x82967CC8,
    )
    (tmp_path / "mini.dmp").write_bytes(dump.pack(wide=False))
    with opened(tmp_path / "mini.dmp") as guest:
        assert [(driver.name, driver.base, driver.size) for driver in guest.drivers] == dump.drivers
        assert guest.memory.read(0x8B001230, 16) == b"thirty-two bits!"
        assert guest.facts()["dump"]["bits"] == 32
        assert guest.facts()["bugcheck"] == {"code": "0xd1", "parameters": ["0x1", "0x2", "0x3", "0x4"]}
        first, second = vcpu_callstack(guest, 0)
        assert (str(first), str(second)) == ("nt+0x34567", "nt+0x12345")


@pytest.mark.parametrize("verb", ["info", "ps", "threads", "drivers", "stack", "pte", "read"])
def test_the_verbs_take_a_triage_dump(built, tmp_path, capfdbinary, verb):
    start, data = built.dump.blocks[0]
    words = {
        "stack": ["--vcpu", "0"],
        "pte": [hex(start)],
        "read": [hex(start), str(len(data))],
    }.get(verb, [])
    status = run([verb, str(built.write(tmp_path)), *words, "--json", "-s", str(built.path)])
    out = capfdbinary.readouterr().out
    assert status == 0
    told = json.loads(out)
    if verb == "drivers":
        assert [row["name"] for row in told] == ["ntoskrnl.exe", "ntfs.sys"]
    if verb == "read":
        assert bytes.fromhex(told["data"]) == data


@pytest.mark.parametrize(
    "words",
    [["vads"], ["modules"], ["handles", "--pid", "812"], ["census"], ["ps", "--all"], ["dump", "-o", "OUT.raw"]],
    ids=lambda words: words[0],
)
def test_other_verbs_say_what_a_triage_dump_lacks(built, tmp_path, capfd, words):
    path = built.write(tmp_path)
    given = [str(tmp_path / word) if word.startswith("OUT") else word for word in words[1:]]
    assert run([words[0], str(path), *given, "-s", str(built.path)]) == 1
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "triage" in said[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.tuples(st.integers(0, 0x80), st.sampled_from([0, 1, 0xFF, 0x7F, 0x20])), max_size=6),
    junk=st.lists(st.tuples(st.integers(0, 0x9000), st.binary(min_size=1, max_size=8)), max_size=6),
    cut=st.integers(0x1000, 0x9000) | st.none(),
)
def test_any_damage_ends_in_an_answer_or_in_one_line(built, tmp_path, damage, junk, cut):
    data = bytearray(built.dump.pack())
    for offset, byte in damage:
        data[0x2000 + offset : 0x2002 + offset] = bytes([byte]) * 2
    for offset, some in junk:
        data[0x2080 + offset : 0x2080 + offset + len(some)] = some
    (tmp_path / "x.dmp").write_bytes(bytes(data[:cut]))
    try:
        guest = coldframe.open(tmp_path / "x.dmp", symbols=[built.path])
    except ColdframeError as error:
        assert "\n" not in str(error)
        return
    for ask in (
        guest.facts,
        lambda: [process.name for process in guest.processes],
        lambda: [driver.pdb for driver in guest.drivers],
        lambda: vcpu_callstack(guest, 0),
        lambda: guest.memory.resolve(0xFFFFA884_88000120),
    ):
        try:
            ask()
        except ColdframeError as error:
            assert "\n" not in str(error)


@pytest.mark.minint
def test_the_stack_is_unwound_where_blocks_hold_the_kernels_unwind_data(tmp_path):
    """A vCPU of a real minint that is in the kernel: the dump's stack is that of the whole memory."""
    with start(vcpus=1, memory="256M") as machine:
        with (
            coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as live,
            live.break_on("NtWriteFile") as writes,
        ):
            next(iter(writes))
            expected, dump = vcpu_callstack(live, 0), _crash(live)
            running = live.current_process(live.registers(0), 0).pid
        (tmp_path / "mini.dmp").write_bytes(dump.pack())
        with opened(tmp_path / "mini.dmp", machine.symbols_folder) as guest:
            assert guest.warnings == []
            assert guest.facts()["kernel"]["found_by"] == "the dump's driver list and its CodeView record"
            kernel_frames = [str(frame) for frame in expected if not frame.user]
            frames = vcpu_callstack(guest, 0)
            assert [str(frame) for frame in frames[: len(kernel_frames)]] == kernel_frames
            assert not frames[0].how.startswith("scan")
            assert [process.pid for process in guest.processes] == [running]


def _crash(live: Guest) -> MiniDump:
    """What a crash at this moment would write, with the whole kernel image in a block."""
    registers = live.registers(0)
    thread = live.current_thread(registers, 0)
    types = live.types
    prcb = bytearray(types.size("_KPRCB"))
    at = types.offset("_KPRCB", "CurrentThread")
    prcb[at : at + 8] = thread.ethread.address.to_bytes(8, "little")
    low, _, high = thread.kernel_stack
    stack = max(low, registers["rsp"] & ~7)
    return MiniDump(
        blocks=[(live.kernel.base, live.memory.read_padded(live.kernel.base, live.kernel.size)[0])],
        stack=(stack, live.memory.read(stack, high - stack)),
        drivers=[(driver.name or "nt", driver.base, driver.size) for driver in live.drivers],
        copies={
            "prcb": bytes(prcb),
            "process": live.memory.read(thread.process.eprocess.address, types.size("_EPROCESS")),
            "thread": live.memory.read(thread.ethread.address, types.size("_ETHREAD")),
        },
        registers=registers,
        loaded_modules=live.symbol("PsLoadedModuleList"),
        active_processes=live.symbol("PsActiveProcessHead"),
    )
