"""Memory images, one module a format, told by content and never by name."""

from __future__ import annotations

import os
from pathlib import Path

from coldframe.images import avml, crashdump, crashheader, elf, lime, migration, qcow2state, raw, unpacked, vmware
from coldframe.images.image import ImageFile, PhysicalImage
from coldframe.images.triage import TriageDump, is_triage, open_triage

__all__ = ["PhysicalImage", "TriageDump", "open_image", "open_triage", "triage_dump"]


def open_image(path: str | os.PathLike[str]) -> PhysicalImage:
    """Open the memory image at `path`: an ELF core, a Windows crash dump, LiME, AVML, VMware's, a migration stream of
    QEMU, else raw memory.

    Each may be compressed by gzip, xz or zstd. The file is mapped, not read: opening costs the same whatever its size,
    except the first time for a compressed one. Raises `FormatError` naming the file and the place for one that is
    damaged, `CapabilityError` when a compressed one cannot be unpacked, `OSError` for one that cannot be opened.
    """
    file = ImageFile.map(Path(path))
    compression = unpacked.compression(file)
    if compression is not None:
        file = unpacked.decompressed(file, compression)
        image = _open(file)
        image.format = f"{image.format}, {compression}"
        return image
    return _open(file)


def triage_dump(path: str | os.PathLike[str]) -> TriageDump | None:
    """The triage dump at `path`, which has no physical memory, or None for any other file.

    Raises `FormatError` for a damaged one, `OSError`.
    """
    return open_triage(path) if is_triage(ImageFile.map(Path(path))) else None


def _open(file: ImageFile) -> PhysicalImage:
    magic = bytes(file.data[:8])
    if magic.startswith(elf.MAGIC):
        return elf.open_elf(file)
    if magic in crashheader.FORMS:
        return crashdump.open_crash_dump(file)
    if magic.startswith(lime.MAGIC):
        return lime.open_lime(file)
    if magic.startswith(avml.MAGIC):
        return avml.open_avml(file)
    if magic.startswith(migration.MAGIC) or bytes(file.data[:16]) == migration.LIBVIRT_MAGIC:
        return migration.open_migration(file)
    if magic.startswith(qcow2state.MAGIC):
        return qcow2state.open_snapshot(file)
    if magic[:4] in vmware.MAGICS:
        return vmware.open_state(file)
    state = vmware.state_beside(file)
    return raw.open_raw(file) if state is None else vmware.open_vmem(file, state)
