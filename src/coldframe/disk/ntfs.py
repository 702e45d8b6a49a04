"""Files of an NTFS volume, through dissect.ntfs, bounded where a guest could lead it astray.

Structures: https://flatcap.github.io/linux-ntfs/ntfs/. The guest wrote the volume: a file record is looked at before it
is parsed, the index of a folder is walked to a depth, runs are held against the volume's size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from coldframe.disk.blocks import Blocks, BlockStream
from coldframe.disk.dissected import load, reading
from coldframe.disk.ntfsfile import NtfsFile, Run
from coldframe.disk.volumes import Volume
from coldframe.errors import FormatError, NotFoundError

_ROOT = 5
_VOLUME = 3
_DEEPEST = 32  # of a folder's B-tree
_LONGEST_PATH = 256  # parts
_MOST_RUNS = 1 << 22
_LONGEST_LIST = 1 << 20  # bytes of an attribute list
_ATTRIBUTE_LIST, _DATA, _REPARSE, _VOLUME_NAME = 0x20, 0x80, 0xC0, 0x60
_RESIDENT_ONLY = {0x10, 0x30, 0x60, 0x70, 0x90}  # what Windows never keeps outside of the record
_COMPRESSED, _ENCRYPTED = 0x00FF, 0x4000
_WOF = 0x80000017
_LINKS = {0xA000000C: "a symbolic link", 0xA0000003: "a mount point"}


class NtfsVolume:
    """An NTFS volume. `serial` is the boot sector's 64-bit volume serial number, `label` the volume's name.

    Raises `FormatError` when it is made for a volume that is damaged, or that holds something else: BitLocker's
    encryption among them.
    """

    def __init__(self, volume: Volume) -> None:
        if volume.holds != "NTFS":
            says = f"holds {volume.holds}, not NTFS" if volume.holds else "holds no NTFS"
            encrypted = ": its files cannot be read without its key" if volume.holds.startswith("BitLocker") else ""
            raise FormatError(f"{volume.name} {says}{encrypted}")
        self.volume = volume
        self.name = volume.name
        self.blocks: Blocks = volume.blocks()
        self._dissect: ModuleType = load("ntfs.mft")
        self._stream = BlockStream(self.blocks)
        with reading(f"{self.name}: damaged NTFS"):
            self._ntfs = load("ntfs.ntfs").NTFS(boot=self._stream)  # no more of it is read than the boot sector
            self._ntfs.fh = self._stream
            self.serial = int(self._ntfs.boot_sector.SerialNumber)
            self.cluster = int(self._ntfs.cluster_size)
            self.record_size = int(self._ntfs._record_size)
            if not (256 <= self.cluster <= 1 << 21 and 512 <= self.record_size <= 1 << 16):
                raise FormatError(f"clusters of {self.cluster} bytes, file records of {self.record_size}")
            self._open_mft()
        self._records: dict[int, Any] = {}
        self.label = self._label()

    def _open_mft(self) -> None:
        """The file table, by its first record; see `NTFS.__init__` of dissect."""
        at = int(self._ntfs.boot_sector.MftStartLcn) * self.cluster
        self._check_record(self.blocks.read(at, self.record_size), 0)
        first = self._dissect.MftRecord.from_fh(self._stream, at, ntfs=self._ntfs)
        mft = self._dissect.Mft(first.open(), ntfs=self._ntfs)
        mft.get = self._by_number
        self._ntfs.mft = mft
        self._records = {}
        for held in first.attributes[_ATTRIBUTE_LIST]:
            for attribute in held.attributes():
                if attribute.type.value == _DATA:
                    mft.fh.runlist = [*mft.fh.runlist, *attribute.dataruns()]
        self._mft = mft.fh
        self._most_records = int(first.size()) // self.record_size

    def forget(self) -> None:
        """Read every file record anew: the guest has run."""
        self._records.clear()
        with reading(f"{self.name}: damaged NTFS"):
            self._open_mft()

    # Records

    def _by_number(self, number: int, root: object = None) -> Any:
        """The file record of that number, parsed; in the place of dissect's own `Mft.get`."""
        if not isinstance(number, int):
            number = number.SegmentNumberLowPart | number.SegmentNumberHighPart << 32
        found = self._records.get(number)
        if found is None:
            data = self.record_bytes(number)
            self._check_record(data, number)
            found = self._dissect.MftRecord.from_bytes(data, self._ntfs)
            found.segment = number
            found.offset = number * self.record_size
            self._records[number] = found
        return found

    def record_bytes(self, number: int) -> bytes:
        """A file record as it stands on the disk; raises `FormatError` where the file table has none."""
        with reading(f"{self.name}: file record {number}"):
            self._mft.seek(number * self.record_size)
            data: bytes = self._mft.read(self.record_size)
        if len(data) != self.record_size:
            raise FormatError(f"{self.name}: file record {number} lies beyond the end of the file table")
        return data

    def _check_record(self, data: bytes, number: int) -> None:
        """Raise `FormatError` where parsing the record would read more than any volume's record makes one read."""
        what = f"{self.name}: file record {number}"
        if data[:4] != b"FILE":
            raise FormatError(f"{what} begins with {data[:4]!r}, not FILE")
        at = int.from_bytes(data[20:22], "little")
        while at + 16 <= len(data):
            kind, length, form = struct.unpack_from("<IIB", data, at)
            if kind == 0xFFFFFFFF:
                return
            if length < 24 or at + length > len(data):
                raise FormatError(f"{what} is damaged: an attribute of {length} bytes at {at:#x}")
            if form:
                size = struct.unpack_from("<q", data, at + 48)[0] if length >= 56 else -1
                odd = kind in _RESIDENT_ONLY or (kind == _ATTRIBUTE_LIST and size > _LONGEST_LIST)
                if size < 0 or odd:
                    raise FormatError(f"{what} is damaged: attribute {kind:#x} has {size:#x} bytes elsewhere")
            at += length

    # Names

    def find(self, path: str) -> int:
        r"""The number of the record of `\Windows\System32\ntdll.dll`; `NotFoundError` names the part that is not there.

        Links are not followed: a FILE_OBJECT's name has none.
        """
        number = _ROOT
        parts = [part for part in path.split("\\") if part][:_LONGEST_PATH]
        for depth, part in enumerate(parts):
            with reading(f"{self.name}: {path}"):
                found = self._in_folder(number, part)
            if found is None:
                raise NotFoundError("file on " + self.name, "\\" + "\\".join(parts[: depth + 1]))
            number = found
        return number

    def _in_folder(self, folder: int, name: str) -> int | None:
        record = self._by_number(folder)
        if not record.is_dir():
            return None
        index = record.index("$I30")
        wanted = _key(name)
        entries = index.root.entries()
        for _ in range(_DEEPEST):
            below: Any = None
            for entry in entries:
                key = None if entry.is_end else _key(_entry_name(entry.buf))
                if key == wanted:
                    reference = entry.header.FileReference
                    return int(reference.SegmentNumberLowPart | reference.SegmentNumberHighPart << 32)
                if key is None or key > wanted:
                    below = entry
                    break
            if below is None or not below.is_node:
                return None
            entries = index.index_buffer(below.node_vcn).entries()
        raise FormatError(f"the folder's index is deeper than {_DEEPEST}: it points to itself")

    def _label(self) -> str:
        try:
            with reading(self.name):
                held = self._by_number(_VOLUME).attributes[_VOLUME_NAME]
                return str(held[0].data().decode("utf-16-le")) if held else ""
        except FormatError:
            return ""

    # Files

    def open(self, path: str) -> NtfsFile:
        r"""The file `\Windows\System32\ntdll.dll` (or a stream of it, `\a.txt:stream`).

        Raises `NotFoundError`, `FormatError` for a damaged record and for what cannot be read: encrypted files, files
        compressed by WOF's LZX, links.
        """
        path, _, stream = path.partition(":")
        return self._file(self.find(path), path, stream.partition(":")[0])

    def _file(self, number: int, path: str, stream: str) -> NtfsFile:
        what = f"{self.name}: {path}"
        with reading(what):
            record = self._by_number(number)
            tag = self._reparse_tag(record)
            if tag in _LINKS:
                raise FormatError(f"{what} is {_LINKS[tag]}")
            if tag == _WOF and not stream:
                raise FormatError(f"{what} is stored compressed by the Windows Overlay Filter, which cannot be read")
            attributes = record._get_stream_attributes(stream)
            numbers = sorted({number, *(int(each.record.segment) for each in attributes)})
            proof = tuple((each, self.record_bytes(each)) for each in numbers)
            header = min(attributes, key=lambda each: each.header.lowest_vcn or 0).header
            if header.flags & _ENCRYPTED:
                raise FormatError(f"{what} is encrypted (EFS)")
            if header.resident:
                return NtfsFile(self, path, proof, resident=bytes(header.data()))
            form = header.header.Form.Nonresident
            runs = self._runs(attributes.dataruns(), what)
            compressed = attributes.open if header.flags & _COMPRESSED else None
            size, valid = int(form.FileSize), int(form.ValidDataLength)
            if compressed is not None and sum(count for _, count in runs) * self.cluster > 1 << 40:
                raise FormatError(f"{what}: a compressed file of more than 1 TB")
            return NtfsFile(self, path, proof, runs=runs, size=size, valid=valid, compressed=compressed)

    def _runs(self, pairs: list[tuple[int | None, int]], what: str) -> list[Run]:
        if len(pairs) > _MOST_RUNS:
            raise FormatError(f"{what} lies in {len(pairs)} pieces")
        clusters = -(-self.blocks.size // self.cluster)
        for start, count in pairs:
            if count <= 0 or count > 1 << 48 or (start is not None and not 0 <= start <= clusters - count):
                raise FormatError(f"{what}: {count} clusters from {start} on, the volume has {clusters}")
        return [(None if start is None else int(start), int(count)) for start, count in pairs]

    def _reparse_tag(self, record: Any) -> int:
        for attribute in record.attributes[_REPARSE]:
            data = attribute.data() if attribute.header.size <= 1 << 14 else b""
            return int.from_bytes(data[:4], "little")
        return 0

    def folder(self, path: str) -> Iterator[str]:
        """The names in a folder, in no order; raises as `open`."""
        with reading(f"{self.name}: {path}"):
            for entry in self._by_number(self.find(path)).index("$I30").entries():
                yield _entry_name(entry.buf)


def _entry_name(key: bytes) -> str:
    """The name in a `_FILE_NAME`: its length in characters at 64, itself at 66."""
    return key[66 : 66 + 2 * key[64]].decode("utf-16-le", "replace")


def _key(name: str) -> bytes:
    """What names are ordered by: UTF-16 in upper case, character by character, as $UpCase has it."""
    return "".join(up if len(up := each.upper()) == 1 else each for each in name).encode("utf-16-be", "surrogatepass")
