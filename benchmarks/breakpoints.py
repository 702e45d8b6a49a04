"""Breakpoint hits a second: coldframe's loop beside the plain one and beside the bare stop-and-continue, in one run.

- plain: remove the breakpoint, step, insert it, continue, fetch the registers; each a round trip of its own, as a
  straightforward gdbstub client does it.
- coldframe: `VirtualMachine.run_until_stop` and `registers`.
- bare: a watchpoint's stop and `vCont;c`, with no step and no registers: what QEMU and the socket allow at best.

The guest is the tests' bare one, or with `--minint` a minint whose notepad.exe writes without a pause: then the
breakpoint is on a function that its kernel calls for every 64 bytes, and there is no bare figure.

Run: `.venv/bin/python benchmarks/breakpoints.py [--minint] [--vcpus N] [--accelerator kvm] [--rounds N] [--seconds S]`
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from coldframe import attach
from coldframe.minint import start
from coldframe.qemu import VirtualMachine, VmConfig, launch
from coldframe.qemu.gdbstub import GdbStub

GUEST = Path(__file__).parent.parent / "tests" / "qemu" / "guest.S"


def build(folder: Path) -> Path:
    """The tests' bare guest as a flat multiboot image."""
    subprocess.run(["clang", "--target=x86_64-unknown-linux-gnu", "-c", GUEST, "-o", folder / "guest.o"], check=True)
    subprocess.run(
        [
            "ld.lld",
            "--oformat",
            "binary",
            "-Ttext=0x100000",
            "-e",
            "_start",
            "-o",
            folder / "guest",
            folder / "guest.o",
        ],
        check=True,
    )
    return folder / "guest"


def wait_stop(stub: GdbStub) -> int:
    payload = stub.packets.receive(30)
    assert payload is not None
    return stub.stop_reply(payload).vcpu


def plain(vm: VirtualMachine, address: int) -> Callable[[], None]:
    stub = vm.control._stub
    point = b"1,%x,1" % address
    stub.ask(b"Z" + point)
    stub.start()
    wait_stop(stub)

    def hit() -> None:
        stub.ask(b"z" + point)
        stub.start(step=0)
        wait_stop(stub)
        stub.ask(b"Z" + point)
        stub.start()
        wait_stop(stub)
        stub.ask(b"Hg" + stub.threads[0].name)
        stub.registers_answer(stub.ask(b"g"))["rip"]

    return hit


def fast(vm: VirtualMachine, address: int) -> Callable[[], None]:
    vm.insert_breakpoint(address)
    vm.run_until_stop()

    def hit() -> None:
        stop = vm.run_until_stop()
        assert stop is not None
        vm.registers(stop.vcpu)["rip"]

    return hit


def bare(vm: VirtualMachine, watched: int) -> Callable[[], None]:
    stub = vm.control._stub
    stub.ask(b"Z2,%x,8" % watched)

    def hit() -> None:
        stub.start()
        wait_stop(stub)

    return hit


def rate(hit: Callable[[], None], seconds: float) -> float:
    hits, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        hit()
        hits += 1
    return hits / (time.perf_counter() - began)


def bare_guest(options: argparse.Namespace, stack: ExitStack) -> tuple[str, int, int]:
    """The tests' bare guest: its QMP socket, a function that it calls all the time, what it writes all the time."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    qmp = f"{folder}/qmp"
    config = VmConfig("64M", options.vcpus, options.accelerator, kernel=str(build(Path(folder))), qmp=qmp)
    owner = stack.enter_context(launch(config))
    while owner.physical.u64(0x202008) != options.vcpus or not owner.physical.u64(0x204000):
        time.sleep(0.1)
    owner.physical.write(0x202000, (20).to_bytes(8, "little"))
    return qmp, owner.physical.u64(0x202010), 0x200000


def minint(options: argparse.Namespace, stack: ExitStack) -> tuple[str, int, int]:
    """The same of a minint."""
    words = {"vcpus": options.vcpus, "accelerator": options.accelerator, "options": "PACE=0 TRIM=0"}
    machine = stack.enter_context(start(**words))
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        return str(machine.qmp), guest.symbol("nt!RtlpSha256Block"), 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--accelerator", default="tcg")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--minint", action="store_true")
    options = parser.parse_args()
    ways = {"plain": plain, "coldframe": fast, "bare": bare}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        qmp, address, watched = (minint if options.minint else bare_guest)(options, stack)
        for _ in range(options.rounds):
            for name, way in ways.items():
                if (name == "plain" and options.vcpus > 1) or (name == "bare" and not watched):
                    continue  # the plain loop, which steps one vCPU only, is wrong with several
                vm = VirtualMachine.attach(qmp)
                try:
                    vm.pause()
                    rates[name].append(rate(way(vm, watched if name == "bare" else address), options.seconds))
                finally:
                    vm.control._stub.ask_all(b"z1,%x,1" % address, b"z2,%x,8" % watched)
                    vm.close()
    medians = {name: statistics.median(values) for name, values in rates.items() if values}
    guest = "minint" if options.minint else "bare guest"
    rounds = f"median of {options.rounds} rounds of {options.seconds:g} s"
    print(f"{guest}, {options.accelerator}, {options.vcpus} vCPU, {rounds}")
    for name, value in medians.items():
        ratio = f"{value / medians['plain']:5.2f} x plain" if "plain" in medians else ""
        print(f"{name:<10} {value:8.0f} hits/s  {ratio}")


if __name__ == "__main__":
    main()
