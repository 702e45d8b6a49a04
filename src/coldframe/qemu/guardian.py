"""The guardian: a tiny process that lets the guest go on when coldframe dies.

It holds duplicates of coldframe's two sockets (the gdbstub's and QMP's) and waits at a pipe. When coldframe is gone,
the pipe ends, and the guardian removes every breakpoint, lets the guest run if it ran when coldframe came, and closes
the gdbstub. It runs in a session of its own, so neither Ctrl-C nor a kill of coldframe's process group reaches it, and
uses the standard library alone, so that it starts within milliseconds.

Arguments: `CONTROL GDB QMP|-1 QEMU_PID|0 was-running|was-paused DOMAIN`. Over the control pipe come lines
`+Z1,ADDR,LEN` and `-Z1,ADDR,LEN` (hex) for each breakpoint set and removed, and `bye` when coldframe has cleaned up.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time

TIMEOUT = 5.0  # for each half of the clean-up


def packet(payload: bytes) -> bytes:
    """`payload` framed as the gdbstub wants it."""
    return b"$%b#%02x" % (payload, sum(payload) & 0xFF)


def wait_for_end(control: int, pid: int) -> set[bytes] | None:
    """Wait until coldframe is gone and return the breakpoints it left; None when there is nothing to do."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    process = -1
    if pid:
        try:
            process = os.pidfd_open(pid)
            poll.register(process, select.POLLIN)
        except OSError:
            pass  # another PID namespace, or gone already: the sockets will tell
    breakpoints: set[bytes] = set()
    pending = b""
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if control in ready:
            data = os.read(control, 1 << 16)
            if not data:
                return breakpoints
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line == b"bye":
                    return None
                if line[:1] == b"+":
                    breakpoints.add(line[1:])
                else:
                    breakpoints.discard(line[1:])
        elif process in ready:
            return None  # QEMU has ended


def free_guest(gdb: socket.socket, breakpoints: set[bytes], was_running: bool) -> None:
    """Stop the guest, remove the breakpoints, let it run if it did."""
    requests = [b"z" + point[1:] for point in sorted(breakpoints)]
    if was_running:
        requests.append(b"D;1")  # removes every breakpoint that QEMU knows, and lets the guest run
    requests.append(b"qqemu.sstepbits")
    # \x03 stops a running guest, #00 ends a packet that was cut off; both are ignored by an idle gdbstub
    gdb.setblocking(True)
    gdb.settimeout(TIMEOUT)
    if was_running:
        gdb.sendall(b"\x03#00" + b"".join(map(packet, requests[:-1])))
    else:
        gdb.sendall(b"\x03#00" + b"".join(map(packet, requests)))
    received = b""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        data = gdb.recv(1 << 16)
        if not data:
            return
        received += data
        # the detach's OK is the last answer; a guest that stays paused answers the last question instead
        if b"$ENABLE=" in received or (was_running and received.endswith(b"$OK#9a")):
            time.sleep(0.005)
            return


def close_stub(monitor: socket.socket, was_running: bool) -> None:
    """Close the gdbstub through QMP; see that the guest runs if it did."""
    monitor.setblocking(True)
    monitor.settimeout(TIMEOUT)
    reader = monitor.makefile("rb")

    def execute(command: str, number: str, **arguments: str) -> object:
        request = {"execute": command, "id": number, "arguments": arguments}
        monitor.sendall(b"\xff" + json.dumps(request).encode() + b"\n")  # 0xff drops what was cut off
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            line = reader.readline()
            if not line:
                return None
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, dict) and answer.get("id") == number:
                return answer.get("return")
        return None

    execute("human-monitor-command", "guardian-1", **{"command-line": "gdbserver none"})
    if was_running:
        status = execute("query-status", "guardian-2")
        if isinstance(status, dict) and status.get("status") in ("paused", "debug"):
            execute("cont", "guardian-3")


def main() -> None:
    """Wait, and clean up when coldframe is gone without having done so."""
    control, gdb, qmp, pid = map(int, sys.argv[1:5])
    was_running, domain = sys.argv[5] == "was-running", sys.argv[6]
    breakpoints = wait_for_end(control, pid)
    if breakpoints is None:
        return
    with contextlib.suppress(OSError):
        free_guest(socket.socket(fileno=gdb), breakpoints, was_running)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if qmp >= 0:
            close_stub(socket.socket(fileno=qmp), was_running)
        elif domain:
            subprocess.run(
                ["virsh", "qemu-monitor-command", "--hmp", domain, "gdbserver none"],
                check=False, timeout=TIMEOUT,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip


if __name__ == "__main__":
    main()
