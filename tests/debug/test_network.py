"""Every frame that passes NDIS is told once, as the guest's own log tells it, and tshark reads what was kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coldframe.cli.main import run
from coldframe.debug import LiveGuest
from coldframe.errors import NotFoundError, UnreadableMemoryError
from coldframe.minint import Minint, start
from coldframe.target import attach
from coldframe.trace import NetworkTracer
from coldframe.trace.netbuffers import LARGEST_FRAME, NetBuffers
from coldframe.trace.network import comment
from coldframe.trace.pcapng import PcapngWriter

Packet = tuple[object, ...]

OPTIONS = "NET=100000 NETPACE=10 STATES=0 SERVICES=1 PACE=500"
READY = "packet"
"""packets.exe sends one frame after another, through every form of MDL chain."""


def told(event: dict[str, object]) -> Packet:
    data = bytes.fromhex(str(event["data"]))
    assert len(data) == event["size"]
    return event["kind"], event["pid"], event["tid"], event["size"], hashlib.sha256(data).hexdigest()


def logged(machine: Minint, direction: str) -> list[Packet]:
    list(machine.new_events())
    found = [event for event in machine.events if event.get("event") == "packet" and event["direction"] == direction]
    return [(direction, event["pid"], event["tid"], event["size"], event["sha256"]) for event in found]


def assert_runs_of_the_log(ours: list[Packet], machine: Minint) -> None:
    """Each way, `ours` is what the log has somewhere: none lost in between, none twice, in the same order."""
    for direction in ("send", "receive"):
        frames = [one for one in ours if one[0] == direction]
        assert frames
        deadline = time.monotonic() + 20
        while frames[-1] not in (theirs := logged(machine, direction)):  # the last were told before they were logged
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first = theirs.index(frames[0])
        assert theirs[first : first + len(frames)] == frames


@pytest.mark.minint
def test_a_breakpoint_in_ndis_shows_the_structures_that_it_is_given(guest: LiveGuest) -> None:
    hit = guest.run_to("ndis!NdisSendNetBufferLists", timeout=20)
    assert hit is not None
    assert hit.process.name == "packets.exe"
    sent = guest.module("ndis").struct("_NET_BUFFER_LIST", hit.args[1])
    tracer = NetworkTracer(guest)
    frames = list(tracer.buffers.frames(hit.memory, sent.address))
    assert sent.FirstNetBuffer.struct().DataLength == frames[0].size
    assert "FirstNetBuffer" in repr(sent)


@pytest.mark.minint
def test_frames_are_those_of_the_guests_log_and_tshark_reads_as_many(machine: Minint, tmp_path: Path) -> None:
    capture = tmp_path / "capture.pcapng"
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        tracer = NetworkTracer(guest, save=capture)
        events = list(tracer.events(limit=80, duration=60))
        summary = tracer.summary()
        assert not guest.active
    assert_runs_of_the_log([told(event) for event in events], machine)
    sent = [event for event in events if event["kind"] == "send"]
    assert len(events) == 80
    assert {event["pieces"] for event in sent} >= {1, 2, 3, 4, 5}
    for event in sent:
        assert event["process"] == "packets.exe"
        assert event["stack"][0] == "ndis!NdisSendNetBufferLists"
        assert any(frame.startswith("packets!PktSend+") for frame in event["stack"])
    assert summary["layout"] == "ndis.sys"
    assert summary["sent"] == {"packets": len(sent), "bytes": sum(event["size"] for event in sent)}
    assert summary["incomplete"] == summary["broken_chains"] == 0
    assert read_pcapng(capture) == [bytes.fromhex(event["data"]) for event in events]
    for event, row in zip(events, tshark(capture, "frame.len", "frame.comment", "frame.packet_flags"), strict=True):
        assert int(row[0]) == event["size"]
        assert row[1].replace("\\n", "\n") == comment(event)
        assert int(row[2], 16) == (2 if event["kind"] == "send" else 1)


@pytest.mark.minint
def test_without_its_pdb_ndis_is_read_by_the_public_layout(machine: Minint, tmp_path: Path) -> None:
    for name in ("ntkrnlmp.pdb", "ntdll.pdb"):
        shutil.copy(machine.symbols_folder / name, tmp_path)
    with attach(machine.qmp, symbols=[tmp_path]) as guest:
        tracer = NetworkTracer(guest)
        frames = [told(event) for event in tracer.events(limit=30, duration=60)]
        assert tracer.summary()["layout"] == "ndis.h"
    assert_runs_of_the_log(frames, machine)


@pytest.mark.minint
def test_chains_that_a_hostile_guest_makes_end_and_say_what_is_missing(guest: LiveGuest) -> None:
    hit = guest.run_to("ndis!NdisSendNetBufferLists", timeout=60)
    assert hit is not None
    ndis = guest.module("ndis")
    buffers, lists, memory = NetBuffers(guest, ndis), hit.args[1], hit.memory
    types, mdl_types = ndis.symbols.types, guest.types
    buffer = memory.u64(lists + types.offset("_NET_BUFFER_LIST", "FirstNetBuffer"))
    mdl = memory.u64(buffer + types.offset("_NET_BUFFER", "CurrentMdl"))
    whole = list(buffers.frames(memory, lists))

    def changed(address: int, value: int, size: int = 8) -> Callable[[], None]:
        before = memory.read(address, size)
        memory.write(address, value.to_bytes(size, "little"))
        return lambda: memory.write(address, before)

    def field(record: str, name: str) -> int:
        start = {"_NET_BUFFER_LIST": lists, "_NET_BUFFER": buffer, "_MDL": mdl}[record]
        return start + (mdl_types if record == "_MDL" else types).offset(record, name)

    restore = changed(field("_NET_BUFFER", "Next"), buffer)  # bites its tail
    assert len(list(buffers.frames(memory, lists))) <= len(whole)
    restore()
    restore = changed(field("_NET_BUFFER", "DataLength"), 0xFFFF_FFFF, 4)
    endless = next(buffers.frames(memory, lists))
    restore()
    assert (endless.size, len(endless.data)) == (0xFFFF_FFFF, LARGEST_FRAME)
    assert endless.missing[-1].reason == "its MDLs end before its data does"
    assert endless.data.startswith(whole[0].data)
    restores = [
        changed(field("_MDL", "MdlFlags"), 1, 2),
        changed(field("_MDL", "MappedSystemVa"), 0xFFFF_F700_0000_0000),
    ]
    absent = next(buffers.frames(memory, lists))
    for restore in restores:
        restore()
    assert absent.missing
    assert absent.missing[0].reason
    assert absent.data[absent.missing[0].offset :][: absent.missing[0].size].count(0) == absent.missing[0].size
    restores = [changed(field("_MDL", "MdlFlags"), 2, 2), changed(mdl + mdl_types.size("_MDL"), (1 << 64) - 1)]
    nowhere = next(buffers.frames(memory, lists))
    for restore in restores:
        restore()
    assert nowhere.missing
    assert nowhere.missing[0].offset == 0
    restore = changed(field("_NET_BUFFER", "CurrentMdl"), 0xFFFF_F700_0000_0000)
    lost = next(buffers.frames(memory, lists))
    restore()
    assert [(part.offset, part.size) for part in lost.missing] == [(0, lost.size)]
    restore = changed(field("_NET_BUFFER_LIST", "FirstNetBuffer"), (1 << 64) - 8)
    with pytest.raises(UnreadableMemoryError):
        list(buffers.frames(memory, lists))
    restore()
    assert list(buffers.frames(memory, lists)) == whole


@pytest.mark.minint
def test_the_command_keeps_the_packets_of_one_process(
    machine: Minint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", str(machine.qmp), "network", "-s", str(machine.symbols_folder), "--limit", "6"]
    kept = tmp_path / "kept.pcapng"
    assert run([*words, "--process", "packets.exe", "-o", str(kept), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["kind"] for line in lines[:-1]} == {"send"}
    assert lines[-1]["summary"]["packets"] == len(read_pcapng(kept)) == 6
    assert run([*words, "--if", "vcpu >= 0"]) == 0
    printed = capsys.readouterr().out
    assert "send  packets.exe (" in printed
    assert "broken_chains 0" in printed
    assert run(["trace", str(machine.qmp), "NtReadFile", "-o", str(kept)]) == 2
    assert run([*words, "-o", str(tmp_path / "no" / "such.pcapng")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.minint
def test_a_guest_without_ndis_is_told_so() -> None:
    with (
        start(vcpus=1, options="STATES=0 SERVICES=0") as plain,
        attach(plain.qmp, symbols=[plain.symbols_folder]) as guest,
        pytest.raises(NotFoundError, match="ndis"),
    ):
        NetworkTracer(guest)


def test_a_capture_keeps_cut_frames_long_comments_and_times(tmp_path: Path) -> None:
    path = tmp_path / "made.pcapng"
    with PcapngWriter(path) as writer:
        writer.put(b"\x02" * 61, 1700000000.25, "send", comment="ä" * 40_000)
        writer.put(b"\x02" * 64, 1700000001.0, "receive", size=9000)
        writer.put(b"", 0.0, "receive")
    assert writer.packets == 3
    assert [len(frame) for frame in read_pcapng(path)] == [61, 64, 0]
    rows = tshark(path, "frame.len", "frame.cap_len", "frame.time_epoch", "frame.comment")
    assert [row[:2] for row in rows] == [["61", "61"], ["9000", "64"], ["0", "0"]]
    assert float(rows[0][2]) == 1700000000.25
    assert set(rows[0][3]) == {"ä"}


def read_pcapng(path: Path) -> list[bytes]:
    """The frames of a capture, by the format's description alone: blocks that tell their length twice."""
    data, at, frames = path.read_bytes(), 0, []
    assert data[:4] == b"\x0a\x0d\x0d\x0a"
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0
        assert data[at + length - 4 : at + length] == struct.pack("<I", length)
        if kind == 6:
            (captured,) = struct.unpack_from("<I", data, at + 20)
            frames.append(data[at + 28 : at + 28 + captured])
        at += length
    return frames


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """What Wireshark's own reader says of each packet."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed: ./scripts/setup installs it")
    wanted = [word for name in fields for word in ("-e", name)]
    words = ["tshark", "-n", "-r", str(path), "-T", "fields", *wanted]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]
