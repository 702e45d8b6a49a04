"""What is started, what is refused, what never becomes a Windows; snapshots of the machine that was."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

import coldframe
from coldframe.errors import CapabilityError, GuestGoneError, NotFoundError, UsageError
from coldframe.minint import TruthPage
from coldframe.minint.truth import read_log
from coldframe.qemu import VirtualMachine
from coldframe.qemu.qmp import QmpClient
from coldframe.resident import BootEvent, BootOptions, Machine, Phase, ResidentBoot, boot, booting, restore, verify
from coldframe.resident.machines import start_command, start_disk
from coldframe.resident.watching import BootTimeoutError
from coldframe.symbols import SymbolStore
from coldframe.target import symbol_store
from resident.steering import MEMORY, kernel_words, make_disk, minint_machine
from resident.steering import coldframe as command

pytestmark = pytest.mark.minint


def ended(vm: VirtualMachine) -> None:
    """It is a process of its own: letting go of it would leave it running."""
    with suppress(GuestGoneError):
        vm.qmp("quit")
    with suppress(GuestGoneError):
        vm.close()


def test_a_disk_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a disk image at .*No such file"):
        boot(tmp_path / "none.qcow2", store=SymbolStore())
    (tmp_path / "empty.qcow2").touch()
    with pytest.raises(UsageError, match="found a file of 0 bytes"):
        boot(tmp_path / "empty.qcow2", store=SymbolStore())


def test_a_disk_in_use(tmp_path: Path) -> None:
    disk, built = make_disk(tmp_path)
    first = start_disk(disk, tmp_path / "a.qmp", minint_machine(built))
    try:
        with pytest.raises(CapabilityError, match="is another virtual machine using the disk"):
            start_disk(disk, tmp_path / "b.qmp", minint_machine(built))
    finally:
        ended(first)


def test_words_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no program 'qemu-system-none'"):
        start_command(["qemu-system-none"], tmp_path / "qmp")
    with pytest.raises(UsageError, match="found no such folder"):
        start_command(["qemu-system-x86_64"], tmp_path / "none" / "qmp")
    with pytest.raises(CapabilityError, match="did not start"):
        start_command(["qemu-system-x86_64", "-nonsense"], tmp_path / "qmp")


def test_a_domain_that_is_none() -> None:
    pytest.importorskip("libvirt", reason="the extra libvirt is not installed")
    with pytest.raises((NotFoundError, CapabilityError), match="no-such-domain"):
        boot("no-such-domain", store=SymbolStore())


def test_firmware_without_a_disk_never_becomes_a_kernel(tmp_path: Path) -> None:
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64M", "-accel", "tcg"]
    vm = start_command(words, tmp_path / "qmp")
    try:
        with pytest.raises(BootTimeoutError, match=r"no NT kernel came up in time; vCPU 0 is at .*firmware"):
            ResidentBoot(vm, SymbolStore(), BootOptions(timeout=1.0)).run()
    finally:
        ended(vm)


def test_a_kernel_that_is_no_windows(tmp_path: Path) -> None:
    """minint without the names by which an NT kernel is known: its IDT leads into the upper half, to nothing known."""
    _, built = make_disk(tmp_path)
    image = (built / "ntoskrnl.exe").read_bytes()
    for name in (b"ntkrnlmp.pdb", b"ntoskrnl.exe", b"PsInitialSystemProcess", b"NtBuildNumber"):
        image = image.replace(name, b"x" * len(name))
    (tmp_path / "ntoskrnl.exe").write_bytes(image)
    (tmp_path / "loader.elf").symlink_to(built / "loader.elf")
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "128M", "-accel", "tcg", "-cpu", "max"]
    vm = start_command([*words, *kernel_words(tmp_path)], tmp_path / "qmp")
    try:
        with pytest.raises(BootTimeoutError, match=r"in a kernel that is no Windows"):
            ResidentBoot(vm, symbol_store([built / "symbols"]), BootOptions(timeout=2.0)).run()
    finally:
        ended(vm)


@pytest.mark.parametrize("phase", [Phase.SMSS, Phase.CSRSS])
def test_a_reset_in_mid_boot_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: Phase) -> None:
    """As a Windows that is set up does; what was set for the first kernel is nothing to the second."""
    monkeypatch.setattr(booting, "_LOOK", 0.02)  # minint's firmware takes no second
    disk, built = make_disk(tmp_path)
    resets: list[BootEvent] = []

    def reset_once(event: BootEvent) -> None:
        if event.phase is phase and not resets:
            resets.append(event)
            vm.qmp("system_reset")

    vm = start_disk(disk, tmp_path / "qmp", minint_machine(built, "PAGEFILES=2"))
    try:
        options = BootOptions(timeout=60.0, until="notepad.exe", settle=0.0)
        boot = ResidentBoot(vm, symbol_store([built / "symbols"]), options, reset_once)
        report = verify(boot.run(), boot)
        assert resets
        assert report.resident, report.problems
        assert report.prevented == [r"\??\C:\pagefile.sys", r"\??\C:\pagefile1.sys"]
    finally:
        ended(vm)


def test_a_boot_that_never_reaches_smss(tmp_path: Path) -> None:
    """minint without its disk stops in its own crash, before the first user process."""
    _, built = make_disk(tmp_path)
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "128M", "-accel", "tcg", "-cpu", "max"]
    vm = start_command([*words, *kernel_words(built)], tmp_path / "qmp")
    try:
        with pytest.raises(BootTimeoutError, match=r"csrss\.exe has not started .*processes so far: System"):
            ResidentBoot(vm, symbol_store([built / "symbols"]), BootOptions(timeout=3.0)).run()
    finally:
        ended(vm)


def test_a_snapshot_in_a_new_qemu_has_every_page(tmp_path: Path) -> None:
    """Every user page of every process reads, with the bytes that the guest's own log says."""
    disk, built = make_disk(tmp_path)
    log, commands = tmp_path / "log", tmp_path / "commands"
    commanded = ("-chardev", f"socket,id=c,path={commands},server=on,wait=off", "-serial", "chardev:c")
    machine = minint_machine(built, "PAGEFILES=2", "-serial", f"file:{log}", *commanded)
    store = symbol_store([built / "symbols"])
    with coldframe.boot(
        disk, symbols=[built / "symbols"], memory=MEMORY, vcpus=2, accelerator="tcg", bus="virtio", extra=machine.extra,
        qmp=tmp_path / "a.qmp", until="notepad.exe", settle=2.0,
    ) as guest:  # fmt: skip
        assert guest.report.resident, guest.report.problems
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(commands))
        link.sendall(b"truth\n")
        guest.resume()
        deadline = time.monotonic() + 60
        while '"truth-end"' not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        guest.pause()
        guest.snapshot("resident")
    told = [TruthPage.of(event) for event in read_log(log.read_text().splitlines()) if event.get("event") == "page"]
    assert len(told) > 1000
    with restore(disk, "resident", store=store, machine=machine, qmp=tmp_path / "b.qmp") as guest:
        assert guest.report.resident, guest.report.problems
        for page in told:
            if page.address >> 63 or not page.sha256:
                continue
            data = guest.process(page.pid).memory.read(page.address, 4096)
            assert hashlib.sha256(data).hexdigest() == page.sha256


