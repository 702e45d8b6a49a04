r"""Whole names of objects: `\Device\HarddiskVolume2\a.txt`, `\BaseNamedObjects\Shared`, `\REGISTRY\MACHINE\SOFTWARE`.

An object's own header has the last part of its name and the directory that it is in; a file's name begins with its
device's; a registry key's is the chain of its `_CM_KEY_CONTROL_BLOCK`s. Every walk is bounded: a guest may link any of
them in a circle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.errors import TypeNotFoundError, UnreadableMemoryError
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_DEEPEST_DIRECTORY = 64
_DEEPEST_KEY = 512  # the registry's own limit on levels
_LONGEST_KEY_NAME = 512  # bytes: 256 characters


def object_path(guest: Guest, body: int, kind: str) -> str | None:
    """The whole name of the object whose body is at `body`, of the type called `kind`; None where it has none.

    What is not in RAM on the way leaves the name without it, from the front.
    """
    try:
        if kind == "File":
            return _file(guest, body)
        if kind == "Key":
            return _key(guest, body)
        return _in_namespace(guest, body)
    except (UnreadableMemoryError, TypeNotFoundError):
        return None


def _in_namespace(guest: Guest, body: int) -> str | None:
    """By the directories that name headers lead to, up to the root, which is in none."""
    parts: list[str] = []
    seen: set[int] = set()
    while body >= guest.kernel_start and body not in seen and len(seen) < _DEEPEST_DIRECTORY:
        seen.add(body)
        try:
            header = guest.struct("_OBJECT_HEADER", body - guest.types.offset("_OBJECT_HEADER", "Body"))
            name, body = guest.objects.name_and_directory(header)
        except UnreadableMemoryError:
            break
        if name is None:
            break
        parts.append(name.strip("\\"))
    return "\\" + "\\".join(reversed([part for part in parts if part])) if parts else None


def _file(guest: Guest, body: int) -> str | None:
    name = guest.sections.file_name(body)
    device = guest.struct("_FILE_OBJECT", body).integer("DeviceObject")
    path = _in_namespace(guest, device) if device else None
    if path is None:
        return name
    return path if name is None else path + ("" if name.startswith("\\") else "\\") + name


def _key(guest: Guest, body: int) -> str | None:
    block = guest.struct("_CM_KEY_BODY", body).integer("KeyControlBlock")
    parts: list[str] = []
    seen: set[int] = set()
    while block >= guest.kernel_start and block not in seen and len(seen) < _DEEPEST_KEY:
        seen.add(block)
        record = guest.struct("_CM_KEY_CONTROL_BLOCK", block)
        try:
            parts.append(_key_name(guest, record))
            block = record.integer("ParentKcb")
        except UnreadableMemoryError:
            break
    return "\\" + "\\".join(reversed(parts)) if parts else None


def _key_name(guest: Guest, block: Struct) -> str:
    """A name block's text: one byte a character where it is compressed, else UTF-16."""
    record = guest.struct("_CM_NAME_CONTROL_BLOCK", block.integer("NameBlock"))
    length = min(record.integer("NameLength"), _LONGEST_KEY_NAME)
    data = guest.memory.read(record.address_of("Name"), length)
    return data.decode("latin-1") if record.integer("Compressed") else data.decode("utf-16-le", "replace")
