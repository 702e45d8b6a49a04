"""Building and running minint: one QEMU, its serial line, its disk."""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from coldframe.closing import Closing
from coldframe.errors import ColdframeError, GuestGoneError, UsageError
from coldframe.minint.truth import Event, Truth, TruthPage, read_log
from coldframe.qemu.qmp import Json, QmpClient

if TYPE_CHECKING:
    from coldframe.resident import Report

SOURCE = Path(__file__).resolve().parents[3]
GUEST = SOURCE / "guest"
BOOT_SECONDS = {"tcg": 60.0, "kvm": 600.0}
_SETTLED = "states: all pages are where they shall be"
_PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")


class MinintError(ColdframeError):
    """minint could not be built, or it stopped where it should not; the message has the tool's or the guest's words."""


def layouts() -> list[str]:
    """The builds whose structures minint can have."""
    return sorted(path.stem.removeprefix("nt_") for path in (GUEST / "layouts").glob("nt_*.h"))


def build(layout: str) -> Path:
    """Build minint with the structures of `layout`; returns the folder of what was built.

    Raises `UsageError` for an unknown layout, `MinintError` with the tool's output when a tool fails.
    """
    if not (GUEST / "build.py").is_file():
        raise MinintError(f"minint is built from the source tree's guest folder; there is none at {GUEST}")
    if layout not in layouts():
        raise UsageError(f"expected a layout of {', '.join(layouts())}, found {layout!r}")
    output = SOURCE / "build" / "minint" / layout
    _tool(str(GUEST / "build.py"), "--layout", layout, "--output", str(output))
    return output


def read_file(disk: Path, path: str) -> bytes:
    r"""The content of the file `path` (`\Users\minint\a.txt`) on the volume of a minint disk that nobody writes to."""
    return _tool(str(GUEST / "disk.py"), "--read", path, str(disk))


