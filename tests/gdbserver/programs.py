"""gdb itself, and a client of the protocol in a few lines, for what gdb does not let one send."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from coldframe.minint import Minint

COLDFRAME = [sys.executable, "-m", "coldframe"]


def words_of(machine: Minint, *words: str, process: str | None = "notepad.exe") -> list[str]:
    chosen = [] if process is None else ["-P", process]
    return ["gdbserver", str(machine.qmp), "-s", str(machine.symbols_folder), *chosen, *words]


def gdb(server: Sequence[str], *commands: str, timeout: float = 60.0) -> str:
    """What gdb prints for `commands`, the server being the other end of its pipe."""
    target = "target remote | " + " ".join([*COLDFRAME, *server, "-l", "-"])
    lines = ["set confirm off", "set pagination off", "set remotetimeout 60", "set width 0", target, *commands]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *(word for line in lines for word in ("-ex", line))],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@contextmanager
def serving(words: Sequence[str], place: Path | str) -> Iterator[subprocess.Popen[str]]:
    """A server that clients may connect to at `place`."""
    with subprocess.Popen([*COLDFRAME, *words, "-l", str(place)], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            line = server.stderr.readline()
            assert "target remote" in line, line + server.stderr.read()
            yield server
        finally:
            server.terminate()


class Client:
    """A client on a Unix socket, by its path or connected already."""

    def __init__(self, place: Path | socket.socket) -> None:
        self.socket = place if isinstance(place, socket.socket) else socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        if not isinstance(place, socket.socket):
            self.socket.connect(str(place))
        self._bytes = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, payload: bytes) -> None:
        self.socket.sendall(b"$%b#%02x" % (payload, sum(payload) & 0xFF))

    def receive(self) -> bytes:
        while True:
            match = re.search(rb"\$([^#]*)#..", self._bytes, re.DOTALL)
            if match:
                self._bytes = self._bytes[match.end() :]
                with suppress(BrokenPipeError):  # it was the last packet
                    self.socket.sendall(b"+")
                return match[1]
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self._bytes += data

    def ask(self, payload: bytes) -> bytes:
        self.send(payload)
        return self.receive()

    def interrupt(self) -> bytes:
        self.socket.sendall(b"\x03")
        return self.receive()


def writes_on(machine: Minint) -> bool:
    """The guest runs: its notepad.exe writes."""
    list(machine.new_events())
    machine.wait_for("write", timeout=60)
    return True


def runs(machine: Minint, seconds: float = 30.0) -> bool:
    """QEMU says that the guest runs, at once or soon."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = machine.control("query-status")
        if isinstance(status, dict) and status["status"] == "running":
            return True
        time.sleep(0.05)
    return False
