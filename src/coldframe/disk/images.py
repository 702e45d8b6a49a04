"""Virtual disk files: told by content, opened through dissect.hypervisor, with everything that they are based on.

Formats: qcow2 (https://www.qemu.org/docs/master/interop/qcow2.html) with backing chains and internal snapshots, VMDK,
VDI, VHD, VHDX; anything else is taken for a raw disk.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from coldframe.disk.blocks import Blocks, FileBlocks
from coldframe.disk.dissected import load, reading
from coldframe.errors import FormatError, NotFoundError, UsageError

_LONGEST_CHAIN = 64
_FILE_URL = re.compile(r"^(?:file:(?://)?|qcow2:|raw:)")


class StreamBlocks(Blocks):
    """Blocks of a file-like object that dissect made."""

    def __init__(self, stream: BinaryIO, size: int, name: str, close: Callable[[], None]) -> None:
        self._stream, self.size, self.name, self._close = stream, size, name, close

    def read(self, offset: int, size: int) -> bytes:
        """See `Blocks`."""
        self.check(offset, size)
        with reading(f"{self.name}: cannot read at {offset:#x}"):
            self._stream.seek(offset)
            data = self._stream.read(size)
        if len(data) != size:
            raise FormatError(f"{self.name}: has {len(data):#x} of {size:#x} bytes at {offset:#x}")
        return data

    def close(self) -> None:
        """See `Blocks`."""
        self._close()


def open_image(name: str | Path) -> Blocks:
    """The disk in the image file `name`; `FILE@SNAPSHOT` is a qcow2's internal snapshot, by its name or id.

    Raises `UsageError` where there is no such file, `NotFoundError` for an unknown snapshot, `FormatError` for a
    damaged image or a missing backing file, `CapabilityError` where the extra is not installed.
    """
    path, snapshot = Path(name), ""
    if not path.exists() and "@" in str(name):
        before, _, snapshot = str(name).rpartition("@")
        path = Path(before)
    if not path.is_file() and not path.is_block_device():
        raise UsageError(f"expected a virtual disk at {name}, found no such file")
    opened: list[BinaryIO] = []
    try:
        stream = _open(path, snapshot, opened, _LONGEST_CHAIN)
        if stream is None:
            return FileBlocks(path)
        size = int(getattr(stream, "size", None) or stream.seek(0, io.SEEK_END))
        return StreamBlocks(stream, size, str(name), lambda: _close(opened))
    except BaseException:
        _close(opened)
        raise


def _close(opened: list[BinaryIO]) -> None:
    for file in opened:
        file.close()


def _magic(path: Path) -> tuple[bytes, bytes]:
    """A file's first 1 KB and its last 512 bytes."""
    with path.open("rb") as file:
        first = file.read(1024)
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - 512))
        return first, file.read(512)


def _open(path: Path, snapshot: str, opened: list[BinaryIO], left: int) -> BinaryIO | None:
    """The disk as dissect's stream; None for a raw one."""
    try:
        first, last = _magic(path)
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from None
    if first[:4] == b"QFI\xfb":
        return _qcow2(path, snapshot, opened, left)
    if snapshot:
        raise UsageError(f"{path} is no qcow2 disk: only those have internal snapshots ({snapshot!r} is asked for)")
    with reading(f"{path} is a damaged virtual disk"):
        if first[:4] in (b"KDMV", b"COWD", b"\xbe\xba\xfe\xca") or first.startswith(b"# Disk DescriptorFile"):
            stream: BinaryIO = load("hypervisor.disk.vmdk").VMDK(path)
        elif first[0x40:0x44] == b"\x7f\x10\xda\xbe":
            vdi = load("hypervisor.disk.vdi").VDI(path)
            if vdi.type.value not in (1, 2):  # dynamic, fixed; a differencing one names its parent by UUID only
                raise FormatError(f"{path} is a VDI based on another, which it does not name: merge them first")
            stream = vdi.open()
        elif first[:8] == b"vhdxfile":
            stream = load("hypervisor.disk.vhdx").VHDX(path)
        elif last[:8] == b"conectix" or first[:8] == b"conectix":
            file = path.open("rb")
            opened.append(file)
            stream = load("hypervisor.disk.vhd").VHD(file)
        else:
            return None
        return stream


def _qcow2(path: Path, snapshot: str, opened: list[BinaryIO], left: int) -> BinaryIO:
    """A qcow2 on top of its backing files, whose names are relative to its own folder."""
    qcow2 = load("hypervisor.disk.qcow2")
    what = f"{path} is a damaged qcow2"
    with reading(what):
        file = path.open("rb")
        opened.append(file)
        header = qcow2.c_qcow2.QCowHeader(file)
        name = ""
        if header.backing_file_offset:
            if header.backing_file_size > 1023:
                raise FormatError(f"{what}: its backing file's name has {header.backing_file_size} bytes")
            file.seek(header.backing_file_offset)
            name = file.read(header.backing_file_size).decode("utf-8", "surrogateescape")
    backing = _backing(path, name, opened, left) if name else None
    with reading(what):
        needs_data = bool(header.version >= 3 and header.incompatible_features & 4)
        disk = qcow2.QCow2(path if needs_data else file, backing_file=backing)
        if not snapshot:
            return _checked(disk.open(), what)
        found = [each for each in disk.snapshots if snapshot in (each.name, each.id)]
        if not found:
            raise NotFoundError(f"snapshot in {path}", snapshot, [each.name for each in disk.snapshots])
        return _checked(found[0].open(), what)


def _checked(stream: Any, what: str) -> BinaryIO:
    """A qcow2's stream that does not read for ever where a damaged table gives it runs of no length."""
    inner = stream._yield_runs

    def runs(offset: int, length: int) -> Iterator[tuple[Any, int, int, int]]:
        for run in inner(offset, length):
            if run[3] <= 0:
                raise FormatError(f"{what}: its table has a run of {run[3]} bytes for {run[1]:#x}")
            yield run

    stream._yield_runs = runs
    return cast(BinaryIO, stream)


class _Backing(io.RawIOBase):
    """A backing file as dissect shall see it: zeros beyond its end, for it may be shorter than what lies on it.

    dissect looks at the first four bytes for the magic of another qcow2. That has been settled here, and a raw disk's
    own first bytes, which the guest writes, must not be taken for it: the first look shows none.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._at = 0
        self._looked = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("seek from elsewhere than the start")
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not self._looked:
            self._looked = True
            return bytes(size)
        self._stream.seek(self._at)
        data = self._stream.read(size)
        self._at += max(size, len(data))
        return data + bytes(max(0, size - len(data)))


def _backing(path: Path, name: str, opened: list[BinaryIO], left: int) -> BinaryIO:
    """The backing file called `name` in `path`."""
    if left <= 1:
        raise FormatError(f"{path}: its chain of backing files is longer than {_LONGEST_CHAIN}")
    if name.startswith("json:") or "://" in name:
        raise FormatError(f"{path} is based on {name[:80]!r}: only files can be opened")
    base = path.parent / _FILE_URL.sub("", name)
    if not base.is_file():
        raise FormatError(f"{path} is based on {base}, which is not there")
    stream = _open(base, "", opened, left - 1)
    if stream is None:
        stream = base.open("rb")
        opened.append(stream)
    return cast(BinaryIO, _Backing(stream))
