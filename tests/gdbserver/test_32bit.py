"""gdb on a 32-bit guest that runs: registers of i386, a breakpoint, a step."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from coldframe.debug import attach
from coldframe.gdbserver import GdbServer, Place
from x86.conftest import Built, folder, symbol_file  # noqa: F401 - fixtures
from x86.running import ARGUMENTS, RAM, TEXT, start


@pytest.mark.skipif(not (shutil.which("gdb") and shutil.which("clang")), reason="gdb or clang is not installed")
def test_gdb_breaks_into_a_32_bit_process(symbol_file, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    built = Built(symbol_file, ram=RAM)
    running = start(built, tmp_path, "qemu-system-x86_64")
    deadline = time.monotonic() + 60
    while not running.written:
        assert time.monotonic() < deadline, "the guest did not come up"
        time.sleep(0.02)
    place = tmp_path / "gdb.sock"
    write_file = built.image.code("NtWriteFile")
    words = [
        "set remotetimeout 60", f"target remote {place}", "info threads", f"break *{write_file:#x}", "continue",
        "x/9wx $esp + 4", f"x/s {ARGUMENTS[5]:#x}", "stepi", "p/x $eip", "p/x $cs", "detach",
    ]  # fmt: skip
    try:
        with attach(running.qmp, built.store) as guest, Place.parse(str(place)).listening() as listener:
            server = GdbServer(guest, "notepad.exe", lambda line, tid: "")
            thread = threading.Thread(target=server.serve, args=(listener,), kwargs={"once": True}, daemon=True)
            thread.start()
            done = subprocess.run(
                ["gdb", "-nx", "-batch", *(word for line in words for word in ("-ex", line))],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            thread.join(20)
            before = running.written
            assert not thread.is_alive()
        said = done.stdout + done.stderr
        assert "Thread 812.1204" in said, said
        words_on_stack = [int(word, 16) for word in re.findall(r"\t(0x[0-9a-f]{8})", said)]
        assert tuple(words_on_stack[:9]) == ARGUMENTS
        assert TEXT.decode() in said
        assert f"$1 = {write_file + 1:#x}" in said
        assert "detached" in said
        time.sleep(0.3)
        assert running.written > before
    finally:
        running.vm.close()
