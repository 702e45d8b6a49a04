"""The disks of a running guest, read through the QEMU that owns them: a read-only NBD export of each.

`nbd-server-start` on a socket of ours and `block-export-add` for each disk, when the first is asked for; removed by
`close`, and by the guardian when this process dies (`nbd-server-stop` removes the exports too). QEMU has one such
server: where somebody else started it, it is left alone, and the disks cannot be read this way.

Where the monitor can pass descriptors, QEMU gets a socket that listens already, whose name in a folder of ours is
removed as soon as we are connected; else it makes one in a private folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe.errors import CapabilityError, ColdframeError, GuestGoneError
from coldframe.qemu.guarding import Guard
from coldframe.qemu.qmp import Json, Monitor, QmpClient, QmpCommandError

if TYPE_CHECKING:
    from coldframe.disk import Blocks
    from coldframe.qemu.nbd import NbdBlocks

EXPORT = "coldframe-disk"
_FD = "coldframe-nbd"
_CONNECT_TIMEOUT = 5.0


class DiskExports:
    """The guest's disks; the NBD server runs from the first `disks` to `close`. `guard` is told of it."""

    def __init__(self, monitor: Monitor, guard: Guard | None) -> None:
        self._monitor = monitor
        self._guard = guard
        self._folder: Path | None = None
        self._disks: list[NbdBlocks] | None = None
        self._serves = False  # whether QEMU's server is ours

    def disks(self) -> Sequence[Blocks]:
        """Each fixed disk of the machine, in QEMU's order; raises `CapabilityError` where QEMU does not give them."""
        if self._disks is None:
            try:
                self._disks = self._export()
            except BaseException:
                self.close()
                raise
        return self._disks

    def _export(self) -> list[NbdBlocks]:
        from coldframe.qemu.nbd import NbdBlocks  # noqa: PLC0415 - loads numpy

        nodes = fixed_disks(self._monitor)
        if not nodes:
            raise CapabilityError("the virtual machine has no disk")
        self._drop_stale()
        self._folder = Path(tempfile.mkdtemp(prefix="coldframe-nbd-"))
        path = self._start(self._folder / "nbd")
        self._serves = True
        if self._guard is not None:  # not before: the guardian would end a server that is somebody else's
            self._guard.exports(True)
        found = []
        for number, (device, node) in enumerate(nodes):
            name = f"{EXPORT}-{number}"
            arguments: dict[str, Json] = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": False}
            self._monitor.execute("block-export-add", arguments)
            found.append(NbdBlocks(_connect(path), name, device))
        shutil.rmtree(self._folder, ignore_errors=True)
        return found

    def _drop_stale(self) -> None:
        """End the server of a coldframe that died together with its guardian."""
        exports = self._monitor.execute("query-block-exports")
        names = [str(each.get("id")) for each in exports if isinstance(each, dict)] if isinstance(exports, list) else []
        if names and all(name.startswith(EXPORT) for name in names):
            self._monitor.execute("nbd-server-stop")

    def _start(self, path: Path) -> Path:
        """Start the server at `path`."""
        try:
            if isinstance(self._monitor, QmpClient):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                    server.bind(str(path))
                    server.listen(8)
                    self._monitor.execute("getfd", {"fdname": _FD}, fds=[server.fileno()])
                self._monitor.execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": _FD}}})
            else:
                self._give_folder(path.parent)
                self._monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}})
        except QmpCommandError as error:
            raise CapabilityError(f"the guest's disks cannot be read through QEMU (give --disk): {error}") from None
        return path

    def _give_folder(self, folder: Path) -> None:
        """Let QEMU's user enter a folder of ours."""
        if self._monitor.pid is None:
            return
        owner = Path(f"/proc/{self._monitor.pid}").stat()
        if owner.st_uid != os.geteuid():
            if os.geteuid():
                raise CapabilityError(f"QEMU runs as user {owner.st_uid}; run coldframe as that user or as root")
            os.chown(folder, owner.st_uid, owner.st_gid)

    def close(self) -> None:
        """Hang up and end the server with its exports. Idempotent; raises nothing for a guest that is gone."""
        disks, self._disks = self._disks, None
        folder, self._folder = self._folder, None
        for disk in disks or ():
            disk.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if not self._serves:
            return
        self._serves = False
        with contextlib.suppress(ColdframeError):
            for number in range(len(disks or ())):
                self._monitor.execute("block-export-del", {"id": f"{EXPORT}-{number}", "mode": "hard"})
        with contextlib.suppress(ColdframeError):
            self._monitor.execute("nbd-server-stop")
        if self._guard is not None:
            self._guard.exports(False)


def fixed_disks(monitor: Monitor) -> list[tuple[str, str]]:
    """The disks of the machine that cannot be taken out: what to call each, and its block node."""
    blocks = monitor.execute("query-block")
    found = []
    for block in blocks if isinstance(blocks, list) else []:
        inserted = block.get("inserted") if isinstance(block, dict) else None
        if not isinstance(block, dict) or not isinstance(inserted, dict) or block.get("removable"):
            continue
        node = inserted.get("node-name")
        name = block.get("device") or block.get("qdev") or node
        if node and not str(name).startswith("pflash"):
            found.append((f"the guest's disk {name}", str(node)))
    return found


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_TIMEOUT
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(_CONNECT_TIMEOUT)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise GuestGoneError(f"QEMU's NBD server does not answer: {error.strerror or error}") from None
            time.sleep(0.01)
            continue
        return sock
