"""A client of the QEMU Machine Protocol over a Unix socket.

Specification: QEMU's docs/interop/qmp-spec. The client is synchronous and has no thread: events that arrive while it
waits for an answer are kept in `events`, but for those that the guest stopped and runs, which come with every hit of a
breakpoint; `pump` takes in what has arrived meanwhile. One client serves one thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from coldframe.errors import CapabilityError, FormatError, GuestGoneError, UsageError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_GREETING_TIMEOUT = 3.0  # QEMU greets within a millisecond, unless another client holds the socket
_EVENTS_KEPT = 1000
_LONGEST_MESSAGE = 64 << 20
_TOLD_AT_EVERY_HIT = (b'"event": "STOP"}', b'"event": "RESUME"}')


class QmpCommandError(CapabilityError):
    """QEMU answered a command with an error; the message carries QEMU's own words."""


class Monitor(Protocol):
    """What coldframe needs of a QEMU monitor: a QMP socket has it, and so has libvirt's passthrough."""

    pid: int | None
    """QEMU's process, or None where it cannot be told."""

    def execute(
        self, command: str, arguments: dict[str, Json] | None = None, *, fds: Sequence[int] = (), timeout: float = 30.0
    ) -> Json:
        """Run a QMP command and return its answer."""
        ...

    def monitor(self, line: str) -> str:
        """Run a line of the human monitor and return what it prints."""
        ...

    def pump(self) -> None:
        """Take in events without waiting; raises `GuestGoneError` when QEMU has ended."""
        ...

    def fileno(self) -> int | None:
        """A descriptor that becomes readable when something happens, or None."""
        ...

    def why_gone(self) -> str:
        """What the events said of QEMU's end, for an error's message; may be empty."""
        ...

    def close(self) -> None:
        """Give the monitor back; QEMU goes on."""
        ...


