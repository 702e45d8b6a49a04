"""The verbs on a running minint: what scripts rely on in their JSON, and what a user is told who got a word wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.test_startup import loaded
from coldframe.cli.main import run
from coldframe.minint import Minint, start
from coldframe.qemu.qmp import QmpClient

pytestmark = pytest.mark.minint

PROCESS_FIELDS = {"pid", "ppid", "name", "eprocess", "dtb", "user_dtb", "wow64", "created", "exited"}
PAGE_FIELDS = {"address", "pid", "state", "via", "physical", "pagefile", "subsection", "readable", "source", "reason"}
PAGE_FIELDS |= {"steps"}
EVENT_FIELDS = {"time", "vcpu", "pid", "process", "tid", "function", "arguments", "stack"}


@pytest.fixture(scope="module")
def minint() -> Iterator[Minint]:
    with start(vcpus=2) as machine:
        machine.wait_until_steady()
        yield machine
        machine.wait_for("write", timeout=10.0)  # whatever the tests did, it goes on


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: bytes
    stderr: str


def command(machine: Minint, verb: str, *words: str) -> list[str]:
    return [verb, str(machine.qmp), *words, "-s", str(machine.symbols_folder)]


def process(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "coldframe", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def call(words: list[str]) -> Done:
    """Run the command line in this process, which has loaded everything already."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        status = run(words)
    said = [stream.buffer.getvalue() for stream in (out, err)]  # type: ignore[attr-defined]
    return Done(status, said[0], said[1].decode())


