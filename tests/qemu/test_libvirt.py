"""A libvirt domain by its name, with a libvirtd that the test starts in a mount namespace, all its folders its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.errors import CapabilityError, GuestGoneError, NotFoundError
from coldframe.qemu import VirtualMachine

DOMAIN = """<domain type='qemu'><name>coldframe-test</name><memory unit='MiB'>64</memory><vcpu>2</vcpu>
<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel></os>
<features><acpi/><apic/></features>
<devices><emulator>{qemu}</emulator><memballoon model='none'/>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/>
<target dev='vda' bus='virtio'/></disk>
</devices></domain>"""

QEMU_CONF = """stdio_handler = "file"
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
"""

START = """set -e
for folder in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /run/libvirt; do
    mkdir -p $folder "$1$folder"
    mount --bind "$1$folder" $folder
done
exec libvirtd -f "$1/libvirtd.conf" -p "$1/pid"
"""


DISK = bytes(range(256)) * 8192


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.skip(f"libvirtd does not start here (status {process.poll()})")
        time.sleep(0.05)


@pytest.fixture(scope="module")
def domain(kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a running domain whose guest is the bare guest."""
    pytest.importorskip("libvirt", reason="the extra libvirt is not installed")
    qemu = shutil.which("qemu-system-x86_64")
    if os.geteuid() or not all(map(shutil.which, ("libvirtd", "virsh", "unshare"))):
        pytest.skip("needs root, libvirtd, virsh and unshare")
    folder = tmp_path_factory.mktemp("lv")
    (folder / "etc/libvirt").mkdir(parents=True)
    (folder / "etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    (folder / "libvirtd.conf").write_text(
        f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        f'log_outputs = "3:file:{folder}/log"\n'
    )
    (folder / "disk").write_bytes(DISK)
    (folder / "start").write_text(START)
    (folder / "domain.xml").write_text(DOMAIN.format(kernel=kernel, qemu=qemu, disk=folder / "disk"))
    daemon = subprocess.Popen(
        ["unshare", "--mount", "sh", str(folder / "start"), str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    uri = f"qemu:///system?socket={folder / 'libvirt-sock'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBVIRT_DEFAULT_URI", uri)
        try:
            wait_for(folder / "libvirt-sock", daemon)
            made = subprocess.run(["virsh", "create", str(folder / "domain.xml")], capture_output=True, check=False)
            if made.returncode:
                pytest.skip(f"libvirtd starts no domain here: {made.stderr.decode().strip()[:200]}")
            yield "coldframe-test"
        finally:
            subprocess.run(["virsh", "destroy", "coldframe-test"], capture_output=True, check=False)
            daemon.terminate()
            daemon.wait(20)


def ticks(vm: VirtualMachine) -> int:
    return sum(vm.physical.u64(0x200000 + 64 * vcpu) for vcpu in range(2))


def goes_on(vm: VirtualMachine, within: float) -> bool:
    before, deadline = ticks(vm), time.monotonic() + within
    while ticks(vm) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    return ticks(vm) != before


def test_a_domain_is_attached_to_by_name(domain: str) -> None:
    with VirtualMachine.attach(domain) as vm:
        assert vm.memory_path.startswith("mmap of")
        assert vm.pid is not None
        deadline = time.monotonic() + 30
        while vm.physical.u64(0x202008) != 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        vm.pause()
        before = ticks(vm)
        vm.insert_breakpoint(vm.physical.u64(0x202010))
        for hit in range(1, 101):
            assert vm.run_until_stop(10) is not None
            assert ticks(vm) - before == hit - 1 - len(vm.control._passing.unfinished)
    with VirtualMachine.attach(domain) as vm:
        assert vm.running
        assert goes_on(vm, 1)


def test_a_domains_disk_is_read_through_its_qemu(domain: str) -> None:
    with VirtualMachine.attach(domain) as vm:
        (disk,) = vm.disks()
        assert disk.size == len(DISK)
        assert list(disk.read_runs([(0x1234, 0x2345), (0, 7), (len(DISK) - 3, 3)])) == [
            DISK[0x1234:][:0x2345], DISK[:7], DISK[-3:]
        ]  # fmt: skip
        assert vm.qmp("query-block-exports")
    with VirtualMachine.attach(domain) as vm:
        assert vm.qmp("query-block-exports") == []


def test_a_killed_client_leaves_the_domain_running(domain: str) -> None:
    code = f"""
from coldframe.qemu import VirtualMachine
vm = VirtualMachine.attach({domain!r})
vm.insert_breakpoint(vm.physical.u64(0x202010))
print("ready", flush=True)
while True: vm.run_until_stop()
"""
    with VirtualMachine.attach(domain) as vm:
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert goes_on(vm, 3)
            with VirtualMachine.attach(domain) as again:
                again.pause()
                assert again.run_until_stop(0.2) is None


def test_a_domain_that_is_not_there(domain: str) -> None:
    with pytest.raises(NotFoundError, match="did you mean coldframe-test"):
        VirtualMachine.attach("coldframe-tst")


def test_the_end_of_a_domain_in_a_run(domain: str) -> None:
    vm = VirtualMachine.attach(domain)
    vm.pause()
    subprocess.run(["virsh", "destroy", domain], capture_output=True, check=True)
    with pytest.raises(GuestGoneError):
        vm.run_until_stop(10)
    with pytest.raises(GuestGoneError):
        vm.close()


def test_without_a_daemon_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("libvirt", reason="the extra libvirt is not installed")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"qemu:///system?socket={tmp_path}/none")
    with pytest.raises(CapabilityError, match="no socket 'win10', and libvirt cannot be asked"):
        VirtualMachine.attach("win10")


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(CapabilityError, match=r"pip install 'coldframe\[libvirt\]'"):
        VirtualMachine.attach("win10")