def _tool(*words: str) -> bytes:
    done = subprocess.run([sys.executable, *words], capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise MinintError(f"{Path(words[0]).name} failed: {said[-2000:]}")
    return done.stdout


def start(
    *,
    layout: str = "19041",
    vcpus: int = 2,
    memory: str = "512M",
    accelerator: str = "tcg",
    kva_shadow: bool = False,
    options: str = "",
    directory: Path | None = None,
    qmp: Path | None = None,
    resident: bool = False,
    paused: bool = False,
) -> Minint:
    """Build what is missing, boot minint and return when its notepad.exe writes.

    `options` are further boot options (see guest/README.md). `directory` keeps disk, log and sockets (default: a
    temporary folder that goes with the guest). `qmp` is where the QMP socket shall be. `resident` has coldframe watch
    the boot, so that no page leaves RAM; `paused` returns before the first instruction instead. Raises `MinintError`.
    """
    built = build(layout)
    return Minint(
        built, vcpus=vcpus, memory=memory, accelerator=accelerator, directory=directory, qmp=qmp,
        options=" ".join([*(["KVASHADOW"] if kva_shadow else []), options]).strip(), resident=resident, paused=paused,
    )  # fmt: skip


class Minint(Closing):
    """A running minint. A context manager; leaving it ends the guest.

    `qmp` is the socket for `coldframe.attach`, `symbols_folder` holds the PDBs, `disk` is the qcow2 image, `log` the
    serial log; `report` is what a resident boot was found to have done.
    """

    def __init__(
        self,
        built: Path,
        *,
        vcpus: int,
        memory: str,
        accelerator: str,
        directory: Path | None,
        qmp: Path | None,
        options: str,
        resident: bool = False,
        paused: bool = False,
    ) -> None:
        self.built = built
        self.symbols_folder = built / "symbols"
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="minint-")
        self.directory = directory or Path(self._temporary.name if self._temporary else ".")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.qmp = qmp or self.directory / "minint.qmp"
        self.disk = self.directory / "minint.qcow2"
        self.log = self.directory / "minint.log"
        self._read = 0
        self._partial = ""
        self.events: list[Event] = []
        self._unseen: deque[Event] = deque()
        self.report: Report | None = None
        for stale in (self.qmp, self.log, self.directory / "control.qmp", self.directory / "commands"):
            stale.unlink(missing_ok=True)
        _tool(str(GUEST / "disk.py"), "--built", str(built), "--output", str(self.disk))
        self._process = subprocess.Popen(
            [*self._command(vcpus, memory, accelerator, options), *(["-S"] if resident or paused else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.directory / "qemu.err").open("wb"),
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one prctl, which takes no lock
        )
        try:
            self._commands = self._patiently(lambda: _connect(self.directory / "commands"))
            self._control = self._patiently(lambda: QmpClient.connect(self.directory / "control.qmp"))
            self._patiently(lambda: _connect(self.qmp)).close()  # it is there for whoever wants it
            if resident:
                self.report = self._boot_residently(BOOT_SECONDS.get(accelerator, 60.0))
            if not paused:
                self.wait_for("write", timeout=BOOT_SECONDS.get(accelerator, 60.0))
        except BaseException:
            self.close()
            raise

    def _boot_residently(self, seconds: float) -> Report:
        """Watch the boot through the QMP socket, as for any guest, until notepad.exe starts."""
        from coldframe.qemu import VirtualMachine  # noqa: PLC0415 - a plain boot needs none of it
        from coldframe.resident import BootOptions, ResidentBoot, verify  # noqa: PLC0415
        from coldframe.target import symbol_store  # noqa: PLC0415

        options = BootOptions(timeout=seconds, until="notepad.exe", until_timeout=seconds, settle=0.0)
        with VirtualMachine.attach(self.qmp, leave_running=True) as vm:
            boot = ResidentBoot(vm, symbol_store([self.symbols_folder]), options)
            return verify(boot.run(), boot)

    def _command(self, vcpus: int, memory: str, accelerator: str, options: str) -> list[str]:
        # nested hosts refuse the MSR behind arch-capabilities
        processor = "host,-arch-capabilities" if accelerator == "kvm" else "max"
        return [
            "qemu-system-x86_64",
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", "q35,memory-backend=ram", "-accel", accelerator, "-cpu", processor),
            *("-object", f"memory-backend-memfd,id=ram,size={memory},share=on", "-m", memory, "-smp", str(vcpus)),
            *("-kernel", str(self.built / "loader.elf"), "-initrd", str(self.built / "ntoskrnl.exe")),
            *("-append", options),
            *("-drive", f"if=none,id=disk,format=qcow2,file={self.disk}"),
            *("-device", "virtio-blk-pci,drive=disk,disable-modern=on"),
            *("-serial", f"file:{self.log}"),
            *("-chardev", f"socket,id=commands,path={self.directory}/commands,server=on,wait=off"),
            *("-serial", "chardev:commands"),
            *("-qmp", f"unix:{self.directory}/control.qmp,server=on,wait=off"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
        ]

    def close(self) -> None:
        """End the guest and remove its temporary folder."""
        self._process.kill()
        self._process.wait()
        for link in ("_commands", "_control"):
            if hasattr(self, link):
                getattr(self, link).close()
        if self._temporary:
            self._temporary.cleanup()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def wait(self) -> None:
        """Return when QEMU ends."""
        self._process.wait()

    # What the guest says

    def new_events(self) -> Iterator[Event]:
        """The events that no call of this has yielded yet, as the guest logged them; `events` keeps them all."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        lines = (self._partial + text.decode("utf-8", "replace")).split("\n")
        self._partial = lines.pop()
        events = list(read_log(lines))
        self.events += events
        self._unseen += events
        while self._unseen:
            yield self._unseen.popleft()

    def wait_for(self, name: str, *, timeout: float = 30.0, accept: Callable[[Event], bool] = lambda _: True) -> Event:
        """Wait for an event called `name`, from now on, that `accept` accepts; returns it.

        Raises `MinintError` when the guest ended, crashed or did not say it within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            for event in self.new_events():
                if event.get("event") == "bugcheck":
                    raise MinintError(f"minint crashed: {json.dumps(event)}")
                if event.get("event") == name and accept(event):
                    return event
            if self._process.poll() is not None:
                words = (self.directory / "qemu.err").read_text(errors="replace").strip()
                raise MinintError(f"QEMU ended with status {self._process.returncode}: {words or 'it said nothing'}")
            if time.monotonic() > deadline:
                last = json.dumps(self.events[-1]) if self.events else "nothing at all"
                raise MinintError(f"minint did not say {name!r} within {timeout:.0f} s; its last words: {last}")
            time.sleep(0.01)

    def wait_until_steady(self, *, timeout: float = 60.0) -> None:
        """Return when states.exe has brought its pages into every state, where they stay. See `wait_for`."""

        def settled(event: Event) -> bool:
            return event.get("event") == "note" and str(event.get("text")).startswith(_SETTLED)

        if not any(settled(event) for event in self.events):
            self.wait_for("note", timeout=timeout, accept=settled)

    def command(self, line: str) -> None:
        """Send a command line to the guest, over its second serial port: the first one is for its log alone."""
        self._commands.sendall(line.encode() + b"\n")

    def truth(self, *, timeout: float = 120.0) -> Truth:
        """Freeze the guest and ask what each of its pages is; it stays frozen until `go`.

        The vCPUs still run (the guest spins), so pause it through QMP to read its memory at leisure.
        """
        list(self.new_events())
        first = len(self.events)
        self.command("truth")
        self.wait_for("truth-end", timeout=timeout)
        pages = tuple(TruthPage.of(event) for event in self.events[first:] if event.get("event") == "page")
        return Truth(pages, tuple(event for event in self.events if event.get("event") != "page"))

    def go(self) -> None:
        """Let the guest go on after `truth`."""
        self.command("go")

    def control(self, command: str, **arguments: Json) -> Json:
        """A QMP command on a socket of our own, which leaves `qmp` free."""
        return self._control.execute(command, dict(arguments), timeout=120.0)

    def write_dump(self, dump: Path, *, disk: Path | None = None, log: Path | None = None) -> Truth:
        """Freeze the guest in a steady state; write its memory (an ELF core), its disk, and its log with the truth.

        Returns the truth that the log ends with.
        """
        self.wait_until_steady()
        truth = self.truth()
        self.control("stop")  # QEMU flushes its block devices as it stops
        self.control("dump-guest-memory", paging=False, protocol=f"file:{dump.absolute()}")
        if disk:
            shutil.copyfile(self.disk, disk)
        if log:
            shutil.copyfile(self.log, log)
        self.control("cont")
        self.go()
        return truth

    def _patiently(self, connect: Callable[[], _T]) -> _T:
        """What `connect` returns, once QEMU has made the socket that it wants."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return connect()
            except (OSError, UsageError, GuestGoneError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    words = (self.directory / "qemu.err").read_text(errors="replace").strip()
                    raise MinintError(f"QEMU did not start: {words or error}") from None
                time.sleep(0.01)


def _connect(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(str(path))
    except OSError:
        link.close()
        raise
    return link


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
