"""A minint under way, the real `coldframe trace` on it, and what notepad.exe must have written."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from coldframe.minint import Minint
from coldframe.minint.truth import Event, Write

FUNCTION = "nt!NtWriteFile"
KINDS = ("heap", "trimmed", "section", "section-trimmed", "stack", "image")
LETTERS = b"etaoin shrdlu cmfwyp vbgkjq xz.\n"
DOCUMENT_SIZE = 4 << 20
_MASK = (1 << 64) - 1
_FILE = re.compile(r"notes-(\d)\.txt$")


def start_trace(machine: Minint, *words: str) -> subprocess.Popen[bytes]:
    """`coldframe trace` of notepad.exe's file writes in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "coldframe", "trace", machine.qmp, "NtWriteFile", "--process", "notepad.exe",
         "--symbols", machine.symbols_folder, "--json", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 - one system call
    )  # fmt: skip


def _heed_ctrl_c() -> None:
    """As under a terminal: what a shell starts in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_guardian(process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Return when the guardian of `process` has been started, or the process has ended."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        for child in children.read_text().split():
            if b"guardian.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                return
        time.sleep(0.001)


def guardians(process: int) -> list[int]:
    """Process ids of the guardians that look after the process of that id, which may be gone."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if len(words) > 7 and words[3].endswith(b"guardian.py") and words[7] == b"%d" % process:
                found.append(int(folder.name))
    return found


def status(machine: Minint) -> str:
    """QEMU's word for what the guest does."""
    answer = machine.control("query-status")
    assert isinstance(answer, dict)
    return str(answer["status"])


def compose(thread: int, number: int) -> bytes:
    """What notepad.exe's thread writes as its write `number`; the same text as `Compose` in guest/user/notepad.c."""
    kind = KINDS[number % len(KINDS)]
    if kind == "stack" and number % 8 == 7:
        kind = "heap"
    seed = ((number + 1) * 0x9E3779B97F4A7C15 & _MASK) ^ (thread + 1) << 56
    length = 80 + (seed >> 40) % (12000 - 80 if number % 8 == 7 else 700)
    text = bytearray(f"[notes-{thread} #{number:06} {kind}] ".encode())
    while len(text) < length - 1:
        seed = (seed * 6364136223846793005 + 1442695040888963407) & _MASK
        text.append(LETTERS[seed >> 59])
    return bytes(text) + b"\n"


def unsound_writes(events: Iterable[Event]) -> list[str]:
    """What is wrong with the writes that the guest logged since it booted: none may be missing, double or changed."""
    wrong = []
    position: dict[int, int] = defaultdict(int)
    number: dict[int, int] = defaultdict(int)
    for event in events:
        if event.get("event") == "bugcheck":
            wrong.append(f"the guest crashed: {event}")
        if event.get("event") != "write":
            continue
        write = Write.of(event)
        match = _FILE.search(write.file)
        if match is None:
            continue
        thread = int(match[1])
        if position[thread] >= DOCUMENT_SIZE:
            position[thread] = 0
        expected = compose(thread, number[thread])
        if (write.offset, write.length) != (position[thread], len(expected)):
            wrong.append(f"write {number[thread]}: expected {len(expected)} bytes at {position[thread]}, found {write}")
        elif write.sha256 != hashlib.sha256(expected).hexdigest():
            wrong.append(f"write {number[thread]} has other bytes: {write}")
        position[thread] = write.offset + write.length
        number[thread] += 1
    return wrong
