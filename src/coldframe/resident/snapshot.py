"""Snapshots of a whole machine, RAM and disks, inside its qcow2 images: QMP `snapshot-save`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from coldframe.errors import CapabilityError, UsageError
from coldframe.qemu import VirtualMachine
from coldframe.qemu.qmp import Json

_POLL = 0.05
_LONGEST = 3600.0


def save_snapshot(vm: VirtualMachine, name: str) -> None:
    """Save a snapshot called `name` in the machine's disks; the guest stands still meanwhile.

    RAM goes into the first disk. Raises `CapabilityError` with QEMU's words: a snapshot of that name exists, a disk
    that can be written to is no qcow2 image, a device cannot be saved. Then nothing has been saved.
    """
    if not name or any(ord(letter) < 32 for letter in name) or name.isdecimal():
        raise UsageError(f"expected a name for the snapshot that is no number, found {name!r}")
    nodes = _writable_nodes(vm)
    if not nodes:
        raise CapabilityError("this machine has no disk that can be written to, so no place for a snapshot")
    job = f"coldframe-{uuid.uuid4().hex[:12]}"
    vm.qmp("snapshot-save", job_id=job, tag=name, vmstate=nodes[0], devices=list[Json](nodes))
    _finish(vm, job, f"the snapshot {name!r}")


def _writable_nodes(vm: VirtualMachine) -> list[str]:
    """The block nodes of all disks that the guest can write to; each must be a qcow2 image."""
    answer = vm.qmp("query-block")
    nodes, others = [], []
    for device in answer if isinstance(answer, list) else []:
        inserted = device.get("inserted") if isinstance(device, Mapping) else None
        if not isinstance(inserted, Mapping) or inserted.get("ro"):
            continue
        if inserted.get("drv") == "qcow2":
            nodes.append(str(inserted.get("node-name")))
        else:
            others.append(f"{inserted.get('file')} ({inserted.get('drv')})")
    if others:
        raise CapabilityError(
            f"a snapshot needs every disk that can be written to as qcow2; these are not: {', '.join(others)} "
            "(convert them, or make them read-only; a dump works with any disk)"
        )
    return nodes


def _finish(vm: VirtualMachine, job: str, what: str) -> None:
    """Wait for a QEMU job and dismiss it; raises `CapabilityError` with its error."""
    deadline = time.monotonic() + _LONGEST
    while True:
        jobs = vm.qmp("query-jobs")
        mine = (
            next((each for each in jobs if isinstance(each, Mapping) and each.get("id") == job), None)
            if isinstance(jobs, list)
            else None
        )
        if mine is None:
            raise CapabilityError(f"QEMU lost sight of {what}")
        if mine.get("status") == "concluded":
            vm.qmp("job-dismiss", id=job)
            error = mine.get("error")
            if error:
                raise CapabilityError(f"QEMU did not save {what}: {error}")
            return
        if time.monotonic() > deadline:
            raise CapabilityError(f"QEMU did not save {what} within {_LONGEST:g} s")
        time.sleep(_POLL)
