"""However a boot that is watched is left, in whichever phase: the guest boots on, with no breakpoint set.

`COLDFRAME_BOOT_KILLS` is how many boots are left in each way; `scripts/soak` has the long run.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from coldframe.minint import Minint
from coldframe.target import attach
from reliability.tracing import guardians, status, unsound_writes
from resident.steering import coldframe, paused

pytestmark = pytest.mark.minint

KILLS = int(os.environ.get("COLDFRAME_BOOT_KILLS", "1"))
PHASES = {
    "firmware": None,
    "kernel": re.compile(rb"the NT kernel starts"),
    "system": re.compile(rb"the System process is there"),
    "smss": re.compile(rb"smss\.exe runs"),
    "paging file": re.compile(rb"prevented:"),
    "csrss": re.compile(rb"csrss\.exe runs"),
}


@contextmanager
def booting(machine: Minint, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The real `coldframe boot` on a machine before its first instruction."""
    process = subprocess.Popen(
        coldframe("boot", machine.qmp, "--symbols", machine.symbols_folder, "--settle", "60", *words),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a shell's child may ignore it
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_phase(process: subprocess.Popen[bytes], pattern: re.Pattern[bytes] | None) -> None:
    assert process.stderr is not None
    if pattern is None:
        while not guardians(process.pid):
            assert process.poll() is None
            time.sleep(0.002)
        return
    for line in process.stderr:
        if pattern.search(line):
            return
    raise AssertionError(f"coldframe never said {pattern.pattern!r}")


@pytest.mark.soak
@pytest.mark.timeout(120 + 60 * KILLS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_the_guest_boots_on(number: signal.Signals, record_property: Callable[[str, object], None]) -> None:
    """Every phase once each way, and KILLS - 1 times more at random moments of it."""
    chance = random.Random(number)
    phases = list(PHASES) if KILLS > 1 else {signal.SIGINT: ["system", "paging file"]}.get(number, ["firmware", "smss"])
    took = []
    for phase in phases:
        for attempt in range(KILLS):
            with paused("PAGEFILES=3", vcpus=chance.choice([1, 2, 4])) as machine, booting(machine) as process:
                wait_for_phase(process, PHASES[phase])
                time.sleep(chance.random() * 0.1 if attempt else 0)
                process.send_signal(number)
                began = time.monotonic()
                process.communicate(timeout=30)
                while guardians(process.pid):
                    assert time.monotonic() - began < 10, "the guardian is still there"
                    time.sleep(0.005)
                took.append(time.monotonic() - began)
                assert process.returncode == (-number if number == signal.SIGKILL else 130), phase
                machine.wait_for("write", timeout=30)
                assert status(machine) == "running", phase
                with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
                    assert guest.vm.run_until_stop(0.2) is None, f"{phase}: a breakpoint is left"
                list(machine.new_events())
                assert unsound_writes(machine.events) == [], phase
    record_property("boots left", len(took))
    record_property("cleaned up", f"{max(took):.2f} s at most")


def test_the_machine_may_end_in_mid_boot() -> None:
    with paused() as machine, booting(machine) as process:
        wait_for_phase(process, PHASES["smss"])
        os.kill(machine.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.decode().splitlines()[-1].startswith("coldframe: ")
    assert b"Traceback" not in said
