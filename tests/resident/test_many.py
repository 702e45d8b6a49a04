"""Boot after boot, none missed: `COLDFRAME_RESIDENT_BOOTS` is how many with each number of vCPUs."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

import coldframe
from coldframe.minint import start
from coldframe.resident import BootOptions, Phase, verify
from resident.steering import MEMORY, steered

pytestmark = pytest.mark.minint

BOOTS = int(os.environ.get("COLDFRAME_RESIDENT_BOOTS", "0"))
LAYOUTS = ("19041", "22000")


@contextmanager
def contended(programs: int) -> Iterator[None]:
    """Programs that want the processors too, so that coldframe and QEMU get their turn late."""
    with ExitStack() as stack:
        for _ in range(programs):
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(hog.wait)
            stack.callback(hog.kill)
        yield


def pages_elsewhere(vcpus: int, layout: str, accelerator: str = "tcg") -> int:
    """How many pages a plain boot leaves in paging files, the store and image files: there must be many."""
    with start(vcpus=vcpus, memory=MEMORY, layout=layout, accelerator=accelerator) as machine:
        machine.wait_until_steady(timeout=120 if accelerator == "tcg" else 600)
        with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
            found = verify(guest)
    assert found.pages.promised > 100
    return found.pages.promised


@pytest.mark.soak
@pytest.mark.timeout(120 + 120 * BOOTS)
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_every_resident_boot_is_one(vcpus: int, record_property: Callable[[str, object], None]) -> None:
    """Layouts, KVA shadow, both ways for images, an idle and a busy host in turn; every page counted, none missing."""
    if not BOOTS and vcpus != 2:
        pytest.skip("only in scripts/soak; the short form is with 2 vCPUs")
    chance = random.Random(vcpus)
    took, pages = [], []
    for number in range(BOOTS or 1):
        way = ("winpe", "device")[number % 2]
        options = BootOptions(way, timeout=120.0, until="notepad.exe", until_timeout=120.0, settle=0.0)  # type: ignore[arg-type]
        words = {"layout": LAYOUTS[number // 2 % 2], "kva_shadow": bool(number % 3 == 2)}
        files = f"PAGEFILES={1 + number % 3} SWAPFILE=4"
        with contended(number % 4), steered(files, boot=options, vcpus=vcpus, **words) as seen:  # type: ignore[arg-type]
            assert seen.report.resident, (number, words, seen.report.problems)
            assert not seen.boot.lost
            assert len(seen.report.prevented) == 2 + number % 3
            phases = {event.phase: event.seconds for event in reversed(seen.told("phase"))}
            took.append(phases[Phase.CSRSS])
            seen.machine.wait_until_steady(timeout=120)
            with coldframe.attach(seen.machine.qmp, symbols=[seen.machine.symbols_folder]) as guest:
                found = verify(guest)
            assert found.pages.promised == 0, (number, words, found.problems)
        if BOOTS:
            pages.append(pages_elsewhere(vcpus, layout=chance.choice(LAYOUTS)))
    _tell(record_property, took, pages)


@pytest.mark.soak
@pytest.mark.kvm
@pytest.mark.timeout(900 * (BOOTS + 1))
@pytest.mark.skipif(not BOOTS, reason="only in scripts/soak: nested KVM without hardware help takes minutes a boot")
@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm")
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_under_kvm(vcpus: int, record_property: Callable[[str, object], None]) -> None:
    """As above, without other programs: a nested KVM that carries the guest's kernel out in software is slow enough."""
    took, pages = [], []
    options = BootOptions(timeout=600.0, until="notepad.exe", until_timeout=600.0, settle=0.0)
    for number in range(BOOTS):
        layout = LAYOUTS[number % 2]
        with steered("PAGEFILES=2", boot=options, vcpus=vcpus, accelerator="kvm", layout=layout) as seen:
            assert seen.report.resident, (number, seen.report.problems)
            assert seen.report.pages.promised == 0
            assert not seen.boot.lost
            took.append({event.phase: event.seconds for event in reversed(seen.told("phase"))}[Phase.CSRSS])
        pages.append(pages_elsewhere(vcpus, layout=layout, accelerator="kvm"))
    _tell(record_property, took, pages)


def _tell(record_property: Callable[[str, object], None], took: list[float], pages: list[int]) -> None:
    record_property("resident boots", len(took))
    if took:
        record_property("missed", 0)
        record_property("start to csrss.exe", f"median {statistics.median(took):.2f} s, at most {max(took):.2f} s")
    if pages:
        record_property("plain boots", f"{len(pages)}, each with {min(pages):,} pages or more elsewhere than in RAM")