class QmpClient:
    """One QMP connection. `path` is for messages."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._socket = sock
        self._path = path
        self._received = b""
        self._lines: deque[bytes] = deque()
        self._next_id = 0
        self._gone: str | None = None
        self.events: deque[dict[str, Json]] = deque(maxlen=_EVENTS_KEPT)
        self.pid: int | None = _peer_pid(sock)
        self.version: tuple[int, int, int] = self._shake_hands()

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = _GREETING_TIMEOUT) -> QmpClient:
        """Connect to the QMP socket at `path`.

        Raises `UsageError` where there is no socket, `CapabilityError` where it is busy, `FormatError` where what
        answers is not QMP.
        """
        path = os.fspath(path)
        if not Path(path).exists():
            raise UsageError(f"no such socket: {path} (start QEMU with -qmp unix:{path},server=on,wait=off)")
        if not Path(path).is_socket():
            raise UsageError(f"{path} is no socket; a QMP socket or a libvirt domain is needed here")
        deadline = time.monotonic() + timeout
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            sock.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                sock.connect(path)
                break
            except BlockingIOError:  # the queue of waiting clients is full
                sock.close()
                if time.monotonic() > deadline:
                    raise _busy(path) from None
                time.sleep(0.05)
            except PermissionError:
                sock.close()
                raise CapabilityError(f"no permission to connect to {path}: it belongs to another user") from None
            except (ConnectionRefusedError, FileNotFoundError):
                sock.close()
                raise GuestGoneError(f"nothing listens at {path}: the virtual machine has ended") from None
            except OSError as error:
                sock.close()
                raise UsageError(f"cannot connect to {path}: {error.strerror or error}") from None
        try:
            return cls(sock, path)
        except BaseException:
            sock.close()
            raise

    def _shake_hands(self) -> tuple[int, int, int]:
        try:
            greeting = self._message(time.monotonic() + (self._socket.gettimeout() or _GREETING_TIMEOUT))
        except TimeoutError:
            raise _busy(self._path) from None
        except GuestGoneError:
            raise FormatError(f"{self._path} is not a QMP socket: it hung up without a greeting") from None
        qmp = greeting.get("QMP")
        if not isinstance(qmp, dict):
            raise FormatError(f"{self._path} is not a QMP socket: it greets with {str(greeting)[:60]}")
        self._socket.settimeout(None)
        self.execute("qmp_capabilities")
        version = qmp.get("version")
        numbers = version.get("qemu") if isinstance(version, dict) else None
        if not isinstance(numbers, dict):
            return 0, 0, 0
        major, minor, micro = (numbers.get(part) for part in ("major", "minor", "micro"))
        return int(str(major)), int(str(minor)), int(str(micro))

    def execute(
        self, command: str, arguments: dict[str, Json] | None = None, *, fds: Sequence[int] = (), timeout: float = 30.0
    ) -> Json:
        """Run `command` and return its answer; `fds` travel along (for `getfd`).

        Raises `QmpCommandError` with QEMU's words, `GuestGoneError` when QEMU ended.
        """
        if self._gone is not None:
            raise GuestGoneError(self._gone)
        self._next_id += 1
        request: dict[str, Json] = {"execute": command, "id": self._next_id}
        if arguments:
            request["arguments"] = arguments
        data = json.dumps(request).encode() + b"\n"
        self._socket.settimeout(timeout)
        try:
            if fds:
                socket.send_fds(self._socket, [data], list(fds))
            else:
                self._socket.sendall(data)
        except OSError:
            raise self._is_gone() from None
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = self._message(deadline)
            except TimeoutError:
                raise GuestGoneError(f"QEMU did not answer {command!r} within {timeout:g} s") from None
            if "event" in answer:
                self.events.append(answer)
            elif answer.get("id") == self._next_id:
                if "error" in answer:
                    error = answer["error"]
                    words = error.get("desc") if isinstance(error, dict) else error
                    raise QmpCommandError(f"QEMU refused {command!r}: {words}")
                return answer.get("return")

    def monitor(self, line: str) -> str:
        """Run a line of the human monitor (`info mtree -f`) and return what it prints."""
        return str(self.execute("human-monitor-command", {"command-line": line})).replace("\r\n", "\n")

    def fileno(self) -> int:
        """The socket's descriptor, to poll."""
        return self._socket.fileno()

    def pump(self) -> None:
        """Take in what has arrived, without waiting: events go to `events`; raises `GuestGoneError` at the end."""
        with contextlib.suppress(TimeoutError):
            while True:
                message = self._message(0.0)
                if "event" in message:
                    self.events.append(message)

    def why_gone(self) -> str:
        """What the events said of the machine's end."""
        for event in reversed(self.events):
            if event.get("event") == "SHUTDOWN":
                data = event.get("data")
                reason = data.get("reason") if isinstance(data, dict) else None
                return f" ({reason})" if reason else ""
        return ""

    def close(self) -> None:
        """Hang up; QEMU goes on and takes the next client."""
        self._gone = self._gone or f"the connection to {self._path} was closed"
        self._socket.close()

    def _is_gone(self) -> GuestGoneError:
        self._gone = f"the virtual machine at {self._path} has ended{self.why_gone()}"
        return GuestGoneError(self._gone)

    def _message(self, deadline: float) -> dict[str, Json]:
        """The next message; raises `TimeoutError`, `GuestGoneError`, `FormatError`."""
        while not self._lines:
            if len(self._received) > _LONGEST_MESSAGE:
                raise FormatError(f"{self._path} is not a QMP socket: it sends {len(self._received)} bytes in one line")
            try:
                self._socket.settimeout(max(0.0, deadline - time.monotonic()))
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                raise TimeoutError from None
            except TimeoutError:
                raise
            except OSError:
                raise self._is_gone() from None
            if not data:
                raise self._is_gone()
            *lines, rest = (self._received + data).split(b"\n")
            self._lines.extend(line for line in lines if not line.rstrip().endswith(_TOLD_AT_EVERY_HIT))
            self._received = rest
        line = self._lines.popleft()
        try:
            message = json.loads(line)
        except ValueError:
            raise FormatError(f"{self._path} is not a QMP socket: it says {line[:40]!r}") from None
        if not isinstance(message, dict):
            raise FormatError(f"{self._path} is not a QMP socket: it says {line[:40]!r}")
        return message


def _busy(path: str) -> CapabilityError:
    return CapabilityError(
        f"{path} accepts the connection but sends no QMP greeting: another client holds it (QMP serves one at a "
        f"time; give QEMU a second -qmp socket), or it is no QMP socket"
    )


def _peer_pid(sock: socket.socket) -> int | None:
    """The process that listens at the other end, by SO_PEERCRED (unix(7)); 0 there means another PID namespace."""
    try:
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return None
    return int(pid) or None
