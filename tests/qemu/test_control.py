"""Every arrival of a vCPU at a breakpoint is reported exactly once, and no vCPU slips past."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter

import pytest

from coldframe.errors import CapabilityError, GuestGoneError, UsageError
from coldframe.qemu import VirtualMachine
from coldframe.qemu.qmp import QmpClient
from qemu.bare import BareGuest, StartsGuests, unfinished


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_hits_are_as_many_as_the_guest_counts(start: StartsGuests, vcpus: int) -> None:
    guest = start(vcpus)
    guest.pace(200)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        vm.pause()
        before = guest.ticks
        seen: Counter[int] = Counter()
        for hit in range(1, 801):
            stop = vm.run_until_stop(20)
            assert stop is not None
            assert (stop.reason, stop.address) == ("breakpoint", guest.function("tick"))
            assert vm.registers(stop.vcpu)["rip"] == stop.address
            assert vm.registers(stop.vcpu)["rdi"] == 0x200000 + 64 * stop.vcpu  # tick's argument tells the vCPU
            seen[stop.vcpu] += 1
            # tick's first instruction counts, and a breakpoint stops before it: the last hit has not been counted yet
            assert guest.ticks - before == hit - 1 - unfinished(vm)
        assert set(seen) == set(range(vcpus))
        per_vcpu = guest.counters(0x200000)
    assert guest.goes_on()
    assert sum(per_vcpu) >= 799


def test_a_hit_costs_one_stop_and_two_writes(start: StartsGuests, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registers are asked for once; what the instruction does goes in the same write that lets the guest run."""
    guest = start(1)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        assert vm.run_until_stop(20) is not None
        packets, writes = vm.control._stub.packets, list[bytes]()
        send = packets.send

        def noted(data: bytes) -> None:
            writes.append(data)
            send(data)

        monkeypatch.setattr(packets, "send", noted)
        hits = 200
        for _ in range(hits):
            assert vm.run_until_stop(20) is not None
            assert vm.registers(0)["rip"] == guest.function("tick")
    asked = [data for data in writes if data.startswith(b"$g#")]
    ran = [data for data in writes if b"$c%x#" % (guest.function("tick") + 4) in data]
    assert len(asked) == len(ran) == hits
    assert not any(b"vCont;s" in data for data in writes)


def test_a_reported_arrival_is_passed_once_though_another_vcpu_stopped_since(start: StartsGuests) -> None:
    guest = start(2)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        vm.pause()
        before = guest.ticks
        for hit in range(1, 101):
            stop = vm.run_until_stop(20)
            assert stop is not None
            assert guest.ticks - before == hit - 1 - unfinished(vm)
            other = 1 - stop.vcpu
            if vm.registers(other)["rip"] != guest.function("tick"):  # else the step would be a call of its own
                assert vm.step(other).vcpu == other
    assert guest.goes_on()


def test_stops_are_not_kept_as_events(start: StartsGuests) -> None:
    """Each hit comes with two events over QMP; the end of the machine must not be lost among them."""
    guest = start(1)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        for _ in range(300):
            assert vm.run_until_stop(20) is not None
        assert vm.qmp("query-status")
        assert isinstance(vm._monitor, QmpClient)
        assert not vm._monitor.events


def test_two_breakpoints_alternate(start: StartsGuests) -> None:
    guest = start(1)
    tick, tock = guest.function("tick"), guest.function("tock")
    with guest.attach() as vm:
        vm.pause()
        vm.insert_breakpoint(tick)
        vm.insert_breakpoint(tock)
        addresses = [stop.address for _ in range(60) if (stop := vm.run_until_stop(20))]
    assert addresses in ([tick, tock] * 30, [tock, tick] * 30)


def test_breakpoints_on_neighbouring_instructions_are_each_hit(start: StartsGuests) -> None:
    guest = start(2)
    tock = guest.function("tock")
    with guest.attach() as vm:
        for offset in (0, 3, 4):  # inc, nop, ret
            vm.insert_breakpoint(tock + offset)
        seen = Counter(stop.address for _ in range(90) if (stop := vm.run_until_stop(20)))
    assert set(seen) == {tock, tock + 3, tock + 4}
    assert max(seen.values()) - min(seen.values()) <= 2


def test_a_repeated_string_instruction_is_hit_once(start: StartsGuests) -> None:
    guest = start(1)
    guest.pace(1)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("repeat"))
        vm.pause()
        before = sum(guest.counters(0x204000))
        for hit in range(1, 11):
            assert vm.run_until_stop(20) is not None
            assert sum(guest.counters(0x204000)) - before == hit


