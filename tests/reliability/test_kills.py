"""However a tracing coldframe ends, the guest goes on within a second, unharmed, with no breakpoint left.

`COLDFRAME_KILLS` is how many times coldframe is killed; `scripts/soak` has the long run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from coldframe.minint import Minint, start
from coldframe.target import attach
from reliability.tracing import FUNCTION, guardians, start_trace, status, unsound_writes, wait_for_guardian

pytestmark = pytest.mark.minint

KILLS = int(os.environ.get("COLDFRAME_KILLS", "6"))
BATCH = 20  # kills of one guest: its NTFS does not let files grow for ever
BATCHES = range((KILLS + BATCH - 1) // BATCH)
SOON = 1.0  # seconds, as a rule; a machine that is overbooked may starve one of many
PATIENCE = 10.0


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with sound_minint() as machine:
        yield machine


@contextmanager
def sound_minint() -> Iterator[Minint]:
    """A minint of four vCPUs, whose every write is as it must be in the end."""
    with start(vcpus=4, options="PACE=5 THREADS=4") as machine:
        yield machine
        list(machine.new_events())
        assert unsound_writes(machine.events) == []


def goes_on(machine: Minint, process: int, since: float, calls: int = 8) -> float:
    """Seconds from `since` until all is cleaned up after `process`; then the guest must write, and keep running."""
    took = none_since = 0.0
    while not none_since or time.monotonic() - none_since < 0.1:  # one that is being started may be missed once
        assert time.monotonic() - since < PATIENCE, "the guardian is still there"
        if guardians(process):
            none_since = 0.0
        elif not none_since:
            none_since = time.monotonic()
            took = none_since - since
        time.sleep(0.005)
    list(machine.new_events())
    assert status(machine) == "running"
    for _ in range(
        calls
    ):  # eight are two calls of the function by each thread: a breakpoint that is left would stop one
        machine.wait_for("write", timeout=PATIENCE)
        assert status(machine) == "running"
    return took


def nothing_is_left(machine: Minint) -> None:
    """The next attachment finds no breakpoint, and stops at its own alone, though the other function is called too."""
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        old, own = guest.symbol(FUNCTION), guest.symbol("nt!NtDelayExecution")
        assert guest.vm.control._stub.ask(b"z1,%x,1" % old) != b"OK"
        list(machine.new_events())
        with guest.break_on(own):
            stops = [guest.vm.run_until_stop(10) for _ in range(8)]
        assert {(stop.reason, stop.address) for stop in stops if stop} == {("breakpoint", own)}
        assert None not in stops
        machine.wait_for("write", timeout=1)
    assert status(machine) == "running"


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, list[dict[str, object]], list[str]]:
    """Exit status, events (whole lines) and lines of standard error of a trace that ends."""
    try:
        out, err = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    lines = [line for line in out.split(b"\n")[:-1] if line]
    return process.returncode, [json.loads(line) for line in lines], err.decode().splitlines()


def usual_start(machine: Minint) -> float:
    """Seconds that a trace takes from its start to its first event, here and now."""
    began = time.monotonic()
    process = start_trace(machine)
    assert process.stdout is not None
    assert process.stdout.readline()
    took = time.monotonic() - began
    process.kill()
    process.communicate()
    goes_on(machine, process.pid, time.monotonic())
    return took


@pytest.mark.soak
@pytest.mark.parametrize("batch", BATCHES)
def test_kills_at_random_moments(batch: int, record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(batch)
    took: list[float] = []
    reached: Counter[str] = Counter()
    with sound_minint() as machine:
        usual = usual_start(machine)
        for number in range(min(BATCH, KILLS - batch * BATCH)):
            process = start_trace(machine)
            if number % 2:  # while it pauses the guest, finds the kernel, sets the breakpoint, traces its first hits
                wait_for_guardian(process)
                time.sleep(chance.uniform(0, 0.2))
            else:
                time.sleep(chance.uniform(0, 1.5 * usual))
            list(machine.new_events())
            process.kill()
            killed = time.monotonic()
            returncode, events, said = end_of(process)
            assert returncode == -signal.SIGKILL
            reached["tracing" if events else "attached" if said or number % 2 else "before"] += 1
            took.append(goes_on(machine, process.pid, killed))
            nothing_is_left(machine)
        list(machine.new_events())
        record_property("reached", dict(reached))
        record_property("writes of the guest", sum(event.get("event") == "write" for event in machine.events))
    tell(took, record_property)


def tell(took: list[float], record_property: Callable[[str, object], None]) -> None:
    """Put into the report how soon everything was cleaned up and the guest ran on; as a rule it must be soon."""
    assert statistics.median(took) < SOON
    record_property("kills", len(took))
    record_property("cleaned up after", f"median {statistics.median(took):.3f} s, at most {max(took):.3f} s")


@pytest.mark.soak
@pytest.mark.parametrize("batch", BATCHES)
def test_kills_while_attaching(batch: int, record_property: Callable[[str, object], None]) -> None:
    """Forked, so that each is quick and every moment of attaching and of letting go is hit."""
    chance = random.Random(batch)
    took = []
    with sound_minint() as machine:

        def look() -> None:
            with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest, guest.break_on(FUNCTION) as hits:
                assert hits.wait(10)

        began = time.monotonic()
        look()
        usual = time.monotonic() - began
        for _ in range(2 * min(BATCH, KILLS - batch * BATCH)):
            child = os.fork()
            if not child:
                with suppress(BaseException):
                    look()
                os._exit(0)
            time.sleep(chance.uniform(0, 1.2 * usual))
            list(machine.new_events())
            os.kill(child, signal.SIGKILL)
            killed = time.monotonic()
            os.waitpid(child, 0)
            took.append(goes_on(machine, child, killed, calls=4))
        nothing_is_left(machine)
    tell(took, record_property)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_in_mid_trace(machine: Minint, number: signal.Signals) -> None:
    process = start_trace(machine)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(number)
    sent = time.monotonic()
    returncode, _, said = end_of(process)
    assert json.loads(first)["function"] == FUNCTION
    assert returncode in ((0, 130) if number == signal.SIGINT else (-number, 128 + number))
    assert not [line for line in said if "Traceback" in line or "Error" in line]
    if number == signal.SIGINT:
        assert [line for line in said if "Ctrl-C" in line and "guest runs on" in line]
    goes_on(machine, process.pid, sent)
    nothing_is_left(machine)


@pytest.mark.parametrize("seconds", [0, 0.02, 0.05])
def test_ctrl_c_while_attaching_is_one_line(machine: Minint, seconds: float) -> None:
    process = start_trace(machine)
    wait_for_guardian(process)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    returncode, _, said = end_of(process)
    # exec(), with which Python makes dataclasses, lets CPython end by the signal itself after all was cleaned up
    assert returncode in (0, 130, -signal.SIGINT), said
    assert not [line for line in said if "Traceback" in line], said
    assert len(said) <= 3
    goes_on(machine, process.pid, sent)


def test_a_guest_that_ends_in_mid_trace_is_one_line() -> None:
    with start(vcpus=1) as machine:
        process = start_trace(machine)
        assert process.stdout is not None
        assert process.stdout.readline()
        os.kill(machine.pid, signal.SIGKILL)
        killed = time.monotonic()
        returncode, _, said = end_of(process)
        assert time.monotonic() - killed < 3
        assert returncode == 1
        assert [line for line in said if line.startswith("coldframe: ")] == said[-1:]
        assert "ended" in said[-1] or "gone" in said[-1]
        assert not [line for line in said if "Traceback" in line]
