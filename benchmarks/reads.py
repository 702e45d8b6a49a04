"""Reads a second through each way to a running guest's RAM, side by side: mmap, process_vm_readv, the gdbstub.

The guest, a minint, stands still. Physical: at random addresses of its RAM. Virtual: at random pages of the kernel's
image, through the page tables, translations known (again) and not (first). Bulk: one large read, in MB a second.

Run: `.venv/bin/python benchmarks/reads.py [--rounds N] [--seconds S]`
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from coldframe.debug import LiveGuest
from coldframe.minint import Minint, start
from coldframe.paging import AddressSpace
from coldframe.qemu import VirtualMachine
from coldframe.target import symbol_store

WAYS = {"mmap": "mmap", "process": "process_vm_readv", "monitor": "gdbstub"}
PAGE = 4096
MB = 1 << 20
BULK = {"mmap": 64 * MB, "process": 64 * MB, "monitor": MB}


def rate(read: Callable[[int], object], addresses: list[int], seconds: float) -> float:
    """How often a second `read` is done, going round `addresses`."""
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for address in addresses[count % len(addresses) :][:64]:
            read(address)
            count += 1
    return count / took


def measure(machine: Minint, way: str, seconds: float) -> dict[str, float]:
    """Every figure of one way, in one attachment."""
    vm = VirtualMachine.attach(machine.qmp, ram_access=way)
    guest = LiveGuest.of_machine(vm, symbol_store([machine.symbols_folder]))
    try:
        chance = random.Random(1)
        physical = vm.physical
        ram = max(physical.runs, key=lambda run: run.size)
        scattered = [ram.start + chance.randrange(0, ram.size - PAGE) & ~7 for _ in range(1024)]
        base = guest.kernel.base
        pages = [at for at in range(base, base + guest.kernel.size, PAGE) if guest.memory.translate(at) is not None]
        image = [chance.choice(pages) + chance.randrange(0, PAGE, 8) for _ in range(1024)]
        fresh = AddressSpace(guest.resolver, guest.dtb)

        def first(address: int) -> bytes:
            guest.resolver.drop_caches()
            return fresh.read(address, 8)

        size = BULK[way]
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            physical.read(ram.start, size)
            done += size
        bulk = done / MB / (time.perf_counter() - began)
        return {
            "physical, 8 bytes": rate(lambda at: physical.read(at, 8), scattered, seconds),
            "physical, 4 KB": rate(lambda at: physical.read(at & ~0xFFF, PAGE), scattered, seconds),
            "virtual, 8 bytes, again": rate(lambda at: guest.memory.read(at, 8), image, seconds),
            "virtual, 8 bytes, first": rate(first, image, seconds),
            "virtual, 4 KB, again": rate(lambda at: guest.memory.read(at & ~0xFFF, PAGE), image, seconds),
            "physical, bulk, MB/s": bulk,
        }
    finally:
        guest.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = {}
    with start(vcpus=1, options="PACE=500") as machine:
        for _ in range(options.rounds):
            for way in WAYS:
                for name, value in measure(machine, way, options.seconds).items():
                    figures.setdefault(name, {}).setdefault(way, []).append(value)
    print(f"a second; median of {options.rounds} rounds of {options.seconds:g} s; in brackets: times the gdbstub's")
    print(f"{'':<26}" + "".join(f"{name:>26}" for name in WAYS.values()))
    for name, ways in figures.items():
        medians = {way: statistics.median(values) for way, values in ways.items()}
        cells = (f"{value:,.0f} ({value / medians['monitor']:,.1f})" for value in medians.values())
        print(f"{name:<26}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