@pytest.mark.parametrize("vcpus", [1, 2])
def test_an_instruction_that_faults_and_runs_again_is_hit_once(start: StartsGuests, vcpus: int) -> None:
    guest = start(vcpus)
    guest.pace(1)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("faulty"))
        vm.pause()
        hits: Counter[int] = Counter()
        calls, faults = guest.counters(0x205000), guest.counters(0x206000)
        for _ in range(20):
            stop = vm.run_until_stop(20)
            assert stop is not None
            hits[stop.vcpu] += 1
        for vcpu in range(vcpus):  # one call may have been under way at the beginning, one is at the end
            assert abs(hits[vcpu] - (guest.counters(0x205000)[vcpu] - calls[vcpu])) <= 2
            assert abs(hits[vcpu] - (guest.counters(0x206000)[vcpu] - faults[vcpu])) <= 2


def test_a_breakpoint_set_twice_goes_with_its_second_removal(start: StartsGuests) -> None:
    guest = start(1)
    with guest.attach() as vm:
        first, second = (vm.insert_breakpoint(guest.function("tick")) for _ in range(2))
        vm.remove_breakpoint(first)
        assert vm.run_until_stop(20) is not None
        vm.remove_breakpoint(second)
        vm.remove_breakpoint(second)
        assert vm.run_until_stop(0.2) is None


def test_the_time_limit_pauses_the_guest(start: StartsGuests) -> None:
    guest = start(2)
    with guest.attach() as vm:
        began = time.monotonic()
        assert vm.run_until_stop(0.2) is None
        assert 0.2 <= time.monotonic() - began < 2
        assert not vm.running
        before = guest.ticks
        time.sleep(0.1)
        assert guest.ticks == before
        vm.resume()
        vm.resume()
        assert vm.running
        assert guest.goes_on()
        vm.pause()
        vm.pause()
        assert not vm.running
    assert guest.goes_on()


def test_a_hit_during_a_free_run_is_reported_later(start: StartsGuests) -> None:
    guest = start(1)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        vm.pause()
        before = guest.ticks
        vm.resume()
        time.sleep(0.2)
        stop = vm.run_until_stop(20)
        assert stop is not None
        assert stop.reason == "breakpoint"
        assert guest.ticks == before


def test_stepping_moves_one_vcpu_alone(start: StartsGuests) -> None:
    guest = start(2)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tock"))
        stop = vm.run_until_stop(20)
        assert stop is not None
        other = 1 - stop.vcpu
        frozen = dict(vm.registers(other))
        assert vm.step(stop.vcpu).reason == "step"
        assert vm.registers(stop.vcpu)["rip"] == guest.function("tock") + 3
        assert vm.step(stop.vcpu).reason == "step"
        assert vm.registers(stop.vcpu)["rip"] == guest.function("tock") + 4
        assert dict(vm.registers(other)) == frozen


def test_a_watchpoint_names_the_data_and_the_vcpu(start: StartsGuests) -> None:
    guest = start(2)
    with guest.attach() as vm:
        watch = vm.insert_breakpoint(0x200040, "write", 8)
        vm.pause()
        for _ in range(20):
            before = guest.counters(0x200000)[1]
            stop = vm.run_until_stop(20)
            assert stop is not None
            assert (stop.vcpu, stop.reason, stop.address) == (1, "watchpoint", 0x200040)
            assert guest.counters(0x200000)[1] == before + 1
            assert vm.registers(1)["rip"] == guest.function("tick") + 4
        vm.remove_breakpoint(watch)
        assert vm.run_until_stop(0.1) is None


def test_written_registers_take_effect(start: StartsGuests) -> None:
    """As when a function is made to return at once: RIP goes to its RET, the counter is not touched."""
    guest = start(1)
    with guest.attach() as vm:
        point = vm.insert_breakpoint(guest.function("tick"))
        assert vm.run_until_stop(20) is not None
        before = guest.ticks
        for _ in range(5):
            vm.write_registers(0, {"rip": guest.function("tick") + 4, "rax": 0x1234})
            assert vm.registers(0)["rax"] == 0x1234
            assert vm.run_until_stop(20) is not None
        assert guest.ticks == before
        vm.remove_breakpoint(point)
    assert guest.goes_on()


def test_registers_agree_with_the_monitor(start: StartsGuests) -> None:
    guest = start(2)
    with guest.attach() as vm:
        vm.pause()
        text = vm.monitor("info registers -a").split("CPU#")
        for vcpu in range(2):
            for name in ("rax", "rsp", "r14", "rip", "cr0", "cr2", "cr3", "cr4", "efer"):
                assert f"{name.upper():<3}={vm.registers(vcpu)[name]:016x}"[-16:].lstrip("0") in text[vcpu + 1], name
        tables = vm.descriptor_tables(1)
        assert (tables.idt_base, tables.idt_limit) == (0x400000, 0x20F)


