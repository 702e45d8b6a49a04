"""Whatever a user or a guest gets wrong: one clear line on standard error, exit status 1 or 2, never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.qemu.qmp import QmpClient


def coldframe(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coldframe", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**{k: v for k, v in os.environ.items() if k != "_NT_SYMBOL_PATH"}, **environment},
    )


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line that `done` ended with; checks everything that holds for all of them."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines
    assert lines[-1].startswith("coldframe: ")
    assert not done.stdout
    return lines[-1]


@pytest.mark.parametrize("verb", ["info", "ps", "threads", "modules", "drivers", "vads"])
def test_a_target_that_is_not_there(verb: str, tmp_path: Path) -> None:
    assert "no memory image or QMP socket" in complaint(coldframe(verb, str(tmp_path / "no.qmp")), 2)


def test_a_verb_that_does_not_exist() -> None:
    assert "frobnicate" in complaint(coldframe("frobnicate", "x"), 2)


def test_missing_words() -> None:
    assert "TARGET" in complaint(coldframe("ps"), 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pte", "IMAGE", "7ff6banana"], "number"),
        (["read", "IMAGE", "0x1000", "many"], "number"),
        (["read", "IMAGE", "0x1000", "0"], "size"),
        (["stack", "IMAGE"], "--tid"),
        (["minint", "--disk", "x.qcow2"], "--dump"),
        (["minint", "--layout", "banana"], "19041"),
        (["ps", "IMAGE", "--symbols", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_words_that_are_no_numbers_or_do_not_go_together(words: list[str], expected: str, tmp_path: Path) -> None:
    image = tmp_path / "memory.raw"
    image.write_bytes(bytes(1 << 20))
    done = coldframe(*(str(image) if word == "IMAGE" else word for word in words))
    assert done.returncode in {1, 2}
    assert expected in complaint(done, done.returncode)


def test_an_image_without_windows_tells_what_was_tried(tmp_path: Path) -> None:
    image = tmp_path / "memory.raw"
    image.write_bytes(bytes(4 << 20))
    line = complaint(coldframe("ps", str(image)), 1)
    assert "kernel" in line
    assert "PML4" in line or "page table" in line


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    assert "memory image" in complaint(coldframe("ps", str(text)), 1)


@pytest.fixture
def talkative_socket(tmp_path: Path) -> Iterator[Path]:
    """A socket that answers, but not in QMP."""
    path = tmp_path / "other.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return
            link.sendall(b"220 mail.example ESMTP\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield path
    server.close()


def test_a_socket_that_is_not_qmp(talkative_socket: Path) -> None:
    assert "QMP" in complaint(coldframe("ps", str(talkative_socket)), 1)


def test_a_machine_that_runs_no_windows(tmp_path: Path) -> None:
    """SeaBIOS alone: found no kernel, said why, and the machine runs on."""
    path = tmp_path / "bios.qmp"
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64M"]
    with subprocess.Popen([*command, "-qmp", f"unix:{path},server=on,wait=off"]) as machine:
        try:
            while not path.exists():
                time.sleep(0.05)
            assert "kernel" in complaint(coldframe("ps", str(path)), 1)
            monitor = QmpClient.connect(path)
            status = monitor.execute("query-status")
            monitor.close()
            assert isinstance(status, dict)
            assert status["status"] == "running"
        finally:
            machine.kill()


def test_json_errors_leave_standard_output_empty(tmp_path: Path) -> None:
    done = coldframe("ps", str(tmp_path / "no.qmp"), "--json")
    complaint(done, 2)


def test_help_has_examples_for_every_verb() -> None:
    verbs = [
        "info",
        "ps",
        "threads",
        "modules",
        "drivers",
        "vads",
        "handles",
        "objects",
        "pte",
        "read",
        "trace",
        "stack",
        "minint",
        "demo",
    ]
    for verb in verbs:
        done = coldframe(verb, "--help")
        assert done.returncode == 0
        assert f"coldframe {verb}" in done.stdout.split("Options:")[0].split("\n", 1)[1], verb


def test_the_empty_call_shows_help() -> None:
    done = coldframe()
    assert "Commands" in done.stdout + done.stderr
    assert json.dumps("Traceback") not in done.stderr
