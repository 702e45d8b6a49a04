"""The ready tracers tell what the guest's own log tells."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.cli.main import run
from coldframe.debug import LiveGuest
from coldframe.minint import Minint, start
from coldframe.target import attach
from coldframe.trace import FileWriteTracer, HeapTracer, ModuleTracer, ProcessTracer, Syscalls
from coldframe.trace.heap import Block, HeapBook
from debug.marks import writes_up_to

pytestmark = pytest.mark.minint

STUB = re.compile(r"(ntdll!Nt\w+)\+0x[0-9a-f]+")

OPTIONS = "PACE=5 THREADS=3 SPAWN=100000 SPAWNPACE=500"


def test_every_system_call_is_named_as_the_stub_of_ntdll_that_made_it(guest: LiveGuest) -> None:
    tracer = Syscalls(guest, "notepad.exe")
    told = list(tracer.events(limit=60))
    for event in told:
        stub = STUB.fullmatch(event["stack"][0])
        assert stub is not None, event["stack"]
        assert stub[1].partition("!")[2] == event["function"].partition("!")[2]
        assert event["process"] == "notepad.exe"
    services = Counter(event["function"] for event in told)
    assert len(services) >= 2
    assert tracer.summary()["services"] == dict(services)
    assert tracer.summary()["failed"] == sum(int(event["result"], 16) >> 31 for event in told)
    assert not guest.active


def test_system_calls_carry_the_arguments_that_the_service_itself_gets(guest: LiveGuest) -> None:
    thread = guest.run_to("nt!NtWriteFile", "notepad.exe").thread
    tracer = Syscalls(guest, "notepad.exe", condition=lambda hit: hit.thread == thread)
    by_calls = [event["arguments"] for event in tracer.events(limit=12) if event["function"] == "nt!NtWriteFile"]
    assert by_calls
    for arguments in by_calls:
        assert arguments["FileHandle"]["type"] == "File"
        assert arguments["Buffer"]["size"] == arguments["Length"]
        assert len(arguments["Buffer"]["data"]) == 2 * arguments["Length"]


def test_files_are_put_together_as_the_guest_wrote_them(machine: Minint, tmp_path: Path) -> None:
    list(machine.new_events())
    first = len(machine.events)
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        tracer = FileWriteTracer(guest, "notepad.exe", save=tmp_path)
        told = list(tracer.events(limit=30))
    last = {event["tid"]: event["arguments"]["ByteOffset"]["value"] for event in told}
    logged = {(write.offset, write.length, write.sha256) for write in writes_up_to(machine, first, last.items())}
    for event in told:
        arguments = event["arguments"]
        data = bytes.fromhex(arguments["Buffer"]["data"])
        offset = arguments["ByteOffset"]["value"]
        assert (offset, len(data), hashlib.sha256(data).hexdigest()) in logged
        with Path(event["saved"]).open("rb") as saved:
            saved.seek(offset)
            assert saved.read(len(data)) == data
    summary = tracer.summary()
    assert summary["writes"] == 30
    assert summary["incomplete"] == 0
    assert sum(file["writes"] for file in summary["files"].values()) == 30
    assert {path.parent for path in map(Path, {event["saved"] for event in told})} == {tmp_path}


def test_the_command_line_ends_a_tracer_with_its_summary(
    machine: Minint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", str(machine.qmp), "files", "-P", "notepad.exe", "-s", str(machine.symbols_folder)]
    assert run([*words, "--limit", "4", "--save", str(tmp_path / "written"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5
    assert lines[-1]["summary"]["writes"] == 4
    assert run(["trace", str(machine.qmp), "files", "NtReadFile"]) == 2
    assert run(["trace", str(machine.qmp), "NtReadFile", "--save", str(tmp_path)]) == 2
    assert run(["trace", str(machine.qmp), "syscalls", "--results"]) == 2


@pytest.fixture(scope="module")
def ledger() -> Iterator[Minint]:
    """A minint in which ledger.exe begins its six rounds after a while, and says what it loses and frees twice."""
    with start(vcpus=2, options="LEDGER=6 LEDGERWAIT=4000 STATES=0") as running:
        yield running


def test_the_leaks_and_double_frees_that_the_program_admits_are_found_and_no_others(ledger: Minint) -> None:
    with attach(ledger.qmp, symbols=[ledger.symbols_folder]) as guest:
        tracer = HeapTracer(guest, "ledger.exe")
        told = list(tracer.events(limit=60 * 6))
        assert not guest.active
    while not any(event.get("text") == "ledger closed" for event in ledger.events):
        ledger.wait_for("note", timeout=20)
    notes = [str(event["text"]).split() for event in ledger.events if event.get("event") == "note"]
    leaked = sorted(int(words[2], 16) for words in notes if words[:2] == ["ledger", "leak"])
    twice = sorted(int(words[2], 16) for words in notes if words[:2] == ["ledger", "double"])
    summary = tracer.summary()
    assert sorted(int(at, 16) for kept in summary["kept"] for at in kept["addresses"]) == leaked
    assert sorted(int(found["address"], 16) for found in summary["double_frees"]) == twice
    assert len(leaked) == len(twice) == 6
    assert all("ledger!LgForget" in kept["stack"][1] for kept in summary["kept"])
    for found in summary["double_frees"]:
        assert "ledger!LgStrikeTwice" in found["stack"][1]
        assert "ledger!LgStrikeTwice" in found["freed_by"][1]
    kinds = Counter(event["kind"] for event in told)
    assert (kinds["allocate"], kinds["reallocate"], kinds["free"]) == (26 * 6, 8 * 6, 26 * 6)
    assert summary["allocations"] == kinds["allocate"]


def test_a_heaps_book_forgives_what_is_older_than_the_trace_and_reuse() -> None:
    book = HeapBook()
    assert book.free(0x1000, ("a",)) == "unknown"
    assert book.free(0x1000, ("a",)) == "unknown"
    book.allocated(0x2000, Block(16, ("b",)))
    assert book.free(0x2000, ("c",)) == "freed"
    book.allocated(0x2000, Block(32, ("d",)))
    assert book.free(0x2000, ("e",)) == "freed"
    assert book.free(0x2000, ("f",)) == "double free"
    assert book.double_frees == [{"address": "0x2000", "stack": ["f"], "freed_by": ["e"]}]
    book.allocated(0, Block(1 << 40, ("g",)))
    assert book.kept() == []


def test_a_heaps_tracer_ends_with_its_process_and_tells_people_what_it_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with start(vcpus=2, options="LEDGER=1 LEDGERWAIT=2500 STATES=0") as machine:
        words = ["trace", str(machine.qmp), "heap", "-P", "ledger.exe", "-s", str(machine.symbols_folder)]
        assert run([*words, "--duration", "120"]) == 0
        note = machine.wait_for("process-exit", timeout=10)
    assert note["name"] == "ledger.exe"
    printed = capsys.readouterr().out
    assert re.search(r"^allocations 26$", printed, re.MULTILINE)
    assert re.search(r"^kept 1$", printed, re.MULTILINE)
    assert re.search(r"^double_frees 1$", printed, re.MULTILINE)
    assert re.search(r"^allocate +ledger\.exe \(\d+\.\d+\) +address 0x", printed, re.MULTILINE)
    assert "ledger!LgStrikeTwice" in printed


@pytest.fixture
def spawning() -> Iterator[Minint]:
    """A minint in which spawner.exe starts brief.exe three times, after a while."""
    with start(vcpus=2, options="SPAWN=3 SPAWNPACE=15 SPAWNWAIT=3000 STATES=0 SERVICES=1 PACE=500") as running:
        yield running


def test_processes_are_told_with_their_threads_as_the_log_tells_them(spawning: Minint) -> None:
    list(spawning.new_events())
    first = len(spawning.events)
    with attach(spawning.qmp, symbols=[spawning.symbols_folder]) as guest:
        tracer = ProcessTracer(guest, "brief.exe")  # none runs yet
        told = []
        for event in tracer.events(duration=300):  # a starved guest takes its time
            told.append(event)
            if Counter(one["kind"] for one in told)["process-exit"] == 3:
                break
    list(spawning.new_events())
    last = ("process-exit", "brief.exe")  # told before it is logged
    while Counter((event["event"], event.get("name")) for event in spawning.events[first:])[last] < 3:
        spawning.wait_for("process-exit", timeout=20)
    logged = {
        kind: Counter((event["pid"], event.get("tid")) for event in spawning.events[first:] if event["event"] == kind)
        for kind in ("process", "process-exit", "thread", "thread-exit")
    }
    pids = {event["pid"] for event in told}
    for kind, theirs in logged.items():
        ours = Counter((event["pid"], event["tid"]) for event in told if event["kind"] == kind)
        assert ours == Counter({key: count for key, count in theirs.items() if key[0] in pids}), kind
    spawner = next(event["pid"] for event in spawning.events if event.get("name") == "spawner.exe")
    for event in told:
        assert event["process"] == "brief.exe"
        if event["kind"] == "process":
            assert event["ppid"] == event["by"]["pid"] == spawner
        if event["kind"] == "thread-exit":
            assert event["by"]["tid"] == event["tid"]
    summary = tracer.summary()
    assert summary["processes"] == summary["process_exits"] == 3
    assert summary["started"] == {"brief.exe": 3}
    assert json.loads(json.dumps(told)) == told


def test_system_calls_of_a_process_end_with_it_and_modules_are_told_before_they_run(
    spawning: Minint, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["-s", str(spawning.symbols_folder)]
    words = ["trace", str(spawning.qmp), "modules", "-P", "brief.exe", *common, "--limit", "2", "--json"]
    assert run(words) == 0
    *images, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {image["name"] for image in images} == {"brief.exe", "ntdll.dll"}
    assert last["summary"]["images"] == 2
    list(spawning.new_events())
    logged = {
        (int(event["base"], 16), int(event["size"], 16)) for event in spawning.events if event.get("event") == "image"
    }
    assert {(int(image["base"], 16), image["size"]) for image in images} <= logged
    with attach(spawning.qmp, symbols=[spawning.symbols_folder]) as guest:
        process = guest.process(images[-1]["pid"])
        tracer = Syscalls(guest, process)
        assert list(tracer.events(duration=60))
        assert not guest.active
    assert run(["trace", str(spawning.qmp), "processes", "--if", "vcpu == 0", *common]) == 2


def test_a_process_that_starts_later_is_followed_from_its_beginning(
    machine: Minint, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", str(machine.qmp), "-s", str(machine.symbols_folder), "-P", "brief.exe", "--wait", "--json"]
    assert run([*words, "ntdll!NtTerminateProcess", "--limit", "1", "--duration", "60"]) == 0
    (called,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (called["process"], called["function"]) == ("brief.exe", "ntdll!NtTerminateProcess")
    assert run([*words, "syscalls", "--duration", "60"]) == 0
    *told, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({event["pid"] for event in told}) == 1
    assert told[0]["pid"] > called["pid"]
    assert "nt!NtCreateThreadEx" in last["summary"]["services"]  # made by its first thread
    assert run([*words, "NtClose", "-P", "nobody.exe", "--duration", "0.2"]) == 1
    assert "none has started within 0.2 s" in capsys.readouterr().err
    assert run([*words, "processes"]) == 2
    assert run([*words, "NtClose", "-P", "4"]) == 2


def test_drivers_that_go_and_come_are_told_as_the_log_tells_them() -> None:
    with start(vcpus=2, options="NET=2 NETWAIT=3000 NETRELOAD=2 STATES=0 SERVICES=0 PACE=500") as machine:
        if not any(event.get("event") == "driver" for event in machine.events):
            machine.wait_for("driver", timeout=60)
        list(machine.new_events())
        first = len(machine.events)
        with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
            tracer = ModuleTracer(guest)
            told = list(tracer.events(limit=4, duration=60))
        machine.wait_for("packet", timeout=20)
    logged = [event for event in machine.events[first:] if event.get("event") in ("driver", "driver-unload")]
    assert [(event["kind"], event["path"], event["base"]) for event in told] == [
        (event["event"], event["path"], event["base"]) for event in logged
    ]
    assert all(event["pid"] is None and event["by"]["process"] == "packets.exe" for event in told)
    assert tracer.summary()["files"] == {"ndis.sys": 4}
    assert (tracer.summary()["drivers"], tracer.summary()["driver_unloads"]) == (2, 2)
