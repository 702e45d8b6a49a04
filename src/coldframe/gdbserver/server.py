"""Where clients come from: a TCP port, a Unix socket, or standard input and output; one client at a time.

Between two clients the guest runs, if it ran when it was attached to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coldframe.debug import LiveGuest
from coldframe.errors import CapabilityError, ColdframeError, GuestGoneError, UsageError
from coldframe.gdbserver.connection import ClientGoneError, Connection
from coldframe.gdbserver.inferior import Inferior, inferior
from coldframe.gdbserver.session import Log, Monitor, Session
from coldframe.gdbserver.symbolfile import symbol_file
from coldframe.windows import Guest

_LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%\w]+)\]:|(?P<host>[^:\[\]]*):)?(?P<port>\d{1,5})")
_BACKLOG = 64
_LOOK = 1.0
"""Seconds between two looks whether a guest that nobody debugs is still there."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen: a `path` of a Unix socket, or a `host` and a `port`; standard input and output for neither."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """`127.0.0.1:1234`, `:1234` and `1234` (both on loopback alone), `[::1]:1234`, a path with `/`, or `-`.

        Raises `UsageError`.
        """
        if text == "-":
            return cls()
        if text.startswith("unix:") or "/" in text:
            return cls(path=Path(text.removeprefix("unix:")))
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > 0xFFFF:
            raise UsageError(f"expected --listen HOST:PORT, a path such as ./gdb.sock, or -; found {text!r}")
        return cls(match["six"] or match["host"] or _LOOPBACK, int(match["port"]))

    @property
    def standard(self) -> bool:
        """Whether standard input and output are meant."""
        return not self.host and self.path is None

    @property
    def reachable(self) -> bool:
        """Whether other machines may connect."""
        return bool(self.host) and self.host != "::1" and not self.host.startswith("127.") and self.host != "localhost"

    @contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """A socket that listens there; a Unix socket is this user's alone, and removed afterwards.

        Raises `CapabilityError` where the place is taken or cannot be had.
        """
        family = socket.AF_UNIX if self.path else socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            try:
                if self.path is not None:
                    _drop_stale(self.path)
                    before = os.umask(0o177)
                    try:
                        listener.bind(str(self.path))
                    finally:
                        os.umask(before)
                else:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind((self.host, self.port))
                listener.listen(_BACKLOG)
            except OSError as error:
                place = self.path or f"{self.host}:{self.port}"
                taken = error.errno == errno.EADDRINUSE
                raise CapabilityError(
                    f"cannot listen on {place}: {'another program does' if taken else error.strerror or error}"
                    "; choose another place with --listen"
                ) from None
            try:
                yield listener
            finally:
                if self.path is not None:
                    self.path.unlink(missing_ok=True)


def _drop_stale(path: Path) -> None:
    """Remove a socket at `path` that nobody listens on any more."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()


def address_of(listener: socket.socket) -> str:
    """What a client calls the place (`target remote ...`)."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return str(name)
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


class GdbServer:
    """Serves clients of GDB's remote protocol on `guest`: a process by name or pid, or the machine.

    `monitor` carries out the clients' monitor commands, `log` is told what goes on. Raises `NotFoundError` where there
    is no such process now; each client is given the one of that name that is there when it comes.
    """

    def __init__(
        self,
        guest: Guest,
        process: str | int | None,
        monitor: Monitor,
        log: Log = lambda _: None,
        *,
        symbols: bool = True,
    ) -> None:
        self.guest = guest
        self._wanted = process
        self._monitor = monitor
        self._log = log
        self.inferior = self._inferior()
        self._symbols: tuple[object, bytes] | None = None
        self._gives_symbols = symbols and guest.types.pointer_size == 8
        self._symbol_file()

    def _inferior(self) -> Inferior:
        return inferior(self.guest, None if self._wanted is None else self.guest.process(self._wanted))

    def _symbol_file(self) -> bytes | None:
        """The symbols of all modules for clients, made when other modules are loaded than last time.

        A client waits for seconds at most, so they are made before it asks.
        """
        if not self._gives_symbols:
            return None
        process = self.inferior.process
        modules = [*(() if process is None else process.modules), *self.guest.drivers]
        loaded = [(module.path, module.base, module.timestamp) for module in modules]
        if self._symbols is None or self._symbols[0] != loaded:
            self._symbols = (loaded, symbol_file(modules))
            self._log(f"symbols of {len(modules)} modules: {len(self._symbols[1])} bytes")
        return self._symbols[1]

    def serve_standard(self, source: int = 0, sink: int = 1) -> None:
        """Serve the one client behind these descriptors, until it goes."""
        self._serve(Connection(source, sink))

    def serve(self, listener: socket.socket, *, once: bool = False, told: Callable[[], None] = lambda: None) -> None:
        """Serve the clients that connect, one after the other; with `once` the first alone.

        `told` is called when the first may come. Raises `GuestGoneError` when the machine ends.
        """
        self._let_run()
        told()
        while True:
            client = self._accept(listener)
            with client:
                self._log("a client has connected")
                self._serve(Connection(client.fileno(), client.fileno(), listener))
            if once:
                return

    def _accept(self, listener: socket.socket) -> socket.socket:
        while not select.select([listener], [], [], _LOOK)[0]:
            if isinstance(self.guest, LiveGuest):
                _ = self.guest.vm.running  # asks QEMU, which is told where it has ended
        client, _ = listener.accept()
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        return client

    def _serve(self, client: Connection) -> None:
        try:
            if isinstance(self.guest, LiveGuest):
                self.guest.pause()
            self.inferior = self._inferior()
            Session(self.inferior, client, self._monitor, self._log, self._symbol_file()).serve()
            self._log("the client has let go")
        except ClientGoneError as error:
            self._log(f"{error}; it is let go of")
        except GuestGoneError:
            raise
        except ColdframeError as error:  # the process is not there any more
            self._log(f"the client is sent away: {error}")
            self._let_run()
        if client.turned_away:
            self._log(f"{client.turned_away} other clients were sent away meanwhile")

    def _let_run(self) -> None:
        if isinstance(self.guest, LiveGuest) and self.guest.vm.was_running:
            with contextlib.suppress(GuestGoneError):
                self.guest.resume()
