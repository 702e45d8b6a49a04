"""`handles`, `objects` and `ps --all` on the dump of a minint: their JSON, and what they choose."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest

from coldframe.cli.main import run
from coldframe.minint import start

pytestmark = pytest.mark.minint

PROCESS_FIELDS = ["pid", "ppid", "name", "eprocess", "dtb", "user_dtb", "wow64", "created", "exited"]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The words that name a minint's dump and its symbols."""
    path = tmp_path_factory.mktemp("handles") / "memory.elf"
    with start(vcpus=1, memory="256M") as machine:
        machine.wait_until_steady()
        while len({event["tid"] for event in machine.events if event.get("event") == "write"}) < 3:
            machine.wait_for("write")  # a thread may write before its creator has its handle
        machine.control("stop")
        machine.control("dump-guest-memory", paging=False, protocol=f"file:{path}")
        symbols = machine.symbols_folder
    yield [str(path), "--symbols", str(symbols)]
    path.unlink()


def coldframe(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run(list(words))
    return status, out.getvalue(), err.getvalue()


def rows(*words: str) -> list[dict[str, object]]:
    status, out, err = coldframe(*words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert isinstance(found, list)
    return found


def test_handles_are_chosen_by_type_and_by_process(dump: list[str]) -> None:
    everything = rows("handles", *dump)
    assert list(everything[0]) == ["pid", "process", "handle", "object", "type", "access", "name", "path"]
    files = rows("handles", *dump, "--type", "file")
    assert files == [row for row in everything if row["type"] == "File"]
    assert all(str(row["name"]).startswith("\\Users\\minint\\Documents\\") for row in files)
    assert all(row["path"] == f"\\Device\\HarddiskVolume1{row['name']}" for row in files)
    pid = files[-1]["pid"]
    assert rows("handles", *dump, "--pid", str(pid)) == [row for row in everything if row["pid"] == pid]
    threads = [row for row in everything if row["type"] == "Thread" and row["process"] == "notepad.exe"]
    assert threads
    assert all(str(row["name"]).endswith(f"of notepad.exe ({row['pid']})") for row in threads)


def test_objects_are_listed_below_a_path(dump: list[str]) -> None:
    everything = rows("objects", *dump)
    assert list(everything[0]) == ["path", "type", "object", "target"]
    below = rows("objects", *dump, "--path", "\\Device")
    assert below == [row for row in everything if str(row["path"]).startswith("\\Device\\")]
    status, out, err = coldframe("objects", *dump, "--path", "\\Devices")
    assert (status, out) == (1, "")
    assert "did you mean Device?" in err


def test_ps_has_its_fields_and_with_all_what_found_each(dump: list[str]) -> None:
    plain, everywhere = rows("ps", *dump), rows("ps", *dump, "--all")
    assert all(list(row) == PROCESS_FIELDS for row in plain)
    assert all(list(row) == [*PROCESS_FIELDS, "found_by"] for row in everywhere)
    assert {row["pid"] for row in plain} <= {row["pid"] for row in everywhere}
    lists = "list, cid table, threads, handle tables"
    assert {row["found_by"] for row in everywhere if row["exited"] is None} == {lists}
    scanned = rows("ps", *dump, "--scan")
    assert {row["found_by"] for row in scanned if row["exited"] is None} == {f"{lists}, scan, pool"}


def test_the_table_for_people_has_the_column(dump: list[str]) -> None:
    status, out, _ = coldframe("ps", *dump, "--all")
    assert status == 0
    assert "found_by" in out
    assert "list, cid table" in out


def test_sections_are_what_processes_map_and_hold_open(dump: list[str]) -> None:
    everything = rows("sections", *dump)
    fields = ["control_area", "kind", "size", "views", "flags", "subsections", "objects", "names", "file", "pids"]
    assert list(everything[0]) == fields
    views = rows("vads", *dump)
    assert {row["file"] for row in views} - {None} <= {row["file"] for row in everything}
    (ntdll,) = (row for row in everything if str(row["file"]).endswith("ntdll.dll"))
    assert ntdll["kind"] == "image"
    assert set(ntdll["pids"]) == {row["pid"] for row in views if row["file"] == ntdll["file"]}  # type: ignore[call-overload]
    held = {row["object"] for row in rows("handles", *dump, "--type", "Section")}
    assert held <= {body for row in everything for body in row["objects"]}  # type: ignore[attr-defined]
    notepad = next(row["pid"] for row in rows("ps", *dump) if row["name"] == "notepad.exe")
    own = rows("sections", *dump, "--pid", str(notepad))
    assert {row["control_area"] for row in own} == {
        row["control_area"]
        for row in everything
        if notepad in row["pids"]  # type: ignore[operator]
    }
    status, out, _ = coldframe("sections", *dump)
    assert (status, out.split()[0]) == (0, "control_area")