def test_the_verb_boots_saves_and_starts_again(tmp_path: Path) -> None:
    disk, built = make_disk(tmp_path)
    qmp = tmp_path / "minint.qmp"
    words = [
        "--memory",
        "256M",
        "--accel",
        "tcg",
        "--bus",
        "virtio",
        "--qmp",
        qmp,
        "--symbols",
        built / "symbols",
        "--json",
    ]
    tail: list[str | Path] = ["--", *kernel_words(built, "PAGEFILES=2")]
    done = subprocess.run(
        command("boot", disk, *words, "--until", "notepad.exe", "--settle", "0", "--snapshot", "s", *tail),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["resident"], facts["snapshot"], facts["qmp"]) == (True, "s", str(qmp))
    assert "smss.exe runs" in done.stderr
    monitor = QmpClient.connect(qmp)  # it runs on, and is ended here
    answer = monitor.execute("query-status")
    assert isinstance(answer, dict)
    assert answer["status"] == "running"
    monitor.execute("quit")
    monitor.close()
    done = subprocess.run(
        command("boot", disk, *words, "--from-snapshot", "s", "--end", *tail),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resident"]
    done = subprocess.run(
        command("boot", disk, *words, "--from-snapshot", "none", "--end", *tail),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("coldframe: qemu-system-x86_64 did not start")


def test_disks_that_hold_no_snapshot_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(1 << 20))
    vm = start_disk(raw, tmp_path / "qmp", Machine("64M", 1, "tcg"))
    try:
        from coldframe.resident.snapshot import save_snapshot

        with pytest.raises(CapabilityError, match=r"disk\.img \(raw\)"):
            save_snapshot(vm, "s")
        with pytest.raises(UsageError, match="no number"):
            save_snapshot(vm, "1")
    finally:
        ended(vm)
