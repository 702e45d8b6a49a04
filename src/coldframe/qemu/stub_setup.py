"""Opening and closing the gdbstub of a running QEMU.

The connection is one end of a socket pair whose other end is handed to QEMU through QMP (`getfd`), so that nothing
appears in the file system and no permission is needed; where a monitor cannot pass descriptors, a Unix socket in a
private folder. A gdbstub that the user started (`-gdb`, `-s`) is used as it is when nobody is connected.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from coldframe.errors import CapabilityError, GuestGoneError
from coldframe.qemu.gdbstub import GdbStub
from coldframe.qemu.guarding import Guard
from coldframe.qemu.qmp import Monitor, QmpCommandError

_NAME = "coldframe-gdb"
_CONNECT_TIMEOUT = 5.0


@dataclass(slots=True)
class StubConnection:
    """A connection to a gdbstub, and whether closing it closes the stub."""

    socket: socket.socket
    ours: bool
    stale: bool = False
    """Whether an earlier client died and may have left breakpoints."""
    cleanup: Callable[[], None] = field(default=lambda: None)


def prepare(
    monitor: Monitor, *, can_pass_descriptors: bool, guard: Callable[[StubConnection], Guard | None]
) -> tuple[StubConnection, Callable[[], None]]:
    """Make the sockets ready; the function returned opens the gdbstub, which stops the guest.

    The two are apart so that the guardian stands before the guest can be stopped; `guard` starts one where the guest is
    stopped here already, to remove what a client that died has left. Raises `CapabilityError` when another
    debugger is connected.
    """
    stale = False
    chardevs = monitor.execute("query-chardev")
    for chardev in chardevs if isinstance(chardevs, list) else []:
        if not isinstance(chardev, dict):
            continue
        label, name = str(chardev.get("label")), str(chardev.get("filename"))
        if label == _NAME or "/coldframe-" in name:
            if not name.startswith("disconnected:"):
                raise CapabilityError("another coldframe debugs this virtual machine; end it first")
            monitor.monitor("gdbserver none")
            stale = True
        elif label == "gdb":
            if not name.startswith("disconnected:"):
                raise CapabilityError(f"another debugger is connected to the gdbstub of this virtual machine at {name}")
            return _users_stub(name)
    way = _by_descriptor if can_pass_descriptors else _by_path
    if stale:
        with contextlib.suppress(QmpCommandError):
            monitor.execute("chardev-remove", {"id": _NAME})
        _drop_leftovers(monitor, *way(monitor, stale), guard)
    return way(monitor, stale)


def _drop_leftovers(
    monitor: Monitor,
    connection: StubConnection,
    start: Callable[[], None],
    guard: Callable[[StubConnection], Guard | None],
) -> None:
    """Remove the breakpoints of a client that died: detaching does. The guest runs for a moment.

    After a detach the connection must not be used any more: QEMU 7.2 crashes when it stops without an attached process.
    """
    with connection.socket:
        guardian = guard(connection)
        try:
            start()
            wait_stopped(monitor)
            stub = GdbStub(connection.socket)
            stub.resynchronise()
            stub.ask(b"D;1")
            monitor.monitor("gdbserver none")
        except BaseException:
            if guardian is not None:
                guardian.take_over()
            raise
        if guardian is not None:
            guardian.dismiss()


def _by_descriptor(monitor: Monitor, stale: bool) -> tuple[StubConnection, Callable[[], None]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def start() -> None:
        with theirs:
            monitor.execute("getfd", {"fdname": _NAME}, fds=[theirs.fileno()])
        monitor.execute(
            "chardev-add",
            {
                "id": _NAME,
                "backend": {
                    "type": "socket",
                    "data": {"addr": {"type": "fd", "data": {"str": _NAME}}, "server": False},
                },
            },
        )
        _check(monitor.monitor(f"gdbserver chardev:{_NAME}"))

    return StubConnection(ours, ours=True, stale=stale), start


def _by_path(monitor: Monitor, stale: bool) -> tuple[StubConnection, Callable[[], None]]:
    """A Unix socket that QEMU makes in a folder that only we and QEMU's user can enter."""
    import shutil  # noqa: PLC0415 - slow to load, and seldom wanted
    import tempfile  # noqa: PLC0415

    folder = tempfile.mkdtemp(prefix="coldframe-")
    path = Path(folder) / "gdb"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def cleanup() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def start() -> None:
        try:
            owner = _owner(monitor.pid)
            if owner is not None and owner[0] != os.geteuid():
                if os.geteuid():
                    raise CapabilityError(f"QEMU runs as user {owner[0]}; run coldframe as that user or as root")
                os.chown(folder, *owner)
            _check(monitor.monitor(f"gdbserver unix:{path},server=on,wait=off"))
            _connect(sock, str(path))
        finally:
            cleanup()

    return StubConnection(sock, ours=True, stale=stale, cleanup=cleanup), start


def _owner(pid: int | None) -> tuple[int, int] | None:
    """User and group of a process."""
    if pid is None:
        return None
    status = Path(f"/proc/{pid}").stat()
    return (status.st_uid, status.st_gid) if stat.S_ISDIR(status.st_mode) else None


def _users_stub(name: str) -> tuple[StubConnection, Callable[[], None]]:
    """The gdbstub that QEMU was started with: `disconnected:unix:/path,...` or `disconnected:tcp:host:port,...`."""
    match = re.match(r"disconnected:(?:unix:([^,]+)|tcp:\[?([^,\]]*?)\]?:(\d+))", name)
    if match is None:
        raise CapabilityError(f"this virtual machine has a gdbstub at {name}, which coldframe cannot connect to")
    sock = socket.socket(socket.AF_UNIX if match[1] else socket.AF_INET6 if ":" in match[2] else socket.AF_INET)
    where = match[1] or ({"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(match[2], match[2]), int(match[3]))
    return StubConnection(sock, ours=False), lambda: _connect(sock, where)


def _connect(sock: socket.socket, where: str | tuple[str, int]) -> None:
    deadline = time.monotonic() + _CONNECT_TIMEOUT
    while True:
        try:
            sock.connect(where)
        except OSError as error:
            if time.monotonic() > deadline:
                raise CapabilityError(f"cannot connect to the gdbstub at {where}: {error.strerror}") from None
            time.sleep(0.01)
            continue
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return


def _check(answer: str) -> None:
    if "Waiting for gdb connection" not in answer:
        raise CapabilityError(f"QEMU does not open a gdbstub: {answer.strip() or 'no reason given'}")


def wait_stopped(monitor: Monitor) -> None:
    """Wait until the guest has stopped after the gdbstub was connected."""
    deadline = time.monotonic() + _CONNECT_TIMEOUT
    while True:
        status = monitor.execute("query-status")
        if isinstance(status, dict) and not status.get("running"):
            return
        if time.monotonic() > deadline:
            raise GuestGoneError("QEMU did not stop the guest when the gdbstub was connected")
        time.sleep(0.002)
