"""`boot`: from a disk image, a command line or a domain to a guest whose every page is in RAM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe.debug import LiveGuest
from coldframe.errors import ColdframeError, GuestGoneError, UsageError
from coldframe.qemu import VirtualMachine
from coldframe.resident.booting import ResidentBoot
from coldframe.resident.machines import Machine, attach_paused, start_command, start_disk
from coldframe.resident.phases import BootOptions, Tell
from coldframe.resident.snapshot import save_snapshot
from coldframe.resident.verification import Report, verify

if TYPE_CHECKING:
    from coldframe.windows.kernel import FindsSymbols


class ResidentGuest(LiveGuest):
    """A guest that was booted residently. `report` is what verification found; `qmp` where its QMP socket is.

    Leaving its `with` block ends the machine that was started for it, unless `keep`; a machine that was attached to
    runs on. If this process is killed, the machine runs on in either case, with no breakpoint.
    """

    report: Report
    qmp: str
    keep: bool = True

    def snapshot(self, name: str) -> None:
        """Save a snapshot of RAM and disks, see `save_snapshot`; the guest stands still meanwhile."""
        save_snapshot(self.vm, name)
        self.new_pause()

    def end(self) -> None:
        """End the machine, as by pulling its plug."""
        self.keep = False
        self.close()

    def close(self) -> None:
        """End the machine or let it run on, see the class."""
        if not self.keep:
            _quit(self.vm)
        try:
            super().close()
        except ColdframeError:
            if self.keep:
                raise


def boot(
    target: str | os.PathLike[str] | Sequence[str],
    *,
    store: FindsSymbols,
    machine: Machine | None = None,
    options: BootOptions | None = None,
    qmp: str | os.PathLike[str] | None = None,
    keep: bool = False,
    tell: Tell | None = None,
) -> ResidentGuest:
    """Boot `target` residently, verify, and return the guest, paused and with no breakpoint set.

    `target` is a disk image (a path), a QEMU command line (a sequence of words), a QMP socket or a libvirt domain.
    `qmp` is where the QMP socket of a machine that is started shall be (default: beside the working directory's other
    files, named after the disk). `keep` leaves a machine that was started running in the end. Raises what
    `ResidentBoot.run` raises; a machine that was started is ended then unless `keep`, one attached to boots on. Ctrl-C
    lets either boot on.
    """
    vm, socket, ours = _machine(target, machine, qmp)
    keep = keep or not ours
    try:
        steered = ResidentBoot(vm, store, options, tell)
        steered.run()
        guest = ResidentGuest.of_machine(vm, store)
        guest.qmp, guest.keep = socket, keep
        guest.report = verify(guest, steered)
    except BaseException as error:
        if not keep and not isinstance(error, KeyboardInterrupt):
            _quit(vm)
        with suppress(GuestGoneError):  # the error under way says more
            vm.close()
        raise
    return guest


def restore(
    disk: str | os.PathLike[str], snapshot: str, *, store: FindsSymbols, machine: Machine | None = None,
    qmp: str | os.PathLike[str] | None = None, keep: bool = False,
) -> ResidentGuest:  # fmt: skip
    """Start a machine from the `snapshot` that a resident boot left in `disk`; the guest is paused, and verified again.

    `machine` must be what the snapshot was made with. Raises as `boot` does; QEMU says when there is no such snapshot.
    """
    base = machine or Machine()
    loaded = Machine(base.memory, base.vcpus, base.accelerator, base.bus, base.extra, snapshot)
    vm, socket, _ = _machine(disk, loaded, qmp)
    try:
        guest = ResidentGuest.of_machine(vm, store)
        guest.qmp, guest.keep = socket, keep
        guest.report = verify(guest)
    except BaseException:
        if not keep:
            _quit(vm)
        with suppress(GuestGoneError):
            vm.close()
        raise
    return guest


def _quit(vm: VirtualMachine) -> None:
    with suppress(ColdframeError):  # it may end before it answers
        vm.qmp("quit")


def _machine(
    target: str | os.PathLike[str] | Sequence[str], machine: Machine | None, qmp: str | os.PathLike[str] | None
) -> tuple[VirtualMachine, str, bool]:
    """The machine, where its QMP socket is, and whether it was started here."""
    if not isinstance(target, str | os.PathLike):
        socket = Path(qmp or "coldframe.qmp").absolute()
        return start_command(list(target), socket), str(socket), True
    path = Path(target)
    if path.is_socket() or not (path.exists() or path.suffix or "/" in os.fspath(target)):
        if machine is not None and machine != Machine():
            raise UsageError(f"{target} is a machine that is there already: memory, vCPUs and disk are as it has them")
        return attach_paused(os.fspath(target)), os.fspath(target), False
    socket = Path(qmp or f"{path.stem}.qmp").absolute()
    return start_disk(path, socket, machine or Machine()), str(socket), True
