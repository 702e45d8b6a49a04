"""A libvirt domain that is shut off: started paused, booted residently, left running."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.qemu import VirtualMachine
from coldframe.resident import BootOptions, boot
from coldframe.target import symbol_store
from qemu.test_libvirt import QEMU_CONF, START, wait_for
from resident.steering import make_disk

pytestmark = pytest.mark.minint

DOMAIN = """<domain type='qemu'><name>coldframe-minint</name><memory unit='MiB'>256</memory><vcpu>2</vcpu>
<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{built}/loader.elf</kernel>
<initrd>{built}/ntoskrnl.exe</initrd><cmdline>PAGEFILES=2</cmdline></os>
<cpu mode='maximum'/><features><acpi/><apic/></features>
<devices><emulator>{qemu}</emulator><memballoon model='none'/>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
<target dev='vda' bus='virtio'/></disk></devices></domain>"""


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The name of a domain that is defined and shut off, and where its kernel's PDB is."""
    pytest.importorskip("libvirt", reason="the extra libvirt is not installed")
    qemu = shutil.which("qemu-system-x86_64")
    if os.geteuid() or not all(map(shutil.which, ("libvirtd", "virsh", "unshare"))):
        pytest.skip("needs root, libvirtd, virsh and unshare")
    disk, built = make_disk(tmp_path)
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    (tmp_path / "libvirtd.conf").write_text(
        f'unix_sock_dir = "{tmp_path}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        f'log_outputs = "3:file:{tmp_path}/log"\n'
    )
    (tmp_path / "start").write_text(START)
    (tmp_path / "domain.xml").write_text(DOMAIN.format(built=built, disk=disk, qemu=qemu))
    daemon = subprocess.Popen(
        ["unshare", "--mount", "sh", str(tmp_path / "start"), str(tmp_path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBVIRT_DEFAULT_URI", f"qemu:///system?socket={tmp_path / 'libvirt-sock'}")
        try:
            wait_for(tmp_path / "libvirt-sock", daemon)
            made = subprocess.run(["virsh", "define", str(tmp_path / "domain.xml")], capture_output=True, check=False)
            if made.returncode:
                pytest.skip(f"libvirtd defines no domain here: {made.stderr.decode().strip()[:200]}")
            yield "coldframe-minint", built / "symbols"
        finally:
            subprocess.run(["virsh", "destroy", "coldframe-minint"], capture_output=True, check=False)
            daemon.terminate()
            daemon.wait(20)


def test_a_domain_that_is_shut_off_boots_residently(domain: tuple[str, Path]) -> None:
    name, symbols = domain
    options = BootOptions(timeout=60.0, until="notepad.exe", settle=0.0)
    with boot(name, store=symbol_store([symbols]), options=options) as guest:
        assert guest.report.resident, guest.report.problems
        assert guest.report.prevented == [r"\??\C:\pagefile.sys", r"\??\C:\pagefile1.sys"]
    with VirtualMachine.attach(name) as vm:
        assert vm.running  # it is libvirt's, and goes on
