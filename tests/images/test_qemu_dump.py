"""An ELF core as QEMU itself writes it, held against what QEMU's monitor says."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess

import pytest

from coldframe.errors import NoKernelError
from coldframe.images import open_image
from coldframe.windows import find_kernel

QEMU = shutil.which("qemu-system-x86_64")
MB = 1 << 20


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
def test_a_dump_of_a_machine_has_its_memory_and_registers(tmp_path):
    machine = subprocess.Popen(
        [QEMU, "-m", "32M", "-smp", "2", "-display", "none", "-accel", "tcg", "-net", "none", "-qmp", "stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert machine.stdin is not None
    assert machine.stdout is not None

    def qmp(command, **arguments):
        machine.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        machine.stdin.flush()
        for line in machine.stdout:
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                return answer["return"]
        raise AssertionError("QEMU ended")

    core, raw = tmp_path / "core", tmp_path / "raw"
    with contextlib.ExitStack() as stack:
        stack.callback(machine.wait)
        stack.callback(machine.kill)
        machine.stdout.readline()
        qmp("qmp_capabilities")
        qmp("stop")
        said = qmp("human-monitor-command", **{"command-line": "info registers -a"})
        qmp("dump-guest-memory", paging=False, protocol=f"file:{core}")
        qmp("pmemsave", val=0, size=32 * MB, filename=str(raw))
    image = open_image(core)
    assert image.format == "ELF core"
    assert len(image.registers) == 2
    for vcpu, text in enumerate(said.split("CPU#")[1:]):
        for name in ("cr0", "cr3", "cr4"):
            (value,) = re.findall(rf"{name.upper()}=([0-9a-f]+)", text)
            assert image.registers[vcpu][name] == int(value, 16)
        ((base, limit),) = re.findall(r"IDT=\s+([0-9a-f]+) ([0-9a-f]+)", text)
        assert (image.registers[vcpu]["idt_base"], image.registers[vcpu]["idt_limit"]) == (
            int(base, 16),
            int(limit, 16),
        )
    memory = raw.read_bytes()
    for start in (0, 0x9000, MB, 31 * MB):
        assert image.physical.read(start, 4096) == memory[start : start + 4096]
    with pytest.raises(NoKernelError, match=r"CR0\.PG|self-referencing"):
        find_kernel(image.physical, None, image.registers)
