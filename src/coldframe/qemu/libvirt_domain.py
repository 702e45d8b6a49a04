"""A monitor through libvirt's passthrough (`virsh qemu-monitor-command`), for domains by name. Extra: `libvirt`.

libvirt owns the domain's QMP socket; commands go through `virDomainQemuMonitorCommand`, with descriptors through
`virDomainQemuMonitorCommandWithFiles` (libvirt 8.2). Events do not come this way: the gdbstub's connection and QEMU's
process tell the end.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from coldframe.errors import CapabilityError, FormatError, GuestGoneError, NotFoundError
from coldframe.qemu.qmp import Json, QmpCommandError

_HMP = 1  # VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP


class LibvirtMonitor:
    """The monitor of one running libvirt domain. The connection is `$LIBVIRT_DEFAULT_URI`, else the system's QEMU."""

    def __init__(self, domain: str) -> None:
        self._libvirt, self._passthrough = _modules(domain)
        self._libvirt.registerErrorHandler(lambda *_: None, None)  # errors come as exceptions, not on standard error
        try:
            self._connection = self._libvirt.open(os.environ.get("LIBVIRT_DEFAULT_URI", "qemu:///system"))
        except self._libvirt.libvirtError as error:
            raise CapabilityError(
                f"no socket {domain!r}, and libvirt cannot be asked for a domain of that name: {error}"
            ) from None
        self._name = domain
        self.pid: int | None = None
        try:
            self._domain = self._connection.lookupByName(domain)
        except self._libvirt.libvirtError:
            known = [each.name() for each in self._connection.listAllDomains()]
            self._connection.close()
            raise NotFoundError("QMP socket or libvirt domain", domain, known) from None
        if not self._domain.isActive():
            self._connection.close()
            raise CapabilityError(f"libvirt domain {domain!r} is not running; start it with: virsh start {domain}")
        self.pid = _process(domain, self._domain.UUIDString())

    def execute(
        self, command: str, arguments: dict[str, Json] | None = None, *, fds: Sequence[int] = (), timeout: float = 30.0
    ) -> Json:
        """Run a QMP command and return its answer; `timeout` is libvirt's own."""
        request: dict[str, Json] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            if fds:
                text, _ = self._passthrough.qemuMonitorCommandWithFiles(self._domain, json.dumps(request), list(fds), 0)
            else:
                text = self._passthrough.qemuMonitorCommand(self._domain, json.dumps(request), 0)
        except self._libvirt.libvirtError as error:
            raise self._failure(command, str(error)) from None
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise FormatError(f"libvirt's monitor answers {command!r} with {text[:60]!r}")
        if "error" in answer:
            said = answer["error"]
            raise QmpCommandError(f"QEMU refused {command!r}: {said.get('desc') if isinstance(said, dict) else said}")
        result: Json = answer.get("return")
        return result

    def monitor(self, line: str) -> str:
        """Run a line of the human monitor."""
        try:
            return str(self._passthrough.qemuMonitorCommand(self._domain, line, _HMP)).replace("\r\n", "\n")
        except self._libvirt.libvirtError as error:
            raise self._failure(line, str(error)) from None

    def _failure(self, command: str, words: str) -> CapabilityError | GuestGoneError:
        try:
            for _ in range(20):  # libvirt notices the end of QEMU a little later than its sockets do
                if not self._domain.isActive():
                    return self._gone()
                if self.pid is not None and Path(f"/proc/{self.pid}").exists():
                    break
                time.sleep(0.05)
        except self._libvirt.libvirtError:
            return self._gone()
        return QmpCommandError(f"libvirt did not pass {command!r} on: {words}")

    def _gone(self) -> GuestGoneError:
        return GuestGoneError(f"libvirt domain {self._name!r} has ended")

    def pump(self) -> None:
        """Raises `GuestGoneError` when QEMU has ended; libvirt keeps the events."""
        if self.pid is not None and not Path(f"/proc/{self.pid}").exists():
            raise self._gone()

    def fileno(self) -> None:
        """None: there is no descriptor to wait at."""

    def why_gone(self) -> str:
        """Nothing is known."""
        return ""

    def close(self) -> None:
        """End the connection to libvirt; the domain goes on."""
        self._connection.close()


def start_paused(domain: str) -> None:
    """Start a domain that is shut off, paused before its first instruction; one that is active stays as it is.

    Raises `NotFoundError` for a name that is none, `CapabilityError` with libvirt's words.
    """
    libvirt, _ = _modules(domain)
    libvirt.registerErrorHandler(lambda *_: None, None)
    try:
        connection = libvirt.open(os.environ.get("LIBVIRT_DEFAULT_URI", "qemu:///system"))
    except libvirt.libvirtError as error:
        raise CapabilityError(f"libvirt cannot be asked for the domain {domain!r}: {error}") from None
    try:
        found = connection.lookupByName(domain)
        if not found.isActive():
            found.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    except libvirt.libvirtError as error:
        known = [each.name() for each in connection.listAllDomains()]
        if domain in known:
            raise CapabilityError(f"libvirt did not start {domain!r}: {error}") from None
        raise NotFoundError("disk image, QMP socket or libvirt domain", domain, known) from None
    finally:
        connection.close()


def _modules(domain: str) -> tuple[ModuleType, ModuleType]:
    try:
        return importlib.import_module("libvirt"), importlib.import_module("libvirt_qemu")
    except ImportError:
        raise CapabilityError(
            f"no socket {domain!r}; for a libvirt domain of that name install the extra: "
            f"pip install 'coldframe[libvirt]'"
        ) from None


def _process(name: str, uuid: str) -> int | None:
    """QEMU's process id: from libvirt's pid file, else the process with the domain's UUID on its command line."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    for folder in ("/run/libvirt/qemu", f"{runtime}/libvirt/qemu/run"):
        try:
            pid = int((Path(folder) / f"{name}.pid").read_text())
        except (OSError, ValueError):
            continue
        if _runs(pid, uuid):
            return pid
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _runs(int(entry.name), uuid):
            return int(entry.name)
    return None


def _runs(pid: int, uuid: str) -> bool:
    """Whether the process is the QEMU of the domain with this UUID."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"-uuid" in words and uuid.encode() in words
