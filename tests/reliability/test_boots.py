"""minint boots every time, and coldframe finds its way about in it every time; `COLDFRAME_BOOTS` is how often."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable

import pytest

from coldframe.minint import start
from coldframe.target import attach
from coldframe.trace import trace
from reliability.tracing import unsound_writes

pytestmark = pytest.mark.minint

BOOTS = int(os.environ.get("COLDFRAME_BOOTS", "2"))


@pytest.mark.soak
@pytest.mark.timeout(60 + 60 * BOOTS)
def test_every_boot_can_be_looked_into(record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(BOOTS)
    booted, attached = [], []
    for number in range(BOOTS):
        words = {
            "layout": chance.choice(["19041", "22000"]),
            "vcpus": chance.choice([1, 2, 4]),
            "kva_shadow": number % 2,
        }
        began = time.monotonic()
        with start(**words) as machine:  # type: ignore[arg-type]
            booted.append(time.monotonic() - began)
            began = time.monotonic()
            with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
                names = {process.name for process in guest.processes}
                attached.append(time.monotonic() - began)
                assert {"System", "smss.exe", "csrss.exe", "services.exe", "notepad.exe"} <= names, words
                for told in trace(guest, "NtWriteFile", process="notepad.exe", limit=3):
                    assert "notepad!EditorThread" in {frame.partition("+")[0] for frame in told["stack"]}, words
            list(machine.new_events())
            machine.wait_for("write", timeout=10)
            assert unsound_writes(machine.events) == []
    record_property("boots", BOOTS)
    record_property("start to first write", f"median {statistics.median(booted):.2f} s, at most {max(booted):.2f} s")
    record_property("attach and list", f"median {statistics.median(attached):.3f} s, at most {max(attached):.3f} s")
