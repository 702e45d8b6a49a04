"""The guardian: a tiny process that lets the guest go on when coldframe dies.

It holds duplicates of coldframe's two sockets (the gdbstub's and QMP's) and waits at a pipe. When coldframe is gone,
the pipe ends, and the guardian removes every breakpoint, ends the NBD server with its exports of the guest's disks,
closes the gdbstub, and lets the guest run if it ran when coldframe came. It runs in a session of its own, so neither
Ctrl-C nor a kill of coldframe's process group reaches it, and uses the standard library alone, so that it starts within
milliseconds.

Arguments: descriptors of the control pipe, the gdbstub's socket, QMP's (-1: none); process ids of coldframe and QEMU
(0: not known); was-running or was-paused; close-stub or keep-stub; the libvirt domain or nothing. Over the control pipe
come lines: `+Z1,ADDR,LEN` and `-Z1,ADDR,LEN` (hex) for each breakpoint set and removed, `+nbd` and `-nbd` for the NBD
server, and `bye` when coldframe has cleaned up.
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


def wait_for_end(control: int, qmp: int, parent: int, qemu: int) -> set[bytes] | None:
    """Wait until coldframe is gone and return what it left, breakpoints and `nbd`; None: nothing is to be done."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    watched = {}
    for pid in (parent, qemu):
        if pid:
            try:
                watched[pid] = os.pidfd_open(pid)
                poll.register(watched[pid], select.POLLIN)
            except OSError:  # QEMU may be in another PID namespace, or gone: the socket will tell
                pass
    orphaned = os.getppid() != parent  # coldframe died while this was starting
    if qmp >= 0:  # not the gdbstub's socket: coldframe may close the gdbstub and die before it lets the guest run
        poll.register(qmp, 0)  # hang-up alone
    breakpoints: set[bytes] = set()
    pending = b""
    while True:
        ready = [descriptor for descriptor, _ in poll.poll(0 if orphaned else None)]
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
        elif watched.get(qemu) in ready or qmp in ready:
            return None  # QEMU has ended
        elif ready or orphaned:
            return breakpoints  # coldframe has ended; a child that it forked keeps the pipe open


def ask(gdb: socket.socket, data: bytes, answer: bytes) -> None:
    """Send to the gdbstub and wait for an answer."""
    gdb.setblocking(True)
    gdb.settimeout(TIMEOUT)
    gdb.sendall(data)
    received = b""
    while answer not in received:
        part = gdb.recv(1 << 16)
        if not part:
            raise OSError("QEMU closed the gdbstub")
        received = received[-16:] + part


def remove_breakpoints(gdb: socket.socket, breakpoints: set[bytes]) -> None:
    """Stop the guest and remove the breakpoints.

    An interrupt stops a running guest, `#00` ends a packet that was cut off; an idle gdbstub ignores both. `qC`, which
    coldframe asks only to the same end, tells that everything before it has been answered.
    """
    removals = [b"z" + point[1:] for point in sorted(breakpoints)]
    ask(gdb, b"\x03#00" + b"".join(map(packet, [*removals, b"qC"])), b"$QC")


def close_stub(monitor: socket.socket, close: bool, was_running: bool, exported: bool) -> None:
    """End the NBD server and close the gdbstub through QMP; see that the guest runs if it did."""
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

    if exported:
        execute("nbd-server-stop", "guardian-0")
    if close:
        execute("human-monitor-command", "guardian-1", **{"command-line": "gdbserver none"})
        execute("chardev-remove", "guardian-2", id="coldframe-gdb")  # there where the gdbstub had not been opened yet
    if was_running:
        status = execute("query-status", "guardian-3")
        # prelaunch: started paused, to be let run; its debugger died before it had stopped it once
        if isinstance(status, dict) and status.get("status") in ("paused", "debug", "prelaunch"):
            execute("cont", "guardian-4")


def by_virsh(domain: str, close: bool, was_running: bool, exported: bool) -> bool:
    """The same through libvirt; False when virsh is missing or fails."""
    lines = ["nbd_server_stop"] if exported else []
    lines += (["gdbserver none"] if close else []) + (["cont"] if was_running else [])
    try:
        return not any(
            subprocess.run(
                ["virsh", "qemu-monitor-command", "--hmp", domain, line], check=False, timeout=TIMEOUT,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ).returncode
            for line in lines
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False


def main() -> None:
    """Wait, and clean up when coldframe is gone without having done so."""
    control, gdb, qmp, parent, qemu = map(int, sys.argv[1:6])
    was_running, close = sys.argv[6] == "was-running", sys.argv[7] == "close-stub"
    domain = sys.argv[8]
    breakpoints = wait_for_end(control, qmp, parent, qemu)
    if breakpoints is None:
        return
    exported = b"nbd" in breakpoints
    breakpoints.discard(b"nbd")
    stub = socket.socket(fileno=gdb)
    if breakpoints:  # else the gdbstub may not have been opened yet: it would not answer
        with contextlib.suppress(OSError):
            remove_breakpoints(stub, breakpoints)
    with contextlib.suppress(OSError):
        if qmp >= 0:
            close_stub(socket.socket(fileno=qmp), close, was_running, exported)
        elif not by_virsh(domain, close, was_running, exported) and was_running:
            ask(stub, packet(b"D;1"), b"$OK")  # lets the guest run


if __name__ == "__main__":
    main()