def answer(machine: Minint, verb: str, *words: str) -> object:
    done = call(command(machine, verb, *words, "--json"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", [("ps",), ("pte", "nt!NtWriteFile")])
def test_what_is_told_without_arrays_loads_no_numpy(minint: Minint, tmp_path: Path, words: tuple[str, ...]) -> None:
    status, modules = loaded(tmp_path, *command(minint, *words), "--json")
    assert status == 0
    assert "coldframe.debug.live" in modules
    assert not modules & {"numpy", "cramjam", "rich", "coldframe.windows.sources", "coldframe.windows.store"}


def rows(machine: Minint, verb: str, *words: str) -> list[dict[str, object]]:
    found = answer(machine, verb, *words)
    assert isinstance(found, list)
    return found


def complaint(words: list[str], status: int = 1) -> str:
    """The only line that the call ends with."""
    done = call(words)
    assert done.returncode == status, done.stderr
    assert not done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("coldframe: ")
    return lines[0]


@pytest.fixture(scope="module")
def pids(minint: Minint) -> dict[str, str]:
    return {str(row["name"]): str(row["pid"]) for row in rows(minint, "ps")}


def test_the_processes(minint: Minint) -> None:
    listed = rows(minint, "ps")
    assert all(set(row) == PROCESS_FIELDS for row in listed)
    assert {"System", "smss.exe", "csrss.exe", "services.exe", "notepad.exe"} <= {row["name"] for row in listed}


def test_info_tells_the_machine_and_how_its_memory_is_read(minint: Minint) -> None:
    facts = answer(minint, "info")
    assert isinstance(facts, dict)
    machine = facts["machine"]
    assert (machine["accelerator"], machine["vcpus"], machine["was_running"]) == ("tcg", 2, True)
    assert machine["memory_path"].startswith("mmap of ")
    assert machine["memory_refused"] == []
    assert facts["build"] == 19041


def test_structures_are_shown_by_members_of_members_and_refused_where_nothing_is(minint: Minint) -> None:
    system = "poi(nt!PsInitialSystemProcess)"
    shown = answer(minint, "dt", "_EPROCESS", system, "Pcb.DirectoryTableBase", "UniqueProcessId")
    whole = answer(minint, "dt", "_EPROCESS", system, "-r", "1")
    assert isinstance(shown, dict) and isinstance(whole, dict)
    assert [field["name"] for field in shown["fields"]] == ["Pcb.DirectoryTableBase", "UniqueProcessId"]
    pcb = next(field for field in whole["fields"] if field["name"] == "Pcb")
    inner = next(field for field in pcb["fields"] if field["name"] == "DirectoryTableBase")
    assert shown["fields"][0] == inner | {"name": "Pcb.DirectoryTableBase"}
    for words, said in (
        (("0xffffffffffffffff",), "nothing of the structure"),
        (("0",), "nothing of the structure"),
        ((system, "Pcb.DirectoryTable"), "did you mean DirectoryTableBase"),
    ):
        assert said in complaint(command(minint, "dt", "_EPROCESS", *words))
    assert "did you mean svchost.exe, services.exe, smss.exe?" in complaint(
        command(minint, "trace", "NtWriteFile", "-P", "svchos.exe")
    )


@pytest.mark.parametrize("closed", ["", "stdout", "stderr"])
def test_nobody_needs_to_listen(minint: Minint, closed: str) -> None:
    words = [sys.executable, "-m", "coldframe", *command(minint, "trace", "NtWriteFile", "--limit", "1")]
    redirected = {"": ">&- 2>&-", "stdout": ">&-", "stderr": "2>&-"}[closed]
    line = ["sh", "-c", f'"$@" {redirected}', "sh", *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_has_the_fields_that_scripts_rely_on(minint: Minint) -> None:
    page = answer(minint, "pte", "NtWriteFile")
    assert isinstance(page, dict)
    assert set(page) == PAGE_FIELDS
    assert (page["state"], page["readable"]) == ("valid", True)
    assert [set(step) for step in page["steps"]] == [{"level", "entry_address", "value", "says"}] * 4


def test_what_is_piped_out_of_read_is_the_bytes(minint: Minint, pids: dict[str, str], tmp_path: Path) -> None:
    words = command(minint, "read", "ntdll!NtWriteFile", "16", "--pid", pids["notepad.exe"])
    piped = call(words).stdout
    assert piped.startswith(bytes.fromhex("4c8bd1")) or piped.startswith(bytes.fromhex("4989ca"))  # mov r10, rcx
    assert len(piped) == 16
    copy = tmp_path / "bytes"
    assert call([*words, "-o", str(copy)]).returncode == 0
    assert copy.read_bytes() == piped


def test_a_trace_is_one_object_a_line(minint: Minint) -> None:
    words = command(minint, "trace", "NtWriteFile", "NtDelayExecution", "--process", "notepad.exe", "--limit", "8")
    done = call([*words, "--json"])
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(events) == 8
    assert all(set(event) == EVENT_FIELDS for event in events)
    assert {event["function"] for event in events} <= {"nt!NtWriteFile", "nt!NtDelayExecution"}
    assert "ntdll!RtlUserThreadStart" in events[0]["stack"][-1]


def test_ctrl_c_ends_a_trace_and_the_guest_goes_on(minint: Minint) -> None:
    words = command(minint, "trace", "NtWriteFile", "--process", "notepad.exe")
    with process(words) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline().startswith("nt!NtWriteFile")
        tracer.send_signal(signal.SIGINT)
        _, said = tracer.communicate(timeout=20)
    assert tracer.returncode == 0, said
    assert "the guest runs on" in said
    list(minint.new_events())
    minint.wait_for("write", timeout=10.0)


def test_two_at_once_are_one_too_many(minint: Minint) -> None:
    words = command(minint, "trace", "NtWriteFile", "--process", "notepad.exe")
    with process(words) as tracer:
        assert tracer.stdout is not None
        tracer.stdout.readline()
        assert "another client holds it" in complaint(command(minint, "ps"))
        tracer.terminate()
        tracer.communicate(timeout=20)
    assert tracer.returncode == 128 + signal.SIGTERM
    list(minint.new_events())
    minint.wait_for("write", timeout=10.0)


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("trace", ["NtWritFile"], "did you mean NtWriteFile"),
        ("trace", ["ntdll!NtWriteFile"], "needs its process"),
        ("trace", ["NtWriteFile", "-P", "notepa.exe"], "did you mean notepad.exe"),
        ("pte", ["nt!NtWritFile"], "did you mean NtWriteFile"),
        ("modules", ["--pid", "9999"], "(notepad.exe)"),
        ("stack", ["--tid", "9999"], "(notepad.exe)"),
        ("stack", ["--vcpu", "7"], "the guest has 2"),
        ("read", ["0x1000", "16", "--pid", "4"], "0x1000"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(minint: Minint, verb: str, words: list[str], said: str) -> None:
    assert said in complaint(command(minint, verb, *words))


def test_an_unmapped_address_is_explained_not_refused(minint: Minint, pids: dict[str, str]) -> None:
    page = answer(minint, "pte", "0x12345000", "--pid", pids["notepad.exe"])
    assert isinstance(page, dict)
    assert (page["state"], page["readable"]) == ("unmapped", False)
    assert "VAD" in page["reason"]


@pytest.mark.parametrize("kept", [0, 40, 4096, 100_000])
def test_a_kernel_pdb_that_is_cut_short(minint: Minint, tmp_path: Path, kept: int) -> None:
    (tmp_path / "ntkrnlmp.pdb").write_bytes((minint.symbols_folder / "ntkrnlmp.pdb").read_bytes()[:kept])
    words = [*command(minint, "ps")[:-1], str(tmp_path)]
    assert "ntkrnlmp.pdb" in complaint(words)


def test_no_symbols_name_what_is_missing_and_where_it_was_looked_for(minint: Minint, tmp_path: Path) -> None:
    line = complaint([*command(minint, "ps")[:-1], str(tmp_path)])
    assert all(word in line for word in ("ntkrnlmp.pdb", "GUID", "age 1", str(tmp_path)))


def test_the_machine_may_end_in_mid_trace() -> None:
    with start(vcpus=1) as machine:
        words = command(machine, "trace", "NtWriteFile")
        with process(words) as tracer:
            assert tracer.stdout is not None
            tracer.stdout.readline()
            os.kill(machine.pid, signal.SIGKILL)
            began = time.monotonic()
            _, said = tracer.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert tracer.returncode == 1
    assert said.splitlines()[-1].startswith("coldframe: ")
    assert "Traceback" not in said


def test_the_guest_runs_after_all_that(minint: Minint) -> None:
    monitor = QmpClient.connect(minint.qmp)
    status = monitor.execute("query-status")
    monitor.close()
    assert isinstance(status, dict)
    assert status["status"] == "running"
