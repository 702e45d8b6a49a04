"""Starting the guardian and telling it what to undo (see `guardian`)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

_GUARDIAN = Path(__file__).with_name("guardian.py")


class Guard:
    """The guardian of one attachment. What it knows is always at least what QEMU has."""

    def __init__(
        self, *, gdb: int, qmp: int | None, pid: int | None, was_running: bool, close_stub: bool, domain: str = ""
    ) -> None:
        control, self._pipe = os.pipe2(os.O_CLOEXEC)
        descriptors = [control, gdb] if qmp is None else [control, gdb, qmp]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARDIAN), str(control), str(gdb), str(-1 if qmp is None else qmp),
                 str(os.getpid()), str(pid or 0), "was-running" if was_running else "was-paused",
                 "close-stub" if close_stub else "keep-stub", domain],
                pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, cwd="/",
            )  # fmt: skip
        finally:
            os.close(control)

    def added(self, breakpoint_packet: bytes) -> None:
        """Say that a breakpoint is about to be set (`Z1,ADDR,LEN`)."""
        self._tell(b"+" + breakpoint_packet)

    def removed(self, breakpoint_packet: bytes) -> None:
        """Say that a breakpoint has been removed."""
        self._tell(b"-" + breakpoint_packet)

    def exports(self, begun: bool) -> None:
        """Say that disks are about to be exported over NBD, or that this has ended."""
        self._tell(b"+nbd" if begun else b"-nbd")

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # the guardian leaves when QEMU ends; the next request will say so
            os.write(self._pipe, line + b"\n")

    def dismiss(self) -> None:
        """End the guardian: everything has been undone, or QEMU has ended."""
        self._tell(b"bye")
        self._process.kill()  # before the pipe ends: it may not even have started, and nothing is left to do
        self._end(2.0)

    def take_over(self) -> None:
        """Let the guardian clean up now, because we could not."""
        self._end(10.0)

    def _end(self, patience: float) -> None:
        os.close(self._pipe)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
