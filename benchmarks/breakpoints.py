"""Breakpoint hits a second: coldframe's loops beside the plain one and beside bare stopping and continuing, in one run.

- plain: remove the breakpoint, step, insert it, continue, fetch the registers; each a round trip of its own over a
  blocking socket, as a straightforward gdbstub client does it. `plain, watchful` is the same over coldframe's socket,
  which looks out for an answer before it sleeps.
- machine: `VirtualMachine.run_until_stop` and `registers`.
- bare: the stop at the breakpoint, and `c ADDRESS` that goes on behind what it is on without carrying it out, and
  without looking at registers: what QEMU and the socket allow at best. `bare, data` is a watchpoint's stop and
  `vCont;c`: at a code breakpoint QEMU's TCG throws all translated code away (`tb_flush` in `gdb_vm_state_change`), at
  one on data it does not.
- delivered, other process, condition: `LiveGuest.break_on`, hits that are delivered, hits that the filter by process
  or a condition rejects. They need a Windows guest.

The guest is the tests' bare one, which calls a function without a pause (its first instruction is `lock incq (%rdi)`),
or with `--minint` a minint whose notepad.exe was sent into an endless loop in its kernel (`push rbx; pop rbx; jmp`).
With `--function NAME` the breakpoint is on a function of minint's kernel, while notepad.exe writes without a pause;
there is no bare figure then, and what the guest does between two hits counts too.

Run: `.venv/bin/python benchmarks/breakpoints.py [--minint] [--function NAME] [--accelerator kvm] [--rounds N]`
"""

from __future__ import annotations

import argparse
import select
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from coldframe import attach
from coldframe.debug import LiveGuest
from coldframe.minint import start
from coldframe.qemu import VirtualMachine, VmConfig, launch
from coldframe.qemu.gdbstub import GdbStub
from coldframe.qemu.packets import packet

GUEST = Path(__file__).parent.parent / "tests" / "qemu" / "guest.S"
INCREMENT = 4  # bytes of the bare guest's instruction
LOOP = bytes.fromhex("53 5b eb fc")
PUSH_AND_POP = 2  # bytes of it

Loop = Callable[[float], int]
"""Runs for so many seconds; how many hits it had."""


@dataclass
class Place:
    """A guest by its QMP socket, and where it is broken into.

    `onward` is where it may as well go on from there, or 0; `watched` is data that it writes all the time, or 0.
    """

    qmp: str
    address: int
    onward: int = 0
    watched: int = 0
    symbols: str = ""


def build(folder: Path) -> Path:
    """The tests' bare guest as a flat multiboot image."""
    parts = folder / "guest.o", folder / "guest"
    subprocess.run(["clang", "--target=x86_64-unknown-linux-gnu", "-c", GUEST, "-o", parts[0]], check=True)
    link: list[str | Path] = [
        "ld.lld",
        "--oformat",
        "binary",
        "-Ttext=0x100000",
        "-e",
        "_start",
        "-o",
        parts[1],
        parts[0],
    ]
    subprocess.run(link, check=True)
    return parts[1]


def every(hit: Callable[[], object]) -> Loop:
    """A loop over single hits."""

    def loop(seconds: float) -> int:
        hits, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            hit()
            hits += 1
        return hits

    return loop


class BlockingClient:
    """As few lines as a client needs: one request, then a wait for its answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = b""

    def ask(self, request: bytes) -> bytes:
        """Send a request; the answer, which to `vCont` is the next stop."""
        self._sock.sendall(packet(request))
        while (end := self._received.find(b"#")) < 0 or len(self._received) < end + 3:
            select.select([self._sock], [], [])
            self._received += self._sock.recv(1 << 16)
        answer, self._received = self._received[:end], self._received[end + 3 :]
        return answer.partition(b"$")[2]


class WatchfulClient:
    """The same over coldframe's socket."""

    def __init__(self, stub: GdbStub) -> None:
        self._packets = stub.packets

    def ask(self, request: bytes) -> bytes:
        """As `BlockingClient.ask`."""
        self._packets.send(packet(request))
        answer = self._packets.receive(30)
        assert answer is not None
        return answer


def step_over(client: BlockingClient | WatchfulClient, stub: GdbStub, address: int) -> Loop:
    """The plain loop."""
    point, thread = b"1,%x,1" % address, stub.threads[0].name
    client.ask(b"Z" + point)
    client.ask(b"vCont;c")

    def hit() -> None:
        client.ask(b"z" + point)
        client.ask(b"vCont;s:" + thread)
        client.ask(b"Z" + point)
        client.ask(b"vCont;c")
        client.ask(b"Hg" + thread)
        assert stub.registers_answer(client.ask(b"g"))["rip"] == address

    return every(hit)


def plain(vm: VirtualMachine, place: Place) -> Loop:
    return step_over(BlockingClient(vm.control._stub.packets.socket), vm.control._stub, place.address)


def plain_watchful(vm: VirtualMachine, place: Place) -> Loop:
    return step_over(WatchfulClient(vm.control._stub), vm.control._stub, place.address)


def machine(vm: VirtualMachine, place: Place) -> Loop:
    vm.insert_breakpoint(place.address)

    def hit() -> None:
        stop = vm.run_until_stop()
        assert stop is not None
        assert vm.registers(stop.vcpu)["rip"] == place.address

    return every(hit)


