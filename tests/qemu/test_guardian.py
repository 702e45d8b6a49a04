"""However coldframe ends, the guest goes on within a second and no breakpoint is left; a paused guest stays paused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coldframe.qemu import VirtualMachine
from qemu.bare import BareGuest, StartsGuests

TRACER = """
import sys
from coldframe.qemu import VirtualMachine
vm = VirtualMachine.attach(sys.argv[1])
points = [int(word, 16) for word in sys.argv[2:]]
vm.pause()
for point in points:
    vm.insert_breakpoint(point)
print("ready", flush=True)
while True:
    vm.run_until_stop()
"""


def tracer(guest: BareGuest, *functions: str, group: bool = False) -> subprocess.Popen[bytes]:
    """A process that counts hits until it is killed; returns when it has begun."""
    addresses = [hex(guest.function(name)) for name in functions]
    process = subprocess.Popen(
        [sys.executable, "-c", TRACER, guest.qmp, *addresses], stdout=subprocess.PIPE, start_new_session=group
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def left_breakpoints(vm: VirtualMachine, *addresses: int) -> list[int]:
    """Which of the addresses QEMU still has a breakpoint at: removing one that is not there is an error."""
    stub = vm.control._stub
    return [address for address in addresses if stub.ask(b"z1,%x,1" % address) == b"OK"]


@pytest.mark.soak
@pytest.mark.parametrize("vcpus", [1, 4])
def test_kills_at_random_moments(start: StartsGuests, vcpus: int) -> None:
    kill_many_times(start(vcpus), int(os.environ.get("COLDFRAME_KILLS", "6")))


def kill_many_times(guest: BareGuest, times: int) -> None:
    guest.pace(100)
    addresses = guest.function("tick"), guest.function("tock")
    chance = random.Random(times)
    for _ in range(times):
        ready, says_ready = os.pipe()
        child = os.fork()  # quicker than a new interpreter
        if not child:
            vm = guest.attach()
            for address in addresses:
                vm.insert_breakpoint(address)
            os.write(says_ready, b".")
            while True:
                vm.run_until_stop()
        os.read(ready, 1)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert guest.goes_on(within=1.0)
        with VirtualMachine.attach(guest.qmp) as vm:
            vm.pause()
            assert left_breakpoints(vm, *addresses) == []
            assert vm.run_until_stop(0.05) is None
        assert guest.goes_on()


def test_a_kill_of_the_process_group_does_not_reach_the_guardian(start: StartsGuests) -> None:
    guest = start(2)
    process = tracer(guest, "tick", group=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert guest.goes_on(within=1.0)


def test_a_kill_between_the_end_of_the_stub_and_the_guests_going_on(start: StartsGuests) -> None:
    guest = start(2)
    script = """
import os, sys, time
from coldframe.qemu import VirtualMachine
vm = VirtualMachine.attach(sys.argv[1])
vm.insert_breakpoint(int(sys.argv[2], 16))
vm.run_until_stop()
ask = vm._monitor.monitor
def die_after(line):
    ask(line)
    time.sleep(0.2)
    os.kill(os.getpid(), 9)
vm._monitor.monitor = die_after
vm.close()
"""
    process = subprocess.Popen([sys.executable, "-c", script, guest.qmp, hex(guest.function("tick"))])
    assert process.wait(30) == -signal.SIGKILL
    assert guest.goes_on(within=1.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_the_guest_running(start: StartsGuests, number: signal.Signals) -> None:
    guest = start(1)
    process = tracer(guest, "tick")
    process.send_signal(number)
    process.wait(10)
    assert guest.goes_on(within=1.0)


def test_a_forked_child_does_not_keep_the_guest_stopped(start: StartsGuests) -> None:
    guest = start(1)
    fork = "import os, time\nif not os.fork(): time.sleep(5); os._exit(0)\n"
    forking = TRACER.replace("print(", fork + "print(")
    process = subprocess.Popen(
        [sys.executable, "-c", forking, guest.qmp, hex(guest.function("tick"))], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    assert guest.goes_on(within=1.0)


def test_a_paused_guest_stays_paused(start: StartsGuests) -> None:
    guest = start(2)
    guest.owner.qmp("stop")
    with guest.attach() as vm:
        assert vm.run_until_stop(0.1) is None
    assert not guest.owner.running
    process = tracer(guest, "tick")
    time.sleep(0.1)
    process.kill()
    process.wait()
    time.sleep(0.5)
    before = guest.ticks
    time.sleep(0.1)
    assert guest.ticks == before
    assert not guest.owner.running
    guest.owner.qmp("cont")
    assert guest.goes_on()


def test_after_the_guardian_was_killed_too_the_next_attachment_cleans_up(start: StartsGuests) -> None:
    guest = start(2)
    process = tracer(guest, "tick")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    process.kill()
    process.wait()
    assert not guest.goes_on(within=0.3)
    with guest.attach() as vm:
        vm.pause()
        assert left_breakpoints(vm, guest.function("tick")) == []
        vm.resume()
        assert guest.goes_on()


def test_an_exception_leaves_the_guest_running(start: StartsGuests) -> None:
    guest = start(2)
    with pytest.raises(ZeroDivisionError), guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        while vm.run_until_stop(10):
            raise ZeroDivisionError
    assert guest.goes_on()


def test_no_process_of_ours_stays(start: StartsGuests) -> None:
    guest = start(1)
    guardians = own_guardians()
    with guest.attach() as vm:
        vm.pause()
        assert len(own_guardians()) == len(guardians) + 1
    assert own_guardians() == guardians
    with guest.attach() as vm:
        vm.pause()
        guest.owner.close()
        deadline = time.monotonic() + 1
        while own_guardians() != guardians:
            assert time.monotonic() < deadline, "the guardian outlives QEMU"
            time.sleep(0.02)
        vm.run_until_stop = None  # type: ignore[method-assign,assignment]
        with pytest.raises(Exception, match="ended"):
            vm.close()


def own_guardians() -> list[str]:
    """Process ids of running guardians that this process started (children; zombies do not count)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [child for child in children if b"guardian" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_attaching_changes_nothing_until_it_must(start: StartsGuests) -> None:
    guest = start(1)
    before = guest.owner.qmp("query-chardev")
    with guest.attach() as vm:
        assert vm.physical.u64(0x202008) == 1
        assert vm.running
        assert own_guardians() == []
    with guest.attach() as vm:
        vm.pause()
    labels = [c["label"] for c in guest.owner.qmp("query-chardev")]  # type: ignore[union-attr,index,call-overload]
    assert "coldframe-gdb" not in labels
    assert isinstance(before, list)
