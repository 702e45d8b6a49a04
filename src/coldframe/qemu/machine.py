"""A virtual machine under QEMU: its RAM, its vCPUs' registers, running and stopping it.

Knows nothing of Windows. Attaching changes nothing; the gdbstub and the guardian are started by the first call that
needs the guest stopped. Closing undoes everything; when the process dies instead, the guardian does.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from coldframe.errors import CapabilityError, ColdframeError, GuestGoneError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.qemu import ram, stub_setup
from coldframe.qemu.arrivals import Breakpoint, Stop
from coldframe.qemu.control import Control
from coldframe.qemu.gdbstub import GdbStub
from coldframe.qemu.guarding import Guard
from coldframe.qemu.nbd_export import DiskExports
from coldframe.qemu.qmp import Json, Monitor, QmpClient

if TYPE_CHECKING:
    from coldframe.disk import Blocks

_TABLE = re.compile(r"^(GDT|IDT)=\s*([0-9a-f]+) ([0-9a-f]+)", re.MULTILINE)
_WORDS = 512  # of 8 bytes, that one `xp` is asked for


@dataclass(frozen=True, slots=True)
class DescriptorTables:
    """Where the processor finds its descriptor tables; limits in bytes less one."""

    idt_base: int
    idt_limit: int
    gdt_base: int
    gdt_limit: int


class VirtualMachine:
    """One virtual machine; use `attach` or `launch` to get it, and leave it with `close` or a `with` block.

    For one thread at a time.
    """

    def __init__(
        self, monitor: Monitor, name: str, *, on_close: Callable[[], None] | None = None, ram_access: str | None = None,
        guarded: bool = True, leave_running: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self._monitor = monitor
        self._on_close = on_close
        self._guarded = guarded
        self._control: Control | None = None
        self._connection: stub_setup.StubConnection | None = None
        self._guard: Guard | None = None
        self._exports: DiskExports | None = None
        self._closed = False
        self._resume_callbacks: list[Callable[[], None]] = []
        self._leave_running = leave_running
        self.was_running = self._ran(self._status())
        """Whether the guest ran when this was made, or shall run when it is let go of; `close` leaves it so."""
        self.accelerator = self._find_accelerator()
        """ "tcg" or "kvm"."""
        self.ram_map = ram.ram_map(monitor)
        """The guest's RAM: ranges of guest-physical addresses and where they lie in QEMU's RAM blocks."""
        access = ram.open_ram(monitor, self.ram_map, _SlowMemory(self), ram_access)
        self.physical: PhysicalMemory = access.physical
        """The guest's physical memory; it changes as the guest runs."""
        self.memory_path = access.how
        """How `physical` gets its bytes, for people."""
        self.memory_refused = access.refused
        """Why each better way to the bytes could not be taken."""

    @classmethod
    def attach(
        cls, target: str | os.PathLike[str], *, breakpoints: bool = True, ram_access: str | None = None,
        leave_running: bool = False,
    ) -> VirtualMachine:  # fmt: skip
        """Attach to the QEMU behind a QMP socket (a path), or to a libvirt domain (a name).

        `breakpoints=False` promises that only memory and the monitor are used: no gdbstub is ever opened.
        `ram_access` forces a way to the RAM ("mmap", "process" or "monitor") instead of the best. `leave_running` lets
        a guest run in the end, however that comes, even if it is paused now: one that has not booted yet.
        """
        name = os.fspath(target)
        monitor = open_monitor(name)
        try:
            machine = cls(monitor, name, ram_access=ram_access, leave_running=leave_running)
        except BaseException:
            monitor.close()
            raise
        machine._refuses_control = not breakpoints
        return machine

    _refuses_control = False

    def __enter__(self) -> VirtualMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(ColdframeError):  # the error under way says more
            self.close()

    def __repr__(self) -> str:
        return f"<VirtualMachine {self.name} {self.accelerator}, {self.memory_path}>"

    # -- monitor ----------------------------------------------------------------------------------------------------

    def qmp(self, command: str, **arguments: Json) -> Json:
        """Run a QMP command; `_` in argument names stands for `-`."""
        return self._monitor.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def monitor(self, line: str) -> str:
        """Run a line of QEMU's human monitor (`info registers -a`) and return what it prints."""
        return self._monitor.monitor(line)

    @property
    def pid(self) -> int | None:
        """QEMU's process, where it can be told."""
        return self._monitor.pid

    @property
    def vcpus(self) -> int:
        """How many virtual processors there are."""
        if self._control is not None:
            return self._control.vcpus
        answer = self._monitor.execute("query-cpus-fast")
        return len(answer) if isinstance(answer, list) else 0

    @property
    def running(self) -> bool:
        """Whether the guest runs; a breakpoint may stop it at any time."""
        return self._status() == "running"

    def _ran(self, status: str, *, stale: bool = False) -> bool:
        """Whether a guest in this state runs, but for its debugger, which may have died; or shall run in the end."""
        return self._leave_running or status == "running" or (stale and status == "debug")

    def _status(self) -> str:
        """QEMU's word for the state of the machine: "running", "paused", "debug", "shutdown"..."""
        answer = self._monitor.execute("query-status")
        return str(answer.get("status")) if isinstance(answer, dict) else "unknown"

    def _find_accelerator(self) -> str:
        answer = self._monitor.execute("query-kvm")
        return "kvm" if isinstance(answer, dict) and answer.get("enabled") else "tcg"

    def descriptor_tables(self, vcpu: int = 0) -> DescriptorTables:
        """Where the interrupt and global descriptor tables of a vCPU are, from the monitor."""
        text = self.monitor("info registers -a")
        parts = re.split(r"^CPU#(\d+)", text, flags=re.MULTILINE)
        for number, part in zip(parts[1::2], parts[2::2], strict=True):
            if int(number) == vcpu:
                tables = {name: (int(base, 16), int(limit, 16)) for name, base, limit in _TABLE.findall(part)}
                if len(tables) == 2:
                    return DescriptorTables(*tables["IDT"], *tables["GDT"])
        raise CapabilityError(f"QEMU's 'info registers -a' shows no descriptor tables of vCPU {vcpu}")

    # -- control ----------------------------------------------------------------------------------------------------

    @property
    def control(self) -> Control:
        """Run control; opens the gdbstub, and stops the guest, the first time."""
        if self._control is None:
            if self._closed:
                raise CapabilityError(f"{self.name} has been detached from")
            if self._refuses_control:
                raise CapabilityError(f"{self.name} was attached to for its memory alone (breakpoints=False)")
            self._control = self._open_control()
        return self._control

    def _open_control(self) -> Control:
        passes = isinstance(self._monitor, QmpClient)
        status = self._status()

        def guard(connection: stub_setup.StubConnection) -> Guard | None:
            if not self._guarded:
                return None
            return Guard(
                gdb=connection.socket.fileno(),
                qmp=self._monitor.fileno() if passes else None,
                pid=self._monitor.pid,
                was_running=self._ran(status, stale=connection.stale),
                close_stub=connection.ours,
                domain="" if passes else self.name,
            )

        connection, start = stub_setup.prepare(self._monitor, can_pass_descriptors=passes, guard=guard)
        was_running = self._ran(status, stale=connection.stale)
        try:
            self._guard = guard(connection)
            start()
            self._connection = connection
            stub_setup.wait_stopped(self._monitor)
            stub = GdbStub(connection.socket)
            stub.resynchronise()
            stub.greet()
        except BaseException:
            connection.socket.close()
            self._close_stub(connection, was_running)
            if self._guard is not None:
                self._guard.dismiss()
                self._guard = None
            raise
        self.was_running = was_running
        slow = any(isinstance(run.backing, _SlowMemory) for run in self.physical.runs)
        physical = None if slow else self.physical
        return Control(stub, self._monitor, self._guard, self.accelerator, physical, on_resume=self._resume_callbacks)

    def disks(self) -> Sequence[Blocks]:
        """The machine's disks, read through QEMU, which exports them until `close`; what they hold changes as it runs.

        Raises `CapabilityError` where QEMU has no disk, or its NBD server is in use.
        """
        if self._exports is None:
            guard = None if self._refuses_control else (self.control, self._guard)[1]
            self._exports = DiskExports(self._monitor, guard)
        return self._exports.disks()

    def on_resume(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the guest is about to run: whoever caches anything of the guest drops it there."""
        self._resume_callbacks.append(callback)

    def pause(self) -> None:
        """Stop all vCPUs; no effect when they are stopped."""
        self.control.pause()

    def interrupt(self) -> None:
        """Ask a guest that another thread runs to stop; no effect where it stands still. The one call for two threads.

        `run_until_stop` returns with the reason "interrupt" then.
        """
        if self._control is not None:
            self._control.interrupt()

    def resume(self) -> None:
        """Let all vCPUs run; no effect when they run."""
        self.control.resume()

    def step(self, vcpu: int) -> Stop:
        """Carry out one instruction of `vcpu`, the other vCPUs frozen; the guest is paused before and after."""
        return self.control.step(vcpu)

    def run_until_stop(self, timeout: float | None = None) -> Stop | None:
        """Let the guest run until a breakpoint or another reason stops it; after `timeout` s pause it, return None.

        Every arrival at a breakpoint is returned exactly once. On an exception (Ctrl-C) breakpoints stay set.
        Raises `GuestGoneError` when the machine ends.
        """
        return self.control.run_until_stop(timeout)

    def registers(self, vcpu: int) -> Mapping[str, int]:
        """The registers of `vcpu` by name (rax..r15, rip, eflags, cs.., fs_base, gs_base, k_gs_base, cr0.., efer).

        The guest must be paused. Fetched once a pause.
        """
        return self.control.registers(vcpu)

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Write registers of `vcpu` by name; the guest must be paused."""
        self.control.write_registers(vcpu, values)

    def insert_breakpoint(self, address: int, kind: str = "hardware", length: int = 1) -> Breakpoint:
        """Set a breakpoint at a virtual address, for all vCPUs: "hardware", "software" (KVM: an int3 that the guest
        can see), or a watchpoint "write", "read", "access" of `length` bytes. Raises `CapabilityError` when full."""
        return self.control.insert(address, kind, length)

    def remove_breakpoint(self, breakpoint: Breakpoint) -> None:  # noqa: A002
        """Remove a breakpoint; no effect when it is gone."""
        if self._control is not None:
            self._control.remove(breakpoint)

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove all breakpoints, leave the guest as it was (running or paused), close everything. Idempotent.

        Raises `GuestGoneError` when the machine ended meanwhile, after everything was closed.
        """
        if self._closed:
            return
        self._closed = True
        if self._exports is not None:
            self._exports.close()
        try:
            if self._control is not None and self._connection is not None:
                control, self._control = self._control, None
                try:
                    control.release()
                    self._connection.socket.close()
                    self._close_stub(self._connection, self.was_running)
                except GuestGoneError:
                    raise
                except BaseException:
                    if self._guard is not None:
                        guard, self._guard = self._guard, None
                        guard.take_over()
                    raise
                finally:
                    self._connection.socket.close()
        finally:
            if self._guard is not None:
                self._guard.dismiss()
                self._guard = None
            self._monitor.close()
            if self._on_close is not None:
                self._on_close()

    def _close_stub(self, connection: stub_setup.StubConnection, was_running: bool) -> None:
        """Close the gdbstub if we opened it, and see that the guest runs if it did."""
        connection.cleanup()
        with contextlib.suppress(GuestGoneError, CapabilityError):
            if connection.ours:
                self._monitor.monitor("gdbserver none")
            if was_running and self._status() != "running":
                self._monitor.execute("cont")

    def _read_slowly(self, address: int, size: int) -> bytes:
        """Guest-physical bytes through the gdbstub where it is open and the guest paused, else the monitor."""
        if self._control is not None and not self._control.running:
            return self._control.read_physical(address, size)
        start = address & ~7
        data = bytearray()
        while len(data) < address + size - start:
            count = min(_WORDS, (address + size - start - len(data) + 7) // 8)
            text = self.monitor(f"xp /{count}gx {start + len(data):#x}")
            words = re.findall(r"0x([0-9a-f]{16})", text)
            if len(words) != count:
                raise UnreadableMemoryError(address, size, f"QEMU's monitor says {text.strip()[:60]!r}")
            data += b"".join(int(word, 16).to_bytes(8, "little") for word in words)
        return bytes(data[address - start : address - start + size])


class _SlowMemory:
    """The last resort: guest-physical bytes through the gdbstub or the monitor. Offsets are physical addresses."""

    def __init__(self, machine: VirtualMachine) -> None:
        self._machine = machine

    def __str__(self) -> str:
        return "gdbstub and monitor (slow)"

    def read(self, offset: int, size: int) -> bytes:
        return self._machine._read_slowly(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._machine.control.write_physical(offset, data)


def open_monitor(target: str) -> Monitor:
    """A monitor for a QMP socket's path or a libvirt domain's name."""
    if "/" in target or os.path.exists(target) or target.endswith((".qmp", ".sock", ".socket", ".monitor")):  # noqa: PTH110
        return QmpClient.connect(target)
    from coldframe.qemu.libvirt_domain import LibvirtMonitor  # noqa: PLC0415  (needs the extra)

    return LibvirtMonitor(target)
