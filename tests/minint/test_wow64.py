"""editor32.exe writes what it shall, in 32-bit code, on the layouts that have no _EWOW64PROCESS too."""

from __future__ import annotations

import re

import pytest

from coldframe.minint import Minint, start
from coldframe.minint.machine import read_file

pytestmark = pytest.mark.minint

WRITES = 12
OPTIONS = f"STATES=0 SERVICES=0 WOW64=2 WOW64WRITES={WRITES} WOW64PACE=1"
HEADING = re.compile(rb"\[wow-(\d) #(\d+)\] ")


@pytest.fixture(scope="module", params=[("7601", 1, True), ("9600", 2, False)], ids=["7601-shadow", "9600"])
def machine(request):
    layout, vcpus, shadow = request.param
    with start(layout=layout, vcpus=vcpus, kva_shadow=shadow, options=OPTIONS) as started:
        while sum(is_last_word(event) for event in started.events) < 2:
            started.wait_for("note", timeout=60)
        yield started


def is_last_word(event) -> bool:
    return event.get("event") == "note" and "wrote" in str(event.get("text"))


def logged_writes(machine: Minint, number: int) -> list:
    """The writes to the document of the editor's thread `number`."""
    name = f"wow-{number}.txt"
    return [e for e in machine.events if e.get("event") == "write" and str(e["file"]).endswith(name)]


def test_each_thread_writes_its_document(machine):
    machine.control("stop")  # QEMU writes the disk out
    for number in (0, 1):
        document = read_file(machine.disk, rf"\Users\minint\Documents\wow-{number}.txt")
        writes = logged_writes(machine, number)
        assert [int(write["offset"]) for write in writes] == [found.start() for found in HEADING.finditer(document)]
        assert HEADING.findall(document) == [(b"%d" % number, b"%06d" % count) for count in range(WRITES)]
        assert len(document) == sum(int(write["length"]) for write in writes)
    machine.control("cont")
    assert not [event for event in machine.events if event.get("event") == "exception"]
