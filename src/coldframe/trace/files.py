"""What traced calls of NtWriteFile wrote: bytes by file and offset, to compare with the disk or to save to a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coldframe.errors import ColdframeError
from coldframe.trace.decode import Value

_UNSAFE = re.compile(r"[^\w.\- ()\[\]{}+,;=@~!#$%&\']")
_LONGEST_NAME = 200
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)
_LARGEST_FILE = 1 << 40
"""Offsets come from the guest: a file that would be larger is not saved."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write: `offset` is None for one at the end of the file; `complete` is False where bytes could not be read."""

    file: str
    offset: int | None
    data: bytes
    complete: bool


def write_of(event: Mapping[str, Value]) -> Write | None:
    """The write that an event of `trace` tells, or None when it is no call of NtWriteFile on a file."""
    arguments = event["arguments"]
    if not str(event["function"]).endswith("!NtWriteFile") or not isinstance(arguments, dict):
        return None
    handle, buffer, offset = (arguments.get(name) for name in ("FileHandle", "Buffer", "ByteOffset"))
    if not isinstance(handle, dict) or not isinstance(buffer, dict) or handle.get("type") != "File":
        return None
    name, data = handle.get("name"), buffer.get("data")
    position = offset.get("value") if isinstance(offset, dict) else None
    return Write(
        file=name if isinstance(name, str) else f"handle {handle.get('handle')} of pid {event['pid']}",
        offset=position if isinstance(position, int) else None,
        data=bytes.fromhex(data) if isinstance(data, str) else b"",
        complete=isinstance(data, str) and not buffer.get("truncated") and not buffer.get("missing"),
    )


@dataclass
class FileWrites:
    """Writes by file name, in the order they came."""

    writes: dict[str, list[Write]] = field(default_factory=dict)

    def add(self, event: Mapping[str, Value]) -> Write | None:
        """Note the write that `event` tells, if it tells one."""
        write = write_of(event)
        if write is not None:
            self.writes.setdefault(write.file, []).append(write)
        return write

    def save(self, folder: Path) -> dict[str, Path]:
        """Put what was written to each file into a file of `folder`; returns where each went. See `SavedFiles`."""
        saved = SavedFiles(folder)
        for writes in self.writes.values():
            for write in writes:
                saved.put(write)
        return saved.paths


class SavedFiles:
    """A folder that takes what a guest writes, file by file, at the offsets it was written to.

    Names are made safe (no path, no reserved name) and unique; what was not written is a hole of zeros. Files of those
    names that exist already are overwritten. `paths` tells where each of the guest's files went. Raises
    `ColdframeError` where the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ColdframeError(f"expected a folder to save in at {folder}: {error.strerror}") from error
        self._folder = folder
        self._taken: set[str] = set()
        self.paths: dict[str, Path] = {}

    def put(self, write: Write) -> Path:
        """Save one write; one beyond the largest file is left out."""
        path = self.paths.get(write.file)
        if path is None:
            path = self.paths[write.file] = self._folder / _unique(safe_name(write.file), self._taken)
            path.write_bytes(b"")
        if write.offset is None or write.offset + len(write.data) <= _LARGEST_FILE:
            with path.open("r+b") as file:
                file.seek(0, 2) if write.offset is None else file.seek(write.offset)
                file.write(write.data)
        return path


def safe_name(name: str) -> str:
    r"""A guest's path as one harmless file name: `\Users\a\x.txt` -> `Users_a_x.txt`."""
    flat = _UNSAFE.sub("_", name.replace("\\", "/").strip("/").replace("/", "_")).strip(". ")
    flat = flat[-_LONGEST_NAME:].lstrip(". ") or "unnamed"
    return f"_{flat}" if _RESERVED.match(flat) else flat


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{number}-{name}"
    taken.add(candidate.lower())
    return candidate