def bare(vm: VirtualMachine, place: Place) -> Loop:
    client, onward = WatchfulClient(vm.control._stub), b"c%x" % place.onward
    client.ask(b"Z1,%x,1" % place.address)
    client.ask(b"vCont;c")
    return every(lambda: client.ask(onward))


def bare_data(vm: VirtualMachine, place: Place) -> Loop:
    client = WatchfulClient(vm.control._stub)
    client.ask(b"Z2,%x,8" % place.watched)
    return every(lambda: client.ask(b"vCont;c"))


def delivered(guest: LiveGuest, place: Place) -> Loop:
    point = guest.break_on(place.address)
    point.insert()
    return every(point.wait)


def other_process(guest: LiveGuest, place: Place) -> Loop:
    return rejected(guest, place, process="csrss.exe")


def condition(guest: LiveGuest, place: Place) -> Loop:
    return rejected(guest, place, condition="args[0] == vcpu + 1")


def rejected(guest: LiveGuest, place: Place, **words: str) -> Loop:
    point = guest.break_on(place.address, **words)  # type: ignore[arg-type]
    point.insert()

    def loop(seconds: float) -> int:
        before = guest.pauses
        assert point.wait(seconds) is None
        return guest.pauses - before

    return loop


BY_MACHINE: Mapping[str, Callable[[VirtualMachine, Place], Loop]] = {
    "plain": plain,
    "plain, watchful": plain_watchful,
    "machine": machine,
    "bare": bare,
    "bare, data": bare_data,
}
BY_GUEST: Mapping[str, Callable[[LiveGuest, Place], Loop]] = {
    "delivered": delivered,
    "other process": other_process,
    "condition": condition,
}


def bare_guest(options: argparse.Namespace, stack: ExitStack) -> Place:
    """The tests' bare guest."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    qmp = f"{folder}/qmp"
    config = VmConfig("64M", options.vcpus, options.accelerator, kernel=str(build(Path(folder))), qmp=qmp)
    owner = stack.enter_context(launch(config))
    while owner.physical.u64(0x202008) != options.vcpus or not owner.physical.u64(0x204000):
        time.sleep(0.1)
    owner.physical.write(0x202000, (20).to_bytes(8, "little"))
    address = owner.physical.u64(0x202010)
    return Place(qmp, address, address + INCREMENT, 0x200000)


def minint(options: argparse.Namespace, stack: ExitStack) -> Place:
    """A minint in an endless loop, in place of a function that is never called; or one that writes."""
    words = {"vcpus": options.vcpus, "accelerator": options.accelerator, "options": "PACE=0 TRIM=0"}
    running = stack.enter_context(start(**words))
    with attach(running.qmp, symbols=[running.symbols_folder]) as guest:
        address, onward = guest.symbol(f"nt!{options.function or 'KeBugCheckEx'}"), 0
        if not options.function:
            hit = guest.run_to("NtWriteFile", "notepad.exe")
            assert hit is not None
            guest.memory[address : address + len(LOOP)] = LOOP
            hit.write_registers({"rip": address})
            onward = address + PUSH_AND_POP
        return Place(str(running.qmp), address, onward, symbols=str(running.symbols_folder))


def measure(name: str, place: Place, seconds: float) -> float:
    """Hits a second of one loop in a guest that is attached to anew, and left as it was."""
    if name in BY_GUEST:
        with attach(place.qmp, symbols=[place.symbols]) as guest:
            return timed(BY_GUEST[name](guest, place), seconds)
    with VirtualMachine.attach(place.qmp) as vm:
        vm.pause()
        try:
            return timed(BY_MACHINE[name](vm, place), seconds)
        finally:
            vm.control._stub.ask_all(b"z1,%x,1" % place.address, b"z2,%x,8" % place.watched)


def timed(loop: Loop, seconds: float) -> float:
    began = time.perf_counter()
    hits = loop(seconds)
    return hits / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--accelerator", default="tcg")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--minint", action="store_true")
    parser.add_argument("--function", default="")
    options = parser.parse_args()
    with ExitStack() as stack:
        place = (minint if options.minint or options.function else bare_guest)(options, stack)
        names = ["plain", "plain, watchful"] if options.vcpus == 1 else []  # they step one vCPU: wrong with several
        names += ["machine", *(BY_GUEST if place.symbols else ())]
        names += ["bare"] * bool(place.onward) + ["bare, data"] * (bool(place.watched) and options.accelerator == "tcg")
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                rates[name].append(measure(name, place, options.seconds))
    guest = options.function or ("minint" if options.minint else "bare guest")
    print(
        f"{guest}, {options.accelerator}, {options.vcpus} vCPU, {options.rounds} rounds of {options.seconds:g} s each"
    )
    print(f"{'hits/s':<16} {'median':>8} {'quartiles':>17}  x plain  of bare")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        low, _, high = statistics.quantiles(values, n=4)
        ratios = [f"{medians[name] / medians[of]:8.2f}" if of in medians else " " * 8 for of in ("plain", "bare")]
        print(f"{name:<16} {medians[name]:8.0f} {low:8.0f} {high:8.0f}  {' '.join(ratios)}".rstrip())


if __name__ == "__main__":
    main()
