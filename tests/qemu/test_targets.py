"""Wrong targets and crowded ones: each gets one line that says what was found and what would help."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coldframe.errors import CapabilityError, ColdframeError, FormatError, GuestGoneError, UsageError
from coldframe.qemu import VirtualMachine, VmConfig, launch
from coldframe.qemu.qmp import QmpClient, QmpCommandError
from qemu.bare import StartsGuests


def refused(target: Path, kind: type[ColdframeError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        VirtualMachine.attach(target)
    assert "\n" not in str(caught.value)


def test_no_such_socket(tmp_path: Path) -> None:
    refused(tmp_path / "no.qmp", UsageError, "no such socket: .*start QEMU with -qmp unix:")


def test_a_file_that_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file.qmp").write_text("hello")
    refused(tmp_path / "file.qmp", UsageError, "is no socket")


def test_a_socket_that_nobody_serves(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "dead.qmp"))
    refused(tmp_path / "dead.qmp", GuestGoneError, "nothing listens")


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH\r\n", b"[1, 2]\n", b'{"jsonrpc": 2}\n', b"\xff\xfe\0\n", b""])
def test_a_socket_that_is_not_qmp(tmp_path: Path, says: bytes) -> None:
    path = tmp_path / "other.qmp"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        refused(path, FormatError, "is not a QMP socket")
        thread.join()


def test_a_socket_without_end_of_line_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "silent.qmp"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        with pytest.raises(CapabilityError, match="sends no QMP greeting"):
            QmpClient.connect(path, timeout=0.3)


def test_a_busy_qmp_socket(start: StartsGuests) -> None:
    guest = start(1)
    with guest.attach(), pytest.raises(CapabilityError, match="another client holds it"):
        QmpClient.connect(guest.qmp, timeout=0.3)
    with guest.attach() as vm:
        assert vm.running


def test_a_second_debugger_is_kept_out(start: StartsGuests, tmp_path: Path) -> None:
    second = tmp_path / "second.qmp"
    guest = start(1, extra=("-qmp", f"unix:{second},server=on,wait=off"))
    with guest.attach() as vm:
        vm.insert_breakpoint(guest.function("tick"))
        with VirtualMachine.attach(second) as other, pytest.raises(CapabilityError, match="another coldframe"):
            other.pause()
        assert vm.run_until_stop(10) is not None
    with VirtualMachine.attach(second) as other:
        other.pause()
    assert guest.goes_on()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_the_users_own_gdbstub_is_used_and_left(start: StartsGuests, tmp_path: Path, kind: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    device = f"unix:{tmp_path / 'gdb'},server=on,wait=off" if kind == "unix" else f"tcp:127.0.0.1:{port}"
    guest = start(1, extra=("-gdb", device))
    for _ in range(2):
        with guest.attach() as vm:
            vm.insert_breakpoint(guest.function("tick"))
            assert vm.run_until_stop(10) is not None
        assert guest.goes_on()
    gdb = socket.create_connection(("127.0.0.1", port)) if kind == "tcp" else socket.socket(socket.AF_UNIX)
    with gdb:
        if kind == "unix":
            gdb.connect(str(tmp_path / "gdb"))
        guest.owner.qmp("query-status")
        with guest.attach() as vm, pytest.raises(CapabilityError, match="another debugger is connected"):
            vm.pause()


def test_qemus_own_words_are_passed_on(start: StartsGuests) -> None:
    guest = start(1)
    with guest.attach() as vm:
        with pytest.raises(QmpCommandError, match=r"refused 'no-such-command': The command no-such-command"):
            vm.qmp("no-such-command")
        assert "VM status: running" in vm.monitor("info status")


def test_a_qemu_that_does_not_start() -> None:
    with pytest.raises(CapabilityError, match=r"did not start .*unsupported machine type"):
        launch(["qemu-system-x86_64", "-machine", "no-such-machine"])
    with pytest.raises(CapabilityError, match="cannot start /no/qemu"):
        launch(VmConfig(binary="/no/qemu"))


def test_a_launched_qemu_ends_with_us(kernel: Path) -> None:
    with launch(VmConfig("64M", kernel=str(kernel))) as vm:
        pid = vm.pid
        assert vm.running
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_launched_qemu_dies_with_us(kernel: Path) -> None:
    code = """
import sys, time
from coldframe.qemu import VmConfig, launch
vm = launch(VmConfig("64M", kernel=sys.argv[1]))
print(vm.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(kernel)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    qemu = Path(f"/proc/{int(process.stdout.readline())}")
    assert qemu.exists()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while qemu.exists() and "Z (zombie)" not in (qemu / "status").read_text():
        assert time.monotonic() < deadline, "QEMU outlives its owner"
        time.sleep(0.02)


def test_a_machine_without_an_operating_system(tmp_path: Path) -> None:
    with launch(VmConfig("64M", extra=("-no-reboot",))) as vm:
        assert vm.run_until_stop(0.5) is None
        vm.pause()
        assert vm.registers(0)["rip"] < 1 << 32