def test_callers_are_told_before_the_guest_runs(start: StartsGuests) -> None:
    guest = start(1)
    told: list[int] = []
    with guest.attach() as vm:
        vm.pause()
        vm.on_resume(lambda: told.append(guest.ticks))
        vm.resume()
        vm.pause()
        vm.step(0)
    assert len(told) >= 3


def test_ctrl_c_leaves_the_guest_paused_and_everything_set(start: StartsGuests) -> None:
    guest = start(2)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("shutdown"))
        timer = ctrl_c_after(0.3)
        with pytest.raises(KeyboardInterrupt):
            vm.run_until_stop()
        timer.join()
        assert not vm.running
        vm.insert_breakpoint(guest.function("tick"))
        assert vm.run_until_stop(20) is not None
    assert guest.goes_on()


@pytest.mark.parametrize("moment", range(1, 9))
def test_ctrl_c_in_the_middle_of_hits_loses_nothing(start: StartsGuests, moment: int) -> None:
    guest = start(2)
    guest.pace(100)
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        interrupt_while_hitting(guest, vm, 0.02 + 0.0137 * moment)
    assert guest.goes_on()


def ctrl_c_after(seconds: float) -> threading.Timer:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    return timer


def interrupt_while_hitting(guest: BareGuest, vm: VirtualMachine, after: float) -> None:
    vm.pause()
    before, hits = guest.ticks, 0
    with pytest.raises(KeyboardInterrupt):
        timer = ctrl_c_after(after)
        while True:
            if vm.run_until_stop(20) is not None:
                hits += 1
    timer.join()
    vm.pause()
    # one arrival may have been taken in just when the signal came, and not have been handed out
    assert 0 <= guest.ticks - before - hits + 1 + unfinished(vm) <= 2
    base = guest.ticks
    first = vm.run_until_stop(20)
    assert first is not None
    again = guest.ticks - base
    for hit in range(1, 50):
        assert vm.run_until_stop(20) is not None
        assert guest.ticks - base - again == hit - unfinished(vm)


def test_the_end_of_the_machine_in_a_run_is_one_line_at_once(start: StartsGuests) -> None:
    guest = start(2)
    vm = guest.attach()
    vm.insert_breakpoint(guest.function("tick"))
    stop = vm.run_until_stop(20)
    assert stop is not None
    vm.write_registers(stop.vcpu, {"rip": guest.function("shutdown")})
    with pytest.raises(GuestGoneError, match="has ended") as caught:
        for _ in range(1000):
            vm.run_until_stop(20)
    assert "\n" not in str(caught.value)
    with pytest.raises(GuestGoneError):
        vm.close()


def test_a_killed_qemu_ends_a_run_at_once(start: StartsGuests) -> None:
    guest = start(1)
    vm = guest.attach()
    vm.pause()
    timer = threading.Timer(0.2, guest.owner.close)
    timer.start()
    began = time.monotonic()
    with pytest.raises(GuestGoneError):
        vm.run_until_stop()
    assert time.monotonic() - began < 2
    timer.join()
    with pytest.raises(GuestGoneError):
        vm.close()


def test_wrong_words_are_told(start: StartsGuests) -> None:
    guest = start(1)
    with guest.attach() as vm:
        vm.pause()
        with pytest.raises(UsageError, match="no vCPU 7"):
            vm.registers(7)
        with pytest.raises(UsageError, match="no register 'foo'"):
            vm.write_registers(0, {"foo": 1})
        with pytest.raises(UsageError, match="no kind of breakpoint 'soft'"):
            vm.insert_breakpoint(0, "soft")
        vm.resume()
        with pytest.raises(UsageError, match="pause"):
            vm.registers(0)
        with pytest.raises(UsageError, match="pause"):
            vm.step(0)
    with pytest.raises(CapabilityError, match="detached"):
        vm.pause()
    with (
        VirtualMachine.attach(guest.qmp, breakpoints=False) as vm,
        pytest.raises(CapabilityError, match="memory alone"),
    ):
        vm.pause()


def test_ctrl_c_before_qemu_has_answered_leaves_no_breakpoint(start: StartsGuests) -> None:
    """QEMU has taken the breakpoint by then, though nobody was told so."""
    guest = start(1)
    vm = guest.attach()
    vm.pause()
    packets = vm.control._stub.packets
    receive = packets.receive

    def interrupted(timeout: float | None) -> bytes | None:
        packets.receive = receive  # type: ignore[method-assign]
        raise KeyboardInterrupt

    packets.receive = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        vm.insert_breakpoint(guest.function("tick"))
    vm.close()
    assert guest.goes_on()
