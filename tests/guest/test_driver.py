"""minint's ndis.sys is a driver as Windows has them: mapped from its file, listed, unloaded and loaded again."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from coldframe.debug import LiveGuest
from coldframe.minint import Minint, start
from coldframe.target import attach

pytestmark = pytest.mark.minint

RELOADS = 3


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    """A minint in which packets.exe loads ndis.sys, and after a while unloads and loads it a few times."""
    options = f"NET=3 NETWAIT=3000 NETRELOAD={RELOADS} STATES=0 SERVICES=0 PACE=500"
    with start(vcpus=2, options=options) as running:
        if not any(event.get("event") == "driver" for event in running.events):
            running.wait_for("driver")
        yield running


def attached(machine: Minint) -> LiveGuest:
    return attach(machine.qmp, symbols=[machine.symbols_folder])


def sections(file: bytes) -> dict[str, tuple[int, int, int, int]]:
    """Name -> RVA, size, place in the file, characteristics: by the PE format's description."""
    (header,) = struct.unpack_from("<I", file, 0x3C)
    count, optional = struct.unpack_from("<H", file, header + 6)[0], struct.unpack_from("<H", file, header + 20)[0]
    found = {}
    for at in range(header + 24 + optional, header + 24 + optional + 40 * count, 40):
        name, size, rva, _raw, place = struct.unpack_from("<8sIIII", file, at)
        found[name.rstrip(b"\0").decode()] = rva, size, place, struct.unpack_from("<I", file, at + 36)[0]
    return found


def test_the_image_is_the_file_with_each_sections_own_protection(machine: Minint) -> None:
    file = (machine.built / "system32" / "drivers" / "ndis.sys").read_bytes()
    with attached(machine) as guest:
        module = guest.module("ndis")
        assert module.path == "\\SystemRoot\\System32\\drivers\\ndis.sys"
        for name in (".text", ".pdata"):  # without relocations
            rva, size, place, _ = sections(file)[name]
            assert guest.memory.read(module.base + rva, size) == file[place : place + size]
        for rva, _, _, characteristics in sections(file).values():
            entry = guest.memory.resolve(module.base + rva).steps[-1].value
            assert bool(entry >> 1 & 1) == bool(characteristics & 0x8000_0000)  # R/W
            assert bool(entry >> 63) != bool(characteristics & 0x2000_0000)  # NX
        address = module.symbol("NdisSendNetBufferLists")
        assert guest.symbolize(address) == "ndis!NdisSendNetBufferLists"


def test_every_load_and_unload_is_told_once_and_the_list_follows(machine: Minint) -> None:
    list(machine.new_events())
    first = len(machine.events)
    ours = []
    with attached(machine) as guest, guest.system_events("driver", "driver-unload") as events:
        for _ in range(2 * RELOADS):
            event = events.wait(30)
            assert event is not None
            ours.append((event.kind, event.name, event.base, event.size))
            assert event.process is None
            assert any(module.name == "ndis.sys" for module in guest.drivers)  # still, or already
        assert events.wait(1.0) is None
    machine.wait_for("packet", timeout=20)
    kinds = ("driver", "driver-unload")
    theirs = [event for event in machine.events[first:] if event.get("event") in kinds]
    assert ours == [(event["event"], event["path"], int(event["base"], 16), int(event["size"], 16)) for event in theirs]
    assert [kind for kind, *_ in ours] == ["driver-unload", "driver"] * RELOADS
